"""The levels at which evaluation keys are used, from the primitives of a run and from bootstraps."""

from __future__ import annotations

from collections import Counter

import pytest

from olac.analysis.key_levels import KeyLevels, key_levels
from olac.ckks.bootstrapping import BootstrapModel, bootstrap_model
from olac.ckks.engines import OPENFHE
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE

PLAIN = Parameters(12, 5, 32, 40, 2, security=0)
DEEP = Parameters(11, 20, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(4))


def test_a_key_reaches_as_far_as_its_highest_use() -> None:
    found = key_levels([(1, 2), (1, 4), (3, 0)], [("multiply", 1), ("relinearize", 3), ("add", 5)], BootstrapModel())
    assert found == KeyLevels({1: 4, 3: 0}, 3)
    # 7 has a key that nothing uses.
    assert found.of([1, 3, 7], PLAIN, BootstrapModel()) == Counter({4: 1, 0: 2, 3: 1})


def test_without_products_the_relinearisation_key_counts_at_the_bottom() -> None:
    found = key_levels([(1, 2)], [("multiply_plain", 4)], BootstrapModel())
    assert found.of([1], PLAIN, BootstrapModel()) == Counter({2: 1, 0: 1})


def test_bootstraps_use_their_keys_up_to_their_own_levels() -> None:
    model = bootstrap_model(DEEP)
    setup = DEEP.bootstrapping
    assert setup is not None
    low = min(model.step_levels.values())
    assert low <= setup.input_level and max(model.step_levels.values()) == DEEP.depth
    assert set(model.step_levels) == model.steps | model.special_steps
    assert model.step_levels[DEEP.conjugation_step] == model.product_level == DEEP.depth - setup.budget[0]
    step = min(model.step_levels, key=lambda one: model.step_levels[one])
    found = key_levels([(step, low + 1), (777, 3)], [("multiply", 2)], model)
    assert found.steps[step] == low + 1 and found.steps[777] == 3 and found.product == model.product_level
    steps = model.keys_for([step, 777])
    levels = found.of(steps, DEEP, model)
    # Relinearisation, conjugation, the key back from the sparser secret, and those of steps.
    assert levels.total() == len(steps) + 1 + model.large_special_keys
    assert levels[DEEP.depth] >= model.large_special_keys
    assert OPENFHE.keys_bytes(DEEP, levels) == levels.total() * OPENFHE.key_bytes(DEEP, 0)


@pytest.mark.parametrize("log_slots", [None, 6])
def test_every_step_of_a_layer_reaches_its_layer(log_slots: int | None) -> None:
    parameters = Parameters(11, 20, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(4, log_slots=log_slots))
    model = bootstrap_model(parameters)
    rotations = {"ext_rotate", "hoisted_rotate"}
    assert max(level for name, level, _ in model.work if name in rotations) == max(model.step_levels.values())
    assert model.steps == set(model.step_levels) - {parameters.conjugation_step}
