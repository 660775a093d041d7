"""The first step of `costs`: train or load a network, compile it, and measure its accuracy without encryption."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.accuracy import CALIBRATION_BATCH, Done, evaluate
from benchmarks.encrypted_steps import (
    Emit,
    Request,
    Result,
    check_recipe,
    decided,
    facts_of,
    measured_here,
    predictions,
    recipe_file,
)
from benchmarks.named_engines import named
from benchmarks.workloads import Labels, Workload, workload
from olac.approximation import tensors
from olac.compiler import Purpose, prepare
from olac.options import with_choices
from olac.program.program import ApproximatedModel, CompiledProgram
from olac.selection.lower import lower
from olac.system.threads import set_threads


def run(request: Request, emit: Emit) -> Result:
    """Read or make the program and its accuracy; write the images and what `simulate` gives for them; predict."""
    path, wanted = Path(request["program"]), request["recipe"]
    weights = None if request["weights"] is None else Path(request["weights"])
    data = None if request["data"] is None else Path(request["data"])
    set_threads(request["threads"])
    work = workload(wanted["model"], weights, data, calibration=wanted["calibration"], images=wanted["tested"])
    made = None
    if path.exists():
        check_recipe(path, wanted)
        found: Result = json.loads(_accuracy_file(path).read_text(encoding="utf-8"))
    else:
        start = time.perf_counter()
        found, program = _made(work, request, emit)
        made = time.perf_counter() - start - found.pop("seconds")
        program.save(path)
        recipe_file(path).write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        _accuracy_file(path).write_text(json.dumps(found) + "\n", encoding="utf-8")
    program = CompiledProgram.load(path)
    engine = request["engine"] or program.engine
    used = named(engine, program.parameters, lambda what, done, total: emit({"say": f"{what}: {done} of {total}"}))
    emit({"say": "measuring this machine"})
    _write(work, program, Path(request["client"]), request["images"])
    return {
        "compile_seconds": made,
        "engine": engine,
        **found,
        **facts_of(program),
        **predictions(program, request, engine),
        **measured_here(program, request, used),
    }


def _accuracy_file(program: Path) -> Path:
    return program.with_name("accuracy.json")


def _made(work: Workload, request: Request, emit: Emit) -> tuple[Result, CompiledProgram]:
    """Compile; returns accuracies, with the seconds that measuring them took, and the program."""
    choices: Any = {"threads": request["threads"], **work.choices, **request["recipe"]["choices"]}
    if request["engine"] is not None:
        choices["engine"] = request["engine"]
    options = with_choices(None, choices)
    say: Callable[[str], None] = lambda line: emit({"say": str(line)})  # noqa: E731
    prepared = prepare(work.model, work.calibration.split(CALIBRATION_BATCH), options, say, Purpose("compiling", True))
    approximated = prepared.finished(prepared.run(prepared.pipeline))
    start = time.perf_counter()
    say("measuring the accuracy without encryption")
    found = _accuracy(work, approximated, say)
    found["seconds"] = time.perf_counter() - start
    return found, lower(approximated, prepared.calibration, options)


def _accuracy(work: Workload, approximated: ApproximatedModel, say: Callable[[str], None]) -> Result:
    """Shares of all images that are classified correctly, and on which both agree."""

    def chunks(done: Done) -> Iterator[torch.Tensor]:
        yield from work.images.split(tensors.CHUNK)

    with torch.no_grad():
        plain = np.concatenate([work.model(x).flatten(1).numpy() for x in work.images.split(tensors.CHUNK)])
    with np.errstate(over="ignore", invalid="ignore"):  # polynomials may overflow on images that diverge
        ours, _ = evaluate(approximated, chunks, lambda images: None, say)
    ours_classes, classes = decided(ours), decided(plain)
    return {
        "tested_images": len(plain),
        "top1_plaintext": _share(classes, work.labels),
        "top1_simulated": _share(ours_classes, work.labels),
        "agreement_simulated": float(np.mean(ours_classes == classes)),
    }


def _share(classes: npt.NDArray[np.int64], labels: Labels | None) -> float | None:
    return None if labels is None else float(np.mean(classes == labels))


def _write(work: Workload, program: CompiledProgram, client: Path, count: int) -> None:
    """Images, what `simulate` gives, and the classes of the model itself, which the step `decrypt` compares with."""
    images = work.images[:count]
    with torch.no_grad():
        plain = work.model(images).flatten(1).numpy()
    np.save(client / "images.npy", images.numpy())
    np.save(client / "expected.npy", program.simulate(images.numpy()).reshape(len(images), -1))
    np.save(client / "labels.npy", decided(plain))
