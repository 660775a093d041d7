"""Upsampling and other interpolation: a matrix for rows and one for columns."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from olac.frontend.algebra import in_batch
from olac.frontend.handlers.windows import from_lines, lines
from olac.frontend.lifter import Lifter, Unsupported, Value, register_function, register_module
from olac.ir.ops import Array, AveragePool


def _matrices(sizes: tuple[int, int], arguments: dict[str, Any]) -> list[Array]:
    """The matrices of both axes, from what torch makes of each axis alone."""
    found = []
    for axis, size in enumerate(sizes):
        eye = torch.eye(size, dtype=torch.float64).reshape(size, 1, *((size, 1) if axis == 0 else (1, size)))
        wide = eye.expand(size, 1, *((size, sizes[1]) if axis == 0 else (sizes[0], size))).contiguous()
        made = F.interpolate(wide, **arguments)
        found.append(made[:, 0, :, 0].T.numpy() if axis == 0 else made[:, 0, 0, :].T.numpy())
    return found


@register_function(F.interpolate)
@in_batch
def _interpolate(
    lifter: Lifter,
    input: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Any:
    if input.rank == 3 and mode in ("nearest", "nearest-exact", "linear", "area"):
        flat = lines(lifter, input, "an interpolation")
        wanted = None if size is None else (1, size if isinstance(size, int) else int(size[0]))
        factor = scale_factor[0] if isinstance(scale_factor, (tuple, list)) else scale_factor
        both = "bilinear" if mode == "linear" else mode
        scales = None if factor is None else (1.0, float(factor))
        made = _interpolate(lifter, flat, wanted, scales, both, align_corners, recompute_scale_factor)
        return from_lines(lifter, made)
    if len(input.shape) != 3 or input.frame.merged > 1:
        raise Unsupported(f"an interpolation of a value of shape {input.shape}", "Reshape to (channels, height, width)")
    arguments = {
        "size": size,
        "scale_factor": scale_factor,
        "mode": mode,
        "align_corners": align_corners,
        "recompute_scale_factor": recompute_scale_factor,
        "antialias": antialias,
    }
    rows, columns = _matrices((input.shape[1], input.shape[2]), arguments)
    return lifter.add(AveragePool(lifter.constant("rows", rows), lifter.constant("columns", columns)), input)


@register_module(nn.Upsample)
def _upsample(lifter: Lifter, m: nn.Upsample, x: Value) -> Any:
    return _interpolate(lifter, x, m.size, m.scale_factor, m.mode, m.align_corners, m.recompute_scale_factor)


@register_module(nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
def _upsampling(lifter: Lifter, m: nn.UpsamplingNearest2d, x: Value) -> Any:
    return _upsample(lifter, m, x)
