"""Names of outputs, from the model to what a person reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.cli import main

ROWS = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (64, 4)).astype(np.float32))
pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")


def model(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, outputs)).eval()


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = model()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.body(x)
        return {"price": y[:, 0], "odds": y[:, 1:]}


def test_names_go_from_the_compiler_to_the_client(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["cat", "dog", "eel"]
    program = olac.compile(model(), ROWS, class_names=names, log_ring=10, insecure=True, precision=0.05)
    assert program.output_names == program.client().output_names == tuple(names)
    files = {name: str(tmp_path / name) for name in ("p.olac", "c.json", "x.npy", "in.enc", "out.enc", "y.npy", "keys")}
    program.save(files["p.olac"])
    program.client().save(files["c.json"])
    np.save(files["x.npy"], ROWS[:30].numpy())
    secret, evaluation = f"{files['keys']}/secret.key", f"{files['keys']}/evaluation.keys"
    assert main(["info", files["p.olac"]]) == 0
    assert "outputs: cat, dog, eel" in capsys.readouterr().out
    assert main(["keygen", files["c.json"], files["keys"]]) == 0
    assert main(["encrypt", files["c.json"], secret, files["x.npy"], files["in.enc"]]) == 0
    told = capsys.readouterr().out
    assert f"{files['in.enc']}: 30 rows in 30 ciphertexts, " in told and "batch=N has N rows in a ciphertext" in told
    assert main(["run", files["p.olac"], evaluation, files["in.enc"], files["out.enc"]]) == 0
    capsys.readouterr()
    assert main(["decrypt", files["c.json"], secret, files["out.enc"], files["y.npy"]]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    chosen = names[int(program.simulate(ROWS[:1].numpy()).argmax())]
    assert first.startswith("cat ") and first.endswith(f"; largest: {chosen}")
    assert last == f"and 10 more: {files['y.npy']} holds all 30"


def test_wrong_names_are_refused_before_anything_is_fitted() -> None:
    with pytest.raises(ValueError, match="2 class_names for 3 outputs"):
        olac.compile(model(), ROWS, class_names=["cat", "dog"])


def test_several_outputs_have_the_names_that_the_model_gives() -> None:
    joined = olac.Joined(Two(), ROWS)
    approximated = olac.approximate(joined, ROWS)
    assert approximated.output_names == ("price", "odds[0]", "odds[1]")
    (by_name,) = approximated.named(approximated.simulate(ROWS[0].numpy()))
    assert by_name["price"] == pytest.approx(Two()(ROWS[:1])["price"].item(), abs=1e-4)
    assert olac.approximate(olac.Joined(model(), ROWS), ROWS).output_names == ()
