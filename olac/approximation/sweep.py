"""The error-compensating sweep: one pass through the network, in order, over two runs of the same images.

One run is clean, the other has the approximations of all layers so far. Each activation's polynomials, one a channel,
regress the clean output on the disturbed input. Each convolution and linear layer may be re-fitted by ridge regression
of its clean output, less the value of a residual branch that is added to it, on its disturbed input. Floors, paddings
and ridges are chosen for each layer by the error of the outputs on images that no fit sees, with the rest of the
network clean. The method is olac's own and needs no labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from olac.approximation.clean import Clean
from olac.approximation.common import output_error
from olac.approximation.criterion import Spread
from olac.approximation.extremes import extremes, reach
from olac.approximation.floors import LOW, SHARE, Room, System
from olac.approximation.least_squares import ridge_regression, unknowns
from olac.approximation.moments import ends, means
from olac.approximation.tensors import CHUNK, apply, channels_last, outputs_of, run, tensors
from olac.ir.functions import channel_functions
from olac.ir.graph import Graph, GraphBuilder, Node, last_reads
from olac.ir.ops import Activation, Add, Conv2d, Input, Linear, Polynomial
from olac.ir.types import Stage
from olac.polynomials.fit import TINY, centred
from olac.polynomials.modes import Compensated
from olac.progress import Event

Tensor = torch.Tensor

RIDGES = (1e-3, 1e-2, 1e-1)
"""Pulls towards the trained weights that are tried, besides leaving the weights unchanged."""
MOST_UNKNOWNS = 6000
"""Layers whose normal equations have more unknowns are not re-fitted, because solving them takes too long."""
TOLERANCE = 1.03
"""Of the tails whose error is within this factor of the least, the safest are used."""


def tails(degree: int) -> tuple[tuple[float, float], ...]:
    """Floors and paddings that are tried for a degree, the safest last."""
    if degree <= 3:
        return (3e-5, 1.2), (1e-4, 1.2), (1e-3, 1.4)
    if degree <= 7:
        return (1e-3, 1.4), (3e-3, 1.4), (3e-3, 1.6)
    return (1e-3, 1.6), (3e-3, 1.6), (1e-2, 1.6)


@dataclass
class Run:
    """The images of fits, run twice: the values that are still needed, clean and disturbed.

    The two share values that are the same.
    """

    clean: dict[str, Tensor]
    disturbed: dict[str, Tensor]


@dataclass
class Swept:
    """The result of a sweep.

    Attributes:
        graph: at stage POLYNOMIAL, or with the activations that no degree was given for.
        error: of the outputs on the held-out images (see `output_error`).
        outputs, clean: on the held-out images.
        effects: by activation and probed degree, the error on the held-out images with the rest clean.
    """

    graph: Graph
    error: float
    outputs: Tensor
    clean: Tensor
    effects: dict[str, dict[int, float]] = field(default_factory=dict)


@torch.no_grad()
def sweep(
    graph: Graph,
    images: Tensor,
    held_out: Tensor,
    degrees: Mapping[str, int],
    method: Compensated,
    *,
    choose: bool = True,
    probes: Sequence[int] = (),
    progress: Callable[[str], None] | None = None,
    spread: Spread = "together",
    clean: Clean | None = None,
) -> Swept:
    """Replace the activations that `degrees` names, in network order.

    Args:
        graph: at stage TRACED; its activations' ids are the keys of `degrees`.
        images: (n, *input shape), for fits.
        held_out: (m, *input shape), by which floors, paddings and ridges are chosen.
        method: `refit`, and `floor`, `padding`, `ridge` if they are not to be chosen.
        choose: whether to choose these by the held-out images; otherwise the method's own or defaults are used.
        probes: further degrees whose effect at each activation is measured.
        progress: called with a line of text for each activation.
        spread: how errors of outputs are scaled.
        clean: the values of the clean network on these images if they are known; only without `refit`.
    """
    assert clean is None or not method.refit, "re-fitted weights need all clean values"
    original = tensors(graph)
    weights = dict(original)
    users = graph.users()
    order = [node for node in graph.nodes if not isinstance(node.op, Input)]
    done_with = last_reads(graph.nodes)
    name = graph.inputs[0].id
    images, held_out = channels_last(images), channels_last(held_out)
    fitted, held = Run({name: images}, {name: images}), {name: held_out}
    clean_outputs = outputs_of(graph, original, held_out) if clean is None else clean.outputs
    changed: set[str] = set()
    effects: dict[str, dict[int, float]] = {}
    new: dict[str, Node] = {}
    done = 0

    def rest(index: int, value: Tensor) -> float:
        """Error of the outputs with this value at node `index` and all nodes after it clean."""
        values = {**held, order[index].id: value}
        outputs = run(graph, original, values, order[index + 1 :])[graph.outputs[0]]
        return output_error(outputs, clean_outputs, spread)

    for index, node in enumerate(order):
        if clean is None:
            fitted.clean[node.id] = batched(node, [fitted.clean[i] for i in node.inputs], original, graph)
        elif node.id in clean.activations:
            fitted.clean[node.id] = clean.activations[node.id]
        disturbed = not changed.isdisjoint(node.inputs)
        if isinstance(node.op, Conv2d | Linear) and method.refit and disturbed:
            if progress is not None:
                progress(f"re-fitting the weights of {node.id}")
            kept = _refit(graph, node, weights, users[node.id], fitted, held, method, choose, index, rest)
            new[node.id] = kept
        elif isinstance(node.op, Activation) and node.id in degrees:
            wanted = degrees[node.id]
            found: dict[int, tuple[float, Tensor, float]] = {}
            furthest = ends(fitted.disturbed[node.inputs[0]])
            for degree in sorted({wanted, *probes}):
                measure = (lambda v, i=index: rest(i, v)) if choose or probes else None
                found[degree] = _fit(node.op, node, fitted, held, furthest, degree, method, choose, measure)
            effects[node.id] = {degree: error for degree, (error, _, _) in found.items()}
            _, coefficients, half_width = found[wanted]
            name = f"{node.id}.coefficients"
            weights[name] = coefficients
            new[node.id] = replace(node, op=Polynomial(name, half_width))
            done += 1
            if progress is not None:
                progress(Event(f"fitting polynomials: {done} of {len(degrees)}", "", done, len(degrees)))
        else:
            new[node.id] = node
        if new[node.id].op is not node.op or disturbed:
            changed.add(node.id)
        for values in (fitted.disturbed, held):
            if values is fitted.disturbed and node.id not in changed and node.id in fitted.clean:
                values[node.id] = fitted.clean[node.id]
            else:
                values[node.id] = batched(new[node.id], [values[i] for i in node.inputs], weights, graph)
            for operand in done_with[node.id]:
                del values[operand]
        for operand in done_with[node.id]:
            fitted.clean.pop(operand, None)
    outputs = held[graph.outputs[0]]
    rebuilt = _rebuilt(graph, new, weights)
    return Swept(rebuilt, output_error(outputs, clean_outputs, spread), outputs, clean_outputs, effects)


def batched(node: Node, operands: Sequence[Tensor], weights: Mapping[str, Tensor], graph: Graph) -> Tensor:
    """The value of a node, a few images at a time."""
    parts = zip(*(x.split(CHUNK) for x in operands), strict=True)
    return torch.cat([apply(node, part, weights, graph.constants) for part in parts])


def _rebuilt(graph: Graph, new: Mapping[str, Node], weights: Mapping[str, Tensor]) -> Graph:
    def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
        made = new.get(node.id, node)
        if made.op is node.op:
            return None
        names = {
            field: builder.constant(f"{node.id}.{field}.fitted", weights[name].double().numpy())
            for field in made.op.constant_fields
            if (name := getattr(made.op, field)) is not None
        }
        return builder.add(replace(made.op, **names), inputs, name=node.id, origin=node.origin, type=node.type)

    left = any(isinstance(new.get(node.id, node).op, Activation) for node in graph.nodes)
    return graph.rewrite(step, by="fit_activations", stage=graph.stage if left else Stage.POLYNOMIAL)


# Linear layers -------------------------------------------------------------------------------------------------------


def _refit(
    graph: Graph,
    node: Node,
    weights: dict[str, Tensor],
    users: Sequence[Node],
    fitted: Run,
    held: Mapping[str, Tensor],
    method: Compensated,
    choose: bool,
    index: int,
    rest: Callable[[int, Tensor], float],
) -> Node:
    """The node with re-fitted weights, put into `weights`; unchanged if that is better for the held-out images."""
    op = node.op
    assert isinstance(op, Conv2d | Linear)
    weight = weights[op.weight]
    target = fitted.clean[node.id]
    if unknowns(weight, target) > MOST_UNKNOWNS:
        return node
    if len(users) == 1 and isinstance(users[0].op, Add):
        others = [i for i in users[0].inputs if i != node.id]
        if others and others[0] in fitted.disturbed:
            # The error of the other branch is compensated here.
            target = target + (fitted.clean[others[0]] - fitted.disturbed[others[0]])
    regression = ridge_regression(op, fitted.disturbed[node.inputs[0]], target, weight)
    groups = op.groups if isinstance(op, Conv2d) else 1
    flat = weight.double().reshape(groups, len(weight) // groups, -1)
    names = (f"{node.id}.weight.fitted", f"{node.id}.bias.fitted")
    made = replace(node, op=replace(op, weight=names[0], bias=names[1]))
    ridges = (method.ridge,) if method.ridge is not None else RIDGES if choose else (RIDGES[1],)
    best: tuple[float, Tensor, Tensor] | None = None
    for ridge in ridges:
        w, b = (part.float() for part in regression.solve(flat, ridge))
        if not (torch.isfinite(w).all() and torch.isfinite(b).all()):
            continue  # inputs that never vary, and are very large or small, do not determine weights
        weights[names[0]], weights[names[1]] = w.reshape(weight.shape), b.reshape(-1)
        if not choose:
            return made
        error = rest(index, batched(made, [held[node.inputs[0]]], weights, graph))
        if best is None or error < best[0]:
            best = (error, weights[names[0]], weights[names[1]])
    if best is None or best[0] > rest(index, batched(node, [held[node.inputs[0]]], weights, graph)):
        return node
    weights[names[0]], weights[names[1]] = best[1], best[2]
    return made


# Activations ---------------------------------------------------------------------------------------------------------


def by_channel(x: Tensor) -> Tensor:
    """(n, channels, ...) as (channels, n ...)."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def _fit(
    op: Activation,
    node: Node,
    fitted: Run,
    held: Mapping[str, Tensor],
    furthest: Tensor,
    degree: int,
    method: Compensated,
    choose: bool,
    measure: Callable[[Tensor], float] | None,
) -> tuple[float, Tensor, float]:
    """Error on the held-out images (nan if not measured), coefficients and half width of the best tails."""
    x, y = fitted.disturbed[node.inputs[0]], fitted.clean[node.id]
    low, high = (each.double().numpy() for each in (furthest[:, :, 0].amin(0), furthest[:, :, 1].amax(0)))
    middle, half = centred(low, high, degree)
    tails_seen = extremes(furthest)
    beyond = reach(tails_seen, middle, half, together=degree > LOW)
    largest = max(float(y.abs().max()), TINY)
    second, first = means(x, y, torch.from_numpy(middle), torch.from_numpy(half), degree)
    functions = channel_functions(op.function, op.parameters, x.shape[1])
    best: tuple[float, Tensor, float] | None = None
    given = method.floor is not None or method.padding is not None
    heavy = tails_seen is not None and tails_seen.heavy
    room = Room(math.inf if given else float(y.std(correction=0)), 0.0 if heavy else SHARE)
    candidates = (method.tails(degree),) if given or not choose else tails(degree)
    for floor, least in candidates:
        padding = np.maximum(least, beyond * least / candidates[0][1]) if method.padding is None else least + 0 * half
        half_width = float((np.abs(middle) + padding * half).max())
        system = System(functions, second, first, middle, half, padding)
        made = system.bounded(floor, beyond, half_width, largest, room)
        error = float("nan")
        if measure is not None:
            polynomial = replace(node, op=Polynomial("c", half_width))
            value = batched(polynomial, [held[node.inputs[0]]], {"c": made}, _NOTHING)
            error = measure(value)
        if best is None or error <= best[0] * TOLERANCE:
            best = (min(error, best[0]) if best else error, made, half_width)
    assert best is not None
    return best


_NOTHING = Graph((), (), {}, Stage.TRACED)
