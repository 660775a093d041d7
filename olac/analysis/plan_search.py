"""Which plans are tried and fitted to find the cheapest that agrees as often as asked, on plain numbers.

Plans stand in a row, from the cheapest to the most accurate. The agreement of a plan after the whole fit is forecast
from a quick fit, a *trial*. Between plans it is guessed: the share of images that disagree grows with the size of the
errors, the root of the cost in the additive model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

POWER, LEAST_POWER, MOST_POWER = 0.5, 0.1, 10.0
"""The share that disagrees grows with this power of the cost; two trials tell a power within these bounds."""
TINY = 1e-9
NEARLY = 0.002
"""A plan of which altered images diverge loses against one of which none does, if that has an agreement no more than
this below."""
FITS = 2
"""How many plans are fitted as a whole, at most: the one that the forecast names, and a dearer one if that falls short
of its forecast."""


@dataclass(frozen=True)
class Finalist(Generic[T]):
    """A plan after the whole fit.

    Attributes:
        index: in the row of plans.
        agreement: on held-out images.
        diverging: how many altered copies of images diverge.
        fitted: the result of the fit.
    """

    index: int
    agreement: float
    diverging: int
    fitted: T


def guessed(agreement: float, cost: float, other: float, power: float = POWER) -> float:
    """Agreement of a plan of cost `other`, from that of a plan of cost `cost`."""
    if agreement >= 1 or cost <= 0 or not math.isfinite(cost):
        return agreement
    return 1 - (1 - agreement) * math.pow(max(other, 0.0) / cost, power)


def first_guessed(index: int, agreement: float, costs: Sequence[float], asked: float, power: float = POWER) -> int:
    """The first plan of a row that has the agreement by a guess from plan `index`; the last if none has."""
    enough = (j for j, cost in enumerate(costs) if guessed(agreement, costs[index], cost, power) >= asked)
    return next(enough, len(costs) - 1)


def first_enough(costs: Sequence[float], forecast: Callable[[int], float], asked: float) -> int | None:
    """The first plan whose forecast is at least `asked`, if forecasts rise along the row; None if the last has less.

    The plan before it was tried as well. Plans are tried where the agreement is guessed to be `asked`, and every third
    time in the middle of those that are left, so that wrong guesses cost little.

    Args:
        costs: of the plans in the additive model, which fall along the row.
        forecast: tries a plan.
        asked: the agreement.
    """
    low, high = 0, len(costs)  # the plan is one of low ... high, and `high` is known to be enough or beyond the row
    tried: dict[int, float] = {}
    while low < high:
        middle = (low + high) // 2
        if tried and len(tried) % 3:
            middle = min(max(_guess(tried, costs, asked), low), high - 1)
        tried[middle] = forecast(middle)
        if tried[middle] >= asked:
            high = middle
        else:
            low = middle + 1
    return high if high < len(costs) else None


def _guess(tried: Mapping[int, float], costs: Sequence[float], asked: float) -> int:
    """The first plan that is guessed to be enough, from the plans that came nearest."""

    def distance(index: int) -> float:
        return abs(math.log((1 - tried[index] + TINY) / (1 - asked + TINY)))

    nearest, *others = sorted(tried, key=distance)
    power = POWER
    if others and tried[nearest] < 1 and tried[others[0]] < 1 and costs[nearest] * costs[others[0]] > 0:
        across = math.log(costs[others[0]] / costs[nearest])
        power = math.log((1 - tried[others[0]]) / (1 - tried[nearest])) / across if across else POWER
    return first_guessed(nearest, tried[nearest], costs, asked, min(max(power, LEAST_POWER), MOST_POWER))


def finalists(
    first: int,
    costs: Sequence[float],
    fit: Callable[[int], Finalist[T]],
    asked: float,
    required: bool,
    sound: bool,
    most: int = FITS,
) -> list[Finalist[T]]:
    """Fits the plan `first` and, if it falls short, the dearer one that should do.

    Args:
        first: the plan that is fitted first.
        costs: of all plans of the row.
        fit: fits a plan as a whole.
        asked: the agreement.
        required: whether the most accurate plan is fitted as well before it is said that no plan is enough.
        sound: whether a dearer plan is fitted as well if altered images diverge.
        most: how many plans are fitted at most, besides the most accurate one.
    """
    found = [fit(first)]
    while len(found) < most and found[-1].index < len(costs) - 1:
        last = found[-1]
        if last.agreement >= asked and not (sound and last.diverging):
            break
        after = last.index + 1
        found.append(fit(max(after, first_guessed(last.index, last.agreement, costs, asked))))
    if required and found[-1].index < len(costs) - 1 and all(one.agreement < asked for one in found):
        found.append(fit(len(costs) - 1))
    return found


def preferred(found: Sequence[Finalist[T]], asked: float, required: bool) -> Finalist[T]:
    """The finalist that is taken.

    It is the cheapest that has the agreement, or else the one that has most. If some of its altered images diverge, and
    none of another's that has nearly the same agreement, the other is taken.

    Args:
        found: at least one.
        asked: the agreement.
        required: whether a plan with less is never taken for one that has it.
    """
    enough = [one for one in found if one.agreement >= asked]
    taken = min(enough, key=lambda one: one.index) if enough else max(found, key=lambda one: one.agreement)
    if not taken.diverging:
        return taken
    least = taken.agreement - NEARLY
    if required and enough:
        least = max(least, asked)
    sound = [one for one in found if not one.diverging and one.agreement >= least]
    return min(sound, key=lambda one: one.index) if sound else taken
