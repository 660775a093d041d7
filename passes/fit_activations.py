"""Replace every activation by a polynomial fitted to what that layer really sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from olac.errors import CalibrationError
from olac.ir.functions import activation
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Activation, Polynomial
from olac.ir.types import Stage
from olac.passes.base import FitReport, Pass, PassContext
from olac.polynomials.fit import FitOptions, fit


@dataclass(frozen=True)
class FitActivations(Pass):
    """Given: %r = activation(%x) relu.  Result: %r = polynomial(%x), one polynomial for the layer."""

    options: FitOptions = field(default_factory=FitOptions)
    name: ClassVar[str] = "fit_activations"
    ensures: ClassVar[Stage] = Stage.POLYNOMIAL

    def run(self, graph: Graph, context: PassContext) -> Graph:
        calibration = context.need_calibration()

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            if not isinstance(node.op, Activation):
                return None
            if node.id not in calibration.histograms:
                raise CalibrationError(f"calibration never reached the activation {node.id} ({node.origin.path})")
            made = fit(
                activation(node.op.function, node.op.parameters),
                calibration.histograms[node.id],
                self.options,
            )
            context.fits.append(
                FitReport(
                    node.id,
                    node.op.function,
                    made.degree,
                    made.degree.bit_length(),
                    made.rmse,
                    made.max_error,
                    made.low,
                    made.high,
                )
            )
            name = builder.constant(f"{node.id}.coefficients", made.coefficients[None, :])
            op = Polynomial(name, made.half_width)
            return builder.add(op, inputs, name=node.id, origin=node.origin, type=node.type)

        return graph.rewrite(step, by=self.name, stage=Stage.POLYNOMIAL)
