"""Calibration of large sets in parts, as Ray tasks or one after the other, and their merged statistics."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from olac import compiler
from olac.calibration.statistics import SAMPLE_BYTES, SAMPLE_IMAGES, Calibration
from olac.errors import BackendError, CalibrationError
from olac.progress import ShownCounts, counting, showing, with_counts
from olac.scaling.cluster import Executor, check_executor, check_positive, connected_ray, losses, own_error
from olac.system.files import make_folder
from olac.system.internal import callers

log = logging.getLogger(__name__)

Part = Callable[[], Iterable[Any]] | Iterable[Any]


def calibrate(
    model: Any,
    calib_loader: Iterable[Any],
    *,
    activations: Mapping[Any, Any] | None = None,
    constants: Mapping[str, Any] | None = None,
    sample_images: int = SAMPLE_IMAGES,
    sample_bytes: int = SAMPLE_BYTES,
    executor: Executor | None = None,
    progress: Any = None,
    **choices: Any,
) -> Calibration:
    """Run a model over calibration images; the result can replace the loader in `olac.approximate` and `compile`.

    Args:
        model, calib_loader, progress: as in `olac.approximate`. With an executor, `calib_loader` is a sequence of parts
            and `progress` tells of parts, both as in `calibrate_parts`.
        activations, constants: as in `CompileOptions`; give the same to `approximate` and `compile`.
        sample_images, sample_bytes: limits of the sample of images that is kept for fits.
        executor: None for one pass over the loader; "local" for the parts of a large set one after the other; "ray" for
            the parts on the cluster that Ray is connected to.
        choices: with an executor also tasks=, attempts=, threads= and folder= of `calibrate_parts`.

    Raises:
        UnsupportedModelError, CalibrationError: as in `olac.approximate`.
        BackendError, ValueError: as in `calibrate_parts`.
    """
    options: dict[str, Any] = {
        "activations": activations,
        "constants": constants,
        "sample_images": sample_images,
        "sample_bytes": sample_bytes,
        "progress": progress,
    }
    if executor is not None:
        return calibrate_parts(model, _sequence(calib_loader), executor=executor, **options, **choices)
    if choices:
        names = ", ".join(f"{name}=" for name in choices)
        raise TypeError(f"{names} go with executor=, which divides the calibration into parts (docs/scaling.md)")
    return compiler.calibrate(model, calib_loader, **options)


def _sequence(parts: Any) -> Sequence[Part]:
    """The parts of a set; CalibrationError for one loader, which can't be divided."""
    if isinstance(parts, (list, tuple)):
        return parts
    raise CalibrationError(
        f"with executor= the calibration set is a list of parts, and a {type(parts).__name__} was given. Give a list "
        "of functions, each of which gives the loader of one part."
    )


def calibrate_parts(
    model: Any,
    parts: Sequence[Part],
    *,
    executor: Executor = "local",
    tasks: int = 4,
    attempts: int = 3,
    threads: int = 1,
    folder: str | Path | None = None,
    activations: Mapping[Any, Any] | None = None,
    constants: Mapping[str, Any] | None = None,
    sample_images: int = SAMPLE_IMAGES,
    sample_bytes: int = SAMPLE_BYTES,
    progress: ShownCounts = None,
) -> Calibration:
    """`olac.calibrate` of each part of a set, merged in the order of the parts.

    Both executors give the same on machines of one kind with the same `threads`. The result differs from that of one
    pass over the whole set in three ways:

    - Which images are held out: every 8th of each part, or a fair sample of them if the parts have more than the limit
      for all (`Calibration.merge`). Those that are not in the sample are in no statistic.
    - Which images are sampled, if there are more than `sample_images`.
    - Rounding: images run in batches of up to 64, and convolutions round by the size of a batch. So a range may differ
      in the last digits of single precision, and a value next to the border of a bin may be counted in the next one.
      Sums differ by the rounding of double precision.

    While no limit is reached, parts whose length is a multiple of 512 images give the same histograms, ranges, samples
    and held-out images, bit for bit, but for sums and outputs of the model for the held-out images.

    Args:
        model, activations, constants, sample_images, sample_bytes: as in `olac.calibrate`.
        parts: each a function without arguments that gives the part's loader, where the part is read, or a loader. With
            Ray they are pickled, so a function that opens files is better than images in memory.
        executor: "local" for one part after the other in this process, "ray" for tasks on the cluster that Ray is
            connected to.
        tasks: with Ray, how many parts are given out at a time.
        attempts: how often a part may be lost with its process or machine before it is an error.
        threads: with Ray, the CPUs that a task takes.
        folder: where the calibration of each part is saved, for going on after an interruption: parts that are there
            are not calibrated again. Parts are known by their place alone, so give the same parts in the same order.
            Files hold images: treat them as private data.
        progress: as of `Client.generate_keys`: a bar or lines, or a function of `olac.progress.Event`s, or of (parts
            done, parts in all).

    Raises:
        UnsupportedModelError, CalibrationError: as `olac.calibrate`; or there are no parts, or files in the folder are
            of another model.
        BackendError: Ray is not installed or not connected, or a part was lost too often.
        ValueError: an argument is out of range.
    """
    check_executor(executor)
    check_positive(tasks=tasks, attempts=attempts, threads=threads)
    parts = list(parts)
    if not parts:
        raise CalibrationError("there are no parts to calibrate with")
    limits = {"sample_images": sample_images, "sample_bytes": sample_bytes}
    options = {"activations": activations, "constants": constants, **limits}
    files = _Files(folder, len(parts))
    missing = [number for number in range(len(parts)) if not files.has(number)]
    made = (
        (_calibrated(model, parts[number], options) for number in missing)
        if executor == "local"
        else _on_ray(connected_ray(), model, parts, missing, options, tasks, attempts, threads)
    )
    whole: Calibration | None = None
    with showing(with_counts(progress), "calibrating", "calibrated", log, told=False) as say, closing(made):
        tell = counting(say, "calibrating parts")
        for number in range(len(parts)):
            if number in missing:
                one = next(made)
                files.save(number, one)
            else:
                one = files.load(number)
            whole = one if whole is None else whole.merge(one, **limits)
            tell(number + 1, len(parts))
        say.result = f"{len(parts)} parts"
    assert whole is not None
    return whole


def _calibrated(model: Any, part: Part, options: Mapping[str, Any]) -> Calibration:
    with callers():
        loader = part() if callable(part) else part
    return compiler.calibrate(model, loader, **options)


class _Files:
    """The calibrations of parts in a folder, if there is one."""

    def __init__(self, folder: str | Path | None, count: int) -> None:
        self._folder = None if folder is None else Path(folder)
        self._digits = len(str(count - 1))
        if self._folder is not None:
            make_folder(self._folder)

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"part-{number:0{self._digits}}.calibration"

    def has(self, number: int) -> bool:
        return self._folder is not None and self._path(number).exists()

    def load(self, number: int) -> Calibration:
        return Calibration.load(self._path(number))

    def save(self, number: int, calibration: Calibration) -> None:
        if self._folder is not None:
            calibration.save(self._path(number))


def _on_ray(
    ray: Any,
    model: Any,
    parts: Sequence[Part],
    numbers: Sequence[int],
    options: Mapping[str, Any],
    tasks: int,
    attempts: int,
    threads: int,
) -> Generator[Calibration, None, None]:
    """The calibrations of parts with some numbers, in their order; results wait in the object store for their turn."""
    task = ray.remote(_calibrated).options(num_cpus=threads, max_retries=attempts - 1)
    held = ray.put(model)
    waiting, running = deque(numbers), deque[tuple[int, Any]]()
    try:
        while waiting or running:
            while waiting and len(running) < tasks:
                number = waiting.popleft()
                running.append((number, task.remote(held, parts[number], options)))
            number, reference = running[0]
            try:
                found = ray.get(reference)
            except losses(ray) as error:
                raise BackendError(
                    f"part {number} of the calibration got lost with its process or machine, more often than "
                    f"attempts={attempts} allows ({type(error).__name__}). Make parts smaller if memory runs out, or "
                    "allow more attempts."
                ) from error
            except ray.exceptions.RayTaskError as error:
                raise own_error(error) from error
            running.popleft()
            yield found
    finally:
        for _, reference in running:
            ray.cancel(reference, force=True)
