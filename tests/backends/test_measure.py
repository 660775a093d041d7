"""Measuring this machine: what is measured, and what goes wrong. `tests/runtime/test_commands.py` has a whole run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from olac.backends import measure
from olac.backends.cost import CostEvaluator
from olac.backends.openfhe.measure import MEASURER
from olac.costs.table import CostTable
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
        measure.measure_costs(MEASURER, rings=rings)


@pytest.mark.parametrize("wrong", [{"threads": []}, {"threads": [0, 1]}, {"passes": 0}])
def test_no_threads_and_no_passes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        measure.measure_costs(MEASURER, **{"rings": [12], **wrong})


def test_the_factor_of_bootstraps_is_what_brings_the_price_to_the_measurement() -> None:
    table = CostTable.default()
    factor = measure.bootstrap_factor(50.0, measure.BOOTSTRAPPED, table, 1)
    pricer = CostEvaluator(measure.BOOTSTRAPPED, replace(table, bootstrap_factor=factor), 1)
    depth = measure.BOOTSTRAPPED.depth
    assert pricer.price("bootstrap", depth) == pytest.approx(50.0 * pricer.price("rotate", depth))


@pytest.mark.encrypted
def test_a_worker_that_fails_says_why() -> None:
    with pytest.raises(BackendError, match="KeyError: 'quick'"):
        measure._ask_worker(MEASURER.module, {"nothing": 0}, 1)


@pytest.mark.encrypted
def test_a_worker_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "WORKER_TIMEOUT", 0.01)
    with pytest.raises(BackendError, match=r"more than 0\.01 s"):
        measure._ask_worker(MEASURER.module, {"bootstrap": 12, "quick": True}, 1)
