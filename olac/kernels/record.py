"""Run a levelled graph on no data: which primitives it takes, and which rotation steps need keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from olac.backends.recorder import RecorderEvaluator
from olac.ckks.parameters import Parameters
from olac.errors import VerificationError
from olac.ir.graph import Graph, Node
from olac.kernels.base import Kernel, Value
from olac.kernels.execute import build_weightless_kernels, execute


def record(
    graph: Graph,
    parameters: Parameters,
    kernels: Mapping[str, Kernel] | None = None,
    *,
    recorder: RecorderEvaluator | None = None,
    after: Callable[[Node, Value], None] | None = None,
) -> RecorderEvaluator:
    """The recorder (a new one, or the given) after a run of a graph at stage LEVELLED on fresh inputs."""
    used = recorder or RecorderEvaluator(parameters)
    inputs: dict[str, Value] = {}
    for node in graph.inputs:
        if node.type.layout is None or node.type.state is None:
            raise VerificationError(f"{node.id} has no layout or level: graphs are recorded from stage LEVELLED on")
        inputs[node.id] = (used.fresh(node.type.state.level),) * node.type.layout.ciphertexts
    execute(graph, build_weightless_kernels(graph) if kernels is None else kernels, used, inputs, after)
    return used
