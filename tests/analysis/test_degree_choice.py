"""Which degree each activation gets: limits that hold in the circuit, and plans by hand for known effects."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

import olac
from benchmarks.depth import activation_depth
from olac.analysis import degree_bootstraps, degree_choice
from olac.analysis.degree_bootstraps import least_bootstraps
from olac.analysis.degree_choice import Evidence, activation_seconds, fit_from_histograms, functions
from olac.calibration.statistics import Calibration
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.errors import InfeasibleError, VerificationError
from olac.ir.graph import Graph
from olac.ir.ops import Square
from olac.passes.base import PassContext, PassManager
from olac.passes.fit_activations import FitActivations
from olac.passes.insert_placeholders import circuit_pipeline
from olac.polynomials.fit import Fit, fit
from olac.polynomials.modes import Channel, Compensated, FitOptions, MethodName, Minimax
from olac.program.parts import decode, encode
from olac.program.report import Report
from olac.system.arrays import Array
from tests.approximation.nets import Residual, activations, folded, histograms, images, residual

IMAGES = images(40)
NET = residual(2)
NAMES = activations(NET)
Degrees = Mapping[str, int]


@dataclass
class Known:
    """Replaces measurements on images: effects, errors and agreements are given."""

    cost: Callable[[str, int], float]
    agreement: Callable[[Degrees], float] = lambda degrees: 1.0
    loss: Callable[[Degrees], float] = lambda degrees: 1.0
    in_context: Callable[[Degrees, str, int], float] | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    fitted: Callable[[Degrees], float] | None = None
    astray: Callable[[Degrees], int] = lambda degrees: 0
    trials: list[dict[str, int]] = field(default_factory=list)
    fits: list[dict[str, int]] = field(default_factory=list)
    compensated: list[dict[str, int]] = field(default_factory=list)

    def effects(self, graph: Graph, fits: Mapping[str, Sequence[Fit]]) -> dict[str, list[float]]:
        return {name: [self.cost(name, one.degree) for one in row] for name, row in fits.items()}

    def sensitivities(self, graph: Graph) -> dict[str, float]:
        return dict(self.alphas)

    def trial(
        self, graph: Graph, degrees: Degrees, method: Compensated, probes: Sequence[int] = ()
    ) -> tuple[float, float, dict[str, dict[int, float]]]:
        self.trials.append(dict(degrees))
        in_context = self.in_context or (lambda degrees, name, d: self.cost(name, d))
        measured = {name: {d: in_context(degrees, name, d) for d in {*probes, one}} for name, one in degrees.items()}
        return self.loss(degrees), self.agreement(degrees), measured

    def error(self, original: Graph, approximated: Graph) -> tuple[float, float]:
        found = degrees_of(original, approximated)
        self.fits.append(found)
        return self.loss(found), (self.fitted or self.agreement)(found)

    def compensate(self, graph: Graph, degrees: Degrees, method: Compensated) -> Graph:
        """The polynomials themselves do not matter: `error` looks at their degrees."""
        self.compensated.append(dict(degrees))
        return fit_from_histograms(graph, histograms(graph, IMAGES), degrees, method)

    def diverging(self, original: Graph, approximated: Graph) -> tuple[int, int]:
        return self.astray(degrees_of(original, approximated)), 1024

    def outside(self, graph: Graph, ranges: Mapping[str, Array]) -> dict[str, float]:
        return dict.fromkeys(ranges, 0.25)


def degrees_of(original: Graph, approximated: Graph) -> dict[str, int]:
    return {
        n.id: approximated.constants[n.op.coefficients].shape[1] - 1  # type: ignore[attr-defined]
        for n in approximated.nodes
        if n.id in activations(original)
    }


def by_weight(weights: Sequence[float], names: Sequence[str] = NAMES) -> Callable[[str, int], float]:
    """The effect of an activation falls with its degree, from a weight of its own."""
    return lambda name, degree: weights[list(names).index(name)] / degree**2


def context_for(known: Known, graph: Graph = NET, x: torch.Tensor = IMAGES) -> PassContext:
    given = x.double().numpy()
    calibration = Calibration(len(x), histograms(graph, x), {}, given[:2], graph.evaluate(given[:2]))
    return PassContext(calibration=calibration, images=known)


def lowered(graph: Graph, degrees: Degrees) -> Graph:
    return PassManager(circuit_pipeline(degrees)).run(graph, PassContext())


def folded_in(graph: Graph, degrees: Degrees) -> set[str]:
    return {node.id for node in lowered(graph, degrees).nodes if isinstance(node.op, Square)}


def foldable(graph: Graph) -> set[str]:
    return folded_in(graph, dict.fromkeys(activations(graph), 2))


def circuit_levels(graph: Graph, degrees: Degrees) -> int:
    """Levels that activations of these degrees take, counted from the circuit by the recorder."""
    return activation_depth(PassManager(circuit_pipeline(degrees)[:2]).run(graph, PassContext()))


def choose_degrees(graph: Graph, context: PassContext, options: FitOptions) -> dict[str, int]:
    """Choose degrees as `FitActivations` does."""
    method = options.fitting
    assert not isinstance(method, Minimax)
    evidence = Evidence(
        context.need_calibration().histograms,
        lambda degrees: lowered(graph, degrees),
        context.need_images,
        olac.costs.CostTable.default(),
        context.threads,
    )
    choice = degree_choice.choose_degrees(graph, method, options.choice, evidence)
    context.front.extend(choice.front)
    return choice.degrees


WEIGHTS = (3.0, 0.1, 1.0, 0.5, 2.0)
CANDIDATES = (2, 3, 7, 15)
LEVELS = {2: 1, 3: 2, 7: 3, 15: 4}


def best(weights: Sequence[float], limit: int) -> float:
    """Least total effect within a number of levels, by trying every plan."""
    cost = by_weight(weights)
    return min(
        sum(cost(name, d) for name, d in zip(NAMES, plan, strict=True))
        for plan in itertools.product(CANDIDATES, repeat=len(NAMES))
        if sum(LEVELS[d] for d in plan) <= limit
    )


# Limits on depth ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["compensated", "channel", "empirical"])
@pytest.mark.parametrize("limit", [5, 6, 8, 11, 14, 20, 50])
def test_the_plan_is_the_best_within_the_levels(limit: int, method: MethodName) -> None:
    known = Known(by_weight(WEIGHTS))
    context = context_for(known)
    found = choose_degrees(NET, context, FitOptions(max_degree=15, method=method, max_depth=limit))
    assert list(found) == NAMES and set(found.values()) <= set(CANDIDATES)
    assert sum(LEVELS[d] for d in found.values()) <= limit
    assert circuit_levels(NET, found) <= limit
    total = sum(known.cost(name, d) for name, d in found.items())
    assert total == pytest.approx(best(WEIGHTS, limit))


@pytest.mark.parametrize("most", [0, 1])
def test_the_plan_is_the_best_within_the_bootstraps(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a chain of 24 levels and 7 more after a bootstrap this network's linear ops take 6."""
    chain_of_24 = Parameters(16, 24, 40, 47, 2, FLEXIBLE, 128, Bootstrapping(8))
    monkeypatch.setattr(degree_bootstraps, "usual_bootstrapping", lambda engine: chain_of_24)
    known = Known(by_weight(WEIGHTS))
    context = context_for(known)
    found = choose_degrees(NET, context, FitOptions(max_degree=15, max_bootstraps=most))
    assert least_bootstraps(lowered(NET, found)).bootstraps <= most
    plans = (dict(zip(NAMES, plan, strict=True)) for plan in itertools.product(CANDIDATES, repeat=len(NAMES)))
    better = [p for p in plans if sum(known.cost(n, d) - known.cost(n, found[n]) for n, d in p.items()) < -1e-9]
    assert most or better  # Degree 15 everywhere takes one bootstrap.
    assert all(least_bootstraps(lowered(NET, plan)).bootstraps > most for plan in better)


def test_the_activation_that_matters_gets_the_levels() -> None:
    for favoured in NAMES:
        known = Known(lambda name, d, f=favoured: (1000.0 if name == f else 1.0) / d)  # type: ignore[misc]
        found = choose_degrees(NET, context_for(known), FitOptions(max_degree=15, method="channel", max_depth=8))
        assert found[favoured] == max(found.values()) > 3


@pytest.mark.parametrize("limit", [1, 4])
def test_too_few_levels_are_refused_with_the_number_that_would_do(limit: int) -> None:
    known = Known(by_weight(WEIGHTS))
    with pytest.raises(InfeasibleError, match=rf"5 activations take at least 5 levels together, and {limit} are"):
        choose_degrees(NET, context_for(known), FitOptions(max_degree=15, max_depth=limit))
    assert choose_degrees(NET, context_for(known), FitOptions(max_degree=15, max_depth=5)) == dict.fromkeys(NAMES, 2)


def chain(*parts: nn.Module) -> Graph:
    torch.manual_seed(1)
    return folded(nn.Sequential(*parts), IMAGES[:2])


@pytest.mark.parametrize(
    "parts",
    [
        (nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)),
        (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.ReLU()),
    ],
)
def test_quadratics_that_cannot_fold_are_never_planned_at_one_level(parts: tuple[nn.Module, ...]) -> None:
    graph = chain(*parts)
    names = activations(graph)
    folds = foldable(graph)
    outer = names[0] if isinstance(parts[0], nn.ReLU) else names[1]
    assert folds == set(names) - {outer}
    for limit in (2, 3, 4, 6):
        known = Known(by_weight((1.0, 1.0), names))
        context = context_for(known, graph)
        found = choose_degrees(graph, context, FitOptions(max_degree=15, max_depth=limit))
        assert circuit_levels(graph, found) <= limit
        assert found[outer] != 2, "a cubic is as deep"
        assert (found[outer] == 1) == (limit == 2)
        price = sum(p.price for p in context.front if p.chosen)
        assert price == circuit_levels(graph, found)


class Across(nn.Module):
    """A shortcut across a block, and an output that reads both ends: the last square folds beside another only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(5))

    def forward(self, x: Any) -> Any:
        first, second, across, *heads = self.convs
        x = torch.relu(self.stem(x))
        y = torch.relu(x + second(torch.relu(first(x))))
        return heads[0](torch.relu(y + across(x))) + heads[1](y)


def test_quadratics_that_fold_beside_others_only_are_counted_as_they_are() -> None:
    graph = folded(Across(), IMAGES[:2])
    names = activations(graph)
    third, last = names[2:]
    assert foldable(graph) == set(names)
    assert circuit_levels(graph, dict.fromkeys(names, 2)) == 4
    assert circuit_levels(graph, {**dict.fromkeys(names, 2), third: 3}) == 6
    moved = 0
    for limit in range(4, 12):
        context = context_for(Known(by_weight((0.1, 0.1, 50.0, 0.01), names)), graph)
        found = choose_degrees(graph, context, FitOptions(max_degree=15, method="channel", max_depth=limit))
        (chosen,) = [p for p in context.front if p.chosen]
        assert tuple(found.values()) == chosen.degrees
        assert circuit_levels(graph, found) <= limit
        folds = folded_in(graph, found)
        counted = {n: 1 if n in folds else d.bit_length() for n, d in found.items()}
        assert sum(counted.values()) <= limit
        moved += found[last] == 3
    assert moved, "a cubic is as deep as a square that does not fold"


@pytest.mark.parametrize("limit", [5, 7, 9, 12, 16])
@pytest.mark.parametrize("act", [torch.relu, nn.functional.gelu, torch.tanh, torch.sigmoid])
def test_the_circuit_of_a_model_keeps_the_limit(act: Callable[[torch.Tensor], torch.Tensor], limit: int) -> None:
    torch.manual_seed(0)
    approximated = olac.approximate(Residual(2, act).eval(), images(80), max_depth=limit, reconstruct=1)
    assert activation_depth(approximated.graph) <= limit
    report = approximated.report
    assert sum(one.depth for one in report.fits) <= limit
    squares = {node.id for node in approximated.graph.nodes if isinstance(node.op, Square)}
    assert {one.node for one in report.fits if one.depth == 1 and one.degree == 2} == squares
    (chosen,) = [point for point in report.front if point.chosen]
    assert chosen.degrees == tuple(one.degree for one in report.fits)
    assert chosen.price == sum(one.depth for one in report.fits)


# Agreement ------------------------------------------------------------------------------------------------------------


def shallow(degrees: Degrees) -> float:
    """Agreement that grows with the levels of a plan."""
    return 1 - 0.5 ** sum(LEVELS[d] for d in degrees.values())


@pytest.mark.parametrize("method", ["compensated", "channel"])
@pytest.mark.parametrize("asked", [0.5, 0.99, 0.9999, 1 - 2.0**-18])
def test_the_cheapest_plan_with_the_agreement_is_taken(asked: float, method: MethodName) -> None:
    known = Known(by_weight(WEIGHTS), agreement=shallow)
    context = context_for(known)
    found = choose_degrees(NET, context, FitOptions(max_degree=15, method=method, min_agreement=asked))
    levels = sum(LEVELS[d] for d in found.values())
    assert levels == max(5, math.ceil(-math.log2(1 - asked) - 1e-9))
    assert sum(known.cost(n, d) for n, d in found.items()) == pytest.approx(best(WEIGHTS, levels))
    assert len(known.trials) <= 6, "few plans are tried"
    (chosen,) = [p for p in context.front if p.chosen]
    assert chosen.agreement == shallow(found) >= asked
    assert all(p.agreement is not None and (p.agreement >= asked) == (p.price >= levels) for p in context.front)


def test_agreement_that_nothing_has_is_refused() -> None:
    known = Known(by_weight(WEIGHTS), agreement=lambda degrees: 0.7)
    with pytest.raises(
        InfeasibleError, match=r"at degree 15 .* of 70\.0% .*and 90\.0% are asked for\. Raise max_degree"
    ):
        choose_degrees(NET, context_for(known), FitOptions(max_degree=15, min_agreement=0.9))


def test_without_a_limit_the_best_there_is_will_do() -> None:
    known = Known(by_weight(WEIGHTS), agreement=lambda degrees: 0.7)
    context = context_for(known)
    assert choose_degrees(NET, context, FitOptions(max_degree=15)) == dict.fromkeys(NAMES, 15)
    point = context.front[-1]
    assert point.chosen and point.agreement == 0.7 and not any(one.chosen for one in context.front[:-1])
    known = Known(by_weight(WEIGHTS), agreement=shallow)
    found = choose_degrees(NET, context_for(known), FitOptions(max_degree=15))
    assert sum(LEVELS[d] for d in found.values()) == 6, "98 % are asked for"


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize(("levels", "most"), [(14, 7), (15, 7), (16, 15), (20, 15)])
def test_degrees_above_7_are_considered_if_those_up_to_it_are_not_enough(
    levels: int, most: int, required: bool
) -> None:
    """At degree 7 five activations have 15 levels, and with the last of 15 they have the agreement."""
    known = Known(
        by_weight(WEIGHTS),
        agreement=lambda degrees: 0.999 if sum(LEVELS[d] for d in degrees.values()) >= levels else 0.5,
    )
    context = context_for(known)
    options = FitOptions(min_agreement=0.99) if required else FitOptions()
    found = choose_degrees(NET, context, options)
    assert sum(LEVELS[d] for d in found.values()) == levels and max(found.values()) == most
    assert [p.chosen for p in context.front].count(True) == 1
    given = choose_degrees(NET, context_for(known), FitOptions(max_degree=7))
    assert max(given.values()) <= 7, "a largest degree that a caller gives is kept"


def test_degrees_above_7_are_considered_before_an_agreement_is_refused() -> None:
    """The forecast of degree 7 is too good."""
    known = Known(
        by_weight(WEIGHTS), agreement=lambda d: 0.999, fitted=lambda d: 0.5 if max(d.values()) < 15 else 0.999
    )
    options = FitOptions(min_agreement=0.99)
    assert max(choose_degrees(NET, context_for(known), options).values()) == 15
    with pytest.raises(InfeasibleError, match=r"at degree 7 .*Raise max_degree"):
        choose_degrees(NET, context_for(known), FitOptions(min_agreement=0.99, max_degree=7))


def test_a_fit_that_falls_short_is_followed_by_a_dearer_one() -> None:
    """Forecasts are too good by half; the second fit is of the plan that the first one says is enough."""
    known = Known(by_weight(WEIGHTS), agreement=shallow, fitted=lambda degrees: 1 - 2 * (1 - shallow(degrees)))
    context = context_for(known)
    found = choose_degrees(NET, context, FitOptions(max_degree=15, min_agreement=0.99))
    assert sum(LEVELS[d] for d in known.fits[0].values()) == 7
    assert len(known.fits) == 2 and known.fits[-1] == found and sum(LEVELS[d] for d in found.values()) >= 8
    (chosen,) = [p for p in context.front if p.chosen]
    assert chosen.agreement == 1 - 2 * (1 - shallow(found)) >= 0.99


def test_a_plan_that_diverges_loses_against_one_that_is_nearly_as_good() -> None:
    def astray(degrees: Degrees) -> int:
        return int(sum(LEVELS[d] for d in degrees.values()) == 6)

    known = Known(by_weight(WEIGHTS), agreement=shallow, astray=astray)
    found = choose_degrees(NET, context_for(known), FitOptions(max_degree=15, effort="thorough"))
    assert [sum(LEVELS[d] for d in fitted.values()) for fitted in known.fits] == [6, 7]
    assert found == known.fits[-1]


def test_what_the_search_fitted_is_the_result() -> None:
    for options in (FitOptions(max_degree=7), FitOptions(max_depth=9, min_agreement=0.5)):
        known = Known(by_weight(WEIGHTS), agreement=shallow)
        context = context_for(known)
        made = FitActivations(options.fitting, options.choice).run(NET, context)
        assert len(known.compensated) == 1
        assert known.compensated == [degrees_of(NET, made)] == known.fits
        (chosen,) = [p for p in context.front if p.chosen]
        assert chosen.degrees == tuple(fit.degree for fit in context.fits)


def test_the_plan_has_the_fewest_bootstraps_of_all_that_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every plan, for agreements that are as the additive model says; without bootstraps levels count."""
    chain_of_24 = Parameters(16, 24, 40, 47, 2, FLEXIBLE, 128, Bootstrapping(8))
    monkeypatch.setattr(degree_bootstraps, "usual_bootstrapping", lambda engine: chain_of_24)
    cost = by_weight(WEIGHTS)

    def agreement(degrees: Degrees) -> float:
        return 1 - 0.3 * math.sqrt(sum(cost(name, d) for name, d in degrees.items()))

    def bootstraps(degrees: Degrees) -> int:
        return least_bootstraps(lowered(NET, degrees)).bootstraps

    def levels(degrees: Degrees) -> int:
        return sum(LEVELS[d] for d in degrees.values())

    plans = [dict(zip(NAMES, plan, strict=True)) for plan in itertools.product(CANDIDATES, repeat=len(NAMES))]
    numbers = set()
    for asked in (0.7, 0.85, 0.9, 0.948):
        known = Known(cost, agreement=agreement)
        found = choose_degrees(NET, context_for(known), FitOptions(max_degree=15, min_agreement=asked))
        assert agreement(found) >= asked
        enough = [plan for plan in plans if agreement(plan) >= asked]
        number = bootstraps(found)
        numbers.add(number)
        if number:
            assert all(bootstraps(plan) >= number for plan in enough)
        else:
            assert all(levels(plan) >= levels(found) for plan in enough)
    assert numbers == {0, 1}


def test_depth_and_agreement_together() -> None:
    known = Known(by_weight(WEIGHTS), agreement=shallow)
    options = FitOptions(max_degree=15, method="channel", max_depth=8, min_agreement=0.99)
    assert sum(LEVELS[d] for d in choose_degrees(NET, context_for(known), options).values()) <= 8
    known.agreement = lambda degrees: 0.8
    with pytest.raises(InfeasibleError, match=r"the best plan within 8 has an agreement of 80\.0%.* 99\.0% are asked"):
        choose_degrees(NET, context_for(known), options)


# Latency --------------------------------------------------------------------------------------------------------------


def seconds(context: PassContext, degrees: Degrees) -> float:
    costs = olac.costs.CostTable.default()
    return sum(activation_seconds(NET[n], d, d == 2, costs, context.threads) for n, d in degrees.items())


def test_predicted_seconds_stay_within_the_limit() -> None:
    known = Known(by_weight(WEIGHTS))
    context = context_for(known)
    least, most = (seconds(context, dict.fromkeys(NAMES, d)) for d in (2, 15))
    assert least < most / 2
    totals = []
    for share in (0.01, 0.2, 0.5, 0.8, 1.1):
        limit = least + share * (most - least)
        context = context_for(known)
        found = choose_degrees(NET, context, FitOptions(max_degree=15, method="channel", max_latency=limit))
        assert seconds(context, found) <= limit * (1 + 1e-9)
        totals.append(sum(known.cost(n, d) for n, d in found.items()))
        (chosen,) = [p for p in context.front if p.chosen]
        assert chosen.price == pytest.approx(seconds(context, found))
        assert [p.price for p in context.front] == sorted(p.price for p in context.front)
    assert totals == sorted(totals, reverse=True) and totals[-1] < totals[0]
    assert found == dict.fromkeys(NAMES, 15)
    with pytest.raises(InfeasibleError, match=r"at least \S+ predicted seconds together"):
        choose_degrees(NET, context_for(known), FitOptions(max_degree=15, method="channel", max_latency=0.5 * least))


# Refinement -----------------------------------------------------------------------------------------------------------


def turned(degrees: Degrees, name: str, d: int) -> float:
    """After a plan's errors, the second activation is the one that matters."""
    return (1e6 if name == NAMES[1] else 1e-6) / d**2


@pytest.mark.parametrize("gains", [False, True])
def test_a_refined_plan_is_taken_if_the_trial_gains_by_it(gains: bool) -> None:
    options = FitOptions(max_degree=15, max_depth=9)
    first = choose_degrees(NET, context_for(Known(by_weight(WEIGHTS))), options)

    def loss(degrees: Degrees) -> float:
        return 1.0 if dict(degrees) == first else 0.5 if gains else 1.5

    known = Known(by_weight(WEIGHTS), in_context=turned, loss=loss)
    found = choose_degrees(NET, context_for(known), options)
    assert known.trials[0] == first and len(known.trials) >= 2 and known.trials[1] != first
    if gains:
        assert found[NAMES[1]] > first[NAMES[1]]
        assert circuit_levels(NET, found) <= 9
    else:
        assert found == first


def test_a_trial_that_is_no_better_is_not_taken() -> None:
    known = Known(by_weight(WEIGHTS), in_context=turned)
    found = choose_degrees(NET, context_for(known), FitOptions(max_degree=15, max_depth=9))
    assert found == choose_degrees(NET, context_for(Known(by_weight(WEIGHTS))), FitOptions(max_degree=15, max_depth=9))


def test_only_the_compensated_method_refines() -> None:
    known = Known(by_weight(WEIGHTS), in_context=turned, loss=lambda degrees: 0.0)
    choose_degrees(NET, context_for(known), FitOptions(max_degree=15, method="channel", max_depth=9))
    assert not known.trials


# Other choices, and the front ----------------------------------------------------------------------------------------


def test_degrees_as_told() -> None:
    known = Known(by_weight(WEIGHTS))
    assert choose_degrees(NET, context_for(known), FitOptions(degree=5)) == dict.fromkeys(NAMES, 5)
    assert choose_degrees(NET, context_for(known), FitOptions(method="quadratic")) == dict.fromkeys(NAMES, 2)
    context = context_for(known)
    found = choose_degrees(NET, context, FitOptions(method="channel", tolerance=0.05))
    for name, degree in found.items():
        seen = context.need_calibration().histograms[name]
        errors = [fit(functions(NET[name]), seen, Channel(), d).rmse for d in (degree - 1, degree)]
        assert (errors[1] <= 0.05 or degree == 15) and errors[0] > 0.05


def test_a_plan_names_the_degree_of_every_activation() -> None:
    plan = tuple(range(2, 2 + len(NAMES)))
    found = choose_degrees(NET, context_for(Known(by_weight(WEIGHTS))), FitOptions(plan=plan))
    assert tuple(found[name] for name in NAMES) == plan
    with pytest.raises(InfeasibleError, match=f"the plan has 1 degrees, the model {len(NAMES)} activations"):
        choose_degrees(NET, context_for(Known(by_weight(WEIGHTS))), FitOptions(plan=(3,)))
    with pytest.raises(ValueError, match="degree or plan, not both"):
        FitOptions(plan=plan, degree=3)
    with pytest.raises(ValueError, match="has a degree outside"):
        FitOptions(plan=(3, 0))


def test_ola_weighs_errors_by_sensitivities() -> None:
    for favoured in (NAMES[0], NAMES[3]):
        known = Known(by_weight(WEIGHTS), alphas={n: 1e4 if n == favoured else 1e-3 for n in NAMES})
        options = FitOptions(method="normal", degrees="ola", max_depth=9)
        found = choose_degrees(NET, context_for(known), options)
        assert found[favoured] == 31
        assert not {2} & set(found.values()), "OLA's polynomials have no squares that fold"
        assert sum(d.bit_length() for d in found.values()) <= 9


@pytest.mark.parametrize("alphas", [{}, dict.fromkeys(NAMES, math.nan)])
def test_a_sensitivity_that_is_not_known_is_an_error(alphas: dict[str, float]) -> None:
    options = FitOptions(method="normal", degrees="ola", max_depth=9)
    with pytest.raises(VerificationError, match=NAMES[0]):
        choose_degrees(NET, context_for(Known(by_weight(WEIGHTS), alphas=alphas)), options)


class Snake(nn.Module):
    def forward(self, x: Any) -> Any:
        return x + torch.sin(x) ** 2


@pytest.mark.parametrize("act", [nn.ReLU6, nn.Hardswish, nn.PReLU, nn.Mish, Snake])
def test_ola_gives_the_first_layer_as_much_whatever_the_activation(act: Callable[[], nn.Module]) -> None:
    def degrees_of(act: Callable[[], nn.Module]) -> tuple[int, ...]:
        torch.manual_seed(0)
        parts = [nn.Conv2d(3, 8, 3), act(), nn.Conv2d(8, 8, 3), act(), nn.Flatten(), nn.Linear(128, 4)]
        model = nn.Sequential(*parts).eval()
        given = {Snake: None} if act is Snake else None
        made = olac.approximate(model, [IMAGES], method="normal", degrees="ola", max_depth=6, activations=given)
        return tuple(fit.degree for fit in made.report.fits)

    assert degrees_of(nn.ReLU) == (7, 7)
    assert degrees_of(act)[0] >= 7


@pytest.mark.parametrize("max_degree", [1, 2, 3, 5, 7, 15, 31])
def test_no_degree_is_above_the_largest(max_degree: int) -> None:
    known = Known(by_weight(WEIGHTS))
    found = choose_degrees(NET, context_for(known), FitOptions(method="channel", max_degree=max_degree, max_depth=90))
    assert set(found.values()) == {max_degree}


@pytest.mark.parametrize("options", [{"max_depth": 9}, {"max_latency": 100.0}, {"min_agreement": 0.999}, {}])
def test_the_front_is_sorted_and_has_one_chosen_plan_and_comes_back_from_json(options: dict[str, Any]) -> None:
    known = Known(by_weight(WEIGHTS), agreement=shallow, in_context=turned, loss=lambda d: 1.0 / (1 + d[NAMES[1]]))
    context = context_for(known)
    found = choose_degrees(NET, context, FitOptions(**options))
    (chosen,) = [p for p in context.front if p.chosen]
    assert chosen.degrees == tuple(found.values())
    assert chosen.cost == pytest.approx(sum(known.cost(n, d) for n, d in found.items()))
    assert [p.price for p in context.front] == sorted(p.price for p in context.front)
    others = [p for p in context.front if not p.chosen]
    assert all(a.cost > b.cost for a, b in itertools.pairwise(others))
    report = Report(front=tuple(context.front))
    assert decode(json.loads(json.dumps(encode(report))), Report, "report") == report
