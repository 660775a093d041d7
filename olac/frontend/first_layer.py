"""Why a model fails on an example: what its first layer takes, and the expression that makes the example fit."""

from __future__ import annotations

from torch import nn

from olac.system.shapes import Shape, fitting

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SIZES = ("length",), ("height", "width"), ("depth", "height", "width")


def shape_advice(model: nn.Module, given: Shape) -> tuple[str, str]:
    """Which layer does not take an example of a shape, by its path, and a sentence that says so; "" if it takes it.

    That layer is the first convolution or linear layer of the model, in the order in which they were made.
    """
    layers = ((path, one) for path, one in model.named_modules() if isinstance(one, (*_CONVOLUTIONS, nn.Linear)))
    path, layer = next(layers, ("", None))
    if layer is None:
        return "", ""
    if isinstance(layer, nn.Linear):
        wanted: Shape = (layer.in_features,)
        takes = len(given) > 1 and given[-1] == layer.in_features
        said = f"(n, {layer.in_features})"
    else:
        axes = next(i for i, kind in enumerate(_CONVOLUTIONS, 1) if isinstance(layer, kind))
        wanted = (layer.in_channels, *(-1,) * axes)
        takes = len(given) == axes + 2 and given[1] == layer.in_channels
        said = f"(n, {layer.in_channels}, {', '.join(_SIZES[axes - 1])})"
    if takes:
        return "", ""
    line = fitting(given, wanted, tensor=True)
    if line.endswith("x[None]"):
        line += " for one input, torch.stack(inputs) for a list of them"
    name = f"{path} ({type(layer).__name__})" if path else type(layer).__name__
    return path, f"The first layer, {name}, takes {said}" + (f": {line}" if line else "")


__all__ = ["shape_advice"]
