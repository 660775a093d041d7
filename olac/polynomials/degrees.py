"""Which degree each activation gets: exact dynamic programs on plain numbers.

The model is additive, sum_i cost_i(choice_i) subject to sum_i price_i(choice_i) <= budget, as in optimized layerwise
approximation (Lee et al., arXiv 2310.10349): there, cost_i = alpha_i E_i(degree), and price_i is a run time. olac
measures its costs (`olac.approximation.effects`). A price is a depth in levels or any run time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from olac.system.arrays import Array

STEPS = 4096
"""Run times are counted in steps of budget / STEPS, rounded up, so that a plan never takes longer than allowed."""


@dataclass(frozen=True)
class Solution:
    """One choice for each activation, as an index into its costs, and the price and cost of all in the model."""

    choices: tuple[int, ...]
    price: float
    cost: float


@dataclass(frozen=True)
class FrontPoint:
    """One plan on the Pareto front of depth, or predicted time, against agreement.

    Attributes:
        price: levels, or seconds, of all activations together.
        cost: what the additive model says of the change of the outputs.
        degrees: of the activations, in network order.
        agreement: share of held-out images with the same largest output, simulated; None if it was not simulated.
        chosen: whether it is the plan that was taken.
    """

    price: float
    cost: float
    degrees: tuple[int, ...]
    agreement: float | None = None
    chosen: bool = False


def _table(costs: Sequence[Array], prices: Sequence[npt.NDArray[np.int64]], budget: int) -> tuple[Array, list[Array]]:
    """best[t] after all activations, and the choice of each activation at each t; memory activations x (budget + 1)."""
    best = np.zeros(budget + 1)
    taken = []
    for cost, price in zip(costs, prices, strict=True):
        options = np.full((len(cost), budget + 1), math.inf)
        for k, (c, p) in enumerate(zip(cost, price, strict=True)):
            if p <= budget and math.isfinite(c):
                options[k, p:] = best[: budget + 1 - p] + c
        choice = np.argmin(options, axis=0)
        best = options[choice, np.arange(budget + 1)]
        taken.append(choice.astype(np.int16))
    return best, taken


def _walk(taken: list[Array], prices: Sequence[npt.NDArray[np.int64]], budget: int) -> tuple[int, ...]:
    left, choices = budget, []
    for choice, price in zip(reversed(taken), reversed(prices), strict=True):
        k = int(choice[left])
        choices.append(k)
        left -= int(price[k])
    return tuple(reversed(choices))


def _whole(
    costs: Sequence[Sequence[float]], prices: Sequence[Sequence[int]]
) -> tuple[list[Array], list[npt.NDArray[np.int64]]]:
    if len(costs) != len(prices) or any(len(c) != len(p) or not len(c) for c, p in zip(costs, prices, strict=False)):
        raise ValueError("each activation needs a cost and a price for each of its choices, and at least one")
    whole = [np.asarray(p, dtype=np.int64) for p in prices]
    if any((p < 0).any() for p in whole):
        raise ValueError("prices are not negative")
    return [np.asarray(c, dtype=np.float64) for c in costs], whole


def solve(costs: Sequence[Sequence[float]], prices: Sequence[Sequence[float]], budget: float) -> Solution | None:
    """The plan of least cost whose price is within the budget; None if there is none.

    Args:
        costs: for each activation the cost of each choice; an infinite one is never taken.
        prices: the price of each choice: whole numbers (exact), or run times (rounded up to budget / STEPS).
        budget: largest sum of prices.
    """
    whole = all(float(p).is_integer() for row in prices for p in row)
    unit = 1.0 if whole or budget <= 0 else budget / STEPS
    steps = [[math.ceil(p / unit - 1e-9) for p in row] for row in prices]
    limit = math.floor(budget / unit + 1e-9)
    if limit < 0:
        return None
    table_costs, table_prices = _whole(costs, steps)
    limit = min(limit, sum(int(p.max()) for p in table_prices))
    best, taken = _table(table_costs, table_prices, limit)
    if not math.isfinite(best[limit]):
        return None
    choices = _walk(taken, table_prices, limit)
    return Solution(choices, float(sum(row[k] for row, k in zip(prices, choices, strict=True))), float(best[limit]))


def front(costs: Sequence[Sequence[float]], prices: Sequence[Sequence[int]]) -> list[Solution]:
    """The Pareto front: for each price at which the least cost falls, the plan, with prices ascending.

    Prices are whole numbers, such as levels. One table serves all budgets.
    """
    table_costs, table_prices = _whole(costs, prices)
    limit = sum(int(p.max()) for p in table_prices)
    best, taken = _table(table_costs, table_prices, limit)
    plans: list[Solution] = []
    for t in range(limit + 1):
        if math.isfinite(best[t]) and (not plans or best[t] < plans[-1].cost):
            plans.append(Solution(_walk(taken, table_prices, t), float(t), float(best[t])))
    return plans
