"""How much of some work is done, from what its stages are expected to take, and when it will end."""

from __future__ import annotations

import time
from collections.abc import Mapping

MOST, UNCOUNTED = 0.99, 0.9
"""The largest share before the end, and the largest part of a stage whose steps are not counted."""


class Course:
    """The way through the stages of some work.

    Attributes:
        share: of the whole, from 0 to 1; it never falls.
    """

    def __init__(self) -> None:
        self.share = 0.0
        self._weights: dict[str, float] = {}
        self._in_seconds = False
        self._stage, self._fraction = "", 0.0
        self._begun = self._stage_begun = time.monotonic()
        self._aside = 0.0

    def plan(self, weights: Mapping[str, float], in_seconds: bool = False) -> None:
        """Expect these stages from now on, in their order.

        Args:
            weights: what each stage takes.
            in_seconds: whether weights are predicted seconds, not only shares.
        """
        self._weights, self._in_seconds = dict(weights), in_seconds
        self._begun = self._stage_begun = time.monotonic()
        self._aside = 0.0

    def reach(self, stage: str, done: int = 0, total: int = 0, share: float = 0.0) -> None:
        """A step of a stage is done.

        Args:
            done, total: steps of the stage; 0 if they are not counted.
            share: of the whole, if the work knows it itself; it counts if no stages were planned.
        """
        if stage != self._stage:
            now = time.monotonic()
            if self._stage not in self._weights:
                self._aside += now - self._stage_begun
            self._stage, self._fraction, self._stage_begun = stage, 0.0, now
        if total:
            self._fraction = max(self._fraction, min(1.0, done / total))
        if not self._weights:
            self.share = max(self.share, min(share, 1.0))
        elif stage in self._weights:
            own, whole = self._weights[stage], sum(self._weights.values())
            names = list(self._weights)
            before = sum(self._weights[name] for name in names[: names.index(stage)])
            fraction = self._fraction
            if not fraction and self._in_seconds and own > 0:
                fraction = min(UNCOUNTED, (time.monotonic() - self._stage_begun) / own)
            reached = (before + own * fraction) / whole if whole > 0 else 0.0
            self.share = max(self.share, min(MOST, reached))

    @property
    def eta_seconds(self) -> float | None:
        """Predicted seconds to the end, by how long everything so far took; None if nothing is known.

        The time of stages that were not planned does not count: it tells nothing of the others.
        """
        passed = time.monotonic() - self._begun
        if self._weights and self._in_seconds:
            passed, own = passed - self._aside, 0.0
            if self._stage not in self._weights:
                here = time.monotonic() - self._stage_begun
                passed -= here
                own = here * (1.0 - self._fraction) / self._fraction if self._fraction else 0.0
            whole = sum(self._weights.values())
            # One second is added to both, because the first stages are short and say little.
            return own + whole * (1.0 - self.share) * (passed + 1.0) / (whole * self.share + 1.0)
        return passed * (1.0 - self.share) / self.share if self.share >= 0.02 else None
