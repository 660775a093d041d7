"""Graphs in torch compared with the ops' semantics in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from olac.approximation.tensors import TORCH_OPS, Weights, chebyshev, run, tensors
from olac.errors import VerificationError
from olac.ir.functions import FUNCTIONS, channel_function, derivative
from olac.ir.graph import Graph, GraphBuilder
from olac.ir.ops import (
    Activation,
    Add,
    Affine,
    Array,
    AveragePool,
    Constants,
    Contract,
    Conv2d,
    Gather,
    Input,
    Linear,
    MaxPool2d,
    Multiply,
    Op,
    Pad,
    Polynomial,
    PolynomialProduct,
    Repeat,
    Reshape,
    Shape,
    Slice,
    SparseLinear,
    Square,
)
from olac.ir.types import Range
from olac.polynomials.domain import singularity

RANDOM = np.random.default_rng(3)
SHAPE = (4, 6, 5)
CONSTANTS = {
    "w": RANDOM.normal(size=(6, 2, 3, 2)),
    "b": RANDOM.normal(size=6),
    "m": RANDOM.normal(size=(3, 120)),
    "mb": RANDOM.normal(size=3),
    "scale": RANDOM.normal(size=(4, 1, 1)),
    "shift": RANDOM.normal(size=(4, 1, 1)),
    "r": RANDOM.normal(size=(2, 6)),
    "c": RANDOM.normal(size=(3, 5)),
    "rows": np.array([0, 1, 1, 3]),
    "columns": np.array([5, 0, 119, 7]),
    "values": np.array([1.0, -2.0, 0.5, 3.0]),
    "sparse_bias": RANDOM.normal(size=4),
    "p": RANDOM.normal(size=(4, 4)),
    "q": RANDOM.normal(size=(1, 6)),
    "s": RANDOM.normal(size=4),
    "moved": np.array([5, -1, 0, 119, 7, 7]),
    "middle": RANDOM.normal(size=(2, 6)),
    "middle_bias": RANDOM.normal(size=2),
}
OPS = [
    Conv2d("w", "b", (2, 1), (1, 0, 2, 1), (1, 2), 2),
    Conv2d("w", None, groups=2),
    Reshape((120,)),
    Affine("scale", "shift"),
    AveragePool("r", "c"),
    SparseLinear("rows", "columns", "values", "sparse_bias", (4, 1, 1)),
    Pad(((1, 0), (0, 2), (3, 1)), 0.5),
    Slice(((0, 4, 2), (1, 6, 1), (0, 5, 3))),
    Gather("moved", (2, 3)),
    Contract("middle", "middle_bias", 1),
    Contract("middle", None, 1),
    Repeat(SHAPE),
    Add(),
    Multiply(),
    Polynomial("p", 2.0),
    Polynomial("q", 3.0),
    Square("s"),
    PolynomialProduct("q", 2.0),
    MaxPool2d((2, 2), (2, 2)),
]


def one(op: Op) -> Graph:
    """A graph of one op on inputs of SHAPE."""
    builder = GraphBuilder(CONSTANTS)
    x = builder.add(Input(SHAPE), name="x")
    y = builder.add(op, [x] * op.arity, name="y")
    return builder.build([y], inputs=[x])


def agree(graph: Graph, images: np.ndarray) -> None:  # type: ignore[type-arg]
    made = run(graph, tensors(graph), {"x": torch.from_numpy(images).float()})[graph.outputs[0]]
    expected = graph.evaluate(images)
    assert made.shape == expected.shape
    assert np.allclose(made.numpy(), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_ops(op: Op) -> None:
    agree(one(op), RANDOM.normal(size=(7, *SHAPE)))


def test_linear() -> None:
    builder = GraphBuilder(CONSTANTS)
    x = builder.add(Input((120,)), name="x")
    y = builder.add(Linear("m", "mb"), [x], name="y")
    agree(builder.build([y], inputs=[x]), RANDOM.normal(size=(7, 120)))


def test_every_op_in_torch_is_tested() -> None:
    assert {type(op) for op in OPS} | {Linear} >= set(TORCH_OPS)


@pytest.mark.parametrize("degree", range(1, 20))
def test_polynomials_of_every_degree(degree: int) -> None:
    builder = GraphBuilder({"p": RANDOM.normal(size=(4, degree + 1))})
    x = builder.add(Input(SHAPE), name="x")
    y = builder.add(Polynomial("p", 2.5), [x], name="y")
    agree(builder.build([y], inputs=[x]), RANDOM.uniform(-2.5, 2.5, size=(5, *SHAPE)))


def test_chebyshev_basis() -> None:
    x = torch.linspace(-1.2, 1.2, 50, dtype=torch.float64)
    expected = np.polynomial.chebyshev.chebvander(x.numpy(), 6)
    assert np.allclose(torch.stack(chebyshev(x, 6), -1).numpy(), expected)


# By function: its parameters and the same function in torch, whose gradients are exact.
ACTIVATIONS: dict[str, tuple[tuple[float, ...], Callable[..., Tensor]]] = {
    "relu": ((), F.relu),
    "leaky_relu": ((0.3,), F.leaky_relu),
    "prelu": ((0.3, -0.5, 0.0, 2.0), lambda x, *slopes: F.prelu(x, torch.tensor(slopes, dtype=x.dtype))),
    "gelu": ((), F.gelu),
    "gelu_tanh": ((), lambda x: F.gelu(x, approximate="tanh")),
    "silu": ((), F.silu),
    "sigmoid": ((), torch.sigmoid),
    "tanh": ((), torch.tanh),
    "hardtanh": ((-0.4, 0.7), F.hardtanh),
    "elu": ((0.3,), F.elu),
    "softplus": ((0.3,), F.softplus),
    "hardsigmoid": ((), F.hardsigmoid),
    "hardswish": ((), F.hardswish),
    "mish": ((), F.mish),
    "selu": ((), F.selu),
    "softsign": ((), F.softsign),
    "celu": ((0.3,), F.celu),
    "log_sigmoid": ((), F.logsigmoid),
    "tanhshrink": ((), F.tanhshrink),
    "softshrink": ((0.4,), F.softshrink),
    "hardshrink": ((0.4,), F.hardshrink),
    "threshold": ((0.3, 0.7), F.threshold),
    "sin": ((), torch.sin),
    "cos": ((), torch.cos),
    "atan": ((), torch.atan),
    "erf": ((), torch.erf),
    "abs": ((), torch.abs),
}
STEPS: dict[str, Callable[[Tensor], Tensor]] = {"sign": torch.sign, "positive": lambda x: (x > 0).to(x.dtype)}
POSITIVE: dict[str, tuple[tuple[float, ...], Callable[..., Tensor]]] = {
    "exp": ((), torch.exp),
    "expm1": ((), torch.expm1),
    "log": ((), torch.log),
    "log1p": ((), torch.log1p),
    "sqrt": ((), torch.sqrt),
    "rsqrt": ((0.1,), lambda x, least: torch.rsqrt(x + least)),
    "reciprocal": ((), torch.reciprocal),
    "power": ((1.5,), torch.pow),
}
"""Functions that are not defined everywhere, or that overflow."""


def gradient(graph: Graph, x: Tensor) -> Tensor:
    """Of the sum of a graph's weighted outputs, by its input."""
    x = x.clone().requires_grad_()
    outputs = run(graph, tensors(graph), {"x": x})[graph.outputs[0]]
    (found,) = torch.autograd.grad((outputs * weighting(outputs)).sum(), x)
    return found


def weighting(outputs: Tensor) -> Tensor:
    return torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).reshape(outputs.shape)


def test_every_activation_is_tested() -> None:
    assert {*ACTIVATIONS, *STEPS, *POSITIVE} == set(FUNCTIONS)


@pytest.mark.parametrize("function", POSITIVE)
def test_functions_of_positive_numbers(function: str) -> None:
    parameters, same = POSITIVE[function]
    graph = one(Activation(function, parameters))
    agree(graph, RANDOM.uniform(0.2, 3.0, size=(5, *SHAPE)))
    x = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.2
    exact = x.clone().requires_grad_()
    outputs = same(exact, *parameters)
    (expected,) = torch.autograd.grad((outputs * weighting(outputs)).sum(), exact)
    assert torch.allclose(gradient(graph, x.float()).double(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("function", STEPS)
def test_steps(function: str) -> None:
    x = RANDOM.normal(size=(5, *SHAPE))
    graph = one(Activation(function))
    assert np.array_equal(graph.evaluate(x), STEPS[function](torch.from_numpy(x)).numpy())
    assert not gradient(graph, torch.from_numpy(x).float()).any()


@pytest.mark.parametrize("function", ACTIVATIONS)
def test_activations(function: str) -> None:
    agree(one(Activation(function, ACTIVATIONS[function][0])), RANDOM.normal(size=(5, *SHAPE)))


@pytest.mark.parametrize("function", ACTIVATIONS)
@pytest.mark.parametrize("ends", [(-1e4, 1e4), (-1e-3, 2e-3), (-3.0, 5.0), (0.0, 0.2), (0.3, 0.3), (-7.0, -2.0)])
def test_activations_have_no_poles(function: str, ends: tuple[float, float]) -> None:
    assert singularity(channel_function(function, ACTIVATIONS[function][0], 0), Range(*ends)) is None


@pytest.mark.parametrize("function", ACTIVATIONS)
def test_activations_have_gradients(function: str) -> None:
    parameters, same = ACTIVATIONS[function]
    x = 4 * torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    x[0, :, 0, 0] = 0.3 + 5e-6  # beside the jump of the threshold
    exact = x.clone().requires_grad_()
    outputs = same(exact, *parameters)
    (expected,) = torch.autograd.grad((outputs * weighting(outputs)).sum(), exact)
    found = gradient(one(Activation(function, parameters)), x)
    assert float(expected.abs().max()) > 0.1
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_function_that_is_registered_from_outside_has_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FUNCTIONS, "snake", lambda slope: lambda x: x + np.sin(slope * x) ** 2)
    x = torch.randn(5, *SHAPE, dtype=torch.float64)
    expected = (1 + 0.7 * torch.sin(2 * 0.7 * x)) * weighting(x)
    assert torch.allclose(gradient(one(Activation("snake", (0.7,))), x), expected, rtol=1e-6, atol=1e-8)


def test_derivatives_at_the_end_of_a_domain_are_to_its_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FUNCTIONS, "power", lambda: lambda x: np.where(x >= 0, x, np.nan) ** 1.5)
    found = derivative("power")(np.array([0.0, 1.0, 4.0]))
    assert np.allclose(found, [0.0, 1.5, 3.0], atol=1e-2)


def test_a_linear_op_from_outside_has_gradients() -> None:
    slice_ = Slice(((0, 4, 2), (1, 6, 1), (0, 5, 3)))
    x = torch.randn(3, *SHAPE)

    class Cut(Slice):
        """Unknown here, and so evaluated by its own matrix."""

    assert Cut not in TORCH_OPS
    assert torch.equal(gradient(one(Cut(slice_.slices)), x), gradient(one(slice_), x))


@dataclass(frozen=True)
class Roll(Op):
    name: ClassVar[str] = "roll_of_a_test"

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        return shapes[0]

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return np.roll(operands[0], 1, axis=1)


def rolled(op: Op, operands: Sequence[Tensor], weights: Weights) -> Tensor:
    return operands[0].roll(1, 1)


def test_an_op_without_a_gradient_is_an_error_only_if_one_has_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = one(Roll()), torch.randn(3, *SHAPE)
    assert torch.equal(run(graph, {}, {"x": x})["y"], x.roll(1, 1))
    with pytest.raises(VerificationError, match=r"roll_of_a_test has no gradient.*TORCH_OPS"):
        gradient(graph, x)
    forms: dict[Any, Any] = TORCH_OPS
    monkeypatch.setitem(forms, Roll, rolled)
    assert torch.equal(gradient(graph, x), weighting(x).roll(-1, 1))


def test_gradients_flow_to_constants() -> None:
    graph = one(Polynomial("p", 2.0))
    weights = tensors(graph)
    weights["p"].requires_grad_()
    run(graph, weights, {"x": torch.randn(3, *SHAPE)})["y"].sum().backward()
    assert weights["p"].grad is not None
    assert float(weights["p"].grad.abs().min()) > 0
