"""Which ops of a lifted model become steps of the client, and which stay in the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from olac.errors import UnsupportedModelError
from olac.frontend import check, lift, trace
from olac.ir.ops import AtClient
from olac.ir.split import split_head

IMAGES = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))


class Ends(nn.Module):
    """Two linear layers and a last function."""

    def __init__(self, end: Callable[[Any], Any], outputs: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.end = nn.Linear(6, 5), nn.Linear(5, outputs), end

    def forward(self, x: Any) -> Any:
        return self.end(self.second(self.first(x) ** 2))


def split(model: nn.Module, client_head: bool = True) -> tuple[str, tuple[str, ...], tuple[int, ...]]:
    """The graph's last op, the head's steps and the outputs' shape; graph and head together compute the model."""
    graph, head = split_head(lift(trace(model.eval(), IMAGES), client_head), client_head)
    with torch.no_grad():
        expected = model(IMAGES).numpy()
    ours = head.apply(graph.evaluate(IMAGES.double().numpy()))
    assert ours.shape == expected.shape
    if head.decides:
        np.testing.assert_array_equal(ours, expected)
    else:
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    last = graph[graph.outputs[0]]
    assert head.output_shape(last.type.shape) == expected.shape[1:]
    named = {name for node in graph.nodes for name in node.op.constant_names()}
    assert named == set(graph.constants)
    return last.op.name, head.names, head.output_shape(last.type.shape)


@pytest.mark.parametrize(
    ("end", "names", "shape"),
    [
        (nn.Identity(), (), (4,)),
        (nn.Softmax(1), ("softmax",), (4,)),
        (nn.Softmax(), ("softmax",), (4,)),
        (nn.LogSoftmax(-1), ("log_softmax",), (4,)),
        (nn.Softmin(1), ("affine", "softmax"), (4,)),
        (lambda x: F.softmax(x / 2.5, dim=1), ("affine", "softmax"), (4,)),
        (lambda x: x.log_softmax(1).exp(), ("log_softmax", "exp"), (4,)),
        (lambda x: torch.log_softmax(x, 1), ("log_softmax",), (4,)),
        (lambda x: F.softmin(x, 1), ("affine", "softmax"), (4,)),
        (lambda x: x.softmax(1)[:, 1], ("softmax", "slice", "reshape"), ()),
        (lambda x: x.view(-1, 4, 1, 1).softmax(1).flatten(1), ("reshape", "softmax", "reshape"), (4,)),
        (lambda x: nn.Softmax2d()(x.view(-1, 4, 1, 1)), ("reshape", "softmax"), (4, 1, 1)),
        (lambda x: x.argmax(1), ("argmax", "reshape"), ()),
        (lambda x: torch.argmax(x.softmax(1), 1, keepdim=True), ("softmax", "argmax"), (1,)),
        (lambda x: x.argmin(1), ("affine", "argmax", "reshape"), ()),
        (lambda x: x.max(1)[1], ("argmax", "reshape"), ()),
        (lambda x: torch.max(x, dim=1, keepdim=True).indices, ("argmax",), (1,)),
        (lambda x: x.softmax(1).max(1).values, ("softmax", "max", "reshape"), ()),
        (lambda x: x.amax(1), ("max", "reshape"), ()),
        (lambda x: 2 * x.max(1).values, ("max", "affine", "reshape"), ()),
        (lambda x: x.argmax(1).unsqueeze(1), ("argmax",), (1,)),
        (F.normalize, ("normalize",), (4,)),
        (lambda x: F.normalize(x, p=1.0, dim=-1), ("normalize",), (4,)),
        (nn.Sigmoid(), ("sigmoid",), (4,)),
        (nn.LogSigmoid(), ("log_sigmoid",), (4,)),
        (nn.Softplus(2.0), ("softplus",), (4,)),
        (nn.ReLU(), ("relu",), (4,)),
        (nn.PReLU(4), ("prelu",), (4,)),
        (nn.LeakyReLU(0.2), ("leaky_relu",), (4,)),
        (lambda x: x.clamp(min=0.1), ("hardtanh",), (4,)),
        (lambda x: x.exp() - 1, ("exp", "affine"), (4,)),
        (torch.expm1, ("expm1",), (4,)),
        (lambda x: 3 * torch.tanh(x / 4) + 1, ("affine", "tanh", "affine", "affine"), (4,)),
        (lambda x: x * torch.tensor([1.0, 2, 3, 4]) + 100, ("affine", "affine"), (4,)),
        (nn.BatchNorm1d(4), ("affine",), (4,)),
    ],
)
def test_last_steps_go_to_the_client(end: Callable[[Any], Any], names: tuple[str, ...], shape: tuple[int, ...]) -> None:
    if isinstance(end, nn.BatchNorm1d):
        end.running_mean, end.running_var = torch.arange(4.0), torch.arange(1.0, 5.0)
    assert split(Ends(end)) == ("linear", names, shape)


@pytest.mark.parametrize(
    "end",
    [
        lambda x: x.squeeze(1),
        lambda x: x.squeeze(),
        lambda x: x.view(-1),
        lambda x: x.flatten(),
        lambda x: x[:, 0],
        lambda x: x.select(1, 0),
        lambda x: x.reshape(len(x)),
        lambda x: x.sum(1),
        lambda x: x.mean(-1),
        lambda x: x.squeeze(1).unsqueeze(1).squeeze(-1),
    ],
)
@pytest.mark.parametrize("client_head", [True, False])
def test_one_number_an_image(end: Callable[[Any], Any], client_head: bool) -> None:
    assert split(Ends(end, 1), client_head) == ("linear", ("reshape",), ())


def test_numbers_without_an_axis_are_computed_with() -> None:
    def end(x: Any) -> Any:
        number = x.mean(1)
        return torch.sigmoid((number * 2 - x[:, 0]) * number + 1) * 3

    assert split(Ends(end)) == ("multiply", ("affine", "sigmoid", "affine", "reshape"), ())
    assert split(Ends(lambda x: end(x).unsqueeze(1))) == ("multiply", ("affine", "sigmoid", "affine"), (1,))
    assert split(Ends(lambda x: (x**2).sum(1))) == ("linear", ("reshape",), ())


def test_shapes_go_to_the_client_too() -> None:
    assert split(Ends(lambda x: x.view(-1, 2, 2))) == ("linear", ("reshape",), (2, 2))
    assert split(Ends(lambda x: x.unsqueeze(1))) == ("linear", ("reshape",), (1, 4))
    assert split(Ends(lambda x: x.softmax(1).view(-1, 2, 2))) == ("linear", ("softmax", "reshape"), (2, 2))


@pytest.mark.parametrize(
    ("end", "last", "names"),
    [
        (lambda x: torch.sigmoid(x) * x, "multiply", ()),
        (nn.SiLU(), "activation", ()),
        (nn.GELU(), "activation", ()),
        (nn.LeakyReLU(-0.5), "activation", ()),
        (nn.Threshold(0.0, 1.0), "activation", ()),
        (lambda x: torch.sigmoid(x) + x, "add", ()),
        (lambda x: torch.sigmoid(x) ** 2, "multiply", ()),
        (lambda x: torch.tanh(torch.sigmoid(x) + x), "add", ("tanh",)),
        (lambda x: torch.relu(x).softmax(1), "linear", ("relu", "softmax")),
        (lambda x: F.silu(x).argmax(1), "activation", ("argmax", "reshape")),
        (lambda x: x[:, 1:3], "slice", ()),
        (lambda x: x[:, 1], "slice", ("reshape",)),
        (lambda x: (2 * x)[:, 1:3].softmax(1), "slice", ("softmax",)),
        (lambda x: torch.sigmoid(x)[:, 1:3], "linear", ("sigmoid", "slice")),
    ],
)
def test_what_is_no_last_step_stays(end: Callable[[Any], Any], last: str, names: tuple[str, ...]) -> None:
    assert split(Ends(end))[:2] == (last, names)


def test_a_function_that_the_caller_gave_stays() -> None:
    def own(x: Any) -> Any:
        return torch.atan(x)

    graph, head = split_head(lift(trace(Ends(own), IMAGES, {own: None})))
    assert graph[graph.outputs[0]].op.name == "activation" and not head


@pytest.mark.parametrize(
    ("end", "last", "names"),
    [
        (nn.Sigmoid(), "activation", ()),
        (lambda x: 2 * x, "affine", ()),
        (lambda x: torch.sigmoid(x).unsqueeze(1), "activation", ("reshape",)),
        (lambda x: torch.sigmoid(x)[:, 1], "slice", ("reshape",)),
    ],
)
def test_without_a_head_only_shapes_go(end: Callable[[Any], Any], last: str, names: tuple[str, ...]) -> None:
    assert split(Ends(end), client_head=False)[:2] == (last, names)


@pytest.mark.parametrize("end", [lambda x: x.argmax(1), lambda x: x.max(1).indices])
def test_what_only_clients_compute_needs_a_head(end: Callable[[Any], Any]) -> None:
    assert not check(Ends(end), IMAGES)
    (found,) = check(Ends(end), IMAGES, client_head=False)
    assert found.problem.endswith("is not supported")
    with pytest.raises(UnsupportedModelError):
        lift(trace(Ends(end), IMAGES), client_head=False)


WITHIN: list[Callable[[Any], Any]] = [
    lambda x: x.softmax(1) ** 2,
    lambda x: F.linear(x.softmax(1), torch.ones(2, 4)),
    lambda x: F.silu(x.exp()),
    lambda x: F.normalize(x) ** 3,
    lambda x: x.softmax(1) + x,
    lambda x: x.max(1).values[:, None] * x,
]


@pytest.mark.parametrize("end", WITHIN)
def test_what_clients_compute_at_the_end_is_computed_encrypted_elsewhere(end: Callable[[Any], Any]) -> None:
    model = Ends(end)
    graph, head = split_head(lift(trace(model, IMAGES)))
    assert not any(isinstance(node.op, AtClient) for node in graph.nodes)
    with torch.no_grad():
        expected = model(IMAGES).double().numpy()
    assert np.allclose(head.apply(graph.evaluate(IMAGES.double().numpy())), expected, atol=1e-5)


@pytest.mark.parametrize("end", [nn.Softmax(1), torch.exp])
def test_softmax_needs_no_head(end: Callable[[Any], Any]) -> None:
    graph = lift(trace(Ends(end), IMAGES), client_head=False)
    assert not any(isinstance(node.op, AtClient) for node in graph.nodes)


@pytest.mark.parametrize(
    "end",
    [
        lambda x: [p := x.softmax(1), p.argmax(1) + p[:, 0]][1],
        lambda x: 2 * x.argmax(1),
        lambda x: torch.sigmoid(x.argmax(1, keepdim=True)),
        lambda x: x.topk(2).values.softmax(1),
    ],
)
def test_what_only_clients_compute_is_refused_elsewhere(end: Callable[[Any], Any]) -> None:
    found = check(Ends(end), IMAGES)
    assert found
    for node in found:
        assert "last steps" in node.problem or "topk" in node.problem
        assert node.source.startswith("test_split.py") and node.advice


@pytest.mark.parametrize("end", [lambda x: x.flatten(), lambda x: x.view(-1), lambda x: x.t(), lambda x: x.softmax(0)])
def test_what_mixes_images_is_refused(end: Callable[[Any], Any]) -> None:
    assert check(Ends(end), IMAGES)
