"""A small program, insecure by its explicit parameters, that takes all kinds of kernels but is made without torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from olac.backends.recorder import RecorderEvaluator
from olac.ckks.engines import OPENFHE, engine_model
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FIXED, FLEXIBLE
from olac.ir.graph import GraphBuilder
from olac.ir.ops import Add, Array, Conv2d, Input, Linear, Polynomial, Reshape, SparseLinear
from olac.ir.types import Range, Stage, ValueType
from olac.kernels.execute import build_kernels, execute
from olac.kernels.record import record
from olac.passes.base import FitReport, PassContext, PassManager
from olac.passes.choose_lowerings import Convolutions, Copies
from olac.passes.pipeline import lowering_pipeline
from olac.passes.place_bootstraps import PlaceBootstraps
from olac.program.program import CompiledProgram
from olac.program.report import Report, SelfCheck

_engine = OPENFHE.name


def current_engine() -> str:
    """The name of the engine that programs are for."""
    return _engine


@contextmanager
def planned_for(engine: str) -> Iterator[None]:
    """Programs that are made meanwhile are for this engine."""
    global _engine
    before, _engine = _engine, engine
    try:
        yield
    finally:
        _engine = before


SHAPE = (2, 4, 4)
LIMIT = 2.0
ERROR = 1e-3


def small_program(
    technique: str = FIXED, batch: int = 1, seed: int = 0, copies: Copies = "plain", lowering: Convolutions = "auto"
) -> CompiledProgram:
    """Convolution, polynomial, reshape, linear and sparse linear, 5 outputs, ring 2^12."""
    rng = np.random.default_rng(seed)
    builder = GraphBuilder(by="test")

    def typed(shape: tuple[int, ...], unit: float = 1.0) -> ValueType:
        return ValueType(shape, unit=unit, batch=batch, bound=Range(-LIMIT, LIMIT))

    x = builder.add(Input(SHAPE), name="x", type=typed(SHAPE, LIMIT))
    weight = builder.constant("conv.weight", rng.normal(size=(3, 2, 3, 3)) / 6)
    bias = builder.constant("conv.bias", rng.normal(size=3) / 10)
    y = builder.add(Conv2d(weight, bias, padding=(1, 1, 1, 1)), [x], name="conv", type=typed((3, 4, 4)))
    coefficients = builder.constant("act.coefficients", [[0.1, 0.5, 0.2, 0.05]])
    y = builder.add(Polynomial(coefficients), [y], name="act", type=typed((3, 4, 4)))
    y = builder.add(Reshape((48,)), [y], name="flat", type=typed((48,)))
    y = builder.add(
        Linear(builder.constant("fc.weight", rng.normal(size=(5, 48)) / 8)), [y], name="fc", type=typed((5,))
    )
    index = builder.constant("mix.index", np.arange(5.0))
    values, shift = builder.constant("mix.values", rng.normal(size=5)), builder.constant("mix.bias", np.ones(5))
    mix = SparseLinear(index, index, values, shift, (5,))
    y = builder.add(mix, [y], name="mix", type=typed((5,), 3.0))
    parameters = Parameters(12, 5 + (lowering == "multiplexed"), 32, 40, 2, technique, security=0)
    graph = PassManager(lowering_pipeline(copies, convolutions=lowering)).run(
        builder.build([y], stage=Stage.POLYNOMIAL), PassContext(parameters=parameters, batch=batch)
    )
    recorder = RecorderEvaluator(parameters)
    type_ = graph.inputs[0].type
    assert type_.layout is not None and type_.state is not None
    fresh = (recorder.fresh(type_.state.level),) * type_.layout.ciphertexts
    execute(graph, build_kernels(graph), recorder, {"x": fresh})
    report = Report(
        (FitReport("act", "relu", 3, 2, 0.01, float("inf"), -1.0, 1.0),),
        SelfCheck(8, 1.0, 0.1, 0.05, 1e-7),
        (("assign_levels", 0.25),),
        ("a note",),
    )
    return CompiledProgram(graph, parameters, recorder.rotations, report, engine=current_engine())


def images(count: int = 1, seed: int = 1) -> Array:
    """Images within the calibrated range."""
    return np.random.default_rng(seed).uniform(-LIMIT, LIMIT, size=(count, *SHAPE))


DEEP_SHAPE = (8,)
DEEP_ERROR = 0.05


def deep_program(blocks: int = 3, gain: float = 0.0, digits: int = 3) -> CompiledProgram:
    """Residual blocks of a linear layer and a polynomial with bootstraps between them, ring 2^11.

    Args:
        blocks: how many.
        gain: what the first block multiplies its input with, if not 0, although it is calibrated to stay within 1.
        digits: of key switching.
    """
    rng = np.random.default_rng(3)
    builder = GraphBuilder(by="test")
    kind = ValueType(DEEP_SHAPE, bound=Range(-1.0, 1.0))
    y = x = builder.add(Input(DEEP_SHAPE), name="x", type=kind)
    for i in range(blocks):
        weight = rng.normal(size=(8, 8)) / 8
        if gain and i == 0:
            weight = gain * np.eye(8)
        y = builder.add(Linear(builder.constant(f"fc{i}.weight", weight)), [x], name=f"fc{i}", type=kind)
        coefficients = builder.constant(f"act{i}.coefficients", [[0.05, 0.5, 0.1, 0.05]])
        y = builder.add(Polynomial(coefficients), [y], name=f"act{i}", type=kind)
        half = builder.constant(f"half{i}.weight", 0.5 * np.eye(8))
        x = builder.add(Linear(half), [x], name=f"half{i}", type=kind)
        x = builder.add(Add(), [x, y], name=f"sum{i}", type=kind)
    rest = 4
    parameters = Parameters(11, 16 + rest, 40, 47, digits, FLEXIBLE, 0, Bootstrapping(rest))
    cuts = tuple((4 * (i + 1), f"sum{i}") for i in range(blocks - 1))  # behind every sum but the last
    passes = [PlaceBootstraps(cuts) if isinstance(one, PlaceBootstraps) else one for one in lowering_pipeline()]
    graph = PassManager(passes).run(builder.build([x], stage=Stage.POLYNOMIAL), PassContext(parameters=parameters))
    bootstraps = engine_model(current_engine()).bootstraps(parameters)
    rotations = set(record(graph, parameters).rotations) | bootstraps.steps
    return CompiledProgram(graph, parameters, tuple(sorted(rotations)), engine=current_engine())
