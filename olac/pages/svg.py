"""Parts of drawings as SVG text. All text from outside is escaped here; numbers are written with two decimals."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from olac.errors import plain

MOST_NAME = 120
"""Characters of a name that tooltips show."""


def escaped(text: object) -> str:
    """Text that may stand between tags and in attributes; characters that are not printed become escapes."""
    return html.escape(plain(text), quote=True)


def shortened(text: str, most: int = MOST_NAME) -> str:
    """The text with its middle left out if it is long: the ends of module paths tell them apart."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}\u2026{text[len(text) - tail :]}"


def number(value: float) -> str:
    """A coordinate. ValueError for one that is not finite."""
    if not math.isfinite(value):
        raise ValueError("a coordinate that is not finite")
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def tag(name: str, body: str = "", /, **attributes: float | str | None) -> str:
    """An element; attributes with the value None are left out, `_` stands for `-`, and `class_` for `class`."""
    parts = [name]
    for key, value in attributes.items():
        if value is not None:
            shown = value if isinstance(value, str) else number(value)
            parts.append(f'{key.rstrip("_").replace("_", "-")}="{escaped(shown)}"')
    return f"<{' '.join(parts)}>{body}</{name}>" if body else f"<{' '.join(parts)}/>"


def titled(text: str) -> str:
    """A tooltip, which screen readers read as well."""
    return f"<title>{escaped(shortened(text, 4 * MOST_NAME))}</title>"


def label(
    text: str, x: float, y: float, class_: str = "label", anchor: str = "start", turn: float | None = None
) -> str:
    """Text at a place."""
    turned = None if turn is None else f"rotate({number(turn)} {number(x)} {number(y)})"
    return tag("text", escaped(text), x=x, y=y, class_=class_, text_anchor=anchor, transform=turned)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str, close: bool = False, body: str = "") -> str:
    """A line through points."""
    steps = " L".join(f"{number(x)} {number(y)}" for x, y in points)
    return tag("path", body, d=f"M{steps}{' Z' if close else ''}", class_=class_)


def drawing(width: float, height: float, title: str, parts: Sequence[str], class_: str = "") -> str:
    """A whole drawing. It is as wide as given, or as its place if that is narrower."""
    return (
        f'<svg class="drawing {escaped(class_)}" role="img" viewBox="0 0 {number(width)} {number(height)}" '
        f'width="{number(width)}" height="{number(height)}">{titled(title)}{"".join(parts)}</svg>'
    )


@dataclass(frozen=True)
class Scale:
    """A map from values to coordinates.

    Attributes:
        low, high: values.
        start, end: their coordinates.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The coordinate of a value; values outside go to the nearer end."""
        span = self.high - self.low
        where = 0.5 if span <= 0 else (min(max(value, self.low), self.high) - self.low) / span
        return self.start + where * (self.end - self.start)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers within a range, at most about as many as given."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low] if math.isfinite(low) else []
    raw = span / max(1, most)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """The logarithms of round numbers (1, 2 and 5 times powers of ten) within a range of logarithms, or of the powers
    alone if there are more than `most`.
    """
    powers = range(math.floor(low), math.ceil(high) + 1)
    found = [power + math.log10(factor) for power in powers for factor in (1, 2, 5)]
    within = [value for value in found if low <= value <= high]
    if len(within) <= most:
        return within
    whole = [float(power) for power in powers if low <= power <= high]
    return whole[:: max(1, -(-len(whole) // most))]
