"""Replace every activation by polynomials fitted to the calibrated distribution of its input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from olac.analysis.degree_choice import Evidence, choose_degrees, fit_from_histograms, functions
from olac.costs.table import CostTable
from olac.errors import CalibrationError
from olac.ir.graph import Graph, Node
from olac.ir.ops import Activation, Polynomial
from olac.ir.types import Stage
from olac.passes.base import FitReport, Pass, PassContext, PassManager
from olac.passes.insert_placeholders import circuit_pipeline
from olac.passes.replace_by_minimax import ReplaceByMinimax
from olac.polynomials.fit import measured
from olac.polynomials.modes import Agreement, Compensated, Degrees, FromHistograms, Method, Minimax


@dataclass(frozen=True)
class FitActivations(Pass):
    """Given: %r = activation(%x) relu.  Result: %r = polynomial(%x), one polynomial for each channel or for the layer.

    Degrees are chosen first (`olac.analysis.degree_choice`), then polynomials are fitted. The compensated method also
    changes weights of convolutions and linear layers, and compositions of minimax polynomials have their own degrees.

    Options:
        method: of fitting.
        degrees: how they are chosen.
    """

    method: Method = field(default_factory=Compensated)
    degrees: Degrees = field(default_factory=Agreement)
    name: ClassVar[str] = "fit_activations"
    ensures: ClassVar[Stage] = Stage.POLYNOMIAL

    def run(self, graph: Graph, context: PassContext) -> Graph:
        calibration, method = context.need_calibration(), self.method
        nodes = [node for node in graph.nodes if isinstance(node.op, Activation)]
        for node in nodes:
            if node.id not in calibration.histograms:
                raise CalibrationError(f"calibration never reached the activation {node.id} ({node.origin.path})")
        if isinstance(method, Minimax):
            return ReplaceByMinimax(method.alpha, method.padding).run(graph, context)
        evidence = Evidence(
            calibration.histograms,
            lambda degrees: PassManager(circuit_pipeline(degrees)).run(graph, PassContext()),
            context.need_images,
            context.costs or CostTable.default(),
            context.threads,
        )
        choice = choose_degrees(graph, method, self.degrees, evidence)
        context.front.extend(choice.front)
        if choice.fitted is not None:
            fitted = choice.fitted
        elif isinstance(method, Compensated) and nodes:
            fitted = context.need_images().compensate(graph, choice.degrees, method)
        else:
            fitted = fit_from_histograms(graph, calibration.histograms, choice.degrees, method)
        self.report(graph, fitted, context)
        return fitted

    def report(self, graph: Graph, fitted: Graph, context: PassContext) -> None:
        """Reports of the activations of a graph into the context, in place of earlier ones."""
        if isinstance(self.method, Minimax):
            return
        nodes = [node for node in graph.nodes if isinstance(node.op, Activation)]
        names = {node.id for node in nodes}
        context.fits[:] = [fit for fit in context.fits if fit.node not in names]
        context.fits.extend(_report(node, fitted, context, self.method) for node in nodes)


def _report(node: Node, fitted: Graph, context: PassContext, method: FromHistograms) -> FitReport:
    op, function = fitted[node.id].op, node.op
    assert isinstance(op, Polynomial) and isinstance(function, Activation)
    coefficients = fitted.constants[op.coefficients]
    _, padding = method.tails(coefficients.shape[1] - 1)
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
