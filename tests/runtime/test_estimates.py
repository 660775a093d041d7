"""Predictions for this machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from olac.backends.cost import Slowdown
from olac.backends.openfhe.session import ENGINE as OPENFHE
from olac.ckks import engines
from olac.costs.table import CostTable
from olac.errors import BackendError, ForkError, InfeasibleError
from olac.runtime import forecast
from tests.backends.plain_engine import ENGINE as PLAIN
from tests.ckks.picky_engine import PICKY
from tests.runtime.small_program import small_program

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")
FACTOR = Slowdown(light=3.0, heavy=2.0)


def slow(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
    def slowdown(*_: object) -> Slowdown:
        if error is not None:
            raise error
        return FACTOR

    monkeypatch.setattr(type(OPENFHE), "slowdown", slowdown)


def test_seconds_are_scaled_and_bytes_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    program = small_program()
    found, tabled = forecast(program, threads=1), program.estimate(1)
    assert found.slowdown == FACTOR and found.where == "on this machine" and not found.unmeasured
    assert found.estimate.seconds_per_image == program.estimate(1, FACTOR).seconds_per_image
    assert 2.0 < found.estimate.seconds_per_image / tabled.seconds_per_image < 3.0
    # Making keys is all heavy.
    assert found.estimate.keygen_seconds == pytest.approx(2.0 * tabled.keygen_seconds)
    assert found.estimate.sizes == tabled.sizes and found.costs is CostTable.default()
    assert program.fingerprint == small_program().fingerprint


@pytest.mark.parametrize(
    "error", [BackendError("no library"), InfeasibleError("no room"), RuntimeError(), MemoryError()]
)
def test_a_machine_that_cannot_be_measured_gets_the_tables_seconds(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, error)
    found = forecast(small_program(), threads=1)
    assert found.slowdown is None and type(error).__name__ in found.unmeasured
    assert found.where == f"on the machine of the table ({CostTable.default().machine})"
    assert found.estimate.seconds_per_image == small_program().estimate(1).seconds_per_image


def test_a_fork_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, ForkError("forked"))
    with pytest.raises(ForkError):
        forecast(small_program())


def test_nothing_is_measured_if_that_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, AssertionError())
    assert forecast(small_program(), measure=False).slowdown is None


def test_an_engine_needs_prices_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines.ENGINES, PICKY.name, PICKY)
    program, costs = small_program(), replace(CostTable.default(), engine=PICKY)
    with pytest.raises(ValueError, match="the costs are those of the picky engine, not of OpenFHE"):
        forecast(program, costs=costs)
    assert forecast(program, PLAIN).unmeasured == "BackendError: the plain engine can't be measured"
    with pytest.raises(BackendError, match="no engine 'picky'"):
        forecast(replace(program, engine="picky"))


@pytest.mark.encrypted
def test_this_machine_is_really_measured() -> None:
    found = forecast(small_program(), threads=1)
    assert found.slowdown is not None and found.estimate.seconds_per_image > 0
