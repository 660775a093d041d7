"""Whatever is given, from outside or in a file: an error of olac's that says what is wrong, or the right result."""

from __future__ import annotations

import copy
import datetime
import decimal
import errno
import json
import os
import pickle
import struct
import subprocess
import sys
import tokenize
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save

import olac
from olac.calibration.batches import as_inputs
from olac.cli import main
from olac.costs.table import CostTable
from olac.errors import (
    ArtifactError,
    CalibrationError,
    InfeasibleError,
    InputError,
    OlacError,
    VerificationError,
    plain,
)
from olac.ir.graph import Graph
from olac.program import artifact
from olac.program.program import CompiledProgram, check_images
from olac.report import parameter_lines
from olac.runtime import Server, commands, envelope
from olac.runtime.messages import EncryptedInput, EncryptedResult, EvaluationKeys
from olac.system.formats import FRAMES
from olac.system.memory import memory_for
from tests.runtime.engines import engine as engine
from tests.runtime.small_pair import pair
from tests.runtime.small_program import SHAPE, images, small_program

# The program is insecure by its parameters, and says so whenever it is loaded.
pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore::UserWarning")]

masked: Any = np.ma.masked_array
HOSTILE = "[/]\x1b[2J[red]\r\x00\u202e\udc80\nforged: all is well"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A program, keys, images and an encrypted input."""
    client, keys = pair()
    client.program.save(tmp_path / "p.olac")
    client.save_secret_key(tmp_path / "secret.key")
    keys.save(tmp_path / "evaluation.keys")
    np.save(tmp_path / "x.npy", images())
    client.encrypt(images()).save(tmp_path / "in.enc")
    return tmp_path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """One line of standard error, of a command that ends with 1."""
    capsys.readouterr()
    assert main(arguments) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "Traceback" not in shown, shown
    return shown


# Arrays --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        np.full((1, 2), 1j),
        [[1j, 2]],
        np.array([["1", "2"]]),
        np.array([["1", 2]], dtype=object),
        [[b"1", b"2"]],
        np.array([["2020-01-01", "2020-01-02"]], dtype="datetime64[D]"),
        [[datetime.date(2020, 1, 1), 2]],
        [[10**400, 1]],
        [[decimal.Decimal("sNaN"), 1]],
        np.array([["1e4000", "1"]], dtype=np.longdouble),
        masked([[1.0, 2.0]], [[1, 0]]),
        [[1], [1, 2]],
        [[[1], 2]],
        [[None, 1]],
        None,
        {},
        object(),
        np.zeros((1, 2), dtype=[("a", int)]),
        np.broadcast_to(np.int8(1), (1 << 40, 3)),
        torch.ones(1, 2, dtype=torch.complex64),
        torch.ones(1, 2).to_sparse(),
        torch.ones(1, 2, device="meta"),
        [torch.ones(2, requires_grad=True)],
        [[float("nan"), 1.0]],
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_is_no_array_of_real_numbers(given: Any) -> None:
    with pytest.raises(InputError) as caught:
        check_images(given, (2,))
    assert "4000" not in str(caught.value) and "2020" not in str(caught.value)  # nothing of what it holds
    with pytest.raises(CalibrationError):
        as_inputs(given, "batch 0")


@pytest.mark.parametrize(
    "given",
    [
        torch.ones(1, 2, requires_grad=True),
        torch.ones(1, 2, dtype=torch.bfloat16),
        torch.ones(2, dtype=torch.half),
        [[decimal.Decimal(1), 1]],
        np.ones((1, 2), dtype=np.longdouble),
        masked([[1, 1]], [[0, 0]]),
        [[True, 1]],
    ],
    ids=str,
)
def test_what_is_an_array_of_real_numbers(given: Any) -> None:
    made = check_images(given, (2,))
    assert made.dtype == np.float64 and type(made) is np.ndarray and (made == 1).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 8, 6, 3)), r"images of shape \(3, 8, 6\).*not \(2, 8, 6, 3\). Write x.transpose\(0, 3, 1, 2\)"),
        (torch.zeros(8, 6, 3), r"Write x.permute\(2, 0, 1\)\[None\]"),
        (np.zeros((2, 144)), r"Write x.reshape\(-1, 3, 8, 6\)"),
        ({"scan": np.zeros((2, 3, 8, 6))}, r"a dict of 'scan': ndarray.*batch\['scan'\]"),
        ((torch.zeros(2, 3, 8, 6), torch.zeros(2)), r"a tuple of Tensor \(float32, shape \(2, 3, 8, 6\)\).*batch\[0\]"),
        (
            torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(1))),
            r"a DataLoader.*next\(iter\(loader\)\)\[0\]",
        ),
        (None, "the input is None"),
        ("x.npy", "a str"),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_wrong_inputs_are_answered_with_a_line_to_write(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_images(given, (3, 8, 6))


def test_arrays_that_do_not_fit_in_memory() -> None:
    with pytest.raises(InfeasibleError, match="taking the input takes"):
        check_images(np.broadcast_to(np.int8(1), (1 << 50, 2)), (2,))
    with pytest.raises(InfeasibleError, match="taking the input: memory ran out"), memory_for("taking the input"):
        np.zeros(1 << 60, dtype=np.uint8)
    with pytest.raises(InfeasibleError, match="fitting: memory ran out"), memory_for("fitting"):
        torch.zeros(1 << 58)
    with pytest.raises(RuntimeError, match="another"), memory_for("fitting"):
        raise RuntimeError("another")


@pytest.mark.parametrize("value", [1e300, -1.7e308])
def test_values_that_do_not_fit_in_a_ciphertext(value: float) -> None:
    client, _ = pair()
    with pytest.raises(InputError, match="calibrated range"):
        client.encrypt(np.full(SHAPE, value))
    with pytest.raises(InputError, match="too large for any ciphertext"):
        client.encrypt(np.full(SHAPE, value), allow_out_of_range=True)


def test_compiling_without_memory() -> None:
    def loader() -> Any:
        raise MemoryError
        yield

    with pytest.raises(InfeasibleError, match="compiling the model: memory ran out"):
        olac.compile(torch.nn.Linear(6, 2).eval(), loader())


# .npy files ----------------------------------------------------------------------------------------------------------


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def test_damaged_headers_of_npy_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, path = folder / "bad.npy", folder / "out.enc"
    nested = b"(" * 9000
    headers = [b"{'descr': '<f8', (\n", b"'''", nested, b"{'descr': '<f8', 'fortran_order': 0, 'shape': (-1,), }\n"]
    kinds = set()
    for header in [*headers, b"\xff\xfe", b"{'descr': '<f8'}\n", b"0x", b""]:
        bad.write_bytes(npy(header) + bytes(100))
        try:
            np.load(bad, mmap_mode="r")
        except Exception as error:
            kinds.add(type(error))
        shown = refused(["encrypt", *(str(folder / n) for n in ("p.olac", "secret.key", "bad.npy")), str(path)], capsys)
        assert "bad.npy: not a .npy file of numbers" in shown
    assert tokenize.TokenError in kinds  # it does reach numpy
    assert not path.exists()


def test_npy_files_with_holes_take_no_memory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, bad = small_program(), folder / "bad.npy"
    for shape in ((1 << 32,), (1 << 27, *SHAPE), (1 << 27, 3)):
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        with bad.open("wb") as stream:
            stream.write(npy(header))
            stream.truncate(int(np.prod(shape)) + len(npy(header)))
        with pytest.raises(InputError, match=r", at most|the program takes"):
            commands.read_npy(bad, program.input_shape)
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {(1 << 40, *SHAPE)}, }}\n".encode()
    bad.write_bytes(npy(header))  # and the file ends here
    with pytest.raises(ArtifactError, match=r"not a \.npy file"):
        commands.read_npy(bad, program.input_shape)
    np.save(bad, np.ones((3, *SHAPE)))
    assert commands.read_npy(bad, program.input_shape, 2).shape == (2, *SHAPE)
    os.mkfifo(folder / "fifo")
    with pytest.raises(ArtifactError, match="is not a file"):
        commands.read_npy(folder / "fifo", program.input_shape)


# Files of olac's -----------------------------------------------------------------------------------------------------


def test_nested_json(tmp_path: Path) -> None:
    nested = b"[" * 100_000
    program, path = small_program(), tmp_path / "x"
    prefix = envelope.PREFIX.pack(envelope.MAGIC, FRAMES.current, b"input", len(nested), 0)
    with pytest.raises(ArtifactError, match="not JSON"):
        EncryptedInput.from_bytes(program, prefix + nested + bytes(32))
    path.write_bytes(nested)
    with pytest.raises(ArtifactError, match="isn't a cost table: RecursionError"):
        CostTable.load(path)
    texts = [nested.decode(), json.dumps({"version": 4, "sha256": "0", "manifest": nested.decode()})]
    frames = [save({"a": np.ones(1)}, metadata={"olac-program": text, "olac-calibration": text}) for text in texts]
    for data in [*frames, len(nested).to_bytes(8, "little") + nested]:
        path.write_bytes(data)
        for load in (CompiledProgram.load, olac.Calibration.load):
            with pytest.raises(ArtifactError):
                load(path)
        with pytest.raises(ArtifactError):
            CompiledProgram.from_bytes(data)


@pytest.mark.parametrize(
    "text", ["[]", "9" * 5000, '{"format": 1, "machine": "", "openfhe": "", "rows": [], "factors": 3}']
)
def test_tables_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(ArtifactError, match="Make a table with olac calibrate-costs"):
        CostTable.load(tmp_path / "x")


def test_tables_with_numbers_that_can_not_be(tmp_path: Path) -> None:
    document = json.loads(CostTable.default().to_json())
    for change in ({"log_ring": 10**9}, {"threads": 10**9}, {"factors": [1e999]}, {"factors": [10**400]}):
        document["factors"][0].update(change)
        (tmp_path / "x").write_text(json.dumps(document))
        with pytest.raises(ArtifactError):
            CostTable.load(tmp_path / "x")


def test_two_million_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = small_program()
    many = replace(program, report=replace(program.report, notes=("n",) * 2_000_000))
    assert len(parameter_lines(many)) < 200 and "1999900 more notes" in parameter_lines(many)[-1]
    long = replace(program, report=replace(program.report, notes=("n" * 2_000_000,)))
    assert max(map(len, parameter_lines(long))) < 3000
    many = replace(program, report=replace(program.report, notes=("n",) * 70_000))
    for one, message in ((many, "70000 notes, more than"), (long, "notes are longer than")):
        with pytest.raises(VerificationError, match=message):
            one.save(tmp_path / "x")
        with monkeypatch.context() as patch:
            patch.setattr(artifact, "MAX_PARTS", 1 << 30)
            patch.setattr(artifact, "MAX_NOTE_CHARACTERS", 1 << 30)
            one.save(tmp_path / "x")
        with pytest.raises(ArtifactError, match=message):
            CompiledProgram.load(tmp_path / "x")


def hostile_program() -> CompiledProgram:
    """With names and notes that are markup, control characters and line breaks."""
    program = small_program()
    text = HOSTILE.replace("\udc80", "")
    renamed = {node.id: f"{text}{i}" for i, node in enumerate(program.graph.nodes)}
    nodes = tuple(
        replace(node, id=renamed[node.id], inputs=tuple(renamed[i] for i in node.inputs))
        for node in program.graph.nodes
    )
    outputs = tuple(renamed[i] for i in program.graph.outputs)
    graph = Graph(nodes, outputs, program.graph.constants, program.graph.stage)
    return replace(program, graph=graph, report=replace(program.report, notes=(text,)))


def clean(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text) and "\nforged" not in text


def test_markup_and_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the names of a program's layers, in its notes, and in paths."""
    base = tmp_path / HOSTILE.replace("/", "|").replace("\x00", "")
    base.mkdir()
    files = {name: str(base / name) for name in ("p.olac", "x.npy", "in.enc", "out.enc", "out.npy", "cp", "no")}
    secret, evaluation = str(base / "secret.key"), str(base / "evaluation.keys")
    hostile_program().save(files["p.olac"])
    np.save(files["x.npy"], images())
    for arguments in (
        ["info", files["p.olac"]],
        ["keygen", files["p.olac"], str(base)],
        ["encrypt", files["p.olac"], secret, files["x.npy"], files["in.enc"]],
        ["run", files["p.olac"], evaluation, files["in.enc"], files["out.enc"], "--checkpoint", files["cp"]],
        ["decrypt", files["p.olac"], secret, files["out.enc"], files["out.npy"]],
        ["debug", files["p.olac"], secret, evaluation, files["x.npy"]],
    ):
        assert main(arguments) == 0, arguments
        shown = capsys.readouterr()
        assert clean(shown.out) and clean(shown.err), arguments
        assert arguments[0] not in ("info", "run", "debug") or r"[/]\x1b" in shown.out.replace("\n", "")
    for arguments in (
        ["info", files["no"]],
        ["info", files["x.npy"]],
        ["keygen", files["p.olac"], str(base)],
        ["keygen", files["p.olac"], files["x.npy"]],
        ["encrypt", files["p.olac"], secret, files["p.olac"], files["in.enc"]],
        ["run", files["p.olac"], secret, files["in.enc"], files["out.enc"]],
        ["decrypt", files["p.olac"], secret, files["in.enc"], files["out.npy"]],
        ["decrypt", files["p.olac"], secret, files["out.enc"], str(base / "no" / "x")],
        ["info", files["p.olac"], "--costs", files["x.npy"]],
    ):
        assert clean(refused(arguments, capsys)), arguments
    with pytest.raises(SystemExit):
        main(["info", files["p.olac"], HOSTILE])
    assert "\x1b" not in capsys.readouterr().err


def test_errors_hold_no_control_characters() -> None:
    assert plain(HOSTILE) == r"[/]\x1b[2J[red]\r\x00\u202e\udc80\nforged: all is well"
    assert str(OlacError("a\x1bb\nc\td")) == "a\\x1bb\nc\td"
    error = olac.errors.UnsupportedModelError([olac.errors.UnsupportedNode("p\x1b", "s", "w", "a")])
    again = pickle.loads(pickle.dumps(error))
    assert "\x1b" not in str(error) and str(again) == str(error) and again.nodes == error.nodes


# Pickles and copies --------------------------------------------------------------------------------------------------


def test_pickles_go_through_own_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    client, keys = pair()
    program = small_program()
    given = client.encrypt(images())
    result = Server(program, keys).run(given)
    expected = client.decrypt(result)
    ways: list[Any] = [lambda value: pickle.loads(pickle.dumps(value)), copy.deepcopy, copy.copy]
    for again in ways:
        found = again(program)
        assert found.fingerprint == program.fingerprint and found.report == program.report and found is not program
        assert again(keys).to_bytes() == keys.to_bytes()
        assert again(given).to_bytes() == given.to_bytes()
        np.testing.assert_allclose(client.decrypt(again(result)), expected, atol=1e-4)
    moved = Server(copy.deepcopy(program), copy.deepcopy(keys)).run(pickle.loads(pickle.dumps(given)))
    np.testing.assert_allclose(client.decrypt(moved), expected, atol=1e-4)

    # And they are checked as files are on their way in.
    loads: list[tuple[Any, Any]] = [
        (program, CompiledProgram.from_bytes),
        (given, lambda data: EncryptedInput.from_bytes(program, data)),
        (result, lambda data: EncryptedResult.from_bytes(program, data)),
        (keys, lambda data: EvaluationKeys.from_bytes(program, data)),
    ]
    for value, load in loads:
        data = value.to_bytes()
        broken = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
        assert data in pickle.dumps(value)
        with pytest.raises(ArtifactError):
            load(broken)
        with pytest.raises(ArtifactError):
            pickle.loads(pickle.dumps(value).replace(data[-40:], broken[-40:]))


def test_a_secret_key_leaves_by_save_secret_key_alone() -> None:
    client, keys = pair()
    ways: list[Any] = [pickle.dumps, copy.copy, copy.deepcopy, lambda value: pickle.dumps({"a": [value]})]
    for leave in ways:
        with pytest.raises(ArtifactError, match="save_secret_key, and load it"):
            leave(client)
        with pytest.raises(OlacError, match="make a Server of them"):
            leave(Server(small_program(), keys))


# The command line as a process ---------------------------------------------------------------------------------------


def run(arguments: list[Any], limits: str = "", after: str = "", **named: Any) -> subprocess.CompletedProcess[str]:
    """`olac` with limits of the shell, and what its output goes to."""
    line = f'{limits} "$@" {after}'
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-c", line, "bash", sys.executable, "-m", "olac.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=100,
        check=False,
        **named,
    )


def test_limits_of_the_process(folder: Path, engine: str) -> None:
    keygen = ["keygen", folder / "p.olac", folder / "keys"]
    for limits, message in (
        ("ulimit -v 150000;", "the limits of this process (ulimit -v) leave"),
        ("ulimit -v 290000;", "making the keys takes"),
        ("ulimit -f 100;", f"takes {pair()[1].payload_bytes} bytes, files of this process may have 102400 (ulimit -f)"),
    ):
        done = run(keygen, limits)
        assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1, done
        assert not (folder / "keys").exists()
    assert run(keygen, f"ulimit -v {600000 if engine == 'openfhe' else 900000};").returncode == 0
    # Each thread of Python's has OpenMP's beside it: one that can't be started would end the process.
    files = [folder / name for name in ("p.olac", "evaluation.keys", "in.enc", "out.enc")]
    done = run(["run", *files], "ulimit -v 480000; export OMP_NUM_THREADS=2;")
    refused = "running the program takes" if engine == "openfhe" else "loading it takes"
    assert done.returncode == 1 and refused in done.stderr and done.stderr.count("\n") == 1, done


def test_output_that_nobody_reads(folder: Path) -> None:
    info = ["info", folder / "p.olac"]
    done = run(info, after="| true; exit ${PIPESTATUS[0]}")
    assert done.returncode in (0, 141) and not done.stderr
    done = run(info, after="> /dev/full")
    assert done.returncode == 1 and done.stderr == "error: No space left on device\n"
    client, keys = pair()
    Server(small_program(), keys).run(client.encrypt(images())).save(folder / "out.enc")
    decrypt = ["decrypt", *(folder / name for name in ("p.olac", "secret.key", "out.enc")), "/dev/stdout"]
    done = run(decrypt, after=f"> {folder / 'y.npy'}")
    assert done.returncode == 0 and "class" in done.stderr and np.load(folder / "y.npy").shape == (1, 5)
    # A run goes on: its result is worth more than a word about it.
    files = [folder / name for name in ("p.olac", "evaluation.keys", "in.enc", "out.enc")]
    done = run(["run", *files], after="> /dev/full")
    assert not done.stderr and EncryptedResult.load(small_program(), folder / "out.enc")


def test_interrupted_and_internal_errors(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(error: BaseException) -> Any:
        def raising(*arguments: Any, **named: Any) -> Any:
            raise error

        return raising

    for error, code, message in (
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (MemoryError(), 1, "InfeasibleError: memory ran out"),
        (OSError(errno.EIO, "Input/output error", "a\x1b"), 1, r"error: Input/output error (a\x1b)"),
        (ValueError("0.123"), 70, "internal error: ValueError at"),
    ):
        monkeypatch.setattr(CompiledProgram, "load", fails(error))
        assert main(["info", str(folder / "p.olac")]) == code
        shown = capsys.readouterr().err
        assert shown.startswith(message) and shown.count("\n") == 1 and "0.123" not in shown
    monkeypatch.setenv("OLAC_TRACEBACK", "1")
    with pytest.raises(ValueError, match=r"0\.123"):
        main(["info", str(folder / "p.olac")])
