"""How fast this machine is against a table of costs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from olac.backends import session, speed
from olac.backends.cost import LIGHT, Slowdown, predicted_seconds
from olac.backends.openfhe.session import ENGINE as OPENFHE
from olac.backends.session import Engine, find_engine
from olac.backends.speed import Sample
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


SHORT = speed.short_chain(CHAINS[0])
PRICES = {name: predicted_seconds(TABLE, name, SHORT, speed.measured_level(SHORT), 1) for name in ("add", "encode")}
MEASURED = (({"add": 2}, 2 * PRICES["add"]), ({"encode": 1}, PRICES["encode"]))


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
@pytest.mark.parametrize("engine", ["openfhe", "vector"])
@pytest.mark.parametrize("parameters", CHAINS)
def test_every_sample_really_runs(parameters: Parameters, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all of them at 3 s, and light primitives at 1 s and heavy ones at 1.5 s in the table."""
    counts: list[int] = []

    def three_seconds(call: Callable[[], object]) -> float:
        assert call() is not None
        return 3.0

    def seconds(table: CostTable, name: str, *_: object) -> float:
        counts.append(name in LIGHT)
        return 1.0 if name in LIGHT else 1.5

    monkeypatch.setattr(speed, "_seconds", three_seconds)
    monkeypatch.setattr(speed, "predicted_seconds", seconds)
    used = find_engine(engine)
    samples = used.samples(speed.short_chain(parameters))
    light = [one.primitives for one in samples if all(name in LIGHT for name in one.primitives)]
    heavy = [one.primitives for one in samples if not any(name in LIGHT for name in one.primitives)]
    assert light and heavy and len(light) + len(heavy) == len(samples)
    found = used.slowdown(parameters, CostTable.default(used.model), 1)
    primitives = sum(sum(one.values()) for one in light)
    assert found.light == pytest.approx(3.0 * len(light) / primitives) and found.heavy == pytest.approx(2.0)
    assert 0 < sum(counts) < len(counts)


@pytest.mark.encrypted
def test_a_process_measures_once_for_each_kind_of_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Parameters] = []

    def samples(self: Engine, parameters: Parameters) -> list[Sample]:
        asked.append(parameters)
        return [Sample({"add": 2}, lambda: None), Sample({"encode": 1}, lambda: None)]

    monkeypatch.setattr(type(OPENFHE), "samples", samples)
    monkeypatch.setattr(session, "measure", lambda samples: MEASURED)
    assert OPENFHE.slowdown(CHAINS[0], TABLE, 1) == Slowdown(1.0, 1.0)
    longer = Parameters(12, 11, 32, 40, 3, FIXED, security=0)  # the same short chain
    assert OPENFHE.slowdown(longer, TABLE, 1) == Slowdown(1.0, 1.0) and len(asked) == 1
    OPENFHE.slowdown(CHAINS[2], TABLE, 1)
    OPENFHE.slowdown(CHAINS[0], TABLE, 2)
    assert len(asked) == 3


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
    for seconds, bound in ((1e9, speed.MOST), (0.0, speed.LEAST)):
        measured = [({"add": 1}, seconds), ({"hoist": 1}, seconds)]
        assert speed.slowdown(measured, SHORT, TABLE, 1) == Slowdown(bound, bound)


def test_an_engine_that_cannot_be_measured_says_so() -> None:
    from tests.backends.plain_engine import ENGINE as PLAIN

    assert PLAIN.model is OPENFHE.model
    with pytest.raises(BackendError, match="the plain engine can't be measured"):
        PLAIN.slowdown(CHAINS[0], TABLE, 1)
    with pytest.raises(BackendError, match="the plain engine has no table"):
        PLAIN.measure_costs([1])
