"""The highest level of each rotation step and of products: against a run that notes every hook that takes a key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from olac.backends.base import Slots
from olac.backends.simulator import SimulatorEvaluator
from olac.ckks.bootstrapping import bootstrap_model
from olac.ckks.primes import FIXED, FLEXIBLE
from olac.ckks.rotations import composition
from olac.ir.types import CipherState
from olac.kernels.execute import execute
from olac.program.program import CompiledProgram
from tests.runtime.small_program import DEEP_SHAPE, SHAPE, deep_program, small_program


class Noting(SimulatorEvaluator):
    """Notes (step, level) of every key switch, with 0 for relinearisation."""

    seen: set[tuple[int, int]]

    def _rotate(self, a: Slots, step: int, state: CipherState) -> Slots:
        self.seen.add((step, state.level))
        return super()._rotate(a, step, state)

    def _hoisted_rotate(self, a: Slots, digits: Slots, step: int, state: CipherState) -> Slots:
        self.seen.add((step, state.level))
        return super()._hoisted_rotate(a, digits, step, state)

    def _extended_rotate(self, a: Slots, digits: Slots, step: int, state: CipherState) -> Slots:
        self.seen.add((step, state.level))
        return super()._extended_rotate(a, digits, step, state)

    def _add_conjugate(self, a: Slots, state: CipherState) -> Slots:
        self.seen.add((self.parameters.conjugation_step, state.level))
        return super()._add_conjugate(a, state)

    def _multiply(self, a: Slots, b: Slots, state: CipherState) -> Slots:
        self.seen.add((0, state.level))
        return super()._multiply(a, b, state)

    def _relinearize(self, a: Slots, state: CipherState) -> Slots:
        self.seen.add((0, state.level))
        return super()._relinearize(a, state)


def brute_force(program: CompiledProgram, shape: tuple[int, ...]) -> tuple[dict[int, int], int | None]:
    evaluator = Noting(program.parameters, program.rotations)
    evaluator.seen = set()
    image = np.random.default_rng(0).uniform(-1, 1, size=(program.batch, *shape)) / program.input.type.unit
    state = program.input.state
    given = tuple(evaluator.encrypt(page, state.level) for page in program.input.layout.pack(image))
    execute(program.graph, program.kernels, evaluator, {program.input.id: given})
    levels: dict[int, int] = {}
    for step, level in sorted(evaluator.seen):
        levels[step] = level  # the last is the highest
    return levels, levels.pop(0, None)


PROGRAMS: dict[str, tuple[Callable[[], CompiledProgram], tuple[int, ...]]] = {
    "fixed": (lambda: small_program(FIXED), SHAPE),
    "flexible": (lambda: small_program(FLEXIBLE, batch=4), SHAPE),
    "multiplexed": (lambda: small_program(lowering="multiplexed"), SHAPE),
    "shifted": (lambda: small_program(copies="shifted"), SHAPE),
    "bootstrapped": (deep_program, DEEP_SHAPE),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_levels_are_those_of_a_run(name: str) -> None:
    make, shape = PROGRAMS[name]
    program = make()
    levels, product = brute_force(program, shape)
    assert dict(program.rotation_levels) == levels and program.product_level == product
    assert set(levels) <= {*program.rotations, program.parameters.conjugation_step}
    assert levels and max(levels.values()) <= program.parameters.depth
    assert program.multiplies_ciphertexts is (product is not None)


@pytest.mark.parametrize("name", ["fixed", "multiplexed"])
def test_parts_of_composed_steps_count(name: str) -> None:
    make, shape = PROGRAMS[name]
    whole = make()
    held, parts = set(whole.rotations), set[int]()
    for step in sorted(whole.rotations, key=lambda step: -whole.rotation_levels[step]):
        path = composition(step, frozenset(held - {step}), whole.parameters.slots)
        if path and step not in parts:
            held.remove(step)
            parts.update(path)
    program = replace(whole, rotations=tuple(sorted(held)))
    assert program.composed
    levels, product = brute_force(program, shape)
    assert dict(program.rotation_levels) == levels and program.product_level == product
    assert set(levels) == held
    assert any(levels[step] > whole.rotation_levels[step] for step in held)


def test_steps_of_bootstraps_alone_have_no_level() -> None:
    program = deep_program()
    alone = bootstrap_model(program.parameters).steps - set(program.rotation_levels)
    assert alone and alone <= set(program.rotations)
