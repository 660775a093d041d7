"""Strategies side by side: all are compiled and predicted, and those that fit into the given time are run."""

from __future__ import annotations

import argparse
import re
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from benchmarks import encrypted, encrypted_steps
from benchmarks.data import data_folder, test_set, training_set
from benchmarks.encrypted import Folders, Reporter, RunError
from benchmarks.encrypted_steps import Request
from benchmarks.results import PREDICTED, ResultsFile, Row
from benchmarks.strategies import StrategyError, parse_strategies
from olac.ckks.engines import AUTO
from olac.system.threads import usable_threads

MINUTE = 60.0


@dataclass
class _Candidate:
    """A strategy: its program's folder, and the row of what is known about it."""

    folders: Folders
    request: Request
    row: Row

    @property
    def seconds(self) -> float:
        """Predicted seconds of keys, set-up and all images."""
        images = self.request["images"] * self.row["predicted_seconds"]
        return float(self.row["predicted_keygen_seconds"] + self.row["predicted_setup_seconds"] + images)


def compare(options: argparse.Namespace, command: str, console: Console) -> list[Row]:
    """Predict all strategies of the command line, then run them, the fastest first, while there is time left.

    The row of a strategy that no parameters can hold, or that is not run, gives the reason. The file has every row as
    soon as it is known; a measured row replaces its prediction.
    """
    strategies = parse_strategies(options.compare, options.lowering)
    if any(strategy.fit is None for strategy in strategies):
        raise StrategyError("--compare takes ways to approximate activations, not relu")
    folder = data_folder(options.data)
    training_set(folder, options.calibration)
    if options.minutes:
        test_set(folder, max(options.images, options.simulate or 0))
    pinned = encrypted.pinned_of(options)
    threads = options.threads or usable_threads()
    recipes = [
        encrypted_steps.recipe(
            options.model, options.weights, strategy.item, options.calibration, options.effort, pinned
        )
        for strategy in strategies
    ]
    results = ResultsFile.open(options.json, command, options.append)
    reporter = Reporter(console)
    candidates: list[_Candidate] = []
    with ExitStack() as stack, reporter.showing():
        for recipe in recipes:
            work = None if options.work is None else options.work / _name(recipe["strategy"])
            folders = stack.enter_context(encrypted.folders_of(work, None))
            folders.make()
            request = encrypted.request_of(options, folders, recipe, threads, options.images)
            candidates.append(_Candidate(folders, request, _predicted(options, request, reporter)))
            results.add(candidates[-1].row)
        end = time.monotonic() + MINUTE * options.minutes
        for one in sorted((c for c in candidates if c.row["infeasible"] is None), key=lambda c: c.seconds):
            predicted = one.row
            one.row = _run(options, one, end - time.monotonic(), reporter)
            results.add(one.row, instead_of=predicted)
            if options.work is None:
                one.folders.remove_keys()
    return [one.row for one in candidates]


def _name(strategy: str) -> str:
    """Name of a strategy's folder."""
    return re.sub(r"[^0-9a-z-]+", "-", strategy)


def _predicted(options: argparse.Namespace, request: Request, reporter: Reporter) -> Row:
    row: Row = {
        "kind": PREDICTED,
        "model": options.model,
        "strategy": request["recipe"]["strategy"],
        "calibration_images": options.calibration,
        "effort": options.effort,
        "threads": request["threads"],
        "max_memory": options.max_memory,
        "engine": options.engine or AUTO.name,
        "infeasible": None,
        "not_run": None,
    }
    # The expected outputs are needed for runs only.
    only_compiled: dict[str, Any] = request | {"images": 0}
    try:
        return row | encrypted.run_step("prepare", only_compiled, reporter.tell)
    except RunError as error:
        reporter.line(f"{row['strategy']}: {error}")
        return row | {"infeasible": str(error)}


def _run(options: argparse.Namespace, one: _Candidate, left: float, reporter: Reporter) -> Row:
    """The measured row, or the predicted one with the reason why it was not run."""
    reason = None
    if not options.minutes:
        reason = "predicted only, as --minutes 0 asks for"
    elif one.seconds > left:
        reason = f"keys, set-up and run would take {one.seconds:.0f} s, {max(0.0, left):.0f} s are left"
    if reason is None:
        reporter.line(f"{one.row['strategy']}:")
        try:
            found = encrypted.measured(options, one.folders, one.request, reporter)
            return found | {"compile_seconds": one.row["compile_seconds"]}
        except RunError as error:
            reason = str(error)
    if options.minutes:
        reporter.line(f"{one.row['strategy']}: not run: {reason}")
    return one.row | {"not_run": reason}
