"""`python -m benchmarks finetune`: a network of squares that is trained with labels, measured on test images.

Test images serve for measuring only. The best epoch is chosen by training images that no step sees.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch.nn import functional

import olac
from benchmarks.accuracy import Measurement
from benchmarks.data import DataError
from benchmarks.encrypted_steps import recipe, recipe_file
from benchmarks.results import ResultsFile, Row
from benchmarks.strategies import FINETUNE
from olac.training.loop import TrainingOptions
from olac.tuning import FineTuned

Tensor = torch.Tensor

NOTHING = {"insecure": False, "log_ring": None, "rest": None, "digits": None, "max_memory": None}
"""What `encrypted` may pin, and nothing of it is pinned here."""
BATCH, SHIFT, EVERY = 32, 4, 50
"""Images of a batch, pixels by which they are shifted at most, and of how many one is held out to choose the epoch."""


@dataclass
class Augmented:
    """Batches of shuffled images and labels, mirrored and shifted anew in each pass, by torch's random numbers."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return -(-len(self.images) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.randperm(len(self.images)).split(BATCH):
            x = self.images[chosen]
            mirrored = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
            wide = functional.pad(mirrored, (SHIFT,) * 4)
            tops, lefts = torch.randint(0, 2 * SHIFT + 1, (2, len(x))).tolist()
            height, width = x.shape[2:]
            moved = [w[:, t : t + height, s : s + width] for w, t, s in zip(wide, tops, lefts, strict=True)]
            yield torch.stack(moved), self.labels[chosen]


def run(
    measurement: Measurement,
    epochs: int,
    options: TrainingOptions,
    results: ResultsFile,
    console: Console,
    *,
    weights: Path | None = None,
    module: Path | None = None,
    program: Path | None = None,
    precision: float | None = None,
    threads: int | None = None,
) -> Row:
    """Fine-tune squares everywhere and add the row to the results; the module and the program are saved if asked for.

    The calibration images of the measurement are the training images.
    """
    if measurement.calibration < 2 * EVERY:
        raise DataError(f"--calibration {measurement.calibration} is too little to train on")
    images = measurement.benchmark.images(measurement.training.images(measurement.calibration))
    labels = torch.from_numpy(measurement.training.labels(measurement.calibration))
    held = torch.arange(len(images)) % EVERY == 0
    start = time.perf_counter()

    def say(line: str) -> None:
        console.print(f"{time.perf_counter() - start:6.0f} s  {line}", soft_wrap=True, markup=False, highlight=False)

    tuned: FineTuned = olac.finetune(
        measurement.model,
        Augmented(images[~held], labels[~held]),
        list(zip(images[held].split(BATCH), labels[held].split(BATCH), strict=True)),
        epochs=epochs,
        training=options,
        effort=measurement.effort,
        fit_seconds=measurement.fit_limit,
        progress=say,
    )
    seconds = time.perf_counter() - start
    if module is not None:
        torch.save(tuned.module.state_dict(), module)
    row = measurement.measured(f"{FINETUNE}:{epochs}", tuned.approximated, seconds, lambda images: None, say)
    row |= {"history": [epoch.__dict__ for epoch in tuned.history]}
    results.add(row)
    if program is not None:
        tuned.compile(progress=say, threads=threads, precision=precision).save(program)
        made = recipe(measurement.name, weights, row["strategy"], measurement.calibration, measurement.effort, NOTHING)
        recipe_file(program).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return row
