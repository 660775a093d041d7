"""One level of a transform on ciphertexts: its plaintexts, packed, and how it is applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from olac.backends.vector.arithmetic import LOOSE_BITS
from olac.backends.vector.bootstrap.kernels import (
    FOUR_BYTES,
    ONE_BYTE,
    TWO_BYTES,
    multiply_rotations,
    pack_plaintext,
)
from olac.backends.vector.bootstrap.transforms import LinearLevel
from olac.backends.vector.ciphertext import Residues
from olac.backends.vector.conversion import magic_of
from olac.backends.vector.encoding import coefficients
from olac.backends.vector.evaluator import NO_ORDER, VectorEvaluator
from olac.backends.vector.packed import PackedKey
from olac.backends.vector.ring import Ring
from olac.backends.vector.team import Team
from olac.ckks.special import bytes_of_high
from olac.errors import MissingKeyError, VerificationError
from olac.system.arrays import Array, Index

KINDS = {1: ONE_BYTE, 2: TWO_BYTES, 4: FOUR_BYTES}
"""Kinds of high parts, by bytes."""
MOST_TERMS = 32
"""Most products in a sum that is not reduced."""


def sums_of_plaintexts(primes: Sequence[int]) -> tuple[int, Array]:
    """How many products of a rotation and a plaintext may be summed, and what sums modulo each prime start with."""
    terms = MOST_TERMS
    while True:
        try:
            return terms, np.array([magic_of(terms * (p * 8 // 10 + 1) * (p // 2), terms, p) for p in primes])
        except OverflowError:
            terms //= 2  # two always fit


def combination_start(prime: int, products: int, factor: int, terms: int) -> float:
    """What the sums of `combine` start with; 0 for tight primes, which have no such sums.

    Args:
        prime: of the sums.
        products, factor: of ciphertexts, and what they are multiplied by.
        terms: multiples of ciphertexts.

    Raises:
        VerificationError: so many do not fit.
    """
    if prime.bit_length() > LOOSE_BITS:
        return 0.0
    # The middle polynomial gets two products of residues of at most 1.1 p for each of ciphertexts.
    largest = -(-(2 * products * factor * 121 + terms * 55) * prime * prime // 100)
    try:
        return magic_of(largest, 2 * products + terms, prime)
    except OverflowError as error:
        raise VerificationError(
            f"{products} products and {terms} multiples of ciphertexts are too many for one sum modulo {prime}"
        ) from error


class Plaintexts:
    """Plaintexts modulo Q P whose slots have a short period, packed.

    Args:
        ring: of the engine.
        limbs, specials: primes.
        level: whose diagonals are encoded.
        scale: of the plaintexts.
        team: makes them.

    Attributes:
        ids: the primes.
        repeat: 2^repeat rows of eight values after one another are the same, and are stored once.
        which, counts: for each giant step its baby steps, shape (giants, babies), and how many they are.
        low, high8, high16: parts of the values, flat. A limb has for each panel, giant step, row and baby step eight
            values, which is the order in which the kernel reads them.
        lowat, highat, kinds: where each limb begins, in `low` and in the array of its kind of high parts.
    """

    def __init__(
        self, ring: Ring, limbs: int, specials: int, level: LinearLevel, scale: float, team: Team | None = None
    ) -> None:
        self.ids = ring.ids(limbs, specials)
        slots = ring.N // 2
        self.repeat = min((slots // level.period).bit_length(), ring.C.bit_length()) - 1
        present = [[baby for baby, one in enumerate(block) if one is not None] for block in level.blocks]
        self.counts: Index = np.array([len(one) for one in present], dtype=np.int64)
        self.which: Index = np.zeros((len(present), max(self.counts)), dtype=np.int64)
        panels, rows = ring.R // 8, ring.C >> self.repeat
        width = int(self.counts.sum()) * rows * 8
        bytes_of = [bytes_of_high(ring.primes[j], max(ring.primes)) for j in self.ids]
        small = np.array(bytes_of) == 1
        self.kinds: Index = np.array([KINDS[size] for size in bytes_of], dtype=np.int64)
        places = np.where(small, np.cumsum(small) - 1, np.cumsum(~small) - 1)
        self.lowat: Index = np.arange(len(self.ids)) * panels * width
        self.highat: Index = places * panels * width
        self.low = np.empty(len(self.ids) * panels * width, dtype=np.int32)
        self.high8 = np.empty(int(small.sum()) * panels * width, dtype=np.int8)
        wide = np.int32 if max(bytes_of) == 4 else np.int16
        self.high16 = np.empty(int((~small).sum()) * panels * width, dtype=wide)
        begin, by = 0, team or Team(1)
        for giant, block in enumerate(present):
            self.which[giant, : len(block)] = block
            for place, baby in enumerate(block):
                diagonal = level.blocks[giant][baby]
                assert diagonal is not None
                polynomial = coefficients(np.tile(diagonal, slots // level.period), scale)
                values = ring.values(polynomial, self.ids, by)
                by.run(
                    pack_plaintext,
                    len(self.ids),
                    values.reshape(-1),
                    self.low,
                    self.high8,
                    self.high16,
                    self.lowat,
                    self.highat,
                    self.kinds,
                    width,
                    begin,
                    len(block),
                    place,
                    self.repeat,
                    ring.R,
                    ring.C,
                )
            begin += len(block) * rows * 8

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.low.nbytes + self.high8.nbytes + self.high16.nbytes

    def low_addresses(self) -> Index:
        """Where the low parts of each limb begin."""
        return self.low.ctypes.data + self.low.itemsize * self.lowat

    def high_addresses(self) -> Index:
        """Where its high parts begin."""
        small = self.high8.ctypes.data + self.high8.itemsize * self.highat
        large = self.high16.ctypes.data + self.high16.itemsize * self.highat
        return np.where(self.kinds == ONE_BYTE, small, large)


@dataclass(frozen=True, eq=False)
class _Keys:
    """Where the limbs of the keys of all baby steps are, see `kernels.multiply_rotations`."""

    bare: int
    addresses: Index
    lowat: Index
    highat: Index
    kinds: Index
    polynomials: Index
    held: tuple[object, ...]


class EncodedLevel:
    """A level of a transform at a level of the chain.

    Args:
        ring: of the engine.
        level: the diagonals.
        limbs: of the operand.
        scale: of the plaintexts.
        babies: keys of the baby steps, all with as many special primes, either for all steps or for all but 0. With a
            key for step 0, the operand is one that was raised under the sparser secret, see `apply`.
        giant: the key of the giant step; None if there is none.
        team: makes the plaintexts.
    """

    def __init__(
        self,
        ring: Ring,
        level: LinearLevel,
        limbs: int,
        scale: float,
        babies: Mapping[int, PackedKey],
        giant: PackedKey | None,
        team: Team | None = None,
    ) -> None:
        self.limbs, self.scale = limbs, scale
        self.baby_steps = level.baby_steps
        self._giants = {} if giant is None else {level.giant: giant}
        self._raised = 0 in babies
        steps = self.baby_steps[0 if self._raised else 1 :]
        for step in steps:
            if babies[step].shape.limbs < limbs:
                raise MissingKeyError(f"the key of step {step} is for fewer than {limbs} limbs")
        (self.specials,) = {babies[step].shape.specials for step in steps}
        self.plaintexts = Plaintexts(ring, limbs, self.specials, level, scale, team)
        self._keys = self._find(ring, {step: babies[step] for step in steps})
        self._plain_low, self._plain_high = self.plaintexts.low_addresses(), self.plaintexts.high_addresses()
        primes = [ring.primes[j] for j in self.plaintexts.ids]
        self._group, self._plain_starts = sums_of_plaintexts(primes)

    def _find(self, ring: Ring, keys: Mapping[int, PackedKey]) -> _Keys:
        babies, count = len(self.baby_steps), self.limbs + self.specials
        bare = babies - len(keys)
        addresses = np.zeros((babies, 4), dtype=np.int64)
        lowat, highat = np.zeros((babies, count), dtype=np.int64), np.zeros((babies, count), dtype=np.int64)
        kinds, polynomials = np.zeros((babies, count), dtype=np.int64), np.zeros((babies, 3), dtype=np.int64)
        held: list[object] = []
        for b, (step, key) in enumerate(keys.items(), bare):
            order = ring.automorphism(ring.exponent(step))
            arrays = key.low, key.high8, key.high16, order
            assert all(one.flags.c_contiguous for one in arrays) and order.dtype == np.int32
            held += arrays
            addresses[b] = [one.ctypes.data for one in arrays]
            taken = [*range(self.limbs), *range(key.shape.limbs, key.shape.limbs + self.specials)]
            wide = FOUR_BYTES if key.high16.itemsize == 4 else TWO_BYTES
            lowat[b] = np.array(taken) * ring.N
            highat[b] = key.place[taken] * ring.N
            kinds[b] = np.where(key.small[taken], ONE_BYTE, wide)
            polynomials[b] = len(key.ids), key.count8, key.count16
        return _Keys(bare, addresses, lowat, highat, kinds, polynomials, tuple(held))

    def apply(self, evaluator: VectorEvaluator, a: Residues) -> Residues:
        """The sums of the first giant step, with those of all others rotated and added, modulo Q P.

        Args:
            a: modulo Q. What was raised is the digit of its second polynomial itself, which is there modulo Q P.
        """
        totals = self._multiply(evaluator, a)
        total = totals.pop()
        while totals:
            total = with_rotations(evaluator, total, self._giants, totals.pop())
        return total

    def _multiply(self, evaluator: VectorEvaluator, a: Residues) -> list[Residues]:
        r, n, limbs, specials = evaluator.ring, evaluator.ring.N, self.limbs, self.specials
        alpha = limbs if self._raised else evaluator.parameters.digit_limbs
        count = -(-limbs // alpha)
        if self._raised:
            lifted, at = a.data, (a.room + np.arange(limbs + specials)) * n
        else:
            digits = evaluator.decompose(a, 1)
            evaluator.lift(digits, specials)
            assert digits.data is not None
            lifted = digits.data.data
            at = np.concatenate([np.arange(limbs), (count - 1) * limbs + np.arange(specials)]) * n
        strides = np.repeat([limbs * n, r.specials * n], [limbs, specials])
        rows = limbs + specials
        parts = evaluator.buffers.take_parts(len(self.plaintexts.counts), 2 * rows * n)
        k, plain = self._keys, self.plaintexts
        scratch = np.empty((evaluator.team.threads, 2 * (len(self.baby_steps) + 1) * 8 * r.C))
        evaluator.team.run(
            multiply_rotations,
            rows,
            a.data,
            0,
            a.room * n,
            lifted,
            at,
            strides,
            count,
            alpha,
            k.bare,
            k.addresses,
            k.lowat,
            k.highat,
            k.kinds,
            k.polynomials,
            r.special_product(specials, limbs),
            r.inner_starts(count, 1)[plain.ids],
            plain.which,
            plain.counts,
            self._plain_low,
            self._plain_high,
            plain.kinds,
            plain.repeat,
            self._plain_starts,
            self._group,
            parts[0].whole,
            scratch,
            plain.ids,
            limbs,
            r.R,
            r.C,
            r.p,
            r.pinv,
            size=rows * n,
        )
        return [Residues(part, 2, limbs, specials, rows, 1, 1.0, a.mark) for part in parts]


def with_rotations(evaluator: VectorEvaluator, a: Residues, keys: Mapping[int, PackedKey], total: Residues) -> Residues:
    """total, plus a rotated by each of some steps; all modulo Q P, with the largest P of them.

    Only the second polynomial of a is divided by P, as it is decomposed. The first one stays as it is.

    Args:
        a, total: two polynomials each, in memory of their own; total is lost.
        keys: by step, all of the same shape.
    """
    second = evaluator.divided(evaluator.part(a, 1), None, 0, NO_ORDER)
    digits = evaluator.decompose(second, 0)
    specials = max(a.specials, *(key.shape.specials for key in keys.values()))
    total, first = evaluator.raised(total, specials), evaluator.raised(evaluator.part(a, 0), specials)
    for step, key in keys.items():
        switched = evaluator.raised(evaluator.key_product(digits, key), specials)
        evaluator.add_automorphism(evaluator.sum_of(switched, first, into=switched), None, step, total, True)
    return total
