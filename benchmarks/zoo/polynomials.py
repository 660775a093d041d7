"""A case with polynomials for its activations: the levels that it takes, and whether olac computes it as torch does.

The reference is the lifted model, which gives what torch gives: evaluated by torch, with the weights and the order of
operations that the model has, but each operation that olac replaces gives what its polynomials give for these values.
So all that the passes fold, compose and scale is held against the model as it was written.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.results import Row
from benchmarks.zoo.measure import COMPARED, relative
from benchmarks.zoo.outcomes import DEGREE
from benchmarks.zoo.subject import Lifted, Subject
from olac.analysis.levels import multiplicative_depth
from olac.approximation import tensors
from olac.compiler import approximate
from olac.ir.graph import Graph, Node
from olac.ir.ops import Add, Input, LinearOp, Multiply, Op, Reshape

CALIBRATION = 64
"""Inputs that ranges and polynomials are fitted on."""
DEGREES = (DEGREE, 7, 15)
DIVERGED = 100.0
"""Outputs that are so many times as large as the model's have diverged."""
EXACT: tuple[type[Op], ...] = (Input, LinearOp, Add, Multiply, Reshape)
"""Ops that no polynomial replaces."""


class NoReferenceError(Exception):
    """The approximated graph has no value that an operation of the model could be replaced by."""


def approximated(subject: Subject, found: Lifted) -> Row:
    """The levels of a subject and the error of `simulate()`, as parts of its row.

    Polynomials are fitted on each layer's values alone, so that no weight changes and little time is taken. Their
    degree is the lowest of `DEGREES` of which the outputs do not diverge.
    """
    case, others = subject.case, subject.images(COMPARED, seed=2)
    largest = float(subject.expected(COMPARED, seed=2).detach().double().abs().max())
    row: Row = {}
    for degree in DEGREES:
        made = approximate(
            subject.model,
            [subject.images(CALIBRATION, seed=1)],
            method="empirical",
            degree=degree,
            activations=dict(case.activations) or None,
            client_head=case.client_head,
        )
        row = {"levels": multiplicative_depth(made.graph), "degree": degree}
        with np.errstate(all="ignore"):
            ours = made.simulate(others)
        if float(np.max(np.abs(ours))) <= DIVERGED * largest:  # not if it is NaN
            break
    else:
        return row | {"approximation": f"polynomials of degree {DEGREES[-1]} diverge"}
    try:
        theirs = found.head.apply(with_polynomials(found.graph, made.graph, others).numpy())
    except NoReferenceError as error:
        return row | {"approximation": f"not compared: {error}"}
    return row | {"error_of_polynomials": relative(ours, torch.as_tensor(theirs))}


def with_polynomials(exact: Graph, graph: Graph, images: torch.Tensor) -> torch.Tensor:
    """The outputs of an exact graph in which polynomials take the place of all that is not linear, a sum or a product.

    They are in double precision.

    Args:
        exact: the lifted graph, without the client's steps.
        graph: the approximated graph, in which values keep their ids; its polynomials are taken.
        images: (n, *input shape).

    Raises:
        NoReferenceError: the approximated graph lacks the result of an operation.
    """
    weights, polynomials = _weights(exact), _Polynomials(graph)
    values: dict[str, torch.Tensor] = {exact.inputs[0].id: images.double()}
    for node in exact.nodes:
        if isinstance(node.op, Input):
            continue
        if isinstance(node.op, EXACT):
            operands = [values[i] for i in node.inputs]
            values[node.id] = tensors.apply(node, operands, weights, exact.constants)
        else:
            values[node.id] = polynomials.value(node, values)
    return values[exact.outputs[0]]


class _Polynomials:
    """Values of an approximated graph, computed from those of the exact one with the same ids."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._nodes = graph, {node.id: node for node in graph.nodes}
        self._weights = _weights(graph)

    def value(self, node: Node, known: dict[str, torch.Tensor]) -> torch.Tensor:
        """What takes the place of a node's result."""
        if node.id not in self._nodes:
            raise NoReferenceError(f"the result of {node.op.name} {node.id} is part of another operation")
        return self._computed(node.id, known, {}) * self._nodes[node.id].type.unit

    def _computed(self, name: str, known: dict[str, torch.Tensor], done: dict[str, torch.Tensor]) -> torch.Tensor:
        """The value of a node in its unit, from the nearest values that are known."""
        if name not in done:
            node = self._nodes[name]
            if name in known:
                done[name] = _in_unit(node, known[name])
            else:
                operands = [self._computed(operand, known, done) for operand in node.inputs]
                done[name] = tensors.apply(node, operands, self._weights, self._graph.constants)
        return done[name]


def _weights(graph: Graph) -> dict[str, torch.Tensor]:
    """All constants of a graph, in double precision: polynomials of high degree make much of rounding errors."""
    return {name: torch.from_numpy(np.array(value, dtype=np.float64)) for name, value in graph.constants.items()}


def _in_unit(node: Node, value: torch.Tensor) -> torch.Tensor:
    if isinstance(node.op, Input):
        value = torch.from_numpy(node.op.encode(value.numpy()))
    return value / node.type.unit
