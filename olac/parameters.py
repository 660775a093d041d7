"""CKKS parameters: rings, modulus chains, and what they are worth in bits of security.

The primes are chosen here exactly as OpenFHE 1.6 chooses them, so that scales are exact at compile time and compiling
needs no OpenFHE; a test on a machine that has it holds the two equal.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

from olac.errors import InfeasibleError, SecurityError

FIXED = "FIXEDMANUAL"
FLEXIBLE = "FLEXIBLEAUTO"
TECHNIQUES = (FIXED, FLEXIBLE)

SECURITY_BOUNDS: dict[int, dict[int, int]] = {
    128: {10: 26, 11: 53, 12: 106, 13: 214, 14: 430, 15: 868, 16: 1747, 17: 3515},
    192: {11: 36, 12: 73, 13: 147, 14: 297, 15: 595, 16: 1199, 17: 2405},
    256: {11: 27, 12: 56, 13: 114, 14: 230, 15: 462, 16: 929, 17: 1864},
}
"""Largest log2(QP) by security level and log2 of the ring, for uniform ternary secrets and classical attackers.

Table 5.2 of "Security Guidelines for Implementing Homomorphic Encryption" (Bossuat et al., ePrint 2024/463), a little
lower where the lattice estimator gave less than the level: at 2^15 for 192 bits and at 2^17.
"""

EARLIER_SECURITY_BOUNDS: dict[int, dict[int, int]] = {
    128: {12: 109, 13: 218, 14: 438, 15: 881, 16: 1747, 17: 3523},
    192: {12: 75, 13: 152, 14: 305, 15: 611, 16: 1199, 17: 2411},
    256: {12: 58, 13: 118, 14: 237, 15: 476, 16: 929, 17: 1866},
}
"""The table of the Homomorphic Encryption Standard of 2018, as OpenFHE extends it to 2^17 and holds contexts to it.

Programs of earlier versions were held to it. Newer attacks cost it some two bits of 128, and eight of 256.
"""

INTERPOLATION_MARGIN = 1.0
"""Bits that figures between and beyond the bounds are below the straight line, from which costs of attacks bend."""

SPARSE_WEIGHT, ENCAPSULATION_WEIGHT = 192, 32
"""Hamming weights of the secret of programs with bootstraps, and of the sparser one within a bootstrap."""

SPARSE_SECURITY_BOUNDS: dict[int, dict[int, int]] = {128: {15: 768, 16: 1553}}
"""The same for sparse ternary secrets of Hamming weight 192, as programs with bootstraps use them.

The dense table is not meant for these. No standard has a table for them; these are the largest log2(QP) of the
published 128-bit bootstrapping sets with this weight (Lattigo's), and a ring without an entry is refused.
"""

ENCAPSULATION_BOUNDS: dict[int, dict[int, int]] = {128: {15: 128, 16: 128}}
"""Largest log2 of the modulus of the key into the sparser secret of bootstraps, which has a Hamming weight of 32."""

BOOTSTRAP_SCALE_BITS, BOOTSTRAP_FIRST_BITS = 37, 41
"""Of programs with bootstraps: the difference is the correction factor, and `BOOTSTRAP_NOISE` is what they come to."""
MOST_DEPTH = 100
MOST_DIGITS = 6
"""More digits allow a longer chain under the same bound, and make keys larger; beyond these they are too large."""
SPECIAL_PRIME_BITS = 60
ENCAPSULATION_PRIME_BITS = 33
DIGIT_HEAD_ROOM_BITS = 4
ESTIMATE_HEAD_ROOM_BITS = 5  # OpenFHE's own acceptance check is a bit stricter than the chain it then makes.
WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)  # decide primality below 3.3e24


def is_prime(n: int) -> bool:
    """Deterministic Miller-Rabin for n below 3.3e24."""
    if n < 2:
        return False
    for p in WITNESSES:
        if n % p == 0:
            return n == p
    d, s = n - 1, 0
    while d % 2 == 0:
        d, s = d // 2, s + 1
    for a in WITNESSES:
        x = pow(a, d, n)
        if x in (1, n - 1):
            continue
        for _ in range(s - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def _step_to_prime(q: int, step: int) -> int:
    q += step
    while not is_prime(q):
        q += step
        if not abs(step) < q < 1 << 62:
            raise InfeasibleError(
                f"there are not enough primes 1 (mod {abs(step)}) for these sizes: take a larger scale"
            )
    return q


def _flexible_middle(primes: list[int], order: int) -> None:
    """Primes that keep the scale near its first value although each product squares the deviation."""
    scale = float(primes[-1])
    for count, i in enumerate(range(len(primes) - 2, 0, -1)):
        scale = scale * scale / float(primes[i + 1])
        rounded = math.floor(scale + 0.5)
        step = -order if count % 2 == 0 else order
        candidate = _step_to_prime(rounded - rounded % order + 1 + step, step)
        while candidate in primes[i + 1 :]:
            candidate = _step_to_prime(candidate, step)
        primes[i] = candidate


@lru_cache(maxsize=256)
def modulus_chain(log_ring: int, depth: int, scale_bits: int, first_bits: int, technique: str) -> tuple[int, ...]:
    """The primes q_0 ... q_depth; q_0 stays to the end, q_depth is dropped by the first rescale."""
    order = 2 << log_ring
    primes = [0] * (depth + 1)
    first = (1 << scale_bits) + 1
    primes[-1] = first if is_prime(first) else _step_to_prime(first, order)
    if technique == FIXED:
        below = above = primes[-1]
        for count, i in enumerate(range(depth - 1, 0, -1)):
            if count % 2 == 0:
                below = primes[i] = _step_to_prime(below, -order)
            else:
                above = primes[i] = _step_to_prime(above, order)
    else:
        _flexible_middle(primes, order)
    highest = max(primes[1:]) if depth else primes[-1]
    if first_bits == scale_bits:
        primes[0] = _step_to_prime(highest, order)
    else:
        primes[0] = _step_to_prime((1 << first_bits) + 1, -order)
        if primes[0] in primes[1:]:
            primes[0] = _step_to_prime(highest, order)
    return tuple(primes)


@dataclass(frozen=True)
class Bootstrapping:
    """How ciphertexts get levels back: OpenFHE's bootstrapping with the slots-to-coefficients transform first.

    The secret is sparse (Hamming weight 192) and encapsulated: inside the bootstrap a still sparser one is used.

    Attributes:
        rest: levels of the chain that bootstrapping itself does not take.
        budget: levels of the transform from coefficients to slots and of the one back.
        correction: bits by which values are scaled down within the sine; more of them make the sine more exact and
            let more noise in.
        log_slots: log2 of the slots that a bootstrap works on, after which the slots of its operand must repeat; None
            for all slots of the ring. Fewer take less time and memory.
    """

    rest: int
    budget: tuple[int, int] = (3, 3)
    correction: int = 8
    log_slots: int | None = None

    def __post_init__(self) -> None:
        if self.rest < 1:
            raise ValueError(f"{self.rest} levels left by bootstrapping")
        if len(self.budget) != 2 or not all(1 <= part <= 5 for part in self.budget):
            raise ValueError(f"bootstrapping with a level budget of {self.budget}")
        if not 1 <= self.correction <= 15:
            raise ValueError(f"bootstrapping with a correction factor of {self.correction}")
        if self.log_slots is not None and self.log_slots < max(self.budget):
            raise ValueError(f"bootstrapping of 2^{self.log_slots} slots with a level budget of {self.budget}")

    @property
    def depth(self) -> int:
        """Levels of the whole chain."""
        return self.rest + SINE_LEVELS + sum(self.budget)

    @property
    def input_level(self) -> int:
        """The least level that a ciphertext may have before: slots go to coefficients first."""
        return self.budget[1] + 1

    @property
    def output_level(self) -> int:
        """The level after, once rescaled."""
        return self.rest + self.budget[1]


SINE_LEVELS = 10
"""Levels that the modular reduction takes for a sparse secret."""


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
        bootstrapping: its set-up, and then the secret is sparse; None where there is no bootstrap.
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
                raise ValueError(f"a depth of {self.depth}, bootstrapping is for {self.bootstrapping.depth}")
            if self.first_bits - self.scale_bits > self.bootstrapping.correction:
                raise ValueError("the first prime has more bits above the scale than bootstrapping corrects")
            if (self.bootstrapping.log_slots or 0) >= self.log_ring - 1:
                raise ValueError(
                    f"bootstrapping of 2^{self.bootstrapping.log_slots} slots at ring 2^{self.log_ring}: fewer than "
                    f"2^{self.log_ring - 1}, or None for all"
                )
        if self.technique not in TECHNIQUES:
            raise ValueError(f"scaling technique {self.technique!r} is not one of {', '.join(TECHNIQUES)}")
        if not 10 <= self.log_ring <= 17:
            raise ValueError(f"log2 of the ring dimension {self.log_ring} is outside 10 ... 17")
        if not (self.log_ring + 4 <= self.scale_bits <= 59 and self.scale_bits <= self.first_bits <= 60):
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

    @property
    def ring_dimension(self) -> int:
        """N."""
        return 1 << self.log_ring

    @property
    def conjugation_step(self) -> int:
        """What stands for conjugation among rotation steps: the number of slots, a rotation that moves nothing.

        Programs that bootstrap have its key in any case, beside those of rotations, and don't list it.
        """
        return self.slots

    @property
    def slots(self) -> int:
        """N / 2."""
        return 1 << (self.log_ring - 1)

    @property
    def log_bootstrap_slots(self) -> int:
        """log2 of the slots that a bootstrap works on: the slots of its operand repeat after so many."""
        boots = self.bootstrapping
        return self.log_ring - 1 if boots is None or boots.log_slots is None else boots.log_slots

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
        p = first if is_prime(first) else _step_to_prime(first, order)
        for _ in range(-(-(bits + DIGIT_HEAD_ROOM_BITS) // SPECIAL_PRIME_BITS)):
            p = _step_to_prime(p, -order)
            while p in primes:
                p = _step_to_prime(p, -order)
            out.append(p)
        return tuple(out)

    @cached_property
    def encapsulation_primes(self) -> tuple[int, ...]:
        """The modulus of the key into the sparser secret within a bootstrap: q_0 and two primes of 33 bits."""
        order = 2 * self.ring_dimension
        first = _step_to_prime((1 << ENCAPSULATION_PRIME_BITS) + 1, -order)
        return self.primes[0], first, _step_to_prime(first, -order)

    @cached_property
    def log_qp(self) -> float:
        """log2(Q P), which with the ring dimension and the secret decides the security."""
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
        """log2 of the modulus of the key into the sparser secret; 0 without bootstraps, which alone use it."""
        return 0.0 if self.bootstrapping is None else math.log2(math.prod(self.encapsulation_primes))

    @property
    def security_bits(self) -> float:
        """Bits of security for the secret that is used: a uniform ternary one, or a sparse one with bootstrapping.

        Interpolated in 1 / log2(QP) between the points of 128, 192 and 256 bits at this ring and beyond them, so that
        no figure is above that of the lattice estimator. Nothing above 256 is claimed, with bootstrapping nothing
        above 128. Programs that keep what they were held to before 2024 may have a little less than 128.
        """
        if self.bootstrapping is not None:
            return min(
                _within(SPARSE_SECURITY_BOUNDS, self.log_ring, self.log_qp),
                _within(ENCAPSULATION_BOUNDS, self.log_ring, self.log_encapsulation),
            )
        return _within(SECURITY_BOUNDS, self.log_ring, self.log_qp)

    @property
    def security_bound(self) -> int:
        """The largest log2(QP) at this ring for the security and the secret; 0 where none is known."""
        table = SECURITY_BOUNDS if self.bootstrapping is None else SPARSE_SECURITY_BOUNDS
        return table.get(self.security, {}).get(self.log_ring, 0)

    @property
    def secure(self) -> bool:
        """Whether `check_security` raises nothing."""
        return self._security_fault(earlier=False) is None

    def check_security(self, *, earlier: bool = False) -> None:
        """Raise `SecurityError` where a modulus exceeds what the asked-for security allows at this ring.

        Args:
            earlier: hold log2(QP) alone, and to the bounds that programs of earlier versions were compiled by. These
                still run.
        """
        fault = self._security_fault(earlier)
        if fault is not None:
            raise SecurityError(fault)

    def _security_fault(self, earlier: bool) -> str | None:
        if self.security == 0:
            return None
        bound, used = self.security_bound, round(self.log_qp, 2)  # primes are a little off powers of two
        if self.bootstrapping is None:
            accepted = EARLIER_SECURITY_BOUNDS[self.security].get(self.log_ring, 0)
            if earlier or used <= bound:  # then what OpenFHE counts must be within what OpenFHE accepts
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
        scales = [float(self.primes[-1])]
        for level in range(self.depth, 0, -1):
            scales.append(scales[-1] ** 2 / self.primes[level])
        return tuple(reversed(scales))

    def describe(self) -> str:
        """One line for people."""
        security = f"{math.floor(self.security_bits)}-bit security" if self.security else "NOT SECURE (asked for)"
        if self.bootstrapping is not None:
            boot = self.bootstrapping
            security += (
                f", sparse secret held to log2(QP) {self.security_bound}" if self.security else ", sparse secret"
            ) + f", bootstraps to level {boot.output_level} in {boot.budget[0]} + {boot.budget[1]} levels"
            security += "" if boot.log_slots is None else f" on 2^{boot.log_slots} slots"
        return (
            f"ring 2^{self.log_ring}, {self.depth} levels of {self.scale_bits} bits, first prime {self.first_bits} "
            f"bits, {self.digits} digits, log2(QP) {self.log_qp:.0f}, {self.technique}, {security}"
        )


def _within(table: dict[int, dict[int, int]], log_ring: int, used: float) -> float:
    """Bits of security of a modulus of so many bits, from the bounds at this ring; 0 where there are none.

    Linear in 1 / used between bounds and through zero beyond them, less a margin: costs of attacks bend a little below
    these lines (tests/ckks_security.json). What is within a bound has its level at least.
    """
    points = sorted((bounds[log_ring], level) for level, bounds in table.items() if log_ring in bounds)
    used = round(used, 2)
    if not points or used <= points[0][0]:
        return float(points[0][1]) if points else 0.0
    for (low, more), (high, less) in itertools.pairwise(points):
        if used <= high:
            line = less + (more - less) * (1 / used - 1 / high) / (1 / low - 1 / high)
            return max(float(less), line - INTERPOLATION_MARGIN)
    bound, level = points[-1]
    return max(0.0, level * bound / used - INTERPOLATION_MARGIN)


def candidates(
    depth: int,
    scale_bits: int,
    first_bits: int,
    *,
    technique: str = FIXED,
    security: int = 128,
    log_rings: tuple[int, ...] = (12, 13, 14, 15, 16),
) -> list[Parameters]:
    """All sets of the given depth and precision that keep the security, the smallest ring first, few digits first."""
    found = []
    for log_ring in log_rings:
        for digits in range(1, depth + 2):
            if not Parameters.valid_digits(depth, digits) or scale_bits < log_ring + 4:
                continue
            parameters = Parameters(log_ring, depth, scale_bits, first_bits, digits, technique, security)
            if parameters.secure:
                found.append(parameters)
    return found


def deep_candidates(
    *,
    scale_bits: int = BOOTSTRAP_SCALE_BITS,
    first_bits: int = BOOTSTRAP_FIRST_BITS,
    security: int = 128,
    log_rings: tuple[int, ...] = (15, 16),
    rests: tuple[int, ...] | None = None,
) -> list[Parameters]:
    """Sets with bootstraps, for each ring and number of digits the one with most levels that keeps the security.

    Args:
        rests: levels that bootstrapping leaves, to try; None for 1 to 20.
    """
    found = []
    for log_ring, digits in itertools.product(log_rings, range(2, MOST_DIGITS + 1)):
        for rest in sorted(rests or range(1, 21), reverse=True):
            boots = Bootstrapping(rest, correction=first_bits - scale_bits)
            if not Parameters.valid_digits(boots.depth, digits) or scale_bits < log_ring + 4:
                continue
            made = Parameters(log_ring, boots.depth, scale_bits, first_bits, digits, FLEXIBLE, security, boots)
            if made.secure:
                found.append(made)
                break
    return found


BUDGETS = ((3, 3), (4, 3), (5, 3), (4, 4), (5, 4))
"""Levels of the two transforms of a bootstrap of full ciphertexts, to try.

A transform in two levels holds 64 rotated ciphertexts at once: 17 GB where three levels take 10, and slower.
"""


def deep_chains(
    *,
    scale_bits: int = BOOTSTRAP_SCALE_BITS,
    first_bits: int = BOOTSTRAP_FIRST_BITS,
    security: int = 128,
    log_rings: tuple[int, ...] = (15, 16),
    budgets: tuple[tuple[int, int], ...] = BUDGETS,
) -> list[Parameters]:
    """All sets with bootstraps that keep the security and leave a level between two."""
    found = []
    correction = first_bits - scale_bits
    for log_ring, digits in itertools.product(log_rings, range(2, MOST_DIGITS + 1)):
        if scale_bits < log_ring + 4:
            continue
        least = 2 + SINE_LEVELS + min(map(sum, budgets))
        for depth in range(least, MOST_DEPTH + 1):
            if not Parameters.valid_digits(depth, digits):
                continue
            if not _is_secure(log_ring, depth, scale_bits, first_bits, digits, security):
                break
            rests = ((depth - SINE_LEVELS - sum(budget), budget) for budget in budgets)
            found += [
                Parameters(
                    log_ring,
                    depth,
                    scale_bits,
                    first_bits,
                    digits,
                    FLEXIBLE,
                    security,
                    Bootstrapping(rest, budget, correction),
                )
                for rest, budget in rests
                if rest >= 2
            ]
    return found


@lru_cache(maxsize=1024)
def _is_secure(log_ring: int, depth: int, scale_bits: int, first_bits: int, digits: int, security: int) -> bool:
    """Whether a chain for bootstraps keeps the security; where levels are for does not matter to it."""
    boots = Bootstrapping(depth - SINE_LEVELS - 2, (1, 1), first_bits - scale_bits)
    return Parameters(log_ring, depth, scale_bits, first_bits, digits, FLEXIBLE, security, boots).secure


def require_candidates(
    found: list[list[Parameters]], depth: int, scale_bits: int, security: int
) -> list[list[Parameters]]:
    """The list itself, or `InfeasibleError` where it is empty."""
    if not found:
        raise InfeasibleError(
            f"no ring up to 2^16 holds {depth} levels of {scale_bits} bits "
            + (f"at {security}-bit security " if security else "")
            + "without bootstrapping. Lower the degrees of the activations, or the precision."
        )
    return found
