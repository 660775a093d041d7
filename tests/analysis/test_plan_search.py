"""Which plans are tried, fitted and taken: against the cheapest of all, by trying every one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from olac.analysis.plan_search import FITS, NEARLY, Finalist, finalists, first_enough, first_guessed, guessed, preferred


def falling(count: int, seed: int, power: float) -> tuple[list[float], list[float]]:
    """Costs of a row of plans, and agreements whose shortage is about a power of the costs."""
    rng = random.Random(seed)
    costs = sorted((rng.uniform(1e-3, 1.0) for _ in range(count)), reverse=True)
    shortages = sorted((0.4 * cost**power * rng.uniform(0.8, 1.2) for cost in costs), reverse=True)
    return costs, [1 - shortage for shortage in shortages]


def test_the_share_that_disagrees_grows_with_the_root_of_the_cost() -> None:
    assert guessed(0.9, 1.0, 4.0) == pytest.approx(0.8)
    assert guessed(0.9, 1.0, 0.25) == pytest.approx(0.95)
    assert guessed(1.0, 1.0, 4.0) == 1.0
    assert guessed(0.9, 0.0, 4.0) == 0.9
    assert first_guessed(0, 0.9, [1.0, 0.5, 0.24, 0.1], 0.95) == 2
    assert first_guessed(0, 0.9, [1.0, 0.5], 0.999) == 1


@pytest.mark.parametrize("power", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_the_first_plan_that_is_enough_is_found_with_few_trials(count: int, power: float) -> None:
    trials = []
    for seed in range(20):
        costs, agreements = falling(count, seed, power)
        for asked in (0.5, 0.7, 0.9, 0.95, 0.99, 0.9999, 1.0):
            tried: list[int] = []

            def forecast(index: int, tried: list[int] = tried, agreements: list[float] = agreements) -> float:
                tried.append(index)
                return agreements[index]

            found = first_enough(costs, forecast, asked)
            assert found == next((k for k, one in enumerate(agreements) if one >= asked), None)
            assert len(set(tried)) == len(tried) <= 2 * count.bit_length()
            trials.append(len(tried))
    assert sum(trials) / len(trials) <= count.bit_length()


def test_guesses_save_trials_if_agreements_are_as_the_costs_say() -> None:
    costs = [0.9**k for k in range(60)]
    most = 0
    for asked in (0.65, 0.8, 0.9, 0.95, 0.97):
        tried: list[int] = []

        def forecast(index: int, tried: list[int] = tried) -> float:
            tried.append(index)
            return guessed(0.6, costs[0], costs[index])

        first_enough(costs, forecast, asked)
        most = max(most, len(tried))
    assert most <= 4


def fits(agreements: list[float], diverging: list[int]) -> tuple[list[int], Callable[[int], Finalist[str]]]:
    order: list[int] = []

    def fit(index: int) -> Finalist[str]:
        order.append(index)
        return Finalist(index, agreements[index], diverging[index], f"plan {index}")

    return order, fit


COSTS = [1.0, 0.8, 0.6, 0.4, 0.2]


@pytest.mark.parametrize(
    ("agreements", "diverging", "required", "fitted", "taken"),
    [
        ([0.90, 0.99, 0.99, 0.99, 0.99], [0] * 5, False, [1], 1),  # it keeps what the forecast promised
        ([0.90, 0.96, 0.97, 0.98, 0.99], [0] * 5, False, [1, 4], 4),  # short: the root of the cost says which is next
        ([0.90, 0.979, 0.985, 0.98, 0.99], [0] * 5, False, [1, 2], 2),  # a little short
        ([0.90, 0.96, 0.97, 0.98, 0.95], [0] * 5, False, [1, 4], 1),  # none is enough: the best
        ([0.90, 0.98, 0.985, 0.98, 0.99], [0, 3, 0, 0, 0], False, [1, 2], 2),  # altered images diverge
        ([0.90, 0.98, 0.9785, 0.98, 0.99], [0, 3, 0, 0, 0], False, [1, 2], 2),  # nearly as good, and none diverges
        ([0.90, 0.98, 0.9785, 0.98, 0.99], [0, 3, 0, 0, 0], True, [1, 2], 1),  # but it was required
        ([0.90, 0.98, 0.97, 0.98, 0.99], [0, 3, 0, 0, 0], False, [1, 2], 1),  # not nearly as good
        ([0.90, 0.98, 0.985, 0.98, 0.99], [0, 3, 1, 0, 0], False, [1, 2], 1),  # the dearer diverges as well
        ([0.90, 0.979, 0.9791, 0.98, 0.99], [0] * 5, True, [1, 2, 4], 4),  # the last, before it is said that none is
    ],
)
def test_which_plans_are_fitted_and_which_is_taken(
    agreements: list[float], diverging: list[int], required: bool, fitted: list[int], taken: int
) -> None:
    order, fit = fits(agreements, diverging)
    found = finalists(1, COSTS, fit, 0.98, required, sound=True)
    assert order == fitted and len(found) <= FITS + required
    chosen = preferred(found, 0.98, required)
    assert (chosen.index, chosen.fitted) == (taken, f"plan {taken}")


def test_images_that_diverge_lead_to_a_second_fit_only_if_asked() -> None:
    for sound in (False, True):
        order, fit = fits([0.9, 0.985, 0.99, 0.99, 0.99], [0, 3, 0, 0, 0])
        found = finalists(1, COSTS, fit, 0.98, False, sound)
        assert order == ([1, 2] if sound else [1])
        assert preferred(found, 0.98, False).index == order[-1]


def test_the_preferred_finalist_is_the_same_in_any_order() -> None:
    found = [Finalist(0, 0.985, 2, ""), Finalist(1, 0.985 - NEARLY / 2, 0, ""), Finalist(2, 0.99, 0, "")]
    for some in itertools.permutations(found):
        assert preferred(some, 0.98, True) is found[1]
