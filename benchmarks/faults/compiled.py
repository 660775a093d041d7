"""Random networks, compiled and compared with torch, slot by slot and encrypted."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import olac
from benchmarks.faults.material import on_slots
from benchmarks.faults.networks import random_network
from benchmarks.faults.outcomes import Verdict, right, wrong
from olac.errors import BackendError, UnsupportedModelError
from olac.ir.ops import Array
from olac.program.program import CompiledProgram
from olac.selection.job import DEFAULT_PRECISION

SLOTS = 1e-6
"""Largest difference of slots from `simulate()`, relative to the largest output: both are in double precision."""
LINEAR = 1e-3
"""Largest difference of a network without activations from torch in single precision, relative to the outputs."""
WIDELY = 10.0
"""Half of the unseen images may differ from torch by at most this many times the largest error of the self-check."""
RINGS = (11, 12)
ENCRYPTED_EVERY = 4


def random_options(random: np.random.Generator) -> dict[str, Any]:
    """Options of `olac.compile`: usually none but a ring that is fast."""
    options: dict[str, Any] = {"log_ring": int(random.choice(RINGS)), "insecure": True}
    if random.random() < 0.15:
        options = {}
    which = random.random()
    if which < 0.08:
        options["technique"] = "FLEXIBLEAUTO"
    elif which < 0.16:
        options["batch"] = int(random.integers(2, 4))
    elif which < 0.22:
        options["degree"] = int(random.choice([1, 2, 3, 5, 7]))
    elif which < 0.27:
        options["convolutions"] = "multiplexed"
    elif which < 0.32:
        options["method"] = str(random.choice(["empirical", "normal", "channel", "quadratic"]))
    elif which < 0.36:
        options["precision"] = float(random.choice([1e-2, 1e-4]))
    return options


def check_network(seed: int, encrypted: bool | None = None) -> Verdict:
    """Compile one network and compare the results; `encrypted` says whether to compare ciphertexts, too.

    What counts as wrong: a program whose slots or ciphertexts differ from `simulate()`; a linear network that differs
    from torch; a self-check that half of the unseen images contradict; supported ops that are reported as unsupported;
    a program that is refused only when it runs, or that changes when it is saved and loaded.
    """
    model, images, _, levels = random_network(seed)
    options = random_options(np.random.default_rng([seed, 1]))
    with torch.no_grad():
        if not bool(torch.isfinite(model(images)).all()):
            return right("torch's own outputs are not finite")
    half = len(images) // 2
    seen, unseen = images[:half], images[half:]
    try:
        program = olac.compile(model, seen.split(32), **options)
    except UnsupportedModelError as error:
        return wrong(f"supported ops are reported as unsupported: {error}")
    problem = _against_torch(program, model, seen, unseen, linear=levels == 0) or _against_slots(program, seen)
    if problem:
        return wrong(problem)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.olac"
        program.save(path)
        again = CompiledProgram.load(path)
    if again.fingerprint != program.fingerprint:
        return wrong("the program changes when it is saved and loaded")
    if encrypted if encrypted is not None else seed % ENCRYPTED_EVERY == 0 and program.parameters.log_ring < 13:
        problem = _against_ciphertexts(again, seen, float(options.get("precision", DEFAULT_PRECISION)))
    return wrong(problem) if problem else right(program.parameters.describe())


def _against_torch(program: CompiledProgram, model: nn.Module, seen: Tensor, unseen: Tensor, linear: bool) -> str:
    with torch.no_grad():
        model = model.double()
        expected = model(unseen.double()).numpy().reshape(len(unseen), -1)
        size = max(1e-30, float(np.abs(model(seen.double()).numpy()).max()), float(np.abs(expected).max()))
        model.float()
    with np.errstate(all="ignore"):
        ours = program.simulate(unseen.numpy()).reshape(expected.shape)
    errors = np.abs(ours - expected).max(axis=1)
    check = program.report.check
    if linear:
        return (
            f"linear, but {errors.max() / size:.3g} of the outputs from torch"
            if not errors.max() <= LINEAR * size
            else ""
        )
    if check is None:
        return "no self-check"
    if not np.median(errors) <= WIDELY * check.max_error + LINEAR * size:
        return (
            f"the self-check says {check.max_error:.3g} at most, half of the unseen images are "
            f"{np.median(errors):.3g} apart or more (of {size:.3g})"
        )
    return ""


def _against_slots(program: CompiledProgram, images: Tensor) -> str:
    given = images[: program.batch].double().numpy()
    batch = np.zeros((program.batch, *program.input_shape))
    batch[: len(given)] = given
    found, expected = on_slots(program, batch)[: len(given)], program.graph.evaluate(given)
    size = _size(program, expected)
    apart = float(np.abs(found - expected).max())
    return "" if apart <= SLOTS * size else f"slots are {apart / size:.3g} of the outputs from simulate()"


def _size(program: CompiledProgram, outputs: Array) -> float:
    bound = program.output.type.bound
    calibrated = 0.0 if bound is None else max(abs(bound.low), abs(bound.high))
    return max(1e-30, calibrated, float(np.abs(outputs).max()))


def _against_ciphertexts(program: CompiledProgram, images: Tensor, precision: float) -> str:
    given = images[: program.batch].double().numpy()
    client = olac.Client(program)
    server = olac.Server(program, client.generate_keys())
    try:
        found = client.decrypt(server.run(client.encrypt(given)))
    except BackendError as error:
        return f"the compiled program is refused when it runs: {error}"
    expected = program.simulate(given)
    size = _size(program, expected)
    apart = float(np.abs(found - expected).max())
    if apart <= precision * size:
        return ""
    return f"ciphertexts are {apart / size:.3g} of the outputs from simulate(), {precision:g} is promised"
