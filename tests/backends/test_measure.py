"""Measuring this machine: what is measured, and what goes wrong. `tests/runtime/test_commands.py` has a whole run."""

from __future__ import annotations

from typing import Any

import pytest

from olac.backends.openfhe import measure
from olac.bootstrapping import precomputed_bytes
from olac.errors import BackendError


def test_the_grid_can_be_cut_to_rings_and_to_two_settings_of_each() -> None:
    assert measure.grid() == measure.GRID
    some = measure.grid([14, 13, 14])
    assert [setting.log_ring for setting in some] == [13] * 5 + [14] * 5
    quick = measure.grid([14, 13], quick=True)
    assert quick == (some[0], some[4], some[5], some[9])


@pytest.mark.parametrize("rings", [[], [12, 11], [17]])
def test_rings_without_settings_are_refused(rings: list[int]) -> None:
    with pytest.raises(ValueError, match="12, 13, 14, 15, 16"):
        measure.measure_costs(rings=rings)


@pytest.mark.parametrize("wrong", [{"threads": []}, {"threads": [0, 1]}, {"passes": 0}])
def test_no_threads_and_no_passes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        measure.measure_costs(**{"rings": [12], **wrong})


def test_a_transform_has_the_plaintexts_that_memory_is_planned_for() -> None:
    parameters = measure.BOOTSTRAPPED
    assert parameters.bootstrapping is not None
    count = measure.transform_plaintexts(parameters.log_ring, parameters.bootstrapping.budget)
    limb_bytes = 8 * parameters.ring_dimension
    special = len(parameters.special_primes)
    least, most = (count * (limbs + special) * limb_bytes for limbs in (1, parameters.limbs))
    assert least < precomputed_bytes(parameters) <= most


@pytest.mark.encrypted
def test_a_worker_that_fails_says_why() -> None:
    with pytest.raises(BackendError, match="KeyError: 'quick'"):
        measure._ask_worker({"nothing": 0}, 1)


@pytest.mark.encrypted
def test_a_worker_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "WORKER_TIMEOUT", 0.01)
    with pytest.raises(BackendError, match=r"more than 0\.01 s"):
        measure._ask_worker({"bootstrap": 12, "quick": True}, 1)
