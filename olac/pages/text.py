"""Numbers as people read them: with units, and with thousands apart."""

from __future__ import annotations

import math


def amount(value: float, unit: str = "", digits: int = 3) -> str:
    """A number with a few digits and its unit: 0.042 s, 12.3 s, 12,345 s."""
    if not math.isfinite(value):
        return "none" if math.isnan(value) else "infinite"
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e7):
        text = f"{value:.{max(0, digits - 2)}e}"
    else:
        places = max(0, digits - 1 - (math.floor(math.log10(size)) if size else digits - 1))
        text = whole(round(value)) if places == 0 else f"{value:.{places}f}"
    return f"{text} {unit}" if unit else text


def duration(seconds: float) -> str:
    """Seconds in a unit that suits them: 1.2 ms, 3.45 s, 12.5 min, 3.2 h."""
    if not math.isfinite(seconds) or seconds == 0:
        return amount(seconds, "s", 1)
    for unit, size, least in (("h", 3600.0, 7200.0), ("min", 60.0, 120.0), ("s", 1.0, 1.0), ("ms", 1e-3, 1e-3)):
        if abs(seconds) >= least:
            return amount(seconds / size, unit)
    return amount(seconds / 1e-6, "\u00b5s")


def on_axis(value: float) -> str:
    """A round number of an axis, without zeros that say nothing."""
    return f"{value:.6g}"


def counted(count: int, name: str) -> str:
    """A number of things: 1 input, 12 inputs."""
    return f"{whole(count)} {name}{'' if count == 1 else 's'}"


def whole(value: int) -> str:
    """A whole number with thousands apart."""
    return f"{value:,}"


def byte_amount(value: float) -> str:
    """Bytes in the largest decimal unit that gives at least 1: 310 kB, 12.4 MB, 1.25 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size:
            return amount(value / size, unit)
    return f"{round(value)} B"


def share(value: float) -> str:
    """A share in per cent; 0 and 1 only if they are exact, so that a rare case is not read as none."""
    if not math.isfinite(value):
        return "none"
    if value in (0.0, 1.0):
        return f"{value:.0%}"
    if value < 1e-6:
        return "below 0.0001%"
    text = f"{100 * value:.3g}" if value < 0.1 else f"{100 * value:.1f}"
    if text.startswith("100"):
        text = f"{100 * value:.3f}" if value < 0.999995 else "above 99.999"
    return f"{text}%"
