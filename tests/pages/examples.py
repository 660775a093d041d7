"""What tests of pages show: small programs with names that pages must escape, and records of runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from olac.calibration.histogram import Histogram
from olac.ir.graph import Graph, Origin
from olac.pages.record import Accuracy, LayerErrors, NodeRun, OutputErrors, RunRecord, Timing
from olac.polynomials.curves import Curve, curve, padded_ranges
from olac.polynomials.degrees import FrontPoint
from olac.program.curves import Curves
from olac.program.program import CompiledProgram
from tests.runtime.small_program import small_program

HOSTILE = '<script>alert("1")</script>'
FRONT = (FrontPoint(2.0, 0.3, (3,), 0.9), FrontPoint(3.0, 0.1, (7,), 0.99, True))


def relu_curve(node: str = "act", channels: int = 3) -> Curve:
    """Of straight lines against ReLU, one for each channel."""
    histogram = Histogram(channels)
    random = np.random.default_rng(0)
    histogram.add(random.normal(size=(64, channels, 16)) * np.arange(1, channels + 1)[None, :, None])
    lines = [lambda x, k=k: (0.4 + 0.1 * k) * x for k in range(channels)]
    return curve(node, "relu", 1, histogram, [lambda x: np.maximum(x, 0.0)], lines, padded_ranges(histogram, 1.2))


def shown_program() -> CompiledProgram:
    """The small program with curves and plans of degrees."""
    program = small_program()
    return replace(
        program,
        report=replace(program.report, front=FRONT),
        curves=Curves("SmallNet", (replace(relu_curve(), outside=0.02, effect=0.125),)),
    )


def hostile_program() -> CompiledProgram:
    """The same, in which every text from outside is HTML that would run."""
    program = shown_program()
    names = {node.id: f"{HOSTILE}{node.id}" for node in program.graph.nodes}
    nodes = tuple(
        replace(node, id=names[node.id], inputs=tuple(names[i] for i in node.inputs), origin=Origin(HOSTILE, HOSTILE))
        for node in program.graph.nodes
    )
    graph = Graph(nodes, tuple(names[o] for o in program.graph.outputs), program.graph.constants, program.graph.stage)
    fits = tuple(replace(fit, node=names[fit.node], function=HOSTILE) for fit in program.report.fits)
    report = replace(program.report, fits=fits, notes=(HOSTILE, "\x1b[31m", "' onload='x"))
    assert program.curves is not None
    activations = tuple(replace(one, node=names[one.node], function=HOSTILE) for one in program.curves.activations)
    return replace(program, graph=graph, report=report, curves=Curves(HOSTILE, activations))


def record_of(program: CompiledProgram) -> RunRecord:
    """A run of two images and a comparison, with a layer that does not decrypt and one that is exact."""
    nodes = [node.id for node in program.graph.nodes]
    runs = tuple(NodeRun(name, 0.5 * (i + 1), 0.25) for i, name in enumerate(nodes))
    timing = Timing("the engine", 2, 2, sum(run.seconds for run in runs), 0.75, 4, 9, runs)
    row = LayerErrors("", "op", 3, 1e-4, 2e-4, 12.5, 0.9, 0.95, 0, 0.5)
    rows = [replace(row, layer=name, bits=12.5 - i) for i, name in enumerate(nodes)]
    rows[1] = replace(rows[1], error=None, true_error=None, bits=None, outside=7)
    rows[2] = replace(rows[2], error=0.0, bits=None)
    outputs, accuracy = OutputErrors(2, 1, 1e-3, 4e-3), Accuracy(100, 0.97, 0.96, 0.95)
    return RunRecord(program.fingerprint, timing, tuple(rows), outputs, accuracy)
