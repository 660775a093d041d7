"""`python -m benchmarks costs`: what networks of several sizes cost, as `olac.compile(model, loader)` compiles them.

Client and server are processes of their own, as in `encrypted`. Images are encrypted and run one by one.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import encrypted
from benchmarks.data import DataError, data_folder
from benchmarks.encrypted import Reporter
from benchmarks.encrypted_steps import content_of
from benchmarks.results import COST, ResultsFile, Row, machine
from olac.polynomials.modes import EFFORTS, KEYWORDS
from olac.system.threads import usable_threads

SMALL = ("logistic", "digits", "ecg")
"""Names of benchmarks/workloads.py that bring their data; that module needs torch."""
RANDOM = ("resnet18",)
"""Networks with random weights."""
DEFAULT = (*SMALL, "resnet8", "resnet20", "resnet56", *RANDOM)


def add_arguments(parser: argparse.ArgumentParser, positive: Callable[[str], int]) -> None:
    """The options of the command."""
    parser.add_argument(
        "models",
        nargs="*",
        metavar="NAME",
        help=f"{', '.join(DEFAULT)}, or another network of benchmarks/models.py; default: those named here",
    )
    parser.add_argument(
        "--weights", type=Path, metavar="DIR", help="folder with NAME.pt or NAME.safetensors of each network"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the .npz files; default: $OLAC_DATA")
    parser.add_argument("--images", type=positive, default=1, metavar="K", help="images to encrypt; default 1")
    parser.add_argument(
        "--tested", type=positive, default=1000, metavar="N", help="test images without encryption; default 1000"
    )
    parser.add_argument("--calibration", type=positive, default=1024, metavar="N", help="training images; default 1024")
    parser.add_argument(
        "--effort", choices=tuple(EFFORTS), default=KEYWORDS["effort"], help="of the fit; default standard"
    )
    parser.add_argument("--max-bootstraps", type=positive, metavar="N", help="at most so many bootstraps")
    parser.add_argument("--engine", metavar="NAME", help="openfhe or vector; default: what compile chooses")
    parser.add_argument("--threads", type=positive, metavar="T", help="threads of every process; default: all cores")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep programs and keys there, for reuse")
    parser.add_argument("--force", action="store_true", help="run even if memory is too small")


def run(options: argparse.Namespace, command: str, console: Console) -> list[Row]:
    """A row for each network, in the order of the command line."""
    names = options.models or list(DEFAULT)
    weights = {name: _weights(name, options.weights) for name in names}
    data = None if all(name in SMALL for name in names) else str(data_folder(options.data).resolve())
    results = ResultsFile.open(options.json, command, options.append)
    reporter, rows = Reporter(console), list[Row]()
    threads = options.threads or usable_threads()
    for name in names:
        reporter.line(f"{name}:")
        work = None if options.work is None else options.work / name
        with encrypted.folders_of(work, None) as folders, reporter.showing():
            folders.make()
            request = {
                "program": str(folders.program),
                "recipe": _recipe(name, weights[name], options),
                "weights": None if weights[name] is None else str(weights[name]),
                "data": data,
                "images": options.images,
                "threads": threads,
                "force": options.force,
                "engine": options.engine,
            }
            facts, found = encrypted.steps(request, folders, reporter, first="costs")
        row = {
            "kind": COST,
            "model": name,
            "images": options.images,
            "calibration_images": options.calibration,
            "effort": options.effort,
            "threads": threads,
            **found,
            **facts,
            "machine": machine(),
            "date": datetime.date.today().isoformat(),
        }
        results.add(row)
        rows.append(row)
    return rows


def _recipe(name: str, weights: Path | None, options: argparse.Namespace) -> dict[str, Any]:
    """What determines the program and its accuracy, as far as the command says it."""
    choices: dict[str, Any] = {"effort": options.effort}
    if options.max_bootstraps is not None:
        choices["max_bootstraps"] = options.max_bootstraps
    content = None if weights is None else content_of(weights)
    return {
        "model": name,
        "weights": content,
        "calibration": options.calibration,
        "tested": options.tested,
        "choices": choices,
        "engine": options.engine,
    }


def _weights(name: str, folder: Path | None) -> Path | None:
    """The file of a network's weights; None if it brings its own or has random ones."""
    if name in (*SMALL, *RANDOM) or folder is None:
        return None
    found = [path for end in ("pt", "safetensors") if (path := folder / f"{name}.{end}").is_file()]
    if not found:
        raise DataError(f"{folder} has no {name}.pt and no {name}.safetensors; docs/benchmarks.md says where to get it")
    return found[0].resolve()
