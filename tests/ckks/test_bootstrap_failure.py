"""How likely it is that a bootstrap fails, against other ways to compute it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import norm

from olac.ckks.bootstrap_failure import MOST_FAILURE_BITS, failure_bits, irwin_hall
from olac.ckks.parameters import ENCAPSULATION_WEIGHT


def test_sums_of_few_uniform_numbers_by_hand() -> None:
    assert [irwin_hall(1, Fraction(x, 4)) for x in (-1, 0, 1, 4, 5)] == [0, 0, Fraction(1, 4), 1, 1]
    assert irwin_hall(2, Fraction(1, 2)) == Fraction(1, 8) and irwin_hall(2, Fraction(3, 2)) == Fraction(7, 8)
    assert irwin_hall(3, Fraction(3, 2)) == Fraction(1, 2) and irwin_hall(3, Fraction(1)) == Fraction(1, 6)


def test_sums_of_many_are_nearly_normal() -> None:
    for count, most in ((32, 14), (32, 17), (192, 90)):
        wanted = norm.cdf((most - count / 2) / math.sqrt(count / 12))
        assert float(irwin_hall(count, Fraction(most))) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize(("weight", "most"), [(4, 1), (8, 2), (32, 4), (32, 5)])
def test_the_bound_holds_for_sampled_ciphertexts_and_is_near(weight: int, most: int) -> None:
    rng = np.random.default_rng(weight + most)
    v = rng.uniform(-0.5, 0.5, (200_000, weight)).sum(axis=1)
    message = rng.uniform(-1 / 16, 1 / 16, len(v))
    # c_0 is m - c_1 s modulo q_0, of least size.
    t = v + (message - v) - np.round(message - v)
    assert np.allclose(t - message, np.round(t - message))
    found, bound = float(np.mean(np.abs(t) > most)), 2 ** failure_bits(weight, most, 1)
    assert bound / 8 < found < bound


def test_all_coefficients_count() -> None:
    one = failure_bits(32, 14, 1)
    assert failure_bits(32, 14, 1 << 16) == pytest.approx(one + 16)
    assert failure_bits(32, 2, 1 << 16) == 0.0  # no more than certain
    assert failure_bits(32, 17, 1 << 16) == -math.inf  # 32 halves and one more are the most


def test_the_sparser_secret_is_sparse_enough_for_sixteen_periods_at_every_ring() -> None:
    assert failure_bits(ENCAPSULATION_WEIGHT, 16, 1 << 17) < -130 < MOST_FAILURE_BITS
    # 13 periods would do, 12 would not; nor would the secret of programs.
    assert failure_bits(ENCAPSULATION_WEIGHT, 13, 1 << 17) < MOST_FAILURE_BITS
    assert failure_bits(ENCAPSULATION_WEIGHT, 12, 1 << 10) > MOST_FAILURE_BITS
    assert failure_bits(192, 16, 1 << 10) > MOST_FAILURE_BITS
