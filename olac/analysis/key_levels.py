"""How far down the chain each evaluation key of a program is used, which decides its size on some engines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from olac.ckks.bootstrapping import BootstrapModel
from olac.ckks.parameters import Parameters

PRODUCTS = frozenset({"multiply", "square", "relinearize"})
"""Primitives that take the relinearisation key."""


@dataclass(frozen=True)
class KeyLevels:
    """The highest level at which each key is used, by a program and its bootstraps.

    Attributes:
        steps: of each rotation step, with conjugation as `Parameters.conjugation_step`.
        product: of the relinearisation key.
    """

    steps: Mapping[int, int]
    product: int

    def of(self, steps: Iterable[int], parameters: Parameters, bootstraps: BootstrapModel) -> Counter[int]:
        """How many keys of a program are used up to each level.

        The relinearisation key counts in any case. A key that nothing uses is for the bottom alone. Special keys are
        for the whole chain; the short one into the sparser secret of bootstraps does not count.

        Args:
            steps: that have keys, without those that stand for special keys.
            bootstraps: of the parameters.
        """
        special = [parameters.depth] * bootstraps.large_special_keys
        return Counter([*(self.steps.get(step, 0) for step in steps), self.product, *special])


def key_levels(
    uses: Iterable[tuple[int, int]], counts: Iterable[tuple[str, int]], bootstraps: BootstrapModel
) -> KeyLevels:
    """The levels of the keys of a program.

    Args:
        uses: every (rotation step, level) that kernels take.
        counts: every (primitive, level) that kernels take.
        bootstraps: what they take besides.
    """
    steps = dict(bootstraps.step_levels)
    for step, level in uses:
        steps[step] = max(level, steps.get(step, 0))
    products = [level for primitive, level in counts if primitive in PRODUCTS]
    return KeyLevels(steps, max([bootstraps.product_level, *products]))
