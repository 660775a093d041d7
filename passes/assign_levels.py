"""Give every value its level, noise degree and exact scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from olac.analysis.levels import check_levels, check_states, required_levels
from olac.analysis.levels import multiplicative_depth as multiplicative_depth  # under its earlier name
from olac.backends.recorder import RecorderEvaluator
from olac.ckks.bootstrapping import bootstrap_model
from olac.ckks.primes import FIXED
from olac.errors import VerificationError
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Bootstrap, Input, Multiply, Reshape, Square
from olac.ir.types import CipherState, Stage
from olac.passes.base import Pass, PassContext


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
        bootstraps = bootstrap_model(parameters)
        needed = required_levels(graph, bootstraps.input_level)

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str:
            operands = [states[i] for i in node.inputs]
            if parameters.bootstrapping is not None:
                level = needed[node.id]
            elif isinstance(node.op, Input):
                level = parameters.depth
            else:
                level = min(o.level for o in operands) - node.levels(graph.constants)
            top = bootstraps.output_level if isinstance(node.op, Bootstrap) else parameters.depth
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
