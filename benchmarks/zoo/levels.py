"""The levels of a case by its structure alone, for networks that are too large for fits."""

from __future__ import annotations

from benchmarks.zoo.outcomes import DEGREE
from benchmarks.zoo.subject import Lifted, Subject
from olac.analysis.levels import multiplicative_depth
from olac.calibration.collect import calibrate
from olac.ir.graph import Graph
from olac.ir.ops import Activation
from olac.passes.base import Pass, PassContext, PassManager
from olac.passes.expand_max_pool import WidenMaxPool
from olac.passes.fit_activations import FitActivations
from olac.passes.insert_placeholders import InsertPlaceholders
from olac.passes.normalize_units import NormalizeUnits
from olac.passes.pipeline import approximation_pipeline
from olac.passes.scale_inputs import ScaleInputs

CALIBRATION = 8
"""Inputs that give ranges; levels hardly depend on them."""
OF_VALUES = (WidenMaxPool, ScaleInputs, NormalizeUnits)
"""Passes that need fitted polynomials, and change no level."""


def structural_levels(subject: Subject, lifted: Lifted) -> int:
    """Levels with a polynomial of degree `DEGREE` for each activation, by the passes of the approximation.

    The passes are those of `olac.approximate`, but placeholders take the place of fitted polynomials.
    """
    images = subject.images(CALIBRATION, seed=1)
    calibration = calibrate(lifted.traced, lifted.whole, [images], sample_images=1)
    context = PassContext(calibration=calibration)
    graph = lifted.graph
    for one in approximation_pipeline():
        if not isinstance(one, OF_VALUES):
            graph = PassManager([_placed(one, graph)]).run(graph, context)
    return multiplicative_depth(graph)


def _placed(one: Pass, graph: Graph) -> Pass:
    """A pass, or what takes the place of fits."""
    if not isinstance(one, FitActivations):
        return one
    return InsertPlaceholders({node.id: DEGREE for node in graph.nodes if isinstance(node.op, Activation)})
