"""docs/models.md: rows of `python -m benchmarks models` as tables, one for each kind of model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.results import MODEL, Row
from benchmarks.zoo.outcomes import AS_GIVEN, CLOSE, CRASH, DEGREE, NETS, OPS, REFUSED, RIGHT, UNCLEAR, WRONG, ZOO

WITHIN = f"{CLOSE:.0e}".replace("e-0", "e-")
SHAPES = re.compile(r"\(\d+(, \d+)*,?\)")
"""Shapes in the text of a problem: problems that differ by them alone are one reason."""
REASONS = 4
"""Reasons that a cell names; the rest are counted."""
COMMAND = "python -m benchmarks models --approximate --json models.json --markdown docs/models.md"
INTRODUCTION = f"""# Models that olac takes

This page lists what olac makes of 46 single operations, 30 small nets and 26 networks of torchvision and timm, each as
its author wrote it. A script measures it, and nothing here is written by hand:

<!-- not run: takes half an hour, and needs torchvision and timm -->
```sh
{COMMAND}
```

The command takes about half an hour, most of it for the polynomials of networks. The networks need torchvision and
timm, which olac itself does not need: without them their rows say "package missing". Weights are random, and nothing
is downloaded. To measure a part, name it: `--kind ops`, `--kind nets` or `--kind zoo`, and `--only NAME ...`. With
`--append`, rows of a file that are not measured again stay as they are. A test runs some operations and nets, and fails
if this page says otherwise.

How to read the columns:

* **result**: *works* means that `olac.check` finds no problem and that the model, lifted to olac's own operations with
  its activations exact, gives what torch gives on inputs that were not traced (within {WITHIN} of the largest output).
  *wrong* means that it gives something else, which is a bug. *refused* means that `olac.check` lists what it can't
  take, and the reasons follow with their number of places. *refused unclearly* means that a reason is the error of
  another library, and *crash* that `olac.check` raises; both are bugs.
  *by `olac.Joined`* means that several inputs or outputs were joined to one, as `olac.check` advises.
* **levels**: the multiplicative depth with polynomials of degree {DEGREE} for all activations, before bootstraps are
  placed, or of a higher degree, which is named, if the outputs diverge. A max-pool takes more levels than an
  activation. For the networks they follow from the structure alone; some take more than the 4 GB of memory that the
  command allows for each (`--memory`).
* **polynomials**: the largest difference of `simulate()` from the lifted model, computed by torch with the same
  polynomials in place of its activations, relative to the largest output. It says that passes change nothing, not how
  good polynomials of low degree are. Networks are approximated for the smallest pictures that they take, whose shape
  the cell names, and with polynomials of the degree that it names. An empty cell says that this takes too long or too
  much memory.
"""
OF_KINDS = {
    OPS: """## Single operations

Each is a module of one operation, computed on encrypted values: the client computes no last step. The names are those
of HEIR's tests of operations; the shapes are ours. What takes two tensors comes in three forms: as given, with both
encrypted; with the second as a constant of the model; and with both cut from one encrypted input.
""",
    NETS: """## Small nets

Written as an ordinary user writes them (`benchmarks/zoo/nets_*.py`). The client may compute the last steps.
""",
    ZOO: """## Networks of torchvision and timm

Made by their packages with `num_classes=10`, for pictures of the size given, in evaluation mode.
""",
}
COLUMNS = {
    OPS: ("operation", "form", "result", "levels", "polynomials"),
    NETS: ("net", "input", "result", "levels", "polynomials"),
    ZOO: ("network", "input", "parameters", "result", "levels", "polynomials"),
}


def document(rows: Sequence[Row]) -> str:
    """The page for rows of models; other rows are left out."""
    own = [row for row in rows if row.get("kind") == MODEL]
    parts = [INTRODUCTION, _summary(own)]
    for family, text in OF_KINDS.items():
        lines = [line(row) for row in own if row["family"] == family]
        if lines:
            columns = COLUMNS[family]
            parts.append(text)
            parts.append("\n".join([_line(columns), "|" + "|".join(["---"] * len(columns)) + "|", *lines]) + "\n")
    return "\n".join(parts)


def line(row: Mapping[str, Any]) -> str:
    """The line of the page that a row gives; seconds and memory, which differ from run to run, are not in it."""
    cells = {
        **dict.fromkeys(("operation", "net", "network"), f"`{row['model']}`"),
        "form": str(row["variant"]),
        "input": _shapes(row["inputs"]),
        "parameters": f"{row['parameters'] / 1e6:.1f} M" if "parameters" in row else "",
        "result": result(row),
        "levels": _levels(row),
        "polynomials": _of_smallest(row) if row["family"] == ZOO else _close(row),
    }
    return _line([cells[name] for name in COLUMNS[row["family"]]])


def result(row: Mapping[str, Any]) -> str:
    """Whether olac takes the model, and why not."""
    if row["outcome"] == RIGHT:
        return "works, by `olac.Joined`" if row.get("joined") else "works"
    said = str(row["outcome"])
    if row.get("problems"):
        said += f": {reasons(row['problems'])}"
    elif row.get("error"):
        said += f": {_plain(row['error'])}"
    if row.get("last_step"):
        said += " (works as the last step, which the client computes)"
    return said


def reasons(problems: Mapping[str, int]) -> str:
    """The commonest problems with their numbers of places, those of values of several shapes as one."""
    alike: dict[str, list[str]] = {}
    for text in problems:
        alike.setdefault(SHAPES.sub("(...)", text), []).append(text)
    found = Counter({k if len(v) > 1 else v[0]: sum(problems[text] for text in v) for k, v in alike.items()})
    named = [f"{_plain(text)}{f' ({count})' if count > 1 else ''}" for text, count in found.most_common(REASONS)]
    more = len(found) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more else "")


def _levels(row: Mapping[str, Any]) -> str:
    if "levels" not in row:  # networks have no other column that says why
        return _plain(str(row.get("approximation", ""))) if row["family"] == ZOO else ""
    degree = row.get("degree", DEGREE)
    return f"{row['levels']}{f' (degree {degree})' if degree != DEGREE else ''}"


def _close(row: Mapping[str, Any]) -> str:
    """Errors below the limit are not given, because their digits differ between machines."""
    error = row.get("error_of_polynomials")
    if error is None:
        return _plain(str(row.get("approximation", "")))
    return f"within {WITHIN}" if error <= CLOSE else f"**differ by {error:.1g}**"


def _of_smallest(row: Mapping[str, Any]) -> str:
    """For a network: the difference for its smallest inputs, with their shapes and the degree of the polynomials."""
    smallest = row.get("smallest")
    if smallest is None:
        return ""
    inputs = _shapes(smallest["inputs"])
    degree = f", degree {smallest['degree']}" if "degree" in smallest else ""
    return f"{_close(smallest)} ({inputs}{degree})"


def _shapes(inputs: Sequence[Sequence[int]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in inputs)


def _summary(rows: Sequence[Row]) -> str:
    columns = ("kind", "measured", "work", "of these joined", "refused", "unclearly, or crash", "wrong", "not measured")
    lines = [_line(columns), "|" + "---|" * len(columns)]
    names = {OPS: "single operations, as given", NETS: "small nets", ZOO: "networks of torchvision and timm"}
    for family, name in names.items():
        own = [row for row in rows if row["family"] == family and row["variant"] == AS_GIVEN]
        if own:
            lines.append(_line([name, str(len(own)), *(str(count) for count in counts(own))]))
    return "\n".join(lines) + "\n"


def counts(rows: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """How many rows are right, right by `olac.Joined`, refused, refused unclearly or crash, wrong, not measured."""
    groups = ((RIGHT,), (REFUSED,), (UNCLEAR, CRASH), (WRONG,))
    found = tuple(sum(row["outcome"] in group for row in rows) for group in groups)
    joined = sum(row["outcome"] == RIGHT and bool(row.get("joined")) for row in rows)
    return (found[0], joined, *found[1:], len(rows) - sum(found))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
