"""A small residual program with bootstraps, insecure by its explicit parameters, that is made without torch."""

from __future__ import annotations

import functools

import numpy as np

from olac.ckks.engines import engine_model
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.ir.ops import Add, Array, Reshape
from olac.passes.base import PassContext, PassManager
from olac.passes.pipeline import lowering_pipeline
from olac.program.program import CompiledProgram
from tests.networks import Growing, key_steps, normalized
from tests.runtime.small_program import current_engine

PARAMETERS = Parameters(11, 20, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(4))
ON_HALF = Parameters(11, 21, 41, 48, 3, FLEXIBLE, 0, Bootstrapping(5, log_slots=9))
"""A chain whose bootstraps work on half of the slots."""
ERROR = 2.0**-8
"""Of the outputs, relative to the largest."""


def bootstrapped_program(parameters: Parameters = PARAMETERS) -> tuple[CompiledProgram, Array]:
    """For the current engine: three basic blocks with cubics and a linear layer; and images in its ranges."""
    return _made(parameters, current_engine())


@functools.lru_cache(maxsize=2)
def _made(parameters: Parameters, engine: str) -> tuple[CompiledProgram, Array]:
    """Three basic blocks with cubics, the last one strided, and a linear layer; and images in its ranges."""
    g = Growing(3, (2, 4, 4))
    cubic = np.array([[0.1, 0.5, 0.15, 0.03]])
    y = g.polynomial(g.conv(g.input, 2), cubic)
    for stride in (1, 1, 2):
        channels = g.shape(y)[0] * stride
        z = g.conv(g.polynomial(g.conv(y, channels, stride), cubic), channels)
        y = g.polynomial(g.add(Add(), z, g.conv(y, channels, stride, kernel=1) if stride > 1 else y), cubic)
    y = g.add(Reshape((int(np.prod(g.shape(y))),)), y)
    graph, calibration = normalized(g.graph(g.linear(y, 3)), g.images)
    context = PassContext(calibration=calibration, parameters=parameters)
    lowered = PassManager(lowering_pipeline()).run(graph, context)
    steps = key_steps(lowered, parameters, engine_model(engine))
    return CompiledProgram(lowered, parameters, steps, engine=engine), g.images
