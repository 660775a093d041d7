"""Joint reconstruction: all polynomials and weights are improved together towards the clean network's own values.

Adam minimises the mean over activations of log(1 + relative squared error), plus the same for the outputs, without
labels. The logarithm keeps one image that leaves a polynomial's range from deciding a step. Three measures make this
more stable than plain gradients: each layer's parameters are *whitened* by the second moments of what they multiply, so
that a step of given size changes its values equally in every direction; parameters are averaged over a pass, so that
steps may be large; and an average is kept only if images that no step has seen gain by it, and undone if their error
grows much. The method is olac's own and similar to block reconstruction for quantisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from olac.approximation import half
from olac.approximation.bounded import bounded, bounded_alone, bounded_polynomial
from olac.approximation.checkpoint import Checkpoint
from olac.approximation.common import (
    SWEPT,
    WORST,
    Augment,
    altered,
    diverged,
    output_error,
    output_sizes,
    spread_out,
    stressed,
    varied,
)
from olac.approximation.compiled import LARGEST
from olac.approximation.criterion import ENOUGH_CLASSES, Spread
from olac.approximation.steps import WORSE, Numbers, Order, Schedule, Steps
from olac.approximation.tails import Tails, expected_ranges
from olac.approximation.tensors import Weights, channels_last, outputs_of, run, tensors
from olac.approximation.whitened import Whitened
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Activation, Polynomial, PolynomialProduct
from olac.progress import Event

Tensor = torch.Tensor

RATE, TYPICAL_ERROR, TYPICAL_DEGREE = 2e-3, 0.07, 3
"""Adam's rate, in units of a layer's own standard deviation, if the outputs' error is TYPICAL_ERROR at the beginning.
It grows with the root of that error, within the bounds RATES, and is lower for mean degrees above TYPICAL_DEGREE."""
TYPICAL_DEPTH = 19
"""With more activations than this steps are smaller, in proportion: the changes of all layers add up."""
RATES = (4e-4, 3e-3)
BATCH = 32
INTERVAL, LEAST_INTERVAL = 8192, 4096
"""After this many images the mean of the parameters is judged; after passes over at least the second if that is fewer.
The mean is over as many, or one pass. A first judgement after one pass tells early if steps are too large."""
STRESSED = 0.4
"""Share of images that are moved out of the calibrated ranges."""
TAIL = 0.3
"""Weight of the growth of the polynomials' errors over the ranges that channels are expected to reach."""
BOUND = 30.0
"""Values of polynomials beyond this are compressed during steps; in standard deviations of the clean values."""
LEAST_IMAGES = 64
"""With fewer images nothing is reconstructed: there is too little to learn from."""
MOMENTS_IMAGES = 96
JUDGED, OFTENER = 1024, 3.0
"""Altered copies of images that are checked for outputs that diverge; the first are of held-out images. They are far
from what was seen and diverge 20 to 40 times as often as unseen images do, so that small numbers show. They count as if
it were only this many times, because an image that diverges is worse than one that disagrees."""
ROUNDED = 2e-3
"""If the outputs' error is larger at the beginning, convolutions of steps are computed in bfloat16."""


def reconstruct(
    original: Graph,
    approximated: Graph,
    images: Tensor,
    held_out: Tensor,
    epochs: int,
    *,
    seconds: float | None = None,
    refit: bool = True,
    progress: Callable[[str], None] | None = None,
    spread: Spread = "together",
    enough: float = ENOUGH_CLASSES,
    seed: int = 0,
    augment: Augment = varied,
    checkpoint: Checkpoint | None = None,
) -> Graph:
    """The approximated graph with better coefficients and weights, or unchanged if nothing is gained.

    Polynomials that replace no activation, such as the compositions of a max-pooling, are not changed.

    Args:
        original: with its activations; the ids of the approximated graph's polynomials are those of its activations.
        approximated: at stage POLYNOMIAL.
        images: (n, *input shape), for steps.
        held_out: (m, *input shape), by which it is decided what is kept.
        epochs: passes over the images.
        seconds: after which it ends at the latest; None for no limit. Steps shrink towards that end as well.
        refit: whether weights are trained as well.
        progress: called with a line of text for each epoch.
        spread: how errors of outputs are scaled.
        enough: error of the outputs below which nothing is reconstructed.
        seed: of the order of the images and of what is done to them.
        augment: alters the images of each batch.
        checkpoint: where the state is kept and, if it is there, taken from; of this fit.
    """
    if len(images) < LEAST_IMAGES or epochs == 0:
        return approximated
    clean, start = tensors(original), tensors(approximated)
    output = original.outputs[0]
    fitted = fitted_polynomials(original, approximated)
    watched = frozenset(node.id for node in fitted) | {output}
    with torch.no_grad():
        sound = sound_images(approximated, start, original, clean, images[:MOMENTS_IMAGES])
        if not len(sound):
            return approximated
        degrees = {n.id: start[n.op.coefficients].shape[1] - 1 for n in fitted if isinstance(n.op, Polynomial)}
        ranges = expected_ranges(original, clean, degrees, spread_out(images, SWEPT))
        whitened = Whitened(approximated, start, sound, ranges, refit, spread)
        grow = frozenset(node.id for node in original.nodes if _may_grow(node))
        first = run(original, clean, images[: 4 * BATCH], keep=watched | grow)
        variances = {name: value.var().clamp_min(1e-12) for name, value in first.items()}
        sizes = {name: variances[name] for name in watched}
        output_size = output_sizes(first[output].flatten(1), spread)

    def outputs(graph: Graph, weights: dict[str, Tensor], x: Tensor, few_bits: bool = False) -> Tensor:
        instead = half.convolutions(graph) if few_bits else {}
        with torch.no_grad():
            return torch.cat([run(graph, weights, part, instead=instead)[output] for part in x.split(BATCH)])

    held_out = channels_last(held_out)
    copies = channels_last(altered(torch.cat([held_out, spread_out(images, JUDGED)]), JUDGED, seed + 1, augment))
    wanted, copies_wanted = outputs(original, clean, held_out), outputs(original, clean, copies, True)

    def held_error(weights: dict[str, Tensor]) -> float:
        """The error on unseen images, and the share of altered copies that diverge."""
        made = outputs(approximated, weights, copies, True)
        unseen = output_error(outputs(approximated, weights, held_out), wanted, spread)
        return unseen + WORST / OFTENER * float(diverged(made, copies_wanted, spread).double().mean())

    best, kept = held_error(start), start
    if best < enough:
        return approximated
    # Values of 8 bits do not show small errors.
    few_bits = best > ROUNDED
    rounded, ours_rounded = (half.convolutions(graph) if few_bits else {} for graph in (original, approximated))

    bounds = {name: BOUND * float(size.sqrt()) for name, size in variances.items()}
    # The values of the clean network in the present batch, and the errors against them.
    targets: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}

    def polynomial(node: Node, op: Polynomial) -> Callable[[Sequence[Tensor], Weights], Tensor]:
        """An image that diverges must not stop the others, so values are bounded."""

        def made(operands: Sequence[Tensor], weights: Weights) -> Tensor:
            x, coefficients, bound = operands[0], weights[op.coefficients], bounds[node.id]
            if node.id not in targets:  # it replaces no activation
                return bounded_alone(x, coefficients, op.half_width, bound)
            value, error = bounded_polynomial(x, coefficients, op.half_width, bound, targets[node.id])
            errors[node.id] = torch.log1p(error / (x[0].numel() * sizes[node.id])).mean()
            return value

        return made

    def product(node: Node, op: PolynomialProduct) -> Callable[[Sequence[Tensor], Weights], Tensor]:
        def made(operands: Sequence[Tensor], weights: Weights) -> Tensor:
            x, of = operands
            factor = bounded_alone(of, weights[op.coefficients], op.half_width, LARGEST)
            return bounded(x * factor, bounds[node.id])

        return made

    instead = ours_rounded | {
        node.id: polynomial(node, node.op) if isinstance(node.op, Polynomial) else product(node, node.op)
        for node in approximated.nodes
        if node.id in bounds and isinstance(node.op, Polynomial | PolynomialProduct)
    }
    tails = Tails(original, approximated, fitted, sizes, ranges)
    rate = rate_for(best, list(degrees.values()))
    averaged = math.ceil(min(len(images), INTERVAL) / BATCH)
    each = averaged * math.ceil(min(LEAST_INTERVAL, INTERVAL) / BATCH / averaged)
    schedule = Schedule(math.ceil(len(images) / BATCH) * epochs, seconds)
    steps = Steps(whitened.theta, rate, averaged, schedule)
    at_best = steps.mean()
    random = torch.Generator().manual_seed(seed)
    order = Order(len(images), BATCH, random)
    number = 0
    if checkpoint is not None and (found := checkpoint.load()):
        numbers, parts = found
        with checkpoint.checking():
            schedule.restore(numbers)
            steps.restore(numbers, parts)
            order.restore(numbers, parts)
            number, best = int(numbers["number"]), numbers["best"]
            if numbers["gained"]:
                at_best = {name: parts[f"best/{name}"] for name in at_best}
                kept = {name: value.detach() for name, value in whitened.current(at_best).items()}
    while not schedule.over:
        number += 1
        chosen = order.next()
        batch = channels_last(stressed(augment(images[chosen], random), random, STRESSED))
        with torch.no_grad():
            targets.update(run(original, clean, batch, keep=watched, instead=rounded))
        current = whitened.current()
        made = run(approximated, current, batch, instead=instead)[output]
        last = torch.log1p(((made - targets[output]).square().flatten(1) / output_size).mean(1)).mean()
        loss = torch.stack([*errors.values(), last]).mean() + last + TAIL * tails(current)
        steps.take(loss)
        if number % averaged and not schedule.over:
            continue
        if not number % each or number == averaged or schedule.over:
            now = {name: value.detach() for name, value in whitened.current(steps.mean()).items()}
            error = held_error(now)
            if error < best:
                best, kept = error, now
                at_best = steps.mean()
            elif not error <= WORSE * best:
                steps.restart(at_best)
            if checkpoint is not None:
                numbers = {"number": number, "best": best, "gained": kept is not start}
                checkpoint.save(_state(numbers, at_best, schedule, steps, order))
        if progress is not None:
            line = f"reconstructing: {schedule.share:.0%}, {number * BATCH} images seen, error {error:.3g}"
            progress(Event(line, "", round(100 * schedule.share), 100))
    return with_constants(approximated, kept, set(whitened.theta), "reconstruct") if kept is not start else approximated


def rate_for(error: float, degrees: Sequence[int]) -> float:
    """Adam's rate in whitened units, for an error of the outputs at the beginning and the degrees of polynomials."""
    rate = min(max(RATE * math.sqrt(error / TYPICAL_ERROR), RATES[0]), RATES[1])
    rate *= min(1.0, TYPICAL_DEGREE * len(degrees) / max(1, sum(degrees)))
    return rate * min(1.0, TYPICAL_DEPTH / max(1, len(degrees)))


def _state(
    numbers: Numbers, at_best: Mapping[str, Tensor], schedule: Schedule, steps: Steps, order: Order
) -> tuple[Numbers, dict[str, Tensor]]:
    of_steps, of_order = steps.state(), order.state()
    best = {f"best/{name}": value for name, value in at_best.items()}
    return numbers | schedule.state() | of_steps[0] | of_order[0], best | of_steps[1] | of_order[1]


def fitted_polynomials(original: Graph, approximated: Graph) -> list[Node]:
    """The polynomials that replaced an activation, and have its id."""
    activations = {node.id for node in original.nodes if isinstance(node.op, Activation)}
    return [node for node in approximated.nodes if isinstance(node.op, Polynomial) and node.id in activations]


def _may_grow(node: Node) -> bool:
    """Whether a node of the original is a polynomial in the approximated graph, which grows without bound."""
    return isinstance(node.op, Activation | Polynomial | PolynomialProduct)


def sound_images(
    approximated: Graph, weights: dict[str, Tensor], original: Graph, clean: dict[str, Tensor], images: Tensor
) -> Tensor:
    """The images whose values are finite and whose outputs are near the clean ones, so that they have moments."""
    values = run(approximated, weights, images, keep=frozenset(node.id for node in approximated.nodes))
    wanted = outputs_of(original, clean, images)
    finite = torch.stack([value.flatten(1).isfinite().all(1) for value in values.values()]).all(0)
    near = (values[original.outputs[0]] - wanted).flatten(1).abs().amax(1) <= BOUND * wanted.std().clamp_min(1e-6)
    return images[finite & near]


def with_constants(graph: Graph, weights: Weights, changed: set[str], by: str) -> Graph:
    """The graph with other values of some constants; `by` is what changed them."""

    def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
        names = {
            field: builder.constant(f"{node.id}.{field}.{by}", weights[name].detach().cpu().double().numpy())
            for field in node.op.constant_fields
            if (name := getattr(node.op, field)) in changed
        }
        return builder.keep(node, inputs, op=replace(node.op, **names)) if names else None

    return graph.rewrite(step, by=by)
