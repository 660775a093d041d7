"""How fast this machine is against a table of costs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from olac.backends import session, speed
from olac.backends.cost import LIGHT, Slowdown, predicted_seconds
from olac.backends.openfhe.session import ENGINE as OPENFHE
from olac.backends.session import Engine
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FIXED, FLEXIBLE
from olac.costs.table import CostTable
from olac.errors import BackendError

TABLE = CostTable.default()
CHAINS = [
    Parameters(12, 9, 32, 40, 3, FIXED, security=0),
    Parameters(12, 1, 32, 40, 1, FIXED, security=0),
    Parameters(11, 20, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(4)),
    Parameters(11, 7, 40, 47, 8, FLEXIBLE, 0),
]


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_MEASURED", {})


@pytest.mark.parametrize("parameters", CHAINS)
def test_the_chain_that_is_measured_is_short_and_like_the_programs(parameters: Parameters) -> None:
    chain = speed.short_chain(parameters)
    assert 1 <= speed.measured_level(chain) <= chain.depth <= min(speed.MOST_DEPTH, parameters.depth)
    assert chain.digit_limbs <= parameters.digit_limbs and chain.bootstrapping is None
    for name in ("log_ring", "scale_bits", "first_bits", "technique"):
        assert getattr(chain, name) == getattr(parameters, name)


@pytest.mark.encrypted
@pytest.mark.parametrize("parameters", CHAINS)
def test_every_primitive_really_runs(parameters: Parameters, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all of them at 3 s, the factors are those of tabled 1 s and 1.5 s."""

    def three_seconds(call: Callable[[], object]) -> float:
        assert call() is not None
        return 3.0

    monkeypatch.setattr(speed, "_seconds", three_seconds)
    monkeypatch.setattr(speed, "predicted_seconds", lambda table, name, *_: 1.0 if name in LIGHT else 1.5)
    assert OPENFHE.slowdown(parameters, TABLE, 1) == Slowdown(light=3.0, heavy=2.0)


@pytest.mark.encrypted
def test_a_process_measures_once_for_each_kind_of_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    benches: list[Parameters] = []

    def bench(self: Engine, parameters: Parameters) -> None:
        benches.append(parameters)

    seconds = {name: predicted_seconds(TABLE, name, speed.short_chain(CHAINS[0]), 3, 1) for name in speed.MEASURED}
    monkeypatch.setattr(type(OPENFHE), "bench", bench)
    monkeypatch.setattr(session, "measure", lambda bench: seconds)
    assert OPENFHE.slowdown(CHAINS[0], TABLE, 1) == Slowdown(1.0, 1.0)
    longer = Parameters(12, 11, 32, 40, 3, FIXED, security=0)  # the same short chain
    assert OPENFHE.slowdown(longer, TABLE, 1) == Slowdown(1.0, 1.0) and len(benches) == 1
    OPENFHE.slowdown(CHAINS[2], TABLE, 1)
    OPENFHE.slowdown(CHAINS[0], TABLE, 2)
    assert len(benches) == 3


def test_calls_are_few_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("olac.backends.speed.time.perf_counter", lambda: next(clock) / 2)
    calls: list[int] = []
    assert speed._seconds(lambda: calls.append(1)) == 0.5  # every call takes half a second
    assert len(calls) == 1 + speed.FEWEST
    monkeypatch.setattr("olac.backends.speed.time.perf_counter", lambda: 0.0)
    calls.clear()
    assert speed._seconds(lambda: calls.append(1)) == 0.0 and len(calls) == 1 + speed.MOST_CALLS


def test_factors_have_bounds() -> None:
    chain = speed.short_chain(CHAINS[0])
    assert speed.slowdown(dict.fromkeys(speed.MEASURED, 1e9), chain, TABLE, 1) == Slowdown(speed.MOST, speed.MOST)
    assert speed.slowdown(dict.fromkeys(speed.MEASURED, 0.0), chain, TABLE, 1) == Slowdown(speed.LEAST, speed.LEAST)


def test_an_engine_that_cannot_be_measured_says_so() -> None:
    from tests.backends.plain_engine import ENGINE as PLAIN

    assert PLAIN.model is OPENFHE.model
    with pytest.raises(BackendError, match="the plain engine can't be measured"):
        PLAIN.slowdown(CHAINS[0], TABLE, 1)
    with pytest.raises(BackendError, match="the plain engine has no table"):
        PLAIN.measure_costs([1])
