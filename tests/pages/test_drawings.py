"""Drawings: well-formed SVG, coordinates within it, and names from outside that stay text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

from olac.pages import drawings
from olac.pages.drawings import NARROW, WIDE, Bar, Curves, Part, Spot, Stack, Stop
from olac.pages.svg import Scale, escaped, number, shortened, tag
from tests.pages.examples import HOSTILE, relu_curve

COUNT = 300
ONE = relu_curve()


def _stops(count: int) -> list[Stop]:
    kinds = ("linear", "activation", "bootstrap", "other")
    return [
        Stop(f"{HOSTILE}{i}", "op", 30 - i % 30, (max(0, i - 1), max(0, i - 5)) if i else (), kinds[i % 4], HOSTILE)
        for i in range(count)
    ]


def _curves(name: str) -> Curves:
    return Curves(
        name,
        name,
        ONE.low,
        ONE.high,
        ONE.seen_low,
        ONE.seen_high,
        ONE.shares,
        ONE.exact_low,
        ONE.exact_high,
        [-1e30] * len(ONE.fitted_low),
        [1e30] * len(ONE.fitted_high),
    )


MAKERS: dict[str, Callable[[float], str]] = {
    "activation": lambda width: drawings.activation(_curves(HOSTILE), min(width, 336.0)),
    "timeline": lambda width: drawings.timeline(_stops(COUNT), width),
    "short timeline": lambda width: drawings.timeline(_stops(5), width),
    "one node": lambda width: drawings.timeline(_stops(1), width),
    "bars": lambda width: drawings.bars([Bar(HOSTILE, i / 7, i / 9) for i in range(COUNT)], width),
    "bars of nothing": lambda width: drawings.bars([Bar(HOSTILE, 0.0)], width),
    "memory": lambda width: drawings.memory_along([HOSTILE] * 9, [1e9 * i for i in range(9)], width),
    "precision": lambda width: drawings.precision([HOSTILE] * 4, [12.0, None, 3.0, -2.0], width),
    "front": lambda width: drawings.front([Spot(3, 0.9, True, HOSTILE), Spot(5, 1, False, "")], "x", "y", True, width),
    "errors": lambda width: drawings.front([Spot(3, 0.0, True, HOSTILE)], HOSTILE, "y", False, width),
    "stacks": lambda width: drawings.stacks([Stack(HOSTILE, (Part(HOSTILE, 5e8), Part("b", 0.0)))], width),
}


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("name", list(MAKERS))
def test_drawings_are_well_formed_escaped_and_within_their_frame(name: str, width: float) -> None:
    text = MAKERS[name](width)
    root = ET.fromstring(text)
    assert root.get("role") == "img"
    assert root[0].tag == "title" and root[0].text
    assert "<script" not in text and not [one for one in root.iter() if one.tag == "script"]
    _, _, right, bottom = map(float, str(root.get("viewBox")).split())
    assert right <= width
    for one in root.iter():
        if one.tag in ("rect", "circle", "line", "text"):
            xs = [float(one.get(key, 0)) for key in ("x", "x1", "x2", "cx") if one.get(key) is not None]
            ys = [float(one.get(key, 0)) for key in ("y", "y1", "y2", "cy") if one.get(key) is not None]
            assert all(-0.01 <= x <= right + 0.01 for x in xs) and all(-0.01 <= y <= bottom + 0.01 for y in ys)
            if one.tag == "rect":
                assert float(one.get("x", 0)) + float(one.get("width", 0)) <= right + 0.01
        for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", one.get("d", "")):
            assert -0.01 <= float(x) <= right + 0.01 and -0.01 <= float(y) <= bottom + 0.01


def test_operands_from_further_back_are_arcs_and_bootstraps_are_jumps() -> None:
    stops = [
        Stop("x", "input", 3, (), "other", "x"),
        Stop("a", "linear", 2, (0,), "linear", "a"),
        Stop("b", "bootstrap", 3, (1,), "bootstrap", "b"),
        Stop("c", "add", 2, (2, 0), "other", "c"),
    ]
    classes = [one.get("class") for one in ET.fromstring(drawings.timeline(stops)).iter("path")]
    assert sorted(map(str, classes)) == ["flow", "flow", "jump", "skip"]


def test_bars_stand_as_high_as_their_seconds() -> None:
    root = ET.fromstring(drawings.bars([Bar("a", 1.0, 2.0), Bar("b", 4.0, 0.0)]))
    heights = {(one[0].text, one.get("class")): float(one.get("height", 0)) for one in root.iter("rect")}
    tips = ["a: predicted 1.00 s, measured 2.00 s", "b: predicted 4.00 s, measured 0 s"]
    assert list(heights) == [(tips[0], "predicted"), (tips[0], "measured"), (tips[1], "predicted")]
    low, middle, high = heights.values()
    assert middle == pytest.approx(2 * low, abs=0.02) and high == pytest.approx(4 * low, abs=0.02)


def test_a_node_whose_precision_is_not_known_leaves_a_gap() -> None:
    root = ET.fromstring(drawings.precision(["a", "b", "c", "d", "e"], [5.0, 6.0, None, 7.0, 8.0]))
    assert len(list(root.iter("path"))) == 2 and len(list(root.iter("circle"))) == 4


def test_parts_of_text() -> None:
    assert escaped('<a b="\'">\x1b') == "&lt;a b=&quot;&#x27;&quot;&gt;\\x1b"
    assert tag("rect", x=1.0, class_='"', _none=None) == '<rect x="1" class="&quot;"/>'
    assert shortened("a" * 50 + "end", 11) == "aaaaa\u2026aaend" and shortened("short", 11) == "short"
    assert number(-0.001) == "0" and number(1.50) == "1.5"
    with pytest.raises(ValueError, match="not finite"):
        number(float("inf"))
    assert Scale(0, 0, 0, 10)(3) == 5 and Scale(0, 1, 0, 10)(7) == 10
