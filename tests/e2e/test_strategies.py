"""Every method of fitting on one residual network, from the model to ciphertexts and through a file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import olac
from olac.ir.ops import Polynomial, PolynomialProduct, Square
from olac.polynomials.modes import METHODS, Effects
from olac.program.program import CompiledProgram
from tests.e2e.test_networks import batch_norm

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")

PRECISION = 1e-3
STRATEGIES: dict[str, dict[str, Any]] = {
    "compensated, measured degrees": {"max_depth": 8},
    "compensated, by agreement": {"min_agreement": 0.8, "max_degree": 7},
    "compensated, uniform": {"degree": 3},
    "channel": {"method": "channel", "max_depth": 7},
    "empirical": {"method": "empirical", "degree": 5},
    "normal, OLA's degrees": {"method": "normal", "degrees": "ola", "max_depth": 7},
    "normal, uniform": {"method": "normal", "degree": 3, "r": 1.5},
    "minimax": {"method": "minimax", "alpha": 7},
    "quadratic": {"method": "quadratic"},
}
ERRORS = {"normal, OLA's degrees": 0.5, "quadratic": 1.5, "normal, uniform": 0.5}
"""Largest root mean square errors of the outputs, in units of their deviation; 0.35 elsewhere."""


class Residual(nn.Module):
    """A stem, a basic block with the identity as shortcut, pooling and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = (
            nn.Sequential(nn.Conv2d(c, 4, 3, padding=1, bias=False), batch_norm(4)) for c in (2, 4, 4)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.second(torch.relu(self.first(x))) + x)
        result: Tensor = self.head(x.mean((2, 3)))
        return result


def net() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


def images(count: int = 100, seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 6, 6, generator=random) * 0.5 + torch.randn(count, 2, 1, 1, generator=random)


@cache
def compiled(name: str) -> CompiledProgram:
    return olac.compile(
        net(), [images()], log_ring=11, insecure=True, precision=PRECISION, reconstruct=2, **STRATEGIES[name]
    )


def test_every_method_is_here() -> None:
    assert {one.get("method", "compensated") for one in STRATEGIES.values()} == set(METHODS)
    assert {one.get("degrees", "measured") for one in STRATEGIES.values()} == set(get_args(Effects))


@pytest.mark.parametrize("name", STRATEGIES)
def test_simulated(name: str) -> None:
    program, choices = compiled(name), STRATEGIES[name]
    given = images(60, 2)
    with torch.no_grad():
        expected = net()(given).numpy()
    ours = program.simulate(given.double().numpy())
    assert np.sqrt(np.mean((ours - expected) ** 2)) < ERRORS.get(name, 0.35) * expected.std()
    report = program.report
    assert len(report.fits) == 3 and all(np.isfinite(one.rmse) for one in report.fits)
    kinds = {type(node.op) for node in program.graph.nodes}
    assert (PolynomialProduct in kinds) == (name == "minimax")
    assert kinds & {Square, Polynomial}
    if name == "quadratic":
        assert Polynomial not in kinds and [one.depth for one in report.fits] == [1, 1, 1]
    if "degree" in choices:
        assert [one.degree for one in report.fits] == [choices["degree"]] * 3
    if "max_depth" in choices:
        assert sum(one.depth for one in report.fits) <= choices["max_depth"]
        (chosen,) = [point for point in report.front if point.chosen]
        assert chosen.degrees == tuple(one.degree for one in report.fits)
    if "min_agreement" in choices:
        (chosen,) = [point for point in report.front if point.chosen]
        assert chosen.agreement is not None and chosen.agreement >= choices["min_agreement"]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_program_and_its_report_come_back_from_a_file(name: str, tmp_path: Path) -> None:
    program = compiled(name)
    program.save(tmp_path / "program.olac")
    loaded = CompiledProgram.load(tmp_path / "program.olac")
    assert loaded.graph == program.graph and loaded.parameters == program.parameters
    assert loaded.report == program.report and loaded.fingerprint == program.fingerprint
    given = images(5, 3).double().numpy()
    np.testing.assert_array_equal(loaded.simulate(given), program.simulate(given))


def test_compensated_is_the_closest_at_equal_degree() -> None:
    given = images(60, 2)
    with torch.no_grad():
        expected = net()(given).double().numpy()

    def error(**choices: Any) -> float:
        made = olac.approximate(net(), [images()], degree=3, reconstruct=2, **choices)
        return float(np.mean((made.simulate(given.double().numpy()) - expected) ** 2))

    errors = [error(), error(method="channel"), error(method="empirical"), error(method="normal")]
    assert errors == sorted(errors)


@pytest.mark.encrypted
@pytest.mark.parametrize("name", STRATEGIES)
def test_encrypted(name: str) -> None:
    program = compiled(name)
    client = olac.Client(program)
    server = olac.Server(program, client.generate_keys())
    given = images(1, 4).double().numpy()
    ours = client.decrypt(server.run(client.encrypt(given)))
    with torch.no_grad():
        size = float(net()(images()).abs().max())
    exact = program.simulate(given)
    assert ours.shape == exact.shape
    assert np.max(np.abs(ours - exact)) < PRECISION * size
