"""What the sweeps over images share: how far outputs are off, and how many images fit in memory."""

from __future__ import annotations

import networkx as nx
import torch

from olac.ir.functions import Function, activation
from olac.ir.graph import Graph, Node
from olac.ir.ops import Activation

Tensor = torch.Tensor

MEMORY = 3e9
"""Bytes that the values of all images may take while a sweep runs; fewer images are used where they would take more."""
WORST = 1e4
"""An image counts no more than this, in units of the outputs' variance: a wreck is a wreck."""


def output_error(outputs: Tensor, clean: Tensor) -> float:
    """Mean squared change of the outputs, in units of their variance; finite for any outputs."""
    size = clean.var(correction=0).clamp_min(1e-12)
    each = (outputs - clean).square().flatten(1).mean(1) / size
    return float(torch.nan_to_num(each, nan=WORST, posinf=WORST).clamp_max(WORST).mean())


def agreement(outputs: Tensor, clean: Tensor) -> float:
    """Share of images whose largest output is the same."""
    return float((outputs.flatten(1).argmax(1) == clean.flatten(1).argmax(1)).double().mean())


def functions_of(op: Activation) -> list[Function]:
    """The function of each channel, or one for all."""
    return [activation(op.function, op.parameters)]


def live_bytes(graph: Graph) -> int:
    """Most bytes that the values of one image take at a time, in single precision, each let go after its last use."""
    last = {operand: node.id for node in graph.nodes for operand in node.inputs}
    sizes = {node.id: node.type.size for node in graph.nodes}
    live = most = 0
    for node in graph.nodes:
        live += sizes[node.id]
        most = max(most, live)
        live -= sum(sizes[i] for i in set(node.inputs) if last[i] == node.id)
    return 4 * most


def fitting(graph: Graph, images: Tensor, copies: int = 1) -> Tensor:
    """As many images, evenly spread, as `MEMORY` holds the values of, `copies` times each."""
    most = max(1, int(MEMORY / (live_bytes(graph) * copies)))
    if len(images) <= most:
        return images
    return images[torch.linspace(0, len(images) - 1, most).round().long()]


def readers(graph: Graph, node: Node) -> list[Node]:
    """All nodes that depend on a node, in order."""
    below = nx.descendants(graph.to_networkx(), node.id)
    return [n for n in graph.nodes if n.id in below]
