"""Key-switching keys, which turn a ciphertext under one secret into one under another: their limbs and their bytes.

A key holds, for each digit g of the chain, an encryption of P times the old secret s' under the new one s (hybrid key
switching: Han and Ki, "Better Bootstrapping for Approximate Homomorphic Encryption", CT-RSA 2020):

    b_g = -a_g s + e_g + P s' [limb in digit g]    modulo each limb of the key,

with a_g uniform and e_g an error of its own. P is the product of the special primes. A key that is used up to level l
holds q_0 ... q_l, as many special primes as their largest digit needs, and only the digits that these limbs need.

As bytes, a key is the public seed of all its a_g, and then each b_g, limb by limb, packed. The residues are values in
bit-reversed order, as those of ciphertexts are (`olac.ckks.words`), whatever an engine does in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from olac.backends.session import Piece
from olac.backends.vector.packing import pack, residue_bytes, unpack
from olac.backends.vector.randomness import SEED_BYTES, uniform
from olac.ckks.parameters import Parameters
from olac.ckks.special import from_sparse_shape, key_shape, primes_of
from olac.ckks.vector_bootstrapping import vector_bootstrap_model
from olac.ckks.words import Words
from olac.errors import ArtifactError, SecurityError

Limbs = Iterator[tuple[int, int, Words, Words]]
"""(digit, limb, a_g, b_g) for each limb of each digit of a key, in the order of its bytes; residues of shape (N,)."""


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
    shape = key_shape(parameters, level)
    return KeyForm(parameters.ring_dimension, primes_of(parameters, shape), shape.specials, parameters.digit_limbs)


def from_sparse_form(parameters: Parameters, level: int) -> KeyForm:
    """Of a key from the sparser secret of bootstraps, for raising to a level: all limbs are one digit."""
    shape = from_sparse_shape(parameters, level)
    return KeyForm(parameters.ring_dimension, primes_of(parameters, shape), shape.specials, shape.limbs)


def encapsulation_form(parameters: Parameters) -> KeyForm:
    """Of the key into the sparser secret of bootstraps: one digit, q_0, at a modulus of its own."""
    primes = parameters.encapsulation_primes
    return KeyForm(parameters.ring_dimension, primes, len(primes) - 1, 1)


def key_forms(
    parameters: Parameters, steps: Mapping[int, int], relinearise: int | None, bootstraps: bool = True
) -> list[KeyForm]:
    """The form of each key of a program, in the order of `Keys.blocks`.

    A key reaches as far as kernels or bootstraps use it. Of the keys that only bootstraps use, that of conjugation is
    for the whole chain: kernels may conjugate at any level, and lists of steps leave conjugation out.

    Args:
        steps, relinearise, bootstraps: as in `Engine.key_sizes`.
    """
    model = vector_bootstrap_model(parameters)
    levels = [] if relinearise is None else [max(relinearise, model.product_level)]
    levels += [max(level, model.step_levels.get(step, 0)) for step, level in steps.items()]
    forms = [switching_form(parameters, level) for level in levels]
    if bootstraps and parameters.bootstrapping is not None:
        back = [from_sparse_form(parameters, model.raised_level)] * len(model.from_sparse_steps)
        forms += [encapsulation_form(parameters), *back, switching_form(parameters, parameters.depth)]
    return forms


def check_security(parameters: Parameters) -> None:
    """Raise `SecurityError` if a key would have a larger modulus than the parameters were checked for.

    The modulus of each key divides that of a key for the whole chain, but for the key into the sparser secret, which
    `Parameters.check_security` checks. Only that one is under the sparser secret. The special primes are not those of
    OpenFHE that the parameters count.
    """
    whole = round(switching_form(parameters, parameters.depth).log_modulus, 2)
    most = round(max(float(parameters.security_bound), parameters.log_qp), 2)
    if parameters.security and whole > most:
        raise SecurityError(
            f"keys of the vector engine have a modulus of {math.ceil(round(whole, 1))} bits at ring dimension "
            f"{parameters.ring_dimension}, {parameters.security}-bit security allows {math.floor(most)}. Run the "
            "program on another engine, or compile it with fewer levels."
        )


# Bytes ---------------------------------------------------------------------------------------------------------------


def write_key(form: KeyForm, seed: bytes, b: Callable[[int, int], Words]) -> Iterator[Piece]:
    """The bytes of a key, in pieces.

    Args:
        seed: of all a_g.
        b: the residues of b_g, shape (N,), by digit and limb.
    """
    yield seed
    for digit in range(form.digits):
        for limb, prime in enumerate(form.primes):
            yield pack(b(digit, limb), prime)


def read_limbs(form: KeyForm, pieces: Iterable[Piece]) -> Limbs:
    """The limbs of a key from its bytes; it holds one at a time.

    Args:
        form: of the key.
        pieces: its bytes, in pieces of any sizes, each valid until the next is asked for.

    Raises:
        ArtifactError: residues that are not less than their prime or not uniform, or another number of bytes; whatever
            the iteration over the pieces raises. Only at its end is it known that the key is whole.
    """
    taken = _Bytes(pieces)
    seed = bytes(taken.next(SEED_BYTES))
    for digit in range(form.digits):
        for limb, (prime, size) in enumerate(zip(form.primes, form.limb_bytes, strict=True)):
            b = unpack(taken.next(size), prime)
            yield digit, limb, uniform(seed, digit, prime, form.length), b
    taken.end()


class _Bytes:
    """Pieces of bytes as one stream. A piece need not be valid after the next is asked for."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
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
            view = (piece.data if isinstance(piece, np.ndarray) else memoryview(piece)).cast("B")
            self._rest = view[size - len(out) :]
            out += view[: size - len(out)]
        return memoryview(out)

    def end(self) -> None:
        """All pieces are used up."""
        if len(self._rest) or any(len(piece) for piece in self._pieces):
            raise ArtifactError("a key has more bytes than expected")
