"""All slots of a value repeat as its layout says, also those without an element: bootstraps rely on it."""

from __future__ import annotations

import numpy as np
import pytest

from olac.backends.simulator import SimulatorEvaluator
from olac.ckks.parameters import Parameters
from olac.ir import Node
from olac.kernels.base import Value
from olac.kernels.execute import build_kernels, execute
from olac.passes.base import PassContext, PassManager
from olac.passes.choose_lowerings import Convolutions
from olac.passes.compose_linear import ComposeLinear
from olac.passes.fold_squares import FoldSquares
from olac.passes.pipeline import lowering_pipeline
from tests.networks import normalized, random_network

PARAMETERS = Parameters(11, 60, 40, 47, 3, security=0)


@pytest.mark.parametrize("convolutions", ["auto", "multiplexed"])
def test_slots_repeat(convolutions: Convolutions) -> None:
    periods: set[int] = set()
    for seed in range(12):
        graph, images = random_network(seed)
        graph, calibration = normalized(PassManager([FoldSquares(), ComposeLinear()]).run(graph, PassContext()), images)
        context = PassContext(calibration=calibration, parameters=PARAMETERS)
        lowered = PassManager(lowering_pipeline(convolutions=convolutions)).run(graph, context)
        simulator = SimulatorEvaluator(PARAMETERS)

        def check(node: Node, value: Value, simulator: SimulatorEvaluator = simulator) -> None:
            layout = node.type.layout
            assert layout is not None
            periods.add(layout.repeats_after)
            for part in value:
                content = simulator.decrypt(part).reshape(-1, layout.repeats_after)
                assert np.allclose(content, content[0], rtol=0, atol=1e-9), f"{node.id} in {layout}"

        (given,) = lowered.inputs
        assert given.type.layout is not None and given.type.state is not None
        level = given.type.state.level
        value = tuple(simulator.encrypt(page, level) for page in given.type.layout.pack(images[:1] / given.type.unit))
        execute(lowered, build_kernels(lowered), simulator, {given.id: value}, check)
    assert len(periods) > 4 and min(periods) < PARAMETERS.slots // 8
