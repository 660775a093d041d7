"""How far a run is, and when it will be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from olac.errors import plain
from olac.ir.graph import Graph, Node
from olac.progress import Event, duration
from olac.system.shapes import counted, one_of

RUNNING = "running"


@dataclass(frozen=True, eq=False)
class Progress(Event):
    """One node of a run is done: an event, with what is known of the node.

    Attributes:
        done, total: nodes so far and in all, the input included. If the images of a run take several sets of
            ciphertexts, nodes count once for each set.
        share: of the predicted seconds of the run.
        eta_seconds: predicted seconds to the end of the run, scaled by how long the nodes so far took.
        node: its id.
        level: levels that its ciphertexts have left.
        seconds: wall time of this node.
        checkpoint: the node after which the last checkpoint was written; empty if there is none.
    """

    eta_seconds: float = 0.0
    node: str = ""
    level: int = 0
    seconds: float = 0.0
    checkpoint: str = ""

    @property
    def label(self) -> str:
        """Which node of how many."""
        return f"{self.done} of {self.total}: {self.node}"


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
    def share(self) -> float:
        """Of the predicted seconds of all sets, those that are over, by the prediction; 1 after the last node."""
        whole = self._sets * self._of_one_set
        if self.done >= self.total or whole <= 0:
            return self.done / self.total
        return 1.0 - self._left / whole

    def reached(self, node: Node, level: int, seconds: float, memory_gb: float, checkpoint: str) -> Progress:
        """The event of a node that was added."""
        line = (
            f"{self.done} of {self.total}: {plain(node.id)} at level {level}, {memory_gb:.2f} GB, "
            f"{duration(self.eta_seconds)} left"
        )
        return Progress(
            line,
            RUNNING,
            self.done,
            self.total,
            share=self.share,
            eta_seconds=self.eta_seconds,
            memory_gb=memory_gb,
            node=node.id,
            level=level,
            seconds=seconds,
            checkpoint=checkpoint,
        )

    @property
    def eta_seconds(self) -> float:
        """Predicted seconds of what is left, scaled by how long the nodes so far took."""
        # One second is added to both, because the first nodes are short and say little.
        return self._left * (sum(self.seconds.values()) + 1.0) / (self._expected + 1.0)


def in_sets(images: int, sets: int, shape: Sequence[int], seconds: float | None = None) -> str:
    """What a run was, in a few words: 3 images in 1 set of ciphertexts, 2.1 s an image. The shape is one input's."""
    each = "" if seconds is None else f", {seconds / max(1, images):.3g} s {one_of(shape)}"
    return f"{counted(images, shape)} in {sets} set{'s' if sets != 1 else ''} of ciphertexts{each}"
