"""CKKS parameters: rings, modulus chains, and how many bits of security they give.

The primes are chosen exactly as OpenFHE 1.6 chooses them, so that scales are exact at compile time and compiling needs
no OpenFHE. A test compares the two if OpenFHE is installed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

from olac.ckks.primes import (
    FIXED,
    FLEXIBLE,
    MOST_FIRST_BITS,
    MOST_SCALE_BITS,
    TECHNIQUES,
    flexible_scales,
    is_prime,
    modulus_chain,
    step_to_prime,
)
from olac.ckks.security import (
    EARLIER_SECURITY_BOUNDS,
    ENCAPSULATION_BOUNDS,
    SECURITY_BOUNDS,
    SPARSE_SECURITY_BOUNDS,
    security_within,
)
from olac.errors import SecurityError

SPARSE_WEIGHT, ENCAPSULATION_WEIGHT = 192, 32
"""Hamming weights of the secret of programs with bootstraps, and of the sparser one within a bootstrap."""

BOOTSTRAP_SCALE_BITS, BOOTSTRAP_FIRST_BITS = 37, 41
"""Usual bits of programs with bootstraps; the difference is the correction factor. `BOOTSTRAP_NOISE` has these."""
MOST_DEPTH = 100
MOST_DIGITS = 6
"""More digits allow a longer chain under the same bound, but make keys larger; beyond this, keys are too large."""
SPECIAL_PRIME_BITS = 60
ENCAPSULATION_PRIME_BITS = 33
DIGIT_HEAD_ROOM_BITS = 4
ESTIMATE_HEAD_ROOM_BITS = 5  # OpenFHE's own check is a bit stricter than the chain that it makes.


OPENFHE_RECIPE: Final = "openfhe"
VECTOR_RECIPE: Final = "vector"


@dataclass(frozen=True)
class Recipe:
    """The levels that bootstraps of one kind take, whatever their budget.

    Attributes:
        sine: levels of the modular reduction for a sparse secret.
        spare: levels that the transform to coefficients leaves unused below it.
    """

    sine: int
    spare: int


RECIPES: Mapping[str, Recipe] = MappingProxyType({OPENFHE_RECIPE: Recipe(10, 1), VECTOR_RECIPE: Recipe(8, 0)})
"""Bootstraps with OpenFHE's levels, which every engine runs, and with those of the vector engine, which it runs alone.
"""


@dataclass(frozen=True)
class Bootstrapping:
    """How ciphertexts get levels back: a bootstrap with the slots-to-coefficients transform first.

    The secret is sparse (Hamming weight 192) and encapsulated: inside the bootstrap a still sparser one is used.

    Attributes:
        rest: levels of the chain that bootstrapping itself does not take.
        budget: levels of the transform from coefficients to slots and of the one back.
        correction: bits by which values are scaled down within the sine; more of them make the sine more exact and the
            noise larger.
        log_slots: log2 of the slots that a bootstrap works on, after which the slots of its operand must repeat; None
            for all slots of the ring. Fewer take less time and memory.
        recipe: of `RECIPES`: whose levels a bootstrap takes.
    """

    rest: int
    budget: tuple[int, int] = (3, 3)
    correction: int = 8
    log_slots: int | None = None
    recipe: str = OPENFHE_RECIPE

    def __post_init__(self) -> None:
        if self.rest < 1:
            raise ValueError(f"bootstrapping leaves {self.rest} levels; take at least 1")
        if len(self.budget) != 2 or not all(1 <= part <= 5 for part in self.budget):
            raise ValueError(f"a level budget of {self.budget}: take two numbers from 1 to 5")
        if not 1 <= self.correction <= 15:
            raise ValueError(f"a correction factor of {self.correction} is outside 1 ... 15")
        if self.log_slots is not None and self.log_slots < max(self.budget):
            raise ValueError(f"2^{self.log_slots} slots with a level budget of {self.budget}: take more slots")
        if self.recipe not in RECIPES:
            raise ValueError(f"a bootstrap by the recipe {self.recipe!r}: it is one of {', '.join(RECIPES)}")

    @property
    def depth(self) -> int:
        """Levels of the whole chain."""
        return self.rest + RECIPES[self.recipe].sine + sum(self.budget)

    @property
    def input_level(self) -> int:
        """The least level that a ciphertext may have before a bootstrap: slots go to coefficients first."""
        return self.budget[1] + RECIPES[self.recipe].spare

    @property
    def output_level(self) -> int:
        """The level after a bootstrap and a rescale."""
        return self.rest + self.budget[1]


@dataclass(frozen=True)
class Parameters:
    """One set of CKKS parameters.

    Attributes:
        log_ring: log2 of the ring dimension N; a ciphertext has N/2 slots.
        depth: levels of a fresh ciphertext, which has depth + 1 limbs.
        scale_bits: bits of the scale and of every prime but the first.
        first_bits: bits of the first prime; first_bits - scale_bits - 1 bound the integer part of results.
        digits: digits of hybrid key switching (dnum).
        technique: OpenFHE's scaling technique, FIXEDMANUAL or FLEXIBLEAUTO.
        security: the level of security asked for, 128, 192 or 256; 0 asks for none.
        bootstrapping: how bootstraps are set up, for which the secret is sparse; None if there are none.
    """

    log_ring: int
    depth: int
    scale_bits: int
    first_bits: int
    digits: int
    technique: str = FIXED
    security: int = 128
    bootstrapping: Bootstrapping | None = None

    def __post_init__(self) -> None:
        if self.bootstrapping is not None:
            if self.technique != FLEXIBLE:
                raise ValueError(f"bootstrapping loses its precision in {self.technique}: take {FLEXIBLE}")
            if self.bootstrapping.depth != self.depth:
                raise ValueError(f"a depth of {self.depth} with bootstrapping for {self.bootstrapping.depth} levels")
            if self.first_bits - self.scale_bits > self.bootstrapping.correction:
                raise ValueError("the first prime has more bits above the scale than bootstrapping corrects")
            if (self.bootstrapping.log_slots or 0) >= self.log_ring - 1:
                raise ValueError(
                    f"bootstrapping of 2^{self.bootstrapping.log_slots} slots at ring 2^{self.log_ring}: take fewer "
                    f"than 2^{self.log_ring - 1}, or None for all"
                )
        if self.technique not in TECHNIQUES:
            raise ValueError(f"scaling technique {self.technique!r} is not one of {', '.join(TECHNIQUES)}")
        if not 10 <= self.log_ring <= 17:
            raise ValueError(f"log2 of the ring dimension {self.log_ring} is outside 10 ... 17")
        scaled = self.log_ring + 4 <= self.scale_bits <= MOST_SCALE_BITS
        if not (scaled and self.scale_bits <= self.first_bits <= MOST_FIRST_BITS):
            raise ValueError(f"scale of {self.scale_bits} bits with a first prime of {self.first_bits} bits")
        if not 0 <= self.depth <= MOST_DEPTH:
            raise ValueError(f"depth {self.depth} is outside 0 ... {MOST_DEPTH}")
        if not self.valid_digits(self.depth, self.digits):
            raise ValueError(f"{self.digits} digits do not divide {self.depth + 1} limbs")
        if self.security not in (0, *SECURITY_BOUNDS):
            raise ValueError(f"security {self.security} is not one of 0, {', '.join(map(str, SECURITY_BOUNDS))}")

    @staticmethod
    def valid_digits(depth: int, digits: int) -> bool:
        """Whether every digit gets at least one prime."""
        limbs = depth + 1
        return 1 <= digits <= limbs and limbs - -(-limbs // digits) * (digits - 1) > 0

    def fields(self) -> dict[str, Any]:
        """The fields that files hold and fingerprints cover, as plain data.

        OpenFHE's recipe is left out: it is the one of files that are older than recipes.
        """
        found = asdict(self)
        if self.bootstrapping is not None and self.bootstrapping.recipe == OPENFHE_RECIPE:
            del found["bootstrapping"]["recipe"]
        return found

    @property
    def ring_dimension(self) -> int:
        """N."""
        return 1 << self.log_ring

    @property
    def conjugation_step(self) -> int:
        """The step that stands for conjugation in lists of rotation steps: the number of slots, which moves nothing.

        Programs with bootstraps always have the key of conjugation, and their lists of steps leave it out.
        """
        return self.slots

    @property
    def slots(self) -> int:
        """N / 2."""
        return 1 << (self.log_ring - 1)

    @property
    def log_bootstrap_slots(self) -> int:
        """log2 of the slots that a bootstrap works on, after which the slots of its operand repeat."""
        setup = self.bootstrapping
        return self.log_ring - 1 if setup is None or setup.log_slots is None else setup.log_slots

    @property
    def limbs(self) -> int:
        """Primes of a fresh ciphertext."""
        return self.depth + 1

    @property
    def digit_limbs(self) -> int:
        """Primes of one key-switching digit."""
        return -(-self.limbs // self.digits)

    @cached_property
    def primes(self) -> tuple[int, ...]:
        """q_0 ... q_depth; a ciphertext at level l holds q_0 ... q_l."""
        return modulus_chain(self.log_ring, self.depth, self.scale_bits, self.first_bits, self.technique)

    @cached_property
    def special_primes(self) -> tuple[int, ...]:
        """The primes of P, into which key switching lifts a digit."""
        size, primes = self.digit_limbs, self.primes
        bits = max(math.prod(primes[i : i + size]).bit_length() for i in range(0, len(primes), size))
        order, out = 2 * self.ring_dimension, []
        first = (1 << SPECIAL_PRIME_BITS) + 1
        p = first if is_prime(first) else step_to_prime(first, order)
        for _ in range(-(-(bits + DIGIT_HEAD_ROOM_BITS) // SPECIAL_PRIME_BITS)):
            p = step_to_prime(p, -order)
            while p in primes:
                p = step_to_prime(p, -order)
            out.append(p)
        return tuple(out)

    @cached_property
    def encapsulation_primes(self) -> tuple[int, ...]:
        """The modulus of the key into the sparser secret within a bootstrap: q_0 and two primes of 33 bits."""
        order = 2 * self.ring_dimension
        first = step_to_prime((1 << ENCAPSULATION_PRIME_BITS) + 1, -order)
        return self.primes[0], first, step_to_prime(first, -order)

    @cached_property
    def log_qp(self) -> float:
        """log2(Q P), which together with the ring dimension and the secret determines the security."""
        return math.log2(math.prod(self.primes) * math.prod(self.special_primes))

    @cached_property
    def log_qp_bound_use(self) -> int:
        """The log2(Q P) that OpenFHE's check counts, never less than the real one."""
        q = self.first_bits + self.depth * self.scale_bits
        q += q != SPECIAL_PRIME_BITS
        sizes = [self.first_bits] + [self.scale_bits] * self.depth
        step = self.digit_limbs
        digit = max(sum(sizes[i : i + step]) for i in range(0, len(sizes), step)) + ESTIMATE_HEAD_ROOM_BITS
        return max(q + SPECIAL_PRIME_BITS * -(-digit // SPECIAL_PRIME_BITS), math.ceil(self.log_qp))

    @cached_property
    def log_encapsulation(self) -> float:
        """log2 of the modulus of the key into the sparser secret; 0 without bootstraps, as only these use it."""
        return 0.0 if self.bootstrapping is None else math.log2(math.prod(self.encapsulation_primes))

    @property
    def security_bits(self) -> float:
        """Bits of security for the secret that is used: a uniform ternary one, or a sparse one with bootstrapping.

        Interpolated in 1 / log2(QP) between the points of 128, 192 and 256 bits at this ring and beyond them, so that
        no figure is above that of the lattice estimator. At most 256 bits are claimed, and with bootstrapping at most
        128. Programs that were compiled by the bounds of 2018 may have a little less than 128.
        """
        return self.security_bits_of(self.log_qp)

    def security_bits_of(self, log_qp: float) -> float:
        """`security_bits` if P is another engine's, so that log2(QP) is `log_qp`."""
        if self.bootstrapping is not None:
            return min(
                security_within(SPARSE_SECURITY_BOUNDS, self.log_ring, log_qp),
                security_within(ENCAPSULATION_BOUNDS, self.log_ring, self.log_encapsulation),
            )
        return security_within(SECURITY_BOUNDS, self.log_ring, log_qp)

    @property
    def security_bound(self) -> int:
        """The largest log2(QP) at this ring for the security and the secret; 0 if none is known."""
        table = SECURITY_BOUNDS if self.bootstrapping is None else SPARSE_SECURITY_BOUNDS
        return table.get(self.security, {}).get(self.log_ring, 0)

    @property
    def secure(self) -> bool:
        """Whether `check_security` raises nothing."""
        return self._security_fault(earlier=False) is None

    def check_security(self, *, earlier: bool = False) -> None:
        """Raise `SecurityError` if a modulus exceeds what the asked-for security allows at this ring.

        Args:
            earlier: check log2(QP) alone, by the bounds that earlier versions compiled programs by. Such programs still
                run.
        """
        fault = self._security_fault(earlier)
        if fault is not None:
            raise SecurityError(fault)

    def _security_fault(self, earlier: bool) -> str | None:
        if self.security == 0:
            return None
        bound, used = self.security_bound, round(self.log_qp, 2)  # primes differ a little from powers of two
        if self.bootstrapping is None:
            accepted = EARLIER_SECURITY_BOUNDS[self.security].get(self.log_ring, 0)
            if earlier or used <= bound:  # what OpenFHE counts must be within what OpenFHE accepts, too
                bound, used = accepted, self.log_qp_bound_use
        else:
            used = self.log_qp_bound_use
        advice = "Take a larger ring, fewer levels or smaller scales; insecure=True waives the check."
        if used > bound:
            return (
                f"log2(QP) = {math.ceil(used)} at ring dimension {self.ring_dimension} exceeds the {bound} bits "
                f"that {self.security}-bit security allows"
                + (" with a sparse secret" if self.bootstrapping else "")
                + f" (about {math.floor(self.security_bits)} bits are left). {advice}"
            )
        most = ENCAPSULATION_BOUNDS.get(self.security, {}).get(self.log_ring, 0)
        if round(self.log_encapsulation, 2) > most and not earlier:
            return (
                f"the key into the sparser secret of bootstraps has a modulus of {math.ceil(self.log_encapsulation)} "
                f"bits at ring dimension {self.ring_dimension}, {self.security}-bit security allows {most}. "
                "Take a smaller first prime; insecure=True waives the check."
            )
        return None

    def scale(self, level: int) -> float:
        """The canonical exact scale of a ciphertext of noise degree 1 at a level."""
        if self.technique == FIXED:
            return float(1 << self.scale_bits)
        return self._flexible_scales[level]

    @cached_property
    def _flexible_scales(self) -> tuple[float, ...]:
        return flexible_scales(self.primes)

    def describe(self) -> str:
        """One line for people."""
        security = f"{math.floor(self.security_bits)}-bit security" if self.security else "NOT SECURE (asked for)"
        if self.bootstrapping is not None:
            setup = self.bootstrapping
            security += (
                f", sparse secret held to log2(QP) {self.security_bound}" if self.security else ", sparse secret"
            ) + f", bootstraps to level {setup.output_level} in {setup.budget[0]} + {setup.budget[1]} levels"
            security += "" if setup.log_slots is None else f" on 2^{setup.log_slots} slots"
            security += "" if setup.recipe == OPENFHE_RECIPE else f" by the {setup.recipe} engine's recipe"
        return (
            f"ring 2^{self.log_ring}, {self.depth} levels of {self.scale_bits} bits, first prime {self.first_bits} "
            f"bits, {self.digits} digits, log2(QP) {self.log_qp:.0f}, {self.technique}, {security}"
        )
