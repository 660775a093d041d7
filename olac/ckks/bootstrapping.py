"""What bootstraps ask for: levels, rotation steps, keys, memory and primitives, known before anything is made.

`bootstrap_model` gives OpenFHE's model of a set of parameters, an empty one if there are no bootstraps. Plans ask the
engine that they are for (`olac.ckks.engines`).

The transforms between coefficients and slots are FFTs whose layers are collapsed into `budget` levels each (Chen,
Chillotti and Song, "Improved Bootstrapping for Approximate Homomorphic Encryption", EUROCRYPT 2019), every level by
baby steps and giant steps. If the slots of a ciphertext repeat, the transforms are those of one period. A sum of
rotations after the raise then maps what the raise added to the polynomials of fewer coefficients that such slots have
(Cheon, Han, Kim, Kim and Song, "Bootstrapping for Approximate Homomorphic Encryption", EUROCRYPT 2018, section 5.1).
The rules below are those of OpenFHE 1.6; a test compares them with the keys that the library makes, at small rings, for
several budgets and numbers of slots.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

from olac.ckks.parameters import OPENFHE_RECIPE, RECIPES, Bootstrapping, Parameters
from olac.ckks.sizes import ciphertext_bytes, plaintext_bytes

SPECIAL_KEYS = 3
"""Keys beside rotations: conjugation, into the sparser secret and back."""
SINE_PRODUCTS = 18
"""Products of ciphertexts in the modular reduction: what measured bootstraps take without their transforms."""

BOOTSTRAP_NOISE: dict[tuple[int, int], float] = {
    (36, 40): 1.8e-3,
    (37, 41): 1.9e-4,
    (40, 44): 5.0e-5,
    (45, 53): 1.6e-5,
    (50, 58): 9.4e-7,
}
"""Root mean square error of a bootstrap in a slot, the sine aside, at ring 2^16: measured, by bits of scale and of q_0.

It is less at smaller rings. The number of digits, the levels, their budget and the number of slots do not matter. Each
bit of the correction factor about doubles it. It does not fall evenly with the scale (3.2e-4 at 38 and 42 bits),
because it depends on how far the scales of the levels drift, and the primes decide that.
"""

OTHERS = 4
"""Ciphertexts that a bootstrap holds beside those of the baby steps."""


@dataclass(frozen=True)
class Layer:
    """One level of a transform.

    Attributes:
        stride: all its rotations are multiples of it.
        diagonals: plaintexts.
        giant: the giant step, in strides, which is repeated; the baby steps are shorter.
    """

    stride: int
    diagonals: int
    giant: int

    def steps(self, slots: int) -> set[int]:
        """Rotation steps, without 0."""
        return {j * self.stride % slots for j in range(self.giant + 1)} - {0}


def layers(log_slots: int, budget: int, inverse: bool) -> tuple[Layer, ...]:
    """The layers of the transform from coefficients to slots, or if `inverse` of the one back."""
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


Work = tuple[tuple[str, int, int], ...]
"""(primitive of the table of costs, level, number of times)."""


@dataclass(frozen=True)
class BootstrapModel:
    """What bootstraps ask for under a set of parameters; nothing if there are none. Each engine has its own model.

    Attributes:
        input_level: the least level that a ciphertext may have before a bootstrap.
        output_level: the level after a bootstrap.
        log_slots: log2 of the slots after which the slots of an operand have to repeat; None for all slots.
        steps: rotation steps that bootstraps need keys for.
        step_levels: the highest level at which bootstraps take each of these steps and of `special_steps`.
        product_level: the highest level at which they multiply ciphertexts.
        special_keys: keys beside those of rotations and of relinearisation.
        large_special_keys: those of them that are as large as a rotation's.
        from_sparse_steps: rotation steps that ciphertexts under the sparser secret take while they are switched to the
            usual one, if each has a key of its own that does both.
        from_sparse_bytes, from_sparse_file_bytes: of these keys, in memory and in a file.
        raised_level: the level that ciphertexts are raised to.
        special_steps: rotation steps that stand for special keys.
        working_bytes: what a bootstrap takes while it runs.
        precomputed_bytes: of plaintexts, and of keys that are made of others, that are kept for all bootstraps.
        precomputed_limbs: that are encoded for them.
        work: what one bootstrap of a ciphertext is made of.
        noise: standard deviation of what a bootstrap adds to a slot, without the effect of its sine.
        keeps_plaintexts: whether a server keeps encoded weights if it has the memory, or encodes them in each run.
    """

    input_level: int = 0
    output_level: int = 0
    log_slots: int | None = None
    steps: frozenset[int] = frozenset()
    step_levels: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    product_level: int = 0
    special_keys: int = 0
    large_special_keys: int = 0
    from_sparse_steps: tuple[int, ...] = ()
    from_sparse_bytes: int = 0
    from_sparse_file_bytes: int = 0
    raised_level: int = 0
    special_steps: frozenset[int] = frozenset()
    working_bytes: int = 0
    precomputed_bytes: int = 0
    precomputed_limbs: int = 0
    work: Work = ()
    noise: float = 0.0
    keeps_plaintexts: bool = True

    def keys_for(self, steps: Iterable[int]) -> frozenset[int]:
        """The steps that a program lists keys for if its kernels take the given steps."""
        return (frozenset(steps) | self.steps) - self.special_steps


@lru_cache(maxsize=1024)
def bootstrap_model(parameters: Parameters) -> BootstrapModel:
    """What OpenFHE's bootstraps ask for under these parameters."""
    setup = parameters.bootstrapping
    if setup is None:
        return BootstrapModel()
    taken, special = _transforms(parameters, setup), len(parameters.special_primes)
    # The baby steps of a layer, modulo Q P, and some ciphertexts more (OpenFHE 1.6, 24 levels, 2 digits, 3 + 3 levels
    # at ring 2^13: 88 MB measured, 89 MB by this).
    babies = max(layer.giant for layer, _ in taken)
    working = (babies + OTHERS) * ciphertext_bytes(parameters.log_ring, parameters.limbs + special)
    # The plaintexts of both transforms are kept modulo Q P.
    limbs = sum(layer.diagonals * (level + 1 + special) for layer, level in taken)
    levels = _step_levels(parameters, taken)
    conjugated = parameters.depth - setup.budget[0]
    return BootstrapModel(
        input_level=setup.input_level,
        output_level=setup.output_level,
        log_slots=setup.log_slots,
        steps=frozenset(levels),
        step_levels=MappingProxyType(levels | {parameters.conjugation_step: conjugated}),
        product_level=conjugated,
        special_keys=SPECIAL_KEYS,
        large_special_keys=SPECIAL_KEYS - 1,
        raised_level=parameters.depth,
        special_steps=frozenset({parameters.conjugation_step}),
        working_bytes=working,
        precomputed_bytes=plaintext_bytes(parameters.log_ring, limbs),
        precomputed_limbs=limbs,
        work=_work(parameters, setup, taken),
        noise=bootstrap_noise(parameters, setup),
        keeps_plaintexts=False,
    )


Transforms = tuple[tuple[Layer, int], ...]


def _transforms(parameters: Parameters, setup: Bootstrapping) -> Transforms:
    """The layers of both transforms in the order in which a bootstrap takes them, each with the level of its operand.

    Slots go to coefficients first, at the bottom of the chain, and come back at its top.
    """
    log_slots = parameters.log_bootstrap_slots
    down = enumerate(layers(log_slots, setup.budget[1], True))
    up = enumerate(layers(log_slots, setup.budget[0], False))
    return (
        *((layer, setup.input_level - index) for index, layer in down),
        *((layer, parameters.depth - index) for index, layer in up),
    )


def trace_steps(parameters: Parameters) -> tuple[tuple[int, ...], ...]:
    """The rotations that sum up all periods of a ciphertext whose slots repeat, one tuple for each partial sum.

    A partial sum has four terms, the last one two if that is what remains. There are none if a bootstrap works on all
    slots.
    """
    found, period = [], 1 << parameters.log_bootstrap_slots
    while period < parameters.slots:
        terms = min(4, parameters.slots // period)
        found.append(tuple(term * period for term in range(1, terms)))
        period *= terms
    return tuple(found)


def _step_levels(parameters: Parameters, taken: Transforms) -> dict[int, int]:
    """The steps of bootstraps, each with the highest level at which they take it."""
    period = 1 << parameters.log_bootstrap_slots
    found: dict[int, int] = {}
    for layer, level in taken:
        for step in layer.steps(period):
            found[step] = max(level, found.get(step, 0))
    if period < parameters.slots:
        # The layers of a transform leave a rotation by 1 to its end. In the transform back from slots, real and
        # imaginary parts lie side by side in two periods, so this rotation is longer by a period.
        for step in (period + 1, *itertools.chain(*trace_steps(parameters))):
            found[step] = parameters.depth
    return found


def _work(parameters: Parameters, setup: Bootstrapping, taken: Transforms) -> Work:
    """What one bootstrap of a ciphertext is made of.

    In each layer the operand is decomposed once and rotated by the baby steps; products and sums stay modulo Q P; every
    giant step but the first takes a decomposition and a rotation of its own. Between the transforms the ciphertext is
    raised to the whole chain and switched back from the sparser secret, summed over all periods if its slots repeat,
    conjugated once, and reduced modulo q_0.
    """
    special = len(parameters.special_primes)
    found: list[tuple[str, int, int]] = []
    for layer, level in taken:
        blocks = -(-layer.diagonals // layer.giant)
        found += [
            ("hoist", level, blocks),
            ("ext_rotate", level, layer.giant + blocks - 2),
            ("multiply_plain", level + special, layer.diagonals),
            ("ext_add", level, layer.diagonals - 1),
            ("key_switch_down", level, blocks),
            ("normalize", level, 1),
        ]
    reduced = parameters.depth - setup.budget[0]
    found += [("normalize", parameters.depth, 2), ("rotate", parameters.depth, 1), ("rotate", reduced, 1)]
    for rotations in map(len, trace_steps(parameters)):
        found += [(name, parameters.depth, rotations) for name in ("hoisted_rotate", "add")]
        found.append(("hoist", parameters.depth, 1))
    share, more = divmod(SINE_PRODUCTS, RECIPES[OPENFHE_RECIPE].sine)
    for index in range(RECIPES[OPENFHE_RECIPE].sine):
        times = share + (index < more)
        found += [("multiply", reduced - index, times), ("normalize", reduced - index, times)]
    return tuple(found)


def bootstrap_noise(
    parameters: Parameters, setup: Bootstrapping, measured: Mapping[tuple[int, int], float] = BOOTSTRAP_NOISE
) -> float:
    """That of the next measured scale that is no finer, doubled for each bit of correction beyond the measured one."""
    scale, first = max((one for one in measured if one[0] <= parameters.scale_bits), default=min(measured))
    return measured[scale, first] * 2.0 ** (setup.correction - (first - scale))
