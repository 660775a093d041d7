"""Residual networks whose convolutions read shifted copies, on ciphertexts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import olac
from olac.ckks.primes import FIXED, FLEXIBLE, Technique
from olac.ir.ops import Polynomial
from olac.passes.pipeline import lowering_pipeline
from olac.selection.job import DEFAULT_PRECISION
from tests.e2e.test_networks import batch_norm

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")


class Skip(nn.Module):
    """A stem, a basic block with the identity as shortcut, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), batch_norm(4))
        self.first = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), batch_norm(4))
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), batch_norm(4))
        self.head = nn.Linear(4 * 6 * 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.second(torch.nn.functional.silu(self.first(x))))
        result: Tensor = self.head(x.flatten(1))
        return result


@pytest.mark.parametrize("technique", [FIXED, FLEXIBLE])
def test_an_encrypted_residual_network(technique: Technique) -> None:
    torch.manual_seed(1)
    model, images = Skip().eval(), torch.rand(32, 2, 6, 6) * 2 - 1
    options = olac.CompileOptions(
        fit=olac.FitOptions(method="channel", degree=3), log_ring=12, insecure=True, technique=technique
    )
    programs = {
        copies: olac.compile(model, [images], options, lowering=lowering_pipeline(copies))
        for copies in ("plain", "shifted")
    }
    program = programs["shifted"]
    steps = [n.type.layout.step for n in program.graph.nodes if isinstance(n.op, Polynomial) and n.type.layout]
    assert len(steps) == 4 and sum(step > 0 for step in steps) == 3  # one value is read by a sum too
    counts = {copies: made.estimate().counts["encode"] for copies, made in programs.items()}
    assert counts["shifted"] < counts["plain"]

    client = olac.Client(program)
    server = olac.Server(program, client.generate_keys())
    given = images[:1].double().numpy()
    error = np.abs(client.decrypt(server.run(client.encrypt(given))) - program.simulate(given))
    assert error.max() < DEFAULT_PRECISION * np.abs(program.simulate(images.double().numpy())).max()
