"""Drawings of reports: pure functions from plain numbers to SVG text. Colours are classes; `style.css` gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from olac.pages.svg import (
    Scale,
    drawing,
    escaped,
    label,
    line,
    log_ticks,
    path,
    shortened,
    tag,
    ticks,
    titled,
)
from olac.pages.text import amount, byte_amount, duration, on_axis, share, whole

WIDE, NARROW = 1040.0, 336.0
"""Widths of drawings on a screen and on a phone, in pixels."""
CARD = 336.0
LEFT, RIGHT = 52.0, 10.0
"""Margins of drawings along the network, which all have the same, so that nodes stand above each other."""
NAMED_NODES = 24
"""A network of so few nodes has their names below it, where there is room."""
ROOM = 0.25
"""Share of the function's range that is shown above and below it; polynomials beyond are cut off."""


@dataclass(frozen=True)
class Bar:
    """Seconds of one node; measured ones are None if they were not measured."""

    name: str
    predicted: float
    measured: float | None = None


@dataclass(frozen=True)
class Stop:
    """One node of the timeline.

    Attributes:
        name, op: its id and its op's name.
        level: of its result.
        inputs: indices of its operands.
        kind: "linear", "activation", "bootstrap" or "other".
        tip: text of its tooltip.
    """

    name: str
    op: str
    level: int
    inputs: tuple[int, ...]
    kind: str
    tip: str


@dataclass(frozen=True)
class Part:
    """A part of a stack of memory."""

    name: str
    size: float


@dataclass(frozen=True)
class Stack:
    """A bar of parts."""

    name: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Spot:
    """A point of the front.

    Attributes:
        x, y: its place.
        chosen: whether its plan was taken.
        tip: text of its tooltip.
    """

    x: float
    y: float
    chosen: bool
    tip: str


@dataclass(frozen=True)
class Curves:
    """What an activation's drawing shows; see `olac.polynomials.curves.Curve`."""

    name: str
    function: str
    low: float
    high: float
    seen_low: float
    seen_high: float
    shares: Sequence[float]
    exact_low: Sequence[float]
    exact_high: Sequence[float]
    fitted_low: Sequence[float]
    fitted_high: Sequence[float]


@dataclass(frozen=True)
class _Along:
    """The frame of a drawing along the network."""

    width: float
    count: int
    top: float
    bottom: float
    parts: list[str] = field(default_factory=list)

    @property
    def spacing(self) -> float:
        return (self.width - LEFT - RIGHT) / max(1, self.count)

    def x(self, index: float) -> float:
        return LEFT + (index + 0.5) * self.spacing

    def values(self, scale: Scale, text: Callable[[float], str], most: int = 5) -> None:
        """Lines and labels of a vertical axis."""
        for value in ticks(scale.low, scale.high, most):
            y = scale(value)
            self.parts.append(line(LEFT, y, self.width - RIGHT, y, "grid"))
            self.parts.append(label(text(value), LEFT - 6, y + 4, anchor="end"))

    def nodes(self, names: Sequence[str]) -> float:
        """Labels of the horizontal axis, names where there is room; returns the height that they take."""
        if len(names) <= NAMED_NODES and self.spacing >= 26:
            for index, name in enumerate(names):
                x = self.x(index)
                self.parts.append(label(shortened(name, 12), x + 3, self.bottom + 13, "label", "end", -50))
            return 84.0
        for value in ticks(1, len(names), 8 if self.width > 600 else 4):
            if value >= 1 and value == int(value):
                self.parts.append(label(f"{int(value)}", self.x(value - 1), self.bottom + 16, anchor="middle"))
        middle = (LEFT + self.width - RIGHT) / 2
        self.parts.append(label("node, in the order of the run", middle, self.bottom + 33, anchor="middle"))
        return 42.0


# Activations ---------------------------------------------------------------------------------------------------------


def activation(one: Curves, width: float = CARD, height: float = 208.0) -> str:
    """The histogram of an activation's inputs, its function, and the band of its polynomials."""
    left, top, bottom = 44.0, 10.0, height - 24
    x = Scale(one.low, one.high, left, width - 10)
    low, high = min(one.exact_low), max(one.exact_high)
    room = ROOM * ((high - low) or max(abs(high), 1.0))
    y = Scale(low - room, high + room, bottom, top)
    parts = [tag("rect", x=left, y=top, width=width - 10 - left, height=bottom - top, class_="plot")]
    for value in ticks(y.low, y.high, 4):
        parts.append(line(left, y(value), width - 10, y(value), "grid"))
        parts.append(label(on_axis(value), left - 5, y(value) + 4, anchor="end"))
    most = max(one.shares) or 1.0
    span = (one.seen_high - one.seen_low) / len(one.shares)
    for index, part in enumerate(one.shares):
        if part > 0:
            x1, x2 = x(one.seen_low + index * span), x(one.seen_low + (index + 1) * span)
            tall = max(1.0, 0.42 * (bottom - top) * math.sqrt(part / most))
            tip = f"{share(part)} of the inputs between {amount(one.seen_low + index * span)} and "
            tip += amount(one.seen_low + (index + 1) * span)
            parts.append(
                tag(
                    "rect",
                    titled(tip),
                    x=x1,
                    y=bottom - tall,
                    width=max(0.5, x2 - x1 - 0.4),
                    height=tall,
                    class_="hist",
                )
            )
    for end in (one.seen_low, one.seen_high):
        parts.append(line(x(end), top, x(end), bottom, "seen"))
    places = [x(one.low + (one.high - one.low) * k / max(1, len(one.exact_low) - 1)) for k in range(len(one.exact_low))]
    up = [(px, y(value)) for px, value in zip(places, one.fitted_high, strict=True)]
    down = [(px, y(value)) for px, value in zip(places, one.fitted_low, strict=True)]
    parts.append(path([*up, *reversed(down)], "band", close=True))
    parts += [path(up, "fitted"), path(down, "fitted")]
    for row in {tuple(one.exact_low), tuple(one.exact_high)}:
        parts.append(path([(px, y(value)) for px, value in zip(places, row, strict=True)], "exact"))
    for value in ticks(one.low, one.high, 5):
        parts.append(label(on_axis(value), min(max(x(value), left + 8), width - 16), bottom + 16, anchor="middle"))
    title = f"{one.name}: histogram of the inputs of {one.function}, the function, and the band of its polynomials"
    return drawing(width, height, title, parts)


# Along the network ---------------------------------------------------------------------------------------------------


def timeline(stops: Sequence[Stop], width: float = WIDE) -> str:
    """Levels of the nodes in the order of the run; operands from further back are arcs, bootstraps are jumps."""
    top, bottom = 34.0, 244.0 if width > 600 else 204.0
    frame = _Along(width, len(stops), top, bottom)
    most = max((stop.level for stop in stops), default=0)
    y = Scale(0, max(1, most), bottom - 8, top + 12)
    frame.values(y, lambda level: f"{level:g}", 6 if most > 2 else 2)
    frame.parts.append(label("level", 4, top - 10))
    arcs, lines, jumps, dots = [], [], [], []
    radius = min(4.0, max(1.3, 0.42 * frame.spacing))
    for index, stop in enumerate(stops):
        here = frame.x(index), y(stop.level)
        for operand in stop.inputs:
            there = frame.x(operand), y(stops[operand].level)
            if stop.kind == "bootstrap":
                jumps.append(path([there, (here[0], there[1]), here], "jump"))
            elif index - operand == 1:
                lines.append(path([there, here], "flow"))
            else:
                arcs.append(_arc(there, here, top))
        dots.append(tag("circle", titled(stop.tip), cx=here[0], cy=here[1], r=radius, class_=f"dot {stop.kind}"))
    frame.parts.extend([*arcs, *lines, *jumps, *dots])
    height = bottom + frame.nodes([stop.name for stop in stops])
    bootstraps = sum(stop.kind == "bootstrap" for stop in stops)
    title = f"levels of {len(stops)} nodes, from {stops[0].level if stops else 0} at the input"
    return drawing(width, height, f"{title}; {bootstraps} bootstraps", frame.parts)


def _arc(start: tuple[float, float], end: tuple[float, float], top: float) -> str:
    rise = min(60.0, 10.0 + 0.12 * (end[0] - start[0]))
    peak = max(top - 14.0, min(start[1], end[1]) - rise)
    (x1, y1), (x2, y2) = start, end
    third = (x2 - x1) / 3
    d = f"M{x1:.1f} {y1:.1f} C{x1 + third:.1f} {peak:.1f} {x2 - third:.1f} {peak:.1f} {x2:.1f} {y2:.1f}"
    return tag("path", d=d, class_="skip")


def bars(rows: Sequence[Bar], width: float = WIDE) -> str:
    """Predicted seconds of each node, and measured ones beside them."""
    top, bottom = 26.0, 196.0
    frame = _Along(width, len(rows), top, bottom)
    most = max((max(row.predicted, row.measured or 0.0) for row in rows), default=0.0)
    y = Scale(0.0, most or 1.0, bottom, top)
    frame.values(y, on_axis, 4)
    frame.parts.append(label("seconds", 4, top - 10))
    measured = any(row.measured is not None for row in rows)
    wide = min(18.0, 0.8 * frame.spacing)
    for index, row in enumerate(rows):
        tip = f"{row.name}: predicted {duration(row.predicted)}"
        if row.measured is not None:
            tip += f", measured {duration(row.measured)}"
        x = frame.x(index) - wide / 2
        both = [(row.predicted, "predicted")]
        if row.measured is not None:
            both.append((row.measured, "measured"))
        each = wide / 2 if measured else wide
        for place, (seconds, kind) in enumerate(both):
            if seconds > 0:
                tall = max(0.6, bottom - y(seconds))
                rectangle = {"x": x + place * each, "y": bottom - tall, "width": max(0.6, each - 0.3), "height": tall}
                frame.parts.append(tag("rect", titled(tip), **rectangle, class_=kind))
    height = bottom + frame.nodes([row.name for row in rows])
    what = "predicted and measured seconds" if measured else "predicted seconds"
    return drawing(width, height, f"{what} of {len(rows)} nodes", frame.parts)


def memory_along(names: Sequence[str], alive: Sequence[float], width: float = WIDE) -> str:
    """Bytes of the ciphertexts that are alive at each node."""
    top, bottom = 26.0, 136.0
    frame = _Along(width, len(names), top, bottom)
    most = max(alive, default=0.0) or 1.0
    unit, size = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if most >= s), ("B", 1.0))
    y = Scale(0.0, most / size, bottom, top)
    frame.values(y, on_axis, 3)
    frame.parts.append(label(unit, 4, top - 10))
    outline = [(LEFT, bottom)]
    for index, value in enumerate(alive):
        left = LEFT + index * frame.spacing
        outline += [(left, y(value / size)), (left + frame.spacing, y(value / size))]
    outline.append((outline[-1][0], bottom))
    frame.parts.append(path(outline, "alive", close=True))
    for index, (name, value) in enumerate(zip(names, alive, strict=True)):
        x = LEFT + index * frame.spacing
        tip = titled(f"{name}: {byte_amount(value)} alive")
        frame.parts.append(tag("rect", tip, x=x, y=top, width=frame.spacing, height=bottom - top, class_="hover"))
    height = bottom + frame.nodes(names)
    return drawing(width, height, f"ciphertexts alive, at most {byte_amount(max(alive, default=0.0))}", frame.parts)


def precision(names: Sequence[str], bits: Sequence[float | None], width: float = WIDE) -> str:
    """Bits of precision of an encrypted run at each node; nodes without a number have a gap."""
    top, bottom = 26.0, 176.0
    frame = _Along(width, len(names), top, bottom)
    known = [value for value in bits if value is not None]
    y = Scale(min(0.0, *known) if known else 0.0, max(1.0, *known, 1.0) if known else 1.0, bottom, top)
    frame.values(y, lambda value: f"{value:g}", 5)
    frame.parts.append(label("bits", 4, top - 10))
    piece: list[tuple[float, float]] = []
    radius = min(3.5, max(1.3, 0.42 * frame.spacing))
    dots: list[str] = []
    for index, (name, value) in enumerate(zip(names, bits, strict=True)):
        if value is None:
            frame.parts.extend([path(piece, "bits")] if len(piece) > 1 else [])
            piece = []
            continue
        piece.append((frame.x(index), y(value)))
        tip = titled(f"{name}: {value:.1f} bits")
        dots.append(tag("circle", tip, cx=piece[-1][0], cy=piece[-1][1], r=radius, class_="dot bit"))
    frame.parts.extend(([path(piece, "bits")] if len(piece) > 1 else []) + dots)
    height = bottom + frame.nodes(names)
    return drawing(width, height, f"bits of precision of {len(names)} nodes", frame.parts)


# Plans and memory ----------------------------------------------------------------------------------------------------


def front(spots: Sequence[Spot], x_name: str, y_name: str, shares: bool, width: float = 620.0) -> str:
    """The plans of degrees that were considered; the one that was taken is filled.

    Args:
        shares: whether y is a share; otherwise it is an error, on a logarithmic axis.
    """
    left, top, bottom = 62.0, 28.0, 236.0
    values = [spot.y if shares else math.log10(max(spot.y, 1e-12)) for spot in spots]
    low, high = min(values), max(values)
    margin = 0.12 * ((high - low) or (0.02 if shares else 1.0))
    y = Scale(low - margin, min(high + margin, 1.0 + margin / 3) if shares else high + margin, bottom, top)
    xs = [spot.x for spot in spots]
    room = 0.06 * ((max(xs) - min(xs)) or 1.0)
    x = Scale(min(xs) - room, max(xs) + room, left, width - 14)
    parts = [tag("rect", x=left, y=top, width=width - 14 - left, height=bottom - top, class_="plot")]
    for value in ticks(y.low, y.high, 4) if shares else log_ticks(y.low, y.high, 5):
        if shares and value > 1:
            continue
        text = f"{on_axis(100 * value)}%" if shares else on_axis(float(f"{10**value:.3g}"))
        parts += [line(left, y(value), width - 14, y(value), "grid"), label(text, left - 6, y(value) + 4, anchor="end")]
    for value in ticks(x.low, x.high, 6 if width > 400 else 4):
        parts.append(label(f"{value:g}", x(value), bottom + 16, anchor="middle"))
    parts.append(label(x_name, (left + width - 14) / 2, bottom + 34, anchor="middle"))
    parts.append(label(y_name, left, top - 10))
    ordered = sorted(zip(xs, values, spots, strict=True), key=lambda one: (one[0], one[1]))
    parts.append(path([(x(px), y(py)) for px, py, _ in ordered], "frontier"))
    for px, py, spot in ordered:
        kind = "spot chosen" if spot.chosen else "spot"
        parts.append(tag("circle", titled(spot.tip), cx=x(px), cy=y(py), r=7 if spot.chosen else 5, class_=kind))
    return drawing(width, bottom + 42, f"{len(spots)} plans of degrees: {y_name} by {x_name}", parts)


def stacks(rows: Sequence[Stack], width: float = WIDE) -> str:
    """Memory by purpose, one bar for each process; all bars have the same scale."""
    narrow = width < 600
    left = 0.0 if narrow else 84.0
    most = max((sum(part.size for part in row.parts) for row in rows), default=0.0) or 1.0
    scale = Scale(0.0, most, left, width - (0 if narrow else 90))
    parts: list[str] = []
    y, tall = 4.0, 30.0
    for row in rows:
        total = sum(part.size for part in row.parts)
        if narrow:
            parts.append(label(f"{row.name}, {byte_amount(total)}", 0, y + 14, "strong"))
            y += 22
        else:
            parts.append(label(row.name, left - 10, y + 20, "strong", "end"))
            parts.append(label(byte_amount(total), scale(total) + 10, y + 20, "strong"))
        at = 0.0
        for index, part in enumerate(row.parts):
            if part.size > 0:
                x1, x2 = scale(at), scale(at + part.size)
                tip = titled(f"{row.name}, {part.name}: {byte_amount(part.size)}")
                parts.append(
                    tag("rect", tip, x=x1, y=y, width=max(0.4, x2 - x1 - 1), height=tall, class_=f"part p{index % 8}")
                )
                at += part.size
        y += tall + 12
    title = "; ".join(f"{row.name} {byte_amount(sum(part.size for part in row.parts))}" for row in rows)
    return drawing(width, y, f"memory: {title}", parts)


# Notebooks -----------------------------------------------------------------------------------------------------------

SNIPPET_STYLE = (
    ".olac-estimate{font:14px/1.45 system-ui,sans-serif;color:#1b2026;background:#fff;border:1px solid #d5dbe1;"
    "border-radius:8px;padding:12px;max-width:1066px}.olac-estimate th{text-align:left;font-weight:400;color:#59636e;"
    "padding:1px 18px 1px 0}.olac-estimate td{text-align:left}.olac-estimate svg{max-width:100%;height:auto}"
    ".olac-estimate .label{font-size:12px;fill:#59636e}.olac-estimate .grid{stroke:#e4e8ec}"
    ".olac-estimate .predicted{fill:#2563a8}@media(prefers-color-scheme:dark){.olac-estimate{color:#e6e9ec;"
    "background:#1b2026;border-color:#38414b}.olac-estimate th{color:#a3adb8}.olac-estimate .label{fill:#a3adb8}"
    ".olac-estimate .grid{stroke:#2c343d}.olac-estimate .predicted{fill:#78b0f0}}"
)


def estimate_snippet(rows: Sequence[tuple[str, str]], nodes: Sequence[Bar]) -> str:
    """An estimate for notebooks: a table, and the seconds of the nodes."""
    cells = "".join(f"<tr><th>{escaped(name)}</th><td>{escaped(value)}</td></tr>" for name, value in rows)
    picture = bars(nodes) if nodes else ""
    what = f"<div>predicted seconds of {whole(len(nodes))} nodes</div>" if nodes else ""
    return (
        f"<style>{SNIPPET_STYLE}</style><div class='olac-estimate'><table><tbody>{cells}</tbody></table>"
        f"{what}{picture}</div>"
    )
