"""Mutated files of every kind; each that is accepted is used."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.faults import material as m
from benchmarks.faults import mutate
from benchmarks.faults.material import Material
from benchmarks.faults.mutate import Mutated
from benchmarks.faults.outcomes import Verdict, judged, right, wrong
from olac.ir.graph import Node
from olac.ir.ops import Array
from olac.program.program import CompiledProgram
from olac.runtime import Client, EncryptedInput, EncryptedResult, EvaluationKeys, Server, commands

SLOTS = 1e-6
SANE = 1e4
"""Larger values overflow any modulus, and bootstraps make nonsense of them."""
KEYS_GB = 1.0
"""Largest client memory with which keys are made for a program that a mutation made."""

Knowing = Callable[[np.random.Generator, bytes], Mutated]
Use = Callable[[Material, Path, Mutated], Verdict]


@dataclass(frozen=True)
class Mutations:
    """Mutations of one kind of file.

    Attributes:
        file: its name in the folder of the material.
        knowing: makes a mutation as somebody who knows the format would.
        use: reads the file and uses it.
        which: the programs whose file is mutated, in turn.
    """

    folder: Path
    file: str
    knowing: Knowing
    use: Use
    which: tuple[str, ...]

    @cached_property
    def materials(self) -> dict[str, Material]:
        """The programs whose files are mutated."""
        return {which: Material(self.folder / which, which) for which in self.which}

    @cached_property
    def originals(self) -> dict[str, bytes]:
        """The unchanged file of each program."""
        return {which: (self.folder / which / self.file).read_bytes() for which in self.which}

    def case(self, seed: int) -> Verdict:
        """One mutation."""
        random = np.random.default_rng(seed)
        which = self.which[seed % len(self.which)]
        data = self.originals[which]
        made = mutate.blind(random, data) if random.random() < 0.4 else self.knowing(random, data)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.file
            path.write_bytes(made.data)
            verdict = judged(lambda: self.use(self.materials[which], path, made))
        return Verdict(verdict.outcome, f"{which}, {made.what[:200]}: {verdict.what}")


def _same(material: Material, outputs: Array, made: Mutated) -> Verdict:
    """A right verdict if outputs are right, or if words were forged and hashed anew, for which others are expected."""
    if material.is_right(outputs):
        return right()
    return right("other content, hashed anew") if made.forged else wrong(f"accepted, and gives {outputs!r:.200}")


def use_program(material: Material, path: Path, made: Mutated) -> Verdict:
    """Load, simulate, run on slots; and make keys if the parameters changed."""
    program = CompiledProgram.load(path)
    same = program.fingerprint == material.program.fingerprint
    if same:
        outputs = program.simulate(material.image)
        return (
            right() if np.array_equal(outputs, material.expected) else wrong("the same fingerprint, but other outputs")
        )
    if not made.forged:
        return wrong("damaged, but accepted as another program")
    return _consistent(program, material)


def _consistent(program: CompiledProgram, material: Material) -> Verdict:
    """A program that somebody made by hand: its parts must fit together, or it must be refused."""
    images = np.random.default_rng(0).uniform(-1, 1, size=(program.batch, *program.input_shape))
    largest = 0.0

    def observe(node: Node, value: Array) -> None:
        nonlocal largest
        largest = max(largest, float(np.nan_to_num(np.abs(value), nan=np.inf).max()))

    estimate = program.estimate()
    with np.errstate(all="ignore"):
        expected = program.graph.evaluate(images, observe)
        program.simulate(images)
    with tempfile.TemporaryDirectory() as folder:
        program.save(Path(folder) / "again")
        if CompiledProgram.load(Path(folder) / "again").fingerprint != program.fingerprint:
            return wrong("it changes when it is saved and loaded")
    if estimate.client_gb < KEYS_GB and program.parameters != material.program.parameters:
        Client(program).generate_keys()
    if largest > SANE:
        return right("another program, hashed anew, whose values overflow")
    error = float(np.abs(m.on_slots(program, images) - expected).max())
    if not error <= SLOTS * max(largest, abs(program.output.type.unit)):
        return wrong(f"accepted, but its slots are {error:.3g} from simulate() (of {largest:.3g})")
    return right("another program, hashed anew")


def use_calibration(material: Material, path: Path, made: Mutated) -> Verdict:
    """Load, compare, and fit polynomials with it."""
    import olac

    found = olac.Calibration.load(path)
    original = olac.Calibration.load(material.place / m.CALIBRATION)
    if not made.forged:
        with tempfile.TemporaryDirectory() as folder:
            found.save(Path(folder) / "again")
            same = (Path(folder) / "again").read_bytes() == (material.place / m.CALIBRATION).read_bytes()
        return right() if same else wrong("damaged, but accepted as another calibration")
    net, _ = m.model(material.which)
    approximated = olac.approximate(net, found, degree=3, reconstruct=0)
    approximated.simulate(material.image)
    found.merge(original)
    return right("another calibration, hashed anew")


def use_secret_key(material: Material, path: Path, made: Mutated) -> Verdict:
    """Load and decrypt."""
    path.chmod(0o600)
    client = Client.load(material.program, path)
    return _same(material, client.decrypt(material.result), made)


def use_evaluation_keys(material: Material, path: Path, made: Mutated) -> Verdict:
    """Load, run and decrypt."""
    server = Server(material.program, EvaluationKeys.load(material.program, path))
    return _same(material, material.client.decrypt(server.run(material.input)), made)


def use_input(material: Material, path: Path, made: Mutated) -> Verdict:
    """Load, run and decrypt."""
    given = EncryptedInput.load(material.program, path)
    return _same(material, material.client.decrypt(material.server.run(given)), made)


def use_result(material: Material, path: Path, made: Mutated) -> Verdict:
    """Load and decrypt."""
    return _same(material, material.client.decrypt(EncryptedResult.load(material.program, path)), made)


def use_checkpoint(material: Material, path: Path, made: Mutated) -> Verdict:
    """Continue the run from it and decrypt."""
    return _same(material, material.client.decrypt(material.server.run(material.input, checkpoint=path)), made)


def use_images(material: Material, path: Path, made: Mutated) -> Verdict:
    """Read images as `olac encrypt` does."""
    array = commands.read_npy(path, material.program.input_shape, material.program.batch)
    if array.dtype != np.float64:
        return wrong(f"an array of type {array.dtype}")
    given = material.client.encrypt(array)
    return right(f"{given.images} images")


KINDS: dict[str, tuple[str, Knowing, Use]] = {
    "program": (m.PROGRAM, mutate.program, use_program),
    "calibration": (m.CALIBRATION, mutate.calibration, use_calibration),
    "secret key": (m.SECRET, mutate.frame, use_secret_key),
    "evaluation keys": (m.EVALUATION, mutate.frame, use_evaluation_keys),
    "input": (m.INPUT, mutate.frame, use_input),
    "result": (m.RESULT, mutate.frame, use_result),
    "checkpoint": (m.CHECKPOINT, mutate.frame, use_checkpoint),
    "images": (m.IMAGE, mutate.npy, use_images),
}
"""By name: the file, mutations of it, and its use."""


def mutations(folder: Path, name: str) -> Mutations:
    """The mutations of a kind of file, on material in a folder."""
    # Runs of the other program take a hundred times as long, and its keys a hundred times as many bytes.
    which = (m.PLAIN,) * (99 if name == "evaluation keys" else 11) + (m.DEEP,)
    return Mutations(folder, *KINDS[name], which)
