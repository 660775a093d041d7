"""Secret keys of the engine's own: made, written, and used to encrypt and decrypt, without OpenFHE.

Like OpenFHE's, a secret is ternary, uniform or of `SPARSE_WEIGHT` if there are bootstraps, and its words are its values
modulo each prime of the chain, so that either library uses the other's. A ciphertext (c_0, c_1) of a polynomial m is
(-a s + e + m, a), with a uniform and e an error (`olac.backends.vector.randomness`).

Nothing here runs in constant time.
"""

from __future__ import annotations

import math
import os
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import scipy.special

from olac.backends.base import fresh_slots
from olac.backends.vector.composition import numbers
from olac.backends.vector.encoding import coefficients as encoded
from olac.backends.vector.encoding import slots_of
from olac.backends.vector.key_making import Secret
from olac.backends.vector.randomness import Coefficients, errors, new_seed, sparse_ternary, uniform
from olac.backends.vector.residues import add, multiply, residues, subtract
from olac.backends.vector.ring import Ring
from olac.ckks.parameters import SPARSE_WEIGHT, Parameters
from olac.ckks.words import WORD_BYTES, Words, check_words
from olac.errors import ArtifactError
from olac.ir.types import CipherState
from olac.system.arrays import Array

LEAST_BITS: Final = 5.0
"""Decryption fails if the noise of a coefficient is within so many bits of the scale, as in OpenFHE."""
LEAST_NOISE: Final = 0.125
"""The least standard deviation that a decrypted polynomial is taken to have, times sqrt(N), as in OpenFHE."""


class SecretKey(Protocol):
    """A secret key and what is done with it, in words."""

    def words(self) -> Words:
        """Its values modulo the primes of the chain, shape (limbs, N)."""

    def encrypt(self, slots: Array, level: int) -> Words:
        """A fresh ciphertext, shape (2, level + 1, N), of noise degree 1 and the level's canonical scale.

        Raises:
            VerificationError: the slots are too large for one.
        """

    def decrypt(self, words: Words, state: CipherState) -> Array:
        """The real slots, shape (slots,), of a ciphertext, shape (2, level + 1, N).

        Raises:
            RuntimeError: they are noise.
        """


class OwnSecret:
    """A secret key of the engine's own.

    Args:
        ring: of the parameters.
        words: of the secret, shape (limbs, N); None for a new one.

    Raises:
        ArtifactError: words that are not those of a secret for the ring's parameters.
    """

    def __init__(self, ring: Ring, words: Words | None = None) -> None:
        self._ring, self._parameters = ring, ring.parameters
        made = new_secret(ring.parameters) if words is None else _checked(ring, words)
        self._secret = Secret(ring, made)

    def words(self) -> Words:
        return np.stack([self._secret.values(prime) for prime in self._parameters.primes])

    def encrypt(self, slots: Array, level: int) -> Words:
        own, primes, scale = self._ring, self._parameters.primes[: level + 1], self._parameters.scale(level)
        message = own.values(encoded(fresh_slots(self._parameters, slots, level, scale), scale), own.ids(level + 1))
        noises, seed = own.transform(errors(own.N), primes), new_seed()
        out = np.empty((2, level + 1, own.N), dtype=np.uint64)
        for i, (prime, noise) in enumerate(zip(primes, noises, strict=True)):
            a = uniform(seed, 0, prime, own.N)
            hidden = add(residues(noise, prime), residues(message[i][own.order], prime), prime)
            out[0, i] = subtract(hidden, multiply(a, self._secret.values(prime), prime), prime)
            out[1, i] = a
        return out

    def decrypt(self, words: Words, state: CipherState) -> Array:
        own, primes = self._ring, self._parameters.primes[: state.level + 1]
        found = np.empty((len(primes), own.N), dtype=np.uint64)
        for i, prime in enumerate(primes):
            hidden = add(words[0, i], multiply(words[1, i], self._secret.values(prime), prime), prime)
            values = own.coefficients(own.from_words(hidden[None], (i,))[0], i)
            found[i] = residues(values, prime)
        return slots_of(with_noise(numbers(found, primes), state.scale)).real / state.scale


# Secrets -------------------------------------------------------------------------------------------------------------


def new_secret(parameters: Parameters) -> Coefficients:
    """A fresh secret, shape (N,), as OpenFHE draws them: uniform ternary, or sparse if there are bootstraps."""
    n = parameters.ring_dimension
    return uniform_ternary(n) if parameters.bootstrapping is None else balanced_ternary(n, SPARSE_WEIGHT)


def uniform_ternary(count: int) -> Coefficients:
    """Fresh coefficients, shape (count,), each -1, 0 or 1 with the same probability.

    Bytes that are 255 are drawn anew: those below 255 have each remainder modulo 3 equally often.
    """
    out: Coefficients = np.zeros(0, dtype=np.int8)
    while len(out) < count:
        drawn = np.frombuffer(os.urandom(count + count // 64 + 16), dtype=np.uint8)
        out = np.concatenate([out, (drawn[drawn < 255] % 3).astype(np.int8) - np.int8(1)])
    return out[:count]


def balanced_ternary(count: int, weight: int) -> Coefficients:
    """A fresh secret, shape (count,), of `weight` coefficients that are 1 or -1; nearly half of them are 1.

    All such secrets are as likely. OpenFHE draws anew as well until the number of ones is within one of half the
    weight, which takes about six draws for a weight of 192.
    """
    while True:
        out = sparse_ternary(count, weight)
        if abs(int(np.count_nonzero(out == 1)) - weight // 2) <= 1:
            return out


def secret_coefficients(own: Ring, words: Words) -> Coefficients:
    """The coefficients of a secret key, shape (N,), from its words modulo q_0.

    Raises:
        ArtifactError: they are not all -1, 0 or 1.
    """
    found = own.coefficients(own.from_words(words[:1], range(1)).reshape(-1), 0)
    if np.any(np.abs(found) > 1):
        raise ArtifactError("coefficients of a secret key that are not ternary: it is damaged")
    return found.astype(np.int8)


def _checked(own: Ring, words: Words) -> Coefficients:
    """The coefficients of a secret from words of shape (limbs, N), which all have to be of that secret."""
    parameters = own.parameters
    check_words(words, parameters.primes, own.N)
    found = secret_coefficients(own, words)
    if parameters.bootstrapping is not None and np.count_nonzero(found) != SPARSE_WEIGHT:
        raise ArtifactError("a secret key of another weight than bootstraps take: it is damaged")
    values = own.transform(found, parameters.primes)
    for prime, expected, limb in zip(parameters.primes, values, words, strict=True):
        if not np.array_equal(residues(expected, prime), limb):
            raise ArtifactError("limbs of a secret key that differ: it is damaged")
    return found


# Noise of decrypted values -------------------------------------------------------------------------------------------


def with_noise(polynomial: Array, scale: float) -> Array:
    """A decrypted polynomial, shape (N,), as it may leave the client: its real slots, with noise that is added.

    As OpenFHE's, whose decryption does the same: slots are real, so the imaginary part of the polynomial, half the
    difference of m(X) and m(1/X), is noise, and shows how large the noise is. Gaussian noise of sqrt(2) times that
    standard deviation is added to the real part, so that somebody who learns the numbers can't take the noise of the
    ciphertext from them and solve for the secret. It makes that harder and proves nothing (see SECURITY.md).

    Raises:
        RuntimeError: the noise has nearly the size of the scale, or more.
    """
    n = len(polynomial)
    mirrored = np.concatenate([polynomial[:1], -polynomial[:0:-1]])  # m(1/X)
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = float(np.std((polynomial - mirrored) / 2))
    if not deviation < scale * 2.0**-LEAST_BITS:  # also if it is no number
        raise RuntimeError("the noise is too large for the scale: nothing can be decrypted")
    deviation = max(deviation, LEAST_NOISE * math.sqrt(n))
    found: Array = (polynomial + mirrored) / 2 + math.sqrt(2.0) * deviation * gaussian(n)
    return found


def gaussian(count: int) -> Array:
    """Fresh numbers of the normal distribution, shape (count,), by its inverse, from 52 random bits each.

    A half is added to the last bit, so no number is 0 or 1. That makes 53 bits, which a double holds exactly.
    """
    drawn: npt.NDArray[Any] = np.frombuffer(os.urandom(count * WORD_BYTES), dtype=np.uint64) >> np.uint64(12)
    found: Array = scipy.special.ndtri((drawn.astype(np.float64) + 0.5) * 2.0**-52)
    return found
