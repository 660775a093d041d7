"""Which values share a unit."""

from __future__ import annotations

from olac.ir.graph import Graph
from olac.ir.ops import Units


def sharing_units(graph: Graph) -> dict[str, frozenset[str]]:
    """For each node the values that must have the same unit, itself included."""
    return graph.groups(lambda op: op.units is Units.SHARED)
