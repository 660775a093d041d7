"""Makes key-switching keys, which turn a ciphertext under one secret into one under another.

A key holds, for each digit g of the chain, an encryption of P times the old secret s' under the new one s (hybrid key
switching: Han and Ki, "Better Bootstrapping for Approximate Homomorphic Encryption", CT-RSA 2020):

    b_g = -a_g s + e_g + P s' [limb in digit g]    modulo each limb of the key,

with a_g uniform and e_g an error of its own. P is the product of the special primes. A key that is used up to level l
holds q_0 ... q_l and the special primes alone, and only the digits that these limbs need.

As bytes, a key is the public seed of all its a_g, and then each b_g, limb by limb, packed. The residues are values in
the order of the engine's transform.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from olac.backends.vector.packing import Packed, pack, residue_bytes, unpack
from olac.backends.vector.randomness import SEED_BYTES, Coefficients, errors, new_seed, sparse_ternary, uniform
from olac.ckks.parameters import ENCAPSULATION_WEIGHT, Parameters
from olac.ckks.special import key_shape, vector_special_primes
from olac.ckks.words import Words
from olac.errors import ArtifactError

Values = npt.NDArray[np.float64]
"""Residues of a polynomial at the points of the transform, shape (limbs, N), each within [-p, p]."""


class Ring(Protocol):
    """What keys need of the engine's kernels."""

    def transform(self, coefficients: npt.NDArray[np.integer[Any]], primes: Sequence[int]) -> Values:
        """The values, shape (len(primes), N), of a polynomial of small integer coefficients, shape (N,)."""


@dataclass(frozen=True)
class KeyForm:
    """What a key is made of.

    Attributes:
        length: N.
        primes: of its limbs, first those of the chain, then the special ones.
        special: how many are special.
        digit_limbs: limbs of a digit; the last digit may have fewer.
    """

    length: int
    primes: tuple[int, ...]
    special: int
    digit_limbs: int

    @property
    def limbs(self) -> int:
        """Limbs of the chain, one more than the highest level at which the key can be used."""
        return len(self.primes) - self.special

    @property
    def digits(self) -> int:
        """Digits that these limbs need."""
        return -(-self.limbs // self.digit_limbs)

    @property
    def factor(self) -> int:
        """P."""
        return math.prod(self.primes[self.limbs :])

    @cached_property
    def limb_bytes(self) -> tuple[int, ...]:
        """Packed bytes of each limb of a polynomial."""
        return tuple(self.length * residue_bytes(prime) for prime in self.primes)

    @property
    def bytes(self) -> int:
        """Of the whole key."""
        return SEED_BYTES + self.digits * sum(self.limb_bytes)

    @property
    def log_modulus(self) -> float:
        """log2 of the product of all primes, which decides the security of the key."""
        return math.log2(math.prod(self.primes))


def switching_form(parameters: Parameters, level: int) -> KeyForm:
    """Of a key that is used at `level` and below."""
    count = key_shape(parameters, level).specials
    primes = (*parameters.primes[: level + 1], *vector_special_primes(parameters)[:count])
    return KeyForm(parameters.ring_dimension, primes, count, parameters.digit_limbs)


def encapsulation_form(parameters: Parameters) -> KeyForm:
    """Of the key into the sparser secret of bootstraps: one digit, q_0, at a modulus of its own."""
    primes = parameters.encapsulation_primes
    return KeyForm(parameters.ring_dimension, primes, len(primes) - 1, 1)


@dataclass(frozen=True)
class SwitchingKey:
    """A key as it is stored.

    Attributes:
        form: its limbs and digits.
        seed: of all a_g.
        masked: b_g by digit and limb, packed.
    """

    form: KeyForm
    seed: bytes
    masked: tuple[tuple[Packed, ...], ...]

    def blocks(self) -> Iterator[memoryview]:
        """Its bytes, in pieces: the seed, then each limb of each digit."""
        yield memoryview(self.seed)
        for digit in self.masked:
            for limb in digit:
                yield limb.data

    def limbs(self) -> Iterator[tuple[int, int, Words, Words]]:
        """(digit, limb, a_g, b_g) for each limb of each digit."""
        for digit in range(self.form.digits):
            for limb in range(len(self.form.primes)):
                yield digit, limb, self.a(digit, limb), self.b(digit, limb)

    def a(self, digit: int, limb: int) -> Words:
        """The residues of a_g of a limb, shape (N,)."""
        return uniform(self.seed, digit, self.form.primes[limb], self.form.length)

    def b(self, digit: int, limb: int) -> Words:
        """The residues of b_g of a limb, shape (N,); raises `ArtifactError` if they are none."""
        return unpack(self.masked[digit][limb], self.form.primes[limb])


def read_limbs(form: KeyForm, pieces: Iterable[bytes | memoryview]) -> Iterator[tuple[int, int, Words, Words]]:
    """(digit, limb, a_g, b_g) for each limb of each digit of a key, in the order of its bytes; it holds one at a time.

    Args:
        form: of the key.
        pieces: its bytes, in pieces of any sizes, each valid until the next is asked for.

    Raises:
        ArtifactError: residues that are not less than their prime or not uniform, or another number of bytes;
            whatever the iteration over the pieces raises. Only at its end is it known that the key is whole.
    """
    taken = _Bytes(pieces)
    seed = bytes(taken.next(SEED_BYTES))
    for digit, limb, packed in _packed_limbs(form, taken):
        prime = form.primes[limb]
        yield digit, limb, uniform(seed, digit, prime, form.length), unpack(packed, prime)


def read_key(form: KeyForm, pieces: Iterable[bytes | memoryview]) -> SwitchingKey:
    """A whole key, as it is stored, checked; arguments and errors as of `read_limbs`."""
    taken = _Bytes(pieces)
    seed = bytes(taken.next(SEED_BYTES))
    masked: list[list[Packed]] = [[] for _ in range(form.digits)]
    for digit, limb, packed in _packed_limbs(form, taken):
        kept = np.frombuffer(packed, dtype=np.uint8).copy()
        unpack(kept, form.primes[limb])
        masked[digit].append(kept)
    return SwitchingKey(form, seed, tuple(map(tuple, masked)))


def _packed_limbs(form: KeyForm, taken: _Bytes) -> Iterator[tuple[int, int, memoryview]]:
    for digit in range(form.digits):
        for limb, size in enumerate(form.limb_bytes):
            yield digit, limb, taken.next(size)
    taken.end()


class _Bytes:
    """Pieces of bytes as one stream. A piece need not be valid after the next is asked for."""

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")

    def next(self, size: int) -> memoryview:
        """The next bytes, valid until the next call."""
        if len(self._rest) >= size:
            found, self._rest = self._rest[:size], self._rest[size:]
            return found
        out = bytearray(self._rest)
        while len(out) < size:
            piece = next(self._pieces, None)
            if piece is None:
                raise ArtifactError(f"a key ends {size - len(out)} bytes early")
            view = memoryview(piece).cast("B")
            self._rest = view[size - len(out) :]
            out += view[: size - len(out)]
        return memoryview(out)

    def end(self) -> None:
        """All pieces are used up."""
        if len(self._rest) or any(len(piece) for piece in self._pieces):
            raise ArtifactError("a key has more bytes than expected")


class Secret:
    """A secret and its values modulo all primes that keys are made for.

    Args:
        ring: of the engine.
        coefficients: shape (N,), each -1, 0 or 1.
    """

    def __init__(self, ring: Ring, coefficients: Coefficients) -> None:
        self.ring = ring
        self.coefficients = coefficients
        self._values: dict[int, Words] = {}

    def values(self, prime: int) -> Words:
        """Its residues modulo a prime, shape (N,)."""
        if prime not in self._values:
            self._values[prime] = _residues(self.ring.transform(self.coefficients, (prime,))[0], prime)
        return self._values[prime]

    def square(self, prime: int) -> Words:
        """Those of its square."""
        return multiply(self.values(prime), self.values(prime), prime)

    def moved(self, index: int) -> Secret:
        """s(X^index)."""
        return Secret(self.ring, automorphism(self.coefficients, index))


def make_key(form: KeyForm, ring: Ring, target: Callable[[int], Words], secret: Callable[[int], Words]) -> SwitchingKey:
    """A fresh key from one secret to another, with a seed and errors of its own.

    Args:
        target: the residues of the old secret s', shape (N,), modulo a prime of the chain.
        secret: those of the new secret s, modulo any prime of the form.
    """
    seed, masked = new_seed(), []
    for digit in range(form.digits):
        noise = ring.transform(errors(form.length), form.primes)
        limbs = []
        for limb, (prime, error) in enumerate(zip(form.primes, noise, strict=True)):
            a = uniform(seed, digit, prime, form.length)
            b = subtract(_residues(error, prime), multiply(a, secret(prime), prime), prime)
            if limb < form.limbs and limb // form.digit_limbs == digit:
                factor = np.full(form.length, form.factor % prime, dtype=np.uint64)
                b = add(b, multiply(factor, target(prime), prime), prime)
            limbs.append(pack(b, prime))
        masked.append(tuple(limbs))
    return SwitchingKey(form, seed, tuple(masked))


class KeyMaker:
    """Makes the keys of one secret. Each is made with randomness of its own, in any order and by any thread.

    Args:
        ring: of the engine.
        parameters: of the secret.
        coefficients: of the secret, shape (N,), each -1, 0 or 1.
    """

    def __init__(self, ring: Ring, parameters: Parameters, coefficients: Coefficients) -> None:
        self._ring, self._parameters = ring, parameters
        self._secret = Secret(ring, coefficients)

    def relinearisation(self, level: int) -> SwitchingKey:
        """From s^2 to s."""
        return self._key(level, self._secret.square)

    def rotation(self, step: int, level: int) -> SwitchingKey:
        """From s to s(X^(1/g)), for the g of a rotation step or of conjugation (`automorphism_index`).

        The automorphism of g then leads back to s. It comes last, so that the digits of a ciphertext that is rotated
        by several steps are the same for all of them.
        """
        order = 2 * self._parameters.ring_dimension
        inverse = pow(automorphism_index(self._parameters, step), -1, order)
        form = switching_form(self._parameters, level)
        return make_key(form, self._ring, self._secret.values, self._secret.moved(inverse).values)

    def encapsulation(self, level: int) -> tuple[SwitchingKey, SwitchingKey]:
        """From s to a fresh secret of `ENCAPSULATION_WEIGHT`, over q_0 alone, and back to s at a level.

        Nothing else is ever encrypted under the sparser secret, and it is forgotten here (Bossuat, Troncoso-Pastoriza
        and Hubaux, "Bootstrapping for Approximate Homomorphic Encryption with Negligible Failure-Probability by Using
        Sparse-Secret Encapsulation", ACNS 2022).
        """
        sparser = Secret(self._ring, sparse_ternary(self._parameters.ring_dimension, ENCAPSULATION_WEIGHT))
        into = make_key(encapsulation_form(self._parameters), self._ring, self._secret.values, sparser.values)
        return into, self._key(level, sparser.values)

    def _key(self, level: int, target: Callable[[int], Words]) -> SwitchingKey:
        form = switching_form(self._parameters, level)
        return make_key(form, self._ring, target, self._secret.values)


def automorphism_index(parameters: Parameters, step: int) -> int:
    """The g of X -> X^g that rotates slots by a step, or conjugates them (`Parameters.conjugation_step`)."""
    order = 2 * parameters.ring_dimension
    return order - 1 if step == parameters.conjugation_step else pow(5, step, order)


def automorphism(coefficients: Coefficients, index: int) -> Coefficients:
    """The coefficients of f(X^index), for an odd index, of those of f, shape (N,); X^N is -1."""
    n = len(coefficients)
    places = np.arange(n, dtype=np.int64) * index % (2 * n)
    out = np.empty_like(coefficients)
    out[places % n] = np.where(places < n, coefficients, -coefficients)
    return out


# Residues modulo a prime below 2^50, in [0, p) --------------------------------------------------------------------


def multiply(a: Words, b: Words, prime: int) -> Words:
    """a b mod p.

    The quotient in float64 has three roundings of a number below 2^50, so truncated it is off by one at most. The
    remainder modulo 2^64 is then exact, and lies within [-p, 2p).
    """
    quotient = (a.astype(np.float64) * b.astype(np.float64) / float(prime)).astype(np.uint64)
    rest = (a * b - quotient * np.uint64(prime)).view(np.int64)
    rest += (rest >> np.int64(63)) & np.int64(prime)
    return _reduced(rest.view(np.uint64), prime)


def add(a: Words, b: Words, prime: int) -> Words:
    """a + b mod p."""
    return _reduced(a + b, prime)


def subtract(a: Words, b: Words, prime: int) -> Words:
    """a - b mod p."""
    return _reduced(a + (np.uint64(prime) - b), prime)


def _reduced(a: Words, prime: int) -> Words:
    """a mod p for a < 2p."""
    found: Words = np.minimum(a, a - np.uint64(prime))  # one that is too small becomes huge
    return found


def _residues(values: Values, prime: int) -> Words:
    """Values within [-p, p] as residues."""
    return _reduced(_reduced((values + float(prime)).astype(np.uint64), prime), prime)
