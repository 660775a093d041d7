"""What a program promises, measured on calibration images that decided nothing, and notes if it falls short."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from olac.approximation.confidence import images_for, interval
from olac.approximation.criterion import Criterion, explained, finished
from olac.calibration.histogram import Histogram
from olac.calibration.statistics import Calibration
from olac.errors import CalibrationError, InfeasibleError
from olac.ir.graph import Graph
from olac.ir.head import Affine as HeadAffine
from olac.ir.head import OutputHead
from olac.ir.head import Reshape as HeadReshape
from olac.ir.head import Slice as HeadSlice
from olac.ir.ops import Activation, Array, Reshape
from olac.polynomials.modes import MIN_AGREEMENT
from olac.program.program import ApproximatedModel
from olac.program.report import SelfCheck, percent
from olac.system.shapes import noun

FEW_IMAGES = 256
"""A note is made if a calibration has fewer images, because ranges and agreement are then little more than guesses."""
FEW_VALUES = 8
"""A note is made if some of a channel's values, but fewer than this, differ from the others, which are the same."""
POOR_VALUES = 0.9
"""A note is made if R2 of the outputs is lower although nearly all decisions agree."""
NAMED = 3
CHUNK = 64


def last_function(graph: Graph, head: OutputHead) -> str | None:
    """The function that makes a model's outputs, or None if they are linear; reshapes and slices may follow it.

    Args:
        graph: at stage TRACED.
        head: what follows it at the client.
    """
    for step in reversed(head.steps):
        if not isinstance(step, HeadReshape | HeadSlice):
            return None if isinstance(step, HeadAffine) else step.name
    node = graph[graph.outputs[0]]
    while isinstance(node.op, Reshape):
        node = graph[node.inputs[0]]
    return node.op.function if isinstance(node.op, Activation) else None


def self_check(
    approximated: ApproximatedModel,
    clean: Graph,
    calibration: Calibration,
    criterion: Criterion,
    asked: float | None,
    structure_error: float,
) -> SelfCheck:
    """A program's outputs against the model's, on held-out images that neither fits nor plans have used.

    Args:
        approximated: the model that is judged.
        clean: the graph before its activations were replaced.
        calibration: has the images.
        criterion: what agreement means.
        asked: the agreement that is asked for; None for `MIN_AGREEMENT`.
        structure_error: of the lifted graph, for the report.
    """
    goal = MIN_AGREEMENT if asked is None else asked
    images, theirs = calibration.judged, calibration.judged_outputs
    head = approximated.head
    raw = _in_chunks(lambda part: approximated.simulate(part, raw=True), images)
    ours = head.apply(raw).reshape(theirs.shape)
    agreement = criterion.agreement(finished(head.apply, raw).reshape(theirs.shape), theirs)
    if head.decides:  # classes have no errors, but the scores by which they are chosen have
        ours, theirs = head.scores.apply(raw), head.scores.apply(_in_chunks(clean.evaluate, images))
    error = np.abs(ours - theirs)
    low, high = interval(agreement, len(images))
    return SelfCheck(
        images=len(images),
        agreement=agreement,
        max_error=float(error.max()),
        mean_error=float(error.mean()),
        structure_error=structure_error,
        task=criterion.task,
        meaning=criterion.meaning,
        low=low,
        high=high,
        goal=goal,
        images_to_goal=images_for(agreement, goal),
        explained=explained(ours, theirs, criterion.spread) if len(images) > 1 else None,
    )


def _in_chunks(evaluate: Callable[[Array], Array], images: Array) -> Array:
    return np.concatenate([evaluate(images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)])


def data_shortfalls(graph: Graph, calibration: Calibration) -> tuple[str, ...]:
    """Notes if the calibration is too small for what is concluded from it."""
    notes = []
    # A single image is used for fits and held out as well.
    alone = calibration.images == 1 and np.array_equal(calibration.sample, calibration.held_out.astype(np.float32))
    count = 1 if alone else calibration.images + len(calibration.held_out)
    if count < FEW_IMAGES:
        given = noun(graph.inputs[0].type.shape, count)
        notes.append(
            f"{count} calibration {given}: ranges, polynomials and the agreement rest on too little. Give at least "
            f"{FEW_IMAGES}, as different from each other as the inputs will be"
        )
    few = [node.id for node in graph.nodes if _few_values(calibration.histograms.get(node.id))]
    if few:
        named = ", ".join(few[:NAMED]) + (f" and {len(few) - NAMED} more" if len(few) > NAMED else "")
        notes.append(
            f"in some channels of {named} fewer than {FEW_VALUES} calibration values differ from all others, which are "
            "the same: their polynomials are guesses. Calibrate with inputs in which these channels are active"
        )
    return tuple(notes)


def _few_values(histogram: Histogram | None) -> bool:
    """Whether a channel has values that differ from its most frequent one, but only a few."""
    if histogram is None:
        return False
    counts = histogram.counts
    others = counts.sum(axis=1) - counts.max(axis=1)
    # A histogram's bins are fine: a channel with a spread of its own has many values outside its fullest bin.
    return bool(((others > 0) & (others < FEW_VALUES) & (counts.max(axis=1) >= FEW_VALUES)).any())


def goal_shortfalls(check: SelfCheck) -> tuple[str, ...]:
    """A note if the agreement is below the one asked for."""
    if check.goal is None or check.agreement >= check.goal:
        return ()
    return (
        f"the agreement is {percent(check.agreement)} ({check.meaning}), below {percent(check.goal)}: ask for more "
        "(min_agreement), allow more levels (max_depth) or higher degrees (max_degree), or calibrate with more inputs",
    )


def divergence_notes(diverged: int, copies: int) -> tuple[str, ...]:
    """A note if copies of calibration images diverge that were altered a little."""
    if not diverged:
        return ()
    return (
        f"{diverged} of {copies} copies of calibration inputs that were altered a little have outputs that "
        "are far off, because values leave the ranges of polynomials. Inputs that nobody has seen may do the same: "
        'calibrate with more inputs, take effort="thorough", or allow higher degrees (max_degree, max_depth)',
    )


def value_notes(check: SelfCheck) -> tuple[str, ...]:
    """A note if nearly all decisions agree, but the values of the outputs are far off."""
    decided = check.task in ("classification", "binary", "multilabel") and check.agreement >= MIN_AGREEMENT
    if not decided or goal_shortfalls(check) or check.explained is None or check.explained >= POOR_VALUES:
        return ()
    return (
        f"the decisions agree ({check.meaning}), but the values of the outputs are off by {check.mean_error:.3g} on "
        f"average and {check.max_error:.3g} at most, and R2 is below {POOR_VALUES:g}: if the values matter, give "
        'task="regression" or a higher degree',
    )


def refuse_shortfalls(data: Sequence[str], missed: Sequence[str]) -> None:
    """With `strict`, raise CalibrationError for a small calibration and InfeasibleError for a missed agreement."""
    if data:
        raise CalibrationError("strict: " + "; ".join([*data, *missed]))
    if missed:
        raise InfeasibleError("strict: " + "; ".join(missed))
