"""Forms of models: computed weights, weights without values, constants made from the input, odd outputs."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import olac
from olac.errors import CalibrationError, UnsupportedModelError
from olac.frontend import check, lift, trace

IMAGE = (1, 4, 4)


class Apply(nn.Module):
    """A function of the input and of a linear layer."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Linear(4, 4)
        self.register_buffer("kept", torch.tensor([0.5, -1.0, 2.0, 0.25]))

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def agrees(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Lift a model, and compare it with torch on batches of sizes that tracing never saw."""
    torch.manual_seed(6)
    model.eval()
    graph = lift(trace(model, torch.randn(3, *shape)))
    for count in (1, 2, 5):
        x = torch.randn(count, *shape)
        with torch.no_grad():
            expected = model(x).double().numpy()
        got = graph.evaluate(x.double().numpy()).reshape(expected.shape)
        assert np.abs(got - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


def problems(model: nn.Module, example: torch.Tensor) -> str:
    """The answer of `check`, as one text."""
    return "\n".join(str(node) for node in check(model.eval(), example))


# Weights that are computed -------------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))


class Plus(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


class HoldsComputed(nn.Module):
    """Tensors with a history, as attributes and in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.weight, self.biases = self.layer.weight * 2, [self.layer.bias * 3]
        self.sums = {"all": (self.layer.weight.sum(),)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.biases[0]) + self.sums["all"][0]


def pruned() -> nn.Module:
    net = network()
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    prune.ln_structured(net[4], "weight", amount=0.5, n=2, dim=0)
    return net


def globally_pruned() -> nn.Module:
    net = network()
    prune.global_unstructured([(net[0], "weight"), (net[4], "weight")], prune.L1Unstructured, amount=0.5)
    return net


def with_norm(norm: Callable[..., Any], *places: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = network()
        for place in places:
            norm(net[place])
        net(torch.rand(2, *IMAGE))
        return net

    return make


def with_grown_bias() -> nn.Module:
    net = network()
    parametrize.register_parametrization(net[4], "bias", Plus())
    return net


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "pruned": pruned,
    "globally pruned": globally_pruned,
    "weight_norm": with_norm(nn.utils.weight_norm, 0, 4),
    "spectral_norm": with_norm(nn.utils.spectral_norm, 0),
    "parametrized weight_norm": with_norm(parametrizations.weight_norm, 0, 4),
    "parametrized spectral_norm": with_norm(parametrizations.spectral_norm, 4),
    "orthogonal": with_norm(parametrizations.orthogonal, 4),
    "parametrized bias": with_grown_bias,
}


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weight_norm is an old one
        net = COMPUTED[name]()
    net.train()
    net(torch.rand(2, *IMAGE)).sum().backward()
    before = {name: one.clone() for name, one in net.state_dict().items()}
    computed = [vars(module).get("weight") for module in net.modules()]
    program = olac.compile(net, [torch.rand(40, *IMAGE)], insecure=True, log_ring=11)
    assert program.report.check is not None and program.report.check.structure_error < 1e-5
    assert net.training
    assert all(torch.equal(one, before[name]) for name, one in net.state_dict().items())
    assert all(vars(module).get("weight") is one for module, one in zip(net.modules(), computed, strict=True))
    agrees(net, IMAGE)


def test_attributes_that_were_computed() -> None:
    net = HoldsComputed()
    held = net.weight
    agrees(net, (4,))
    assert net.weight is held and held.grad_fn is not None


# Weights that are not there yet --------------------------------------------------------------------------------------


class MakesItsLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer: nn.Linear | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.layer is None:
            self.layer = nn.Linear(x.shape[1], 3)
        out: torch.Tensor = self.layer(x)
        return out


class SetsItsParameters(nn.Module):
    """Takes its parameters from the first batch, as ActNorm does."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.ready = nn.Parameter(torch.zeros(4)), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.ready:
            self.shift.data.copy_(-x.mean(0))
            self.ready = True
        return x + self.shift


def test_lazy_parameters_are_refused_until_they_are_there() -> None:
    net = nn.Sequential(nn.LazyConv2d(2, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(UnsupportedModelError, match=r"0: LazyConv2d has lazy .* Run one batch") as error:
        olac.compile(net, [torch.rand(40, *IMAGE)])
    assert [node.path for node in error.value.nodes] == ["0", "3"]
    assert isinstance(net[3], nn.LazyLinear), "the model is as it was"
    net(torch.rand(2, *IMAGE))
    agrees(net, IMAGE)


def test_parameters_without_values_are_refused() -> None:
    with torch.device("meta"):
        net = network()
    assert "meta device" in problems(net, torch.rand(2, *IMAGE))


@pytest.mark.parametrize("make", [MakesItsLayer, SetsItsParameters])
def test_parameters_that_a_run_makes_are_refused(make: Callable[[], nn.Module]) -> None:
    net = make()
    assert "running the model makes or changes parameters" in problems(net, torch.randn(4, 4))
    net(torch.randn(5, 4))
    agrees(net, (4,))


# Constants made from the input ---------------------------------------------------------------------------------------


def recurrent(model: Any, x: Any) -> Any:
    """A recurrent cell written out, whose first state is zeros."""
    state = x.new_zeros(x.shape[0], 4)
    for _ in range(3):
        state = 0.5 * state + torch.tanh(model.layer(state) + x)
    return state


def later_changed(model: Any, x: Any) -> Any:
    constant = torch.ones(4)
    y = x + constant
    constant += 1
    return y * constant


def accumulated(model: Any, x: Any) -> Any:
    total = torch.zeros(x.shape[0], 4)
    for factor in (0.5, 2.0):
        total += model.layer(factor * x)
    return total


CONSTANTS: dict[str, Callable[[Any, Any], Any]] = {
    "new_zeros": recurrent,
    "new_ones": lambda m, x: x.new_ones(x.shape[0], 1) * m.layer(x),
    "new_full": lambda m, x: m.layer(x) + x.new_full((x.size(0), 4), 0.3),
    "new_tensor": lambda m, x: x.new_tensor([1.0, 2.0, 3.0, 4.0]) - x,
    "new_empty": lambda m, x: x - x.new_empty(x.shape).fill_(2.0),
    "zeros_like": lambda m, x: m.layer(torch.zeros_like(x)) + x,
    "ones_like": lambda m, x: torch.ones_like(input=x) - x,
    "full_like": lambda m, x: x / torch.full_like(x, 3.0),
    "empty_like": lambda m, x: x + torch.empty_like(x).zero_(),
    "of integers": lambda m, x: x + torch.ones_like(x, dtype=torch.int64),
    "mask": lambda m, x: x * (torch.ones_like(x).cumsum(1) < 3),
    "arange": lambda m, x: x * torch.arange(x.shape[1], device=x.device).type_as(x),
    "eye": lambda m, x: F.linear(x, torch.eye(x.shape[1]).to(x) * 2),
    "linspace": lambda m, x: x + torch.linspace(0, 1, x.shape[-1], dtype=x.dtype),
    "expand_as": lambda m, x: x * m.kept.expand_as(x),
    "view_as": lambda m, x: x * torch.ones(x.shape[0] * 4).view_as(x),
    "to": lambda m, x: x * m.kept.to(x),
    "named operands": lambda m, x: torch.add(input=x, other=torch.ones_like(x), alpha=2),
    "changed after use": later_changed,
    "accumulated": accumulated,
    "numpy": lambda m, x: np.float64(2.0) * x + np.sqrt(3.0) * x,
    "branch on a constant": lambda m, x: x * 2 if torch.zeros_like(x).sum() == 0 else x,
    "data": lambda m, x: m.layer(x.data) + x.real,
    "random, unused": lambda m, x: (torch.rand_like(x), x + 1)[1],
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_made_from_the_input(name: str) -> None:
    agrees(Apply(CONSTANTS[name]), (4,))


def assigned(model: Any, x: Any) -> Any:
    y = x.new_zeros(x.shape)
    y[:, 0] = x[:, 1]
    return y + x


def changed_and_read(model: Any, x: Any) -> Any:
    state = torch.zeros(x.shape[0], 4)
    same = state
    state += x
    return state + same


def changed_by_call(model: Any, x: Any) -> Any:
    state = torch.zeros(x.shape[0], 4)
    state.add_(x)
    return state


NOT_CONSTANT: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "random": (lambda m, x: x + torch.rand_like(x), "rand_like is not supported. Remove randomness"),
    "random of a shape": (lambda m, x: x + torch.randn(x.shape[1]), "on chance"),
    "full of a value": (lambda m, x: x + torch.full_like(x, x[0, 0]), "full_like is not supported|single inputs"),
    "size of the batch": (lambda m, x: x + torch.full((x.shape[0], 4), float(x.shape[0])), "size of its batch"),
    "uninitialised": (lambda m, x: x + torch.empty_like(x), "a constant isn't finite"),
    "part assigned": (assigned, "assigns to a part of a tensor"),
    "read after a change": (changed_and_read, "reads a tensor that was changed in place"),
    "changed by a call": (changed_by_call, "reads a tensor that was changed in place"),
    "copied into": (lambda m, x: torch.zeros_like(x).copy_(x), r"changes a constant in place \(copy_\)"),
}


@pytest.mark.parametrize("name", NOT_CONSTANT)
def test_what_is_no_constant_is_refused(name: str) -> None:
    function, message = NOT_CONSTANT[name]
    text = problems(Apply(function), torch.randn(3, 4))
    assert any(part in text for part in message.replace("\\", "").split("|"))


# Outputs, types and errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compare", [operator.eq, torch.ne], ids=lambda f: f.__name__)
def test_whether_numbers_are_equal_is_refused(compare: Callable[[Any, Any], Any]) -> None:
    found = problems(Apply(lambda m, x: compare(m.layer(x), 0.5)), torch.randn(3, 4))
    assert "equal" in found
    assert "threshold" in found


@pytest.mark.parametrize("compare", [operator.gt, operator.le, torch.lt], ids=lambda f: f.__name__)
def test_comparisons_give_0_or_1(compare: Callable[[Any, Any], Any]) -> None:
    model, x = Apply(lambda m, x: compare(m.layer(x), 0.5)), torch.randn(3, 4)
    graph = lift(trace(model, x))
    with torch.no_grad():
        assert np.array_equal(graph.evaluate(x.double().numpy()), model(x).double().numpy())


INTEGERS: dict[str, Callable[[Any], Any]] = {
    "to a type": lambda x: x.to(torch.int32).float(),
    "to another's type": lambda x: (10 * x).to(torch.ones(1, dtype=torch.int64)).float(),
    "type_as": lambda x: (10 * x).type_as(torch.ones(1, dtype=torch.int64)) * 0.5,
    "a type's name": lambda x: (10 * x).type("torch.IntTensor").float(),
    "complex": lambda x: torch.complex(x, x).real,
}


@pytest.mark.parametrize("name", INTEGERS)
def test_values_that_are_no_real_numbers_are_refused(name: str) -> None:
    assert problems(Apply(lambda m, x: INTEGERS[name](m.layer(x))), torch.randn(3, 4))


def test_division_by_zero_is_refused() -> None:
    for zero in (0, 0.0, torch.tensor([1.0, 2.0, 0.0, 1.0])):
        assert "a constant isn't finite" in problems(Apply(lambda m, x, z=zero: x / z), torch.randn(3, 4))  # type: ignore[misc]


def test_changes_in_place() -> None:
    """This holds for the input, too: what the caller gives stays unchanged."""

    def changed(model: Any, x: Any) -> Any:
        y = nn.ReLU(inplace=True)(x.add_(1).mul_(2))
        return y * x

    images = torch.randn(40, 4)
    before = images.clone()
    model = Apply(changed)
    assert not problems(model, images)
    graph = lift(trace(model, images))
    assert torch.equal(images, before)
    assert np.allclose(
        graph.evaluate(images.double().numpy()), torch.relu(2 * (before + 1)).double().numpy() ** 2, atol=1e-6
    )
    for name in ("zero_", "normal_"):
        function = Apply(lambda m, x, n=name: (y := x * 1, getattr(y, n)(), x + y)[-1])  # type: ignore[misc]
        assert f"changes a tensor in place ({name})" in problems(function, images)


def test_complex_outputs_are_refused() -> None:
    assert "fft_fft is not supported" in problems(Apply(lambda m, x: torch.fft.fft(x)), torch.randn(3, 4))


def test_images_that_mean_something_else_as_floats() -> None:
    """The program gets numbers, so a model must not depend on the type of pixels."""

    def scaled(model: Any, x: Any) -> Any:
        return model.layer(x.float() / 255 if x.dtype == torch.uint8 else x)

    pixels = torch.randint(0, 255, (3, 4), dtype=torch.uint8)
    assert "other outputs for uint8 inputs" in problems(Apply(scaled), pixels)
    assert not problems(Apply(scaled), pixels.float())
    assert not problems(Apply(lambda m, x: m.layer(x.float() / 255)), pixels)


def test_quantised_models_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao moves elsewhere
        net = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), {nn.Linear})
    assert "0: Linear is quantised. Compile the model as it was before" in problems(net, torch.randn(3, 4))


def test_autocast_is_refused() -> None:
    def lower(model: Any, x: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model.layer(x).float()

    assert "computes under autocast" in problems(Apply(lower), torch.randn(3, 4))


def fails_without_a_message(model: Any, x: Any) -> Any:
    if not isinstance(x, torch.Tensor):
        raise AssertionError
    return x


def test_errors_show_the_line_where_they_say_nothing() -> None:
    assert "AssertionError: raise AssertionError" in problems(Apply(fails_without_a_message), torch.randn(3, 4))

    def fails(model: Any, x: Any) -> Any:
        raise RuntimeError

    with pytest.raises(CalibrationError, match="RuntimeError: raise RuntimeError"):
        check(Apply(fails), torch.randn(3, 4))


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """torch.fx prints a message if a graph module fails: the traced one on another batch, or the caller's own."""
    assert problems(
        Apply(lambda m, x: x + torch.ones(2, 4)[: x.shape[0]] * torch.arange(8.0).view(2, 4)), torch.randn(2, 4)
    )
    given = torch.fx.symbolic_trace(Apply(lambda m, x: x + m.kept))
    with pytest.raises(CalibrationError):
        check(given, torch.randn(2, 3))
    with pytest.raises(CalibrationError):
        check(nn.Sequential(given), torch.randn(2, 3))
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    with pytest.raises(RuntimeError):
        given(torch.randn(2, 3))
    assert capfd.readouterr().err, "the caller's own module still prints"
