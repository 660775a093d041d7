"""What was decided and measured when a program was compiled."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from olac.passes.base import FitReport
from olac.polynomials.degrees import FrontPoint


@dataclass(frozen=True)
class SelfCheck:
    """The program's polynomials against the model itself, on calibration images that decided nothing.

    Attributes:
        images: their number.
        agreement: the mean score, by the criterion of the task.
        max_error: largest difference of an output.
        mean_error: mean difference of outputs.
        structure_error: largest relative difference of the lifted graph, before any approximation, from the model.
        task: the kind of outputs ("classification", "binary", ...; see `olac.approximation.criterion`).
        meaning: what the agreement is a share of.
        low, high: the interval that holds the true agreement with 95 % confidence.
        goal: the agreement that was asked for; None in earlier files.
        images_to_goal: images for `low` to reach the goal if the agreement stays; None if it is not above the goal.
        explained: R squared of the outputs, by each output's own variance or, for classes and maps, by that of all
            together; None for one image, which has no variance, and in earlier files.
    """

    images: int
    agreement: float
    max_error: float
    mean_error: float
    structure_error: float
    task: str = "classification"
    meaning: str = ""
    low: float = 0.0
    high: float = 1.0
    goal: float | None = None
    images_to_goal: int | None = None
    explained: float | None = None


@dataclass(frozen=True)
class Report:
    """What was decided and measured at compile time.

    Attributes:
        fits, check, front, notes: of the approximation.
        pass_seconds: by pass, in order; not in files, which are the same for the same model, images and options.
        noise: largest change of an output by rescales and bootstraps, relative to the outputs' range, simulated on
            held-out images; None for programs without bootstraps, for which `precision` holds.
        max_memory: bytes that the program was compiled for; None without a limit.
    """

    fits: tuple[FitReport, ...] = ()
    check: SelfCheck | None = None
    pass_seconds: tuple[tuple[str, float], ...] = field(default=(), compare=False)
    notes: tuple[str, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    noise: float | None = None
    max_memory: float | None = None

    def __post_init__(self) -> None:
        if self.max_memory is not None and not 0 < self.max_memory < math.inf:
            raise ValueError(f"a limit of {self.max_memory} bytes of memory")


def percent(share: float) -> str:
    """In per cent, with more decimals if it would otherwise be rounded to 100."""
    text = f"{share:.1%}"
    return f"{share:.3%}" if share < 1 and text.startswith("100") else text
