"""Files of every version that is promised are read and give the same results as when they were written.

Each folder of tests/golden/formats holds one file of each kind as one set of versions wrote it. If a version is raised,
OLAC_UPDATE_GOLDEN=1 writes a folder for the new versions; existing folders are never written again.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.errors import ArtifactError
from olac.program.program import CompiledProgram
from olac.runtime.client import Client
from olac.runtime.messages import EncryptedInput, EncryptedResult, EvaluationKeys
from olac.runtime.server import Server
from olac.system.formats import CALIBRATIONS, FRAMES, PROGRAMS, Versions

FOLDER = Path(__file__).parents[1] / "golden" / "formats"
NOW = FOLDER / f"program{PROGRAMS.current}_frame{FRAMES.current}_calibration{CALIBRATIONS.current}"
NEAR = 0.02

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def write(folder: Path) -> None:
    """One file of each kind, as the current versions write them."""
    folder.mkdir()
    images = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (256, 4)).astype(np.float32))
    calibration = olac.calibrate(model(), [images])
    calibration.save(folder / "calibration.olac")
    olac.compile(model(), calibration, degree=3).save(folder / "secure.olac")
    program = olac.compile(model(), calibration, degree=2, method="channel", log_ring=10, insecure=True, precision=0.05)
    program.save(folder / "program.olac")
    client = Client(program)
    keys = client.generate_keys()
    client.save_secret_key(folder / "secret.key")
    keys.save(folder / "evaluation.keys")
    sent = client.encrypt(images[0].numpy())
    sent.save(folder / "input.enc")
    result = Server(program, keys).run(sent)
    result.save(folder / "result.enc")
    np.save(folder / "image.npy", images[0].numpy())
    np.save(folder / "output.npy", client.decrypt(result))


def versions() -> list[Path]:
    if os.environ.get("OLAC_UPDATE_GOLDEN") and not NOW.exists():
        write(NOW)
    return sorted(path for path in FOLDER.iterdir() if path.is_dir())


def numbers(folder: Path) -> tuple[int, ...]:
    found = re.fullmatch(r"program(\d+)_frame(\d+)_calibration(\d+)", folder.name)
    assert found is not None, folder.name
    return tuple(map(int, found.groups()))


def test_every_version_that_is_read_has_its_golden_files() -> None:
    every = [numbers(folder) for folder in versions()]
    assert NOW in versions(), "OLAC_UPDATE_GOLDEN=1 writes the files of the current versions"
    for column, kind in enumerate((PROGRAMS, FRAMES, CALIBRATIONS)):
        assert {one[column] for one in every} == set(range(kind.oldest, kind.current + 1))


@pytest.mark.parametrize("folder", versions(), ids=lambda folder: folder.name)
def test_all_files_give_what_they_gave(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.key"
    shutil.copy(folder / "secret.key", secret)
    secret.chmod(0o600)  # a checkout does not keep such modes
    image, output = np.load(folder / "image.npy"), np.load(folder / "output.npy")
    program = CompiledProgram.load(folder / "program.olac")
    np.testing.assert_allclose(program.simulate(image), output, atol=NEAR)
    client = Client.load(program, secret)
    keys = EvaluationKeys.load(program, folder / "evaluation.keys")
    sent = EncryptedInput.load(program, folder / "input.enc")
    np.testing.assert_allclose(client.decrypt(EncryptedResult.load(program, folder / "result.enc")), output, atol=NEAR)
    with Server(program, keys) as server:
        np.testing.assert_allclose(client.decrypt(server.run(sent), of=sent), output, atol=NEAR)
        np.testing.assert_allclose(client.decrypt(server.run(client.encrypt(image))), output, atol=NEAR)
    program.save(tmp_path / "again.olac")  # a program of an older version keeps its identity: its keys stay valid
    assert CompiledProgram.load(tmp_path / "again.olac").fingerprint == program.fingerprint


@pytest.mark.parametrize("folder", versions(), ids=lambda folder: folder.name)
def test_calibrations_are_still_of_their_model(folder: Path) -> None:
    calibration = olac.Calibration.load(folder / "calibration.olac")
    made = olac.approximate(model(), calibration, degree=3, method="channel")
    assert made.report.check is not None and made.report.check.max_error < 0.1
    assert CompiledProgram.load(folder / "secure.olac").parameters.security == 128


# Messages about versions ----------------------------------------------------------------------------------------------

KIND = Versions(current=7, oldest=5, ending={5: "3.0"}, ended={4: "1.9"}, remake="Make it anew.")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (8, "format version 8, this olac reads version 5 to 7. Update olac."),
        (4, "format version 4, this olac reads version 5 to 7. olac 1.9 still reads it. Make it anew."),
        (3, "format version 3, this olac reads version 5 to 7. Make it anew."),
        ("7", "format version 7, this olac reads version 5 to 7. Make it anew."),
        (True, "Make it anew."),
        (None, "Make it anew."),
        (["x" * 99], "Make it anew."),
    ],
)
def test_versions_that_are_not_read(version: object, message: str) -> None:
    with pytest.raises(ArtifactError, match=re.escape(message)) as error:
        KIND.check(version, "file")
    assert len(str(error.value)) < 120


def test_a_version_that_ends_is_announced(recwarn: pytest.WarningsRecorder) -> None:
    KIND.check(6, "file")
    assert not recwarn.list
    with pytest.warns(UserWarning, match="format version 5 is not read by olac 3.0 and later. Make it anew"):
        KIND.check(5, "file")


@pytest.mark.parametrize("kind", [PROGRAMS, FRAMES, CALIBRATIONS])
def test_versions_that_are_read_are_not_said_to_have_ended(kind: Versions) -> None:
    read = set(range(kind.oldest, kind.current + 1))
    ended: Mapping[int, str] = kind.ended
    assert not read & set(ended) and set(kind.ending) <= read - {kind.current}
