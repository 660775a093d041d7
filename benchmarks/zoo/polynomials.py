"""A case with polynomials for its activations: the levels that it takes, and whether olac computes it as torch does.

Torch computes the reference: the model's own code, as it was traced and with its own weights, in which each operation
that olac replaces by polynomials gives what these polynomials give for the values that torch has there. So the linear
parts of the approximated graph, the units of its values and what its passes folded are held against torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from benchmarks.results import Row
from benchmarks.zoo.cases import Case
from benchmarks.zoo.measure import COMPARED, Lifted, example, relative
from benchmarks.zoo.outcomes import DEGREE
from olac.analysis.levels import multiplicative_depth
from olac.approximation import tensors
from olac.compiler import approximate
from olac.frontend import Traced
from olac.ir.graph import Graph, Node
from olac.ir.ops import Activation, Add, Input, LinearOp, Multiply, Op, Reshape

CALIBRATION = 64
"""Inputs that ranges and polynomials are fitted on."""
EXACT: tuple[type[Op], ...] = (Input, LinearOp, Add, Multiply, Reshape)
"""Ops that no polynomial replaces."""


class NoReferenceError(Exception):
    """The approximated graph has no value that an operation of the model could be replaced by."""


def approximated(case: Case, model: nn.Module, found: Lifted) -> Row:
    """The levels of a case and the error of `simulate()`, as parts of its row.

    Polynomials are fitted on each layer's values alone, so that no weight changes and little time is taken.
    """
    made = approximate(
        model,
        [example(case.inputs(CALIBRATION, seed=1))],
        method="empirical",
        degree=DEGREE,
        activations=dict(case.activations) or None,
        client_head=case.client_head,
    )
    row: Row = {"levels": multiplicative_depth(made.graph)}
    others = case.inputs(COMPARED, seed=2)
    ours = made.simulate(example(others))
    try:
        theirs = _WithPolynomials(found.traced, found.graph, made.graph).run(*others)
    except NoReferenceError as error:
        return row | {"approximation": f"not compared: {error}"}
    return row | {"error_of_polynomials": relative(ours, theirs)}


class _WithPolynomials(fx.Interpreter):
    """Runs a traced model with polynomials in place of the operations that are not exact.

    Args:
        exact: the lifted graph, without the client's steps.
        graph: the approximated graph, in which values keep their ids.
    """

    def __init__(self, traced: Traced, exact: Graph, graph: Graph) -> None:
        super().__init__(traced.module)
        self._results, self._lifted = traced.results, traced.lifted
        self._exact, self._graph = {node.id: node.op for node in exact.nodes}, {node.id: node for node in graph.nodes}
        self._constants = graph.constants
        self._weights = tensors.tensors(graph)
        self._known: dict[str, torch.Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        made = [self._exact[i] for i in self._lifted.get(node.name, ()) if i in self._exact]
        result = self._results.get(node.name)
        if all(isinstance(op, EXACT) for op in made):
            value = super().run_node(node)
        elif isinstance(result, str) and result in self._graph:
            value = self._computed(result, {}) * self._graph[result].type.unit
        else:
            replaced = ", ".join(op.function if isinstance(op, Activation) else op.name for op in made)
            raise NoReferenceError(f"{replaced} is part of another operation")
        if isinstance(result, str) and isinstance(value, torch.Tensor) and result in self._graph:
            self._known.setdefault(result, value)
        return value

    def _computed(self, name: str, done: dict[str, torch.Tensor]) -> torch.Tensor:
        """The value of a node of the approximated graph, in its unit, from the nearest values that torch has."""
        if name not in done:
            node = self._graph[name]
            if name in self._known:
                done[name] = _encoded(node, self._known[name])
            else:
                operands = [self._computed(operand, done) for operand in node.inputs]
                done[name] = tensors.apply(node, operands, self._weights, self._constants)
        return done[name]


def _encoded(node: Node, value: torch.Tensor) -> torch.Tensor:
    if isinstance(node.op, Input):
        value = torch.from_numpy(node.op.encode(value.double().numpy())).float()
    return value.reshape(len(value), *node.type.shape) / node.type.unit
