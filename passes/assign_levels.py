"""Give every value its level, noise degree and exact scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from olac.analysis.levels import check_states, required_levels
from olac.analysis.levels import multiplicative_depth as multiplicative_depth  # under its earlier name
from olac.backends.recorder import RecorderEvaluator
from olac.errors import VerificationError
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.states import highest_level, scale_at
from olac.ir.types import CipherState, Stage
from olac.passes.base import Pass, PassContext


@dataclass(frozen=True)
class AssignLevels(Pass):
    """Given: a packed graph.  Result: the same with the state of every value, outputs at level 0 or above.

    Without bootstraps every value has the highest level that its operands allow. With bootstraps it has the lowest
    level that its readers allow, because ops are cheaper there. A run of the kernels on the recorder must then give the
    same states. The rules of `olac.ir.states` are verified after this pass, as after any other.
    """

    name: ClassVar[str] = "assign_levels"
    requires: ClassVar[Stage] = Stage.PACKED
    ensures: ClassVar[Stage] = Stage.LEVELLED

    def run(self, graph: Graph, context: PassContext) -> Graph:
        parameters = context.need_parameters()
        states: dict[str, CipherState] = {}
        needed = required_levels(graph, context.engine.bootstraps(parameters).input_level)

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str:
            operands = [states[i] for i in node.inputs]
            top = highest_level(graph, node, operands, parameters)
            level = top if parameters.bootstrapping is None else needed[node.id]
            if top is None or level is None or not 0 <= level <= top:
                raise VerificationError(f"{node.id} needs more than the {parameters.depth} levels of the chain")
            states[node.id] = CipherState(level, 1, scale_at(node, operands, level, parameters))
            return builder.keep(node, inputs, type=replace(node.type, state=states[node.id]))

        result = graph.rewrite(step, by=self.name, stage=Stage.LEVELLED)
        check_states(result, RecorderEvaluator(parameters))
        return result
