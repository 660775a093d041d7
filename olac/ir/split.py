"""Split a lifted model into the part that runs encrypted, and the head, which the client computes."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np

from olac.ir import head
from olac.ir.graph import Graph, Node
from olac.ir.head import OutputHead, Step
from olac.ir.ops import Activation, Affine, Array, AtClient, Reshape, Slice

MONOTONE = frozenset(
    {
        "relu",
        "sigmoid",
        "tanh",
        "hardtanh",
        "elu",
        "softplus",
        "hardsigmoid",
        "selu",
        "softsign",
        "celu",
        "log_sigmoid",
        "tanhshrink",
        "softshrink",
        "hardshrink",
    }
)
"""Functions that never fall, whatever their parameters are."""


def step_of(node: Node, constants: Mapping[str, Array]) -> Step | None:
    """The step that a client can compute in place of a node; None for other ops."""
    op = node.op
    if isinstance(op, AtClient):
        return op.step
    if isinstance(op, Reshape):
        return head.Reshape(op.shape)
    if isinstance(op, Slice):
        return head.Slice(op.slices)
    if isinstance(op, Affine):
        scale, shift = np.broadcast_arrays(constants[op.scale], constants[op.shift])
        return head.Affine(tuple(scale.ravel().tolist()), tuple(shift.ravel().tolist()), scale.shape)
    if isinstance(op, Activation) and op.definition is None and _is_monotone(op):
        # A clamp on one side has an infinite bound, and files hold finite numbers only.
        largest = sys.float_info.max
        return head.Elementwise(op.function, tuple(float(np.clip(p, -largest, largest)) for p in op.parameters))
    return None


def _is_monotone(op: Activation) -> bool:
    if op.function in ("leaky_relu", "prelu"):
        return all(slope >= 0 for slope in op.parameters)
    if op.function == "threshold":
        threshold, value = op.parameters
        return value <= threshold
    return op.function in MONOTONE


def split_head(graph: Graph, client_head: bool = True) -> tuple[Graph, OutputHead]:
    """A lifted graph as the graph of the raw outputs, and the head that makes the model's outputs from them.

    The ops at the end of the graph become steps of the head if they are elementwise functions that never fall, scales
    and shifts, softmax, argmax or changes of shape. Ops that select raw outputs stay in the graph: a client should see
    no raw output that the model's outputs don't depend on.

    Args:
        client_head: if False, only changes of shape become steps of the head.
    """
    ids: list[str] = []
    steps: list[Step] = []
    node = graph[graph.outputs[0]]
    while (step := step_of(node, graph.constants)) is not None:
        if len(steps) == head.MAX_STEPS or not (client_head or isinstance(step, head.Reshape)):
            break
        ids.insert(0, node.id)
        steps.insert(0, step)
        node = graph[node.inputs[0]]
    selected = 0
    for i, step in enumerate(steps):
        if isinstance(step, head.Slice):
            selected = i + 1
        elif not isinstance(step, head.Affine | head.Reshape):
            break
    moved = frozenset(ids[selected:])
    if not moved:
        return graph, OutputHead()
    output = graph[ids[selected]].inputs[0]
    nodes = tuple(node for node in graph.nodes if node.id not in moved)
    names = {name for node in nodes for name in node.op.constant_names()}
    constants = {name: array for name, array in graph.constants.items() if name in names}
    return Graph(nodes, (output,), constants, graph.stage), OutputHead(tuple(steps[selected:]))
