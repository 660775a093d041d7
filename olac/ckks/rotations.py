"""Rotations that are composed of others: a rare step needs no key of its own."""

from __future__ import annotations

MOST_STEPS = 3
"""Most steps of a composition; each after the first costs one key switch more."""


def composition(step: int, held: frozenset[int], slots: int) -> tuple[int, ...] | None:
    """The fewest steps of `held`, at most `MOST_STEPS`, that together rotate by `step`; None if there are none.

    Steps count modulo `slots`, so -s stands for slots - s; for a step of 0, the result is empty. Of several shortest
    compositions it is the first in lexicographic order, each in ascending order. It depends on the arguments alone, and
    stays the same if a step that it does not use is removed from `held`. Every backend and every prediction calls this
    function.

    Args:
        step: any integer.
        held: steps that there are keys for, each in 1 ... slots - 1.
        slots: of a ciphertext.
    """
    step %= slots
    if not step:
        return ()
    if step in held:
        return (step,)
    ordered = sorted(held)
    pair = _pair(step, ordered, held, slots)
    if pair is not None:
        return pair
    for first in ordered:
        rest = (step - first) % slots
        pair = _pair(rest, ordered, held, slots)
        if pair is not None:
            return (first, *pair)
    return None


def _pair(step: int, ordered: list[int], held: frozenset[int], slots: int) -> tuple[int, int] | None:
    """The pair with the smallest first step; its second is no smaller, or it would have been found as the first."""
    for first in ordered:
        second = (step - first) % slots
        if second in held:
            return first, second
    return None
