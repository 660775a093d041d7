"""What bootstraps of the vector engine need, known before anything is made.

They have the set-up of OpenFHE's (`olac.ckks.bootstrapping`), and no keys that those lack. If they have the levels of
OpenFHE's recipe, too, the engine runs OpenFHE's programs. Their own recipe (`RECIPES`) has no level that they do not
use. They differ in what they are made of (`olac.backends.vector.bootstrap`):

- The level of a transform that reaches over the whole period has half of the diagonals.
- The first level of the transform to slots takes what was raised, under the sparser secret. Each of its baby steps has
  a key that leads from there to the usual secret.
- Their sine takes fewer levels. What OpenFHE's takes more, by its recipe, is not raised to.
- Plaintexts are packed. If slots repeat, values do, and are stored once.

A test compares this with what the engine makes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from olac.ckks.bootstrapping import (
    BOOTSTRAP_NOISE,
    BootstrapModel,
    Layer,
    Work,
    bootstrap_noise,
    layers,
    trace_steps,
)
from olac.ckks.parameters import RECIPES, VECTOR_RECIPE, Bootstrapping, Parameters
from olac.ckks.sizes import ciphertext_bytes, plaintext_bytes
from olac.ckks.special import (
    KeyShape,
    file_key_bytes,
    from_sparse_shape,
    held_key_bytes,
    held_residues_bytes,
    key_shape,
    primes_of,
    vector_special_primes,
)

SINE_LEVELS = RECIPES[VECTOR_RECIPE].sine
"""Levels of the sine, for all scales at which primes are small enough for the engine."""
SINE_PRODUCTS = 10
"""Products that are relinearised in the sine, at most."""
SINE_CIPHERTEXTS = 14
"""Ciphertexts at the level of its operand that take as much memory as the sine holds, at most."""
BETWEEN = 2
"""The rotation between the transforms, at level 0."""

VECTOR_BOOTSTRAP_NOISE: Mapping[tuple[int, int], float] = MappingProxyType(
    {
        (36, 40): 2.3e-5,
        (37, 41): 1.2e-5,
        (40, 44): 1.4e-6,
        (45, 49): 4.5e-8,
    }
)
"""`BOOTSTRAP_NOISE` of bootstraps by the engine's own recipe, for scales at which it takes the primes."""


@dataclass(frozen=True)
class _Level:
    """One level of a transform.

    Attributes:
        layer: its stride and keys.
        level: of its operand.
        diagonals, babies: plaintexts, and baby steps with that by 0.
        raised: whether the operand is under the sparser secret.
    """

    layer: Layer
    level: int
    diagonals: int
    babies: int
    raised: bool

    @property
    def blocks(self) -> int:
        """Giant steps, with that by 0."""
        return -(-self.diagonals // self.babies)

    @property
    def baby_steps(self) -> Iterator[int]:
        """Rotation steps of the operand, with 0."""
        return (step * self.layer.stride for step in range(self.babies))

    @property
    def steps(self) -> Iterator[int]:
        """Rotation steps of ciphertexts under the usual secret, without 0 and not reduced by the period."""
        first, last = self.babies if self.raised else 1, self.babies if self.blocks > 1 else self.babies - 1
        return (step * self.layer.stride for step in range(first, last + 1))

    def shape(self, parameters: Parameters) -> KeyShape:
        """Of the keys of its baby steps. A key that reaches further is shortened to it."""
        return (from_sparse_shape if self.raised else key_shape)(parameters, self.level)


def baby_steps(layer: Layer, diagonals: int, raised: bool) -> int:
    """How many baby steps a level of a transform takes, with that by 0: a power of two, for which there are keys.

    A giant step takes as long as four to six baby steps at the top of the chain, and a key as large as theirs serves
    all giant steps. So about as many of both keep few keys at little more time. From the sparser secret, baby steps
    are short of keys and of time, and all are taken.

    Args:
        raised: whether the operand is under the sparser secret.
    """
    bits = (diagonals - 1).bit_length()
    return min(layer.giant, 1 << (bits if raised else -(-bits // 2)))


@lru_cache(maxsize=1024)
def vector_bootstrap_model(parameters: Parameters) -> BootstrapModel:
    """What bootstraps ask for under these parameters; an empty model if there are none."""
    setup = parameters.bootstrapping
    if setup is None:
        return BootstrapModel()
    taken, period = _levels(parameters, setup), 1 << parameters.log_bootstrap_slots
    (first,) = (one for one in taken if one.raised)
    levels = {parameters.conjugation_step: _sine_level(setup) + 1, BETWEEN % period: 0}
    for one in taken:
        for step in one.steps:
            levels[step % period] = max(one.level, levels.get(step % period, 0))
    for steps in trace_steps(parameters):
        levels |= dict.fromkeys(steps, _sine_level(setup) + 1)
    levels.pop(0, None)
    shape = first.shape(parameters)
    return BootstrapModel(
        input_level=setup.input_level,
        output_level=setup.output_level,
        log_slots=setup.log_slots,
        steps=frozenset(levels) - {parameters.conjugation_step},
        step_levels=MappingProxyType(levels),
        product_level=_sine_level(setup),
        special_keys=2 + first.babies,
        large_special_keys=1,
        from_sparse_steps=tuple(first.baby_steps),
        from_sparse_bytes=first.babies * held_key_bytes(parameters, shape),
        raised_level=first.level,
        from_sparse_file_bytes=first.babies * file_key_bytes(parameters, shape),
        special_steps=frozenset({parameters.conjugation_step}),
        working_bytes=max(
            _sine_bytes(parameters, _sine_level(setup)), *(_working_bytes(parameters, one) for one in taken)
        ),
        precomputed_bytes=_short_key_bytes(parameters, taken)
        + sum(one.diagonals * _plaintext_bytes(parameters, one) for one in taken),
        precomputed_limbs=sum(one.diagonals * one.shape(parameters).primes for one in taken),
        work=_work(parameters, setup, taken),
        noise=bootstrap_noise(parameters, setup, _noises(setup)),
        keeps_plaintexts=False,
    )


def _noises(setup: Bootstrapping) -> Mapping[tuple[int, int], float]:
    """Programs by OpenFHE's recipe may run on either engine, so they have the larger noise."""
    return VECTOR_BOOTSTRAP_NOISE if setup.recipe == VECTOR_RECIPE else BOOTSTRAP_NOISE


def _sine_level(setup: Bootstrapping) -> int:
    """The level of the operand of the sine."""
    return setup.output_level + SINE_LEVELS


def _top(setup: Bootstrapping) -> int:
    """The level that is raised to."""
    return _sine_level(setup) + setup.budget[0]


def _levels(parameters: Parameters, setup: Bootstrapping) -> tuple[_Level, ...]:
    """The levels of both transforms in the order in which a bootstrap takes them."""
    log_slots = parameters.log_bootstrap_slots
    found = []
    for budget, first, inverse in ((setup.budget[1], setup.budget[1], True), (setup.budget[0], _top(setup), False)):
        ordered = sorted(layers(log_slots, budget, inverse), key=lambda one: one.stride, reverse=not inverse)
        for index, layer in enumerate(ordered):
            reach = layer.stride * (layer.diagonals + 1) // 2  # a layer of c stages has 2^(c + 1) - 1 diagonals
            diagonals = (1 << log_slots) // layer.stride if reach == 1 << log_slots else layer.diagonals
            raised = not inverse and not index
            babies = baby_steps(layer, diagonals, raised)
            found.append(_Level(layer, first - index, diagonals, babies, raised))
    return tuple(found)


def _plaintext_bytes(parameters: Parameters, one: _Level) -> int:
    """A packed plaintext modulo Q P."""
    columns = parameters.log_ring // 2  # log2 of those of the engine's transform, which has two halves
    repeat = min(parameters.log_ring - 1 - parameters.log_bootstrap_slots, columns)
    primes = primes_of(parameters, one.shape(parameters))
    return held_residues_bytes(parameters, primes) << parameters.log_ring >> repeat


def _short_key_bytes(parameters: Parameters, taken: tuple[_Level, ...]) -> int:
    """Keys that are shortened for low levels, if those of all steps reach far up."""
    uses = [(len(set(one.steps)), one.level) for one in taken if not one.raised]
    uses.append((min(1, BETWEEN % (1 << parameters.log_bootstrap_slots)), 0))
    shapes = [(count, key_shape(parameters, level)) for count, level in uses]
    longest = len(vector_special_primes(parameters))
    return sum(count * held_key_bytes(parameters, shape) for count, shape in shapes if shape.specials < longest)


def _working_bytes(parameters: Parameters, one: _Level) -> int:
    """What a level holds while a giant step is switched.

    That is the sums of all giant steps, the second polynomial of one of them and its digits, and what they are
    switched to; and the operand, which the level before may hold as well.
    """
    limbs, shape = one.level + 1, key_shape(parameters, one.level)
    lifted = (shape.digits - 1) * limbs + shape.digits * shape.specials
    switched = limbs + limbs + lifted + 2 * shape.primes
    return plaintext_bytes(parameters.log_ring, 2 * one.blocks * shape.primes + switched + 4 * limbs)


def _sine_bytes(parameters: Parameters, level: int) -> int:
    """What the sine holds at most, at the level of its operand."""
    return SINE_CIPHERTEXTS * ciphertext_bytes(parameters.log_ring, level + 1)


def _work(parameters: Parameters, setup: Bootstrapping, taken: tuple[_Level, ...]) -> Work:
    """What one bootstrap of a ciphertext is made of; `CostTable.bootstrap_factor` has what is faster together."""
    found: list[tuple[str, int, int]] = []
    for one in taken:
        # One kernel makes all rotations and the sums of their products. Every giant step is divided by P on its own.
        special = one.shape(parameters).specials
        found += [
            ("hoist", one.level, 1),
            ("ext_rotate", one.level, one.babies - 1),
            ("multiply_plain", one.level + special, one.diagonals),
            ("add", one.level + special, one.diagonals),
            ("rotate", one.level, one.blocks - 1),
            ("key_switch_down", one.level, 1),
            ("normalize", one.level, 1),
        ]
    level = _sine_level(setup)
    found += [("rotate", 0, 1), ("rotate", level + 1, 1)]
    for rotations in map(len, trace_steps(parameters)):
        found += [
            ("hoist", level + 1, 1),
            ("ext_rotate", level + 1, rotations - 1),
            ("hoisted_rotate", level + 1, 1),
        ]
    share, more = divmod(SINE_PRODUCTS, SINE_LEVELS)
    for index in range(SINE_LEVELS):
        times = share + (index < more)
        found += [("multiply", level - index, times), ("normalize", level - index, times)]
    return tuple(one for one in found if one[2])
