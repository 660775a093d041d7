"""The command line: what a person types, from a program file to a class, and what they get wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from olac.cli import main
from tests.runtime.small_program import small_program

# The program is insecure by its parameters, and says so whenever it is loaded.
pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore::UserWarning")]


def test_from_keys_to_a_decrypted_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = small_program()
    files = {name: str(tmp_path / name) for name in ("p.olac", "image.npy", "in.enc", "out.enc", "out.npy", "keys")}
    program.save(files["p.olac"])
    image = np.random.default_rng(0).uniform(-0.5, 0.5, size=program.input_shape)
    np.save(files["image.npy"], image)
    secret, evaluation = str(tmp_path / "keys" / "secret.key"), str(tmp_path / "keys" / "evaluation.keys")

    assert main(["info", files["p.olac"]]) == 0
    assert main(["keygen", files["p.olac"], files["keys"]]) == 0
    assert main(["encrypt", files["p.olac"], secret, files["image.npy"], files["in.enc"]]) == 0
    assert main(["run", files["p.olac"], evaluation, files["in.enc"], files["out.enc"]]) == 0
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
