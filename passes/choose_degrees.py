"""Which degree each activation gets, before any is fitted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from olac.backends.cost import CostEvaluator
from olac.calibration.histogram import Histogram
from olac.ckks.parameters import Parameters
from olac.costs.table import CostTable
from olac.errors import InfeasibleError, VerificationError
from olac.ir.functions import Function, channel_functions
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.layout import TensorLayout
from olac.ir.ops import Activation, Polynomial
from olac.ir.types import Stage
from olac.kernels.base import Kernel
from olac.kernels.elementwise import SquareKernel
from olac.kernels.polynomial import PolynomialKernel
from olac.passes.base import FrontPoint, PassContext
from olac.passes.insert_placeholders import foldable, folded_in
from olac.passes.plan_bootstraps import plan_degrees
from olac.polynomials.degrees import Plan, front, solve
from olac.polynomials.fit import Fit, FitOptions, fit

MIN_AGREEMENT = 0.98
"""Asked for where a caller sets no limit at all."""
REFINEMENTS = 2
"""How often a plan is measured in its own context and solved anew, while that helps."""
PRICED = Parameters(log_ring=16, depth=12, scale_bits=40, first_bits=46, digits=3, security=0)
"""Where run times are taken from the table of costs: the middle of a deep network's chain."""


def functions(node: Node) -> list[Function]:
    """The function of each channel of an activation, or one for all."""
    assert isinstance(node.op, Activation)
    return channel_functions(node.op.function, node.op.parameters, node.type.shape[0])


def choose_degrees(graph: Graph, context: PassContext, options: FitOptions) -> dict[str, int]:
    """Degrees by activation, in network order; `context.front` gets the plans that were considered.

    Those of `options.plan` where it is given; one degree for all where `options.degree` says so; the least that meets
    `options.tolerance` where that is given; else a dynamic program, over effects on the outputs that are measured or
    over OLA's alpha_i E_i.

    Raises:
        InfeasibleError: no plan is within `max_depth` or `max_latency`, or has `min_agreement`; says what would do.
    """
    nodes = [node for node in graph.nodes if isinstance(node.op, Activation)]
    histograms = context.need_calibration().histograms
    if options.method == "quadratic":
        return {node.id: 2 for node in nodes}
    if options.plan is not None:
        if len(options.plan) != len(nodes):
            raise InfeasibleError(
                f"the plan has {len(options.plan)} degrees, the model {len(nodes)} activations. Give one for each."
            )
        return {node.id: degree for node, degree in zip(nodes, options.plan, strict=True)}
    if options.degree is not None:
        return {node.id: options.degree for node in nodes}
    if options.tolerance is not None:
        return {node.id: fit(functions(node), histograms[node.id], options).degree for node in nodes}
    if not nodes:
        return {}
    return _Search(graph, nodes, histograms, context, options).run()


class _Search:
    """The dynamic program, its prices and costs, and the plans that it gave."""

    def __init__(
        self,
        graph: Graph,
        nodes: Sequence[Node],
        histograms: Mapping[str, Histogram],
        context: PassContext,
        options: FitOptions,
    ) -> None:
        self.graph, self.nodes, self.context, self.options = graph, nodes, context, options
        self.histograms = histograms
        self.images = context.need_images()
        self.folds = foldable(graph, context) if options.method != "normal" else frozenset()
        self.degrees = {node.id: self._candidates(node) for node in nodes}
        self.depths = {name: [self._depth(name, d) for d in row] for name, row in self.degrees.items()}

    def run(self) -> dict[str, int]:
        """The degrees of the plan that meets the limits."""
        options = self.options
        costs = self._ola_costs() if options.degrees == "ola" else self._measured_costs()
        plan = self._bounded(costs)
        limited = plan is not None
        if plan is None:
            plan = self._agreeing(costs)
        elif options.method == "compensated" and options.degrees == "measured":
            plan = self._refined(costs, plan)
        if options.max_depth is not None:
            plan = self._honest(costs, plan, options.max_depth)
        if limited and options.min_agreement is not None:
            agreement = self._agreement(plan)
            if agreement < options.min_agreement:
                agreement = self._fitted_agreement(plan)
            if agreement < options.min_agreement:
                raise InfeasibleError(
                    f"the best plan within {self._limit():g} has an agreement of {agreement:.1%} on unseen images, and "
                    f"{options.min_agreement:.1%} are asked for. Allow more, or ask for less."
                )
        self._record(costs, plan)
        return self._named(plan)

    # Candidates and prices -------------------------------------------------------------------------------------------

    def _candidates(self, node: Node) -> list[int]:
        """The largest degree of each depth, up to `max_degree`; at one level a square where it folds, else a line."""
        found = [2 if node.id in self.folds else 1]
        depth = 2
        while (1 << depth) - 1 <= self.options.most:
            found.append((1 << depth) - 1)
            depth += 1
        if self.options.most > max(found) and self.options.most not in found:
            found.append(self.options.most)
        return [d for d in found if d <= self.options.most] or [1]

    def _depth(self, name: str, degree: int) -> int:
        return 1 if degree == 2 and name in self.folds else max(1, degree.bit_length())

    def _prices(self) -> list[list[float]]:
        if self.options.max_latency is None:
            return [[float(d) for d in self.depths[node.id]] for node in self.nodes]
        costs, threads = self.context.costs or CostTable.default(), self.context.threads
        return [
            [activation_seconds(node, d, node.id in self.folds, costs, threads) for d in self.degrees[node.id]]
            for node in self.nodes
        ]

    def _limit(self) -> float | None:
        if self.options.max_bootstraps is not None:
            return self.options.max_bootstraps
        return self.options.max_latency if self.options.max_latency is not None else self.options.max_depth

    # Costs -----------------------------------------------------------------------------------------------------------

    def _fits(self) -> dict[str, list[Fit]]:
        method = "channel" if self.options.method == "compensated" else self.options.method
        options = replace(self.options, method=method)
        return {
            node.id: [fit(functions(node), self.histograms[node.id], options, d) for d in self.degrees[node.id]]
            for node in self.nodes
        }

    def _measured_costs(self) -> list[list[float]]:
        measured = self.images.effects(self.graph, self._fits())
        return [measured[node.id] for node in self.nodes]

    def _ola_costs(self) -> list[list[float]]:
        alphas = self.images.sensitivities(self.graph)
        missing = [node.id for node in self.nodes if not math.isfinite(alphas.get(node.id, math.nan))]
        if missing:
            raise VerificationError(f"the outputs' sensitivity to {', '.join(missing)} is unknown")
        costs = []
        for node in self.nodes:
            size = _mean_square(node, self.histograms[node.id])
            row = [
                alphas[node.id] * size * one.rmse**2
                for one in (
                    fit(functions(node), self.histograms[node.id], self.options, d) for d in self.degrees[node.id]
                )
            ]
            costs.append(row)
        return costs

    def _solve(self, costs: list[list[float]], limit: float) -> Plan | None:
        """The plan of least cost within the limit; None where there is none."""
        if self.options.max_bootstraps is None:
            return solve(costs, self._prices(), limit)
        by_degree = {
            node.id: dict(zip(self.degrees[node.id], row, strict=True))
            for node, row in zip(self.nodes, costs, strict=True)
        }
        chosen = plan_degrees(self.graph, by_degree, self.options.max_bootstraps)
        choices = tuple(self.degrees[node.id].index(chosen.degrees[node.id]) for node in self.nodes)
        return Plan(choices, float(chosen.plan.bootstraps), chosen.cost)

    # Plans -----------------------------------------------------------------------------------------------------------

    def _named(self, plan: Plan) -> dict[str, int]:
        return {node.id: self.degrees[node.id][k] for node, k in zip(self.nodes, plan.choices, strict=True)}

    def _agreement(self, plan: Plan) -> float:
        """Simulated agreement of a plan on held-out images."""
        degrees = self._named(plan)
        if self.options.method == "compensated":
            return self.images.trial(self.graph, degrees, self.options)[1]
        fitted = fit_from_histograms(self.graph, self.histograms, degrees, self.options)
        return self.images.error(self.graph, fitted)[1]

    def _fitted_agreement(self, plan: Plan) -> float:
        """Agreement of a plan after the whole fit, which gains on the quick one that plans are compared by."""
        if self.options.method != "compensated":
            return self._agreement(plan)
        fitted = self.images.compensate(self.graph, self._named(plan), self.options)
        return self.images.error(self.graph, fitted)[1]

    def _bounded(self, costs: list[list[float]]) -> Plan | None:
        """The best plan within the limit; None where there is no limit."""
        limit = self._limit()
        if limit is None:
            return None
        plan = self._solve(costs, limit)
        if plan is None:
            prices = self._prices()
            least, unit = sum(min(row) for row in prices), "levels"
            if self.options.max_latency is not None:
                unit = "predicted seconds"
            raise InfeasibleError(
                f"{len(self.nodes)} activations take at least {least:g} {unit} together, and {limit:g} are allowed. "
                f"Allow {least:g}."
            )
        return plan

    def _agreeing(self, costs: list[list[float]]) -> Plan:
        """The cheapest plan of the front with the agreement asked for; the front is searched by halving."""
        plans = front(costs, [[int(p) for p in row] for row in self._prices()])
        asked = MIN_AGREEMENT if self.options.min_agreement is None else self.options.min_agreement
        simulated: dict[int, float] = {}

        def agreement(index: int) -> float:
            if index not in simulated:
                simulated[index] = self._agreement(plans[index])
            return simulated[index]

        low, high = 0, len(plans) - 1
        if agreement(high) < asked:
            if self.options.min_agreement is not None and (fitted := self._fitted_agreement(plans[high])) < asked:
                raise InfeasibleError(
                    f"at degree {self.options.most} the program has an agreement of {fitted:.1%} on unseen images, and "
                    f"{asked:.1%} are asked for. Raise max_degree, or ask for less."
                )
            low = high  # no one asked, or the whole fit has it: the best there is, and the report says how good
        while low < high:
            middle = (low + high) // 2
            if agreement(middle) >= asked:
                high = middle
            else:
                low = middle + 1
        self.context.front.extend(
            FrontPoint(plans[i].price, plans[i].cost, tuple(self._named(plans[i]).values()), simulated[i], i == high)
            for i in sorted(simulated)
        )
        return plans[high]

    def _refined(self, costs: list[list[float]], plan: Plan) -> Plan:
        """Measure in the plan's own context, behind its own errors, and solve anew while the simulation gains."""
        limit = self._limit()
        assert limit is not None
        probes = sorted({d for row in self.degrees.values() for d in row})
        best = plan
        best_error, _, measured = self.images.trial(self.graph, self._named(plan), self.options, probes)
        for _ in range(REFINEMENTS):
            # The square root weighs a layer's own errors against what is already off at that place.
            again = [
                [
                    math.sqrt(max(cost, 0.0) * max(measured[node.id][d], 0.0))
                    for cost, d in zip(row, self.degrees[node.id], strict=True)
                ]
                for row, node in zip(costs, self.nodes, strict=True)
            ]
            other = self._solve(again, limit)
            if other is None or other.choices == best.choices:
                break
            error, _, effects = self.images.trial(self.graph, self._named(other), self.options, probes)
            if error >= best_error:
                break
            best, best_error, measured = other, error, effects
        return best

    def _honest(self, costs: list[list[float]], plan: Plan, limit: int) -> Plan:
        """The plan, with squares that do not fold in the whole circuit counted at what they really take."""
        for _ in range(len(self.nodes)):
            named = self._named(plan)
            folded = folded_in(self.graph, self.context, named)
            short = [name for name, degree in named.items() if degree == 2 and name in self.folds - folded]
            if not short:
                return plan
            self.folds -= set(short)
            self.depths = {name: [self._depth(name, d) for d in row] for name, row in self.degrees.items()}
            again = solve(costs, self._prices(), limit if self.options.max_latency is None else math.inf)
            if again is None:
                raise InfeasibleError(
                    f"no plan is within {limit} levels: the quadratics of {', '.join(short)} do not fold. Allow more."
                )
            plan = again
        return plan

    def _record(self, costs: list[list[float]], plan: Plan) -> None:
        """The front into the context, where it isn't there yet: without agreement, which nobody simulated."""
        if self.context.front:
            return
        prices = self._prices()

        def point(choices: Sequence[int], chosen: bool) -> FrontPoint:
            price, cost = (float(sum(row[k] for row, k in zip(rows, choices, strict=True))) for rows in (prices, costs))
            degrees = tuple(self.degrees[node.id][k] for node, k in zip(self.nodes, choices, strict=True))
            return FrontPoint(price, cost, degrees, None, chosen)

        plans = front(costs, [[int(d) for d in self.depths[node.id]] for node in self.nodes])
        points = [point(one.choices, False) for one in plans if one.choices != plan.choices]
        points.append(point(plan.choices, True))
        self.context.front.extend(sorted(points, key=lambda one: (one.price, -one.cost)))


def _mean_square(node: Node, histogram: Histogram) -> float:
    centres, masses = histogram.density(None)
    return float(np.sum(masses * functions(node)[0](centres) ** 2))


def fit_from_histograms(
    graph: Graph, histograms: Mapping[str, Histogram], degrees: Mapping[str, int], options: FitOptions
) -> Graph:
    """Every activation replaced by a fit to its histogram alone."""

    def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
        if not isinstance(node.op, Activation):
            return None
        made = fit(functions(node), histograms[node.id], options, degrees[node.id])
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
