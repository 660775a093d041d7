"""Levels of values: how many a graph needs, and whether kernels give the states in a levelled graph's types."""

from __future__ import annotations

from collections.abc import Callable

from olac.backends.recorder import RecorderEvaluator
from olac.errors import VerificationError
from olac.ir.graph import Graph, Node
from olac.ir.ops import Bootstrap
from olac.kernels.base import Value
from olac.kernels.record import record


def multiplicative_depth(graph: Graph) -> int:
    """Levels that a fresh input needs; a graph at stage POLYNOMIAL or later."""
    return required_levels(graph)[graph.inputs[0].id]


def required_levels(graph: Graph, input_level: int = 0, levels: Callable[[Node], int] | None = None) -> dict[str, int]:
    """The least level of every value: 0 for outputs, `input_level` for operands of bootstraps.

    `levels(node)` is the number of levels that a node takes; by default those of its op and its lowering.
    """
    taken = levels or (lambda node: node.levels(graph.constants))
    needed = dict.fromkeys((node.id for node in graph.nodes), 0)
    for node in reversed(graph.nodes):
        operand = input_level if isinstance(node.op, Bootstrap) else needed[node.id] + taken(node)
        for name in node.inputs:
            needed[name] = max(needed[name], operand)
    return needed


def check_states(graph: Graph, recorder: RecorderEvaluator) -> None:
    """Derive all states by running the kernels; `VerificationError` if a type has another state."""

    def compare(node: Node, value: Value) -> None:
        layout, claimed = node.layout, node.state
        if len(value) != layout.ciphertexts:
            raise VerificationError(f"{node.id} has {len(value)} ciphertexts, its layout says {layout.ciphertexts}")
        for part in value:
            same = part.state.level == claimed.level and part.state.noise_degree == claimed.noise_degree
            if not same or abs(part.state.scale / claimed.scale - 1) > 1e-9:
                raise VerificationError(f"{node.id} is at {part.state}, its type says {claimed}")

    record(graph, recorder.parameters, recorder=recorder, after=compare)
