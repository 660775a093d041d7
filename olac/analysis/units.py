"""Which values share a unit."""

from __future__ import annotations

import networkx as nx

from olac.ir.graph import Graph
from olac.ir.ops import Units


def sharing_units(graph: Graph) -> dict[str, frozenset[str]]:
    """For each node the values that must have the same unit, itself included."""
    together: nx.Graph[str] = nx.Graph()
    for node in graph.nodes:
        together.add_node(node.id)
        if node.op.units is Units.SHARED:
            together.add_edges_from((node.id, operand) for operand in node.inputs)
    return {i: group for group in map(frozenset, nx.connected_components(together)) for i in group}
