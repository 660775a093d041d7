"""Client and server as two processes that share nothing but files; the server has no torch and no secret key."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from olac.ckks.primes import TECHNIQUES
from olac.runtime import commands
from tests.runtime.engines import engine as engine
from tests.runtime.small_program import ERROR, images, small_program

pytestmark = pytest.mark.encrypted

ROOT = Path(__file__).resolve().parents[2]
SERVER = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is not installed here")

sys.meta_path.insert(0, Blocker())

import olac.runtime

early = "openfhe" in sys.modules
from olac.runtime import commands

nodes = []
commands.run("program.olac", "evaluation.keys", "x.enc", "y.enc", progress=lambda p: nodes.append(p.node))
print(json.dumps({"early": early, "torch": "torch" in sys.modules, "nodes": nodes}))
"""


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_client_and_server_share_only_files(tmp_path: Path, technique: str) -> None:
    program = small_program(technique, batch=2)
    client, server = tmp_path / "client", tmp_path / "server"
    client.mkdir()
    server.mkdir()
    program.save(client / "program.olac")
    x = images(2)
    np.save(client / "x.npy", x)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*compiled without security")
        secret, evaluation = commands.keygen(client / "program.olac", client)
        commands.encrypt(client / "program.olac", secret, client / "x.npy", client / "x.enc")
        for name in ("program.olac", evaluation.name, "x.enc"):
            shutil.move(client / name, server / name)
        report = _serve(server)
        assert report == {"early": False, "torch": False, "nodes": [node.id for node in program.graph.nodes]}
        assert sorted(p.name for p in server.iterdir()) == ["evaluation.keys", "program.olac", "x.enc", "y.enc"]
        shutil.move(server / "y.enc", client / "y.enc")
        answer = commands.decrypt(server / "program.olac", secret, client / "y.enc", client / "y.npy")
    np.testing.assert_allclose(answer, program.simulate(x), atol=ERROR)


def _serve(folder: Path) -> dict[str, object]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "2",  # a server's loops have threads, and so has its own work beside them
    }
    done = subprocess.run(
        [sys.executable, "-c", SERVER], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, object] = json.loads(done.stdout)
    return report
