"""Options of `compile`: declared keywords, the nearest name of what is mistyped, and types beside keywords."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

import olac
from olac.options import CompileOptions, FitKeywords, Keywords, with_choices


def declared(keywords: Any) -> dict[str, str]:
    return {name: kind.__forward_arg__ for name, kind in keywords.__annotations__.items()}


def test_keywords_are_declared_as_the_fields_that_they_stand_for() -> None:
    fit = {field.name: field.type for field in fields(olac.FitOptions)}
    assert declared(FitKeywords) == fit
    assert declared(Keywords) == fit | {field.name: field.type for field in fields(olac.CompileOptions)}


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("max_detph", "no option 'max_detph': did you mean max_depth?"),
        ("Method", "no option 'Method': did you mean method?"),
        ("pipline", "no option 'pipline': did you mean pipeline?"),
        ("min_agreemnt", "did you mean min_agreement?"),
        ("xyz", "no option 'xyz'; there are activations, alpha, "),
    ],
)
def test_an_unknown_keyword_is_answered_with_the_nearest(name: str, answer: str) -> None:
    unknown: Any = {name: 3}
    with pytest.raises(TypeError, match=answer.replace("?", r"\?")):
        with_choices(None, unknown)


def test_keywords_are_put_over_options() -> None:
    base = olac.CompileOptions(fit=olac.FitOptions(method="minimax", alpha=7, max_depth=20), batch=3)
    assert with_choices(base, {}) is not None and with_choices(base, {}) == base
    made = with_choices(base, {"alpha": 8, "security": 192})
    assert (made.fit.fitting, made.fit.choice, made.batch) == (olac.Minimax(8), olac.Within(levels=20), 3)
    assert made.security == 192


def test_types_replace_all_keywords_of_theirs() -> None:
    base = olac.CompileOptions(fit=olac.FitOptions(method="minimax", alpha=7, max_depth=20, min_agreement=0.9))
    made = with_choices(base, {"method": olac.Channel(padding=1.5), "degrees": olac.Within(bootstraps=3)}).fit
    assert (made.fitting, made.choice) == (olac.Channel(padding=1.5), olac.Within(bootstraps=3))
    assert made == olac.FitOptions(method="channel", padding=1.5, max_bootstraps=3)
    with pytest.raises(ValueError, match="alpha can't stand beside method=Minimax"):
        with_choices(None, {"method": olac.Minimax(7), "alpha": 8})


def test_a_caller_may_give_all_of_fit_and_single_keywords() -> None:
    made = with_choices(None, {"fit": olac.FitOptions(degree=7), "method": "channel"})
    assert (made.fit.fitting, made.fit.choice) == (olac.Channel(), olac.Fixed(7))


def test_activations_of_the_options_stay_unless_others_are_given() -> None:
    mine = {"act": None}
    assert with_choices(CompileOptions(activations=mine), {"activations": None}).activations == mine
    assert with_choices(CompileOptions(activations=mine), {"activations": {}}).activations == {}


def test_labels_in_the_place_of_options() -> None:
    labels: Any = np.zeros(4)
    with pytest.raises(TypeError, match=r"an ndarray \(float64, shape \(4,\)\) was given for options.*Labels are not"):
        with_choices(labels, {})
