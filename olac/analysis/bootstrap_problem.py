"""What a plan of bootstraps is, what it has to keep to, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from olac.ckks.bootstrapping import BootstrapModel
from olac.errors import InfeasibleError
from olac.ir.graph import Graph, Node
from olac.ir.ops import Input
from olac.ir.states import bootstrap_fault

Placements = tuple[tuple[int, str], ...]
"""Bootstraps: the value, and the position in the graph's order after which its readers get the new one."""


@dataclass(frozen=True)
class BootstrapPlan:
    """Where bootstraps go.

    Attributes:
        placements: values and where they are bootstrapped, in the graph's order.
        seconds: predicted, for the program and its bootstraps.
        bootstraps: of single ciphertexts.
        fresh_level: level of the encrypted input.
        picks: for each node with several options, which of them is taken.
    """

    placements: Placements
    seconds: float
    bootstraps: int
    fresh_level: int
    picks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Option:
    """One way to compute a node: the levels that it takes, and a price beside its seconds."""

    levels: int
    price: float = 0.0


class PlacementProblem:
    """What a plan has to keep to, and what it costs.

    Args:
        graph: at any stage; before PACKED every value counts as one ciphertext.
        bootstraps: the levels around one, and its slots.
        depth: levels of the chain, the most of a fresh input.
        seconds: of a node with operands at a level; must not fall with the level.
        rows: the same at all levels from 0 to `depth`, if they are known at once; it saves time.

    Attributes:
        options: for each node the ways to compute it, which may be more than one before degrees are chosen.
    """

    def __init__(
        self,
        graph: Graph,
        bootstraps: BootstrapModel,
        depth: int,
        seconds: Callable[[Node, int], float],
        rows: Callable[[Node], Sequence[float]] | None = None,
    ) -> None:
        self.graph, self.bootstraps, self.depth = graph, bootstraps, depth
        self._seconds, self._rows = seconds, rows
        self._memo: dict[tuple[str, int], float] = {}
        self._fits: dict[str, bool] = {}
        self.options: dict[str, tuple[Option, ...]] = {
            node.id: (Option(node.levels(graph.constants)),) for node in graph.nodes
        }

    def least(self, name: str) -> int:
        """The fewest levels that a node may take."""
        return min(option.levels for option in self.options[name])

    def seconds(self, node: Node, level: int) -> float:
        """Of a node with operands at a level."""
        key = (node.id, level)
        if key not in self._memo:
            self._memo[key] = self._seconds(node, level)
        return self._memo[key]

    def row(self, node: Node, least: int, most: int) -> Sequence[float]:
        """Of a node with operands at the levels from `least` to `most`."""
        if self._rows is not None:
            return self._rows(node)[least : most + 1]
        return [self.seconds(node, level) for level in range(least, most + 1)]

    def ciphertexts(self, name: str) -> int:
        """How many ciphertexts a value has."""
        layout = self.graph[name].type.layout
        return 1 if layout is None else layout.ciphertexts

    def fits(self, name: str) -> bool:
        """Whether a value may be bootstrapped: its slots stay in the allowed range, and repeat as the set-up asks."""
        if name not in self._fits:
            self._fits[name] = bootstrap_fault(self.graph[name].type, self.bootstraps.log_slots) is None
        return self._fits[name]

    def highest(self) -> dict[str, int]:
        """The highest level that each value can have, if all values are bootstrapped that may be.

        Raises:
            InfeasibleError: a node gets no level.
        """
        found: dict[str, int] = {}
        for node in self.graph.nodes:
            if isinstance(node.op, Input):
                level = self.depth
            else:
                level = min(found[name] for name in node.inputs) - self.least(node.id)
            if level < 0:
                low, log_slots = self.bootstraps.input_level, self.bootstraps.log_slots
                repeating = "" if log_slots is None else f", that repeats after 2^{log_slots} slots"
                raise InfeasibleError(
                    f"levels run out at {node.id} from {node.origin}: bootstraps leave "
                    f"{self.bootstraps.output_level - low} levels between them, too few to reach it from the last "
                    f"value that can be bootstrapped (one within its unit, at level {low} or above{repeating}). Lower "
                    "the degrees of the activations before it."
                )
            if level >= self.bootstraps.input_level and self.fits(node.id):
                level = max(level, self.bootstraps.output_level)
            found[node.id] = level
        return found
