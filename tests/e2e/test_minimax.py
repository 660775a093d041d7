"""Minimax compositions from the model to ciphertexts, and through a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.ckks.primes import FIXED, FLEXIBLE, Technique
from olac.ir.ops import PolynomialProduct
from olac.program.program import CompiledProgram
from olac.selection.job import DEFAULT_PRECISION


def compiled(net: nn.Module, alpha: int, technique: Technique) -> tuple[CompiledProgram, torch.Tensor, float]:
    """A program at a small ring, calibration images, and the size of the model's outputs on them."""
    images = torch.rand(16, 2, 6, 6) * 2 - 1
    program = olac.compile(
        net.eval(),
        [images],
        method="minimax",
        alpha=alpha,
        log_ring=11,
        insecure=True,
        technique=technique,
        client_head=False,
    )
    with torch.no_grad():
        expected = net(images).double().numpy()
    size = float(np.abs(expected).max())
    assert np.abs(program.simulate(images.double().numpy()) - expected).max() < 2.0 ** (3 - alpha) * size
    return program, images, size


def relu_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.LeakyReLU(0.1))


@pytest.mark.encrypted
@pytest.mark.parametrize(("alpha", "technique"), [(4, FIXED), (5, FLEXIBLE), (6, FIXED), (6, FLEXIBLE), (10, FIXED)])
def test_relu_encrypted(alpha: int, technique: Technique) -> None:
    program, images, size = compiled(relu_net(), alpha, technique)
    client = olac.Client(program)
    server = olac.Server(program, client.generate_keys())
    given = images[:1].double().numpy()
    ours = client.decrypt(server.run(client.encrypt(given)))
    assert np.abs(ours - program.simulate(given)).max() / size < DEFAULT_PRECISION


@pytest.mark.filterwarnings("ignore:.*compiled without security")
def test_a_program_with_products_comes_back_from_its_file(tmp_path: Path) -> None:
    net = nn.Sequential(relu_net(), nn.MaxPool2d(2))
    program, _, _ = compiled(net, 6, FLEXIBLE)
    assert sum(isinstance(node.op, PolynomialProduct) for node in program.graph.nodes) == 4
    program.save(tmp_path / "program.olac")
    loaded = CompiledProgram.load(tmp_path / "program.olac")
    assert loaded.graph == program.graph
    assert loaded.report == program.report
