"""Which rotation steps of a program get keys: rare ones are composed of others where that pays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from olac.bootstrapping import bootstrap_steps, steps_with_keys
from olac.estimate import Sizes, evaluation_key_bytes
from olac.parameters import Parameters
from olac.rotations import composition

Uses = Mapping[tuple[int, int], int]
"""How often each (step, level) is taken in one run, were there a key for every step."""


@dataclass(frozen=True)
class KeyChoice:
    """Which steps get keys, and what the program takes then.

    Attributes:
        steps: that get keys, increasing.
        seconds: of a run. A composed step is priced as its rotations, which is a little too much where several
            compositions share their first.
        sizes: bytes of a server.
    """

    steps: tuple[int, ...]
    seconds: float
    sizes: Sizes


def choose_keys(
    uses: Uses,
    parameters: Parameters,
    price: Callable[[str, int], float],
    seconds: float,
    sizes: Sizes,
    reward: Callable[[float, float], float],
    enough: Callable[[float], bool],
) -> KeyChoice:
    """Take keys away, the one that is missed least first.

    A step that others are composed of keeps its key, so a composition found once stays what `composition` finds. Keys
    of bootstraps and of conjugation stay.

    Args:
        uses: of all steps.
        price: seconds of a primitive at a level.
        seconds, sizes: of the program with a key for every step.
        reward: what is to be as small as possible, from seconds and bytes of a server.
        enough: whether a server of so many bytes needs no smaller one.
    """
    held = {step % parameters.slots for step in steps_with_keys((step for step, _ in uses), parameters)} - {0}
    missed = _missed(uses, held - bootstrap_steps(parameters), price)
    one_key = evaluation_key_bytes(parameters)
    composed: set[int] = set()
    parts: set[int] = set()
    for most in (2, 3):  # whatever two rotations do comes before what takes three
        for step, one_rotation in missed:
            if enough(sizes.server_bytes):
                break
            if step in composed or step in parts:
                continue
            slower = seconds + (most - 1) * one_rotation
            smaller = replace(sizes, key_bytes=sizes.key_bytes - one_key)
            if reward(slower, smaller.server_bytes) >= reward(seconds, sizes.server_bytes):
                continue
            path = composition(step, frozenset(held - {step}), parameters.slots)
            if path is None or len(path) > most:
                continue
            seconds, sizes = slower, smaller
            held.remove(step)
            composed.add(step)
            parts.update(path)
    all_steps = steps_with_keys((step for step, _ in uses), parameters)
    return KeyChoice(tuple(sorted(all_steps - composed)), seconds, sizes)


def _missed(uses: Uses, steps: Iterable[int], price: Callable[[str, int], float]) -> list[tuple[int, float]]:
    """Steps, and the seconds that one rotation more takes wherever they are used; the least first."""
    found = dict.fromkeys(steps, 0.0)
    for (step, level), times in uses.items():
        if step in found:
            found[step] += times * price("rotate", level)
    return sorted(found.items(), key=lambda item: (item[1], item[0]))
