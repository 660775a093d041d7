"""`python -m benchmarks throughput`: CPU seconds an image of runs of many images, against those of one alone.

One image alone runs by a program that was compiled for one, with the same polynomials. Ensembles of several models run
one image as well, against one model alone. Client and server are in this
process; encryption and decryption don't count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.data import DataError
from benchmarks.results import THROUGHPUT, ResultsFile, Row
from benchmarks.workloads import SMALL, Workload, check_names, workload
from benchmarks.yardstick import Yardstick
from olac.compiler import Purpose, compile, prepare
from olac.options import CompileOptions, with_choices
from olac.program.program import CompiledProgram
from olac.runtime import Client, Server
from olac.selection.lower import lower
from olac.system.memory import GB, current_rss_bytes

ROUNDS = 3
"""Runs of one image, of which the median counts; runs of many images are not repeated."""


CHOICES: dict[str, dict[str, Any]] = {"resnet20": {"max_bootstraps": 6}}
"""What networks of benchmarks/models.py are compiled with, beside effort="fast"."""
SEVERAL = ["digits"]
"""Those of which there are several models, for ensembles."""


@dataclass(frozen=True)
class Measured:
    """Runs of one program.

    Attributes:
        cpu: seconds of each run, of all threads.
        wall: the same by the clock.
        error: the largest difference of outputs from `simulate`.
        memory: peak of this process after the runs, in bytes.
        yardstick: CPU seconds, see `benchmarks.yardstick`.
    """

    cpu: float
    wall: float
    error: float
    memory: float
    yardstick: float


def measured(program: CompiledProgram, images: torch.Tensor, rounds: int, say: Callable[[str], None]) -> Measured:
    """Runs of a program on images that are encrypted together, after one that warms up if there are several rounds."""
    client = Client(program)
    yardstick, given = Yardstick(), images.double().numpy()
    with Server(program, client.generate_keys()) as server:
        encrypted = client.encrypt(given, allow_out_of_range=True)
        cpu, wall, memory = list[float](), list[float](), 0.0
        if program.parameters.bootstrapping is None:
            server.prepare()
        for number in range(rounds):
            say(f"run {number + 1} of {rounds}: {encrypted.images} images in {encrypted.sets} x {program.batch}")
            start, clock = time.process_time(), time.perf_counter()
            result = server.run(encrypted)
            cpu.append(time.process_time() - start)
            wall.append(time.perf_counter() - clock)
            memory = max(memory, current_rss_bytes())
            yardstick.sample()
        found = client.decrypt(result, raw=True)
    error = float(np.max(np.abs(found - program.simulate(given, raw=True))))
    return Measured(statistics.median(cpu), statistics.median(wall), error, memory, yardstick.seconds)


def run(
    names: Sequence[str],
    counts: Sequence[int],
    results: ResultsFile,
    console: Console,
    *,
    ensembles: Sequence[int] = (),
    engine: str = "vector",
    weights: Path | None = None,
    data: Path | None = None,
    threads: int | None = None,
) -> list[Row]:
    """A row for each model and number of images, and for each model and number of models of an ensemble of it."""
    check_names(list(names))
    for name in names:
        if ensembles and name not in SEVERAL:
            raise DataError(f"there is one {name} only: ensembles are measured of {', '.join(SEVERAL)}")
    rows: list[Row] = []
    start = time.perf_counter()

    def say(line: str) -> None:
        console.print(f"{time.perf_counter() - start:6.0f} s  {line}", soft_wrap=True, markup=False, highlight=False)

    for name in names:
        work = workload(name, weights, data, calibration=256, images=64)
        quick = {} if name in SMALL else {"effort": "fast", **CHOICES.get(name, {})}
        options = with_choices(None, {"engine": engine, "threads": threads, **quick, **work.choices})  # type: ignore[typeddict-item]
        say(f"{name}: fitting")
        prepared = prepare(work.model, [work.calibration], options, None, Purpose("compiling", lowers=True))
        approximated = prepared.finished(prepared.run(prepared.pipeline))

        programs = {}
        for count in (1, *counts):
            say(f"{name}: lowering for {count} images")
            asked = with_choices(options, {"batch": count})
            programs[count] = lower(approximated, prepared.calibration, asked)
        alone = measured(programs[1], work.images[:1], ROUNDS, say)

        for count in counts:
            images = work.images.repeat(-(-count // len(work.images)), *[1] * (work.images.ndim - 1))[:count]
            many = measured(programs[count], images, 1, say)
            rows.append(_row(name, programs[count], count, engine, threads, alone, many))
            results.add(rows[-1])
        for count in ensembles:
            say(f"{name}: compiling an ensemble of {count}")
            program = _ensemble(work, count, options)
            # One model is measured anew, because what else the machine does changes in the meantime.
            beside = measured(programs[1], work.images[:1], ROUNDS, say)
            together = measured(program, work.images[:1], ROUNDS, say)
            rows.append(_row(f"{count} x {name}", program, 1, engine, threads, beside, together))
            results.add(rows[-1])
    return rows


def _row(
    model: str,
    program: CompiledProgram,
    images: int,
    engine: str,
    threads: int | None,
    alone: Measured,
    many: Measured,
) -> Row:
    return {
        "kind": THROUGHPUT,
        "model": model,
        "images": images,
        "engine": engine,
        "threads": threads,
        "batch": program.batch,
        "parameters": program.parameters.describe(),
        "cpu_seconds_alone": alone.cpu,
        "cpu_seconds": many.cpu / images,
        "wall_seconds": many.wall / images,
        "ratio": many.cpu / images / alone.cpu,
        "error": many.error,
        "error_alone": alone.error,
        "peak_rss_gb": many.memory / GB,
        "yardstick_seconds": many.yardstick,
        "yardstick_seconds_alone": alone.yardstick,
    }


def _ensemble(work: Workload, count: int, options: CompileOptions) -> CompiledProgram:
    """The mean of several models; their polynomials are those that the options give each."""
    assert work.other is not None
    models = [work.model, *(work.other(number) for number in range(1, count))]
    program = compile(models, [work.calibration], options)
    for note in program.report.notes:
        if "one after the other" in note:
            raise DataError(note)
    return program
