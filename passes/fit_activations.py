"""Replace every activation by polynomials fitted to what that layer really sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from olac.errors import CalibrationError
from olac.ir.graph import Graph, Node
from olac.ir.ops import Activation, Polynomial
from olac.ir.types import Stage
from olac.passes.base import FitReport, Pass, PassContext
from olac.passes.choose_degrees import choose_degrees, fit_from_histograms, functions
from olac.passes.replace_by_minimax import ReplaceByMinimax
from olac.polynomials.fit import FitOptions, measured

MINIMAX_PADDING = 1.3
"""Of the range that compositions are for, where options leave it open; beyond it they grow without bound."""


@dataclass(frozen=True)
class FitActivations(Pass):
    """Given: %r = activation(%x) relu.  Result: %r = polynomial(%x), one polynomial for each channel or for the layer.

    Degrees are chosen first (`olac.passes.choose_degrees`), then fitted by `options.method`. The compensated method
    also changes weights of convolutions and linear layers.
    """

    options: FitOptions = field(default_factory=FitOptions)
    name: ClassVar[str] = "fit_activations"
    ensures: ClassVar[Stage] = Stage.POLYNOMIAL

    def run(self, graph: Graph, context: PassContext) -> Graph:
        calibration, options = context.need_calibration(), self.options
        nodes = [node for node in graph.nodes if isinstance(node.op, Activation)]
        for node in nodes:
            if node.id not in calibration.histograms:
                raise CalibrationError(f"calibration never reached the activation {node.id} ({node.origin.path})")
        if options.method == "minimax":
            padding = MINIMAX_PADDING if options.padding is None else options.padding
            return ReplaceByMinimax(options.alpha, padding).run(graph, context)
        degrees = choose_degrees(graph, context, options)
        if options.method == "compensated" and nodes:
            fitted = context.need_images().compensate(graph, degrees, options)
        else:
            fitted = fit_from_histograms(graph, calibration.histograms, degrees, options)
        for node in nodes:
            context.fits.append(_report(node, fitted, context, options))
        return fitted


def _report(node: Node, fitted: Graph, context: PassContext, options: FitOptions) -> FitReport:
    op, function = fitted[node.id].op, node.op
    assert isinstance(op, Polynomial) and isinstance(function, Activation)
    coefficients = fitted.constants[op.coefficients]
    _, padding = options.tails(coefficients.shape[1] - 1)
    histogram = context.need_calibration().histograms[node.id]
    made = measured(functions(node), histogram, coefficients, op.half_width, padding)
    return FitReport(
        node.id,
        function.function,
        made.degree,
        op.levels(fitted.constants),
        made.rmse,
        made.max_error,
        made.low,
        made.high,
        made.outer_error,
    )
