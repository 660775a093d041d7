"""Run a levelled graph on no data, to find the primitives that it takes and the rotation steps that need keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from olac.backends.recorder import RecorderEvaluator
from olac.ckks.parameters import Parameters
from olac.ir.graph import Graph, Node
from olac.ir.layout import TensorLayout
from olac.kernels.base import Kernel, Value
from olac.kernels.execute import build_weightless_kernels, execute
from olac.kernels.lanes import in_lanes


def record(
    graph: Graph,
    parameters: Parameters,
    kernels: Mapping[str, Kernel] | None = None,
    *,
    recorder: RecorderEvaluator | None = None,
    after: Callable[[Node, Value], None] | None = None,
) -> RecorderEvaluator:
    """The recorder (a new one if none is given) after a run of a graph at stage LEVELLED on fresh inputs."""
    used = recorder or RecorderEvaluator(parameters)
    inputs = {node.id: (used.fresh(node.state.level),) * node.layout.ciphertexts for node in graph.inputs}
    execute(graph, build_weightless_kernels(graph) if kernels is None else kernels, used, inputs, after)
    return used


def record_kernel(kernel: Kernel, parameters: Parameters, operands: Sequence[TensorLayout]) -> RecorderEvaluator:
    """The recorder after a run of a kernel on fresh operands of these layouts, at the top of the chain."""
    recorder = RecorderEvaluator(parameters)
    evaluator = in_lanes(recorder, operands[0].batch)
    kernel.run(evaluator, [(recorder.fresh(parameters.depth),) * layout.ciphertexts for layout in operands])
    return recorder
