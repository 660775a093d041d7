"""Models of an ensemble become one graph of wider values, with the same outputs and levels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import olac
from olac.analysis.levels import required_levels
from olac.frontend import lift, trace
from olac.frontend.ensemble import Ensemble
from olac.ir.graph import Graph
from olac.ir.ops import Activation, Conv2d, Linear, SparseLinear
from olac.passes.base import PassContext, PassManager
from olac.passes.compose_linear import ComposeLinear
from olac.passes.fold_affine import FoldAffine
from olac.passes.fold_squares import FoldSquares
from olac.passes.insert_placeholders import InsertPlaceholders
from olac.passes.join_models import JoinModels
from tests.approximation.nets import Residual, images
from tests.e2e.test_networks import Lambda, batch_norm

X = images(40, 1)


class OptionA(nn.Module):
    """A residual block whose shortcut takes every second pixel and adds channels of zeros, and a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), batch_norm(4), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1, bias=False), batch_norm(8), nn.ReLU())
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.second(self.first(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        out: Tensor = self.head(F.avg_pool2d(F.relu(y), 4).flatten(1))
        return out


def _products(x: Tensor, depthwise: nn.Module, point: nn.Module, head: nn.Module) -> Tensor:
    y = depthwise(x)
    y = F.silu(point(y)) * y + y * 0.5
    out: Tensor = head(y.flatten(1))
    return out


def products() -> nn.Module:
    parts = {
        "depthwise": nn.Conv2d(3, 6, 3, padding=1, groups=3),
        "point": nn.Conv2d(6, 6, 1, groups=2, bias=False),
        "head": nn.Linear(6 * 64, 4, bias=False),
    }
    return Lambda(_products, **parts)


def _sliced(x: Tensor, conv: nn.Module, head: nn.Module) -> Tensor:
    first, second = F.relu(conv(x)).chunk(2, 1)
    out: Tensor = head((first[:, :, ::2] + second[:, :, 1::2]).flatten(1))
    return out


def sliced() -> nn.Module:
    return Lambda(_sliced, conv=nn.Conv2d(3, 8, 3, padding=1), head=nn.Linear(4 * 32, 3))


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.Tanh(), nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 3))


NETS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: Residual(2),
    "option A": OptionA,
    "products": products,
    "slices": sliced,
    "dense": dense,
}


def ensemble(make: Callable[[], nn.Module], count: int) -> Ensemble:
    torch.manual_seed(5)
    return Ensemble([make() for _ in range(count)]).eval()


def lifted(model: nn.Module, degree: int) -> Graph:
    """With polynomials of random coefficients."""
    graph = lift(trace(model, X[:4]))
    degrees = {node.id: degree for node in graph.nodes if isinstance(node.op, Activation)}
    return PassManager([FoldAffine(), InsertPlaceholders(degrees), FoldSquares()]).run(graph, PassContext())


def levels(graph: Graph) -> int:
    made = PassManager([ComposeLinear()]).run(graph, PassContext())
    return required_levels(made)[made.inputs[0].id]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("degree", [2, 3])
def test_joined_models_give_the_same_outputs_at_the_same_levels(net: str, count: int, degree: int) -> None:
    apart = lifted(ensemble(NETS[net], count), degree)
    context = PassContext()
    joined = PassManager([JoinModels()]).run(apart, context)
    assert context.notes == []
    x = X.double().numpy()
    np.testing.assert_allclose(joined.evaluate(x), apart.evaluate(x), rtol=1e-9, atol=1e-9)
    single = lifted(ensemble(NETS[net], count).models[0], degree)
    assert len(joined.nodes) <= len(single.nodes) + 2  # a scale of the mean
    assert levels(joined) <= levels(single) + 1


def test_graph_modules_are_joined_as_well() -> None:
    """Such as the modules that `olac.finetune` gives."""
    torch.manual_seed(1)
    models = [fx.symbolic_trace(Residual(1).eval()) for _ in range(2)]
    apart, context = lifted(Ensemble(models).eval(), 2), PassContext()
    assert {node.origin.path.split(".")[1] for node in apart.nodes if node.origin.path} == {"0", "1"}
    joined = PassManager([JoinModels()]).run(apart, context)
    assert context.notes == [] and len(joined.nodes) < len(apart.nodes)


def test_convolutions_stay_convolutions() -> None:
    joined = PassManager([JoinModels()]).run(lifted(ensemble(NETS["residual"], 2), 2), PassContext())
    convolutions = [node.op for node in joined.nodes if isinstance(node.op, Conv2d)]
    assert [joined.constants[op.weight].shape[:2] for op in convolutions] == [(16, 3)] + 4 * [(16, 16)]
    for op in convolutions[1:]:  # models take turns and do not read each other
        weight = joined.constants[op.weight]
        assert not weight[::2, 1::2].any() and not weight[1::2, ::2].any() and weight[::2, ::2].all()
    assert not any(isinstance(node.op, SparseLinear) for node in joined.nodes)
    (last,) = [node.op for node in joined.nodes if isinstance(node.op, Linear)]
    assert joined.constants[last.weight].shape == (5, 16)


def test_models_of_different_structure_stay_apart() -> None:
    torch.manual_seed(0)
    models = {
        "another op": Ensemble(
            [nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.Tanh())]
        ),
        "another size": Ensemble(
            [
                dense(),
                nn.Sequential(nn.Flatten(), nn.Linear(192, 9), nn.Tanh(), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 3)),
            ]
        ),
        "no linear end": Ensemble([nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.Tanh()) for _ in range(2)]),
    }
    for name, model in models.items():
        graph, context = lifted(model.eval(), 3), PassContext()
        assert PassManager([JoinModels()]).run(graph, context) is graph, name
        (note,) = context.notes
        assert "one after the other, because" in note


def test_an_ensemble_is_a_list_of_two_models_or_more() -> None:
    with pytest.raises(ValueError, match="two models or more"):
        olac.approximate([dense()], [X])
    with pytest.raises(TypeError, match="Modules, not int"):
        olac.approximate([dense(), 3], [X])


def test_a_list_of_models_is_compiled_as_their_mean() -> None:
    torch.manual_seed(1)
    models = [Residual(1).eval() for _ in range(2)]
    data = [images(128, 3)]
    approximated = olac.approximate(models, data, degree=3, reconstruct=0)
    with torch.no_grad():
        mean = sum((model(X) for model in models), torch.zeros(())) / 2
    ours = approximated.simulate(X)
    assert np.abs(ours - mean.numpy()).mean() < 0.2 * float(mean.std())
    widths = {node.type.shape[0] for node in approximated.graph.nodes if isinstance(node.op, Conv2d)}
    assert widths == {16}
    assert approximated.report.notes == () or not any("ensemble" in note for note in approximated.report.notes)
