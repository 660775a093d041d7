"""What `--strategies` takes: items such as `uniform:7` or `ola:38`, each a way to approximate all activations."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from olac.passes.choose_lowerings import Convolutions, kinds
from olac.polynomials.modes import FitOptions

RELU = "relu"
"""The model with its own activations."""

WITH_NUMBER: dict[str, tuple[str, Callable[[int], FitOptions]]] = {
    "uniform": ("DEGREE", lambda n: FitOptions(degree=n)),
    "normal": ("DEGREE", lambda n: FitOptions(method="normal", degree=n)),
    "empirical": ("DEGREE", lambda n: FitOptions(method="empirical", degree=n)),
    "channel": ("DEGREE", lambda n: FitOptions(method="channel", degree=n)),
    "minimax": ("ALPHA", lambda n: FitOptions(method="minimax", alpha=n)),
    "ola": ("DEPTH", lambda n: FitOptions(method="normal", degrees="ola", max_depth=n)),
    "default": ("DEPTH", lambda n: FitOptions(max_depth=n)),
    "bootstraps": ("COUNT", lambda n: FitOptions(max_bootstraps=n)),
}
"""By family: what its number means, and the options that it stands for."""

ALONE: dict[str, Callable[[], FitOptions | None]] = {
    "auto": FitOptions,
    "quadratic": lambda: FitOptions(method="quadratic"),
    RELU: lambda: None,
}

PLAN = "plan"
"""Followed by the degrees, one for each activation in network order, joined by hyphens."""

AT = "@"
"""Followed by the lowering of convolutions, in items that are lowered: `uniform:3@multiplexed`."""

AUTO: Final = "auto"

FINETUNE = "finetune"
"""Followed by the number of epochs, in rows of `python -m benchmarks finetune`."""

FAMILIES = (*WITH_NUMBER, *ALONE, PLAN, FINETUNE)


class StrategyError(ValueError):
    """An item that is not a strategy; the message names it and says what is allowed."""


@dataclass(frozen=True)
class Strategy:
    """One item of the list.

    Attributes:
        item: as it was written, with its lowering unless that is "auto".
        fit: None for the model with its own activations.
        convolutions: how they are lowered, as in `olac.CompileOptions`.
    """

    item: str
    fit: FitOptions | None
    convolutions: Convolutions = AUTO


def family_of(item: str) -> str:
    """The part before the colon: a plot draws one line for each."""
    return item.split(AT, 1)[0].split(":", 1)[0]


def lowering_of(item: str) -> str:
    """The part from the @ on, or ""."""
    return item[len(item.split(AT, 1)[0]) :]


def parse_strategies(arguments: Sequence[str], lowering: str | None = None) -> tuple[Strategy, ...]:
    """The strategies of a list with commas or spaces between its items, in order, without repetitions.

    Args:
        lowering: of convolutions in items that don't name one; None if nothing is lowered and items must not name one.

    Raises StrategyError for the first invalid item.
    """
    items = [item for argument in arguments for item in re.split(r"[,\s]+", argument) if item]
    if not items:
        raise StrategyError(f"no strategy is given; {_allowed()}")
    found = (_parsed(item) if lowering is None else _lowered(item, lowering) for item in items)
    return tuple({strategy.item: strategy for strategy in found}.values())


def _lowered(item: str, lowering: str) -> Strategy:
    """The strategy of an item, with its own lowering or else the given one."""
    plain, at, own = item.partition(AT)
    how = own if at else lowering
    if how not in kinds():
        raise StrategyError(f"strategy {item!r}: {how!r} is no lowering; there are {', '.join(kinds())}")
    strategy = _parsed(plain)
    return strategy if how == AUTO else replace(strategy, item=f"{plain}{AT}{how}", convolutions=how)


def _parsed(item: str) -> Strategy:
    family, colon, number = item.partition(":")
    if family in ALONE and not colon:
        return Strategy(item, ALONE[family]())
    if family == PLAN and re.fullmatch(r"[0-9]{1,3}(-[0-9]{1,3})*", number):
        return _made(item, lambda: FitOptions(plan=tuple(int(degree) for degree in number.split("-"))))
    if family not in WITH_NUMBER or not re.fullmatch(r"[0-9]{1,6}", number):
        raise StrategyError(f"strategy {item!r} is unknown; {_allowed()}")
    return _made(item, lambda: WITH_NUMBER[family][1](int(number)))


def _made(item: str, options: Callable[[], FitOptions]) -> Strategy:
    try:
        return Strategy(item, options())
    except ValueError as error:
        raise StrategyError(f"strategy {item!r}: {error}") from error


def _allowed() -> str:
    known = [*(f"{family}:{number}" for family, (number, _) in WITH_NUMBER.items()), *ALONE]
    return f"allowed are {', '.join(known)}, {PLAN}:DEGREE-DEGREE-..., with whole numbers for DEGREE, ALPHA and DEPTH"
