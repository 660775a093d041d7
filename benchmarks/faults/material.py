"""The material of faults: two small programs with keys, ciphertexts and a checkpoint in a folder, made once.

`plain` needs no bootstraps, `deep` has them. Both are insecure, at rings so small that a case takes milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from olac.backends.simulator import SimulatorEvaluator
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.errors import OlacError
from olac.ir.ops import Array
from olac.kernels.execute import execute
from olac.options import AUTO_ENGINE
from olac.program.program import CompiledProgram
from olac.runtime import Client, EncryptedInput, EncryptedResult, EvaluationKeys, Progress, Server

if TYPE_CHECKING:
    from torch import Tensor, nn

Loaded = TypeVar("Loaded")
PLAIN, DEEP = "plain", "deep"
PROGRAM, CALIBRATION = "program.olac", "images.calibration"
SECRET, EVALUATION = "secret.key", "evaluation.keys"
INPUT, RESULT, CHECKPOINT = "x.enc", "y.enc", "run.checkpoint"
IMAGE, EXPECTED = "x.npy", "expected.npy"
FEATURES, CLASSES, DEEP_BLOCKS = 4, 3, 7
DEEP_PARAMETERS = Parameters(11, 20, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(4))
TOLERANCE = {PLAIN: 1e-2, DEEP: 5e-2}
"""Largest error of a decrypted output, relative to the largest one."""


def model(which: str) -> tuple[nn.Module, Tensor]:
    """A model and calibration images, the same ones in each call."""
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(5)
    layers: list[nn.Module] = []
    for i in range(1 if which == PLAIN else DEEP_BLOCKS):
        layers += [nn.Linear(FEATURES, FEATURES), nn.SiLU() if i % 2 else nn.Tanh()]
    made = nn.Sequential(*layers, nn.Linear(FEATURES, CLASSES)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return made, torch.rand(64, FEATURES, generator=generator) * 2 - 1


class Stopped(Exception):
    """Ends a run from its progress callback."""


def stop_after(node: str) -> Callable[[Progress], None]:
    """A callback for `Server.run` that ends it after a node."""

    def progress(at: Progress) -> None:
        if at.node == node:
            raise Stopped

    return progress


def prepare(folder: Path, engine: str = AUTO_ENGINE) -> None:
    """Make all files in folder/plain and folder/deep, with programs for an engine; needs torch."""
    import olac

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for which in (PLAIN, DEEP):
            place = folder / which
            place.mkdir(parents=True, exist_ok=True)
            net, images = model(which)
            calibration = olac.calibrate(net, images)
            calibration.save(place / CALIBRATION)
            options: dict[str, Any] = {"log_ring": 10} if which == PLAIN else {"parameters": DEEP_PARAMETERS}
            program = olac.compile(net, calibration, degree=3, reconstruct=0, insecure=True, engine=engine, **options)
            program.save(place / PROGRAM)
            _prepare_runtime(place, program, images[0].double().numpy())


def _prepare_runtime(place: Path, program: CompiledProgram, image: Array) -> None:
    np.save(place / IMAGE, image)
    client = Client(program)
    keys = client.generate_keys()
    client.save_secret_key(place / SECRET)
    keys.save(place / EVALUATION)
    given = client.encrypt(image)
    given.save(place / INPUT)
    given = EncryptedInput.load(program, place / INPUT)
    server = Server(program, keys)
    server.run(given).save(place / RESULT)
    nodes = [node.id for node in program.graph.nodes]
    last = next((name for name in nodes if name.endswith("_boot")), nodes[len(nodes) // 2])
    with contextlib.suppress(Stopped):
        server.run(given, stop_after(last), checkpoint=place / CHECKPOINT, checkpoint_seconds=0)
    np.save(place / EXPECTED, program.simulate(image))
    (place / "sizes.json").write_text(json.dumps({p.name: p.stat().st_size for p in sorted(place.iterdir())}))


def on_slots(program: CompiledProgram, images: Array) -> Array:
    """The graph's outputs for a whole batch, by the kernels on exact slots; they check levels, scales and rotations."""
    type_, out = program.input.type, program.output.type
    assert type_.layout is not None and type_.state is not None and out.layout is not None
    evaluator = SimulatorEvaluator(program.parameters, program.rotations)
    fresh = tuple(
        evaluator.encrypt(one, type_.state.level) for one in type_.layout.pack(program.encode(images) / type_.unit)
    )
    (parts,) = execute(program.graph, program.kernels, evaluator, {program.input.id: fresh})
    return out.layout.unpack(np.stack([evaluator.decrypt(part) for part in parts])) * out.unit


def _whole(load: Callable[[], Loaded]) -> Loaded:
    """What `load` returns; a refusal here means that the material is unusable, so it is no verdict on a fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return load()
        except OlacError as error:
            raise RuntimeError(f"the material can't be used: {error}") from error


@dataclass(frozen=True)
class Material:
    """One of the two programs, with its files, and their outputs without faults."""

    place: Path
    which: str

    @cached_property
    def program(self) -> CompiledProgram:
        """The program, loaded from its file."""
        return _whole(lambda: CompiledProgram.load(self.place / PROGRAM))

    @cached_property
    def client(self) -> Client:
        """A client with the secret key."""
        return _whole(lambda: Client.load(self.program, self.place / SECRET))

    @cached_property
    def server(self) -> Server:
        """A server with the evaluation keys."""
        return _whole(lambda: Server(self.program, EvaluationKeys.load(self.program, self.place / EVALUATION)))

    @cached_property
    def input(self) -> EncryptedInput:
        """The encrypted image."""
        return _whole(lambda: EncryptedInput.load(self.program, self.place / INPUT))

    @cached_property
    def result(self) -> EncryptedResult:
        """Its encrypted outputs."""
        return _whole(lambda: EncryptedResult.load(self.program, self.place / RESULT))

    @cached_property
    def image(self) -> Array:
        """The image in the clear."""
        return np.asarray(np.load(self.place / IMAGE))

    @cached_property
    def expected(self) -> Array:
        """The simulated outputs of the image."""
        return np.asarray(np.load(self.place / EXPECTED))

    def is_right(self, outputs: Array) -> bool:
        """Whether these are the outputs of the image."""
        size = float(np.abs(self.expected).max())
        return outputs.shape == self.expected.shape and bool(
            np.abs(outputs - self.expected).max() <= TOLERANCE[self.which] * size
        )
