"""Makes the evaluation keys of a secret."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from olac.backends.vector.key_kernels import masked
from olac.backends.vector.keys import KeyForm, Limbs, encapsulation_form, from_sparse_form, switching_form
from olac.backends.vector.randomness import Coefficients, errors, new_seed, sparse_ternary, uniform
from olac.backends.vector.residues import Values, centred, multiply, residues
from olac.ckks.parameters import ENCAPSULATION_WEIGHT, Parameters
from olac.ckks.words import Words


class Ring(Protocol):
    """What keys need of the engine's kernels."""

    def transform(self, coefficients: npt.NDArray[np.integer[Any]], primes: Sequence[int]) -> Iterable[Values]:
        """The values of a polynomial of small integer coefficients modulo each prime, all of shape (N,).

        Each is needed until the next one is asked for.
        """


class Secret:
    """A secret and its values modulo all primes that keys are made for.

    Args:
        ring: of the engine.
        coefficients: shape (N,), each -1, 0 or 1.
        together: primes whose values are all found when the first of them is asked for, which takes less time.
    """

    def __init__(self, ring: Ring, coefficients: Coefficients, together: Sequence[int] = ()) -> None:
        self.ring, self._together = ring, together
        self.coefficients = coefficients
        self._values: dict[int, Words] = {}

    def values(self, prime: int) -> Words:
        """Its residues modulo a prime, shape (N,)."""
        if prime not in self._values:
            primes = self._together if prime in self._together else (prime,)
            for one, found in zip(primes, self.ring.transform(self.coefficients, primes), strict=True):
                self._values[one] = residues(found, one)
        return self._values[prime]

    def square(self, prime: int) -> Words:
        """Those of its square."""
        return multiply(self.values(prime), self.values(prime), prime)


@dataclass(frozen=True)
class NewKey:
    """A fresh key from one secret to another, with a seed and errors of its own.

    Attributes:
        form: its limbs and digits.
        seed: of all a_g.
        limbs: of the key, each made when it is asked for, once.
    """

    form: KeyForm
    seed: bytes
    limbs: Limbs


def new_key(form: KeyForm, ring: Ring, target: Callable[[int], Words], secret: Callable[[int], Words]) -> NewKey:
    """A fresh key.

    Args:
        target: the residues of the old secret s', shape (N,), modulo a prime of the chain.
        secret: those of the new secret s, modulo any prime of the form.
    """
    seed = new_seed()
    return NewKey(form, seed, _limbs(form, seed, ring, target, secret))


def _limbs(
    form: KeyForm, seed: bytes, ring: Ring, target: Callable[[int], Words], secret: Callable[[int], Words]
) -> Limbs:
    for digit in range(form.digits):
        noise = ring.transform(errors(form.length), form.primes)
        for limb, (prime, error) in enumerate(zip(form.primes, noise, strict=True)):
            a, own = uniform(seed, digit, prime, form.length), limb < form.limbs and limb // form.digit_limbs == digit
            s, b = secret(prime), np.empty(form.length, dtype=np.uint64)
            masked(a, error, s, target(prime) if own else s, centred(form.factor, prime), own, prime, 1.0 / prime, b)
            yield digit, limb, a, b


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

    def relinearisation(self, level: int) -> NewKey:
        """From s^2 to s."""
        return new_key(switching_form(self._parameters, level), self._ring, self._secret.square, self._secret.values)

    def rotation(self, step: int, level: int) -> NewKey:
        """From s to s(X^(1/g)), for the g of a rotation step or of conjugation (`automorphism_index`).

        The automorphism of g then leads back to s. It comes last, so that the digits of a ciphertext that is rotated
        by several steps are the same for all of them.
        """
        form = switching_form(self._parameters, level)
        return new_key(form, self._ring, self._secret.values, self._moved(step, form).values)

    def _moved(self, step: int, form: KeyForm) -> Secret:
        """s(X^(1/g)), for keys of a form."""
        inverse = pow(automorphism_index(self._parameters, step), -1, 2 * self._parameters.ring_dimension)
        return Secret(self._ring, automorphism(self._secret.coefficients, inverse), form.primes)

    def encapsulation(self, steps: Iterable[int], level: int) -> Iterator[NewKey]:
        """From s to a fresh secret t of `ENCAPSULATION_WEIGHT`, over q_0 alone; then for each rotation step, back.

        The key back of a step is from t to s(X^(1/g)), as that of `rotation` is from s. It is for raising to `level`.

        Nothing else is ever encrypted under the sparser secret, and it is forgotten here (Bossuat, Troncoso-Pastoriza
        and Hubaux, "Bootstrapping for Approximate Homomorphic Encryption with Negligible Failure-Probability by Using
        Sparse-Secret Encapsulation", ACNS 2022).
        """
        sparser = Secret(self._ring, sparse_ternary(self._parameters.ring_dimension, ENCAPSULATION_WEIGHT))
        yield new_key(encapsulation_form(self._parameters), self._ring, self._secret.values, sparser.values)
        form = from_sparse_form(self._parameters, level)
        for step in steps:
            yield new_key(form, self._ring, sparser.values, self._moved(step, form).values)


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
