"""Activations that a caller names: the caller's own modules and functions."""

from __future__ import annotations

import copy
import gc
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from olac.approximation.tensors import run, tensors
from olac.errors import UnsupportedModelError
from olac.frontend import check, lift, trace
from olac.ir import functions
from olac.ir.functions import channel_function, is_per_channel
from olac.ir.graph import Graph
from olac.ir.ops import Activation, Array


class Snake(nn.Module):
    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Any) -> Any:
        return x + torch.sin(self.slope * x) ** 2


class ChannelSnake(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.linspace(0.5, 2, channels).reshape(1, -1, 1, 1))

    def forward(self, x: Any) -> Any:
        return x + torch.sin(self.slopes * x) ** 2 / self.slopes


def _snake(x: Any, slope: float = 1.0) -> Any:
    return x + torch.sin(slope * x) ** 2


class Calls(nn.Module):
    """A model whose forward calls a function that is a global, an attribute or in a closure."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.act = _snake
        self.how = how

        def inner(x: Any) -> Any:
            return held(x)

        held = _snake
        self.inner = inner

    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        if self.how == "global":
            return _snake(y)
        if self.how == "arguments":
            return _snake(y, slope=0.5) + _snake(y, 2.0)
        return self.act(y) if self.how == "attribute" else self.inner(y)


def images(*shape: int, count: int = 4) -> torch.Tensor:
    return torch.randn(count, *(shape or (2, 6, 5)), generator=torch.Generator().manual_seed(1))


def agrees(model: nn.Module, activations: Any, x: torch.Tensor | None = None) -> Graph:
    x = images() if x is None else x
    model.eval()
    graph = lift(trace(model, x, activations))
    with torch.no_grad():
        expected = model(x).double().numpy()
    assert np.abs(graph.evaluate(x.double().numpy()) - expected).max() < 1e-5
    return graph


def activations_of(graph: Graph) -> list[Activation]:
    return [node.op for node in graph.nodes if isinstance(node.op, Activation)]


@pytest.mark.parametrize(
    "given", [None, lambda x: x + np.sin(x) ** 2, lambda x: x + x.sin().square(), lambda x: x + torch.sin(x) ** 2]
)
@pytest.mark.parametrize("key", [Snake, "1"])
def test_modules(key: Any, given: Any) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), Snake(), nn.Conv2d(3, 2, 1), nn.ReLU())
    assert check(model, images(), {key: given}) == []
    graph = agrees(model, {key: given})
    assert [op.function for op in activations_of(graph)] == ["Snake", "relu"]
    assert [node.id for node in graph.nodes][2] == "m1"
    function = channel_function("Snake", (), 0)
    x: Array = np.linspace(-3, 3, 50, dtype=np.float64)
    assert np.allclose(function(x), x + np.sin(x) ** 2) and np.allclose(
        function(x.reshape(5, 10)).reshape(-1), function(x)
    )


def test_instances_differ_and_subclasses_count() -> None:
    class Special(Snake):
        pass

    model = nn.Sequential(Snake(0.5), nn.Conv2d(2, 2, 1), Special(2.0))
    graph = agrees(model, {Snake: None})
    assert [op.function for op in activations_of(graph)] == ["Snake", "Special"]
    del graph
    shared = Snake()
    graph = agrees(nn.Sequential(shared, nn.Conv2d(2, 2, 1), shared), {Snake: None})
    assert [op.function for op in activations_of(graph)] == ["Snake", "Snake"]
    del graph
    graph = agrees(nn.Sequential(Snake(0.5), Snake(2.0)), {Snake: None})
    assert [op.function for op in activations_of(graph)] == ["Snake", "Snake_2"]


@pytest.mark.parametrize("how", ["global", "arguments", "attribute", "closure"])
@pytest.mark.parametrize("given", [None, lambda x, slope=1.0: x + np.sin(slope * x) ** 2])
def test_functions(how: str, given: Any) -> None:
    before = _snake
    model = Calls(how)
    graph = agrees(model, {_snake: given})
    names = [op.function for op in activations_of(graph)]
    assert names == (["snake", "snake_2"] if how == "arguments" else ["snake"])
    assert _snake is before is model.act


def test_functions_of_torch() -> None:
    class Uses(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.erf(x) + F.normalize(x[:, :1], dim=0) * 0 if x.shape[1] == 99 else torch.erf(x)

    agrees(Uses(), {torch.erf: None})
    from scipy import special

    agrees(Uses(), {torch.erf: special.erf})


def test_channels_with_functions_of_their_own() -> None:
    graph = agrees(nn.Sequential(nn.Conv2d(2, 3, 1), ChannelSnake(3)), {ChannelSnake: None})
    (op,) = activations_of(graph)
    assert is_per_channel(op.function) and not is_per_channel("relu")
    x: Array = np.linspace(-3, 3, 50, dtype=np.float64)
    for channel, slope in enumerate((0.5, 1.25, 2.0)):
        expected = x + np.sin(slope * x) ** 2 / slope
        assert np.allclose(channel_function(op.function, (), channel)(x), expected, atol=1e-6)


def test_channels_of_prelu() -> None:
    assert is_per_channel("prelu", (0.1, 0.2)) and not is_per_channel("prelu", (0.1,))
    x: Array = np.linspace(-1, 1, 9, dtype=np.float64)
    assert np.array_equal(channel_function("prelu", (0.1, 0.2), 1)(x), np.where(x > 0, x, 0.2 * x))
    assert np.array_equal(channel_function("prelu", (0.1,), 5)(x), np.where(x > 0, x, 0.1 * x))


def left_torch(x: Any) -> Any:
    return torch.from_numpy(np.asarray(x) + np.sin(x) ** 2)


class Left(Snake):
    """Torch knows no derivative of it."""

    def forward(self, x: Any) -> Any:
        return left_torch(x.detach().numpy())


@pytest.mark.parametrize(
    ("module", "given"),
    [
        (Snake(), None),
        (Snake(), lambda x: x + np.sin(x) ** 2),
        (Snake(), lambda x: x + torch.sin(x) ** 2),
        (Snake(), left_torch),
        (Left(), None),
        (ChannelSnake(3), None),
        (nn.PReLU(3), None),
        (nn.Sequential(nn.Hardtanh(-0.5, 0.7, inplace=True)), None),
    ],
)
def test_gradients_agree_with_those_of_the_model(module: nn.Module, given: Any) -> None:
    graph = agrees(nn.Sequential(module), {"0": given}, images(3, 6, 5))
    x = 2 * images(3, 6, 5)
    h = 1e-4
    with torch.no_grad():
        model = copy.deepcopy(module).double()
        expected = (model(x.double() + h) - model(x.double() - h)) / (2 * h)
    x.requires_grad_()
    (found,) = torch.autograd.grad(run(graph, tensors(graph), {graph.inputs[0].id: x})[graph.outputs[0]].sum(), x)
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_the_derivative_is_torchs_own_if_there_is_one() -> None:
    for module, exact in ((Snake(), True), (Left(), False)):
        (op,) = activations_of(agrees(nn.Sequential(module), {"0": None}))
        assert op.definition is not None and (op.definition.derivative is not None) == exact


class Centre(nn.Module):
    def forward(self, x: Any) -> Any:
        return x - x.mean((1, 2, 3), keepdim=True)


class Largest(nn.Module):
    def forward(self, x: Any) -> Any:
        return x / x.abs().max()


class Flip(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.flip(-1)


class Place(nn.Module):
    def forward(self, x: Any) -> Any:
        return x * torch.arange(x.shape[-1])


class Noise(nn.Module):
    def forward(self, x: Any) -> Any:
        return x + torch.rand_like(x)


class Less(nn.Module):
    def forward(self, x: Any) -> Any:
        return x[:, :1]


@pytest.mark.parametrize(
    ("module", "given", "message"),
    [
        (Centre(), None, "depends on other elements"),
        (Largest(), None, "depends on other elements"),
        (Flip(), None, "depends on other elements"),
        (Place(), None, "different places"),
        (Noise(), None, "random"),
        (Less(), None, "gives"),
        (Snake(), np.tanh, "but the model gives"),
        (Snake(), lambda x: x.nothing(), "fails"),
    ],
)
def test_what_is_not_elementwise(module: nn.Module, given: Any, message: str) -> None:
    found = check(nn.Sequential(nn.Conv2d(2, 2, 1), module), images(), {type(module): given})
    assert any(message in node.problem and node.path == "1" for node in found), found


def test_bad_keys() -> None:
    wrong: list[Any] = [{1: None}, {Snake: 3}, {Snake(): None}, {int: None}, [Snake]]
    for bad in wrong:
        with pytest.raises(TypeError):
            trace(Snake(), images(), bad)
    with pytest.raises(ValueError, match="nothing"):
        trace(Snake(), images(), {"nothing": None})


def test_two_values_are_refused() -> None:
    def both(x: Any, y: Any) -> Any:
        return x * torch.sin(y)

    class Two(nn.Module):
        def forward(self, x: Any) -> Any:
            return both(x, x.relu())

    with pytest.raises(UnsupportedModelError, match="2 values"):
        lift(trace(Two(), images(), {both: None}))


def test_definitions_end_with_their_graph() -> None:
    gc.collect()
    before = set(functions._DEFINITIONS)
    graph = agrees(nn.Sequential(Snake()), {Snake: None})
    assert set(functions._DEFINITIONS) > before
    assert graph.text().count("function=Snake") == 1
    del graph
    gc.collect()
    assert set(functions._DEFINITIONS) == before
