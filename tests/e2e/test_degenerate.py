"""Networks with next to nothing in them run once they are compiled; compiling finds those that can't run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.errors import InfeasibleError, OlacError
from olac.runtime import Client, EncryptedResult, Server

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*outside the calibrated range")]


class Centred(nn.Module):
    """The mean of values whose mean was subtracted: rounding noise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x - x.mean(1, keepdim=True)
        return y.mean(1, keepdim=True).expand(-1, x.shape[1])


def change(layer: nn.Module, how: Callable[[torch.Tensor], object]) -> nn.Module:
    with torch.no_grad():
        how(layer.weight)  # type: ignore[arg-type]
    return layer


def dead(channel: int) -> Callable[[torch.Tensor], object]:
    return lambda weight: weight[channel].zero_()


def pruned(weight: torch.Tensor) -> object:
    return weight.mul_(torch.rand_like(weight) < 0.2)


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    return {
        "noise": (nn.Sequential(Centred(), nn.Linear(8, 4)), (8,)),
        "noise through an activation": (nn.Sequential(Centred(), nn.Sigmoid(), nn.Linear(8, 4)), (8,)),
        "noise through ReLU": (nn.Sequential(Centred(), nn.ReLU(), nn.Linear(8, 4)), (8,)),
        "constant outputs": (change(nn.Linear(8, 4), torch.Tensor.zero_), (8,)),
        "no weights": (
            nn.Sequential(change(nn.Linear(8, 6), torch.Tensor.zero_), nn.Tanh(), nn.Linear(6, 3)),
            (8,),
        ),
        "weights of 1e-12": (
            nn.Sequential(change(nn.Linear(8, 6), lambda w: w.mul_(1e-12)), nn.SiLU(), nn.Linear(6, 3)),
            (8,),
        ),
        "outputs of 1e-12": (change(nn.Linear(8, 3, bias=False), lambda w: w.mul_(1e-12)), (8,)),
        "weights of 1e12": (
            nn.Sequential(change(nn.Linear(8, 6), lambda w: w.mul_(1e12)), nn.ReLU(), nn.Linear(6, 3)),
            (8,),
        ),
        "one weight of 1e-12": (change(nn.Linear(8, 3), lambda w: w[:, 2:5].mul_(1e-12)), (8,)),
        "dead channels": (
            nn.Sequential(
                change(nn.Conv2d(2, 3, 3, padding=1), dead(1)),
                nn.BatchNorm2d(3),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(75, 3),
            ),
            (2, 5, 5),
        ),
        "a pruned convolution": (
            nn.Sequential(change(nn.Conv2d(2, 3, 3), pruned), nn.Tanh(), nn.Flatten(), nn.Linear(27, 3)),
            (2, 5, 5),
        ),
    }


def images(kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    x = torch.randn(200, *shape, generator=torch.Generator().manual_seed(1))
    if kind == "zeros":
        return torch.zeros_like(x)
    if kind == "equal":
        return x[:1].expand_as(x).clone()
    if kind == "small":
        return x * 1e-9
    return x


def encrypted(model: nn.Module, x: torch.Tensor, **choices: Any) -> None:
    """Compile, run encrypted, and compare the result with the simulated one."""
    program = olac.compile(model.eval(), x.split(50), insecure=True, log_ring=11, reconstruct=0, **choices)
    client = Client(program)
    server = Server(program, client.generate_keys())
    expected = program.simulate(x[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sent = server.run(client.encrypt(x[:1])).to_bytes()  # which readers refuse unless it is an encryption
        outputs = client.decrypt(EncryptedResult.from_bytes(program, sent))
    size = max(float(np.abs(program.simulate(x[:50])).max()), 1e-9 * program.output.type.unit)
    assert np.abs(outputs - expected).max() <= 0.02 * size


@pytest.mark.parametrize("name", networks())
def test_networks_with_next_to_nothing_in_them_run(name: str) -> None:
    model, shape = networks()[name]
    encrypted(model, images("usual", shape))


@pytest.mark.parametrize("kind", ["zeros", "equal", "small"])
@pytest.mark.parametrize("name", ["noise through an activation", "dead channels"])
def test_images_with_next_to_nothing_in_them(name: str, kind: str) -> None:
    model, shape = networks()[name]
    encrypted(model, images(kind, shape))


def test_layers_that_nothing_determines_keep_their_weights() -> None:
    """Equal images of huge values: the normal equations of the second layer overflow."""
    torch.manual_seed(0)
    first = change(nn.Linear(8, 6), lambda w: w.mul_(1e30))
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(6, 4), nn.ReLU())
    x = images("equal", (8,))
    made = olac.approximate(model.eval(), x.split(50), reconstruct=0, degree=3)
    with torch.no_grad():
        size = float(model(x[:1]).abs().max())
        assert np.abs(made.simulate(x[:1].numpy()) - model(x[:1]).numpy()).max() < 0.1 * size


def test_coarse_scales_round_weights_away() -> None:
    """The scale is pinned, so that no precision can ask for a finer one."""
    model, shape = networks()["weights of 1e-12"]
    encrypted(model, images("usual", shape), scale_bits=25, degree=2)


def test_a_quiet_output_beside_a_loud_one_keeps_its_precision() -> None:
    """The first logit is a small difference of large values. Decryption gives all logits its noise, and a sigmoid says
    nothing of the first one's and much of the others'."""
    torch.manual_seed(0)
    first, last = nn.Linear(4, 4), nn.Linear(4, 3)
    with torch.no_grad():
        first.weight[1], first.bias[1] = 1.001 * first.weight[0], first.bias[0]
        last.weight[0], last.bias[0] = torch.tensor([1e6, -1e6, 0.0, 0.0]), 3000.0
    model = nn.Sequential(first, nn.Tanh(), last, nn.Sigmoid())
    x = torch.randn(400, 4)
    program = olac.compile(model, x, insecure=True, log_ring=11, degree=3, reconstruct=0, refit=False)
    client = Client(program)
    server = Server(program, client.generate_keys())
    for image in x[:3]:
        outputs = client.decrypt(server.run(client.encrypt(image)))
        assert np.abs(outputs - program.simulate(image)).max() < 1e-3


def test_single_precision_of_a_model_is_no_bug_of_ours() -> None:
    """Batch normalisation of a column such as a time in seconds gives small differences of large values."""
    torch.manual_seed(0)
    x = torch.randn(300, 3) * torch.tensor([1e3, 1.0, 1.0]) + torch.tensor([1.7e9, 0.0, 0.0])
    norm = nn.BatchNorm1d(3)
    norm.running_mean, norm.running_var = x.double().mean(0).float(), x.double().var(0).float()
    model = nn.Sequential(norm, nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    check = olac.approximate(model, x, degree=3, reconstruct=0).report.check
    assert check is not None and check.structure_error > 1e-3


def test_uneven_columns_run_and_one_far_outside_is_refused() -> None:
    rng = np.random.default_rng(0)
    table = np.c_[
        rng.lognormal(13, 1, 300), rng.normal(0, 0.01, 300), rng.integers(0, 2, 300), rng.normal(2000, 5, 300)
    ].astype("float32")
    model = nn.Linear(4, 1)
    model.weight.data, model.bias.data = torch.tensor([[1e-5, 300.0, 5.0, -1.0]]), torch.tensor([2000.0])
    program = olac.compile(model, torch.tensor(table).split(64), insecure=True, log_ring=11)
    client = Client(program)
    server = Server(program, client.generate_keys())
    with torch.no_grad():
        expected = model(torch.tensor(table[:1])).numpy()
    size = float(np.abs(program.simulate(table)).max())
    assert client.decrypt(server.run(client.encrypt(table[:1]))) == pytest.approx(expected, abs=1e-3 * size)
    row = table[:1].copy()
    row[0, 1] = 3.0
    with pytest.raises(olac.errors.InputError, match="column 1 of the input") as refused:
        client.encrypt(row)
    assert "3.0" not in str(refused.value)
    with pytest.warns(UserWarning, match="column 1 of the input"):
        result = server.run(client.encrypt(row, allow_out_of_range=True))
    with pytest.warns(UserWarning, match="column 0 of the outputs"):
        client.decrypt(result)


@pytest.mark.parametrize(
    "model, cause",
    [
        (nn.Sequential(nn.ReLU(), nn.Linear(4, 1)), "of very different size.*relu|share one unit"),
        (nn.Linear(4, 1), "differences in its input"),
    ],
)
def test_a_scale_that_is_too_fine_says_why(model: nn.Module, cause: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (100, 4)) * [1e7, 1e-3, 1.0, 1.0]
    first = isinstance(model, nn.Linear)
    with torch.no_grad():
        (model if first else model[1]).weight.copy_(torch.tensor([[0.0 if first else 1e-9, 1e4, 1.0, 1.0]]))  # type: ignore
        if first:
            x[:] = 0.0
            model.weight.mul_(1e9)  # type: ignore[operator]
    with pytest.raises(InfeasibleError, match=cause) as refused:
        olac.compile(model, torch.tensor(x, dtype=torch.float32).split(50), precision=1e-6, reconstruct=0, degree=3)
    assert "outliers" not in str(refused.value) or not first
    assert isinstance(refused.value, OlacError)
