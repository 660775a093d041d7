"""Encryption with a public key in the engine's own code, without OpenFHE and without a secret.

A public key (b, a) is an encryption of zero under the secret s, at all primes: b = -a s + e. A ciphertext of m is
(b u + e_0 + m, a u + e_1), with a fresh ternary u and fresh errors (Lyubashevsky, Peikert and Regev, "On Ideal
Lattices and Learning with Errors over Rings", EUROCRYPT 2010). Its noise is e u + e_0 + e_1 s: some sqrt(4 N / 3) times
that of an encryption with the secret.

Nothing here runs in constant time.
"""

from __future__ import annotations

import numpy as np

from olac.backends.base import fresh_slots
from olac.backends.vector.encoding import coefficients as encoded
from olac.backends.vector.randomness import errors
from olac.backends.vector.residues import add, multiply, residues
from olac.backends.vector.ring import Ring
from olac.backends.vector.secret import uniform_ternary
from olac.ckks.words import Words, check_words
from olac.system.arrays import Array


class OwnPublic:
    """A public key.

    Args:
        ring: of the parameters.
        words: of the key, shape (2, limbs, N).

    Raises:
        ArtifactError: words that are no residues.
    """

    def __init__(self, ring: Ring, words: Words) -> None:
        self._ring, self._parameters = ring, ring.parameters
        check_words(words.reshape(-1, ring.N), ring.parameters.primes * 2, ring.N)
        self._b, self._a = words

    def encrypt(self, slots: Array, level: int) -> Words:
        """See `olac.backends.vector.secret.SecretKey.encrypt`."""
        own, primes, scale = self._ring, self._parameters.primes[: level + 1], self._parameters.scale(level)
        message = own.values(encoded(fresh_slots(self._parameters, slots, level, scale), scale), own.ids(level + 1))
        drawn = (uniform_ternary(own.N), errors(own.N), errors(own.N))
        out = np.empty((2, level + 1, own.N), dtype=np.uint64)
        small = zip(*(own.transform(one, primes) for one in drawn), strict=True)
        for i, (prime, parts) in enumerate(zip(primes, small, strict=True)):
            u, first, second = (residues(part, prime) for part in parts)
            hidden = add(first, residues(message[i][own.order], prime), prime)
            out[0, i] = add(multiply(self._b[i], u, prime), hidden, prime)
            out[1, i] = add(multiply(self._a[i], u, prime), second, prime)
        return out
