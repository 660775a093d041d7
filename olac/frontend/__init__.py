"""From PyTorch models to the IR: tracing, lifting, and finding what can't be compiled."""

from __future__ import annotations

import torch
from torch import nn

from olac.errors import UnsupportedModelError, UnsupportedNode
from olac.frontend import handlers as handlers  # it registers liftings
from olac.frontend import last_steps as last_steps
from olac.frontend.custom import Activations
from olac.frontend.lift import lift
from olac.frontend.lifter import Unsupported, register_function, register_module
from olac.frontend.trace import Traced, trace

__all__ = ["Activations", "Traced", "Unsupported", "check", "lift", "register_function", "register_module", "trace"]


def check(
    model: nn.Module,
    example: torch.Tensor,
    activations: Activations | None = None,
    client_head: bool = True,
) -> list[UnsupportedNode]:
    """Every place in a model that can't be compiled; empty if the whole model can.

    `example` has shape (images, *image shape). `activations` are the caller's own modules and functions, as for
    `olac.compile`. `client_head` says whether the client may compute the model's last steps.

    Raises CalibrationError if the model itself fails on the example.
    """
    try:
        lift(trace(model, example, activations), client_head)
    except UnsupportedModelError as error:
        return list(error.nodes)
    return []
