"""Errands: what users do with files, each in a folder of its own, and whether all is well after a fault."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.faults import material as m
from benchmarks.faults.material import Material
from benchmarks.faults.outcomes import Verdict, right, wrong
from olac.calibration.statistics import Calibration
from olac.errors import ArtifactError, OlacError
from olac.program.program import CompiledProgram
from olac.runtime import Client, EncryptedInput, EncryptedResult, EvaluationKeys, Server, commands

OUTPUT = "y.npy"
Contents = Mapping[str, bytes]


@dataclass(frozen=True)
class Errand:
    """One command.

    Attributes:
        needs: files that are copied from the material before it.
        new: files that it makes or replaces.
        mended: files that may be deleted or changed if it fails, such as checkpoints, but never damaged.
        do: the command, in a folder.
    """

    name: str
    needs: tuple[str, ...]
    new: tuple[str, ...]
    do: Callable[[Path], object]
    mended: tuple[str, ...] = ()


def _in(command: Callable[..., object], *names: str, **options: object) -> Callable[[Path], object]:
    return lambda folder: command(*(folder / name for name in names), **options)


def _run_with_checkpoints(folder: Path) -> object:
    files = (folder / name for name in (m.PROGRAM, m.EVALUATION, m.INPUT, m.RESULT))
    return commands.run(*files, checkpoint=folder / m.CHECKPOINT, checkpoint_seconds=0.0)


def _save_program(folder: Path) -> None:
    CompiledProgram.load(folder / m.PROGRAM).save(folder / m.PROGRAM)


def _save_calibration(folder: Path) -> None:
    Calibration.load(folder / m.CALIBRATION).save(folder / m.CALIBRATION)


ERRANDS = (
    Errand("keygen", (m.PROGRAM,), (m.SECRET, m.EVALUATION), _in(commands.keygen, m.PROGRAM, ".")),
    Errand(
        "keygen over keys",
        (m.PROGRAM, m.SECRET, m.EVALUATION),
        (m.SECRET, m.EVALUATION),
        _in(commands.keygen, m.PROGRAM, ".", overwrite=True),
    ),
    Errand(
        "encrypt",
        (m.PROGRAM, m.SECRET, m.IMAGE, m.INPUT),
        (m.INPUT,),
        _in(commands.encrypt, m.PROGRAM, m.SECRET, m.IMAGE, m.INPUT),
    ),
    Errand(
        "run",
        (m.PROGRAM, m.EVALUATION, m.INPUT),
        (m.RESULT,),
        _in(commands.run, m.PROGRAM, m.EVALUATION, m.INPUT, m.RESULT),
    ),
    Errand(
        "run with checkpoints",
        (m.PROGRAM, m.EVALUATION, m.INPUT, m.RESULT),
        (m.RESULT,),
        _run_with_checkpoints,
        (m.CHECKPOINT,),
    ),
    Errand(
        "continued run",
        (m.PROGRAM, m.EVALUATION, m.INPUT, m.CHECKPOINT),
        (m.RESULT,),
        _run_with_checkpoints,
        (m.CHECKPOINT,),
    ),
    Errand(
        "decrypt",
        (m.PROGRAM, m.SECRET, m.RESULT),
        (OUTPUT,),
        _in(commands.decrypt, m.PROGRAM, m.SECRET, m.RESULT, OUTPUT),
    ),
    Errand("save a program", (m.PROGRAM,), (m.PROGRAM,), _save_program),
    Errand("save a calibration", (m.CALIBRATION,), (m.CALIBRATION,), _save_calibration),
)


def set_out(errand: Errand, material: Material, folder: Path) -> dict[str, bytes]:
    """Copy the files that an errand needs into a folder; returns the folder's contents."""
    for name in errand.needs:
        shutil.copyfile(material.place / name, folder / name)
        if name == m.SECRET:
            (folder / name).chmod(0o600)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """The names and bytes of all files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def inspect(errand: Errand, material: Material, folder: Path, before: Contents, failed: bool, killed: bool) -> str:
    """What is wrong with the files that an errand left; empty if they are all right.

    Args:
        failed: whether it ended with an error, after which only `mended` files may have changed.
        killed: whether the process was killed, which may leave temporary files and may have come after the end.
    """
    found = contents(folder)
    for name, data in before.items():
        if name.startswith("."):
            continue  # left by a process that was killed before: it may be deleted
        if name not in errand.new and name not in errand.mended and found.get(name) != data:
            return f"{name} was changed or lost"
        if name in errand.new and name not in found:
            return f"{name} was lost"
    strange = [name for name in found if name not in {*before, *errand.new, *errand.mended}]
    if strange and not (killed and all(name.startswith(".") for name in strange)):
        return f"{', '.join(strange)} was left in the folder"
    changed = [name for name in errand.new if name in found and found[name] != before.get(name)]
    if failed and changed and not killed:
        return f"it failed, and {', '.join(changed)} changed"
    try:
        return _whole(errand, material, folder, found, before if killed else {})
    except OlacError as error:
        return f"what is there does not load: {error}"


def _whole(errand: Errand, material: Material, folder: Path, found: Contents, before: Contents) -> str:
    program = material.program
    if m.PROGRAM in found and CompiledProgram.load(folder / m.PROGRAM).fingerprint != program.fingerprint:
        return "the program is another one"
    if m.CALIBRATION in found:
        Calibration.load(folder / m.CALIBRATION)
    if m.SECRET in found and m.EVALUATION in found:
        client, keys = Client.load(program, folder / m.SECRET), EvaluationKeys.load(program, folder / m.EVALUATION)
        if client._identity != keys.identity:
            # Two files can't be renamed at once: in between, the new evaluation keys are beside the old secret key.
            between = found[m.SECRET] == before.get(m.SECRET) and found[m.EVALUATION] != before.get(m.EVALUATION)
            if not between or not _refused(client, keys, material):
                return "secret key and evaluation keys don't belong together"
    elif m.EVALUATION in found and m.EVALUATION in errand.new:
        return "evaluation keys without a secret key"
    if m.INPUT in found and m.INPUT in errand.new:
        EncryptedInput.load(program, folder / m.INPUT)
    if m.RESULT in found and m.RESULT in errand.new and not _decrypts(material, folder):
        return "the result is wrong"
    if OUTPUT in found and not material.is_right(np.load(folder / OUTPUT)):
        return "the decrypted outputs are wrong"
    if m.CHECKPOINT in found:
        _continues(material, folder)
    return ""


def _refused(client: Client, keys: EvaluationKeys, material: Material) -> bool:
    try:
        Server(material.program, keys).run(client.encrypt(material.image))
    except ArtifactError:
        return True
    return False


def _decrypts(material: Material, folder: Path) -> bool:
    return material.is_right(material.client.decrypt(EncryptedResult.load(material.program, folder / m.RESULT)))


def _continues(material: Material, folder: Path) -> None:
    """Raise one of olac's errors unless the checkpoint can be read."""
    material.server.run(material.input, checkpoint=folder / m.CHECKPOINT, keep_checkpoint=True)


def again(errand: Errand, material: Material, folder: Path) -> Verdict:
    """Do the errand once more, without a fault: it has to succeed with the right results."""
    for name in errand.new:
        if name not in errand.needs or name == m.SECRET:
            (folder / name).unlink(missing_ok=True)
    before = contents(folder)
    errand.do(folder)
    found = contents(folder)
    missing = [name for name in errand.new if name not in found]
    if missing:
        return wrong(f"done again, it did not make {', '.join(missing)}")
    if any(name in found for name in errand.mended):
        return wrong("done again, it left a checkpoint")
    problem = inspect(errand, material, folder, before, failed=False, killed=True)
    return wrong(f"done again: {problem}") if problem else right()
