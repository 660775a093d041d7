"""Rows of results as tables, for terminals and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.table import Table

from benchmarks import side_by_side
from benchmarks.results import (
    BOOTSTRAP,
    COST,
    ENCRYPTED,
    MODEL,
    PREDICTED,
    PRIMITIVES,
    THROUGHPUT,
    Row,
    engine_of,
    value,
)
from benchmarks.side_by_side import Cells
from benchmarks.strategies import family_of, lowering_of
from benchmarks.zoo.document import result
from olac.system.memory import GB

COLUMNS = ("model", "strategy", "total depth", "top-1", "agreement", "diverged", "effort", "fit seconds", "degrees")
LONG_ITEM = 20
"""Longer strategies (plans) are shortened in tables; the notes below give them in full."""
COLUMNS_ENCRYPTED = (
    "model",
    "strategy",
    "engine",
    "threads",
    "CPU s",
    "wall s",
    "server GB",
    "keys GB",
    "bootstraps",
    "logit error",
    "same class",
    "security",
    "NTT ms",
)
COLUMNS_PREDICTED = (
    "model",
    "strategy",
    "engine",
    "threads",
    "activation levels",
    "seconds",
    "server GB",
    "keys GB",
    "bootstraps",
    "ring",
)
COLUMNS_BOOTSTRAP = (
    "engine",
    "ring",
    "levels",
    "bits",
    "budget",
    "digits",
    "slots",
    "threads",
    "CPU s",
    "wall s",
    "predicted",
    "noise",
    "set-up s",
    "GB",
    "keys",
    "NTT ms",
)
COLUMNS_THROUGHPUT = (
    "model",
    "images",
    "share a ciphertext",
    "engine",
    "threads",
    "CPU s an image",
    "alone",
    "ratio",
    "error",
    "GB",
    "NTT ms",
)
COLUMNS_COST = (
    "model",
    "wall s",
    "CPU s",
    "predicted s",
    "server GB",
    "keys GB",
    "keys and set-up s",
    "compile s",
    "plaintext",
    "polynomials",
    "agreement",
    "encrypted as simulated",
    "error",
    "ring",
    "bootstraps",
    "NTT ms",
)
COLUMNS_MODEL = ("model", "form", "places", "levels", "seconds", "peak GB", "result")
TEXTS = ("model", "form", "result", "strategy", "effort", "degrees", "engine", "planned for", "program", "primitive")


def compressed(degrees: Sequence[int]) -> str:
    """Degrees in network order, each with how often it repeats: 3, 3, 3, 7 is `3 (3), 7 (1)`."""
    return ", ".join(f"{degree} ({len(list(group))})" for degree, group in groupby(degrees))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    depth, seconds = row["total_depth"], row.get("fit_seconds")
    return (
        str(row["model"]),
        str(row["strategy"]),
        "" if depth is None else str(depth),
        f"{row['top1']:.2%}",
        f"{row['agreement']:.2%}" if "agreement" in row else "",
        str(row.get("wrecked", "")),
        str(value(row, "effort")) if seconds is not None else "",
        "" if seconds is None else f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}",
        compressed(row["degrees"]),
    )


def _encrypted_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    error = f"{row['max_logit_error']:.1e}" if "max_logit_error" in row else ""
    security = "none" if "NOT SECURE" in row["parameters"] else f"{row['security_bits']:.0f} bits"
    return (
        str(row["model"]),
        _short(row["strategy"]),
        engine_of(row),
        str(row["threads"]),
        f"{row['cpu_seconds']:.1f}",
        f"{row['wall_seconds']:.1f}",
        f"{row['peak_rss_gb']:.2f}",
        f"{row['key_bytes'] / GB:.2f}",
        str(row["bootstraps"]),
        error,
        f"{row['same_class']} of {row['images']}" if "same_class" in row else "",
        security,
        side_by_side.yardstick(row),
    )


def _predicted_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    start = (str(row["model"]), _short(row["strategy"]), engine_of(row), str(row["threads"]))
    if row["infeasible"] is not None:
        return (*start, *[""] * 5, "infeasible")
    return (
        *start,
        str(sum(row["depths"])),
        f"{row['predicted_seconds']:.0f}",
        f"{row['predicted_gb']:.2f}",
        f"{row['predicted_key_bytes'] / GB:.2f}",
        str(row["bootstraps"]),
        f"2^{row['ring_dimension'].bit_length() - 1}",
    )


def _bootstrap_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        engine_of(row),
        f"2^{row['log_ring']}",
        str(row["levels"]),
        "/".join(map(str, row["bits"])),
        "+".join(map(str, row["budget"])),
        str(row["digits"]),
        f"2^{row['log_slots']}" + (" complex" if row["complex"] else ""),
        str(row["threads"]),
        f"{row['cpu_seconds']:.2f}",
        f"{row['wall_seconds']:.2f}",
        f"{row['predicted_seconds']:.2f}" if "predicted_seconds" in row else "",
        f"{row['noise']:.1e}",
        f"{row['setup_seconds']:.1f}",
        f"{row['setup_gb']:.2f}",
        f"{row['keys']} in {row['keygen_seconds']:.0f} s",
        side_by_side.yardstick(row),
    )


def _throughput_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    ticks = row["yardstick_seconds_alone"], row["yardstick_seconds"]
    return (
        row["model"],
        str(row["images"]),
        str(row["batch"]),
        row["engine"],
        "all" if row["threads"] is None else str(row["threads"]),
        f"{row['cpu_seconds']:.3g}",
        f"{row['cpu_seconds_alone']:.3g}",
        f"{row['ratio']:.3g}",
        f"{row['error']:.1g}",
        f"{row['peak_rss_gb']:.2f}",
        " / ".join(f"{1000 * tick:.2f}" for tick in ticks),
    )


def _cost_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    plain, ours = row["top1_plaintext"], row["top1_simulated"]
    return (
        str(row["model"]),
        f"{row['wall_seconds']:.3g}",
        f"{row['cpu_seconds']:.3g}",
        f"{row['predicted_seconds']:.3g}",
        f"{row['peak_rss_gb']:.2f}",
        f"{row['key_bytes'] / GB:.2f}",
        f"{row['keygen_seconds']:.0f} + {row['setup_seconds']:.0f}",
        "" if row["compile_seconds"] is None else f"{row['compile_seconds']:.0f}",
        "random weights" if plain is None else f"{plain:.2%}",
        "" if ours is None else f"{ours:.2%}",
        f"{row['agreement_simulated']:.2%} of {row['tested_images']}",
        f"{row['same_class']} of {row['images']}",
        f"{row['max_logit_error']:.1g} of {row['max_logit']:.2g}",
        f"2^{row['ring_dimension'].bit_length() - 1}",
        str(row["bootstraps"]),
        side_by_side.yardstick(row),
    )


def _model_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(row["model"]),
        str(row["variant"]),
        str(row.get("places", "")),
        str(row.get("levels", "")),
        f"{row['seconds']:.1f}",
        "" if row["peak_gb"] is None else f"{row['peak_gb']:.2f}",
        result(row),
    )


def _short(strategy: str) -> str:
    lowering = lowering_of(strategy)
    return strategy if len(strategy) - len(lowering) <= LONG_ITEM else f"{family_of(strategy)}:...{lowering}"


OF_A_ROW: dict[str | None, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], tuple[str, ...]]]] = {
    None: (COLUMNS, _cells),
    ENCRYPTED: (COLUMNS_ENCRYPTED, _encrypted_cells),
    PREDICTED: (COLUMNS_PREDICTED, _predicted_cells),
    BOOTSTRAP: (COLUMNS_BOOTSTRAP, _bootstrap_cells),
    MODEL: (COLUMNS_MODEL, _model_cells),
    THROUGHPUT: (COLUMNS_THROUGHPUT, _throughput_cells),
    COST: (COLUMNS_COST, _cost_cells),
}
"""By kind of row: the columns of tables that have a line for each row, and the cells of one."""
COMPARED: dict[str | None, Callable[[Sequence[Row]], list[Cells]]] = {
    ENCRYPTED: side_by_side.programs,
    BOOTSTRAP: side_by_side.bootstraps,
    PRIMITIVES: side_by_side.primitives,
}
"""By kind of row: tables that set engines side by side."""


def _shown(kind: str | None, rows: Sequence[Row]) -> list[Cells]:
    """The tables of rows of one kind; if they are of several engines, these are compared."""
    found = []
    if kind in OF_A_ROW:
        columns, cells = OF_A_ROW[kind]
        found.append(Cells(columns, [cells(row) for row in rows]))
    if kind in COMPARED and (not found or len({engine_of(row) for row in rows}) > 1):
        found += COMPARED[kind](rows)
    return found


def rich_tables(rows: Iterable[Row]) -> list[Table]:
    """The rows as tables for a terminal, at least one for each kind."""
    return [_rich(cells) for kind, own in _by_kind(rows) for cells in _shown(kind, own)]


def _by_kind(rows: Iterable[Row]) -> list[tuple[str | None, list[Row]]]:
    given = list(rows)
    kinds = dict.fromkeys(row.get("kind") for row in given)
    return [(kind, [row for row in given if row.get("kind") == kind]) for kind in kinds]


def _rich(cells: Cells) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=cells.caption or None,
        title_justify="left",
        title_style="",
    )
    for index, name in enumerate(cells.columns):
        table.add_column(name, justify="left" if name in TEXTS else "right", overflow="fold", no_wrap=index < 2)
    for line in cells.lines:
        table.add_row(*line)
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, at least one table for each kind, with notes below about what rows share."""
    return "\n\n".join(_markdown(kind, own) for kind, own in _by_kind(rows) or [(None, [])])


def _markdown(kind: str | None, rows: Sequence[Row]) -> str:
    tables = []
    for columns, lines, caption in _shown(kind, rows):
        rule = "|".join("---" if name in TEXTS else "---:" for name in columns)
        tables += [f"{caption}:"] if caption else []
        tables.append("\n".join([f"| {' | '.join(columns)} |", f"|{rule}|", *(f"| {' | '.join(x)} |" for x in lines)]))
    notes = _notes(rows) if kind is None else [_note(row) for row in rows if kind in (ENCRYPTED, PREDICTED)]
    if notes:
        tables.append("\n".join(f"* {note}" for note in dict.fromkeys(notes)))
    return "\n\n".join(tables)


def _note(row: Mapping[str, Any]) -> str:
    what = row.get("infeasible") or row["parameters"]
    if row.get("not_run"):
        what = f"{what}. Not run: {row['not_run']}"
    return f"{row['model']}, {row['strategy']}: {' '.join(what.split()).removesuffix('.')}."


def _notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Notes about what rows of accuracy share, and about what is wrong with some."""
    notes: dict[str, None] = {}  # each once, in order
    if any(row["degrees"] for row in rows):
        notes["Degrees in network order: 3 (19) are 19 activations of degree 3."] = None
    for row in rows:
        if "plaintext_top1" in row:
            note = f"{row['model']}: {row['plaintext_top1']:.2%} with its own activations"
            notes[f"{note}, {row['images']} test images, {row['calibration_images']} for calibration."] = None
    notes |= {
        f"{row['model']}, {row['strategy']}: {row['wrecked']} images diverged.": None
        for row in rows
        if row.get("wrecked")
    }
    return list(notes)
