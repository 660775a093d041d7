"""Methods of fitting and choices of degrees: what is refused where it is made, and keywords that become types."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from olac.polynomials.modes import (
    KEYWORDS,
    METHODS,
    RULES,
    Agreement,
    Channel,
    Compensated,
    Degrees,
    Empirical,
    FitOptions,
    Fixed,
    Method,
    Minimax,
    Normal,
    Plan,
    Quadratic,
    Tolerance,
    Within,
)


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ({"method": "chanel"}, "method 'chanel' is not one of compensated, channel"),
        ({"degrees": "measure"}, "degrees 'measure' is not one of measured, ola"),
        ({"degree": 0}, "degree 0 is outside 1 ... 127"),
        ({"degree": 128}, "degree 128 is outside"),
        ({"max_degree": 0}, "max_degree 0 is outside"),
        ({"max_degree": 128}, "max_degree 128 is outside"),
        ({"max_depth": 0}, "max_depth 0 is below 1"),
        ({"max_depth": 3, "max_latency": 1.0}, "max_depth or max_latency, not both"),
        ({"min_agreement": 0.0}, "min_agreement 0.0 is outside"),
        ({"min_agreement": 1.1}, "min_agreement 1.1 is outside"),
        ({"min_agreement": math.nan}, "min_agreement nan is outside"),
        ({"tolerance": 0.0}, "tolerance 0.0 is not positive"),
        ({"tolerance": -1.0}, "tolerance -1.0 is not positive"),
        ({"max_latency": 0.0}, "max_latency 0.0 is not positive"),
        ({"r": 0.0}, "r 0.0 is not positive"),
        ({"r": math.nan}, "r nan is not positive"),
        ({"floor": 0.0}, "floor 0.0 is outside"),
        ({"floor": 1.0}, "floor 1.0 is outside"),
        ({"padding": 0.9}, "padding 0.9 is below 1"),
        ({"padding": math.nan}, "padding nan is below 1"),
        ({"ridge": -1e-9}, "ridge -1e-09 is negative"),
        ({"alpha": 3}, "alpha 3 is outside"),
        ({"alpha": 15}, "alpha 15 is outside"),
        ({"reconstruct": -1}, "reconstruct -1 is negative"),
    ],
)
def test_bad_options_are_refused(choices: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        FitOptions(**choices)


@pytest.mark.parametrize("choices", [{"degree": "three"}, {"plan": (2, "7")}, {"tolerance": "0.1"}])
def test_a_value_of_a_wrong_type_is_named(choices: dict[str, Any]) -> None:
    (name,) = choices
    with pytest.raises(TypeError, match=rf"{name} is .*, and .* needed"):
        FitOptions(**choices)


def test_the_ends_of_what_options_allow() -> None:
    for method in METHODS:
        assert FitOptions(method=method).method == method
    FitOptions(degree=1, max_degree=127, max_depth=1, min_agreement=1.0, padding=1.0, ridge=0.0, alpha=4, reconstruct=0)
    FitOptions(degree=127, max_degree=1, max_latency=1e-9, alpha=14, degrees="ola")


def test_every_keyword_with_a_range_has_a_rule() -> None:
    switches = {"method", "degrees", "refit", "effort"}
    assert set(RULES) == set(KEYWORDS) - switches


@pytest.mark.parametrize(
    ("keywords", "method"),
    [
        ({}, Compensated()),
        (
            {"ridge": 0.1, "refit": False, "reconstruct": 3, "floor": 0.2},
            Compensated(floor=0.2, ridge=0.1, refit=False, reconstruct=3),
        ),
        ({"method": "channel", "padding": 1.5, "alpha": 7}, Channel(padding=1.5)),
        ({"method": "empirical", "floor": 0.2}, Empirical(floor=0.2)),
        ({"method": "normal", "r": 1.5}, Normal(1.5)),
        ({"method": "minimax", "alpha": 7, "r": 1.0}, Minimax(7)),
        ({"method": "minimax", "padding": 1.0}, Minimax(padding=1.0)),
        ({"method": "quadratic", "degree": 5}, Quadratic()),
    ],
)
def test_keywords_make_a_method(keywords: dict[str, Any], method: Method) -> None:
    assert FitOptions(**keywords).fitting == method


@pytest.mark.parametrize(
    ("keywords", "choice"),
    [
        ({}, Agreement()),
        ({"min_agreement": 0.9, "degrees": "ola", "max_degree": 15}, Agreement(0.9, effects="ola", max_degree=15)),
        ({"max_depth": 20, "min_agreement": 0.9}, Within(levels=20, min_agreement=0.9)),
        ({"max_latency": 2.5}, Within(seconds=2.5)),
        ({"max_bootstraps": 0}, Within(bootstraps=0)),
        ({"degree": 7, "max_bootstraps": 3, "min_agreement": 0.9}, Fixed(7)),
        ({"plan": (3, 7)}, Plan((3, 7))),
        ({"tolerance": 0.1, "max_degree": 31}, Tolerance(0.1, 31)),
    ],
)
def test_keywords_make_a_choice(keywords: dict[str, Any], choice: Degrees) -> None:
    assert FitOptions(**keywords).choice == choice


@pytest.mark.parametrize(
    "method",
    [Compensated(refit=False), Channel(floor=0.1), Empirical(), Normal(1.5), Minimax(7, 1.1), Quadratic()],
)
@pytest.mark.parametrize(
    "degrees",
    [Fixed(3), Plan((3, 7)), Tolerance(0.1), Within(levels=9, effects="ola"), Within(seconds=2.0), Agreement(0.9)],
)
def test_types_stand_in_the_place_of_strings(method: Method, degrees: Degrees) -> None:
    options = FitOptions(method=method, degrees=degrees)
    assert (options.fitting, options.choice) == (method, degrees)
    assert options.method in METHODS and options.degrees in ("measured", "ola")
    assert replace(options) == options


@pytest.mark.parametrize("degrees", [[3, 7], np.array([3, 7])])
def test_plans_may_be_any_sequence(degrees: Any) -> None:
    for options in (FitOptions(plan=degrees), FitOptions(degrees=Plan(degrees))):
        assert replace(options, r=3.0).choice == Plan((3, 7))


def test_what_is_told_leaves_room_for_a_limit_and_an_aim() -> None:
    options = FitOptions(degrees=Fixed(7), max_bootstraps=3, min_agreement=0.9)
    assert (options.choice, options.max_bootstraps, options.min_agreement) == (Fixed(7), 3, 0.9)
    assert FitOptions(degrees=Within(bootstraps=3)).max_bootstraps == 3


@pytest.mark.parametrize(
    ("keywords", "why"),
    [
        ({"method": Minimax(7), "alpha": 8}, "alpha can't stand beside method=Minimax"),
        ({"method": Channel(), "alpha": 8, "padding": 1.5}, "alpha and padding can't stand beside method=Channel"),
        ({"degrees": Within(levels=9), "min_agreement": 0.9}, "min_agreement can't stand beside degrees=Within"),
        ({"degrees": Fixed(7), "max_depth": 9}, "max_depth can't stand beside degrees=Fixed"),
        ({"method": Minimax}, "method .* is not one of"),
    ],
)
def test_keywords_beside_a_type_are_refused(keywords: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        FitOptions(**keywords)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Within(), "give one limit"),
        (lambda: Within(levels=9, bootstraps=2), "give one limit"),
        (lambda: Within(levels=0), "levels 0 is below 1"),
        (lambda: Agreement(1.5), "share 1.5 is outside 0 ... 1"),
        (lambda: Agreement(effects="guessed"), "effects 'guessed' is not one of measured, ola"),  # type: ignore[arg-type]
        (lambda: Plan((3, 0)), r"degrees \(3, 0\) has a degree outside 1 ... 127"),
        (lambda: Fixed(128), "degree 128 is outside"),
        (lambda: Tolerance(math.nan), "rmse nan is not positive"),
        (lambda: Minimax(15), "alpha 15 is outside 4 ... 14"),
        (lambda: Normal(0.0), "r 0.0 is not positive"),
        (lambda: Compensated(ridge=-1.0), "ridge -1.0 is negative"),
        (lambda: Fixed(None), "degree is None"),  # type: ignore[arg-type]
        (lambda: Plan(None), "degrees is None"),  # type: ignore[arg-type]
        (lambda: Minimax(padding=None), "padding is None"),  # type: ignore[arg-type]
    ],
)
def test_types_refuse_what_makes_no_sense(make: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()
    with pytest.raises(TypeError):
        Channel(ridge=0.1)  # type: ignore[call-arg]


def test_tails_by_degree_and_as_given() -> None:
    assert Channel().tails(3) == (1e-4, 1.2)
    assert Channel().tails(4) == (1e-3, 1.4)
    assert Channel(floor=0.5).tails(3) == (0.5, 1.2)
    assert Channel(padding=2.0).tails(7) == (1e-3, 2.0)
