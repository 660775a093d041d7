"""What `--strategies` takes."""

from __future__ import annotations

import pytest

from benchmarks.strategies import family_of, lowering_of, parse_strategies
from olac.polynomials.modes import FitOptions


@pytest.mark.parametrize(
    ("item", "options"),
    [
        ("uniform:7", FitOptions(degree=7)),
        ("normal:3", FitOptions(method="normal", degree=3)),
        ("empirical:5", FitOptions(method="empirical", degree=5)),
        ("channel:2", FitOptions(method="channel", degree=2)),
        ("minimax:12", FitOptions(method="minimax", alpha=12)),
        ("quadratic", FitOptions(method="quadratic")),
        ("ola:38", FitOptions(method="normal", degrees="ola", max_depth=38)),
        ("default:42", FitOptions(max_depth=42)),
        ("relu", None),
        ("plan:3-7-2", FitOptions(plan=(3, 7, 2))),
        ("plan:5", FitOptions(plan=(5,))),
    ],
)
def test_items(item: str, options: FitOptions | None) -> None:
    (strategy,) = parse_strategies([item])
    assert strategy.item == item
    assert strategy.fit == options


@pytest.mark.parametrize(
    "arguments", [["uniform:3,relu,ola:9"], ["uniform:3", "relu", "ola:9"], ["uniform:3, relu", "ola:9,,uniform:3"]]
)
def test_commas_and_spaces(arguments: list[str]) -> None:
    assert [strategy.item for strategy in parse_strategies(arguments)] == ["uniform:3", "relu", "ola:9"]


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ("bogus:3", "allowed are uniform:DEGREE"),
        ("uniform", "uniform:DEGREE"),
        ("uniform:", "uniform:DEGREE"),
        ("uniform:x", "whole numbers"),
        ("uniform:-3", "whole numbers"),
        ("uniform:\N{SUPERSCRIPT TWO}", "whole numbers"),
        ("quadratic:2", "quadratic"),
        ("relu:", "relu"),
        ("uniform:0", "1 ... 127"),
        ("minimax:3", "4 ... 14"),
        ("ola:0", "max_depth"),
        ("plan:3--7", "plan:DEGREE-DEGREE-..."),
        ("plan:", "plan:DEGREE-DEGREE-..."),
        ("plan:3-0", "1 ... 127"),
    ],
)
def test_refused(item: str, why: str) -> None:
    with pytest.raises(ValueError, match="strategy") as caught:
        parse_strategies([f"uniform:3,{item}"])
    assert repr(item) in str(caught.value)
    assert why in str(caught.value)


def test_lowerings() -> None:
    found = parse_strategies(["uniform:3,uniform:3@multiplexed,quadratic@diagonals"], "auto")
    assert [(s.item, s.fit, s.convolutions) for s in found] == [
        ("uniform:3", FitOptions(degree=3), "auto"),
        ("uniform:3@multiplexed", FitOptions(degree=3), "multiplexed"),
        ("quadratic@diagonals", FitOptions(method="quadratic"), "diagonals"),
    ]
    found = parse_strategies(["uniform:3,uniform:3@multiplexed,uniform:3@auto"], "multiplexed")
    assert [(s.item, s.convolutions) for s in found] == [
        ("uniform:3@multiplexed", "multiplexed"),
        ("uniform:3", "auto"),
    ]
    assert (family_of("uniform:3@multiplexed"), family_of("quadratic@diagonals")) == ("uniform", "quadratic")
    assert (lowering_of("uniform:3@multiplexed"), lowering_of("quadratic")) == ("@multiplexed", "")


@pytest.mark.parametrize(
    ("item", "why"), [("uniform:3@", "'' is no lowering"), ("uniform:3@fastest", "'fastest' is no")]
)
def test_lowerings_that_are_none(item: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_strategies([item], "auto")


def test_nothing_is_lowered_for_accuracies() -> None:
    with pytest.raises(ValueError, match="'uniform:3@multiplexed' is unknown"):
        parse_strategies(["uniform:3@multiplexed"])


def test_nothing() -> None:
    with pytest.raises(ValueError, match=r"no strategy is given; allowed are .*bootstraps:COUNT, auto, quad"):
        parse_strategies([" ,"])
