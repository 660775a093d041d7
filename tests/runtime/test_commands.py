"""The command line: what a person types, from a program file to a class, and what they get wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from olac.cli import main
from olac.costs.table import CostTable
from olac.system.threads import set_threads, usable_threads
from tests.runtime.small_program import small_program

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
    assert f"class {expected[0].argmax()}:" in capsys.readouterr().out

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


def test_a_measured_table_of_costs_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, program = tmp_path / "costs.json", tmp_path / "p.olac"
    small_program().save(program)
    assert main(["calibrate-costs", "--output", str(table), "--rings", "12", "--threads", "1", "--quick"]) == 0
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
    assert main(["info", str(program), "--costs", str(table)]) == 0
    assert f"predicted: {10 * small_program().estimate(costs=costs).seconds_per_image:.2f} s" in capsys.readouterr().out


def test_tables_of_costs_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, bad = tmp_path / "p.olac", tmp_path / "bad.json"
    small_program().save(program)
    bad.write_text("{}")
    wrong = [
        ("does not exist", ["info", str(program), "--costs", str(tmp_path / "nothing.json")]),
        ("isn't a cost table", ["info", str(program), "--costs", str(bad)]),
        ("doesn't exist", ["calibrate-costs", "--output", str(tmp_path / "no" / "costs.json")]),
        ("rings to measure", ["calibrate-costs", "--output", str(bad), "--rings", "11"]),
        ("at least 1", ["calibrate-costs", "--output", str(bad), "--threads", "0"]),
    ]
    for message, arguments in wrong:
        assert main(arguments) == 1
        assert message in capsys.readouterr().err.lower()
    assert bad.read_text() == "{}"
