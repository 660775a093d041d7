"""What OpenFHE's bootstrapping will ask for: rotation steps, memory and primitives, known before anything is made.

The transforms between coefficients and slots are FFTs whose layers are collapsed into `budget` levels each (Chen,
Chillotti and Song, "Improved Bootstrapping for Approximate Homomorphic Encryption", EUROCRYPT 2019), every level by
baby steps and giant steps. Where the slots of a ciphertext repeat, the transforms are those of one period, and a sum of
rotations behind the raise takes what it added to the one polynomial of fewer coefficients that they belong to (Cheon,
Han, Kim, Kim and Song, "Bootstrapping for Approximate Homomorphic Encryption", EUROCRYPT 2018, section 5.1). The rules
below are those of OpenFHE 1.6; a test holds them against the keys that the library makes, at small rings, for several
budgets and numbers of slots.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from olac.ckks.parameters import SINE_LEVELS, Bootstrapping, Parameters
from olac.ckks.sizes import ciphertext_bytes, plaintext_bytes

SPECIAL_KEYS = 3
"""Keys beside rotations: conjugation, into the sparser secret and back."""
SINE_PRODUCTS = 18
"""Products of ciphertexts in the modular reduction: what is left of measured bootstraps, beside their transforms."""

BOOTSTRAP_NOISE: dict[tuple[int, int], float] = {
    (36, 40): 1.8e-3,
    (37, 41): 1.9e-4,
    (40, 44): 5.0e-5,
    (45, 53): 1.6e-5,
    (50, 58): 9.4e-7,
}
"""Root mean square error of a bootstrap in a slot, the sine aside, at ring 2^16: measured, by bits of scale and of q_0.

At smaller rings it is less. The number of digits, the levels, their budget and the number of slots do not matter. It
grows with the correction factor, by some 2 for each bit. It does not fall evenly with the scale (38 bits and 42:
3.2e-4), for it depends on how the scales of the levels drift, and they do as the primes lie.
"""


OTHERS = 4
"""Ciphertexts beside the baby steps that a bootstrap holds."""


@dataclass(frozen=True)
class Layer:
    """One level of a transform.

    Attributes:
        stride: all its rotations are multiples of it.
        diagonals: plaintexts.
        giant: the one giant step, in strides, taken again and again; the baby steps are those below.
    """

    stride: int
    diagonals: int
    giant: int

    def steps(self, slots: int) -> set[int]:
        """Rotation steps, without 0."""
        return {j * self.stride % slots for j in range(self.giant + 1)} - {0}


def layers(log_slots: int, budget: int, inverse: bool) -> tuple[Layer, ...]:
    """The levels of the transform from coefficients to slots, or with `inverse` of the one back."""
    collapsed = -(-log_slots // budget)
    rows, rest = divmod(log_slots, collapsed)
    if rows + (rest > 0) < budget:
        collapsed -= 1
        rows, rest = divmod(log_slots, collapsed)
        while rows + (rest > 0) > budget:
            rows -= 1
            rest = log_slots - rows * collapsed
    shift = 0 if inverse or not rest else rest
    out = [_layer(1 << (shift + collapsed * i), collapsed) for i in range(rows)]
    if rest:
        out.append(_layer(1 << (collapsed * rows), rest) if inverse else _layer(1, rest))
    return tuple(out)


def _layer(stride: int, collapsed: int) -> Layer:
    diagonals = (1 << (collapsed + 1)) - 1
    giant = 1 << (collapsed // 2 + (2 if diagonals > 7 else 1))
    return Layer(stride, diagonals, giant)


def transforms(log_slots: int, boots: Bootstrapping, depth: int) -> tuple[tuple[Layer, int], ...]:
    """The layers of both transforms in the order in which a bootstrap takes them, each with the level of its operand.

    Slots go to coefficients first, at the bottom of the chain, and come back at its top.
    """
    down = enumerate(layers(log_slots, boots.budget[1], True))
    up = enumerate(layers(log_slots, boots.budget[0], False))
    return (
        *((layer, boots.input_level - index) for index, layer in down),
        *((layer, depth - index) for index, layer in up),
    )


def _transforms(parameters: Parameters) -> tuple[tuple[Layer, int], ...]:
    boots = parameters.bootstrapping
    return () if boots is None else transforms(parameters.log_bootstrap_slots, boots, parameters.depth)


def trace_steps(parameters: Parameters) -> tuple[tuple[int, ...], ...]:
    """Rotations of the sum over all periods of a ciphertext whose slots repeat, by the sums that it is made of.

    Four terms at a time, and two where that is left; none where a bootstrap works on all slots.
    """
    found, period = [], 1 << parameters.log_bootstrap_slots
    while period < parameters.slots:
        terms = min(4, parameters.slots // period)
        found.append(tuple(term * period for term in range(1, terms)))
        period *= terms
    return tuple(found)


def bootstrap_steps(parameters: Parameters) -> frozenset[int]:
    """Rotation steps that bootstraps need keys for; none without bootstrapping."""
    if parameters.bootstrapping is None:
        return frozenset()
    period = 1 << parameters.log_bootstrap_slots
    found = frozenset().union(*(layer.steps(period) for layer, _ in _transforms(parameters)))
    if period < parameters.slots:
        # The layers of a transform leave a rotation by 1 to its end. Back from slots, real parts and imaginary ones lie
        # side by side in two periods, and it is one by a period more.
        found = found.union((period + 1,), *trace_steps(parameters))
    return found


def steps_with_keys(steps: Iterable[int], parameters: Parameters) -> frozenset[int]:
    """Steps that a program lists keys for: those its kernels take and those of bootstraps, which bring conjugation."""
    if parameters.bootstrapping is None:
        return frozenset(steps)
    return (frozenset(steps) | bootstrap_steps(parameters)) - {parameters.conjugation_step}


def working_bytes(parameters: Parameters) -> int:
    """Bytes that a bootstrap takes while it runs; none without bootstrapping.

    The baby steps of a layer, modulo Q P, and some ciphertexts more (OpenFHE 1.6, 24 levels, 2 digits, 3 + 3 levels at
    ring 2^13: 88 MB measured, 89 MB by this).
    """
    boots = parameters.bootstrapping
    if boots is None:
        return 0
    babies = max(layer.giant for layer, _ in _transforms(parameters))
    limbs = parameters.limbs + len(parameters.special_primes)
    return (babies + OTHERS) * ciphertext_bytes(parameters.log_ring, limbs)


def precomputed_bytes(parameters: Parameters) -> int:
    """Bytes of the plaintexts of both transforms, which are kept modulo Q P."""
    special = len(parameters.special_primes)
    limbs = sum(layer.diagonals * (level + 1 + special) for layer, level in _transforms(parameters))
    return plaintext_bytes(parameters.log_ring, limbs)


def bootstrap_work(parameters: Parameters) -> tuple[tuple[str, int, int], ...]:
    """What one bootstrap of a ciphertext is made of: (primitive of the table of costs, level, times).

    In each layer the operand is decomposed once and rotated by the baby steps; products and sums stay modulo Q P; every
    giant step but the first takes a decomposition and a rotation of its own. Between the transforms the ciphertext is
    raised to the whole chain and switched back from the sparser secret, where its slots repeat summed over all periods,
    conjugated once, and reduced modulo q_0.
    """
    boots = parameters.bootstrapping
    if boots is None:
        return ()
    special = len(parameters.special_primes)
    found: list[tuple[str, int, int]] = []
    for layer, level in _transforms(parameters):
        blocks = -(-layer.diagonals // layer.giant)
        found += [
            ("hoist", level, blocks),
            ("ext_rotate", level, layer.giant + blocks - 2),
            ("multiply_plain", level + special, layer.diagonals),
            ("ext_add", level, layer.diagonals - 1),
            ("key_switch_down", level, blocks),
            ("normalize", level, 1),
        ]
    reduced = parameters.depth - boots.budget[0]
    found += [("normalize", parameters.depth, 2), ("rotate", parameters.depth, 1), ("rotate", reduced, 1)]
    for rotations in map(len, trace_steps(parameters)):
        found += [(name, parameters.depth, rotations) for name in ("hoisted_rotate", "add")]
        found.append(("hoist", parameters.depth, 1))
    share, more = divmod(SINE_PRODUCTS, SINE_LEVELS)
    for index in range(SINE_LEVELS):
        times = share + (index < more)
        found += [("multiply", reduced - index, times), ("normalize", reduced - index, times)]
    return tuple(found)


def bootstrap_noise(parameters: Parameters) -> float:
    """Standard deviation of what a bootstrap adds to a slot, its sine aside; 0 without bootstrapping.

    That of the nearest measured scale below, twice as much for each bit of the correction factor beyond the measured.
    """
    boots = parameters.bootstrapping
    if boots is None:
        return 0.0
    scale, first = max(
        (one for one in BOOTSTRAP_NOISE if one[0] <= parameters.scale_bits), default=min(BOOTSTRAP_NOISE)
    )
    return BOOTSTRAP_NOISE[scale, first] * 2.0 ** (boots.correction - (first - scale))
