"""Which degree each activation gets, before any is fitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from olac.analysis.degree_bootstraps import Circuit, cheapest_first, least_bootstraps, plan_degrees
from olac.analysis.plan_search import FITS, Finalist, finalists, first_enough, preferred
from olac.backends.cost import CostEvaluator
from olac.calibration.histogram import Histogram
from olac.ckks.parameters import Parameters
from olac.costs.table import CostTable
from olac.errors import InfeasibleError, VerificationError
from olac.ir.functions import Function, channel_functions
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.layout import TensorLayout
from olac.ir.ops import Activation, Polynomial, Square
from olac.ir.types import Stage
from olac.kernels.base import Kernel
from olac.kernels.elementwise import SquareKernel
from olac.kernels.polynomial import PolynomialKernel
from olac.polynomials.degrees import FrontPoint, Solution, front, solve
from olac.polynomials.fit import Fit, fit, least_fit
from olac.polynomials.modes import (
    MIN_AGREEMENT,
    Agreement,
    Compensated,
    Degrees,
    Fixed,
    FromHistograms,
    Normal,
    Plan,
    Quadratic,
    Searched,
    Tolerance,
    Within,
)
from olac.system.arrays import Array

REFINEMENTS = 2
"""How often at most a plan is measured with its own errors and solved again."""
PRICED = Parameters(log_ring=16, depth=12, scale_bits=40, first_bits=46, digits=3, security=0)
"""The chain at which polynomials are priced: the middle of a deep network's chain."""


class Images(Protocol):
    """Fits and measurements on whole images; `olac.approximation.ImageFitter` implements it in torch."""

    def effects(self, graph: Graph, fits: Mapping[str, Sequence[Fit]]) -> dict[str, list[float]]:
        """For each activation and fit, the change of the outputs if that activation alone is replaced."""

    def sensitivities(self, graph: Graph) -> dict[str, float]:
        """OLA's alpha_i for each activation."""

    def trial(
        self, graph: Graph, degrees: Mapping[str, int], method: Compensated, probes: Sequence[int] = ()
    ) -> tuple[float, float, dict[str, dict[int, float]]]:
        """Error of a plan on held-out images after a quick fit, and the effects of other degrees.

        The agreement between them is the one that is expected after the whole fit.
        """

    def error(self, original: Graph, approximated: Graph) -> tuple[float, float]:
        """Error and agreement of an approximated graph on held-out images."""

    def compensate(self, graph: Graph, degrees: Mapping[str, int], method: Compensated) -> Graph:
        """The graph at stage POLYNOMIAL, each layer compensating the errors before it."""

    def diverging(self, original: Graph, approximated: Graph) -> tuple[int, int]:
        """How many altered copies of images diverge, and of how many."""

    def outside(self, graph: Graph, ranges: Mapping[str, Array]) -> dict[str, float]:
        """For each node the share of its operand's values outside their channel's range, of shape (channels, 2)."""


@dataclass(frozen=True)
class Evidence:
    """The data by which degrees are chosen.

    Attributes:
        histograms: of the inputs of all activations.
        circuit: builds the graph that lowering would have for given degrees.
        images: returns the measurements on images, which only searches need.
        costs, threads: the prices of primitives.
    """

    histograms: Mapping[str, Histogram]
    circuit: Circuit
    images: Callable[[], Images]
    costs: CostTable
    threads: int


@dataclass(frozen=True)
class Choice:
    """The plan that was chosen.

    Attributes:
        degrees: by activation, in network order.
        front: the plans that were considered, the cheapest first.
        fitted: the graph of the plan after the whole fit, if the choice needed it.
        effects: by activation, the measured change of the outputs if that activation alone is replaced; empty if
            nothing was measured.
    """

    degrees: dict[str, int]
    front: list[FrontPoint] = field(default_factory=list)
    fitted: Graph | None = None
    effects: dict[str, float] = field(default_factory=dict)


def functions(node: Node) -> list[Function]:
    """The function of each channel of an activation, or one for all."""
    assert isinstance(node.op, Activation)
    return channel_functions(node.op.function, node.op.parameters, node.type.shape[0])


def choose_degrees(graph: Graph, method: FromHistograms, choice: Degrees, evidence: Evidence) -> Choice:
    """The degrees of all activations.

    Raises:
        InfeasibleError: no plan is within the limit, or has the agreement that is asked for; says what to do.
    """
    nodes = [node for node in graph.nodes if isinstance(node.op, Activation)]
    if isinstance(method, Quadratic):
        return Choice({node.id: 2 for node in nodes})
    match choice:
        case Plan(degrees):
            if len(degrees) != len(nodes):
                raise InfeasibleError(
                    f"the plan has {len(degrees)} degrees, the model {len(nodes)} activations. Give one for each."
                )
            return Choice({node.id: degree for node, degree in zip(nodes, degrees, strict=True)})
        case Fixed(degree):
            return Choice({node.id: degree for node in nodes})
        case Tolerance(rmse):
            found = {node.id: (functions(node), evidence.histograms[node.id]) for node in nodes}
            return Choice({name: least_fit(*seen, method, rmse, choice.most).degree for name, seen in found.items()})
        case Within() | Agreement():
            if not nodes:
                return Choice({})
            return _Search(graph, nodes, method, choice, evidence).run()


class _Search:
    """The dynamic program, its prices and costs, and the plans that it found."""

    def __init__(
        self, graph: Graph, nodes: Sequence[Node], method: FromHistograms, choice: Searched, evidence: Evidence
    ) -> None:
        self.graph, self.nodes, self.method, self.choice = graph, nodes, method, choice
        self.evidence, self.images = evidence, evidence.images()
        self.front: list[FrontPoint] = []
        self.fitted: Graph | None = None
        self._measured: dict[str, dict[int, float]] = {}
        folding = not isinstance(method, Normal)
        self.folds = self._folded({node.id: 2 for node in nodes}) if folding else frozenset()
        self._consider(choice.most)

    def _consider(self, most: int) -> None:
        """The candidates are the degrees up to this one."""
        self.most = most
        self.degrees = {node.id: self._candidates(node) for node in self.nodes}
        self.depths = {name: [self._depth(name, d) for d in row] for name, row in self.degrees.items()}

    def run(self) -> Choice:
        """The chosen plan."""
        choice = self.choice
        costs = self._ola_costs() if choice.effects == "ola" else self._measured_costs()
        plan = self._agreeing(costs, choice) if isinstance(choice, Agreement) else self._within(costs, choice)
        self._record(costs, plan)
        named, measured = self._named(plan), self._measured
        effects = {name: measured[name][degree] for name, degree in named.items() if degree in measured.get(name, {})}
        return Choice(named, self.front, self.fitted, effects)

    def _further(self, choice: Agreement) -> Solution | None:
        """The plan by the degrees that are considered next; None if all were."""
        if choice.further is None or self.most >= choice.further:
            return None
        self._consider(choice.further)
        return self._agreeing(self._measured_costs(), choice)

    def _within(self, costs: list[list[float]], choice: Within) -> Solution:
        plan = self._bounded(costs, choice)
        if isinstance(self.method, Compensated) and choice.effects == "measured":
            plan = self._refined(costs, plan, choice, self.method)
        if choice.levels is not None:
            plan = self._honest(costs, plan, choice.levels)
        if choice.min_agreement is not None:
            self.fitted = self._fit(plan)
            _, agreement = self.images.error(self.graph, self.fitted)
            if agreement < choice.min_agreement:
                raise InfeasibleError(
                    f"the best plan within {choice.limit:g} has an agreement of {agreement:.1%} on unseen inputs, and "
                    f"{choice.min_agreement:.1%} are asked for. Allow more, or ask for less."
                )
        return plan

    def _folded(self, degrees: Mapping[str, int]) -> frozenset[str]:
        """The activations whose quadratic takes one level in a circuit of these degrees."""
        return frozenset(node.id for node in self.evidence.circuit(degrees).nodes if isinstance(node.op, Square))

    # Candidates and prices -------------------------------------------------------------------------------------------

    def _candidates(self, node: Node) -> list[int]:
        """The largest degree of each depth, up to `most`; at one level a square if it folds, otherwise a line."""
        most = self.most
        found = {2 if node.id in self.folds else 1, *((1 << depth) - 1 for depth in range(2, most.bit_length())), most}
        return sorted(d for d in found if d <= most) or [1]

    def _depth(self, name: str, degree: int) -> int:
        return 1 if degree == 2 and name in self.folds else max(1, degree.bit_length())

    def _prices(self) -> list[list[float]]:
        if not isinstance(self.choice, Within) or self.choice.seconds is None:
            return [[float(d) for d in self.depths[node.id]] for node in self.nodes]
        costs, threads = self.evidence.costs, self.evidence.threads
        return [
            [activation_seconds(node, d, node.id in self.folds, costs, threads) for d in self.degrees[node.id]]
            for node in self.nodes
        ]

    # Costs -----------------------------------------------------------------------------------------------------------

    def _fits(self, node: Node) -> list[Fit]:
        seen = self.evidence.histograms[node.id]
        return [fit(functions(node), seen, self.method, degree) for degree in self.degrees[node.id]]

    def _measured_costs(self) -> list[list[float]]:
        measured = self.images.effects(self.graph, {node.id: self._fits(node) for node in self.nodes})
        self._measured = {name: dict(zip(self.degrees[name], row, strict=True)) for name, row in measured.items()}
        return [measured[node.id] for node in self.nodes]

    def _ola_costs(self) -> list[list[float]]:
        alphas = self.images.sensitivities(self.graph)
        missing = [node.id for node in self.nodes if not math.isfinite(alphas.get(node.id, math.nan))]
        if missing:
            raise VerificationError(f"the outputs' sensitivity to {', '.join(missing)} is unknown")
        sizes = {node.id: _mean_square(node, self.evidence.histograms[node.id]) for node in self.nodes}
        return [[alphas[node.id] * sizes[node.id] * one.rmse**2 for one in self._fits(node)] for node in self.nodes]

    def _solve(self, costs: list[list[float]], choice: Within) -> Solution | None:
        """The plan of least cost within the limit; None if there is none."""
        if choice.bootstraps is None:
            return solve(costs, self._prices(), choice.limit)
        by_degree = {
            node.id: dict(zip(self.degrees[node.id], row, strict=True))
            for node, row in zip(self.nodes, costs, strict=True)
        }
        engine = self.evidence.costs.engine
        chosen = plan_degrees(self.graph, by_degree, choice.bootstraps, self.evidence.circuit, engine=engine)
        choices = tuple(self.degrees[node.id].index(chosen.degrees[node.id]) for node in self.nodes)
        return Solution(choices, float(chosen.plan.bootstraps), chosen.cost)

    # Plans -----------------------------------------------------------------------------------------------------------

    def _named(self, plan: Solution) -> dict[str, int]:
        return {node.id: self.degrees[node.id][k] for node, k in zip(self.nodes, plan.choices, strict=True)}

    def _levels(self, plan: Solution) -> float:
        """The levels of all activations in the circuit of the plan."""
        named = self._named(plan)
        folded = self._folded(named) & self.folds
        return float(sum(1 if d == 2 and name in folded else max(1, d.bit_length()) for name, d in named.items()))

    def _forecast(self, plan: Solution) -> float:
        """Agreement that a plan is expected to have on held-out images."""
        if isinstance(self.method, Compensated):
            return self.images.trial(self.graph, self._named(plan), self.method)[1]
        return self.images.error(self.graph, self._fit(plan))[1]

    def _fit(self, plan: Solution) -> Graph:
        degrees = self._named(plan)
        if isinstance(self.method, Compensated):
            return self.images.compensate(self.graph, degrees, self.method)
        return fit_from_histograms(self.graph, self.evidence.histograms, degrees, self.method)

    def _bounded(self, costs: list[list[float]], choice: Within) -> Solution:
        """The best plan within the limit."""
        plan = self._solve(costs, choice)
        if plan is None:
            least = sum(min(row) for row in self._prices())
            unit = "levels" if choice.seconds is None else "predicted seconds"
            raise InfeasibleError(
                f"{len(self.nodes)} activations take at least {least:g} {unit} together, and {choice.limit:g} are "
                f"allowed. Allow {least:g}."
            )
        return plan

    def _agreeing(self, costs: list[list[float]], choice: Agreement) -> Solution:
        """The cheapest plan that has the agreement after the whole fit."""
        plans, agreements = self._row(costs), dict[int, float]()
        asked, required = (MIN_AGREEMENT, False) if choice.share is None else (choice.share, True)
        row = [plan.cost for plan in plans]

        def forecast(index: int) -> float:
            agreements[index] = self._forecast(plans[index])
            return agreements[index]

        def fit(index: int) -> Finalist[Graph]:
            fitted = self._fit(plans[index])
            _, agreements[index] = self.images.error(self.graph, fitted)
            return Finalist(index, agreements[index], self.images.diverging(self.graph, fitted)[0], fitted)

        first = first_enough(row, forecast, asked)
        if first is None and (further := self._further(choice)) is not None:
            return further
        first = len(plans) - 1 if first is None else first
        method = self.method if isinstance(self.method, Compensated) else None
        found = finalists(
            first,
            row,
            fit,
            asked,
            required,
            sound=method is not None and method.effort == "thorough",
            most=1 if method is None else FITS,  # of other methods a trial is the fit itself
        )
        taken = preferred(found, asked, required)
        if required and taken.agreement < asked:
            if (further := self._further(choice)) is not None:
                return further
            raise InfeasibleError(
                f"at degree {self.most} the program has an agreement of {taken.agreement:.1%} on unseen inputs, "
                f"and {asked:.1%} are asked for. Raise max_degree, or ask for less."
            )
        self.fitted = taken.fitted
        points = [
            FrontPoint(
                self._levels(plans[i]), plans[i].cost, tuple(self._named(plans[i]).values()), share, i == taken.index
            )
            for i, share in agreements.items()
        ]
        self.front.extend(sorted(points, key=lambda one: (one.price, -one.cost)))
        return plans[taken.index]

    def _row(self, costs: list[list[float]]) -> list[Solution]:
        """Plans from the cheapest to the most accurate."""
        by_levels = front(costs, [[int(p) for p in row] for row in self._prices()])
        by_degree = {
            node.id: dict(zip(self.degrees[node.id], row, strict=True))
            for node, row in zip(self.nodes, costs, strict=True)
        }
        circuit, engine = self.evidence.circuit, self.evidence.costs.engine

        def bootstraps(plan: Solution) -> int:
            return least_bootstraps(circuit(self._named(plan)), engine=engine).bootstraps

        def within(most: int) -> Solution:
            chosen = plan_degrees(self.graph, by_degree, most, circuit, engine=engine)
            choices = tuple(self.degrees[node.id].index(chosen.degrees[node.id]) for node in self.nodes)
            return Solution(choices, self._levels(Solution(choices, 0.0, 0.0)), chosen.cost)

        return cheapest_first(by_levels, bootstraps, within)

    def _refined(self, costs: list[list[float]], plan: Solution, choice: Within, method: Compensated) -> Solution:
        """Measure effects with the plan's own errors and solve again, as long as the simulated error falls."""
        probes = sorted({d for row in self.degrees.values() for d in row})
        best = plan
        best_error, _, measured = self.images.trial(self.graph, self._named(plan), method, probes)
        for _ in range(REFINEMENTS):
            # The geometric mean of the effect alone and of the effect with the errors of the plan.
            again = [
                [
                    math.sqrt(max(cost, 0.0) * max(measured[node.id][d], 0.0))
                    for cost, d in zip(row, self.degrees[node.id], strict=True)
                ]
                for row, node in zip(costs, self.nodes, strict=True)
            ]
            other = self._solve(again, choice)
            if other is None or other.choices == best.choices:
                break
            error, _, effects = self.images.trial(self.graph, self._named(other), method, probes)
            if error >= best_error:
                break
            best, best_error, measured = other, error, effects
        return best

    def _honest(self, costs: list[list[float]], plan: Solution, limit: int) -> Solution:
        """The plan, in which squares that do not fold in the whole circuit count two levels."""
        for _ in range(len(self.nodes)):
            named = self._named(plan)
            folded = self._folded(named)
            short = [name for name, degree in named.items() if degree == 2 and name in self.folds - folded]
            if not short:
                return plan
            self.folds -= set(short)
            self.depths = {name: [self._depth(name, d) for d in row] for name, row in self.degrees.items()}
            again = solve(costs, self._prices(), limit)
            if again is None:
                raise InfeasibleError(
                    f"no plan is within {limit} levels: the quadratics of {', '.join(short)} do not fold. Allow more."
                )
            plan = again
        return plan

    def _record(self, costs: list[list[float]], plan: Solution) -> None:
        """Set the front if it is not set yet; its points have no agreement, because none was simulated."""
        if self.front:
            return
        prices = self._prices()

        def point(choices: Sequence[int], chosen: bool) -> FrontPoint:
            price, cost = (float(sum(row[k] for row, k in zip(rows, choices, strict=True))) for rows in (prices, costs))
            degrees = tuple(self.degrees[node.id][k] for node, k in zip(self.nodes, choices, strict=True))
            return FrontPoint(price, cost, degrees, None, chosen)

        plans = front(costs, [[int(d) for d in self.depths[node.id]] for node in self.nodes])
        points = [point(one.choices, False) for one in plans if one.choices != plan.choices]
        points.append(point(plan.choices, True))
        self.front.extend(sorted(points, key=lambda one: (one.price, -one.cost)))


def _mean_square(node: Node, histogram: Histogram) -> float:
    centres, masses = histogram.density(None)
    return float(np.sum(masses * functions(node)[0](centres) ** 2))


def fit_from_histograms(
    graph: Graph, histograms: Mapping[str, Histogram], degrees: Mapping[str, int], method: FromHistograms
) -> Graph:
    """Every activation replaced by a fit to its histogram alone."""

    def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
        if not isinstance(node.op, Activation):
            return None
        made = fit(functions(node), histograms[node.id], method, degrees[node.id])
        name = builder.constant(f"{node.id}.coefficients", made.coefficients)
        op = Polynomial(name, made.half_width)
        return builder.add(op, inputs, name=node.id, origin=node.origin, type=node.type)

    return graph.rewrite(step, by="fit_activations", stage=Stage.POLYNOMIAL)


def activation_seconds(node: Node, degree: int, folds: bool, costs: CostTable, threads: int) -> float:
    """Predicted seconds of an activation's polynomial, in the middle of a deep network's chain."""
    layout = TensorLayout.dense((1,), PRICED.slots)
    kernel: Kernel = (
        SquareKernel(np.ones(1), layout)
        if degree == 2 and folds
        else PolynomialKernel(np.ones((1, degree + 1)), layout)
    )
    evaluator = CostEvaluator(PRICED, costs, threads)
    kernel.run(evaluator, [(evaluator.fresh(PRICED.depth),)])
    return evaluator.seconds * math.ceil(node.type.size / PRICED.slots)
