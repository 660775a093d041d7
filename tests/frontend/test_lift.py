"""Every supported operation, in each of its spellings, against torch; and all unsupported operations at once."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from olac.errors import UnsupportedModelError
from olac.frontend import check, lift, register_function, register_module, trace
from olac.frontend.lifter import FUNCTIONS, MODULES
from olac.frontend.tracer import LEAVES
from olac.ir.graph import Graph
from olac.ir.ops import Activation, Affine, AveragePool, Conv2d, Input, MaxPool2d, Multiply, Reshape
from olac.ir.types import Stage


class Apply(nn.Module):
    """A model that applies a function, with a parameter and a buffer that it can use."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)

    @staticmethod
    def plus(x: Any, y: Any) -> Any:
        x += y
        return x


def images(*shape: int, count: int = 3) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def agrees(model: nn.Module, x: torch.Tensor) -> Graph:
    """Lift a model and compare the graph with torch on batches of several sizes."""
    model.eval()
    graph = lift(trace(model, x))
    assert graph.stage is Stage.TRACED
    with torch.no_grad():
        for batch in (x, x[:1], torch.cat([x, -2 * x])):
            got = graph.evaluate(batch.double().numpy())
            # If the model squeezes, a single image loses the batch axis in torch, and only there.
            expected = model(batch).double().reshape(len(batch), *got.shape[1:]).numpy()
            assert got.shape == expected.shape
            assert np.abs(got - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())
    for node in graph.nodes:
        assert node.id.isidentifier()
        assert node.origin.passes == ("lift",)
    return graph


def randomise(model: nn.Module) -> nn.Module:
    """Random weights and statistics, as after training."""
    generator = torch.Generator().manual_seed(2)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=generator) + 0.25
    return model


MODULES_2D: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv2d(3, 5, 3), (3, 9, 7)),
    (nn.Conv2d(3, 5, (3, 2), stride=(2, 3), padding=(1, 2), bias=False), (3, 9, 7)),
    (nn.Conv2d(4, 6, 3, dilation=(2, 1), groups=2, padding=1), (4, 9, 7)),
    (nn.Conv2d(4, 4, 3, groups=4, stride=2, padding=1), (4, 9, 7)),
    (nn.Conv2d(3, 5, (4, 3), padding="same"), (3, 9, 7)),
    (nn.Conv2d(3, 5, (2, 4), padding="same", dilation=(3, 1)), (3, 9, 7)),
    (nn.Conv2d(3, 5, 3, padding="valid", stride=2), (3, 9, 7)),
    (nn.BatchNorm2d(3), (3, 5, 7)),
    (nn.BatchNorm2d(3, affine=False, eps=0.1), (3, 5, 7)),
    (nn.BatchNorm1d(7), (7,)),
    (nn.Linear(7, 5), (7,)),
    (nn.Linear(7, 5, bias=False), (7,)),
    (nn.ReLU(), (3, 5, 7)),
    (nn.ReLU(inplace=True), (3, 5, 7)),
    (nn.ReLU6(), (3, 5, 7)),
    (nn.Hardtanh(-0.5, 0.75), (3, 5, 7)),
    (nn.LeakyReLU(0.2), (3, 5, 7)),
    (nn.ELU(0.7), (3, 5, 7)),
    (nn.SELU(), (3, 5, 7)),
    (nn.GELU(), (3, 5, 7)),
    (nn.GELU(approximate="tanh"), (3, 5, 7)),
    (nn.SiLU(), (3, 5, 7)),
    (nn.Mish(), (3, 5, 7)),
    (nn.Hardswish(), (3, 5, 7)),
    (nn.Hardsigmoid(), (3, 5, 7)),
    (nn.Softplus(beta=2), (3, 5, 7)),
    (nn.Softsign(), (3, 5, 7)),
    (nn.PReLU(), (3, 5, 7)),
    (nn.PReLU(3, init=0.3), (3, 5, 7)),
    (nn.PReLU(7), (7,)),
    (nn.RReLU(0.1, 0.3), (3, 5, 7)),
    (nn.CELU(0.7), (3, 5, 7)),
    (nn.LogSigmoid(), (3, 5, 7)),
    (nn.Tanhshrink(), (3, 5, 7)),
    (nn.Softshrink(0.3), (3, 5, 7)),
    (nn.Hardshrink(0.3), (3, 5, 7)),
    (nn.Threshold(0.1, 0.2), (3, 5, 7)),
    (nn.Sigmoid(), (3, 5, 7)),
    (nn.Tanh(), (7,)),
    (nn.AvgPool2d(2), (3, 9, 7)),
    (nn.AvgPool2d(3, stride=2, padding=1), (3, 9, 7)),
    (nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), (3, 9, 7)),
    (nn.AvgPool2d((3, 2), stride=(2, 3), padding=(1, 0), ceil_mode=True), (3, 9, 8)),
    (nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False), (3, 8, 10)),
    (nn.AvgPool2d(2, stride=3, ceil_mode=True, padding=1), (3, 7, 8)),
    (nn.AvgPool2d(3, stride=2, padding=1, divisor_override=5), (3, 9, 7)),
    (nn.AvgPool2d(1), (3, 9, 7)),
    (nn.AdaptiveAvgPool2d(1), (3, 9, 7)),
    (nn.AdaptiveAvgPool2d((4, 3)), (3, 9, 7)),
    (nn.AdaptiveAvgPool2d((None, 3)), (3, 9, 7)),
    (nn.AdaptiveAvgPool2d((11, 2)), (3, 9, 7)),
    (nn.ZeroPad2d((1, 2, 3, 0)), (3, 5, 7)),
    (nn.ConstantPad2d((1, -2, 0, 3), 0.5), (3, 5, 7)),
    (nn.Flatten(), (3, 5, 7)),
    (nn.Unflatten(1, (2, 3, 4)), (24,)),
    (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(), nn.Identity(), nn.Dropout2d()), (1, 5, 5)),
]


@pytest.mark.parametrize(("module", "shape"), MODULES_2D, ids=lambda v: str(v).replace("\n", "") if v else "")
def test_modules(module: nn.Module, shape: tuple[int, ...]) -> None:
    holder = nn.Sequential(randomise(module))
    agrees(holder, images(*shape))
    # The module is traced into if it is alone, and becomes functions.
    agrees(module, images(*shape))


def named(*cases: tuple[str, Callable[..., Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("function", [f for _, f in cases], ids=[name for name, _ in cases])


C3 = torch.tensor([1.5, -2.0, 0.25]).reshape(3, 1, 1)
WEIGHT = torch.linspace(-1, 1, 4 * 3 * 3 * 2).reshape(4, 3, 3, 2)
PLANE = torch.linspace(-1, 1, 35).reshape(5, 7)


@named(
    ("x * x", lambda x: x * x),
    ("x ** 2", lambda x: x**2),
    ("x ** 1", lambda x: x**1),
    ("x ** 3", lambda x: x**3),
    ("x ** 6.0", lambda x: x**6.0),
    ("torch.pow", lambda x: torch.pow(x, 2)),
    ("x.pow", lambda x: x.pow(2)),
    ("torch.square", lambda x: torch.square(x)),
    ("x.square", lambda x: x.square()),
    ("x * y", lambda x: x * F.relu(x)),
    ("torch.mul", lambda x: torch.mul(x, F.relu(x))),
    ("x.mul", lambda x: x.mul(x.sigmoid())),
    ("x + y", lambda x: x + x.relu()),
    ("x += y", lambda x: Apply.plus(x.relu(), x)),
    ("torch.add alpha", lambda x: torch.add(x, x.tanh(), alpha=0.5)),
    ("x.add alpha", lambda x: x.add(x.tanh(), alpha=-2)),
    ("torch.add constant alpha", lambda x: torch.add(x, C3, alpha=0.5)),
    ("x - y", lambda x: x - x.tanh()),
    ("torch.sub alpha", lambda x: torch.sub(x, x.tanh(), alpha=3)),
    ("x - c", lambda x: x - 0.5),
    ("c - x", lambda x: 0.5 - x),
    ("tensor - x", lambda x: C3 - x),
    ("torch.rsub", lambda x: torch.rsub(x, 2.0)),
    ("x + tensor", lambda x: x + C3),
    ("tensor + x", lambda x: C3 + x),
    ("x * tensor", lambda x: x * PLANE),
    ("tensor * x", lambda x: PLANE * x),
    ("torch.mul tensor", lambda x: torch.mul(C3, x)),
    ("x * 1CHW", lambda x: x * C3[None]),
    ("x / c", lambda x: x / 3),
    ("x / tensor", lambda x: x / C3),
    ("x.div", lambda x: x.div(C3)),
    ("x.div_", lambda x: (x + 0).div_(C3)),
    ("-x", lambda x: -x),
    ("torch.neg", lambda x: torch.neg(x)),
    ("+x", lambda x: +x),
    ("0-d tensor", lambda x: x * torch.tensor(2.5) + np.float64(1.5)),
    ("gate", lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True))),
    ("add over channels", lambda x: x + x[:, :1]),
    ("add columns", lambda x: x.mean(2, keepdim=True) - x),
    ("F.relu", lambda x: F.relu(x)),
    ("F.relu inplace", lambda x: F.relu(x + 0, inplace=True)),
    ("torch.relu_", lambda x: torch.relu_(x + 0)),
    ("x.relu_", lambda x: (x + 0).relu_()),
    ("F.leaky_relu", lambda x: F.leaky_relu(x, 0.3)),
    ("F.leaky_relu_", lambda x: F.leaky_relu_(x * 1.5, 0.3)),
    ("F.gelu", lambda x: F.gelu(x)),
    ("F.gelu tanh", lambda x: F.gelu(x, approximate="tanh")),
    ("F.silu", lambda x: F.silu(x)),
    ("F.relu6", lambda x: F.relu6(x * 5)),
    ("F.hardtanh", lambda x: F.hardtanh(x, -0.2, 0.3)),
    ("F.elu", lambda x: F.elu(x, 0.5)),
    ("F.softplus", lambda x: F.softplus(x)),
    ("F.prelu", lambda x: F.prelu(x, torch.tensor([0.2]))),
    ("torch.prelu", lambda x: torch.prelu(x, C3.flatten())),
    ("x.prelu", lambda x: x.flatten(1).prelu(torch.linspace(-1, 1, 105))),
    ("F.rrelu", lambda x: F.rrelu(x)),
    ("torch.rrelu", lambda x: torch.rrelu(x, 0.2, 0.4)),
    ("F.rrelu_", lambda x: F.rrelu_(x + 0)),
    ("F.celu", lambda x: F.celu(x, 0.5)),
    ("torch.celu", lambda x: torch.celu(x)),
    ("F.elu_", lambda x: F.elu_(x + 0, 0.5)),
    ("F.selu", lambda x: F.selu(x) + torch.selu(x)),
    ("F.mish", lambda x: F.mish(x)),
    ("F.hardswish", lambda x: F.hardswish(x * 3)),
    ("F.hardsigmoid", lambda x: F.hardsigmoid(x * 3)),
    ("F.logsigmoid", lambda x: F.logsigmoid(x)),
    ("F.softsign", lambda x: F.softsign(x)),
    ("F.tanhshrink", lambda x: F.tanhshrink(x)),
    ("F.softshrink", lambda x: F.softshrink(x, 0.2)),
    ("F.hardshrink", lambda x: F.hardshrink(x, 0.2)),
    ("x.hardshrink", lambda x: torch.hardshrink(x) + x.hardshrink()),
    ("F.threshold", lambda x: F.threshold(x, 0.1, 0.3)),
    ("torch.threshold_", lambda x: torch.threshold_(x + 0, 0.1, 0.3)),
    ("F.sigmoid", lambda x: F.sigmoid(x) + x.sigmoid()),
    ("F.tanh", lambda x: F.tanh(x) + torch.tanh(x)),
    ("x.sigmoid_", lambda x: (x + 0).sigmoid_()),
    ("torch.clamp", lambda x: torch.clamp(x, -0.5, 0.25)),
    ("x.clamp min", lambda x: x.clamp(min=0.1)),
    ("x.clamp_", lambda x: (x + 0).clamp_(max=0.1)),
    ("x.clip", lambda x: x.clip(-0.1, torch.tensor(0.5)).clamp_min(0.0).clamp_max(0.3)),
    ("torch.sigmoid", lambda x: torch.sigmoid(x)),
    ("x.tanh", lambda x: x.tanh()),
    ("F.conv2d", lambda x: F.conv2d(x, WEIGHT, torch.ones(4), stride=2, padding=(1, 0))),
    ("F.conv2d same", lambda x: F.conv2d(x, WEIGHT, padding="same")),
    ("F.conv2d list", lambda x: F.conv2d(x, weight=WEIGHT[:3, :1], groups=3, dilation=[2, 1])),
    ("F.linear", lambda x: F.linear(x.flatten(1), torch.linspace(-1, 1, 2 * 105).reshape(2, 105), torch.ones(2))),
    ("F.batch_norm", lambda x: F.batch_norm(x, C3.flatten(), C3.flatten() ** 2)),
    ("F.avg_pool2d", lambda x: F.avg_pool2d(x, 2, padding=1)),
    ("F.avg_pool2d ceil", lambda x: F.avg_pool2d(x, (2, 3), ceil_mode=True)),
    ("F.adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, (3, 2))),
    ("mean 23", lambda x: x.mean((2, 3))),
    ("mean list", lambda x: x.mean([-1, -2])),
    ("mean keepdim", lambda x: x.mean(dim=(-2, -1), keepdim=True)),
    ("mean row", lambda x: x.mean(-1)),
    ("mean of channels", lambda x: x.mean(1, keepdim=True)),
    ("mean of all", lambda x: x.mean((1, 2, 3), keepdim=True)),
    ("torch.mean", lambda x: torch.mean(x, dim=[2, 3])),
    ("sum", lambda x: x.sum((2, 3)) + x.mean(3).sum(2)),
    ("mean of vector", lambda x: x.flatten(1).mean(1, keepdim=True) + x.flatten(1)),
    ("view", lambda x: x.view(x.size(0), -1)),
    ("view -1", lambda x: x.view(-1, 105)),
    ("view dtype-like", lambda x: x.view(len(x), 3, 35)),
    ("reshape", lambda x: x.reshape(x.shape[0], 5, 3, 7) * 2),
    ("torch.reshape", lambda x: torch.reshape(x, (-1, 15, 7))),
    ("flatten", lambda x: x.flatten(1)),
    ("flatten end", lambda x: x.flatten(1, 2).flatten(-2, -1)),
    ("torch.flatten", lambda x: torch.flatten(x, start_dim=1)),
    ("squeeze", lambda x: x[:, :1].squeeze(1).unsqueeze(-1)),
    ("squeeze all", lambda x: x.mean((2, 3), keepdim=True).squeeze()),
    ("torch.unsqueeze", lambda x: torch.unsqueeze(x.flatten(1), 1)),
    ("unflatten", lambda x: x.flatten(1).unflatten(1, (5, 21))),
    ("F.pad", lambda x: F.pad(x, (1, 2))),
    ("F.pad 2d", lambda x: F.pad(x, (1, 0, 2, 1), value=-1.5)),
    ("F.pad channels", lambda x: F.pad(x, (0, 0, 0, 0, 2, 1), "constant", 0.0)),
    ("F.pad negative", lambda x: F.pad(x, (-1, 2, 0, -1))),
    ("F.pad all", lambda x: F.pad(x, (1, 1, 0, 0, 0, 0, 0, 0))),
    ("x[:, :, ::2, ::2]", lambda x: x[:, :, ::2, ::2]),
    ("x[..., 1:]", lambda x: x[..., 1:]),
    ("x[:, 1]", lambda x: x[:, 1]),
    ("x[:, -1:, 0]", lambda x: x[:, -1:, 0]),
    ("x[:, :, None, 1:-1]", lambda x: x[:, :, None, 1:-1].flatten(1)),
    ("x[:]", lambda x: x[:]),
    ("x[:, :, -3::3]", lambda x: x[:, :, -3::3]),
    ("narrow", lambda x: x.narrow(3, 2, 4)),
    ("select", lambda x: x.select(1, -1)),
    ("chunk", lambda x: x.chunk(2, dim=1)[0] + x[:, 1:]),
    ("split", lambda x: torch.split(x, [1, 2], 1)[1]),
    ("split unpacked", lambda x: [(p := x.split(1, dim=1)), p[0] * p[1] + p[2]][1]),
    ("dropout", lambda x: F.dropout(x, 0.5, False) + F.dropout(x, training=False)),
    ("nothings", lambda x: x.contiguous().clone().detach().to(torch.float32).float().to(x.device).type_as(x)),
    ("expand", lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 5, 7)),
    ("expand batch", lambda x: x.expand(x.size(0), 3, 5, 7)),
    ("expand_as", lambda x: x[:, :1].expand_as(x)),
    ("zeros of batch", lambda x: x + torch.ones(x.shape[0], 3, 1, 1)),
    ("branch on shape", lambda x: x.relu() if x.shape[2] == 5 and x.dim() == 4 else x[:, :0]),
    ("arithmetic of shapes", lambda x: x.sum((2, 3)) / (x.size(-1) * x.shape[2]) * math.sqrt(x.size(1))),
    ("changed in place, read by another name", lambda x: [y := x * 2, y.relu_(), y + x][-1]),
)
def test_functions(function: Callable[..., Any]) -> None:
    agrees(Apply(function), images(3, 5, 7))


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    ceil_mode=st.booleans(),
    include_pad=st.booleans(),
    divisor=st.none() | st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_average_pooling(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    ceil_mode: bool,
    include_pad: bool,
    divisor: int | None,
) -> None:
    padding = (min(padding[0], kernel[0] // 2), min(padding[1], kernel[1] // 2))
    if any(s + 2 * p < k for s, p, k in zip(size, padding, kernel, strict=True)):
        return
    agrees(nn.Sequential(nn.AvgPool2d(kernel, stride, padding, ceil_mode, include_pad, divisor)), images(2, *size))


@given(size=st.tuples(*[st.integers(1, 12)] * 2), out=st.tuples(*[st.none() | st.integers(1, 12)] * 2))
@settings(max_examples=30, deadline=None)
def test_adaptive_pooling(size: tuple[int, int], out: tuple[int | None, int | None]) -> None:
    agrees(nn.Sequential(nn.AdaptiveAvgPool2d(out)), images(2, *size))


@given(
    items=st.lists(
        st.integers(-4, 3) | st.slices(4).filter(lambda s: (s.step or 1) > 0) | st.none(), min_size=0, max_size=4
    ),
    dots=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_slices(items: list[Any], dots: bool) -> None:
    index = (slice(None), *items, *((Ellipsis,) if dots else ()))
    x = images(4, 4, 4)
    if sum(i is not None for i in items) > 3 or len(index) < 2:
        return
    taken = x[index]
    if taken.numel() == 0 or taken.dim() == 1:
        return
    agrees(Apply(lambda x: x[index]), x)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x: Any) -> Any:
        y = self.act(self.bn1(self.conv1(x)))
        y += x
        return self.act(y * self.scale)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, stride=2)
        self.layer1 = nn.Sequential(Block(4), Block(4))
        self.head = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 3)])

    def forward(self, x: Any) -> Any:
        x = self.layer1(self.stem(x)).mean((2, 3))
        for layer in self.head:
            x = layer(x)
        return x


def test_ids_follow_module_paths() -> None:
    graph = agrees(randomise(Net()), images(1, 9, 11))
    ids = [node.id for node in graph.nodes]
    assert ids[:7] == ["x", "stem", "layer1_0_conv1", "layer1_0_bn1", "layer1_0_act", "layer1_0_add", "layer1_0_mul"]
    assert ids[7] == "layer1_0_act_2"
    assert ids[-4:] == ["mean", "mean_reshape", "head_0", "head_1"]
    assert graph["layer1_0_conv1"].origin.path == "layer1.0.conv1"
    assert graph["layer1_0_add"].origin.path == "layer1.0"
    assert graph["layer1_0_add"].origin.source.startswith("test_lift.py:")
    assert graph["layer1_1_bn1"].op == Affine("layer1_1_bn1.scale", "layer1_1_bn1.shift")
    assert lift(trace(Net(), images(1, 9, 11))).text() == graph.text()


def test_ids_are_identifiers() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    model.add_module("a-b", nn.ReLU())
    model.add_module("2", nn.Linear(3, 2))
    model.add_module("x", nn.Tanh())
    assert [n.id for n in agrees(model, images(3)).nodes] == ["x", "m0", "a_b", "m2", "x_2"]


def test_constants_are_float64_of_float32_weights() -> None:
    layer = nn.Conv2d(1, 2, 3)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(18, 2))
    graph = lift(trace(model, images(1, 5, 5)))
    conv = graph["m0"].op
    assert isinstance(conv, Conv2d)
    assert graph.constants[conv.weight].dtype == np.float64
    assert np.array_equal(graph.constants[conv.weight], layer.weight.detach().double().numpy())


def test_a_module_used_twice_is_two_nodes_with_one_constant() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return self.fc(F.relu(self.fc(x)))

    graph = agrees(Twice(), images(4))
    assert [n.id for n in graph.nodes] == ["x", "fc", "relu", "fc_2"]
    assert graph["fc"].op == graph["fc_2"].op
    assert len(graph.constants) == 2


def test_subclasses_of_torch_modules() -> None:
    class Renamed(nn.Conv2d):
        pass

    class Standardised(nn.Conv2d):
        def forward(self, input: Any) -> Any:
            w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(input, w, self.bias, self.stride, self.padding)

    graph = agrees(nn.Sequential(Renamed(2, 3, 3), Standardised(3, 2, 3)), images(2, 7, 7))
    assert [n.id for n in graph.nodes] == ["x", "m0", "m1_conv2d"]


def test_parametrised_and_weight_normed_modules() -> None:
    import torch.nn.utils.parametrizations as parametrizations

    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(2, 3, 3)), nn.Flatten(), parametrizations.spectral_norm(nn.Linear(75, 4))
    )
    agrees(model, images(2, 7, 7))


def test_global_pooling_and_squares_are_one_node() -> None:
    graph = agrees(Apply(lambda x: (x**2).mean((2, 3), keepdim=True)), images(3, 5, 7))
    assert [type(n.op) for n in graph.nodes] == [Input, Multiply, AveragePool]
    assert graph["mean"].op.attributes()["stride"] == (5, 7)
    graph = agrees(Apply(lambda x: F.avg_pool2d(x, 3, 2).flatten(1).view(x.size(0), -1)), images(3, 5, 7))
    assert [type(n.op) for n in graph.nodes] == [Input, AveragePool, Reshape]
    assert graph["avg_pool2d"].op.attributes()["stride"] == (2, 2)
    graph = agrees(Apply(lambda x: F.adaptive_avg_pool2d(x, (5, 3))), images(3, 5, 7))
    assert graph["adaptive_avg_pool2d"].op.attributes()["stride"] == (0, 0)


def test_max_pooling_is_one_node_in_every_spelling() -> None:
    for spelling in (
        nn.MaxPool2d((2, 3), (2, 1), (0, 1)),
        Apply(lambda x: F.max_pool2d(x, (2, 3), (2, 1), (0, 1))),
        Apply(lambda x: torch.max_pool2d(x, (2, 3), (2, 1), (0, 1))),
    ):
        graph = agrees(spelling, images(2, 5, 7))
        assert [type(node.op) for node in graph.nodes] == [Input, MaxPool2d]
        assert graph.nodes[-1].op == MaxPool2d((2, 3), (2, 1), (0, 1))
    for adaptive in (nn.AdaptiveMaxPool2d((3, None)), Apply(lambda x: F.adaptive_max_pool2d(x, (3, 8)))):
        graph = agrees(adaptive, images(2, 6, 8))
        assert graph.nodes[-1].op == MaxPool2d((2, 1), (2, 1))
    assert [type(node.op) for node in agrees(nn.AdaptiveMaxPool2d((5, 7)), images(2, 5, 7)).nodes] == [Input]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_max_pooling_of_any_windows(data: st.DataObject) -> None:
    kernel, dilation, stride = (
        data.draw(st.tuples(st.integers(1, most), st.integers(1, most)), name) for name, most in WINDOW_SIZES
    )
    padding = tuple(data.draw(st.integers(0, (d * (k - 1) + 1) // 2)) for k, d in zip(kernel, dilation, strict=True))
    x = images(2, *data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9))))
    pool = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=data.draw(st.booleans()))
    try:
        expected = pool(x)
    except RuntimeError:
        return  # torch refuses it
    if bool(torch.isfinite(expected).all()):
        agrees(pool, x)


WINDOW_SIZES = (("kernel", 5), ("dilation", 3), ("stride", 4))


class Bad(nn.Module):
    """Many operations that can't be compiled, with supported ones in between."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LPPool2d(2, 2), nn.LocalResponseNorm(2), nn.ReLU())
        self.random = nn.FractionalMaxPool2d(2, output_size=(3, 3))
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        x = self.features(x)
        x = self.norm(self.random(x))
        if x.sum() > 0:
            x = x * 2
        x = torch.cumprod(x, 1)
        x = self.head(x.transpose(1, 3))
        x = x * (x == 1.0)
        return x.amax((1, 2)).argmax(1)


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        lift(trace(Bad(), images(1, 10, 10)), client_head=False)
    found = {(node.path, node.problem.split(" ")[0]) for node in caught.value.nodes}
    assert found == {
        ("", "the"),
        ("features.1", "LPPool2d"),
        ("features.2", "LocalResponseNorm"),
        ("random", "FractionalMaxPool2d"),
        ("norm", "batch"),
        ("", "cumprod"),
        ("", "tests"),
        ("", "argmax"),
    }
    by_path = {node.path: node for node in caught.value.nodes}
    assert "AvgPool2d" in by_path["features.1"].advice
    assert "BatchNorm" in by_path["features.2"].advice
    lines = {node.problem.split(" ")[0]: node.source for node in caught.value.nodes}
    first = Bad.forward.__code__.co_firstlineno
    assert lines["the"] == f"test_lift.py:{first + 3}"
    assert lines["cumprod"] == f"test_lift.py:{first + 5}"
    assert lines["argmax"] == f"test_lift.py:{first + 8}"
    assert "8 places" in str(caught.value)
    assert check(Bad(), images(1, 10, 10), client_head=False) == list(caught.value.nodes)


@named(
    ("merges the batch", lambda x: x.view(-1, 7)),
    ("flattens all", lambda x: x.flatten()),
    ("mean of all", lambda x: x - x.mean()),
    ("mean of batch", lambda x: x - x.mean(0, keepdim=True)),
    ("takes one image", lambda x: x[0]),
    ("takes some images", lambda x: x[:1]),
    ("iterates over images", lambda x: torch.stack([row * 2 for row in x])),
    ("item", lambda x: x * x.max().item()),
    ("float", lambda x: x * float(x.sum())),
    ("numpy", lambda x: x * float(np.asarray(x).max())),
    ("while", lambda x: x * 2 if bool((x > 3).any()) else x),
    ("setitem", lambda x: operator.setitem(x, (slice(None), 0), 1.0) or x),
    ("dropout always", lambda x: F.dropout(x, 0.5)),
    ("noise", lambda x: x + torch.randn(3, 5, 7)),
    ("size of batch", lambda x: x / x.size(0)),
    ("tuple", lambda x: (x, x)),
    ("dict", lambda x: {"a": x, "b": x}),
    ("constant", lambda x: torch.ones(x.shape[0], 3)),
    ("differs by image", lambda x: x + torch.arange(x.shape[0]).reshape(-1, 1, 1, 1)),
    ("view changed in place", lambda x: [y := x * 2, z := y[:, :1], y.relu_(), z + x][-1]),
    ("softmax of the batch", lambda x: x.softmax(0)),
    ("argmax within", lambda x: 2 * x.argmax(1)),
    ("argmax of all", lambda x: x.argmax()),
    ("both of max", lambda x: x.max(1)),
    ("numbers of two ranks", lambda x: x.mean((1, 2, 3)) + x.mean((2, 3))[:, :1]),
    ("linear on numbers", lambda x: F.linear(x.mean((1, 2, 3)), torch.ones(2, 2))),
    ("batch norm of the batch", lambda x: F.batch_norm(x, torch.ones(3), torch.ones(3), training=True)),
    ("broadcasts over the batch", lambda x: x[:, :, :1, :1] + x.mean((2, 3))),
)
def test_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        lift(trace(Apply(function), images(3, 5, 7)))
    for node in caught.value.nodes:
        assert node.problem and node.advice
        assert str(node) in str(caught.value)


@pytest.mark.parametrize("shape", [(7,), (5, 7), (1, 5, 7), (1, 2, 3, 4)])
def test_inputs_of_any_shape(shape: tuple[int, ...]) -> None:
    agrees(nn.ReLU(), images(*shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_refused_types(dtype: torch.dtype) -> None:
    (found,) = check(nn.ReLU(), torch.ones(2, 3).to(dtype))
    assert str(dtype) in found.problem


def test_several_inputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, a: Any, b: Any, c: Any = None) -> Any:
            return a + b

    (found,) = check(Two(), images(3))
    assert "2 inputs (a, b)" in found.problem


def test_registering_from_outside() -> None:
    class Cube(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.sort(x)[0].sum(1, keepdim=True) - x.sum(1, keepdim=True) + x**3

    def twice(x: Any) -> Any:
        return torch.special.i0(x)

    assert check(nn.Sequential(Cube()), images(3))
    try:

        @register_module(Cube)
        def cube(lifter: Any, module: Any, x: Any) -> Any:
            return lifter.add(Multiply(), x, lifter.add(Multiply(), x, x, suffix="square"))

        @register_function(torch.special.i0)
        def absolute(lifter: Any, x: Any) -> Any:
            return lifter.add(Activation("relu"), x)

        graph = agrees(nn.Sequential(Cube()), images(3))
        assert [n.id for n in graph.nodes] == ["x", "m0_square", "m0"]
        assert check(Apply(twice), images(3)) == []
    finally:
        MODULES.pop(Cube, None)
        LEAVES.discard(Cube)
        FUNCTIONS.pop(torch.special.i0, None)
    assert check(nn.Sequential(Cube()), images(3))
