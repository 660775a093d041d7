"""Rows of results: the JSON file that holds them, and plots of it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.strategies import FAMILIES, RELU, family_of
from olac.backends.session import DEFAULT
from olac.polynomials.modes import KEYWORDS

Row = dict[str, Any]

PACKAGES = ("olac", "numpy", "scipy", "torch", "openfhe", "numba")
SAME = ("model", "strategy", "images", "calibration_images", "effort")
"""A new row replaces one that has the same values of these."""
ENCRYPTED, PREDICTED, BOOTSTRAP, PRIMITIVES = "encrypted", "predicted", "bootstrap", "primitives"
MODEL, THROUGHPUT, COST = "model", "throughput", "cost"
"""The `kind` of rows of encrypted runs, of predictions of them, of bootstraps, of primitives at one number of limbs,
of models that olac takes or refuses, of runs of many images, and of what networks cost.

Rows of accuracy have no kind.
"""
SAME_ENCRYPTED = ("model", "strategy", "images", "threads", "parameters", "engine", "planned_for")
SAME_PREDICTED = ("model", "strategy", "threads", "max_memory", "engine")
SAME_BOOTSTRAP = ("parameters", "log_slots", "complex", "threads", "engine")
SAME_PRIMITIVES = ("parameters", "limbs", "threads", "engine")
SAME_MODEL = ("family", "model", "variant")
SAME_THROUGHPUT = ("model", "images", "engine", "threads")
SAME_COST = ("model", "images", "threads", "engine", "effort")
SAME_OF: dict[str | None, tuple[str, ...]] = {
    ENCRYPTED: SAME_ENCRYPTED,
    PREDICTED: SAME_PREDICTED,
    BOOTSTRAP: SAME_BOOTSTRAP,
    PRIMITIVES: SAME_PRIMITIVES,
    MODEL: SAME_MODEL,
    THROUGHPUT: SAME_THROUGHPUT,
    COST: SAME_COST,
}
USUAL = {"engine": DEFAULT, "planned_for": DEFAULT, "effort": KEYWORDS["effort"]}
"""What rows that were written before there were other engines leave out."""
NEEDED = {
    None: (*SAME, "top1", "total_depth", "degrees"),
    ENCRYPTED: (*SAME_ENCRYPTED, "cpu_seconds", "wall_seconds", "peak_rss_gb", "key_bytes", "bootstraps"),
    PREDICTED: (*SAME_PREDICTED, "infeasible"),
    BOOTSTRAP: (*SAME_BOOTSTRAP, "cpu_seconds", "noise", "setup_gb"),
    PRIMITIVES: (*SAME_PRIMITIVES, "log_ring", "cpu_seconds", "wall_seconds"),
    MODEL: (*SAME_MODEL, "outcome"),
    THROUGHPUT: (*SAME_THROUGHPUT, "batch", "cpu_seconds", "cpu_seconds_alone", "ratio"),
    COST: (*SAME_COST, "cpu_seconds", "wall_seconds", "peak_rss_gb", "key_bytes", "agreement_simulated"),
}
PLOTS = (".svg", ".png")
MARKERS = "osD^v<>PX*"


class ResultsError(ValueError):
    """A file of results that can't be read, or a plot that can't be drawn; the message says why."""


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """All rows of some files of results."""
    return [row for path in paths for row in _read(path)["rows"]]


def value(row: Mapping[str, Any], name: str) -> Any:
    """A key of a row, or what older rows leave out."""
    return row.get(name, USUAL.get(name))


def engine_of(row: Mapping[str, Any]) -> str:
    """The name of the engine that a row was measured on."""
    return str(value(row, "engine"))


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows = data["rows"]
        missing = {name for row in rows for name in NEEDED[row.get("kind")] if name not in row and name not in USUAL}
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
    names = SAME_OF.get(new.get("kind"), SAME)
    return old.get("kind") == new.get("kind") and all(value(old, name) == value(new, name) for name in names)


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
