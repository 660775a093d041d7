"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from olac.pages.svg import log_ticks, ticks
from olac.pages.text import amount, byte_amount, duration, share, whole


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (amount(12.345, "s"), "12.3 s"),
        (amount(0.0), "0"),
        (amount(12345.6), "12,346"),
        (amount(4.2e-5), "4.2e-05"),
        (amount(math.nan), "none"),
        (duration(0.0123), "12.3 ms"),
        (duration(3.456), "3.46 s"),
        (duration(750.0), "12.5 min"),
        (duration(36_000.0), "10.0 h"),
        (duration(2e-5), "20.0 \u00b5s"),
        (byte_amount(999), "999 B"),
        (byte_amount(1.25e9), "1.25 GB"),
        (byte_amount(3.1e5), "310 kB"),
        (whole(1234567), "1,234,567"),
    ],
)
def test_units(text: str, expected: str) -> None:
    assert text == expected


def test_shares_are_all_or_none_only_if_they_are_exact() -> None:
    assert (share(0.0), share(1.0), share(0.5)) == ("0%", "100%", "50.0%")
    assert share(0.9999) == "99.990%" and share(0.9999999) == "above 99.999%"
    assert share(2e-5) == "0.002%" and share(1e-9) == "below 0.0001%"


def test_ticks_are_round_and_within_the_range() -> None:
    assert ticks(0.0, 10.0, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(-0.35, 0.21, 4) == [-0.2, 0.0, 0.2]
    assert ticks(3.0, 3.0, 4) == [3.0] and ticks(math.nan, 1.0, 4) == []
    assert log_ticks(-1.0, 0.0, 5) == pytest.approx([-1.0, math.log10(0.2), math.log10(0.5), 0.0])
    assert log_ticks(-9.0, 0.0, 4) == [-9.0, -6.0, -3.0, 0.0]
