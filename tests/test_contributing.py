"""The worked examples of CONTRIBUTING.md, which tests/docs runs, and what ops from outside rely on."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from olac.analysis.levels import multiplicative_depth
from olac.backends.base import Evaluator
from olac.backends.simulator import SimulatorEvaluator
from olac.ckks.parameters import Parameters
from olac.errors import VerificationError
from olac.ir import Graph, GraphBuilder, Stage
from olac.ir.ops import Array, Constants, Input, Linear, Multiply, Op, Shape, ShapeError, Units
from olac.ir.verify import verify
from olac.kernels.base import Kernel, Value
from olac.kernels.execute import KERNELS, build_kernels, execute
from olac.passes.base import PassContext, PassManager
from olac.passes.pipeline import lowering_pipeline
from tests.docs.registries import REGISTRIES, registries_kept
from tests.networks import images_for, normalized

GUIDE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"
SECTIONS = (
    "Add a pass",
    "Add an op and its frontend handler",
    "Add a kernel or a lowering",
    "Add a kernel or a lowering (3)",
    "Add a backend",
)


def blocks() -> dict[str, tuple[int, str]]:
    """The line and the source of each python block, by the heading above it; a second one gets a number."""
    text = GUIDE.read_text(encoding="utf-8")
    found: dict[str, tuple[int, str]] = {}
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        heading = re.findall(r"^## (.*)$", text[: match.start()], re.MULTILINE)[-1]
        name = heading if heading not in found else f"{heading} ({len(found)})"
        found[name] = text.count("\n", 0, match.start(1)), match[1]
    return found


@pytest.fixture
def registries() -> Iterator[None]:
    with registries_kept():
        yield


def run_block(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Execute one block as a module of its own; tracebacks show the guide's lines."""
    line, source = blocks()[name]
    module = ModuleType("contributing_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    code = compile("\n" * line + source, str(GUIDE), "exec", dont_inherit=True)
    exec(code, module.__dict__)
    return module


@pytest.mark.parametrize(
    ("earlier", "now", "names"),
    [
        ("olac.parameters", "olac.ckks.parameters", ("Bootstrapping", "Parameters")),
        ("olac.polynomials.statistics", "olac.calibration.statistics", ("Calibration",)),
        ("olac.passes.assign_levels", "olac.analysis.levels", ("multiplicative_depth",)),
    ],
)
def test_imports_of_earlier_guides_work(earlier: str, now: str, names: tuple[str, ...]) -> None:
    before, after = importlib.import_module(earlier), importlib.import_module(now)
    assert all(getattr(before, name) is getattr(after, name) for name in names)


def test_every_section_has_an_example() -> None:
    assert tuple(blocks()) == SECTIONS
    assert all("assert " in source for _, source in blocks().values())


def test_examples_are_told_apart_from_olac(registries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The op's and the kernel's example register something, once: a second time the name is taken."""
    before = [len(registry) for registry in REGISTRIES]
    run_block("Add an op and its frontend handler", monkeypatch)
    run_block("Add a kernel or a lowering", monkeypatch)
    ops, kernels, modules, functions, forms, *_ = (
        len(registry) - count for registry, count in zip(REGISTRIES, before, strict=True)
    )
    assert (ops, kernels, modules, functions, forms) == (2, 1, 1, 0, 1)
    with pytest.raises(ValueError, match="'roll' is empty or taken"):
        run_block("Add a kernel or a lowering", monkeypatch)


@dataclass(frozen=True)
class Twice(Op):
    """x + x: neither linear (it takes no level) nor a polynomial nor a product."""

    name: ClassVar[str] = "twice"

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        return shapes[0]

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return 2 * operands[0]


class TwiceKernel(Kernel):
    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        return tuple(evaluator.add(part, part) for part in operands[0])


def twice_and_linear() -> Graph:
    b = GraphBuilder()
    x = b.add(Input((4,)), name="x")
    y = b.add(Twice(), [x], name="twice")
    y = b.add(Linear(b.constant("w", np.eye(3, 4))), [y], name="head")
    return b.build([y], Stage.POLYNOMIAL)


def test_an_op_from_outside_shares_its_unit_and_takes_no_level(registries: None) -> None:
    KERNELS[Twice] = lambda graph, node: TwiceKernel()
    images = images_for(twice_and_linear(), 3)
    graph, calibration = normalized(twice_and_linear(), images)
    assert graph["x"].type.unit == graph["twice"].type.unit
    assert np.allclose(graph.evaluate(images), twice_and_linear().evaluate(images))
    parameters = Parameters(12, multiplicative_depth(graph), 30, 36, 1, security=0)
    assert parameters.depth == 1
    lowered = PassManager(lowering_pipeline()).run(graph, PassContext(calibration=calibration, parameters=parameters))
    assert [node.type.state.level for node in lowered.nodes if node.type.state] == [1, 1, 0]
    other = lowered.rewrite(
        lambda node, builder, inputs: (
            builder.keep(node, inputs, type=replace(node.type, unit=2 * node.type.unit)) if node.id == "twice" else None
        ),
        by="test",
    )
    with pytest.raises(VerificationError, match=r"units .* differ"):
        verify(other)


@dataclass(frozen=True)
class Times(Op):
    """factor * x: the factor takes the units in."""

    factor: float
    name: ClassVar[str] = "times"
    units: ClassVar[Units] = Units.FREE
    takes_products: ClassVar[bool] = True

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        return shapes[0]

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return self.factor * operands[0]

    def levels(self, constants: Constants) -> int:
        return 1

    def in_units(self, constants: Constants, units: Sequence[float], unit: float) -> dict[str, Any]:
        return {"factor": self.factor * units[0] / unit}


class TimesKernel(Kernel):
    depth = 1

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        state, parameters = operands[0][0].state, evaluator.parameters
        scale = parameters.scale(state.level - 1) * parameters.primes[state.level] / state.scale
        factor = evaluator.encode(lambda: np.full(evaluator.slots, self._factor), state.level, scale)
        return tuple(evaluator.rescale(evaluator.multiply_plain(part, factor)) for part in operands[0])


def test_an_op_from_outside_takes_units_and_products_into_its_constants(registries: None) -> None:
    KERNELS[Times] = lambda graph, node: TimesKernel(node.op.factor)  # type: ignore[attr-defined]
    b = GraphBuilder()
    x = b.add(Input((4,)), name="x")
    y = b.add(Times(40.0), [b.add(Multiply(), [x, x], name="product")], name="times")
    before = b.build([y], Stage.POLYNOMIAL)
    images = images_for(before, 3)
    graph, calibration = normalized(before, images)
    assert [node.id for node in graph.nodes] == ["x", "product", "times"]  # nothing comes between
    assert graph["times"].type.unit != graph["product"].type.unit
    assert np.allclose(graph.evaluate(images), before.evaluate(images))
    parameters = Parameters(12, multiplicative_depth(graph), 30, 36, 1, security=0)
    lowered = PassManager(lowering_pipeline()).run(graph, PassContext(calibration=calibration, parameters=parameters))
    evaluator = SimulatorEvaluator(parameters)
    given, wanted = lowered["x"].type, lowered["times"].type
    assert given.layout is not None and wanted.layout is not None
    fresh = tuple(evaluator.encrypt(page, parameters.depth) for page in given.layout.pack(images[:1] / given.unit))
    (result,) = execute(lowered, build_kernels(lowered), evaluator, {"x": fresh})
    slots = np.stack([evaluator.decrypt(part) for part in result])
    assert np.allclose(wanted.layout.unpack(slots) * wanted.unit, before.evaluate(images[:1]), atol=1e-9)


@dataclass(frozen=True)
class Choosy(Twice):
    """An op with rules of its own."""

    times: int = 2
    last_stage: ClassVar[Stage] = Stage.POLYNOMIAL

    def check(self, shapes: Sequence[Shape], constants: Constants, stage: Stage) -> None:
        if self.times != 2:
            raise ShapeError(f"twice, but {self.times} times")


def test_an_op_from_outside_says_its_own_rules() -> None:
    b = GraphBuilder()
    y = b.add(Choosy(), [b.add(Input((4,)), name="x")], name="twice")
    graph = b.build([y], Stage.POLYNOMIAL)
    verify(graph)
    with pytest.raises(VerificationError, match="twice at stage PACKED: its last stage is POLYNOMIAL"):
        verify(replace(graph, stage=Stage.PACKED))
    with pytest.raises(VerificationError, match="twice, but 3 times"):
        verify(replace(graph, nodes=(graph["x"], replace(graph["twice"], op=Choosy(3)))))


def test_levels_of_an_op_are_held_against_its_kernel(registries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    KERNELS[Twice] = lambda graph, node: TwiceKernel()
    monkeypatch.setattr(Twice, "levels", lambda self, constants: 1)
    graph, calibration = normalized(twice_and_linear(), images_for(twice_and_linear(), 3))
    context = PassContext(calibration=calibration, parameters=Parameters(12, 2, 30, 36, 1, security=0))
    with pytest.raises(VerificationError, match=r"twice is at level 2 .*, its type says level 1"):
        PassManager(lowering_pipeline()).run(graph, context)
