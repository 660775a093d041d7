"""Effects of single activations, and OLA's sensitivities, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from olac.analysis.degree_choice import functions
from olac.approximation.effects import effects, sensitivities
from olac.approximation.tensors import TORCH_OPS, Weights
from olac.errors import VerificationError
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Activation, Input, Linear, Polynomial, Slice
from olac.polynomials.fit import Fit, fit
from olac.polynomials.modes import Channel, Compensated, Empirical
from tests.approximation.nets import activations, error, folded, histograms, images, residual

IMAGES = images(70, 4)


def replaced(graph: Graph, name: str, made: Fit) -> Graph:
    def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
        if node.id != name:
            return None
        return builder.add(Polynomial(builder.constant("c", made.coefficients), made.half_width), inputs, name=name)

    return graph.rewrite(step, by="test")


@pytest.mark.parametrize("method", [Channel(), Empirical()])
def test_effects_are_those_of_one_activation_replaced(method: Channel | Empirical) -> None:
    graph = residual(2)
    seen = histograms(graph, IMAGES)
    fits = {n: [fit(functions(graph[n]), seen[n], method, d) for d in (2, 3, 7)] for n in activations(graph)}
    lines: list[str] = []
    found = effects(graph, IMAGES, fits, lines.append)
    assert list(found) == activations(graph)
    for name, row in found.items():
        wanted = [error(graph, replaced(graph, name, one), IMAGES) for one in fits[name]]
        assert row == pytest.approx(wanted, rel=1e-2)
        assert row[0] > row[2]
    assert lines[-1] == "measuring activations: 10 of 10"  # two chunks of images


def test_exact_fits_have_no_effect() -> None:
    torch.manual_seed(0)
    graph = folded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)), IMAGES[:2])
    (name,) = activations(graph)
    zero = Fit(np.zeros((1, 2)), 1.0, 0.0, 0.0, 0.0, -1.0, 1.0)
    line = Fit(np.array([[0.0, 1.0]]), 1.0, 0.0, 0.0, 0.0, -1.0, 1.0)
    positive = IMAGES.abs()
    bias = graph.constants[graph[graph[name].inputs[0]].op.bias]  # type: ignore[attr-defined]
    raised = Graph(graph.nodes, graph.outputs, {**graph.constants, graph["m0"].op.bias: bias + 50.0})  # type: ignore[attr-defined]
    (row,) = effects(raised, positive, {name: [line, zero]}).values()
    assert row[0] < 1e-9 < row[1]


def test_only_what_is_asked_for_is_measured() -> None:
    graph = residual(1)
    seen, name = histograms(graph, IMAGES), activations(graph)[1]
    fits = {name: [fit(functions(graph[name]), seen[name], Compensated(), 3)]}
    assert list(effects(graph, IMAGES, fits)) == [name]


class Tiny(nn.Module):
    """Two activations, one of which two layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.conv(x))
        y = torch.sigmoid(self.second(x) * 2)
        return self.head((x + y).mean((2, 3)))


def test_sensitivities_are_squared_gradients() -> None:
    torch.manual_seed(3)
    model = Tiny().eval()
    graph = folded(model, IMAGES[:2])
    first, second = activations(graph)
    found = sensitivities(graph, IMAGES)
    totals = np.zeros(2)
    for image in IMAGES:
        a = torch.relu(model.conv(image[None]))
        b = torch.sigmoid(model.second(a) * 2)
        outputs = model.head((a + b).mean((2, 3)))
        loss = F.cross_entropy(outputs, outputs.argmax(1))
        totals += [float(g.square().sum()) for g in torch.autograd.grad(loss, [a, b])]
    assert found[first] == pytest.approx(totals[0] / len(IMAGES), rel=1e-3)
    assert found[second] == pytest.approx(totals[1] / len(IMAGES), rel=1e-3)
    assert list(found) == [first, second]
    assert found[first] != pytest.approx(found[second], rel=0.05)


def test_an_activation_on_the_output_has_a_sensitivity_too() -> None:
    torch.manual_seed(3)
    graph = folded(nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.Tanh()), IMAGES[:2])
    (name,) = activations(graph)
    x = IMAGES.double()
    outputs = torch.from_numpy(graph.evaluate(x.numpy()))
    change = outputs.softmax(1) - F.one_hot(outputs.argmax(1), 3)
    assert sensitivities(graph, IMAGES)[name] == pytest.approx(float(change.square().sum(1).mean()), rel=1e-4)


def test_an_activation_that_is_cut_away_has_a_sensitivity_of_zero() -> None:
    b = GraphBuilder({"w": np.array([[1.0, -1.0, 0.5], [0.0, 0.0, 0.0]])})
    x = b.add(Input((3,)), name="x")
    y = b.add(Linear("w"), [b.add(Activation("hardswish"), [x], name="unused")], name="hidden")
    y = b.add(Activation("mish"), [b.add(Slice(((1, 2, 1),)), [y], name="cut")], name="used")
    found = sensitivities(b.build([y]), torch.randn(5, 3), classes=False)
    assert found["unused"] == 0.0 < found["used"]


def detached(op: Linear, x: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
    return F.linear(x[0].detach(), weights[op.weight])


def test_a_gradient_that_is_lost_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    b = GraphBuilder({"w": np.ones((2, 3))})
    x = b.add(Input((3,)), name="x")
    y = b.add(Linear("w"), [b.add(Activation("relu"), [x], name="lost")], name="hidden")
    graph = b.build([b.add(Activation("tanh"), [y], name="end")], inputs=[x])
    forms: dict[Any, Any] = TORCH_OPS
    monkeypatch.setitem(forms, Linear, detached)
    with pytest.raises(VerificationError, match="lost: no gradient"):
        sensitivities(graph, torch.randn(5, 3), classes=False)


def test_effects_that_are_known_well_take_no_more_images(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = residual(1)
    seen, many = histograms(graph, IMAGES), images(64 * 4, 8)
    fits = {n: [fit(functions(graph[n]), seen[n], Channel(), d) for d in (2, 7)] for n in activations(graph)}
    lines: list[str] = []
    exact = effects(graph, many, fits)
    few, first = effects(graph, many, fits, lines.append, within=100.0), effects(graph, many[:64], fits)
    ratios = [a / b for name in fits for a, b in zip(few[name], first[name], strict=True)]
    assert ratios == pytest.approx([ratios[0]] * 6, rel=1e-4), "only the outputs' variance is that of all images"
    assert lines[-1] == "measuring activations: 3 of 12", "one chunk of four"
    rough = effects(graph, many, fits, within=0.1)
    for name, row in rough.items():
        assert row == pytest.approx(exact[name], rel=0.4) and row != exact[name]
