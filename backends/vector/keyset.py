"""Evaluation keys in a process, as the evaluator uses them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from olac.backends.session import Piece
from olac.backends.vector.bootstrap.circuit import Bootstrap
from olac.backends.vector.keys import KeyForm, Limbs, write_key
from olac.backends.vector.packed import PackedKey
from olac.backends.vector.ring import Ring
from olac.backends.vector.team import Team
from olac.ckks.parameters import Parameters
from olac.ckks.special import KeyShape
from olac.ckks.vector_bootstrapping import vector_bootstrap_model
from olac.errors import MissingKeyError


def packed_key(ring: Ring, form: KeyForm, limbs: Limbs, seed: bytes = b"") -> PackedKey:
    """A key of its limbs; the seed is needed for writing it."""
    made = PackedKey(ring, KeyShape(form.limbs, form.digits, form.special), ring.indices(form.primes))
    made.seed = seed
    for digit, limb, a, b in limbs:
        for half, words in enumerate((b, a)):
            made.put(digit, half, limb, words)
    return made


@dataclass(frozen=True)
class FromSparse:
    """What a key is for: from the sparser secret of bootstraps to the usual one, and a rotation step."""

    step: int


Place = int | str | FromSparse
"""A rotation step, "relinearise", "into_sparse", or that."""


def places(
    parameters: Parameters, steps: Iterable[int], relinearise: int | None, bootstraps: bool = True
) -> list[Place]:
    """What each key of a program is for, in the order of `keys.key_forms`."""
    found: list[Place] = [*([] if relinearise is None else ["relinearise"]), *steps]
    if bootstraps and parameters.bootstrapping is not None:
        back = map(FromSparse, vector_bootstrap_model(parameters).from_sparse_steps)
        found += ["into_sparse", *back, parameters.conjugation_step]
    return found


class VectorKeys:
    """Keys by what they are for, see `olac.backends.session.Keys`.

    Attributes:
        parameters, mark: of the key pair, in this process.
        relinearise: from s^2 to s, or None.
        rotations: by step; the conjugation step stands for conjugation.
        into_sparse: of bootstraps, or None.
        from_sparse: by rotation step; none without bootstraps.
    """

    def __init__(self, parameters: Parameters, mark: str = "") -> None:
        self.parameters, self.mark = parameters, mark
        self._order: list[tuple[KeyForm, PackedKey]] = []
        self.relinearise: PackedKey | None = None
        self.rotations: dict[int, PackedKey] = {}
        self.into_sparse: PackedKey | None = None
        self.from_sparse: dict[int, PackedKey] = {}
        self._bootstraps: Bootstrap | None = None
        self._lock = threading.Lock()

    def add(self, place: Place, form: KeyForm, key: PackedKey) -> None:
        """Add a key."""
        self._order.append((form, key))
        if isinstance(place, FromSparse):
            self.from_sparse[place.step] = key
        elif isinstance(place, int):
            self.rotations[place] = key
        else:
            setattr(self, place, key)

    def blocks(self) -> Iterator[Piece]:
        """The bytes of all keys in the order in which they were added, for keys that were made in this process."""
        for form, key in self._order:
            yield from write_key(form, key.seed, key.b)

    def rotation(self, step: int) -> PackedKey:
        """The key of a step."""
        if step not in self.rotations:
            raise MissingKeyError(f"there is no key for rotation step {step}")
        return self.rotations[step]

    def bootstraps(self, team: Team) -> Bootstrap:
        """Bootstraps with these keys; at the first call the team makes their plaintexts, which all share."""
        with self._lock:
            if self._bootstraps is None:
                self._bootstraps = Bootstrap(self.parameters, self, team)
            return self._bootstraps

    def relinearisation(self) -> PackedKey:
        """The relinearisation key."""
        if self.relinearise is None:
            raise MissingKeyError("there is no relinearisation key")
        return self.relinearise
