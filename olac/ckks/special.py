"""The special primes of the vector engine, and which of them a key has.

Key switching lifts a digit, a product of primes of the chain, to the modulus P. OpenFHE takes primes of 60 bits for P.
The vector engine multiplies doubles, so its primes have at most 46 bits. A key that is used up to a level holds the
primes of the chain up to that level, and as many special primes as its largest digit needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from olac.ckks.parameters import DIGIT_HEAD_ROOM_BITS, Parameters
from olac.ckks.primes import step_to_prime
from olac.ckks.sizes import SEED_BYTES, residue_bytes

MOST_SPECIAL_BITS = 46
ONE_BYTE, TWO_BYTES = 255 << 32, 65535 << 32
"""In memory a residue of a key is 32 bits and a high part: of one byte for primes below the first number, of two bytes
if all primes of the ring are below the second, otherwise of four."""
HEAD_ROOM_BITS = 16


@dataclass(frozen=True)
class KeyShape:
    """What a key of the vector engine holds.

    Attributes:
        limbs: primes q_0 ... of the chain.
        digits: digits that these primes are grouped into, `Parameters.digit_limbs` in each but the last.
        specials: the first of `vector_special_primes`.
    """

    limbs: int
    digits: int
    specials: int

    @property
    def primes(self) -> int:
        """Primes of each polynomial."""
        return self.limbs + self.specials


def _bits(parameters: Parameters, limbs: int) -> int:
    """Bits of P for the first limbs.

    Key switching adds noise of about sqrt(N) errors times the quotient of a digit and P. With `HEAD_ROOM_BITS` that is
    less than a rounding error. If they made P larger than OpenFHE's, for which security was checked, there are fewer.
    """
    size, primes = parameters.digit_limbs, parameters.primes[:limbs]
    digit = max(math.prod(primes[i : i + size]).bit_length() for i in range(0, limbs, size))
    most = math.prod(parameters.special_primes).bit_length() - 1
    return max(digit + DIGIT_HEAD_ROOM_BITS, min(digit + HEAD_ROOM_BITS, most))


@lru_cache(maxsize=1024)
def vector_special_primes(parameters: Parameters) -> tuple[int, ...]:
    """The primes of P: as few of at most 46 bits as the largest digit needs, all of equally many bits."""
    need = _bits(parameters, parameters.limbs)
    count = -(-need // MOST_SPECIAL_BITS)
    order = 2 * parameters.ring_dimension
    taken = {*parameters.primes, *parameters.encapsulation_primes}
    out: list[int] = []
    p = (1 << -(-need // count)) + 1
    while len(out) < count:
        p = step_to_prime(p, -order)
        if p not in taken:
            out.append(p)
    return tuple(out)


@lru_cache(maxsize=4096)
def key_shape(parameters: Parameters, level: int) -> KeyShape:
    """The shape of a key that is used up to a level."""
    limbs = level + 1
    digits = -(-limbs // parameters.digit_limbs)
    need, product = _bits(parameters, limbs), 1
    for count, prime in enumerate(vector_special_primes(parameters), 1):
        product *= prime
        if product.bit_length() >= need:
            return KeyShape(limbs, digits, count)
    return KeyShape(limbs, digits, len(vector_special_primes(parameters)))


def from_sparse_shape(parameters: Parameters, level: int) -> KeyShape:
    """The shape of a key from the sparser secret of bootstraps to the usual one, for raising to a level.

    What it multiplies is less than q_0 in size. So it is a digit by itself, and P need not be larger than for q_0.
    """
    product, primes = 1, vector_special_primes(parameters)
    for count, prime in enumerate(primes, 1):
        product *= prime
        if product.bit_length() >= parameters.primes[0].bit_length() + HEAD_ROOM_BITS:
            return KeyShape(level + 1, 1, count)
    return KeyShape(level + 1, 1, len(primes))


def primes_of(parameters: Parameters, shape: KeyShape) -> tuple[int, ...]:
    """The primes of each polynomial of a key."""
    return (*parameters.primes[: shape.limbs], *vector_special_primes(parameters)[: shape.specials])


def bytes_of_high(prime: int, largest: int) -> int:
    """Bytes of the high part of a residue of a key, in a ring whose largest prime is given."""
    return 1 if prime < ONE_BYTE else 2 if largest < TWO_BYTES else 4


def held_residues_bytes(parameters: Parameters, primes: Sequence[int]) -> int:
    """One residue modulo each of some primes of the ring, packed, in memory."""
    largest = max(*parameters.primes, *vector_special_primes(parameters))
    return sum(4 + bytes_of_high(prime, largest) for prime in primes)


def held_key_bytes(parameters: Parameters, shape: KeyShape) -> int:
    """A key in memory."""
    return 2 * shape.digits * held_residues_bytes(parameters, primes_of(parameters, shape)) << parameters.log_ring


def file_key_bytes(parameters: Parameters, shape: KeyShape) -> int:
    """The same key in a file, where one half of it is a seed."""
    residues = sum(residue_bytes(prime) for prime in primes_of(parameters, shape))
    return SEED_BYTES + (shape.digits * residues << parameters.log_ring)
