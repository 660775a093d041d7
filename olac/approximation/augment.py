"""A caller's own way of altering calibration images."""

from __future__ import annotations

from collections.abc import Callable

import torch

from olac.approximation.common import Augment
from olac.errors import CalibrationError
from olac.system.internal import callers_own

Tensor = torch.Tensor


def callers_augment(function: Callable[[Tensor], Tensor]) -> Augment:
    """A caller's function of batches, checked; what it draws from torch's random numbers depends on the seed alone.

    Torch's global generator is left as it was. The result raises CalibrationError if the function gives something other
    than finite values of the same shape.
    """
    own = callers_own(function)

    def augment(images: Tensor, random: torch.Generator) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(1 << 62, (1,), generator=random)))
            made = own(images.clone())
        if not isinstance(made, Tensor):
            raise CalibrationError(f"augment returned {type(made).__name__}, not a tensor. Return the altered batch.")
        if made.shape != images.shape:
            shapes = f"{tuple(made.shape)} of one of shape {tuple(images.shape)}"
            raise CalibrationError(f"augment made a batch of shape {shapes}. Keep the shape.")
        made = made.detach().to(images)
        if not torch.isfinite(made).all():
            raise CalibrationError("augment returned values that aren't finite")
        return made

    return augment
