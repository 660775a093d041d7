"""Long runs: progress, checkpoints that a later run continues from, and files that must be refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from olac.ckks.primes import TECHNIQUES
from olac.cli import main
from olac.errors import ArtifactError
from olac.kernels.execute import alive
from olac.runtime import Client, EncryptedInput, Progress, Server, commands, envelope
from tests.runtime.engines import engine as engine
from tests.runtime.small_program import DEEP_SHAPE, ERROR, current_engine, deep_program, images, small_program

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]

ROOT = Path(__file__).resolve().parents[2]
NODES = [node.id for node in deep_program().graph.nodes]


class Stopped(Exception):
    """Raised from the progress callback: a run that dies there."""


class Deep:
    """A client and a server of a program with two bootstraps, and one input."""

    def __init__(self) -> None:
        self.program = deep_program()
        self.client = Client(self.program)
        self.keys = self.client.generate_keys()
        self.server = Server(self.program, self.keys)
        self.image = np.random.default_rng(0).uniform(-1, 1, size=DEEP_SHAPE)
        self.input = EncryptedInput.from_bytes(self.program, self.client.encrypt(self.image).to_bytes())

    def stop(self, node: str, path: Path, **options: float) -> None:
        """A run that dies after a node."""
        with pytest.raises(Stopped):
            self.server.run(self.input, _die(node), checkpoint=path, **options)  # type: ignore[arg-type]


def _die(node: str) -> Callable[[Progress], None]:
    def progress(at: Progress) -> None:
        if at.node == node:
            raise Stopped

    return progress


def deep() -> Deep:
    return deep_of(current_engine())


@cache
def deep_of(engine: str) -> Deep:
    return Deep()


def test_what_is_alive_after_a_node() -> None:
    graph = deep_program().graph
    assert alive(graph, "x") == ("x",)
    assert alive(graph, "act0") == ("x", "act0")
    assert alive(graph, "sum0_boot") == ("sum0_boot",)
    assert alive(graph, "sum2") == ("sum2",)


def test_progress_tells_memory_time_and_checkpoint(tmp_path: Path) -> None:
    seen: list[Progress] = []
    deep().server.run(deep().input, seen.append, checkpoint=tmp_path / "c")
    assert all(0.01 < p.memory_gb < 100 for p in seen)
    left = [p.eta_seconds for p in seen]
    predicted = [deep().server._predicted.get(p.node, 0.0) for p in seen]
    for i, p in enumerate(seen):  # by how the nodes so far kept to what was predicted
        slower = (sum(one.seconds for one in seen[: i + 1]) + 1) / (sum(predicted[: i + 1]) + 1)
        assert p.eta_seconds == pytest.approx(sum(predicted[i + 1 :]) * slower, abs=1e-9)
    assert left[-1] == 0 and min(left[:-1]) > 0
    assert [p.checkpoint for p in seen] == [""] * 5 + ["sum0_boot"] * 5 + ["sum1_boot"] * 5


@pytest.mark.parametrize("node", ["act1", "sum1_boot", "sum2"])
def test_a_later_run_continues_and_gives_the_same(node: str, tmp_path: Path) -> None:
    path, expected = tmp_path / "c", deep().server.run(deep().input).to_bytes()
    deep().stop(node, path)
    assert path.exists()
    seen: list[str] = []
    result = deep().server.run(deep().input, lambda p: seen.append(p.node), checkpoint=path)
    kept = "sum0_boot" if node == "act1" else "sum1_boot"
    assert seen == NODES[NODES.index(kept) + 1 :]
    assert result.to_bytes() == expected
    assert list(tmp_path.iterdir()) == []


def test_between_bootstraps_values_are_kept_by_time(tmp_path: Path) -> None:
    path = tmp_path / "c"
    deep().stop("act0", path, checkpoint_seconds=3600)
    assert not path.exists()
    deep().stop("act0", path, checkpoint_seconds=0)
    seen: list[str] = []
    deep().server.run(deep().input, lambda p: seen.append(p.node), checkpoint=path)
    assert seen[0] == "half0"


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_any_layer_of_a_program_with_kept_plaintexts(technique: str, tmp_path: Path) -> None:
    program, path = small_program(technique), tmp_path / "c"
    client = Client(program)
    server = Server(program, client.generate_keys())
    server.prepare()
    given = client.encrypt(images(1))
    expected = server.run(given).to_bytes()
    for node in program.graph.nodes:
        with pytest.raises(Stopped):
            server.run(given, _die(node.id), checkpoint=path, checkpoint_seconds=0)
        assert server.run(given, checkpoint=path).to_bytes() == expected
    np.testing.assert_allclose(client.decrypt(server.run(given)), program.simulate(images(1)), atol=ERROR)


def test_checkpoints_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    deep().stop("fc1", path)
    before = path.read_bytes()
    other_input = deep().client.encrypt(deep().image)
    other_client = Client(deep().program)
    other_server = Server(deep().program, other_client.generate_keys())
    other_program = small_program()
    third = Client(other_program)
    third_server = Server(other_program, third.generate_keys())
    with pytest.raises(ArtifactError, match=r"c \(checkpoint\): it is of a run on another input"):
        deep().server.run(other_input, checkpoint=path)
    with pytest.raises(ArtifactError, match="it is of a run under other keys"):
        other_server.run(other_client.encrypt(deep().image), checkpoint=path)
    with pytest.raises(ArtifactError, match="it belongs to parameters"):
        third_server.run(third.encrypt(images(1)), checkpoint=path)
    assert path.read_bytes() == before
    deep().input.save(tmp_path / "x.enc")
    with pytest.raises(ArtifactError, match="of kind 'input', expected 'checkpoint'"):
        deep().server.run(deep().input, checkpoint=tmp_path / "x.enc")
    with pytest.raises(ArtifactError, match="doesn't exist"):
        deep().server.run(deep().input, checkpoint=tmp_path / "no" / "c")


def _header(data: bytes) -> dict[str, object]:
    size = envelope.PREFIX.unpack(data[: envelope.PREFIX.size])[3]
    fields: dict[str, object] = json.loads(data[envelope.PREFIX.size : envelope.PREFIX.size + size])
    return fields


def _forged(data: bytes, payload: bytes | None = None, **changes: object) -> bytes:
    """A frame with a right hash around changed fields or words."""
    start = envelope.PREFIX.size + envelope.PREFIX.unpack(data[: envelope.PREFIX.size])[3]
    body = data[start : -envelope.DIGEST_BYTES] if payload is None else payload
    fields = {**_header(data), **changes}
    return b"".join(envelope.frame(envelope.CHECKPOINT, deep().program, fields, [body], len(body)))


def test_damaged_and_forged_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    deep().stop("fc1", path)
    data = path.read_bytes()
    start = len(data) - envelope.DIGEST_BYTES - 2 * 8 * (1 << 11) * 8
    flipped = bytearray(data)
    flipped[start] ^= 1  # the lowest bit of a word: less than its prime still
    words = data[start : -envelope.DIGEST_BYTES]
    cases = {
        "SHA-256": bytes(flipped),
        "its header says": data[:-7],
        "not a file of kind 'checkpoint'": b"",
        "that the program does not have": _forged(data, behind="nothing"),
        "does not hold what is needed": _forged(data, values=["x"]),
        "expected 32 hexadecimal digits": _forged(data, input=7),
        "the payload has": _forged(data, words[:-8]),
        "not less than their prime": _forged(data, b"\xff" * len(words)),
        "not uniform": _forged(data, bytes(len(words))),
        "does not hold what is needed after act1": _forged(data, behind="act1"),
    }
    for message, forged in cases.items():
        path.write_bytes(forged)
        with pytest.raises(ArtifactError, match=message):
            deep().server.run(deep().input, checkpoint=path)
    path.write_bytes(data)
    deep().server.run(deep().input, checkpoint=path)


def test_it_holds_ciphertexts_only(tmp_path: Path) -> None:
    path = tmp_path / "c"
    deep().stop("fc1", path)
    assert set(_header(path.read_bytes())) == {"behind", "input", "keys", "parameters", "program", "values"}
    secret = tmp_path / "secret.key"
    deep().client.save_secret_key(secret)
    words = secret.read_bytes()[-envelope.DIGEST_BYTES - 800 : -envelope.DIGEST_BYTES]
    assert words[:64] not in path.read_bytes()


def test_a_full_disk_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise ArtifactError("c: can't be written: No space left on device")

    monkeypatch.setattr("olac.runtime.checkpoints.write_file", full)
    seen: list[Progress] = []
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        deep().server.run(deep().input, seen.append, checkpoint=tmp_path / "c")
    assert [str(w.message).split(":")[0] for w in given] == [f"no checkpoint after sum{i}_boot" for i in range(2)]
    assert all("No space left" in str(w.message) for w in given)
    assert seen[-1].checkpoint == ""


# The command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, engine: str) -> tuple[list[str], Path]:
    """Arguments of `olac run`, and the secret key."""
    folder = tmp_path_factory.mktemp("files")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deep().program.save(folder / "p.olac")
        secret, evaluation = folder / "secret.key", folder / "evaluation.keys"
        deep().client.save_secret_key(secret)
        deep().keys.save(evaluation)
        np.save(folder / "x.npy", deep().image)
        commands.encrypt(folder / "p.olac", secret, folder / "x.npy", folder / "x.enc")
    return [str(folder / "p.olac"), str(evaluation), str(folder / "x.enc"), str(folder / "y.enc")], secret


SLOW = """
import os, signal, sys, time, warnings
# Children of a background job start with interrupts ignored, and Python leaves it at that.
signal.signal(signal.SIGINT, signal.default_int_handler)
warnings.simplefilter("ignore")
from olac.runtime.progress import Steps
from olac.cli import main
plain = Steps.add
def slow(self, node, *rest):
    if node.id == "act1":
        print("waiting", flush=True)
        time.sleep(60)
    return plain(self, node, *rest)
Steps.add = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_killed_continues(how: int, files: tuple[list[str], Path], tmp_path: Path) -> None:
    arguments, secret = files
    program, keys, given, _ = arguments
    output, checkpoint = tmp_path / "y.enc", tmp_path / "c"
    command = ["run", program, keys, given, str(output), "--checkpoint", str(checkpoint)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "waiting\n":
            break
    else:
        raise AssertionError("".join(lines) + (process.stderr.read() if process.stderr else ""))
    time.sleep(0.2)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    if how == signal.SIGINT:
        said = f"interrupted after fc1 (7 of 15); {checkpoint} holds the run up to sum0_boot"
        assert errors == f"{said}: the same command continues from there\n"
    prediction, *nodes = lines
    assert prediction.startswith("predicted ")
    assert nodes[5].startswith("6 of 15: sum0_boot at level 7, 0.") and nodes[5].endswith(" s left\n")

    seen: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        commands.run(program, keys, given, output, checkpoint=checkpoint, progress=lambda p: seen.append(p.node))
        answer = commands.decrypt(program, secret, output, tmp_path / "y.npy")
    assert seen == NODES[NODES.index("fc1") :]
    np.testing.assert_allclose(answer, deep().program.simulate(deep().image), atol=1e-3)
    assert not checkpoint.exists()


def test_interrupts_without_a_checkpoint(
    files: tuple[list[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments, _ = files

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(deep().server._open().evaluator), "_bootstrap", interrupt)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["run", *arguments]) == 130
        assert capsys.readouterr().err == (
            "interrupted after sum0 (5 of 15); no checkpoint was kept (--checkpoint FILE keeps one)\n"
        )
        assert main(["run", *arguments, "--checkpoint", str(tmp_path / "c")]) == 130
        assert "there was no checkpoint yet" in capsys.readouterr().err
        assert main(["run", *arguments, "--checkpoint", arguments[3]]) == 1
        assert "Name two files" in capsys.readouterr().err
    assert not Path(arguments[3]).exists()
