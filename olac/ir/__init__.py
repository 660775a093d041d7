"""The typed, immutable intermediate representation."""

from olac.ir.graph import Graph, GraphBuilder, Node, Origin
from olac.ir.layout import TensorLayout
from olac.ir.types import CipherState, Range, Stage, ValueType

__all__ = [
    "CipherState",
    "Graph",
    "GraphBuilder",
    "Node",
    "Origin",
    "Range",
    "Stage",
    "TensorLayout",
    "ValueType",
]
