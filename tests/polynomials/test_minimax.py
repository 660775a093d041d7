from __future__ import annotations

import numpy as np
import pytest

from olac.polynomials.minimax import Composition, sign_composition

PUBLISHED = {
    4: (5,),
    5: (13,),
    6: (3, 7),
    7: (7, 7),
    8: (7, 15),
    9: (15, 15),
    10: (7, 7, 13),
    11: (7, 7, 27),
    12: (7, 15, 27),
    13: (15, 15, 27),
    14: (15, 27, 29),
}


def points(composition: Composition) -> np.ndarray:  # type: ignore[type-arg]
    positive = np.concatenate(
        [
            np.linspace(0, 1, 100_001),
            np.linspace(0, min(1, 4 * composition.threshold), 20_001),
            np.geomspace(1e-8, 1, 20_001),
            1 - np.geomspace(1e-8, 1e-2, 5_001),
        ]
    )
    return np.concatenate([-positive, positive])


@pytest.mark.parametrize("alpha", PUBLISHED)
def test_relu_and_the_maximum_have_the_precision(alpha: int) -> None:
    composition = sign_composition(alpha)
    assert tuple(stage.degree for stage in composition.stages) == PUBLISHED[alpha]
    x = points(composition)
    sign = composition(x)
    assert np.max(np.abs(x * (1 + sign) / 2 - np.maximum(x, 0))) <= 2.0**-alpha
    # The maximum of a and b in [-1/2, 1/2] is (a + b) / 2 + (a - b) sign(a - b) / 2: the same error.
    assert np.max(np.abs(x * sign / 2 - np.abs(x) / 2)) <= 2.0**-alpha
    assert np.max(np.abs(np.abs(sign[np.abs(x) >= composition.threshold]) - 1)) <= composition.error * (1 + 1e-6)


@pytest.mark.parametrize("alpha", PUBLISHED)
def test_every_stage_stays_within_the_next_and_coefficients_are_small(alpha: int) -> None:
    composition = sign_composition(alpha)
    x = points(composition)
    for stage in composition.stages:
        assert np.max(np.abs(x)) <= stage.half_width * (1 + 1e-6)
        assert not any(stage.coefficients[0::2])
        assert sum(map(abs, stage.coefficients)) < 4
        x = stage(x)


def test_the_degree_is_that_of_the_composition() -> None:
    assert sign_composition(4).degree == 5
    assert sign_composition(10).degree == 7 * 7 * 13


@pytest.mark.parametrize("alpha", [-1, 0, 3, 15])
def test_other_precisions_are_refused(alpha: int) -> None:
    with pytest.raises(ValueError, match=r"outside 4 \.\.\. 14"):
        sign_composition(alpha)
