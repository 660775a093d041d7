"""Rows of results: the JSON file that holds them, and the tables and plots made of it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.strategies import FAMILIES, RELU, family_of, lowering_of
from olac.system.memory import GB

Row = dict[str, Any]

PACKAGES = ("olac", "numpy", "scipy", "torch", "openfhe")
SAME = ("model", "strategy", "images", "calibration_images")
"""A new row replaces one that has the same values of these."""
ENCRYPTED, PREDICTED, BOOTSTRAP = "encrypted", "predicted", "bootstrap"
"""The `kind` of rows of encrypted runs, of predictions of them, and of bootstraps; rows of accuracy have no kind."""
SAME_ENCRYPTED = ("model", "strategy", "images", "threads", "parameters")
SAME_PREDICTED = ("model", "strategy", "threads", "max_memory")
SAME_BOOTSTRAP = ("parameters", "log_slots", "complex", "threads")
NEEDED = {
    None: (*SAME, "top1", "total_depth", "degrees"),
    ENCRYPTED: (*SAME_ENCRYPTED, "cpu_seconds", "wall_seconds", "peak_rss_gb", "key_bytes", "bootstraps"),
    PREDICTED: (*SAME_PREDICTED, "infeasible"),
    BOOTSTRAP: (*SAME_BOOTSTRAP, "cpu_seconds", "noise", "setup_gb"),
}
COLUMNS = ("model", "strategy", "total depth", "top-1", "agreement", "fit seconds", "degrees")
LONG_ITEM = 20
"""Longer strategies (plans) are shortened in tables; the notes below give them in full."""
PLOTS = (".svg", ".png")
COLUMNS_ENCRYPTED = (
    "model",
    "strategy",
    "threads",
    "CPU s",
    "wall s",
    "server GB",
    "keys GB",
    "bootstraps",
    "logit error",
    "same class",
    "security",
)
COLUMNS_PREDICTED = (
    "model",
    "strategy",
    "threads",
    "activation levels",
    "seconds",
    "server GB",
    "keys GB",
    "bootstraps",
    "ring",
)
COLUMNS_BOOTSTRAP = (
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
)
MARKERS = "osD^v<>PX*"


class ResultsError(ValueError):
    """A file of results that can't be read, or a plot that can't be drawn; the message says why."""


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """All rows of some files of results."""
    return [row for path in paths for row in _read(path)["rows"]]


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows = data["rows"]
        missing = {name for row in rows for name in NEEDED[row.get("kind")] if name not in row}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path} is not a file of results: {type(error).__name__}: {error}") from error
    if missing:
        raise ResultsError(f"{path} has rows without {', '.join(sorted(missing))}")
    return dict(data)


@dataclass
class ResultsFile:
    """A JSON file that is complete after every row, so that a run that is stopped keeps all finished rows."""

    path: Path
    rows: list[Row]
    command: str

    @staticmethod
    def open(path: Path, command: str, append: bool) -> ResultsFile:
        """Start a file; with `append`, keep the rows and commands that are in it already."""
        if not path.parent.is_dir():
            raise ResultsError(f"the folder of {path} does not exist")
        if append and path.exists():
            old = _read(path)
            before = str(old.get("command", "")).splitlines()
            return ResultsFile(path, list(old["rows"]), "\n".join([*(c for c in before if c != command), command]))
        return ResultsFile(path, [], command)

    def add(self, row: Row, instead_of: Row | None = None) -> None:
        """Add a row and write the file; it replaces an older row of the same measurement, and `instead_of`."""
        place = next((i for i, old in enumerate(self.rows) if old is instead_of), len(self.rows))
        kept = [(i, old) for i, old in enumerate(self.rows) if not _same(old, row) and old is not instead_of]
        before = [old for i, old in kept if i < place]
        self.rows = [*before, row, *(old for i, old in kept if i > place)]
        data = {"rows": self.rows, "command": self.command, "versions": versions(), "machine": machine()}
        part = self.path.with_name(self.path.name + ".part")
        with part.open("w", encoding="utf-8") as file:
            json.dump(data, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)


def _same(old: Row, new: Row) -> bool:
    kind = str(new.get("kind"))
    names = {ENCRYPTED: SAME_ENCRYPTED, PREDICTED: SAME_PREDICTED, BOOTSTRAP: SAME_BOOTSTRAP}.get(kind, SAME)
    return old.get("kind") == new.get("kind") and all(old[name] == new[name] for name in names)


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that the results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> str:
    """The processor, and how many of its cores this process may use."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        cores = len(os.sched_getaffinity(0))
    except (OSError, StopIteration, AttributeError):
        cores = os.cpu_count() or 1
    return f"{name}, {cores} cores"


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
        "" if seconds is None else f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}",
        compressed(row["degrees"]),
    )


def rich_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """A table of rows for a terminal; all rows are of one kind."""
    given = list(rows)
    columns, cells = SHOWN[given[0].get("kind") if given else None]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if _is_text(name) else "right", overflow="fold", no_wrap=index < 2)
    for row in given:
        table.add_row(*cells(row))
    return table


def _is_text(column: str) -> bool:
    return column in ("model", "strategy", "degrees")


def _encrypted_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    error = f"{row['max_logit_error']:.1e}" if "max_logit_error" in row else ""
    security = "none" if "NOT SECURE" in row["parameters"] else f"{row['security_bits']:.0f} bits"
    return (
        str(row["model"]),
        _short(row["strategy"]),
        str(row["threads"]),
        f"{row['cpu_seconds']:.1f}",
        f"{row['wall_seconds']:.1f}",
        f"{row['peak_rss_gb']:.2f}",
        f"{row['key_bytes'] / GB:.2f}",
        str(row["bootstraps"]),
        error,
        f"{row['same_class']} of {row['images']}" if "same_class" in row else "",
        security,
    )


def _predicted_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    start = (str(row["model"]), _short(row["strategy"]), str(row["threads"]))
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
        f"2^{row['log_ring']}",
        str(row["levels"]),
        "/".join(map(str, row["bits"])),
        "+".join(map(str, row["budget"])),
        str(row["digits"]),
        f"2^{row['log_slots']}" + (" complex" if row["complex"] else ""),
        str(row["threads"]),
        f"{row['cpu_seconds']:.2f}",
        f"{row['wall_seconds']:.2f}",
        f"{row['predicted_seconds']:.2f}",
        f"{row['noise']:.1e}",
        f"{row['setup_seconds']:.1f}",
        f"{row['setup_gb']:.2f}",
        f"{row['keys']} in {row['keygen_seconds']:.0f} s",
    )


def _short(strategy: str) -> str:
    lowering = lowering_of(strategy)
    return strategy if len(strategy) - len(lowering) <= LONG_ITEM else f"{family_of(strategy)}:...{lowering}"


SHOWN: dict[str | None, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], tuple[str, ...]]]] = {
    None: (COLUMNS, _cells),
    ENCRYPTED: (COLUMNS_ENCRYPTED, _encrypted_cells),
    PREDICTED: (COLUMNS_PREDICTED, _predicted_cells),
    BOOTSTRAP: (COLUMNS_BOOTSTRAP, _bootstrap_cells),
}
"""By kind of row: the columns of tables and the cells of a row."""


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown, a table for each kind, with notes below about what rows share."""
    kinds = list(dict.fromkeys(row.get("kind") for row in rows)) or [None]
    return "\n\n".join(_markdown(kind, [row for row in rows if row.get("kind") == kind]) for kind in kinds)


def _markdown(kind: str | None, rows: Sequence[Mapping[str, Any]]) -> str:
    columns, cells = SHOWN[kind]
    lines = [f"| {' | '.join(columns)} |", f"|{'|'.join('---' if _is_text(c) else '---:' for c in columns)}|"]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    notes = _notes(rows) if kind is None else [_note(row) for row in rows if kind != BOOTSTRAP]
    return "\n".join([*lines, *(["", *(f"* {note}" for note in dict.fromkeys(notes))] if notes else [])])


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
        f"{row['model']}, {row['strategy']}: {row['wrecked']} images with outputs out of all bounds.": None
        for row in rows
        if row.get("wrecked")
    }
    return list(notes)


def require_plot(output: Path) -> None:
    """Raise ResultsError if a plot can't be written: wrong suffix, no folder, no matplotlib."""
    if output.suffix not in PLOTS:
        raise ResultsError(f"a plot is a file with suffix {' or '.join(PLOTS)}, not {output}")
    if not output.parent.is_dir():
        raise ResultsError(f"the folder of {output} does not exist")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ResultsError(f"plots need matplotlib ({error}): pip install 'olac[benchmarks]'") from error


def plot(rows: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Total depth against top-1, a line for each family of strategies and a panel for each model."""
    require_plot(output)
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = [row for row in rows if row.get("kind") is None]
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    if not models:
        raise ResultsError("there are no rows to plot")
    figure = Figure(figsize=(6.4 * len(models), 4.4), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for panel, model in zip(panels, models, strict=True):
        own = [row for row in rows if row["model"] == model]
        for index, family in enumerate(name for name in FAMILIES if name != RELU):
            points = sorted(
                (row["total_depth"], 100 * row["top1"])
                for row in own
                if family_of(row["strategy"]) == family and row["total_depth"] is not None
            )
            if points:
                depths, accuracies = zip(*points, strict=True)
                panel.plot(depths, accuracies, marker=MARKERS[index], color=f"C{index}", label=family)
        for top1 in dict.fromkeys(row["plaintext_top1"] for row in own if "plaintext_top1" in row):
            panel.axhline(100 * top1, linestyle="--", color="0.4", label=f"plaintext, {top1:.2%}")
        counts = " or ".join(f"{n:,}" for n in sorted({row["images"] for row in own}))
        panel.set(title=f"{model}, {counts} test images", xlabel="levels of all activations", ylabel="top-1 (%)")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        panel.legend()
    with matplotlib.rc_context({"svg.hashsalt": "olac"}):
        figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None, dpi=150)
