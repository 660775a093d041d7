"""A graph as a torch module and back: nothing changes but what is trained."""

from __future__ import annotations

import copy
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import olac
from olac.approximation.tensors import outputs_of, tensors
from olac.errors import CalibrationError
from olac.frontend import lift, trace
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.head import Affine as HeadAffine
from olac.ir.head import ArgMax, Elementwise, LogSoftmax, Max, Normalize, OutputHead, Reshape, Slice, Softmax, Step
from olac.ir.ops import Conv2d, Linear, Polynomial, Square
from olac.passes.base import PassContext, PassManager
from olac.passes.expand_max_pool import ExpandMaxPool
from olac.training.measure import measured_ranges
from olac.training.network import Network, Range, plain_module
from tests.approximation.nets import activations, folded, from_histograms, images, residual, values
from tests.e2e.test_networks import Lambda
from tests.networks import calibration_of

X = images(160, 1)


def approximated(graph: Graph, degree: int = 3) -> Graph:
    return from_histograms(graph, X, dict.fromkeys(activations(graph), degree))


def _uneven(x: Tensor, conv: nn.Module, head: nn.Module) -> Tensor:
    out: Tensor = head(F.gelu(conv(F.pad(x, (0, 1, 1, 0)))).mean((2, 3)))
    return out


def _joined(x: Tensor, depthwise: nn.Module, point: nn.Module, head: nn.Module) -> Tensor:
    y = F.silu(depthwise(x))
    out: Tensor = head(F.avg_pool2d(F.relu(point(y)) + y * x, 2).flatten(1))
    return out


NETS = {
    "residual": lambda: residual(2),
    "uneven padding": lambda: folded(Lambda(_uneven, conv=nn.Conv2d(3, 6, 2, 2), head=nn.Linear(6, 4)), X[:4]),
    "joined": lambda: folded(
        Lambda(
            _joined,
            depthwise=nn.Conv2d(3, 3, 3, padding=1, groups=3),
            point=nn.Conv2d(3, 3, 1, bias=False),
            head=nn.Linear(3 * 16, 4),
        ),
        X[:4],
    ),
    "dense": lambda: folded(
        nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)),
        X[:4],
    ),
}


def outputs(graph: Graph, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return outputs_of(graph, tensors(graph), x)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("degree", [2, 3])
def test_the_module_gives_the_graphs_outputs(net: str, degree: int) -> None:
    torch.manual_seed(1)
    original = NETS[net]()
    start = approximated(original, degree)
    network = Network(start, measured_ranges(original, start, X))
    expected = outputs(start)
    with torch.no_grad():
        made = network.module.eval()(X)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert set(network.activations) == set(activations(original))


@pytest.mark.parametrize("net", NETS)
def test_every_weight_and_polynomial_is_a_parameter(net: str) -> None:
    torch.manual_seed(1)
    original = NETS[net]()
    start = approximated(original)
    network = Network(start, measured_ranges(original, start, X))
    named = dict(network.module.named_parameters())
    assert {name for names in network.places.values() for name in names} == set(named)
    for constant, names in network.places.items():
        for name in names:
            np.testing.assert_allclose(named[name].detach().numpy(), start.constants[constant], rtol=1e-6)
    trained = [node for node in start.nodes if isinstance(node.op, Conv2d | Linear | Polynomial)]
    assert set(network.places) == {name for node in trained for name in node.op.constant_names()}


def test_what_a_max_pooling_became_is_not_trained() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)
    )
    graph = lift(trace(model.eval(), X[:4]))
    context = PassContext(calibration=calibration_of(graph, X.double().numpy()))
    original = PassManager([ExpandMaxPool()]).run(graph, context)
    start = approximated(original)
    network = Network(start, measured_ranges(original, start, X))
    with torch.no_grad():
        torch.testing.assert_close(network.module.eval()(X), outputs(start), rtol=1e-3, atol=1e-3)
    fixed = [m for m in network.activations.values() if not m.coefficients.requires_grad]
    assert all(float(m.bound) < 1e3 for m in network.activations.values()), "compositions grow fast beyond their range"
    trained = [m for m in network.activations.values() if m.coefficients.requires_grad]
    assert fixed and len(trained) == 2


def test_a_quadratic_that_folds_keeps_folding_whatever_training_does() -> None:
    graph = residual(1)
    start = approximated(graph, 2)
    network = Network(start, measured_ranges(graph, start, X))
    with torch.no_grad():
        for module in network.activations.values():
            module.coefficients[:, 2] = 1e-7
    again = olac.approximate(network.module, X.split(40))
    kinds = [type(node.op) for node in again.graph.nodes if isinstance(node.op, Square | Polynomial)]
    assert kinds == [Square] * 3


def test_ranges_are_where_clean_values_are_expected() -> None:
    graph = residual(1)
    start = approximated(graph, 2)
    seen = values(graph, X)
    for name, within in measured_ranges(graph, start, X).items():
        assert isinstance(within, Range)
        x = seen[graph[name].inputs[0]]
        low, high = x.min((0, 2, 3)), x.max((0, 2, 3))
        assert (within.low <= low + 1e-6).all() and (within.high >= high - 1e-6).all()
        assert (within.high - within.low <= 3 * (high - low)).all()
        assert within.bound > 0 and within.largest > 0


def test_a_start_whose_images_all_diverge_is_refused() -> None:
    graph = residual(1)

    def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
        if not isinstance(node.op, Polynomial):
            return None
        c = builder.constant(f"{node.id}.huge", builder.constants[node.op.coefficients] * 1e30)
        return builder.keep(node, inputs, op=replace(node.op, coefficients=c))

    with pytest.raises(CalibrationError, match="higher degree"):
        measured_ranges(graph, approximated(graph).rewrite(step, by="test"), X)


HEADS: dict[str, tuple[Step, ...]] = {
    "none": (),
    "softmax": (Softmax(0),),
    "log_softmax": (LogSoftmax(0),),
    "argmax": (ArgMax(0),),
    "max": (Max(0, True),),
    "normalize": (Normalize(0),),
    "sigmoid of some": (Slice(((1, 4, 2),)), Elementwise("sigmoid")),
    "affine": (HeadAffine((2.0,), (1.0,)), Reshape((5, 1))),
    "exp": (Elementwise("exp"),),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_plain_module_ends_with_the_clients_steps_and_can_be_compiled(head: str) -> None:
    graph = residual(1)
    start = approximated(graph)
    ranges = measured_ranges(graph, start, X)
    module = plain_module(start, OutputHead(HEADS[head]), ranges)
    expected = OutputHead(HEADS[head]).apply(outputs(start).double().numpy())
    with torch.no_grad():
        np.testing.assert_allclose(module(X).double().numpy(), expected, rtol=1e-4, atol=1e-4)
    model = olac.approximate(module, X.split(40))
    np.testing.assert_allclose(model.simulate(X[:20]), expected[:20], rtol=1e-3, atol=1e-3)


def test_a_plain_module_is_an_ordinary_torch_module() -> None:
    graph = residual(1)
    start = approximated(graph)
    module = plain_module(start, OutputHead((Softmax(0),)), measured_ranges(graph, start, X))
    with torch.no_grad():
        expected = module(X)
        for again in (copy.deepcopy(module), _saved(module)):
            torch.testing.assert_close(again(X), expected)
        state = module.state_dict()
        for parameter in module.parameters():
            parameter.add_(1.0)
        assert not torch.allclose(module(X), expected)
        module.load_state_dict({name: value - 1 if "." in name else value for name, value in state.items()})
    assert any(isinstance(m, nn.Conv2d) for m in module.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in module.modules())


def _saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded
