"""How far a run is, and when it will be done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from olac.ir.graph import Graph, Node


@dataclass(frozen=True)
class Progress:
    """One node of a run is done.

    Attributes:
        done, total: nodes so far and in all, the input included. If the images of a run take several sets of
            ciphertexts, nodes count once for each set.
        node: its id.
        level: levels that its ciphertexts have left.
        seconds: wall time of this node.
        memory_gb: resident memory of this process.
        eta_seconds: predicted seconds to the end of the run, scaled by how long the nodes so far took.
        checkpoint: the node after which the last checkpoint was written; empty if there is none.
    """

    done: int
    total: int
    node: str
    level: int
    seconds: float
    memory_gb: float = 0.0
    eta_seconds: float = 0.0
    checkpoint: str = ""


class Steps:
    """What a run over some sets of ciphertexts has done.

    Args:
        graph: of the program.
        predicted: seconds of each node for one set.
        sets: in all.

    Attributes:
        seconds: wall time by node, over all sets that were computed here.
        done, total: as of `Progress`.
    """

    def __init__(self, graph: Graph, predicted: Mapping[str, float], sets: int) -> None:
        self._places = {node.id: i for i, node in enumerate(graph.nodes, 1)}
        self._predicted, self._sets = predicted, sets
        self._of_one_set, self._expected, self._left = sum(predicted.values()), 0.0, 0.0
        self.seconds: dict[str, float] = {}
        self.done, self.total = 0, sets * len(self._places)

    def add(self, node: Node, seconds: float, sets: int, finished: int) -> None:
        """A node was computed for some sets at a time, after others that are finished."""
        self.seconds[node.id] = self.seconds.get(node.id, 0.0) + seconds
        self._expected += self._predicted.get(node.id, 0.0) * sets
        place = self._places[node.id]
        self.done = finished * len(self._places) + sets * place
        rest = sum(spent for name, spent in self._predicted.items() if self._places[name] > place)
        self._left = sets * rest + (self._sets - finished - sets) * self._of_one_set

    @property
    def eta_seconds(self) -> float:
        """Predicted seconds of what is left, scaled by how long the nodes so far took."""
        # One second is added to both, because the first nodes are short and say little.
        return self._left * (sum(self.seconds.values()) + 1.0) / (self._expected + 1.0)
