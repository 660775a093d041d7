"""Encrypted runs: seconds, memory and errors of a compiled program on test images, client and server as processes.

This process computes nothing and loads neither torch nor OpenFHE: it starts the steps of `encrypted_steps` one after
the other, shows their progress and writes the row.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import encrypted_steps
from benchmarks.data import DataError, data_folder, test_set, training_set
from benchmarks.encrypted_steps import Request, Result
from benchmarks.named_engines import existing
from benchmarks.results import ENCRYPTED, ResultsFile, Row, machine
from benchmarks.strategies import Strategy, StrategyError, parse_strategies
from olac.backends.session import DEFAULT
from olac.progress import Event, showing
from olac.progress import Reporter as Shower
from olac.system.memory import GB, available_bytes
from olac.system.threads import usable_threads

log = logging.getLogger("olac.benchmarks")

EVERY_SECONDS = 30.0
"""Seconds between lines of progress if the output is no terminal."""
DISK_MARGIN = 1.1

Tell = Callable[[dict[str, Any]], None]


class RunError(RuntimeError):
    """An encrypted run that is impossible or failed; the message says why, and what to do."""


class Reporter:
    """Shows the progress of a run: a bar if stderr is a terminal, and new lines from time to time where none is read.

    Args:
        console: for lines that stay.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._say: Shower | None = None
        self._next = 0.0

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)
        self._next = time.monotonic() + EVERY_SECONDS

    def show(self, text: str, share: float = 0.0, left: float | None = None) -> None:
        """Show where the run is now; which share of it is done and how many seconds are left, if that is known."""
        if self._say is not None:
            self._say(Event(text, text, share=share, eta_seconds=left))
        if not self._console.is_terminal and time.monotonic() >= self._next:
            self.line(text)

    def tell(self, event: dict[str, Any]) -> None:
        """Show the message of a step's event."""
        if "say" in event:
            self.show(event["say"])

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Within this, the bar is on the terminal."""
        with showing(None, "measuring", "measured", log, closing=False) as self._say:
            yield
        self._say = None


def run_step(name: str, request: Request, tell: Tell) -> Result:
    """Run a step in a process of its own; `tell` gets its events. RunError says what went wrong there."""
    root = str(Path(__file__).resolve().parents[1])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(request["threads"]),
        "PYTHONPATH": os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.encrypted_steps", name],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    last: dict[str, Any] = {}
    try:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        for line in process.stdout:
            last = json.loads(line)
            tell(last)
        status = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if "error" in last:
        if last["usage"]:
            raise DataError(last["error"])
        raise RunError(last["error"])
    if status < 0:
        raise RunError(f"the step {name} was killed by signal {-status}" + (", for memory?" if status == -9 else ""))
    if status or "result" not in last:
        raise RunError(f"the step {name} failed with exit status {status}")
    result: Result = last["result"]
    return result


@dataclass(frozen=True)
class Folders:
    """Where the steps find each other's files; the server's step is never told the client's folder."""

    root: Path
    program: Path

    @property
    def client(self) -> Path:
        """The secret key, the images and the outputs."""
        return self.root / "client"

    @property
    def server(self) -> Path:
        """The evaluation keys and ciphertexts."""
        return self.root / "server"

    @property
    def keys_record(self) -> Path:
        """Which program the keys belong to, and what making them took."""
        return self.root / "keys.json"

    def make(self) -> None:
        """Make the folders; only their owner can look into the client's."""
        try:
            self.client.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.server.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.root}: the folder can't be made: {error.strerror or error}") from error

    def remove_keys(self) -> None:
        """Delete the keys, which take several GB."""
        for folder in (self.client, self.server):
            shutil.rmtree(folder, ignore_errors=True)

    def keys(self, fingerprint: str, engine: str) -> Result | None:
        """What is known of existing keys of the program for an engine; None if there are none."""
        if not ((self.client / "secret.key").is_file() and (self.server / "evaluation.keys").is_file()):
            return None
        try:
            found: Result = json.loads(self.keys_record.read_text(encoding="utf-8"))
            belong = found.pop("fingerprint") == fingerprint and found.pop("engine", DEFAULT) == engine
            return found if belong else None
        except (OSError, ValueError, KeyError):
            return None


@contextmanager
def folders_of(work: Path | None, program: Path | None) -> Iterator[Folders]:
    """The work folder; a temporary one is deleted afterwards, with keys of several GB."""
    if work is not None:
        yield Folders(work.resolve(), (program or work / "program.olac").resolve())
        return
    root = Path(tempfile.mkdtemp(prefix="olac-encrypted-"))
    try:
        yield Folders(root, (program or root / "program.olac").resolve())
    finally:
        shutil.rmtree(root, ignore_errors=True)


def run(options: argparse.Namespace, command: str, console: Console) -> Row:
    """Measure what the command line asks for; returns the row, which has been written to the file."""
    strategy = one_strategy(options.strategy, options.lowering)
    folder = data_folder(options.data)
    test_set(folder, max(options.images, options.simulate or 0))
    threads = options.threads or usable_threads()
    pinned = pinned_of(options)
    recipe = encrypted_steps.recipe(
        options.model, options.weights, strategy.item, options.calibration, options.effort, pinned
    )
    results = ResultsFile.open(options.json, command, options.append)
    reporter = Reporter(console)
    with folders_of(options.work, options.program) as folders, reporter.showing():
        if not folders.program.exists():
            training_set(folder, options.calibration)
        if not folders.program.parent.is_dir() and options.program is not None:
            raise DataError(f"the folder of {folders.program} does not exist")
        folders.make()
        row = measured(options, folders, request_of(options, folders, recipe, threads, options.images), reporter)
    results.add(row)
    return row


def measured(options: argparse.Namespace, folders: Folders, request: Request, reporter: Reporter) -> Row:
    """Run all steps of a request and show the results; returns the row."""
    facts, found = steps(request, folders, reporter)
    row = {
        "kind": ENCRYPTED,
        "model": options.model,
        "strategy": request["recipe"]["strategy"],
        "images": options.images,
        "calibration_images": options.calibration,
        "effort": options.effort,
        "threads": request["threads"],
        **found,
        **facts,
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
    }
    for line in summary(row):
        reporter.line(line)
    return row


def request_of(
    options: argparse.Namespace, folders: Folders, recipe: dict[str, Any], threads: int, images: int
) -> Request:
    """What the steps need to know."""
    return {
        "program": str(folders.program),
        "recipe": recipe,
        "weights": None if options.weights is None else str(options.weights.resolve()),
        "data": str(data_folder(options.data).resolve()),
        "images": images,
        "simulate": options.simulate,
        "threads": threads,
        "force": options.force,
        "engine": options.engine,
    }


def one_strategy(item: str, lowering: str) -> Strategy:
    """The one strategy to run, with its own lowering of convolutions or else the given one. Not the model itself."""
    strategies = parse_strategies([item], lowering)
    if len(strategies) != 1 or strategies[0].fit is None:
        raise StrategyError(f"--strategy takes one way to approximate activations, not {item!r}")
    return strategies[0]


def pinned_of(options: argparse.Namespace) -> dict[str, Any]:
    """The parameters that the command line pins; DataError if they, or the engine, are impossible."""
    pinned = {name: getattr(options, name) for name in ("insecure", "log_ring", "rest", "digits", "max_memory")}
    if options.engine is not None:
        existing(options.engine)
    if pinned["digits"] is not None and pinned["rest"] is None:
        raise DataError("--digits pins parameters with bootstraps: give --rest, too")
    try:
        encrypted_steps.pinned_parameters(pinned)
    except ValueError as error:
        raise DataError(f"these parameters can't be pinned: {error}") from error
    return pinned


def steps(request: Request, folders: Folders, reporter: Reporter, first: str = "prepare") -> tuple[Result, Result]:
    """Run all steps in turn, of which the first makes the program.

    Returns facts and predictions of the program, and what was measured.
    """
    tell = reporter.tell
    client = {"client": str(folders.client)}
    server = {"server": str(folders.server)}
    facts = run_step(first, request | client, tell)
    engine = facts["engine"]
    request = request | {"engine": engine}
    if facts["compile_seconds"] is None:
        reporter.line(f"{folders.program} is there: calibration and compilation are skipped")
    else:
        facts["compile_seconds"] = round(facts["compile_seconds"], 1)
        reporter.line(f"compiled in {facts['compile_seconds']:.0f} s")
    keys = folders.keys(facts["fingerprint"], engine)
    reporter.line(f"engine {engine}, program {facts['fingerprint'][:16]} planned for {facts['planned_for']}")
    for line in prediction(facts):
        reporter.line(line)
    if not request["force"]:
        check_room(facts, folders, making_keys=keys is None)
    if keys is None:
        folders.keys_record.unlink(missing_ok=True)
        keys = run_step("keygen", request | client | server, tell)
        record = {**keys, "fingerprint": facts["fingerprint"], "engine": engine}
        folders.keys_record.write_text(json.dumps(record), encoding="utf-8")
        reporter.line(
            f"keys: {keys['key_bytes'] / GB:.2f} GB in {keys['keygen_seconds']:.0f} s, "
            f"{keys['keygen_peak_rss_gb']:.2f} GB of memory"
        )
    else:
        reporter.line("existing keys of this program and engine are used; their seconds are those of making them")
    encrypted = run_step("encrypt", request | client | server, tell)
    watch = Watch(facts, request["images"], reporter)
    served = run_step("serve", request | server, watch.tell)
    decrypted = run_step("decrypt", request | client | server, tell)
    if facts["bootstraps"]:
        one = {"cpu": served["bootstraps_cpu_seconds"], "wall": served["kind_seconds"]["bootstrap"]}
        served |= {f"bootstrap_{k}_seconds": round(spent / facts["bootstraps"], 3) for k, spent in one.items()}
    return facts, {**keys, **encrypted, **served, **decrypted}


def prediction(facts: Result) -> list[str]:
    """Lines about what the program will take."""
    here = facts.get("here_seconds")
    return [
        facts["parameters"],
        f"predicted: {facts['predicted_seconds']:.0f} s an image by the table of costs"
        + ("" if here is None else f", {here:.0f} s on this machine")
        + f", {facts['bootstraps']} bootstraps, "
        f"{facts['rotations']} rotations, {facts['products']} products; keys of "
        f"{facts['predicted_key_bytes'] / GB:.2f} GB in {facts['predicted_keygen_seconds']:.0f} s; "
        f"server {facts['predicted_gb']:.2f} GB, client {facts['predicted_client_gb']:.2f} GB",
    ]


def summary(row: Row) -> list[str]:
    """Lines about what was measured."""
    kinds = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in row["kind_seconds"].items())
    lines = [
        f"an image: {row['wall_seconds']:.1f} s on {row['threads']} threads "
        f"({row['predicted_seconds']:.0f} predicted), {row['cpu_seconds']:.1f} s of CPU: {kinds}",
        f"server: {row['peak_rss_gb']:.2f} GB at most ({row['predicted_gb']:.2f} predicted), set up in "
        f"{row['setup_seconds']:.0f} s",
        f"largest error of a logit: {row['max_logit_error']:.2g} of {row['max_logit']:.2g}; {row['same_class']} of "
        f"{row['images']} images in the class that simulate() gives, {row['correct']} in the right one",
    ]
    beside = f"the yardstick, an NTT of 2^16 points: {1e3 * row['ntt_cpu_seconds']:.2f} ms of CPU"
    if "bootstrap_cpu_seconds" in row:
        beside += f"; one bootstrap: {row['bootstrap_cpu_seconds']:.2f} s of CPU"
    lines.append(beside)
    if "top1_simulated" in row:
        lines.append(f"simulate(): top-1 {row['top1_simulated']:.2%} on {row['simulated_images']} images")
    return lines


def check_room(facts: Result, folders: Folders, making_keys: bool) -> None:
    """Raise RunError if memory or disk are too small, before any key is made."""
    needed = max(facts["predicted_gb"], facts["predicted_client_gb"] if making_keys else 0.0)
    free = available_bytes() / GB
    if needed > free:
        raise RunError(
            f"the run takes {needed:.2f} GB of memory, {free:.2f} GB are available. Free memory, take a machine with "
            f"more, or let the compiler look for less with --max-memory {int(free * 10) / 10:g}; --force tries it "
            "nevertheless."
        )
    disk, written = shutil.disk_usage(folders.root).free, facts["predicted_key_bytes"] * DISK_MARGIN
    if making_keys and written > disk:
        raise RunError(
            f"keys take {written / GB:.2f} GB of disk, {folders.root} has {disk / GB:.2f} GB free: name another "
            "folder with --work, or set TMPDIR."
        )


class Watch:
    """Shows where the server is, and when it will be done by the predicted seconds of what is left."""

    def __init__(self, facts: Result, images: int, reporter: Reporter) -> None:
        self._predicted: dict[str, float] = facts["predicted_node_seconds"]
        self._nodes = [name for name, _, _ in facts["levels"]]
        self._images, self._reporter = images, reporter
        self._expected = self._spent = 0.0
        self._all = sum(self._predicted.values()) * images

    def tell(self, event: dict[str, Any]) -> None:
        """Handle an event of the server's."""
        self._reporter.tell(event)
        if "node" not in event:
            return
        self._spent += event["seconds"]
        self._expected += self._predicted.get(event["node"], 0.0)
        slower = self._spent / self._expected if self._expected else 1.0
        left = max(0.0, self._all - self._expected) * slower
        at = self._nodes.index(event["node"]) + 1
        image = f"image {event['image'] + 1} of {self._images}, " if self._images > 1 else ""
        self._reporter.show(
            f"{image}{at} of {len(self._nodes)} done: {event['node']} at level {event['level']}, {self._spent:.0f} s "
            f"so far, about {left:.0f} s left",
            min(1.0, self._expected / self._all) if self._all else 0.0,
            left,
        )
