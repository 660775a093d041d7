"""Lists of evaluation keys: which there are, and up to which level each reaches.

Keys belong to parameters and to a key pair, not to a program: a program runs with any keys that reach as far as it
needs. Each key has a name; the keys of bootstraps share one, as they are only used together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from olac.ckks.engines import EngineModel
from olac.ckks.parameters import Parameters

BOOTSTRAPS = "bootstraps"


@dataclass(frozen=True)
class KeyList:
    """Some evaluation keys of a key pair.

    Attributes:
        rotations: (step, level) of each rotation key, by increasing step: the key serves at this level and below. For
            engines whose keys always serve at all levels, levels are the depth.
        relinearise: the same level of the relinearisation key; None if it is not among them.
        bootstraps: whether the keys that only bootstraps take are among them.
    """

    rotations: tuple[tuple[int, int], ...] = ()
    relinearise: int | None = None
    bootstraps: bool = False

    def __post_init__(self) -> None:
        if any(a >= b for (a, _), (b, _) in zip(self.rotations, self.rotations[1:], strict=False)):
            raise ValueError("rotation steps repeat or do not increase")

    @cached_property
    def by_step(self) -> dict[int, int]:
        """The level of each rotation key by its step, in the order of the steps."""
        return dict(self.rotations)

    @property
    def steps(self) -> tuple[int, ...]:
        """The rotation steps."""
        return tuple(self.by_step)

    @property
    def count(self) -> int:
        """Keys for relinearisation and rotations."""
        return len(self.rotations) + (self.relinearise is not None)

    def __bool__(self) -> bool:
        return bool(self.count or self.bootstraps)

    def lacking(self, held: KeyList) -> KeyList:
        """The keys of this list that another lacks, or has for too few levels."""
        rotations = tuple((step, level) for step, level in self.rotations if held.by_step.get(step, -1) < level)
        there = self.relinearise is None or (held.relinearise is not None and held.relinearise >= self.relinearise)
        return KeyList(rotations, None if there else self.relinearise, self.bootstraps and not held.bootstraps)

    def with_more(self, other: KeyList) -> KeyList:
        """The keys of both; of two keys for the same, the one that reaches further."""
        levels = dict(self.rotations)
        for step, level in other.rotations:
            levels[step] = max(level, levels.get(step, 0))
        products = [level for level in (self.relinearise, other.relinearise) if level is not None]
        return KeyList(tuple(sorted(levels.items())), max(products, default=None), self.bootstraps or other.bootstraps)

    def within(self, steps: Iterable[int], relinearise: bool, bootstraps: bool) -> KeyList:
        """Those of the keys that are for some steps, and the others if they are asked for, as far as they reach."""
        wanted = frozenset(steps)
        return KeyList(
            tuple(one for one in self.rotations if one[0] in wanted),
            self.relinearise if relinearise else None,
            self.bootstraps and bootstraps,
        )

    # Names -----------------------------------------------------------------------------------------------------------

    @property
    def parts(self) -> tuple[KeyList, ...]:
        """A list for each key, and one for the keys of bootstraps: relinearisation, rotations, bootstraps."""
        found = [] if self.relinearise is None else [KeyList(relinearise=self.relinearise)]
        found += [KeyList((one,)) for one in self.rotations]
        return (*found, KeyList(bootstraps=True)) if self.bootstraps else tuple(found)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each of the `parts`."""
        found = [] if self.relinearise is None else [f"relinearise-{self.relinearise}"]
        found += [f"rotation-{step}-{level}" for step, level in self.rotations]
        return (*found, BOOTSTRAPS) if self.bootstraps else tuple(found)

    @staticmethod
    def named(name: str) -> KeyList:
        """The part of a name of `names`; ValueError for any other text."""
        if name == BOOTSTRAPS:
            return KeyList(bootstraps=True)
        numbers = r"(0|[1-9][0-9]{0,6})"
        if found := re.fullmatch(f"relinearise-{numbers}", name, re.ASCII):
            return KeyList(relinearise=int(found[1]))
        if found := re.fullmatch(f"rotation-{numbers}-{numbers}", name, re.ASCII):
            return KeyList(((int(found[1]), int(found[2])),))
        raise ValueError(f"{name[:60]!r} is not the name of a key")

    def check(self, parameters: Parameters) -> None:
        """ValueError unless parameters can have these keys."""
        highest, depth = parameters.conjugation_step, parameters.depth
        if any(not 0 < step <= highest for step in self.steps):
            raise ValueError(f"steps are not within 1 ... {highest}")
        if any(not 0 <= level <= depth for level in (*self.by_step.values(), self.relinearise or 0)):
            raise ValueError(f"levels are not within 0 ... {depth}")
        if self.bootstraps and parameters.bootstrapping is None:
            raise ValueError("there are keys of bootstraps, which the parameters do not have")


def keys_for(
    parameters: Parameters,
    engine: EngineModel,
    rotations: Iterable[int],
    levels: Mapping[int, int],
    product_level: int | None,
) -> KeyList:
    """The keys that a program needs on an engine, each as far as it has to reach there.

    Args:
        rotations: the steps that have keys.
        levels: the highest level at which kernels take each step.
        product_level: the highest level at which kernels multiply ciphertexts; None if they don't.
    """
    bootstrapped, model = parameters.bootstrapping is not None, engine.bootstraps(parameters)

    def reach(level: int, least: int) -> int:
        return engine.key_level(parameters, max(level, least))

    found = KeyList(
        tuple((step, reach(levels.get(step, 0), model.step_levels.get(step, 0))) for step in sorted(rotations)),
        bootstraps=bootstrapped,
    )
    if product_level is None and not bootstrapped:
        return found
    return replace(found, relinearise=reach(product_level or 0, model.product_level))


__all__ = ["BOOTSTRAPS", "KeyList", "keys_for"]
