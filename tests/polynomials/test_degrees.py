"""The dynamic programs over degrees, against brute force."""

from __future__ import annotations

import itertools
import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from olac.polynomials.degrees import front, solve

Rows = list[list[float]]


def brute_force(costs: Rows, prices: Rows, budget: float) -> float:
    """Least cost of all plans within the budget."""
    best = math.inf
    for choices in itertools.product(*(range(len(row)) for row in costs)):
        if sum(row[k] for row, k in zip(prices, choices, strict=True)) <= budget:
            best = min(best, sum(row[k] for row, k in zip(costs, choices, strict=True)))
    return best


@st.composite
def problems(draw: st.DrawFn, whole: bool = True) -> tuple[Rows, Rows]:
    """Costs and prices of one to five activations with one to four choices each."""
    price = st.integers(0, 6).map(float) if whole else st.floats(0.0, 5.0)
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    costs = [draw(st.lists(st.floats(0, 10), min_size=n, max_size=n)) for n in sizes]
    prices = [draw(st.lists(price, min_size=n, max_size=n)) for n in sizes]
    return costs, prices


@settings(max_examples=200, deadline=None)
@given(problems(), st.integers(0, 25))
def test_depths_are_solved_exactly(problem: tuple[Rows, Rows], budget: int) -> None:
    costs, prices = problem
    plan, least = solve(costs, prices, budget), brute_force(costs, prices, budget)
    if plan is None:
        assert least == math.inf
        return
    assert plan.cost == pytest.approx(least)
    assert plan.price <= budget
    assert plan.cost == pytest.approx(sum(row[k] for row, k in zip(costs, plan.choices, strict=True)))
    assert plan.price == sum(row[k] for row, k in zip(prices, plan.choices, strict=True))


@settings(max_examples=100, deadline=None)
@given(problems(whole=False), st.floats(0.1, 20))
def test_run_times_stay_within_the_budget_and_close_to_the_best(problem: tuple[Rows, Rows], budget: float) -> None:
    costs, prices = problem
    plan = solve(costs, prices, budget)
    if plan is None:  # rounding up may cost the last len(costs) steps of the budget
        assert brute_force(costs, prices, budget * (1 - 2 * len(costs) / 4096)) == math.inf
        return
    assert plan.price <= budget * (1 + 1e-9)
    # The budget itself is kept to within rounding, so the best plan within the same margin is what bounds it.
    assert brute_force(costs, prices, budget * (1 + 1e-9)) <= plan.cost + 1e-9
    assert plan.cost <= brute_force(costs, prices, budget * (1 - 2 * len(costs) / 4096)) + 1e-9


@settings(max_examples=100, deadline=None)
@given(problems())
def test_the_front_holds_the_best_plan_of_every_budget(problem: tuple[Rows, Rows]) -> None:
    costs, prices = problem
    plans = front(costs, [[int(p) for p in row] for row in prices])
    assert all(a.price < b.price and a.cost > b.cost for a, b in itertools.pairwise(plans))
    for budget in range(26):
        within = [plan.cost for plan in plans if plan.price <= budget]
        assert (min(within) if within else math.inf) == pytest.approx(brute_force(costs, prices, budget))


def test_a_choice_of_infinite_cost_is_never_taken() -> None:
    assert solve([[math.inf, 1.0]], [[1, 2]], 2).choices == (1,)  # type: ignore[union-attr]
    assert solve([[math.inf, 1.0]], [[1, 2]], 1) is None


@pytest.mark.parametrize(("costs", "prices"), [([[1.0]], [[1], [2]]), ([[]], [[]]), ([[1.0]], [[-1]])])
def test_bad_tables_are_refused(costs: Rows, prices: Rows) -> None:
    with pytest.raises(ValueError):
        solve(costs, prices, 3)


def test_resnet_110_is_quick_and_small() -> None:
    random = np.random.default_rng(0)
    costs = np.sort(random.exponential(size=(109, 6)))[:, ::-1].tolist()
    tracemalloc.start()
    start = time.perf_counter()
    plans = front(costs, [[1, 2, 3, 4, 5, 6]] * 109)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plans[0].price == 109 and plans[-1].price <= 654
    assert seconds < 5
    assert peak < 16e6
