"""Inputs and outputs against their calibrated ranges. Messages name columns and channels, and never hold values."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from olac.errors import InputError
from olac.ir.ops import Array
from olac.ir.types import ValueType

FAR = 3.0
"""In half widths of a range: inputs further from its middle are refused, and such outputs are warned of."""
RANGE_TOLERANCE = 1e-6
"""How far beyond its range a value may go without a warning, relative to the half width."""
OUTPUT_NOISE = 0.01
"""Share of the unit of the outputs that encryption may add, so no range of an output counts as narrower."""
NAMED = 5

Flags = npt.NDArray[np.bool_]


def check_input(values: Iterable[Array], type_: ValueType, allow_out_of_range: bool) -> str:
    """A warning of values, as the graph takes them, that are outside their range; "" if none is.

    Raises InputError if values are far outside, unless that is allowed.

    Args:
        values: some images each, (n, *shape); at least one.
    """
    away: Array = np.zeros(type_.shape[0])
    for some in values:
        away = np.maximum(away, _half_widths(some, type_, 0.0))
    outside, far = away > 1.0 + RANGE_TOLERANCE, away > FAR
    if far.any() and not allow_out_of_range:
        raise InputError(
            f"{_named(far, type_)} of the input {_hold(far)} values more than {FAR:g} times as far from the middle of "
            "the calibrated range as its ends: the outputs would be wrong. Prepare inputs as those of the "
            "calibration were, calibrate with more like them, or give allow_out_of_range=True (olac encrypt --force)."
        )
    if not outside.any():
        return ""
    where = "far outside" if far.any() else "outside"
    named = f"{_named(outside, type_)} of the input {_hold(outside)}"
    return f"{named} values {where} the calibrated range: the outputs may be wrong"


def check_output(values: Array, type_: ValueType) -> str:
    """A warning of outputs (n, *shape), in true units, that lie far outside their range; "" if none does."""
    far = _half_widths(values, type_, OUTPUT_NOISE * type_.unit) > FAR
    if not far.any():
        return ""
    return (
        f"{_named(far, type_)} of the outputs {_hold(far)} values more than {FAR:g} times as far from the middle of "
        "the calibrated range as its ends: they may be wrong. The input may have been unlike the calibration inputs."
    )


def _half_widths(values: Array, type_: ValueType, least: float) -> Array:
    """For each channel the largest distance of its values from the middle of the range, in half widths."""
    ranges = type_.channels or (() if type_.bound is None else (type_.bound,))
    count = type_.shape[0]
    if not ranges:
        return np.zeros(count)
    ends = np.array([(one.low, one.high) for one in ranges])
    centre, half = ends.mean(axis=1), (ends[:, 1] - ends[:, 0]) / 2
    half = np.maximum(half, max(least, RANGE_TOLERANCE * float(np.abs(ends).max())))
    by_channel = np.abs(values.reshape(len(values), count, -1) - centre[:, None]).max(axis=(0, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(by_channel > 0, by_channel / half, 0.0))


def _named(which: Flags, type_: ValueType) -> str:
    """The columns of vectors, or the channels of images, that are marked."""
    found = np.flatnonzero(which)
    what = "column" if len(type_.shape) == 1 else "channel"
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"{what}{'' if len(found) == 1 else 's'} {', '.join(map(str, found[:NAMED]))}{more}"


def _hold(which: Flags) -> str:
    return "holds" if np.count_nonzero(which) == 1 else "hold"
