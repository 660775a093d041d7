"""Make functions finite around the calibrated range, whoever gave or registered them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from olac.calibration.histogram import Histogram
from olac.errors import CalibrationError
from olac.ir.functions import (
    Definition,
    activation,
    channel_count,
    channel_function,
    define,
    derivative,
    is_own,
    is_per_channel,
)
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Activation
from olac.ir.types import Range
from olac.passes.base import Pass, PassContext
from olac.polynomials.domain import singularity

MARGIN = 4.0
"""Functions are checked in the calibrated range and this number of half widths beyond it, where fits evaluate them."""


@dataclass(frozen=True)
class ClampFunctions(Pass):
    """Given: %r = activation(%x) f.  Result: the same with f constant beyond the calibrated range of %x.

    This is done if f isn't finite or has a pole beyond that range but where fits may evaluate it, with a note unless
    f is olac's own.
    CalibrationError if f isn't finite or has a pole within the range.
    """

    name: ClassVar[str] = "clamp_functions"

    def run(self, graph: Graph, context: PassContext) -> Graph:
        calibration = context.need_calibration()

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            op = node.op
            if not isinstance(op, Activation) or node.id not in calibration.histograms:
                return None
            histogram, where = calibration.histograms[node.id], f"{node.id} ({node.origin.path or 'model'})"
            label = op.function if op.definition is None else op.definition.label
            outside: float | None = None
            for channel in range(histogram.channels) if is_per_channel(op.function, op.parameters) else (None,):
                function = channel_function(op.function, op.parameters, channel or 0)
                seen = histogram.range(channel)
                found = singularity(function, seen)
                if found is not None:
                    raise CalibrationError(
                        f"{where}: the function {label} isn't finite or has a pole at {found:.6g}, within the "
                        f"calibrated range {seen.low:.6g} ... {seen.high:.6g} of its input. No polynomial is near it; "
                        "keep its input away from there"
                    )
                reach = MARGIN * (seen.high - seen.low) / 2
                if outside is None:
                    outside = singularity(function, Range(seen.low - reach, seen.high + reach))
            if outside is None:
                return None
            if op.definition is not None or not is_own(op.function):  # 1 / x and the like are known to have poles
                context.notes.append(
                    f"{where}: the function {label} isn't finite or has a pole at {outside:.6g}; beyond the "
                    "calibrated range of its input it is taken as constant"
                )
            definition = _clamped(op, label, histogram, len(node.type.shape) - 1)
            made = replace(op, function=definition.name, parameters=(), definition=definition)
            return builder.add(made, inputs, name=node.id, origin=node.origin, type=node.type)

        return graph.rewrite(step, by=self.name)


def _clamped(op: Activation, label: str, histogram: Histogram, trailing: int) -> Definition:
    """An activation's function, with inputs clipped to the calibrated range."""
    function, slopes = activation(op.function, op.parameters), derivative(op.function, op.parameters)
    low, high = np.asarray(histogram.low.min()), np.asarray(histogram.high.max())
    channels = channel_count(op.function, op.parameters)
    if channels is not None:
        shape = (-1, *(1,) * trailing)
        low, high = histogram.low.reshape(shape), histogram.high.reshape(shape)
    return define(
        f"{label}_clamped",
        lambda x: function(np.clip(x, low, high)),
        channels,
        trailing,
        lambda x: np.where((low <= x) & (x <= high), slopes(np.clip(x, low, high)), 0.0),
    )
