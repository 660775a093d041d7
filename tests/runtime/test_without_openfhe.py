"""Where OpenFHE does not load: everything works on the vector engine, and a line says whose code encrypts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from olac.backends.openfhe.session import ENGINE as OPENFHE
from olac.backends.session import available_engine, check_engines
from olac.backends.vector.secret import OwnSecret
from olac.backends.vector.session import ENGINE as VECTOR
from olac.errors import BackendError
from olac.runtime import Client, Server
from olac.system import memory
from tests.runtime.small_program import ERROR, images, small_program

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]

ROOT = Path(__file__).resolve().parents[2]


def test_from_compiling_to_decrypting(tmp_path: Path) -> None:
    """In a process that lacks what only Linux has, as well."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.without_openfhe", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["codes"] == [0] * 6 and found["openfhe"] is False
    assert found["by_commands"] < ERROR and found["in_memory"] < ERROR
    assert found["mode"] == 0o600
    assert any("does not run in constant time" in line for line in found["told"])


@pytest.fixture
def no_openfhe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(OPENFHE), "unavailable", lambda self, preparing=None: "it was sold out")


@pytest.mark.usefixtures("no_openfhe")
def test_programs_for_openfhe_run_on_the_vector_engine() -> None:
    """With a line for each thing that is otherwise than usual."""
    program = small_program()
    assert program.engine == "openfhe"
    with pytest.warns(UserWarning, match="the vector engine is used, as OpenFHE can't be: it was sold out"):
        client = Client(program)
    with pytest.warns(UserWarning, match="not reviewed from outside"):
        keys = client.generate_keys()
    session = client._held()
    assert isinstance(session.secret, OwnSecret)  # type: ignore[attr-defined]
    answer = client.decrypt(Server(program, keys).run(client.encrypt(images())))
    assert abs(answer - program.simulate(images())).max() < ERROR
    with pytest.raises(BackendError, match="OpenFHE can't be used here: it was sold out"):
        Server(program, Client(program, engine="openfhe").generate_keys())


@pytest.mark.usefixtures("no_openfhe")
def test_without_any_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    check_engines()
    monkeypatch.setattr(type(VECTOR), "unavailable", lambda self, preparing=None: "it is on strike")
    expected = "OpenFHE can't be used here: it was sold out.*the vector engine can't be used.*: it is on strike"
    parameters = small_program().parameters
    for use in (check_engines, lambda: available_engine("openfhe", parameters), lambda: Client(small_program())):
        with pytest.raises(BackendError, match=expected):
            use()


def test_memory_of_a_system_that_says_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what there is counts as free; the peak is counted in bytes by macOS."""
    monkeypatch.setattr(memory, "PROC", tmp_path)
    assert 0 < memory.available_bytes() <= memory.total_bytes() / 2
    peak = memory.peak_rss_bytes()
    assert memory.current_rss_bytes() >= peak > 1e7
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.peak_rss_bytes() <= memory.KIB * peak and memory.peak_rss_bytes() < peak
