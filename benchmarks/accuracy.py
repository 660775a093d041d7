"""Accuracy of a model whose activations are polynomials, by strategy, on test images in plaintext.

Test images serve for measuring only: `olac.approximate` gets training images alone, and its result does not change
after a test image has been read.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError
from torch import nn

import olac
from benchmarks.data import DataError, ImageSet
from benchmarks.depth import activation_depth
from benchmarks.models import MODELS, Benchmark
from benchmarks.results import ResultsFile, Row
from benchmarks.strategies import Strategy
from olac.approximation import tensors
from olac.approximation.criterion import Classification
from olac.errors import OlacError
from olac.options import CompileOptions
from olac.polynomials.modes import EffortName
from olac.program.program import ApproximatedModel

Array = npt.NDArray[np.floating]
Done = Callable[[int], None]
"""Called with the number of images that have just been computed."""

CALIBRATION_BATCH = 64
CHECKED = 64
"""Number of images on which single precision is compared with `simulate`."""
TOLERANCE = 1e-3
"""Largest difference allowed there, relative to the largest output."""
LARGEST = 1e30
"""Larger outputs are left out of that comparison: single precision ends at 3e38."""
WRECKED = 100.0
"""An image has diverged if an output is this many times the largest calibrated one, or not finite."""


def load_model(name: str, weights: Path | None) -> tuple[Benchmark, nn.Module]:
    """A model by its name, with its weights. DataError says what is wrong with either."""
    if name not in MODELS:
        raise DataError(f"model {name!r} is unknown; there are {', '.join(MODELS)}")
    if weights is not None and not weights.is_file():
        raise DataError(f"there is no file {weights}; docs/benchmarks.md says where to get weights")
    try:
        return MODELS[name], MODELS[name].load(weights)
    except (ValueError, RuntimeError, OSError, TypeError, pickle.UnpicklingError, SafetensorError) as error:
        raise DataError(f"no weights for {name}: {error}") from error


@dataclass
class Measurement:
    """A model, the images that it is calibrated on, and the test images that it is measured on."""

    name: str
    benchmark: Benchmark
    model: nn.Module
    training: ImageSet
    test: ImageSet
    images: int
    calibration: int
    effort: EffortName = "standard"
    fit_limit: float | None = None
    say: Callable[[str], None] = lambda line: None
    _plaintext_seconds: float = 0.0

    @cached_property
    def calibration_batches(self) -> tuple[torch.Tensor, ...]:
        """The first training images."""
        images = self.benchmark.images(self.training.images(self.calibration))
        return tuple(images[start : start + CALIBRATION_BATCH] for start in range(0, len(images), CALIBRATION_BATCH))

    @cached_property
    def _test_images(self) -> npt.NDArray[np.uint8]:
        return self.test.images(self.images)

    @cached_property
    def _labels(self) -> npt.NDArray[np.int64]:
        return self.test.labels(self.images)

    @cached_property
    def plaintext(self) -> Array:
        """Outputs of the model itself for the test images, (images, classes)."""
        self.say("the model itself")
        start = time.perf_counter()
        with torch.no_grad():
            parts = [self.model(x).flatten(1).numpy() for x in self.chunks(lambda n: None)]
        self._plaintext_seconds = time.perf_counter() - start
        return np.concatenate(parts)

    def _mean_error(self, outputs: Array) -> float:
        """Of all outputs; those beyond ten times the largest count as that, so that one image does not decide it."""
        most = 10 * float(np.abs(self.plaintext).max())
        kept = np.clip(np.nan_to_num(outputs, nan=most, posinf=most, neginf=-most), -most, most)
        return float(np.abs(kept - self.plaintext).mean())

    @cached_property
    def plaintext_top1(self) -> float:
        """Share of the test images that the model itself classifies correctly."""
        return float(np.mean(self.plaintext.argmax(1) == self._labels))

    def chunks(self, done: Done) -> Iterator[torch.Tensor]:
        """The test images in small batches, in the form that the model takes."""
        for start in range(0, self.images, tensors.CHUNK):
            pixels = self._test_images[start : start + tensors.CHUNK]
            yield self.benchmark.images(pixels)
            done(len(pixels))

    def relu(self) -> Row:
        """The row of the model with its own activations."""
        outputs = self.plaintext
        return self._row("relu", outputs, np.zeros(len(outputs), bool), [], [], None, None, self._plaintext_seconds)

    def strategy(self, strategy: Strategy, done: Done, warn: Callable[[str], None]) -> Row:
        """The row of one strategy. OlacError if olac refuses it."""
        if strategy.fit is None:
            return self.relu()
        start = time.perf_counter()
        approximated = olac.approximate(
            self.model,
            self.calibration_batches,
            CompileOptions(fit=replace(strategy.fit, effort=self.effort, fit_seconds=self.fit_limit)),
            progress=self.say,
        )
        return self.measured(strategy.item, approximated, time.perf_counter() - start, done, warn)

    def measured(
        self,
        item: str,
        approximated: ApproximatedModel,
        fit_seconds: float,
        done: Done,
        warn: Callable[[str], None],
    ) -> Row:
        """The row of an approximated model."""
        depth = activation_depth(approximated.graph)
        plaintext = self.plaintext  # this may read test images for the first time
        self.say("simulating")
        start = time.perf_counter()
        outputs, precision = evaluate(approximated, self.chunks, done, warn)
        seconds = time.perf_counter() - start
        bound = approximated.graph[approximated.graph.outputs[0]].type.bound
        magnitude = float(np.max(np.abs(plaintext))) if bound is None else bound.magnitude
        fits = approximated.report.fits
        return self._row(
            item,
            outputs,
            ~(np.abs(outputs).max(1) <= WRECKED * magnitude),  # NaN compares as false, so it has diverged, too
            [fit.degree for fit in fits],
            [fit.depth for fit in fits],
            depth,
            fit_seconds,
            seconds,
        ) | {"precision": precision}

    def _row(
        self,
        item: str,
        outputs: Array,
        wrecked: npt.NDArray[np.bool_],
        degrees: list[int],
        depths: list[int],
        total_depth: int | None,
        fit_seconds: float | None,
        simulate_seconds: float,
    ) -> Row:
        classes = np.where(np.isfinite(outputs).all(1), outputs.argmax(1), -1)  # -1: an output is not finite
        return {
            "model": self.name,
            "strategy": item,
            "total_depth": total_depth,
            "top1": float(np.mean(classes == self._labels)),
            "agreement": Classification().agreement(outputs.astype(np.float64), self.plaintext.astype(np.float64)),
            "plaintext_top1": self.plaintext_top1,
            "wrecked": int(wrecked.sum()),
            "images": self.images,
            "calibration_images": self.calibration,
            "effort": self.effort,
            "fit_limit": self.fit_limit,
            "mean_error": self._mean_error(outputs),
            "fit_seconds": None if fit_seconds is None else round(fit_seconds, 3),
            "simulate_seconds": round(simulate_seconds, 3),
            "degrees": degrees,
            "depths": depths,
        }


def evaluate(
    approximated: ApproximatedModel,
    chunks: Callable[[Done], Iterator[torch.Tensor]],
    done: Done,
    warn: Callable[[str], None],
) -> tuple[Array, str]:
    """Outputs (images, classes) in "single" precision, or by `simulate` in "double" if that is not exact enough."""
    graph, weights = approximated.graph, tensors.tensors(approximated.graph)

    def single(x: torch.Tensor) -> Array:
        return np.asarray(tensors.real_outputs(graph, weights, x).double().flatten(1).numpy())

    def exact(x: torch.Tensor) -> Array:
        return np.asarray(approximated.simulate(x.numpy()).reshape(len(x), -1))

    with torch.no_grad():
        first = next(chunks(lambda n: None))[:CHECKED]
        error = _difference(single(first), exact(first))
        precise = error < TOLERANCE
        if not precise:
            warn(
                f"single precision is off by {error:.1e} of the largest output: simulating in double precision, slower"
            )
        outputs = np.concatenate([(single if precise else exact)(x) for x in chunks(done)])
    return outputs, "single" if precise else "double"


def _difference(ours: Array, exact: Array) -> float:
    """Largest difference relative to the image's own largest output, or to that of the median image if it is larger.

    So an image with excessive outputs hides no error of the others. Images beyond single precision's range don't count:
    they have diverged in any case.
    """
    size = np.nan_to_num(np.abs(exact).max(1), nan=np.inf)
    held = size < LARGEST
    if not held.any():
        return 0.0
    error = np.abs(ours[held] - exact[held]).max(1)
    relative = error / np.maximum(np.maximum(size[held], np.median(size[held])), 1 / LARGEST)
    return float(np.nan_to_num(relative, nan=np.inf).max())


def run(
    measurement: Measurement, strategies: tuple[Strategy, ...], results: ResultsFile, console: Console
) -> tuple[list[Row], int]:
    """Measure the strategies in turn, with progress on the console; returns the rows and how many strategies failed."""
    rows: list[Row] = []
    failed = 0
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        everything = progress.add_task("strategies", total=len(strategies))
        for strategy in strategies:
            task = progress.add_task(strategy.item, total=measurement.images)

            def say(line: str, task: TaskID = task, item: str = strategy.item) -> None:
                progress.update(task, description=f"{item}: {line}")

            def done(images: int, task: TaskID = task) -> None:
                progress.advance(task, images)

            def tell(line: str, item: str = strategy.item) -> None:
                console.print(f"{item}: {line}", soft_wrap=True, markup=False, highlight=False)

            measurement.say = say
            try:
                with np.errstate(over="ignore", invalid="ignore"):  # the row shows polynomials that overflow
                    row = measurement.strategy(strategy, done, lambda line: tell(f"warning: {line}"))
            except OlacError as error:
                failed += 1
                tell(f"failed: {type(error).__name__}: {error}")
            else:
                rows.append(row)
                results.add(row)
                tell(_line(row))
            progress.remove_task(task)
            progress.advance(everything)
    return rows, failed


def _line(row: Row) -> str:
    parts = [f"top-1 {row['top1']:.2%} ({row['plaintext_top1']:.2%} in plaintext)", f"agreement {row['agreement']:.2%}"]
    if row["total_depth"] is not None:
        parts = [f"depth {row['total_depth']}", *parts, f"fitted in {row['fit_seconds']:.1f} s"]
    if row["wrecked"]:
        parts.append(f"{row['wrecked']} images diverged")
    return ", ".join([*parts, f"simulated in {row['simulate_seconds']:.1f} s"])
