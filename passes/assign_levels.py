"""Give every value its level, noise degree and exact scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from olac.backends.recorder import RecorderEvaluator
from olac.errors import VerificationError
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Bootstrap, Input, Multiply, Reshape, Square
from olac.ir.types import CipherState, Stage
from olac.kernels.base import Value
from olac.kernels.record import record
from olac.parameters import FIXED
from olac.passes.base import Pass, PassContext
from olac.passes.place_bootstraps import check_levels


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


@dataclass(frozen=True)
class AssignLevels(Pass):
    """Given: a packed graph.  Result: the same with the state of every ciphertext, the output at level 0 or above.

    Levels go down from the fresh input; a sum is at the lower of its operands' levels. With bootstraps every value is
    as low as what follows needs, for everything is cheaper there, and operands are dropped to where they are read. The
    states are then derived anew by running the kernels on the recorder, and must agree.
    """

    name: ClassVar[str] = "assign_levels"
    requires: ClassVar[Stage] = Stage.PACKED
    ensures: ClassVar[Stage] = Stage.LEVELLED

    def run(self, graph: Graph, context: PassContext) -> Graph:
        parameters = context.need_parameters()
        states: dict[str, CipherState] = {}
        boots = parameters.bootstrapping
        needed = required_levels(graph, 0 if boots is None else boots.input_level)

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str:
            operands = [states[i] for i in node.inputs]
            if boots is not None:
                level = needed[node.id]
            elif isinstance(node.op, Input):
                level = parameters.depth
            else:
                level = min(o.level for o in operands) - node.levels(graph.constants)
            top = boots.output_level if boots is not None and isinstance(node.op, Bootstrap) else parameters.depth
            if not 0 <= level <= top:
                raise VerificationError(f"{node.id} needs more than the {top} levels of the chain")
            scale = parameters.scale(level)
            if isinstance(node.op, Multiply | Square) and parameters.technique == FIXED:
                scale = operands[0].scale * operands[-1].scale / parameters.primes[level + 1]
            elif isinstance(node.op, Reshape):
                scale = operands[0].scale
            states[node.id] = CipherState(level, 1, scale)
            return builder.keep(node, inputs, type=replace(node.type, state=states[node.id]))

        result = graph.rewrite(step, by=self.name, stage=Stage.LEVELLED)
        check_levels(result, parameters)
        check_states(result, RecorderEvaluator(parameters))
        return result


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
