"""Levels of values: how many a graph needs, and whether those of a levelled graph suffice."""

from __future__ import annotations

from collections.abc import Callable

from olac.analysis.bootstrap_problem import WIDEST, repeats
from olac.backends.recorder import RecorderEvaluator
from olac.ckks.bootstrapping import bootstrap_model
from olac.ckks.parameters import Parameters
from olac.errors import VerificationError
from olac.ir.graph import Graph, Node, describe
from olac.ir.ops import Bootstrap
from olac.kernels.base import Value
from olac.kernels.record import record


def multiplicative_depth(graph: Graph) -> int:
    """Levels that a fresh input needs; a graph at stage POLYNOMIAL or later."""
    return required_levels(graph)[graph.inputs[0].id]


def required_levels(graph: Graph, input_level: int = 0, levels: Callable[[Node], int] | None = None) -> dict[str, int]:
    """The least level of every value: 0 for outputs, `input_level` for what is bootstrapped.

    `levels(node)` stands in for what the node takes as it is lowered so far.
    """
    taken = levels or (lambda node: node.levels(graph.constants))
    needed = dict.fromkeys((node.id for node in graph.nodes), 0)
    for node in reversed(graph.nodes):
        operand = input_level if isinstance(node.op, Bootstrap) else needed[node.id] + taken(node)
        for name in node.inputs:
            needed[name] = max(needed[name], operand)
    return needed


def check_states(graph: Graph, recorder: RecorderEvaluator) -> None:
    """Derive all states by running the kernels; `VerificationError` where a type says otherwise."""

    def compare(node: Node, value: Value) -> None:
        layout, claimed = node.type.layout, node.type.state
        assert layout is not None and claimed is not None
        if len(value) != layout.ciphertexts:
            raise VerificationError(f"{node.id} has {len(value)} ciphertexts, its layout says {layout.ciphertexts}")
        for part in value:
            same = part.state.level == claimed.level and part.state.noise_degree == claimed.noise_degree
            if not same or abs(part.state.scale / claimed.scale - 1) > 1e-9:
                raise VerificationError(f"{node.id} is at {part.state}, its type says {claimed}")

    record(graph, recorder.parameters, recorder=recorder, after=compare)


def check_levels(graph: Graph, parameters: Parameters) -> None:
    """Derive from a levelled graph alone that its levels suffice; it knows nothing of how they were chosen.

    Raises:
        VerificationError: a level below zero or above what the operands, a bootstrap or the chain give; a bootstrap
            below the level that it takes, without a set-up or with another correction factor, of values beyond
            [-1, 1], or of slots that do not repeat as its set-up asks.
    """
    boots = parameters.bootstrapping
    for node in graph.nodes:
        levels = [state.level for name in node.inputs if (state := graph[name].type.state) is not None]
        if node.type.state is None or len(levels) < len(node.inputs):
            raise VerificationError(f"{node.id} or an operand of it has no level")
        top = parameters.depth if not levels else min(levels) - node.levels(graph.constants)
        problem = None
        if isinstance(node.op, Bootstrap):
            kind = graph[node.inputs[0]].type
            if boots is None:
                raise VerificationError(f"{node.id} under parameters without bootstrapping")
            if top < boots.input_level:
                problem = f"bootstraps at level {top}, {boots.input_level} is the least"
            elif node.op.correction != boots.correction:
                problem = f"bootstraps with a correction factor of {node.op.correction}, not {boots.correction}"
            elif kind.bound is not None and kind.bound.magnitude > kind.unit * WIDEST:
                problem = f"bootstraps values up to {kind.bound.magnitude / kind.unit:.3g}, beyond [-1, 1]"
            elif kind.layout is not None and not repeats(kind.layout, bootstrap_model(parameters)):
                problem = f"bootstraps a value that does not repeat after 2^{parameters.log_bootstrap_slots} slots"
            top = boots.output_level
        if not 0 <= node.type.state.level <= top:
            problem = problem or f"is at level {node.type.state.level}, outside 0 ... {top}"
        if problem:
            raise VerificationError(
                f"{node.id} {problem}:\n    {describe(node, graph.constants)}\n    from {node.origin}"
            )
