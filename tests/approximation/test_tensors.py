"""Graphs in torch against the ops' own semantics in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from olac.approximation.tensors import TORCH_OPS, chebyshev, run, tensors
from olac.ir.functions import FUNCTIONS
from olac.ir.graph import Graph, GraphBuilder
from olac.ir.ops import (
    Activation,
    Add,
    Affine,
    AveragePool,
    Conv2d,
    Input,
    Linear,
    MaxPool2d,
    Multiply,
    Op,
    Pad,
    Polynomial,
    PolynomialProduct,
    Reshape,
    Slice,
    SparseLinear,
    Square,
)

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


@pytest.mark.parametrize("function", sorted(set(FUNCTIONS) - {"prelu"}))
def test_activations(function: str) -> None:
    count = {"leaky_relu": 1, "hardtanh": 2, "elu": 1, "celu": 1, "softplus": 1, "threshold": 2}
    parameters = (0.3, 0.7)[: count.get(function, 0)] or ((0.4,) if function in ("softshrink", "hardshrink") else ())
    agree(one(Activation(function, parameters)), RANDOM.normal(size=(5, *SHAPE)))


def test_gradients_flow_to_constants() -> None:
    graph = one(Polynomial("p", 2.0))
    weights = tensors(graph)
    weights["p"].requires_grad_()
    run(graph, weights, {"x": torch.randn(3, *SHAPE)})["y"].sum().backward()
    assert weights["p"].grad is not None
    assert float(weights["p"].grad.abs().min()) > 0
