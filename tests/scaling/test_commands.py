"""`olac run --executor` and `olac.calibrate(executor=)`: the doors of olac.scaling that users meet first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import olac
from olac.cli import main
from olac.errors import BackendError, CalibrationError
from olac.runtime import Client, EncryptedInput, Server, commands
from olac.scaling import calibrate_parts
from olac.scaling import commands as scaling
from olac.scaling.cluster import ray_for
from tests.runtime.small_program import ERROR, images, small_program
from tests.scaling import small_calibration
from tests.scaling.small_calibration import assert_same, net

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")

COUNT = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    program = small_program(batch=2)
    program.save(folder / "p.olac")
    client = Client(program)
    client.generate_keys().save(folder / "evaluation.keys")
    client.save_secret_key(folder / "secret.key")
    client.encrypt_to(folder / "x.enc", images(COUNT))
    return folder


@pytest.mark.encrypted
def test_divided_runs_give_the_file_of_one_run(files: Path, tmp_path: Path) -> None:
    program, said = small_program(batch=2), list[str]()
    places = (files / "p.olac", files / "evaluation.keys", files / "x.enc", tmp_path / "y.enc")
    scaling.run(*places, executor="local", workers=3, tell=said.append)
    assert said == ["2 of 6 images", "4 of 6 images", "6 of 6 images"]
    commands.run(*places[:3], tmp_path / "whole.enc")
    assert (tmp_path / "y.enc").read_bytes() == (tmp_path / "whole.enc").read_bytes()
    values = commands.decrypt(
        files / "p.olac", files / "secret.key", tmp_path / "y.enc", tmp_path / "y.npy", encrypted=files / "x.enc"
    )
    np.testing.assert_allclose(values, program.simulate(images(COUNT)), atol=ERROR)


@pytest.mark.encrypted
def test_a_run_that_fails_leaves_no_file(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = list[EncryptedInput]()
    plain = Server.run

    def fails_later(self: Server, given: EncryptedInput, *rest: Any, **more: Any) -> Any:
        runs.append(given)
        if len(runs) == 2:
            raise BackendError("lost")
        return plain(self, given, *rest, **more)

    monkeypatch.setattr(Server, "run", fails_later)
    with pytest.raises(BackendError, match="lost"):
        scaling.run(
            files / "p.olac",
            files / "evaluation.keys",
            files / "x.enc",
            tmp_path / "y.enc",
            executor="local",
            workers=3,
        )
    assert list(tmp_path.iterdir()) == []


def test_wrong_uses_of_the_command(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    run = ["run", *(str(files / name) for name in ("p.olac", "evaluation.keys", "x.enc")), str(tmp_path / "y.enc")]
    for options, said in (
        (["--executor", "ray"], "olac[ray]"),
        (["--executor", "ray", "--engine", "vector"], "--engine does not go with"),
        (["--workers", "2"], "--workers goes with --executor ray"),
    ):
        assert main([*run, *options]) == 1
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_was_connected_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for Ray, which notes what is asked of it."""
    asked, connected = list[str](), [False]

    def init(**_: object) -> None:
        asked.append("init")
        if fails:
            raise ConnectionError("nobody answers")

    ray = SimpleNamespace(is_initialized=lambda: connected[0], init=init, shutdown=lambda: asked.append("shutdown"))
    monkeypatch.setitem(sys.modules, "ray", ray)
    fails = False
    with pytest.raises(KeyError), ray_for("ray"):
        raise KeyError
    assert asked == ["init", "shutdown"]
    with ray_for("local"):
        assert asked == ["init", "shutdown"]
    connected[0] = True
    with ray_for("ray"):
        pass
    assert asked == ["init", "shutdown"], "a connection of the caller stays"
    connected[0], fails = False, True
    with pytest.raises(BackendError, match=r"nobody answers\. Check RAY_ADDRESS"), ray_for("ray"):
        pytest.fail("it was not connected")


def test_machines_that_run_programs_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import olac.scaling.commands; from olac.scaling import run_batches\n"
        "try: from olac.scaling import calibrate_parts\n"
        "except ImportError: print('no calibration')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "no calibration\n"


# Calibration ---------------------------------------------------------------------------------------------------------


def test_calibration_with_an_executor() -> None:
    x, seen = small_calibration.images(48), list[tuple[int, int]]()
    parts: list[Any] = [x[:16], lambda: [x[16:32]], [x[32:]]]
    found = olac.calibrate(
        net(), parts, executor="local", progress=lambda done, total: seen.append((done, total)), sample_images=20
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert_same(found, calibrate_parts(net(), parts, sample_images=20))
    assert len(found.sample) <= 20
    assert_same(
        olac.calibrate(net(), x, sample_images=20), olac.calibrate(net(), [x], executor="local", sample_images=20)
    )


def test_wrong_uses_of_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    x = small_calibration.images(16)
    with pytest.raises(CalibrationError, match="list of parts, and a Tensor was given"):
        olac.calibrate(net(), x, executor="local")
    with pytest.raises(TypeError, match="tasks= go with executor="):
        olac.calibrate(net(), x, tasks=3)
    with pytest.raises(ValueError, match="'local' and 'ray'"):
        olac.calibrate(net(), [x], executor="spark")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendError, match=r"olac\[ray\]"):
        olac.calibrate(net(), [x], executor="ray")
