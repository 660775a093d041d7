"""Plans of bootstraps for graphs with many values alive at once, where the exact dynamic program has too many states.

Two searches, both bounded whatever the graph. A *beam* goes through the graph as the exact program does, from the last
node to the first, and keeps a fixed number of states at each node: those with the least sum of the cost so far and a
lower bound on the rest. Then *exchanges*: one or two at a time, bootstraps are taken away, added and moved, and degrees
are changed, as long as that pays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from olac.analysis.bootstrap_problem import BootstrapPlan, PlacementProblem
from olac.errors import InfeasibleError
from olac.ir.ops import Input

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

WIDTH = 64
"""States that are kept at one node."""
WIDTH_COUNTED = 24
"""The same for each number of bootstraps, if these are limited."""
WIDER = (1, 4)
"""Multiples of the width that are tried in turn: the next one if too few states were left at some node."""
SURVIVORS = 0.25
"""Too few states are left at a node if less than this share of them can be continued to the node before it."""
MOST_CHILDREN = 4
"""This many times the width of the cheapest states are looked at for those that no other beats."""
MOST_ROUNDS = 100
"""Most rounds of exchanges."""
MOST_TRIED = 20_000
"""Most plans that are priced together in one round of exchanges; if there are more, an even selection of them."""
TOLERANCE = 1e-12
"""An exchange has to gain at least this share of the cost."""
FEWEST = 1e6
"""The price of a bootstrap as a multiple of the largest price, if there are to be as few as possible."""


def beam(problem: PlacementProblem, one_bootstrap: float, most: int | None = None) -> BootstrapPlan:
    """A good plan, not always the best: see `olac.analysis.bootstraps.solve` for arguments and errors."""
    tables = _Tables(problem)
    found = _best(tables, one_bootstrap, most)
    if found is None and most is not None:
        # A search that weighs bootstraps against seconds may miss the plans of fewest bootstraps.
        dear = _best(tables, FEWEST * max(one_bootstrap, tables.largest), None)
        if dear is not None and dear.bootstraps <= most:
            found = _better(dear, _exchanged(tables, dear, one_bootstrap, most), one_bootstrap)
    if found is None:
        raise InfeasibleError(f"no plan takes at most {most} bootstraps")
    return _plan(tables, found, one_bootstrap)


def dearest_path(problem: PlacementProblem, one_bootstrap: float, some: bool = False) -> float:
    """A lower bound on the cost of every plan: that of one path from an input to an output, if it stood alone.

    Args:
        some: whether plans without bootstraps are left out. The others pay for one bootstrap at least.
    """
    tables = _Tables(problem)

    def path(price: float) -> float:
        return float(tables.ahead(price)[list(tables.outputs), 0].max())

    return max(path(one_bootstrap), one_bootstrap + path(0.0)) if some else path(one_bootstrap)


@dataclass(frozen=True)
class _Found:
    """A plan by indices of nodes.

    Attributes:
        placements: (position, value), in the graph's order; see `BootstrapPlan.placements`.
        picks: for each node the option that is taken.
        seconds: of all but the bootstraps, with the options' prices.
        bootstraps: of single ciphertexts.
        fresh_level: of the input.
    """

    placements: tuple[tuple[int, int], ...]
    picks: Ints
    seconds: float
    bootstraps: int
    fresh_level: int

    def cost(self, one_bootstrap: float) -> float:
        """With bootstraps at a price."""
        return self.seconds + one_bootstrap * self.bootstraps


class _Tables:
    """A problem in arrays: operands, options, prices and the highest level, by index of the node.

    Attributes:
        operands: of each node, each once.
        options: of each node, levels and prices.
        seconds: (nodes, levels of the operands), infinite above the chain.
    """

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        nodes = problem.graph.nodes
        self.names = [node.id for node in nodes]
        self.at = {name: index for index, name in enumerate(self.names)}
        self.inputs = np.array([isinstance(node.op, Input) for node in nodes])
        self.operands = [tuple(dict.fromkeys(self.at[name] for name in node.inputs)) for node in nodes]
        self.outputs = tuple(dict.fromkeys(self.at[name] for name in problem.graph.outputs))
        self.options = [[(option.levels, option.price) for option in problem.options[name]] for name in self.names]
        self.ciphertexts = np.array([problem.ciphertexts(name) for name in self.names])
        highest = problem.highest()
        self.highest = np.array([highest[name] for name in self.names])
        self.low, self.high, self.depth = problem.bootstraps.input_level, problem.bootstraps.output_level, problem.depth
        fits = np.array([problem.fits(name) for name in self.names])
        self.may_bootstrap = fits & (self.highest >= self.low)
        """Which values may be bootstrapped, and reach the level for it."""
        self.first = np.full(len(nodes), len(nodes))
        for index in range(len(nodes) - 1, -1, -1):
            self.first[list(self.operands[index])] = index
        self.seconds = np.full((len(nodes), self.depth + 1), np.inf)
        for index, node in enumerate(nodes):
            if self.inputs[index]:
                continue
            top = min(int(self.highest[list(self.operands[index])].min()), self.depth)
            least = problem.least(node.id)
            self.seconds[index, least : top + 1] = problem.row(node, least, top)
        finite = self.seconds[np.isfinite(self.seconds)]
        prices = [abs(price) for options in self.options for _, price in options]
        self.largest = max(float(finite.max(initial=0.0)), *prices)
        """The largest of all prices but those of bootstraps."""

    def ahead(self, one_bootstrap: float) -> Floats:
        """(nodes, levels of the value): a lower bound on the cost of the value there, that of one path to it."""
        found = np.zeros((len(self.names), self.depth + 1))
        for index, operands in enumerate(self.operands):
            if not self.inputs[index]:
                found[index] = np.inf
                path = np.max([found[operand] for operand in operands], axis=0)
                for levels, price in self.options[index]:
                    length = self.depth + 1 - levels
                    if length > 0:
                        made = price + self.seconds[index, levels:] + path[levels:]
                        found[index, :length] = np.minimum(found[index, :length], made)
            if self.may_bootstrap[index]:
                given = slice(self.low + 1, self.high + 1)
                lifted = one_bootstrap * self.ciphertexts[index] + found[index, self.low]
                found[index, given] = np.minimum(found[index, given], lifted)
        return found


def _best(tables: _Tables, one_bootstrap: float, most: int | None) -> _Found | None:
    """The best plan of the beams and of the exchanges after them; None if no beam reaches the input."""
    best: _Found | None = None
    for times in WIDER:
        search = _Beam(tables, one_bootstrap, most, times)
        found = search.run()
        if found is not None:
            found = _better(found, _exchanged(tables, found, one_bootstrap, most), one_bootstrap)
            best = found if best is None else _better(best, found, one_bootstrap)
        if not search.lost:
            break
    return best


def _better(found: _Found, other: _Found | None, one_bootstrap: float) -> _Found:
    gains = other is not None and other.cost(one_bootstrap) < found.cost(one_bootstrap) * (1 - TOLERANCE)
    return other if other is not None and gains else found


# The beam ------------------------------------------------------------------------------------------------------------


@dataclass
class _States:
    """States at one place of the graph, a row each.

    Attributes:
        columns: the values that are alive.
        levels: (states, columns), the level that later nodes need of each value.
        seconds, counts: seconds so far without bootstraps, and the number of these.
        parents, picks, masks: the state after the node, the node's option, and its operands that are bootstrapped.
        sure: whether the state bootstraps whatever it can, and so reaches the input whatever happens to the others.
    """

    columns: list[int]
    levels: Ints
    seconds: Floats
    counts: Ints
    parents: Ints
    picks: Ints
    masks: Ints
    sure: Bools

    def taken(self, rows: Ints | Bools) -> _States:
        """Some of the states."""
        return _States(self.columns, *(array[rows] for array in self._arrays))

    @staticmethod
    def joined(parts: Sequence[_States]) -> _States:
        """All states of several parts."""
        return _States(parts[0].columns, *map(np.concatenate, zip(*(part._arrays for part in parts), strict=True)))

    @property
    def _arrays(self) -> tuple[npt.NDArray[Any], ...]:
        return self.levels, self.seconds, self.counts, self.parents, self.picks, self.masks, self.sure


class _Beam:
    """From the last node to the first, with a bounded number of states.

    Attributes:
        lost: whether too few states were left at some node (see SURVIVORS).
    """

    def __init__(self, tables: _Tables, one_bootstrap: float, most: int | None, times: int = 1) -> None:
        self.lost = False
        self._tables, self._one_bootstrap, self._most, self._times = tables, one_bootstrap, most, times
        self._ahead = tables.ahead(one_bootstrap)

    def run(self) -> _Found | None:
        """The best plan that is left at the first node; None if there is none."""
        tables = self._tables
        nothing = np.zeros(1, dtype=np.int64)
        columns = list(tables.outputs)
        levels = np.zeros((1, len(columns)), dtype=np.int64)
        states = _States(columns, levels, np.zeros(1), nothing, nothing, nothing, nothing, np.ones(1, dtype=bool))
        passed: list[tuple[int, _States]] = []
        for index in range(len(tables.names) - 1, -1, -1):
            if tables.inputs[index]:
                continue
            if index not in states.columns:  # nothing reads it, and it is no output: its level is free
                states = self._unread(states, index)
            parts = [part for part in self._children(states, index) if len(part.seconds)]
            if not parts:
                self.lost = True
                return None
            joined = _States.joined(parts)
            self.lost |= len(np.unique(joined.parents)) < SURVIVORS * len(states.seconds)
            states = kept(joined, self._ahead, self._one_bootstrap, self._most is not None, self._times)
            passed.append((index, states))
        row = int(np.argmin(states.seconds + self._one_bootstrap * states.counts))
        fresh, seconds, bootstraps = int(states.levels[row].max()), float(states.seconds[row]), int(states.counts[row])
        picks = np.zeros(len(tables.names), dtype=np.int64)
        placements: list[tuple[int, int]] = []
        for index, states in reversed(passed):
            picks[index] = states.picks[row]
            mask = int(states.masks[row])
            placements += [(index - 1, u) for k, u in enumerate(tables.operands[index]) if mask >> k & 1]
            row = int(states.parents[row])
        return _Found(tuple(placements), picks, seconds, bootstraps, fresh)

    def _unread(self, states: _States, index: int) -> _States:
        levels = np.pad(states.levels, ((0, 0), (0, 1)))
        return replace(states, columns=[*states.columns, index], levels=levels)

    def _children(self, states: _States, index: int) -> Iterator[_States]:
        """All states before a node, for each way to compute it and each set of operands that are bootstrapped."""
        tables = self._tables
        operands = tables.operands[index]
        columns = [c for c in states.columns if c != index]
        columns += [u for u in operands if u not in columns]
        base = np.zeros((len(states.seconds), len(columns)), dtype=np.int64)
        own = states.columns.index(index)
        base[:, [columns.index(c) for c in states.columns if c != index]] = np.delete(states.levels, own, 1)
        at = [columns.index(u) for u in operands]
        fewest = min(levels for levels, _ in tables.options[index])
        plainest = next(k for k, (levels, _) in enumerate(tables.options[index]) if levels == fewest)
        for pick, (levels, price) in enumerate(tables.options[index]):
            needed = states.levels[:, own] + levels
            rows = np.flatnonzero(needed <= tables.highest[list(operands)].min())
            if not len(rows):
                continue
            needs = base[rows]
            needs[:, at] = np.maximum(needs[:, at], needed[rows, None])
            seconds = states.seconds[rows] + price + tables.seconds[index, needed[rows]]
            given = needs[:, at]
            may = (given > tables.low) & (given <= tables.high) & tables.may_bootstrap[list(operands)]
            whole = (may << np.arange(len(operands))).sum(1)  # the mask of all that may be bootstrapped
            for mask in range(1 << len(operands)):
                some = np.flatnonzero((whole & mask) == mask)
                chosen = [k for k in range(len(operands)) if mask >> k & 1]
                bootstraps = int(tables.ciphertexts[[operands[k] for k in chosen]].sum()) if chosen else 0
                made = needs[some].copy()
                made[:, [at[k] for k in chosen]] = tables.low
                counts = states.counts[rows][some] + bootstraps
                fine: Bools = np.all(made[:, at] <= tables.highest[list(operands)], axis=1)
                if self._most is not None:
                    fine = fine & (counts <= self._most)
                yield _States(
                    columns,
                    made,
                    seconds[some],
                    counts,
                    rows[some],
                    np.full(len(some), pick),
                    np.full(len(some), mask),
                    states.sure[rows][some] & (pick == plainest) & (whole[some] == mask),
                ).taken(fine)


def kept(states: _States, ahead: Floats, one_bootstrap: float, counted: bool, times: int = 1) -> _States:
    """The states of least cost, with the least that is still to come, that no other beats in every level and in cost.

    If bootstraps are limited, there are some for each number of them. One that is sure to reach the input is kept.
    """
    columns = states.columns
    costs = states.seconds + one_bootstrap * states.counts
    expected = costs + np.max([ahead[c, states.levels[:, k]] for k, c in enumerate(columns)], axis=0)
    order = np.lexsort((costs, expected))
    width = times * (WIDTH_COUNTED if counted else WIDTH)
    seen: dict[int, int] = {}
    found: dict[int, int] = {}
    rows: list[int] = []
    limits = np.column_stack([states.levels, states.counts * counted, costs])
    held = np.empty((len(order), len(columns) + 2))
    for row in order.tolist():
        count = int(states.counts[row]) if counted else 0
        if seen.get(count, 0) >= MOST_CHILDREN * width or found.get(count, 0) >= width:
            continue
        seen[count] = seen.get(count, 0) + 1
        if (held[: len(rows)] <= limits[row]).all(1).any():
            continue
        held[len(rows)] = limits[row]
        rows.append(row)
        found[count] = found.get(count, 0) + 1
    sure = np.flatnonzero(states.sure)
    rows += [int(row) for row in sure[:1] if row not in rows]
    return states.taken(np.array(rows))


# Exchanges -----------------------------------------------------------------------------------------------------------


def _exchanged(tables: _Tables, found: _Found, one_bootstrap: float, most: int | None) -> _Found | None:
    """The plan with each value bootstrapped for all of its readers, improved as long as exchanges gain."""
    bootstrapped = np.zeros(len(tables.names), dtype=bool)
    bootstrapped[[value for _, value in found.placements]] = True
    picks = found.picks.copy()
    seconds, _ = _seconds(tables, bootstrapped[None], picks[None])
    best = float(seconds[0]) + one_bootstrap * int(tables.ciphertexts[bootstrapped].sum())
    for _ in range(MOST_ROUNDS):
        tried, chosen = _neighbours(tables, bootstrapped, picks)
        seconds, _ = _seconds(tables, tried, chosen)
        counts = tried @ tables.ciphertexts
        costs = seconds + one_bootstrap * counts
        if most is not None:
            costs[counts > most] = np.inf
        row = int(np.argmin(costs))
        if not costs[row] < best * (1 - TOLERANCE):
            break
        best, bootstrapped, picks = float(costs[row]), tried[row], chosen[row]
    if not np.isfinite(best):
        return None
    seconds, fresh = _seconds(tables, bootstrapped[None], picks[None])
    placements = sorted((int(tables.first[value]) - 1, int(value)) for value in np.flatnonzero(bootstrapped))
    return _Found(
        tuple(placements), picks, float(seconds[0]), int(tables.ciphertexts[bootstrapped].sum()), int(fresh[0])
    )


def _neighbours(tables: _Tables, bootstrapped: Bools, picks: Ints) -> tuple[Bools, Ints]:
    """Plans that differ by one bootstrap less, one more, or both, and by the option of one node."""
    away = np.array([-1, *np.flatnonzero(bootstrapped)])
    more = np.array([-1, *np.flatnonzero(tables.may_bootstrap & ~bootstrapped & (tables.first < len(bootstrapped)))])
    changes = [(-1, 0)] + [
        (index, k)
        for index, options in enumerate(tables.options)
        for k in range(len(options))
        if len(options) > 1 and k != picks[index]
    ]
    total = len(away) * len(more) * len(changes)
    chosen = np.arange(total) if total <= MOST_TRIED else np.linspace(0, total - 1, MOST_TRIED).astype(np.int64)
    change, rest = np.divmod(chosen, len(away) * len(more))
    first, second = np.divmod(rest, len(more))
    tried = np.repeat(bootstrapped[None], len(chosen), 0)
    made = np.repeat(picks[None], len(chosen), 0)
    rows = np.arange(len(chosen))
    for which, value in ((away[first], False), (more[second], True)):
        some = which >= 0
        tried[rows[some], which[some]] = value
    nodes, options = (np.array(axis)[change] for axis in zip(*changes, strict=True))
    some = nodes >= 0
    made[rows[some], nodes[some]] = options[some]
    return tried, made


def _seconds(tables: _Tables, bootstrapped: Bools, picks: Ints) -> tuple[Floats, Ints]:
    """Seconds of plans (plans, nodes) without bootstraps, infinite if impossible, and levels of their inputs."""
    levels = np.zeros((len(tables.names), len(bootstrapped)), dtype=np.int64)
    seconds, fresh = np.zeros(len(bootstrapped)), np.zeros(len(bootstrapped), dtype=np.int64)
    for index in range(len(tables.names) - 1, -1, -1):
        taken = bootstrapped[:, index]
        seconds[taken & (levels[index] > tables.high)] = np.inf
        needed = np.where(taken, tables.low, levels[index])
        if tables.inputs[index]:
            seconds[needed > tables.depth] = np.inf
            fresh = np.maximum(fresh, needed)
            continue
        options = np.array(tables.options[index])[picks[:, index]]
        needed = needed + options[:, 0].astype(np.int64)
        seconds[needed > tables.depth] = np.inf
        needed = np.minimum(needed, tables.depth)
        seconds += tables.seconds[index, needed] + options[:, 1]
        for operand in tables.operands[index]:
            np.maximum(levels[operand], needed, out=levels[operand])
    return seconds, fresh


def _plan(tables: _Tables, found: _Found, one_bootstrap: float) -> BootstrapPlan:
    names = tables.names
    picks = {names[i]: int(k) for i, k in enumerate(found.picks) if len(tables.options[i]) > 1}
    placements = tuple((position, names[value]) for position, value in found.placements)
    return BootstrapPlan(placements, found.cost(one_bootstrap), found.bootstraps, found.fresh_level, picks)
