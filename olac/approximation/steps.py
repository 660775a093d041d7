"""The steps of reconstruction: their order, their rate, and what is needed to go on with them later."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TypeAlias

import torch

Tensor = torch.Tensor
Numbers: TypeAlias = dict[str, float]

WARM_UP = 30
WORSE, SLOWER = 1.5, 0.5
"""If the error after a pass is more than WORSE times the least so far, the pass is undone and the rate multiplied by
SLOWER: deep networks need smaller steps."""


class Order:
    """The numbers of the images of each batch, in a new order in each pass."""

    def __init__(self, images: int, batch: int, random: torch.Generator) -> None:
        self._images, self._batch, self._random = images, batch, random
        self._order, self._position = torch.empty(0, dtype=torch.int64), 0

    def next(self) -> Tensor:
        """The next batch; the last of a pass may be smaller."""
        if self._position >= len(self._order):
            self._order, self._position = torch.randperm(self._images, generator=self._random), 0
        chosen = self._order[self._position : self._position + self._batch]
        self._position += self._batch
        return chosen

    def state(self) -> tuple[Numbers, dict[str, Tensor]]:
        """What `restore` needs, with that of the generator."""
        return {"position": self._position}, {"order": self._order, "random": self._random.get_state()}

    def restore(self, numbers: Numbers, tensors: Mapping[str, Tensor]) -> None:
        """Go on where another order was; ValueError if it is not one of as many images."""
        order = tensors["order"]
        if order.dtype != torch.int64 or not torch.equal(order.sort().values, torch.arange(self._images)):
            raise ValueError("the order is not one of these images")
        self._order, self._position = order, int(numbers["position"])
        self._random.set_state(tensors["random"])


class Schedule:
    """How far the steps are, by their number and by the time that they may take."""

    def __init__(self, steps: int, seconds: float | None = None) -> None:
        self._all, self._taken = steps, 0
        self._seconds, self._start = seconds, time.monotonic()

    def take(self) -> None:
        """One more step."""
        self._taken += 1

    @property
    def share(self) -> float:
        """Of all steps or of the time, whichever ends first; 0 to 1."""
        steps = self._taken / self._all
        passed = 0.0 if self._seconds is None else (time.monotonic() - self._start) / self._seconds
        return min(1.0, max(steps, passed))

    @property
    def over(self) -> bool:
        """Whether all steps were taken, or all time."""
        return self.share >= 1.0

    def state(self) -> Numbers:
        """What `restore` needs."""
        return {"taken": self._taken, "seconds": time.monotonic() - self._start}

    def restore(self, numbers: Numbers) -> None:
        """Go on where a schedule was; the time in between does not count."""
        self._taken, self._start = int(numbers["taken"]), time.monotonic() - numbers["seconds"]


class Steps:
    """Adam with a warm-up and a rate that falls to 0, and a running mean of the parameters over some steps."""

    def __init__(self, thetas: Mapping[str, Tensor], rate: float, each: int, schedule: Schedule) -> None:
        self._thetas, self._rate, self._each, self._schedule = thetas, rate, each, schedule
        self._mean = {name: theta.detach().clone() for name, theta in thetas.items()}
        self._since = 0
        self._optimizer = self._adam()

    def _adam(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(self._thetas.values()), betas=(0.9, 0.99))

    def mean(self) -> dict[str, Tensor]:
        """The parameters' mean over the last `each` steps, or since the last restart."""
        return {name: one.clone() for name, one in self._mean.items()}

    def take(self, loss: Tensor) -> None:
        """A step down the gradient of a loss, if that is finite."""
        self._optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(self._thetas.values()), 1.0)
        annealed = 0.5 * (1 + math.cos(math.pi * self._schedule.share))
        self._schedule.take()
        self._since += 1
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * min(1.0, self._since / WARM_UP) * annealed
        if torch.isfinite(norm):  # an image may overflow; its batch is left out
            self._optimizer.step()
        for name, theta in self._thetas.items():
            self._mean[name].lerp_(theta.detach(), 1 / min(self._since, self._each))

    def restart(self, thetas: Mapping[str, Tensor]) -> None:
        """Continue from other parameters, with smaller steps."""
        with torch.no_grad():
            for name, theta in self._thetas.items():
                theta.copy_(thetas[name])
        self._rate, self._since, self._optimizer = SLOWER * self._rate, 0, self._adam()

    def state(self) -> tuple[Numbers, dict[str, Tensor]]:
        """What `restore` needs."""
        numbers: Numbers = {"rate": self._rate, "since": self._since, "updates": 0}
        tensors: dict[str, Tensor] = {}
        for name, theta in self._thetas.items():
            tensors |= {f"theta/{name}": theta.detach(), f"mean/{name}": self._mean[name]}
            if seen := self._optimizer.state.get(theta):
                numbers["updates"] = int(seen["step"])
                tensors |= {f"first/{name}": seen["exp_avg"], f"second/{name}": seen["exp_avg_sq"]}
        return numbers, tensors

    def restore(self, numbers: Numbers, tensors: Mapping[str, Tensor]) -> None:
        """Go on where other steps were; ValueError or KeyError if the tensors are of other parameters."""
        self._rate, self._since, self._optimizer = numbers["rate"], int(numbers["since"]), self._adam()
        for name, theta in self._thetas.items():
            with torch.no_grad():
                theta.copy_(_like(theta, tensors[f"theta/{name}"]))
            self._mean[name] = _like(theta, tensors[f"mean/{name}"])
            if numbers["updates"]:
                self._optimizer.state[theta] = {
                    "step": torch.tensor(float(numbers["updates"])),
                    "exp_avg": _like(theta, tensors[f"first/{name}"]),
                    "exp_avg_sq": _like(theta, tensors[f"second/{name}"]),
                }


def _like(theta: Tensor, value: Tensor) -> Tensor:
    if value.shape != theta.shape or value.dtype != theta.dtype or not torch.isfinite(value).all():
        raise ValueError("a tensor is not one of these parameters")
    return value.clone()
