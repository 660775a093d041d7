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
from torch import nn

from benchmarks.data import DataError, data_folder, test_set, training_set
from benchmarks.models import MODELS
from benchmarks.results import THROUGHPUT, ResultsFile, Row
from benchmarks.yardstick import Yardstick
from olac.compiler import Purpose, compile, prepare
from olac.demo import load_digits, train
from olac.options import CompileOptions, with_choices
from olac.program.program import CompiledProgram
from olac.runtime import Client, Server
from olac.selection.lower import lower
from olac.system.memory import GB, current_rss_bytes

ROUNDS = 3
"""Runs of one image, of which the median counts; runs of many images are not repeated."""


@dataclass(frozen=True)
class Workload:
    """A model, calibration images, the images that are encrypted, and how it is compiled.

    Attributes:
        other: another model of the same structure for each number from 1 on, for ensembles; None if there is none.
    """

    model: nn.Module
    calibration: torch.Tensor
    images: torch.Tensor
    choices: dict[str, Any]
    other: Callable[[int], nn.Module] | None = None


def _logistic() -> Workload:
    """Logistic regression on scikit-learn's breast cancer data: 30 columns."""
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer()
    x = torch.tensor((table.data - table.data.mean(0)) / table.data.std(0), dtype=torch.float32)
    y = torch.tensor(table.target, dtype=torch.float32)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 1), nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy(model(x)[:, 0], y).backward()
        optimizer.step()
    return Workload(model.eval(), x, x, {})


def _digits() -> Workload:
    """The demo's network of two convolutions on scikit-learn's digits."""
    digits = load_digits()
    return Workload(
        train(digits),
        digits.train_images[:512],
        digits.test_images,
        {"degree": 3},
        lambda number: train(digits, seed=number),
    )


def _cifar(name: str, weights: Path | None, folder: Path | None) -> Workload:
    benchmark, data = MODELS[name], data_folder(folder)
    try:
        model = benchmark.load(weights)
    except (ValueError, OSError) as error:
        raise DataError(str(error)) from error
    training, test = training_set(data, 256), test_set(data, 64)
    choices = {"max_bootstraps": 6, "effort": "fast"} if name == "resnet20" else {"effort": "fast"}
    return Workload(model, benchmark.images(training.images(256)), benchmark.images(test.images(64)), choices)


SMALL: dict[str, Callable[[], Workload]] = {"logistic": _logistic, "digits": _digits}
"""Those that come with their data; the others are networks of benchmarks/models.py."""
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
    known = (*SMALL, *MODELS)
    for name in names:
        if name not in known:
            raise DataError(f"{name} is not one of {', '.join(known)}")
        if ensembles and name not in SEVERAL:
            raise DataError(f"there is one {name} only: ensembles are measured of {', '.join(SEVERAL)}")
    rows: list[Row] = []
    start = time.perf_counter()

    def say(line: str) -> None:
        console.print(f"{time.perf_counter() - start:6.0f} s  {line}", soft_wrap=True, markup=False, highlight=False)

    for name in names:
        work = SMALL[name]() if name in SMALL else _cifar(name, weights, data)
        options = with_choices(None, {"engine": engine, "threads": threads, **work.choices})  # type: ignore[typeddict-item]
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
