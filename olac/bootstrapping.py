"""What OpenFHE's bootstrapping will ask for: rotation steps and memory, known before anything is made.

The transforms between coefficients and slots are FFTs whose layers are collapsed into `budget` levels each (Chen,
Chillotti and Song, "Improved Bootstrapping for Approximate Homomorphic Encryption", EUROCRYPT 2019), every level by
baby steps and giant steps. The rules below are those of OpenFHE 1.6; a test holds them against the keys that the
library makes, at small rings and for several budgets.
"""

from __future__ import annotations

from dataclasses import dataclass

from olac.costs import ciphertext_bytes, plaintext_bytes
from olac.parameters import Parameters

SPECIAL_KEYS = 3
"""Keys beside rotations: conjugation, into the sparser secret and back."""


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


def bootstrap_steps(parameters: Parameters) -> frozenset[int]:
    """Rotation steps that bootstraps of full ciphertexts need keys for; none without bootstrapping."""
    boots = parameters.bootstrapping
    if boots is None:
        return frozenset()
    log_slots, slots = parameters.log_ring - 1, parameters.slots
    found: set[int] = set()
    for budget, inverse in zip(boots.budget, (False, True), strict=True):
        for layer in layers(log_slots, budget, inverse):
            found |= layer.steps(slots)
    return frozenset(found)


def working_bytes(parameters: Parameters) -> int:
    """Bytes that a bootstrap takes while it runs; none without bootstrapping.

    The baby steps of a layer, modulo Q P, and some ciphertexts more (OpenFHE 1.6, 24 levels, 2 digits, 3 + 3 levels at
    ring 2^13: 88 MB measured, 89 MB by this).
    """
    boots = parameters.bootstrapping
    if boots is None:
        return 0
    log_slots = parameters.log_ring - 1
    transforms = zip(boots.budget, (False, True), strict=True)
    babies = max(layer.giant for budget, inverse in transforms for layer in layers(log_slots, budget, inverse))
    limbs = parameters.limbs + len(parameters.special_primes)
    return (babies + OTHERS) * ciphertext_bytes(parameters.log_ring, limbs)


def precomputed_bytes(parameters: Parameters) -> int:
    """Bytes of the plaintexts of both transforms, which are kept modulo Q P."""
    boots = parameters.bootstrapping
    if boots is None:
        return 0
    log_slots, special = parameters.log_ring - 1, len(parameters.special_primes)
    limbs = 0
    for index, layer in enumerate(layers(log_slots, boots.budget[0], False)):
        limbs += layer.diagonals * (parameters.limbs - index + special)
    for index, layer in enumerate(layers(log_slots, boots.budget[1], True)):
        limbs += layer.diagonals * (boots.input_level + 1 - index + special)
    return plaintext_bytes(parameters.log_ring, limbs)
