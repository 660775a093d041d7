"""The command line: what a person types, from a program file to a class, and what they get wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from olac.backends.cost import Slowdown
from olac.backends.openfhe.session import ENGINE
from olac.cli import _seconds, main
from olac.costs.table import CostTable
from olac.errors import BackendError
from olac.system.threads import set_threads, usable_threads
from tests.runtime.small_program import images, small_program

# The program is insecure by its parameters, and says so whenever it is loaded.
pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore::UserWarning")]


def test_from_keys_to_a_decrypted_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, before = small_program(), usable_threads()
    files = {name: str(tmp_path / name) for name in ("p.olac", "image.npy", "in.enc", "out.enc", "out.npy", "keys")}
    program.save(files["p.olac"])
    image = np.random.default_rng(0).uniform(-0.5, 0.5, size=program.input_shape)
    np.save(files["image.npy"], image)
    secret, evaluation = str(tmp_path / "keys" / "secret.key"), str(tmp_path / "keys" / "evaluation.keys")

    assert main(["info", files["p.olac"]]) == 0
    assert main(["info", files["p.olac"], "--max-memory", "4"]) == 0
    shown = capsys.readouterr().out
    assert "4.00 GB: a server holds all keys" in shown and "GB without kept weights)" in " ".join(shown.split())
    assert main(["info", files["p.olac"], "--max-memory", "512MB"]) == 0
    assert "0.51 GB: a server holds all keys" in capsys.readouterr().out
    for wrong_amount in ("nan", "inf", "-1", "0", "8XB"):
        with pytest.raises(SystemExit) as caught:
            main(["info", files["p.olac"], "--max-memory", wrong_amount])
        assert caught.value.code == 2 and "--max-memory" in capsys.readouterr().err
    assert main(["keygen", files["p.olac"], files["keys"]]) == 0
    assert main(["encrypt", files["p.olac"], secret, files["image.npy"], files["in.enc"]]) == 0
    np.save(tmp_path / "far.npy", image + 123.0)
    far = ["encrypt", files["p.olac"], secret, str(tmp_path / "far.npy"), str(tmp_path / "far.enc")]
    assert main(far) == 1 and not (tmp_path / "far.enc").exists()
    told = capsys.readouterr().err
    assert "channels 0, 1 of the input" in told and "--force" in told and "123" not in told
    assert main([*far, "--force"]) == 0 and (tmp_path / "far.enc").exists()
    for wrong_number in ("0", "1.5", "-1", "x", "1025"):
        with pytest.raises(SystemExit) as caught:
            main(["run", files["p.olac"], evaluation, files["in.enc"], files["out.enc"], "--threads", wrong_number])
        assert caught.value.code == 2 and "--threads" in capsys.readouterr().err
    assert main(["run", files["p.olac"], evaluation, files["in.enc"], files["out.enc"], "--threads", "3"]) == 0
    assert usable_threads() == 3
    set_threads(before)
    assert main(["decrypt", files["p.olac"], secret, files["out.enc"], files["out.npy"]]) == 0
    expected = program.simulate(image)
    assert np.max(np.abs(np.load(files["out.npy"]) - expected)) < 1e-2
    shown = capsys.readouterr().out
    assert (
        f"class {expected[0].argmax()}:" in shown and f"written to {files['out.npy']}, shape {expected.shape}" in shown
    )

    wrong = [
        ("exists already", ["keygen", files["p.olac"], files["keys"]]),
        ("evaluation-keys", ["run", files["p.olac"], secret, files["in.enc"], files["out.enc"]]),
        ("does not exist", ["info", str(tmp_path / "nothing.olac")]),
        ("doesn't exist", ["run", files["p.olac"], evaluation, files["in.enc"], str(tmp_path / "no" / "out.enc")]),
        ("max_memory", ["run", files["p.olac"], evaluation, files["in.enc"], files["out.enc"], "--max-memory", "0.01"]),
    ]
    for message, arguments in wrong:
        assert main(arguments) == 1
        assert message.lower() in capsys.readouterr().err.lower()


def test_a_measured_table_of_costs_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table, program = tmp_path / "costs.json", tmp_path / "p.olac"
    small_program().save(program)
    measured = ["--engine", "openfhe", "--rings", "12", "--threads", "1", "--quick"]
    assert main(["calibrate-costs", "--output", str(table), *measured]) == 0
    shown = capsys.readouterr().out
    assert "bootstrap at ring 2^12, 1 thread" in shown and "times the primitives that it is made of" in shown
    costs = CostTable.load(table)
    assert costs.log_rings == (12,)
    assert {key.threads for key in costs.factors} == {1}
    assert 0.2 < costs.bootstrap_factor < 5
    own = small_program().estimate(threads=1, costs=costs)
    assert own.seconds_per_image > 0 and own.key_bytes == small_program().estimate(threads=1).key_bytes

    # Ten times slower than the machine is: nothing else than the table can have said it.
    slow = replace(costs, factors={key: tuple(10 * x for x in row) for key, row in costs.factors.items()})
    table.write_text(slow.to_json())
    seconds = 10 * small_program().estimate(costs=costs).seconds_per_image
    monkeypatch.setattr(type(ENGINE), "slowdown", lambda *_: Slowdown())
    assert main(["info", str(program), "--costs", str(table)]) == 0
    assert f"predicted on this machine: {_seconds(seconds)} " in capsys.readouterr().out
    monkeypatch.setattr(type(ENGINE), "slowdown", lambda *_: Slowdown(0.1, 0.1))
    assert main(["info", str(program), "--costs", str(table)]) == 0
    assert f"predicted on this machine: {_seconds(seconds / 10)} " in capsys.readouterr().out

    def no_measurement(*_: object) -> None:
        raise BackendError("it can't be loaded")

    monkeypatch.setattr(type(ENGINE), "slowdown", no_measurement)
    assert main(["info", str(program), "--costs", str(table)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"predicted on the machine of the table ({costs.machine}): {_seconds(seconds)} " in shown


def test_engines_are_chosen_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = small_program()
    files = {name: str(tmp_path / name) for name in ("p.olac", "image.npy", "in.enc", "out.enc", "keys")}
    program.save(files["p.olac"])
    np.save(files["image.npy"], images())
    secret, evaluation = str(tmp_path / "keys" / "secret.key"), str(tmp_path / "keys" / "evaluation.keys")
    assert main(["info", files["p.olac"], "--engine", "openfhe"]) == 0
    assert main(["keygen", files["p.olac"], files["keys"], "--engine", "openfhe"]) == 0
    assert main(["encrypt", files["p.olac"], secret, files["image.npy"], files["in.enc"]]) == 0
    capsys.readouterr()
    run = ["run", files["p.olac"], evaluation, files["in.enc"], files["out.enc"]]
    assert main([*run, "--engine", "openfhe"]) == 0
    assert capsys.readouterr().out.startswith("predicted on this machine: ")
    # Measuring takes memory, which is not spent if it has a limit.
    assert main([*run, "--max-memory", "16"]) == 0
    assert capsys.readouterr().out.startswith("predicted on the machine of the table (")
    for arguments in (run, ["info", files["p.olac"]], ["calibrate-costs", "--output", str(tmp_path / "x")], ["demo"]):
        with pytest.raises(SystemExit) as caught:
            main([*arguments, "--engine", "seal"])
        assert caught.value.code == 2 and "invalid choice: 'seal'" in capsys.readouterr().err
