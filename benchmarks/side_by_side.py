"""Tables that set engines side by side: each figure of an engine over that of the same row of the first one.

The first engine is OpenFHE if it is among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.results import Row, engine_of, value
from olac.backends.session import DEFAULT
from olac.system.memory import GB


class Cells(NamedTuple):
    """A table: its columns, the cells of each line, and what is true of all lines."""

    columns: tuple[str, ...]
    lines: list[tuple[str, ...]]
    caption: str = ""


LETTERS = 8
"""Of a fingerprint that are shown."""


def yardstick(row: Row | Any) -> str:
    """Milliseconds of the yardstick in a row; older rows have none."""
    return f"{1e3 * row['ntt_cpu_seconds']:.2f}" if "ntt_cpu_seconds" in row else ""


def engines_of(rows: Sequence[Row]) -> list[str]:
    """The engines of rows, the one first to which others are compared."""
    found = list(dict.fromkeys(map(engine_of, rows)))
    return sorted(found, key=lambda name: name != DEFAULT)


def primitives(rows: Sequence[Row]) -> list[Cells]:
    """Milliseconds of CPU and wall time, a line for each primitive and number of limbs, a table for each chain."""
    return [_primitives(group) for group in _groups(rows, ("parameters", "threads"))]


def _primitives(rows: Sequence[Row]) -> Cells:
    names = engines_of(rows)
    columns = ["primitive", "limbs"]
    for clock in ("CPU", "wall"):
        columns += [f"{name} {clock} ms" for name in names] + [f"{clock} {name} / {names[0]}" for name in names[1:]]
    lines = []
    for primitive in dict.fromkeys(name for row in rows for name in row["cpu_seconds"]):
        having = [row for row in rows if primitive in row["cpu_seconds"]]
        for limbs in sorted({row["limbs"] for row in having}, reverse=True):
            by_engine = {engine_of(row): row for row in having if row["limbs"] == limbs}
            line = [primitive, str(limbs)]
            for clock in ("cpu_seconds", "wall_seconds"):
                found = [by_engine[name][clock][primitive] if name in by_engine else None for name in names]
                line += [_milliseconds(seconds) for seconds in found]
                line += [ratio(seconds, found[0]) for seconds in found[1:]]
            lines.append(tuple(line))
    return Cells(tuple(columns), lines, f"{rows[0]['parameters']}; {rows[0]['threads']} threads")


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def ratio(seconds: float | None, of: float | None) -> str:
    """One time over another; empty if either is missing or too short to have been measured."""
    return f"{seconds / of:.3f}" if seconds is not None and of else ""


COLUMNS_PROGRAMS = (
    "model",
    "strategy",
    "engine",
    "planned for",
    "program",
    "threads",
    "CPU s",
    "ratio",
    "wall s",
    "ratio",
    "bootstraps",
    "CPU s of one",
    "server GB",
    "keys GB",
    "keys and set-up s",
    "logit error",
    "NTT ms",
)


def programs(rows: Sequence[Row]) -> list[Cells]:
    """Encrypted runs of the same network and strategy on several engines, of one program or of each engine's own.

    Ratios are to a run of the same program on the first engine, or if there is none, of that engine's own program.
    """
    return [Cells(COLUMNS_PROGRAMS, _compared(rows, ("model", "strategy", "images", "threads"), _program_cells))]


def _program_cells(row: Row, base: Row | None) -> tuple[str, ...]:
    one = row.get("bootstrap_cpu_seconds")
    return (
        row["model"],
        row["strategy"],
        engine_of(row),
        value(row, "planned_for"),
        row.get("fingerprint", "")[:LETTERS],
        str(row["threads"]),
        f"{row['cpu_seconds']:.1f}",
        _over(row, base, "cpu_seconds"),
        f"{row['wall_seconds']:.1f}",
        _over(row, base, "wall_seconds"),
        str(row["bootstraps"]),
        "" if one is None else f"{one:.2f}",
        f"{row['peak_rss_gb']:.2f}",
        f"{row['key_bytes'] / GB:.2f}",
        f"{row['keygen_seconds'] + row['setup_seconds']:.0f}" if "setup_seconds" in row else "",
        f"{row['max_logit_error']:.1e}" if "max_logit_error" in row else "",
        yardstick(row),
    )


COLUMNS_BOOTSTRAPS = (
    "engine",
    "ring",
    "bits",
    "slots",
    "threads",
    "levels",
    "from, to",
    "CPU s",
    "ratio",
    "wall s",
    "ratio",
    "noise",
    "set-up s",
    "GB",
    "keys",
    "keys GB",
    "NTT ms",
)


def bootstraps(rows: Sequence[Row]) -> list[Cells]:
    """Bootstraps of as many slots at the same ring and scale on several engines; levels may differ."""
    same = ("log_ring", "bits", "log_slots", "complex", "threads")
    return [Cells(COLUMNS_BOOTSTRAPS, _compared(rows, same, _bootstrap))]


def _bootstrap(row: Row, base: Row | None) -> tuple[str, ...]:
    return (
        engine_of(row),
        f"2^{row['log_ring']}",
        "/".join(map(str, row["bits"])),
        f"2^{row['log_slots']}" + (" complex" if row["complex"] else ""),
        str(row["threads"]),
        str(row["levels"]),
        f"{row['input_level']}, {row['output_level']}" if "output_level" in row else "",
        f"{row['cpu_seconds']:.2f}",
        _over(row, base, "cpu_seconds"),
        f"{row['wall_seconds']:.2f}",
        _over(row, base, "wall_seconds"),
        f"{row['noise']:.1e}",
        f"{row['setup_seconds']:.1f}",
        f"{row['setup_gb']:.2f}",
        str(row["keys"]),
        f"{row['key_bytes'] / GB:.2f}" if "key_bytes" in row else "",
        yardstick(row),
    )


def _over(row: Row, base: Row | None, name: str) -> str:
    return "" if base is None or base is row else ratio(row[name], base[name])


def _compared(
    rows: Sequence[Row], same: tuple[str, ...], cells: Callable[[Row, Row | None], tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Lines of rows, those together that have the same values; each gets the row that it is compared to."""
    first = engines_of(rows)[0]
    lines = []
    for group in _groups(rows, same):
        bases = [row for row in group if engine_of(row) == first]
        own = next((row for row in bases if value(row, "planned_for") == first), bases[0] if bases else None)
        for row in sorted(group, key=lambda row: engine_of(row) != first):
            mark = row.get("fingerprint")
            twin = next((base for base in bases if mark is not None and base.get("fingerprint") == mark), own)
            lines.append(cells(row, None if engine_of(row) == first else twin))
    return lines


def _groups(rows: Sequence[Row], same: tuple[str, ...]) -> Iterator[list[Row]]:
    keys = list(dict.fromkeys(_key(row, same) for row in rows))
    return ([row for row in rows if _key(row, same) == key] for key in keys)


def _key(row: Row, same: tuple[str, ...]) -> str:
    return repr([value(row, name) for name in same])
