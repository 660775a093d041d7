"""A residual network through the whole lowering: its text, its rotation steps and its primitives, as golden files."""

from __future__ import annotations

import pytest

from olac.backends.recorder import RecorderEvaluator
from olac.ckks.parameters import Parameters
from olac.kernels.execute import build_kernels, execute
from olac.passes.base import PassContext, PassManager
from olac.passes.choose_lowerings import Copies, Halving
from olac.passes.pipeline import lowering_pipeline
from tests.golden import check_golden
from tests.networks import images_for, normalized, residual_network


@pytest.mark.parametrize(
    ("copies", "halving", "name"),
    [("plain", "never", "residual"), ("shifted", "never", "residual_shifted"), ("plain", "always", "residual_halved")],
)
def test_residual_network(copies: Copies, halving: Halving, name: str) -> None:
    graph = residual_network()
    graph, calibration = normalized(graph, images_for(graph, 8))
    parameters = Parameters(11, 7, 30, 37, 4, security=0)
    graph = PassManager(lowering_pipeline(copies, halving)).run(
        graph, PassContext(calibration=calibration, parameters=parameters)
    )
    check_golden(f"{name}_levelled.txt", graph.text())

    recorder = RecorderEvaluator(parameters)
    fresh = (recorder.fresh(7),)
    execute(graph, build_kernels(graph), recorder, {"x": fresh})
    lines = [f"rotation steps {' '.join(map(str, recorder.rotations))}"]
    lines += [f"{n:5d} {name} at level {level}" for (name, level), n in sorted(recorder.counts().items())]
    check_golden(f"{name}_primitives.txt", "\n".join(lines) + "\n")
