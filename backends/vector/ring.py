"""Tables of one set of parameters: primes, roots of unity, orders of values, and constants of conversions."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from olac.backends.vector.arithmetic import LOOSE_BITS, MOST_BITS
from olac.backends.vector.conversion import magic_of
from olac.backends.vector.elementwise import MOST_QUOTIENT, times_constant, transform_integers
from olac.backends.vector.key_kernels import in_word_order
from olac.backends.vector.residues import centred as centred
from olac.backends.vector.switching import inverse_limbs
from olac.backends.vector.team import Team
from olac.backends.vector.transforms import AT_REST, INVERTED, LAZY
from olac.ckks.parameters import Parameters
from olac.ckks.special import vector_special_primes
from olac.ckks.words import Words
from olac.errors import VerificationError
from olac.system.arrays import Array, Index, Order

LEAST_LOG = 7
"""log2 of the least dimension that all kernels work for."""

TIGHT_TERMS = 8
"""Most terms of a sum of residues modulo primes from 2^46 to 2^50, times constants."""


@dataclass(frozen=True)
class Conversion:
    """Constants of a conversion from some primes to others.

    Attributes:
        factors: (from, 2) of the inverse transforms before.
        ids: the primes that it goes to.
        c: (to, from + 1), flat: the last one of each is the product of the primes.
        quotients: the inverses of the primes that it comes from.
        group: most terms that are summed before a reduction.
        starts: of the sums.
    """

    factors: Array
    ids: Index
    c: Array
    starts: Array
    quotients: Array
    group: int


class Tables:
    """What kernels need to know of a dimension and some primes.

    Args:
        log_ring: log2 of N, at least 7.
        primes: below 2^50, each 1 modulo 2N.

    Attributes:
        N, R, C: the dimension, R C = N, see `olac.backends.vector.transforms`.
        primes: as given.
        p, pinv, tight: of each prime: itself and its inverse, as doubles; see `olac.backends.vector.arithmetic`.
        w0, i0: roots and inverse roots in bit-reversed order, R for each prime, centred.
        w1, i1: those of the second half and their twists, a row for each prime, see `transforms.forward_rows`.
        order: for each value in bit-reversed order its place in value order.

    Raises:
        ValueError: a prime or the dimension is out of range.
    """

    def __init__(self, log_ring: int, primes: Sequence[int]) -> None:
        if log_ring < LEAST_LOG:
            raise ValueError(f"a dimension of 2^{log_ring}; the vector engine takes at least 2^{LEAST_LOG}")
        if max(primes) >> MOST_BITS:
            raise ValueError(f"a prime of {max(primes).bit_length()} bits; the vector engine takes at most {MOST_BITS}")
        self.N = 1 << log_ring
        self.R = 1 << -(-log_ring // 2)
        self.C = self.N // self.R
        self.primes = tuple(primes)
        self.p = np.array(self.primes, dtype=np.float64)
        self.pinv = 1.0 / self.p
        self.tight = np.array([prime.bit_length() > LOOSE_BITS for prime in self.primes])
        self._index = {prime: i for i, prime in enumerate(self.primes)}
        count, n = len(self.primes), self.N
        k = np.arange(n)
        self.order: Index = ((k // self.C // 8) * self.C + k % self.C) * 8 + k // self.C % 8
        self._reversed = _bit_reversed(n)
        self.w0, self.i0 = np.empty(count * self.R), np.empty(count * self.R)
        row = self.C + self.R * (self.C.bit_length() - 1)
        self.w1, self.i1 = np.empty((count, row)), np.empty((count, row))
        self._roots: list[int] = []
        for index, prime in enumerate(self.primes):
            powers = _powers(_generator(n, prime), 2 * n, prime)
            odd = np.mod(powers[1::2], prime)
            least = int(odd.min())  # OpenFHE's root
            self._roots.append(least)
            self._set_roots(index, self.w0, self.w1, powers, int(np.argmin(odd)) * 2 + 1)
            self._set_roots(index, self.i0, self.i1, powers, -(int(np.argmin(odd)) * 2 + 1))
        self._lock = threading.Lock()
        self._conversions: dict[tuple[tuple[int, ...], tuple[int, ...]], Conversion] = {}
        self._automorphisms: dict[int, Order] = {}
        self._constants: dict[tuple[str, int, int], Array] = {}
        self._inner_starts: dict[tuple[int, int], Array] = {}

    def _set_roots(self, index: int, first: Array, second: Array, powers: Array, exponent: int) -> None:
        """Roots in bit-reversed order, and the twists of rows of eight, stage after stage."""
        n, R, C = self.N, self.R, self.C
        root = powers[(self._reversed * exponent) % (2 * n)]
        first[index * R : (index + 1) * R] = root[:R]
        second[index, :C] = root[:C]
        twists = second[index, C:].reshape(R // 8, -1, 8)
        for stage in range(twists.shape[1]):
            twists[:, stage] = root[R << stage : 2 * R << stage : 1 << stage].reshape(R // 8, 8)

    # Indices of primes -----------------------------------------------------------------------------------------------

    def indices(self, primes: Sequence[int]) -> Index:
        """Where some primes are among all."""
        return np.array([self._index[prime] for prime in primes], dtype=np.int64)

    def residues(self, value: int, ids: Sequence[int] | Index) -> Array:
        """An integer modulo some primes, centred."""
        return np.array([centred(value, self.primes[j]) for j in ids])

    # Constants -------------------------------------------------------------------------------------------------------

    def inverse_factors(self, factors: Sequence[int], ids: Sequence[int] | Index) -> Array:
        """(limbs, 2): what inverse transforms multiply by to give the coefficients times a factor of each limb."""
        out = np.empty((len(factors), 2))
        for row, factor, j in zip(out, factors, ids, strict=True):
            prime = self.primes[j]
            f = factor * pow(self.N, -1, prime) % prime
            row[:] = centred(f, prime), centred(f * int(self.i0[j * self.R + 1]), prime)
        return out

    def conversion(self, source: Sequence[int], target: Sequence[int]) -> Conversion:
        """Constants for the conversion of a residue modulo the product of some primes to other primes.

        It is that of the fast basis extension (Bajard, Eynard, Hasan and Zucca, SAC 2016) with centred residues: the
        result is off by the product times an integer that is at most half the number of primes. That integer is the
        rounded sum of the residues over their primes (Halevi, Polyakov and Shoup, CT-RSA 2019), and `convert` can
        subtract it.
        """
        key = tuple(source), tuple(target)
        if key not in self._conversions:
            primes = [self.primes[i] for i in source]
            product = math.prod(primes)
            hats = [product // prime for prime in primes]
            c = np.array([[centred(hat, self.primes[j]) for hat in (*hats, product)] for j in target])
            group = TIGHT_TERMS if self.tight[list(source)].any() else len(source)
            starts = np.array([self._start(primes, group, self.primes[j]) for j in target])
            factors = self.inverse_factors([pow(h, -1, q) for h, q in zip(hats, primes, strict=True)], source)
            self._conversions[key] = Conversion(
                factors, np.array(target, dtype=np.int64), c.reshape(-1), starts, self.pinv[list(source)], group
            )
        return self._conversions[key]

    @staticmethod
    def _start(source: Sequence[int], group: int, prime: int) -> float:
        """What sums of residues of inverse transforms, times centred residues modulo a prime, start with.

        `overshoots` gives at most the number of residues.
        """
        largest = (sum(sorted(map(_inverted, source))[-group:]) + len(source)) * (prime // 2 + 1)
        return magic_of(largest, min(group, len(source)) + 1, prime)

    def inner_starts(self, digits: int, more: int = 0) -> Array:
        """What sums over digits of transforms, times centred residues of keys, start with, for each prime.

        For tight primes transforms end centred, but a digit that is the ciphertext's own is as large as it is at rest.

        Args:
            more: how many residues at rest, times centred constants, are added to the sums.

        Raises:
            OverflowError: so many do not fit; six digits and one more always do.
        """
        if (digits, more) not in self._inner_starts:
            starts = np.empty(len(self.primes))
            for j, (prime, tight) in enumerate(zip(self.primes, self.tight, strict=True)):
                own, half = math.ceil(AT_REST * prime), prime // 2
                most = (1 + more) * own + (digits - 1) * half if tight else (digits + more) * LAZY * prime
                starts[j] = magic_of(most * half, digits + more, prime)
            self._inner_starts[digits, more] = starts
        return self._inner_starts[digits, more]

    def product_starts(self, most: int) -> tuple[int, Array]:
        """How many residues at rest times centred ones may be summed, and what sums start with, for each prime.

        Args:
            most: no more are wanted. Five fit for all primes, and at least twelve for primes below 2^49.
        """
        for terms in range(most, 0, -1):
            try:
                return terms, np.array(
                    [magic_of(terms * math.ceil(AT_REST * p) * (p // 2), terms, p) for p in self.primes]
                )
            except OverflowError:
                continue
        raise AssertionError("one product fits for each prime")

    def residues_of_inverse(self, value: int, limbs: int) -> Array:
        """The inverse of an integer modulo the first primes."""
        return self._constant(("inverse", value, limbs), lambda p: pow(value, -1, p), range(limbs))

    def _constant(self, name: tuple[str, int, int], residue: Callable[[int], int], ids: Sequence[int]) -> Array:
        if name not in self._constants:
            self._constants[name] = np.array([centred(residue(self.primes[j]), self.primes[j]) for j in ids])
        return self._constants[name]

    # Automorphisms ---------------------------------------------------------------------------------------------------

    def automorphism(self, exponent: int) -> Order:
        """For each value of m(X^exponent) where it is among those of m, both in value order, int32."""
        n = self.N
        exponent %= 2 * n
        with self._lock:
            if exponent not in self._automorphisms:
                if len(self._automorphisms) > 512:
                    self._automorphisms.clear()
                odd = (2 * self._reversed + 1) * exponent % (2 * n)
                source = self._reversed[(odd - 1) // 2]
                out = np.empty(n, dtype=np.int32)
                out[self.order] = self.order[source]
                self._automorphisms[exponent] = out
            return self._automorphisms[exponent]

    # Words -----------------------------------------------------------------------------------------------------------

    def to_words(self, values: Array, ids: Sequence[int] | Index) -> Words:
        """Words in OpenFHE's order, shape (limbs, N), of residues in value order of the same shape."""
        out = np.empty(values.shape, dtype=np.uint64)
        for row, value, j in zip(out, values, ids, strict=True):
            row[:] = np.mod(value[self.order], self.p[j]).astype(np.uint64)
        return out

    def from_words(self, words: Words, ids: Sequence[int] | Index) -> Array:
        """The inverse of `to_words`, centred."""
        out = np.empty(words.shape)
        for row, word, j in zip(out, words, ids, strict=True):
            value = word.astype(np.float64)
            row[self.order] = np.where(value > self.p[j] / 2, value - self.p[j], value)
        return out

    def coefficients(self, values: Array, index: int) -> Array:
        """The coefficients in their natural order, centred, of N values in value order modulo one prime."""
        out, room = np.empty(self.N), np.empty(16 * self.R)
        at, ids = np.zeros(1, dtype=np.int64), np.array([index])
        factors = self.inverse_factors([1], ids)
        tables = self.R, self.C, self.i0, self.i1, self.p, self.pinv, self.tight
        inverse_limbs(0, 1, 0, np.ascontiguousarray(values), at, out, at, ids, factors, room.reshape(1, -1), *tables)
        k = np.arange(self.N)
        place = ((k % self.C // 8) * self.R + k // self.C) * 8 + k % 8
        p = self.p[index]
        found: Array = out[place] - np.rint(out[place] * self.pinv[index]) * p
        return found

    def transform(self, coefficients: npt.NDArray[np.integer[Any]], primes: Sequence[int]) -> Iterator[Array]:
        """The centred values of a polynomial of small integer coefficients modulo each prime, in the order of words.

        Each array is valid until the next one is asked for: keys take many of them.
        """
        ordered, at = self.ordered(coefficients.astype(np.float64)), np.zeros(1, dtype=np.int64)
        values, words, scratch = np.empty(self.N), np.empty(self.N), np.empty((1, 16 * self.R))
        tables = self.R, self.C, self.C, self.w0, self.w1, self.p, self.pinv, self.tight
        for j in self.indices(primes):
            transform_integers(0, 1, 0, ordered, values, at, np.array([j]), scratch, *tables)
            in_word_order(values, words, self.R, self.C)
            yield words

    def ordered(self, coefficients: Array, repeat: int = 0) -> Array:
        """N >> repeat coefficients, from their natural order to coefficient order."""
        rows = np.ascontiguousarray(coefficients, dtype=np.float64).reshape(self.R, (self.C >> repeat) // 8, 8)
        return np.ascontiguousarray(rows.transpose(1, 0, 2)).reshape(-1)

    def values(
        self, coefficients: Array, ids: Index, team: Team | None = None, repeat: int = 0, into: Array | None = None
    ) -> Array:
        """Values, shape (limbs, N), centred, of a polynomial whose coefficients are integers as doubles, of any size.

        Args:
            into: where the values go, flat; None for a new array.
            repeat: the N >> repeat coefficients are those of a polynomial f, and the polynomial is f(X^(2^repeat)). Of
                its values, 2^repeat rows of eight after one another are the same, and are given once.

        Raises:
            VerificationError: a coefficient is not finite.
        """
        largest = np.max(np.abs(coefficients))
        if not np.isfinite(largest):
            raise VerificationError("a polynomial has coefficients that are not finite")
        if largest > MOST_QUOTIENT * np.min(self.p[ids]):
            if len(ids) > 1:
                single = [self.values(coefficients, ids[e : e + 1], team, repeat) for e in range(len(ids))]
                return np.concatenate(single, out=None if into is None else into.reshape(len(ids), -1))
            coefficients = np.fmod(coefficients, self.p[ids[0]])  # exact, and slow for such quotients
        n, columns = self.N >> repeat, self.C >> repeat
        out = np.empty((len(ids), n)) if into is None else into.reshape(len(ids), n)
        at = np.arange(len(ids)) * n
        by = team or Team(1)
        scratch = np.empty((by.threads, 16 * self.R))
        by.run(
            transform_integers,
            len(ids),
            self.ordered(coefficients, repeat),
            out.reshape(-1),
            at,
            ids,
            scratch,
            self.R,
            columns,
            self.C,
            self.w0,
            self.w1,
            self.p,
            self.pinv,
            self.tight,
            size=len(ids) * n,
        )
        return out


class Ring(Tables):
    """Those of the primes of a chain, then the special primes, then those of the key into the sparser secret, but q_0.

    Args:
        parameters: of the chain.

    Attributes:
        limbs, specials: numbers of the first two kinds.
    """

    def __init__(self, parameters: Parameters) -> None:
        special = vector_special_primes(parameters)
        sparse = () if parameters.bootstrapping is None else parameters.encapsulation_primes[1:]
        super().__init__(parameters.log_ring, (*parameters.primes, *special, *sparse))
        self.parameters = parameters
        self.limbs, self.specials = parameters.limbs, len(special)

    def ids(self, limbs: int, specials: int = 0) -> Index:
        """The first primes of the chain and the first special primes."""
        found: Index = np.concatenate([np.arange(limbs), self.limbs + np.arange(specials)])
        return found

    @property
    def sparse_ids(self) -> Index:
        """q_0 and the special primes of the key into the sparser secret."""
        own = self.limbs + self.specials
        return np.array([0, own, own + 1], dtype=np.int64)

    def special_product(self, specials: int, limbs: int) -> Array:
        """P modulo the first primes."""
        product = self.special_between(0, specials)
        return self._constant(("P", product, limbs), lambda p: product % p, range(limbs))

    def special_between(self, first: int, last: int) -> int:
        """The product of the special primes first ... last - 1."""
        return math.prod(self.primes[self.limbs + first : self.limbs + last])

    def exponent(self, step: int) -> int:
        """The automorphism of a rotation step; the conjugation step stands for conjugation."""
        if step == self.parameters.conjugation_step:
            return 2 * self.N - 1
        return pow(5, step % self.parameters.slots, 2 * self.N)


def _inverted(prime: int) -> int:
    """Most that inverse transforms leave."""
    return prime // 2 if prime.bit_length() > LOOSE_BITS else math.ceil(INVERTED * prime)


def _bit_reversed(n: int) -> Index:
    out: Index = np.zeros(1, dtype=np.int64)
    while len(out) < n:
        out = np.concatenate([2 * out, 2 * out + 1])
    return out


def _generator(n: int, prime: int) -> int:
    """A primitive root of unity of order 2n."""
    base = next(g for g in range(2, prime) if pow(g, (prime - 1) // 2, prime) == prime - 1)
    return pow(base, (prime - 1) // (2 * n), prime)


def _powers(root: int, count: int, prime: int) -> Array:
    """The first `count` powers, centred, by doubling."""
    out = np.empty(count)
    out[:8] = [centred(pow(root, k, prime), prime) for k in range(8)]
    zero, p = np.zeros(1, dtype=np.int64), np.array([float(prime)])
    size = 8
    while size < count:
        step = np.array([centred(pow(root, size, prime), prime)])
        half = out[size : 2 * size]
        times_constant(0, 1, 0, out[:size], zero, step, half, zero, zero, False, size, p, 1.0 / p)
        size *= 2
    out[out > prime // 2] -= prime
    out[out < -(prime // 2)] += prime
    return out


_LOCK = threading.Lock()
_ring = functools.lru_cache(maxsize=4)(Ring)


def ring(parameters: Parameters) -> Ring:
    """The ring of this process for these parameters."""
    with _LOCK:
        return _ring(parameters)
