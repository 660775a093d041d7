"""Encrypted runs beside simulated ones: what is right, and which layer is named where something is not."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from olac.backends.openfhe.evaluator import OpenFHEEvaluator
from olac.cli import main
from olac.errors import ArtifactError
from olac.ir.ops import Array
from olac.program.program import CompiledProgram
from olac.runtime import Client, Server, commands
from olac.runtime.debug import Row, debug, first_fault
from tests.runtime.small_program import DEEP_SHAPE, ERROR, LIMIT, deep_program, images, small_program

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]

RIGHT = Row("fc", "linear", 3, 1e-4, 1e-4, 13.0, 0.9, 0.9, 0)
BOOT = replace(RIGHT, layer="fc_boot", op="bootstrap")


def _pair(program: CompiledProgram) -> tuple[Client, Server]:
    client = Client(program)
    return client, Server(program, client.generate_keys())


@cache
def deep() -> tuple[Client, Server]:
    return _pair(deep_program())


def _image(seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, size=DEEP_SHAPE)


def test_a_run_with_bootstraps_that_is_right() -> None:
    client, server = deep()
    rows = {row.layer: row for row in debug(client, server, _image())}
    assert list(rows) == [node.id for node in server.program.graph.nodes]
    assert first_fault(tuple(rows.values())) is None
    for name, row in rows.items():
        state = server.program.graph[name].type.state
        assert state is not None and row.level == state.level
        assert row.seconds == server.last_run[name] > 0
        assert row.outside == 0 and row.largest <= 1
    # A fresh ciphertext has more than a bootstrapped one, and what follows a bootstrap no more than that.
    assert rows["x"].bits > 25 > rows["sum0_boot"].bits > 8
    assert rows["sum0"].bits > rows["sum1"].bits > 8


def test_units_and_images_of_a_batch() -> None:
    client, server = _pair(small_program(batch=2))
    for count in (1, 2):
        rows = debug(client, server, images(count))
        assert first_fault(rows) is None
        assert all(row.error <= row.true_error < ERROR for row in rows)
        (first,) = (row for row in rows if row.layer == "x")
        assert first.true_error == pytest.approx(LIMIT * first.error)


def test_values_out_of_range_at_a_bootstrap_are_named_with_where_they_come_from() -> None:
    program = deep_program(gain=3.0)
    rows = debug(*_pair(program), np.ones(DEEP_SHAPE))
    fault = first_fault(rows)
    assert fault is not None and fault.layer == "sum0_boot"
    assert "slots reach 8.7 at a bootstrap" in fault.problem
    assert fault.advice == "Values first leave [-1, 1] at fc0: calibrate with more inputs like these."
    (boot,) = (row for row in rows if row.layer == "sum0_boot")
    assert boot.outside == 8 and boot.largest == pytest.approx(8.7)


def test_a_wrong_layer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that gets the second bootstrap wrong."""
    client, server = deep()
    plain, calls = OpenFHEEvaluator._bootstrap, []

    def wrong(self: OpenFHEEvaluator, a: object, state: object) -> object:
        calls.append(a)
        out = plain(self, a, state)  # type: ignore[arg-type]
        return self._context.EvalAdd(out, 0.2) if len(calls) == 2 else out

    monkeypatch.setattr(OpenFHEEvaluator, "_bootstrap", wrong)
    fault = first_fault(debug(client, server, _image()))
    assert fault is not None and fault.layer == "sum1_boot"
    assert "off by 0.2 of the unit, and at most 0.05 is right" in fault.problem
    assert fault.advice.startswith("The bootstrap itself")


def test_images_far_outside_are_named() -> None:
    client, server = deep()
    with pytest.warns(UserWarning, match="of the input hold values far outside"):
        rows = debug(client, server, 1e5 * _image())
    fault = first_fault(rows)
    assert fault is not None and fault.layer == "sum0_boot"
    assert fault.advice.startswith("The inputs themselves lie outside")


def test_what_does_not_decrypt_is_no_number() -> None:
    client, server = deep()
    other = Client(client.program)
    other.generate_keys()
    seen: list[Array] = []
    server.run(client.encrypt(_image()), observe=lambda node, value: seen.append(other.slots(value)))
    assert np.all(np.isnan(seen[0]))
    assert len(seen) == len(server.program.graph.nodes)


def test_faults_by_their_rows() -> None:
    assert first_fault([RIGHT, BOOT]) is None
    cases = [
        (replace(RIGHT, error=0.1), "off by 0.1", "Noise grew"),
        (replace(RIGHT, error=math.nan), "does not decrypt", "Noise grew"),
        (replace(BOOT, largest_encrypted=1.5), "slots reach 1.5", "hold no element"),
        (replace(RIGHT, error=0.3, largest=2.0, outside=3), "off by 0.3", "first leave [-1, 1] at fc"),
        (replace(RIGHT, op="input", error=0.3, largest=2.0, outside=3), "off by 0.3", "The inputs themselves"),
    ]
    for row, problem, advice in cases:
        fault = first_fault([RIGHT, row] if row.op != "input" else [row])
        assert fault is not None and problem in fault.problem and advice in fault.advice
    assert first_fault([replace(RIGHT, error=0.1)], threshold=0.2) is None
    # Out of range alone is a matter of bootstraps: other layers only pass it on.
    assert first_fault([replace(RIGHT, largest=2.0, outside=3)]) is None


def test_keys_of_others_are_refused() -> None:
    client, server = deep()
    other = Client(client.program)
    other.generate_keys()
    with pytest.raises(ArtifactError, match="encrypted under other keys"):
        debug(other, server, _image())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deep_program(gain=3.0).save(tmp_path / "p.olac")
        secret, evaluation = commands.keygen(tmp_path / "p.olac", tmp_path)
        np.save(tmp_path / "x.npy", np.ones((2, *DEEP_SHAPE)))  # of which the first fills the batch
        arguments = ["debug", str(tmp_path / "p.olac"), str(secret), str(evaluation), str(tmp_path / "x.npy")]
        assert main(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        (row,) = (line.split() for line in lines if line.split()[:2] == ["sum0_boot", "bootstrap"])
        assert (row[2], row[6], row[8]) == ("7", "8.7", "8")
        assert lines[-1].startswith("the first layer that goes wrong is sum0_boot: slots reach 8.7 at a bootstrap")
        assert main([*arguments[:2], str(evaluation), *arguments[3:]]) == 1
        assert "expected 'secret-key'" in capsys.readouterr().err
