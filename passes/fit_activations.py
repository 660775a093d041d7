"""Replace every activation by polynomials fitted to the calibrated distribution of its input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numpy.polynomial import chebyshev

from olac.analysis.degree_choice import Evidence, choose_degrees, fit_from_histograms, functions
from olac.costs.table import CostTable
from olac.errors import CalibrationError
from olac.ir.functions import Function
from olac.ir.graph import Graph, Node
from olac.ir.ops import Activation, Array, Polynomial
from olac.ir.types import Stage
from olac.passes.base import FitReport, Pass, PassContext, PassManager
from olac.passes.insert_placeholders import circuit_pipeline
from olac.passes.replace_by_minimax import ReplaceByMinimax
from olac.polynomials.curves import Curve, curve, padded_ranges
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
        self.report(graph, fitted, context, choice.effects)
        return fitted

    def report(
        self, graph: Graph, fitted: Graph, context: PassContext, effects: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Reports and curves of the activations of a graph into the context, in place of earlier ones.

        Args:
            effects: by activation, what the choice of degrees measured (`olac.analysis.degree_choice.Choice`).
        """
        if isinstance(self.method, Minimax):
            return
        nodes = [node for node in graph.nodes if isinstance(node.op, Activation)]
        names = {node.id for node in nodes}
        context.fits[:] = [fit for fit in context.fits if fit.node not in names]
        context.fits.extend(_report(node, fitted, context, self.method) for node in nodes)
        before = {one.node: one.effect for one in context.curves}
        ranges = {node.id: _ranges(node, fitted, context, self.method) for node in nodes}
        outside = {} if context.images is None or not nodes else context.images.outside(fitted, ranges)
        context.curves[:] = [one for one in context.curves if one.node not in names]
        for node in nodes:
            made = _curve(node, fitted, context, ranges[node.id])
            effect = effects.get(node.id, before.get(node.id))
            context.curves.append(replace(made, outside=outside.get(node.id), effect=effect))


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


def _ranges(node: Node, fitted: Graph, context: PassContext, method: FromHistograms) -> Array:
    """The padded range of each channel, shape (channels, 2); the layer's for all if they share a polynomial."""
    op = fitted[node.id].op
    assert isinstance(op, Polynomial)
    coefficients = fitted.constants[op.coefficients]
    _, padding = method.tails(coefficients.shape[1] - 1)
    found = padded_ranges(context.need_calibration().histograms[node.id], padding)
    if len(coefficients) > 1:
        return found
    seen = context.need_calibration().histograms[node.id].range(None)
    middle, half = (seen.low + seen.high) / 2, padding * (seen.high - seen.low) / 2
    return np.tile([middle - half, middle + half], (len(found), 1))


def _curve(node: Node, fitted: Graph, context: PassContext, ranges: Array) -> Curve:
    op, function = fitted[node.id].op, node.op
    assert isinstance(op, Polynomial) and isinstance(function, Activation)
    width, coefficients = op.half_width, fitted.constants[op.coefficients]

    def polynomial(row: Array) -> Function:
        return lambda x: np.asarray(chebyshev.chebval(x / width, row), dtype=np.float64)

    rows = [polynomial(row) for row in coefficients]
    histogram, degree = context.need_calibration().histograms[node.id], coefficients.shape[1] - 1
    return curve(node.id, function.function, degree, histogram, functions(node), rows, ranges)
