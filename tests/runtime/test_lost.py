"""Commands lose neither results nor secrets, whatever they are told to write where."""

from __future__ import annotations

import os
import stat
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import olac
from olac.cli import main
from olac.errors import ArtifactError
from olac.runtime import Client, Server, commands
from olac.runtime.messages import EvaluationKeys
from olac.system import files
from tests.runtime.engines import engine as engine
from tests.runtime.small_pair import pair
from tests.runtime.small_program import images, small_program

# The program is insecure by its parameters, and says so whenever it is loaded.
pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of all commands, with other names for each, as the current folder."""
    monkeypatch.chdir(tmp_path)
    client, keys = pair()
    given = client.encrypt(images())
    client.program.save("p.olac")
    client.save_secret_key("secret.key")
    keys.save("evaluation.keys")
    np.save("x.npy", images())
    given.save("in.enc")
    Server(small_program(), keys).run(given).save("out.enc")
    (tmp_path / "sub").mkdir()
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


COMMANDS = {
    "encrypt": ["p.olac", "secret.key", "x.npy"],
    "run": ["p.olac", "evaluation.keys", "in.enc"],
    "decrypt": ["p.olac", "secret.key", "out.enc"],
}


def test_no_output_is_an_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, inputs in COMMANDS.items():
        for name in inputs:
            os.link(name, "hard")
            os.symlink(name, "soft")
            before = contents(folder)
            for output in (name, f"sub/../{name}", str(folder / name), "hard", "soft"):
                assert main([command, *inputs, output]) == 1
                shown = capsys.readouterr().err
                assert "would be written over it" in shown and shown.count("\n") == 1
            assert contents(folder) == before
            os.unlink("hard")
            os.unlink("soft")
    for name in COMMANDS["run"]:
        assert main(["run", *COMMANDS["run"], "new.enc", "--checkpoint", name]) == 1
        assert "the checkpoint would be written over it" in capsys.readouterr().err
    assert main(["decrypt", *COMMANDS["decrypt"], "in.enc", "--input", "in.enc"]) == 1
    assert "would be written over it" in capsys.readouterr().err
    os.rename("p.olac", "sub/secret.key")
    assert main(["keygen", "sub/secret.key", "sub", "--overwrite"]) == 1
    assert "the secret key would be written over it" in capsys.readouterr().err


def test_a_result_is_not_deleted_as_its_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.symlink("new.enc", "dangling")
    for checkpoint in ("new.enc", "./new.enc", "sub/../new.enc", "dangling", str(folder / "new.enc")):
        assert main(["run", *COMMANDS["run"], "new.enc", "--checkpoint", checkpoint]) == 1
        assert "is to be the result and the checkpoint" in capsys.readouterr().err
    assert "new.enc" not in contents(folder)

    def link(progress: Any) -> None:
        """Somebody makes the checkpoint a link to the result in the middle of the run."""
        if not os.path.lexists("cp"):
            os.symlink("new.enc", "cp")

    inputs = COMMANDS["run"]
    commands.run(inputs[0], inputs[1], inputs[2], "new.enc", checkpoint="cp", checkpoint_seconds=1e9, progress=link)
    assert commands.decrypt(inputs[0], "secret.key", "new.enc", "y.npy").shape == (1, 5)
    with pytest.raises(ArtifactError, match="has to be a file"):
        commands.run(inputs[0], inputs[1], inputs[2], "new.enc", checkpoint="/dev/null")


def test_no_command_writes_over_a_secret_key(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client, keys = pair()
    client.save_secret_key("other.key")
    client.save_secret_key("keys.evaluation")
    os.mkdir("keys")
    os.link("other.key", "keys/evaluation.keys")
    before = contents(folder)
    for command, inputs in COMMANDS.items():
        assert main([command, *inputs, "other.key"]) == 1
        assert "other.key: holds a secret key" in capsys.readouterr().err
    for arguments in (
        ["run", *COMMANDS["run"], "new.enc", "--checkpoint", "other.key"],
        ["keygen", "p.olac", "keys"],
        ["keygen", "p.olac", "keys", "--overwrite"],
        ["calibrate-costs", "--output", "other.key"],
    ):
        assert main(arguments) == 1
        assert "holds a secret key" in capsys.readouterr().err
    for save in (client.program.save, keys.save, client.encrypt(images()).save):
        with pytest.raises(ArtifactError, match="holds a secret key"):
            save("other.key")
    with pytest.raises(ArtifactError, match="exists already"):
        client.save_secret_key("other.key")
    assert contents(folder) == before
    client.save_secret_key("other.key", overwrite=True)


def test_keys_are_a_pair_whatever_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk is full at each of the writes and renames once."""

    def matches() -> bool:
        client = Client.load(small_program(), "keys/secret.key")
        return client._identity == EvaluationKeys.load(client.program, "keys/evaluation.keys").identity

    commands.keygen("p.olac", "keys")
    assert matches()
    for call in ("fsync", "replace"):
        for at in (1, 2):
            count, real = 0, getattr(os, call)

            def once(*arguments: Any, real: Any = real, at: int = at) -> Any:
                nonlocal count
                count += 1
                if count == at:
                    raise OSError(28, "No space left on device")
                return real(*arguments)

            before = contents(folder / "keys")
            with monkeypatch.context() as patch:
                patch.setattr(os, call, once)
                with pytest.raises(ArtifactError, match="No space left"):
                    commands.keygen("p.olac", "keys", overwrite=True)
            assert contents(folder / "keys") == before
    commands.keygen("p.olac", "keys", overwrite=True)
    assert matches() and contents(folder / "keys") != before
    # And nothing is begun where it can't be written.
    monkeypatch.setattr(Client, "generate_keys", None)
    monkeypatch.setattr(files, "_check_room", lambda given, folder, size: (_ for _ in ()).throw(ArtifactError("full")))
    for name in ("keys", "new"):
        with pytest.raises(ArtifactError, match="full"):
            commands.keygen("p.olac", name, overwrite=True)
    assert not os.path.exists("new")


def test_modes_of_what_commands_write(folder: Path) -> None:
    before = os.umask(0o022)
    try:
        assert main(["keygen", "p.olac", "keys"]) == 0
        assert main(["encrypt", "p.olac", "keys/secret.key", "x.npy", "new.enc"]) == 0
        assert main(["decrypt", *COMMANDS["decrypt"], "y.npy"]) == 0
        calibration = olac.calibrate(olac_model(), [np.ones((4, 3), dtype=np.float32)])
        calibration.save("calibration")
        os.umask(0o027)
        assert main(["encrypt", "p.olac", "keys/secret.key", "x.npy", "newer.enc"]) == 0
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE(os.stat(name).st_mode) for name in ("new.enc", "newer.enc", "y.npy", "calibration")}
    assert modes == {"new.enc": 0o644, "newer.enc": 0o640, "y.npy": 0o600, "calibration": 0o600}
    assert stat.S_IMODE(os.stat("keys/secret.key").st_mode) == 0o600
    assert stat.S_IMODE(os.stat("keys/evaluation.keys").st_mode) == 0o644


def olac_model() -> Any:
    import torch

    return torch.nn.Linear(3, 2).eval()


def test_a_secret_key_that_others_may_read_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.chmod("secret.key", 0o644)
    for arguments in (
        ["encrypt", *COMMANDS["encrypt"], "new.enc"],
        ["decrypt", *COMMANDS["decrypt"], "y.npy"],
        ["debug", "p.olac", "secret.key", "evaluation.keys", "x.npy"],
    ):
        assert main(arguments) == 1
        assert "chmod 600 secret.key" in capsys.readouterr().err
    os.chmod("secret.key", 0o600)
    assert main(["decrypt", *COMMANDS["decrypt"], "y.npy"]) == 0


def test_warnings_are_single_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(*what: Any) -> None:
        """As Python does; pytest would record them."""
        print(warnings.formatwarning(*what[:4]), end="", file=sys.stderr)

    np.save("far.npy", 100 * images())
    usual = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show)
        assert main(["encrypt", "p.olac", "secret.key", "far.npy", "new.enc", "--force"]) == 0
    assert warnings.formatwarning is usual
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: p.olac was compiled without security")
    assert second.startswith("warning: channels 0, 1 of the input hold values far outside")


def test_results_go_into_devices(folder: Path) -> None:
    before = os.stat("/dev/null")
    assert main(["decrypt", *COMMANDS["decrypt"], "/dev/null"]) == 0
    assert main(["encrypt", *COMMANDS["encrypt"], "/dev/null"]) == 0
    assert os.stat("/dev/null").st_rdev == before.st_rdev and os.stat("/dev/null").st_mode == before.st_mode
    assert main(["decrypt", *COMMANDS["decrypt"], "/dev/full"]) == 1
