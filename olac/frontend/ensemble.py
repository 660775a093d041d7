"""Several models as one, whose outputs are the mean of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class Ensemble(nn.Module):
    """The mean of the outputs of models that take the same inputs and give outputs of the same shape.

    If they have the same structure, `olac.passes.join_models` computes them beside each other in the same ciphertexts.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        """ValueError for fewer than two models, TypeError for anything that is no model."""
        super().__init__()
        if len(models) < 2:
            raise ValueError(f"an ensemble has two models or more, not {len(models)}")
        for model in models:
            if not isinstance(model, nn.Module):
                raise TypeError(f"an ensemble has torch.nn.Modules, not {type(model).__name__}")
        # The pass finds the nodes of each model by this name.
        self.models = nn.ModuleList(models)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, *input shape) to (n, *output shape)."""
        total: torch.Tensor = self.models[0](x)
        for model in list(self.models)[1:]:
            total = total + model(x)
        return total / len(self.models)


def as_one(model: Any) -> Any:
    """A list or tuple of models as an `Ensemble`; anything else as it is."""
    return Ensemble(model) if isinstance(model, (list, tuple)) else model
