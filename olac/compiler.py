"""The route from a PyTorch model to a program, from top to bottom."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from olac.analysis.noise import CHECK_IMAGES
from olac.approximation import ImageFitter
from olac.approximation.augment import callers_augment
from olac.approximation.common import varied
from olac.approximation.criterion import Criterion, criterion_for
from olac.approximation.own_needs import Work, check_fits, images_in, measured
from olac.calibration import collect as calibrations
from olac.calibration.batches import as_inputs, first_batch
from olac.calibration.statistics import SAMPLE_BYTES, SAMPLE_IMAGES, Calibration, sample_bytes
from olac.errors import CalibrationError, InfeasibleError, VerificationError
from olac.frontend import Activations, Traced, check, lift, trace
from olac.frontend.ensemble import Ensemble, as_one
from olac.frontend.joined import names_of
from olac.ir.graph import Graph, Node
from olac.ir.head import OutputHead, Outputs
from olac.ir.names import Names, check_names, outputs_to_name
from olac.ir.ops import Array, LinearOp, Polynomial
from olac.ir.split import split_head
from olac.options import CompileOptions, Keywords, Stages, telling, with_choices
from olac.passes.base import Pass, PassContext, PassManager, PassTiming
from olac.passes.clamp_functions import ClampFunctions
from olac.passes.compose_linear import MOST_ENTRIES
from olac.passes.pipeline import approximation_pipeline
from olac.plugins import load_plugins
from olac.polynomials.modes import EFFORTS
from olac.program.curves import Curves
from olac.program.program import ApproximatedModel, CompiledProgram
from olac.program.promises import (
    data_shortfalls,
    divergence_notes,
    goal_shortfalls,
    last_function,
    refuse_shortfalls,
    self_check,
    value_notes,
)
from olac.program.report import Report
from olac.progress import Event, Reporter, Shown, showing
from olac.progress.stages import CALIBRATING, CHECKING, SIMPLIFYING, TRACING
from olac.selection.like import unlike, with_like
from olac.selection.lower import lower
from olac.selection.open_engine import for_this_machine
from olac.system.files import check_folder, make_folder
from olac.system.internal import callers, guard
from olac.system.memory import available_bytes, current_rss_bytes, memory_for, ran_out
from olac.system.threads import usable_threads

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger(__name__)

STRUCTURE_TOLERANCE = 1e-3
"""Largest relative difference of the lifted graph from the model: torch computes in single precision."""
ROUNDING_MARGIN = 16.0
MOST_NAME = 100
"""Characters of a model's name that are kept."""
SINGLE = 2.0**-24
"""Relative error of a number in single precision."""


@memory_for("calibrating")
def calibrate(
    model: Any,
    calib_loader: Iterable[Any],
    *,
    activations: Activations | None = None,
    constants: Mapping[str, Any] | None = None,
    sample_images: int = SAMPLE_IMAGES,
    sample_bytes: int = SAMPLE_BYTES,
    progress: Shown = None,
) -> Calibration:
    """Run a model over calibration images; the result can replace the loader in `approximate` and `compile`.

        calibration = olac.calibrate(model, loader)
        calibration.save("model.calibration")
        program = olac.compile(model, calibration)  # of this model with these weights

    Args:
        model, calib_loader, progress: as in `approximate`.
        activations, constants: as in `CompileOptions`; give the same to `approximate` and `compile`.
        sample_images, sample_bytes: limits of the sample of images that is kept for fits.

    Returns:
        ranges of all values, histograms of the inputs of activations, a sample of images, and images held out.

    Raises:
        UnsupportedModelError, CalibrationError: as in `approximate`.
    """
    with showing(progress, "calibrating", "calibrated", log, {TRACING: 1.0, CALIBRATING: 9.0}) as say:
        with callers():
            load_plugins()
        say(Event("tracing the model", TRACING))
        with callers():
            model = as_one(model)
        example, batches = first_batch(calib_loader)
        traced = trace(model, example, activations, constants)
        count = images_in(calib_loader, example)
        found = _calibrate(traced, lift(traced), batches, say, sample_images, sample_bytes, count)
        say.result = f"{found.images + len(found.held_out)} images"
    return found


@guard("calibrating")
def _calibrate(
    traced: Traced,
    graph: Graph,
    batches: Iterable[Any],
    say: Stages,
    sample_images: int,
    sample_bytes: int,
    expected: int,
) -> Calibration:
    """The calibration; about `expected` images are there."""
    say(Event("calibrating", CALIBRATING))
    return calibrations.calibrate(
        traced,
        graph,
        batches,
        progress=lambda images: say(Event(f"calibrating: {images} images", CALIBRATING, images, expected)),
        sample_images=sample_images,
        sample_bytes=sample_bytes,
    )


@memory_for("approximating the model")
def approximate(
    model: Any,
    calib_loader: Iterable[Any] | Calibration,
    options: CompileOptions | None = None,
    *,
    pipeline: Sequence[Pass] | None = None,
    progress: Shown = None,
    **choices: Unpack[Keywords],
) -> ApproximatedModel:
    """Replace a model's activations by fitted polynomials; stops before any choice of CKKS parameters.

        approximated = olac.approximate(model, loader, degree=3)
        print(approximated.report.check.agreement)  # with the model, on images that decided nothing
        outputs = approximated.simulate(images)

    Args:
        model: a torch.nn.Module or an ExportedProgram; it is not changed. Or a list of several that take the same
            images: the mean of their outputs is computed, in the same ciphertexts if they have the same structure.
        calib_loader: yields tensors or tuples whose first item is a batch of images; labels are not needed. Or the
            result of `calibrate` for this model.
        options: see `CompileOptions`.
        pipeline: other passes from stage TRACED to POLYNOMIAL.
        progress: None shows a bar if stderr is a terminal, and in a notebook; False shows nothing; True shows lines
            if there is no terminal. A function is called with each `olac.progress.Event`, which is a line of text
            with data beside it.
        choices: single fields of `CompileOptions` or `FitOptions`, e.g. method="empirical", degree=7, max_depth=40; in
            place of strings also types, e.g. method=olac.Minimax(alpha=7), degrees=olac.Within(levels=40).

    Returns:
        the model of polynomials, which computes on plain numbers, and a report.

    Raises:
        UnsupportedModelError: names every node that can't be compiled.
        InfeasibleError: no plan is within `max_depth` or `max_latency`, or has `min_agreement`; or this needs more
            memory than `max_compile_memory`, or than the machine has, which is said before the calibration.
        CalibrationError: an empty loader, NaN, batches that don't fit the model, a calibration of another model, a
            function that isn't finite in its calibrated range.
    """
    chosen = with_like(with_choices(options, choices))
    with showing(progress, "approximating", "approximated", log) as say:
        approximated, _ = _approximate(model, calib_loader, chosen, pipeline, say, Purpose("approximating"))
        say.result = _degrees(approximated.graph)
    return approximated


@memory_for("compiling the model")
def compile(
    model: Any,
    calib_loader: Iterable[Any] | Calibration,
    options: CompileOptions | None = None,
    *,
    pipeline: Sequence[Pass] | None = None,
    lowering: Sequence[Pass] | None = None,
    progress: Shown = None,
    **choices: Unpack[Keywords],
) -> CompiledProgram:
    """Compile a trained model into a program that an engine runs on encrypted inputs.

        program = olac.compile(model, images.split(64))  # or a DataLoader
        program.save("model.olac")

    The model is not changed and not retrained. The images are only used to learn which values occur; labels are not
    needed, and 256 images or more are best.

    Args:
        model: a torch.nn.Module or an ExportedProgram. Or a list of several that take the same images: the mean of
            their outputs is computed.
        calib_loader: yields tensors (n, *image shape), or tuples whose first item is one. Or the result of `calibrate`
            for this model.
        pipeline, progress: as in `approximate`.
        options: see `CompileOptions`.
        lowering: other passes from stage POLYNOMIAL to LEVELLED.
        choices: single fields of `CompileOptions` or `FitOptions`, e.g. max_depth=40, security=192, like=program.

    Returns:
        the program: it predicts what a run takes (`estimate`), computes on plain numbers (`simulate`), and is given to
        `Client` and `Server`.

    Raises:
        UnsupportedModelError, CalibrationError: as in `approximate`.
        InfeasibleError: no parameters meet depth, precision, security and max_memory; names the limit that fails. Also
            as in `approximate`.
        SecurityError: pinned parameters are below the security asked for.
    """
    chosen = with_like(with_choices(options, choices))
    purpose = Purpose("compiling", lowers=True)
    try:
        with showing(progress, "compiling", "compiled", log) as say:
            approximated, calibration = _approximate(model, calib_loader, chosen, pipeline, say, purpose)
            return lower(approximated, calibration, chosen, lowering, say)
    except InfeasibleError as error:
        if chosen.like is None:
            raise
        raise unlike(error) from error


def _degrees(graph: Graph) -> str:
    """How many polynomials there are, and of which degrees."""
    ops = [node.op for node in graph.nodes if isinstance(node.op, Polynomial)]
    found = [graph.constants[op.coefficients].shape[1] - 1 for op in ops]
    if not found:
        return "no polynomials"
    low, high = min(found), max(found)
    ends = f"degree {low}" if low == high else f"degrees {low} to {high}"
    return f"{len(found)} polynomial{'s' if len(found) > 1 else ''} of {ends}"


@guard("approximating the model")
def _approximate(
    model: Any,
    loader: Iterable[Any] | Calibration,
    options: CompileOptions,
    pipeline: Sequence[Pass] | None,
    progress: Stages | None,
    purpose: Purpose,
) -> tuple[ApproximatedModel, Calibration]:
    prepared = prepare(model, loader, options, progress, purpose)
    return prepared.finished(prepared.run(pipeline or prepared.pipeline)), prepared.calibration


@dataclass(frozen=True)
class Purpose:
    """What a model is prepared for.

    Attributes:
        doing: the work, for a person.
        lowers: whether a program is made at once.
        epochs: of fine-tuning.
        loader: whose length tells how many images there are; None for the one that is read.
    """

    doing: str
    lowers: bool = False
    epochs: int = 0
    loader: Any = None


@dataclass(frozen=True)
class Prepared:
    """A model that was traced and calibrated: all that the passes of the approximation take, and what judges them.

    Attributes:
        options: with the engine that this machine can use.
        graph: the lifted model, without the steps of the client.
        bounded: the same with calibrated ranges in its types: the first pass takes it.
        head: the steps of the client.
        calibration: of the model.
        criterion: what agreement means.
        images: fits on whole images.
        structure_error: of the lifted graph against the model.
        notes: about the calibration, for the report.
        say: called with a line of text as a step begins.
        context: of the passes; it collects their reports.
        ensemble: whether it is the mean of several models.
        names: of the outputs.
        model: the name of its class.
        timings: of the passes that have run.
    """

    options: CompileOptions
    graph: Graph
    bounded: Graph
    head: OutputHead
    calibration: Calibration
    criterion: Criterion
    images: ImageFitter
    structure_error: float
    notes: tuple[str, ...]
    say: Stages
    context: PassContext
    ensemble: bool = False
    names: Names = ()
    model: str = ""
    timings: list[PassTiming] = field(default_factory=list)

    @property
    def pipeline(self) -> tuple[Pass, ...]:
        """The passes from stage TRACED to POLYNOMIAL."""
        return approximation_pipeline(self.options.fit, self.ensemble)

    def with_criterion(self, criterion: Criterion) -> Prepared:
        """The same, judged otherwise."""
        images = replace(self.images, criterion=criterion)
        return replace(self, criterion=criterion, images=images, context=replace(self.context, images=images))

    def run(self, pipeline: Sequence[Pass], graph: Graph | None = None) -> Graph:
        """The bounded graph, or another one, after some passes."""
        manager = PassManager(pipeline, self.options.dump_after, self.options.dump, self.say)
        result = manager.run(self.bounded if graph is None else graph, self.context)
        self.timings.extend(manager.timings)
        return result

    def finished(self, result: Graph) -> ApproximatedModel:
        """The result of all passes with its report; with `strict`, shortfalls are refused."""
        self.say(Event("checking the result", CHECKING))
        options, calibration, context = self.options, self.calibration, self.context
        check_result = self_check(
            ApproximatedModel(result, head=self.head),
            self.graph,
            calibration,
            self.criterion,
            options.fit.min_agreement,
            self.structure_error,
        )
        data = data_shortfalls(self.graph, calibration)
        missed = goal_shortfalls(check_result)
        if options.strict:
            refuse_shortfalls(data, missed)
        looks = (
            *calibrations.outlier_notes(self.graph, calibration),
            *calibrations.pixel_notes(self.graph, calibration),
        )
        diverging = divergence_notes(*self.images.diverging(self.graph, result))
        promised = (*missed, *diverging, *value_notes(check_result))
        report = Report(
            fits=tuple(context.fits),
            front=tuple(context.front),
            check=check_result,
            pass_seconds=tuple((timing.name, timing.seconds) for timing in self.timings),
            notes=(*promised, *data, *self.notes, *context.notes, *looks),
        )
        curves = Curves(self.model, tuple(context.curves))
        return ApproximatedModel(result, report, self.head, self.names, curves=curves)


def prepare(
    model: Any,
    loader: Iterable[Any] | Calibration,
    options: CompileOptions,
    progress: Stages | None,
    purpose: Purpose,
    held_out: torch.Tensor | None = None,
) -> Prepared:
    """Trace and calibrate a model, as the passes of the approximation need it.

    Args:
        model, loader, options, progress: as in `approximate`.
        purpose: what follows.
        held_out: images (n, *input shape) that take the place of those that the calibration of a loader holds out.
    """
    say = telling(progress)
    folder = None if options.checkpoint is None else Path(options.checkpoint)
    if folder is not None:
        check_folder(folder)
        make_folder(folder)
    name = _name(model)
    with callers():
        load_plugins()
        model = as_one(model)
    say(Event("tracing the model", TRACING))
    if isinstance(loader, Calibration):
        calibration = loader
        held = as_inputs(calibration.held_out, "the calibration")
        traced = trace(model, held, options.activations, options.constants)
        whole = lift(traced, options.client_head)
        calibrations.check_calibration(calibration, whole)
        _tell_needs(traced, whole, held, calibration.images + len(held), options, purpose, say, calibrated=True)
    else:
        example, batches = first_batch(loader)
        traced = trace(model, example, options.activations, options.constants)
        whole = lift(traced, options.client_head)
        count = images_in(loader if purpose.loader is None else purpose.loader, example)
        _tell_needs(traced, whole, example, count, options, purpose, say)
        kept = EFFORTS[options.fit.effort].images
        calibration = _calibrate(traced, whole, batches, say, kept, sample_bytes(kept), count)
        if held_out is not None:
            calibration = calibrations.with_held_out(traced, calibration, held_out)
    graph, head = split_head(whole, options.client_head)
    with callers():
        names = _names(model, options, head, graph[graph.outputs[0]].type.shape)
    checked = PassContext(calibration=calibration)
    bounded = PassManager([ClampFunctions()]).run(_with_bounds(graph, calibration), checked)
    structure = _structure_error(graph, head, calibration, isinstance(loader, Calibration), options.seed)
    with callers():
        criterion = criterion_for(
            options.task, calibration.held_out_outputs, last_function(graph, head), graph.inputs[0].type.shape
        )
    if options.strict:
        refuse_shortfalls(data_shortfalls(graph, calibration), ())
    options, _ = for_this_machine(options, progress)
    say(Event("fitting polynomials", SIMPLIFYING))
    sample = calibration.sample if len(calibration.sample) else calibration.choosing
    augment = varied if options.augment is None else callers_augment(options.augment)
    limit = options.compile_memory_limit
    images = ImageFitter(sample, calibration.choosing, say, criterion, head.apply, options.seed, augment, folder, limit)
    context = PassContext(
        calibration=calibration,
        costs=options.table,
        threads=options.threads or usable_threads(),
        images=images,
    )
    return Prepared(
        options,
        graph,
        bounded,
        head,
        calibration,
        criterion,
        images,
        structure,
        (*traced.notes, *checked.notes),
        say,
        context,
        isinstance(model, Ensemble),
        names,
        model=name,
    )


def _names(model: Any, options: CompileOptions, head: OutputHead, raw: tuple[int, ...]) -> Names:
    """The names that were given, or those of a joined model's outputs."""
    own = names_of(model)
    return check_names(options.class_names or (own if len(own) == outputs_to_name(head, raw) else ()), head, raw)


def _name(model: Any) -> str:
    """The class of a model, or of the first of several and their number, for reports."""
    if isinstance(model, list | tuple) and model:
        return f"{len(model)} x {_name(model[0])}"
    return type(model).__name__[:MOST_NAME]


def _tell_needs(
    traced: Traced,
    graph: Graph,
    images: torch.Tensor,
    count: int,
    options: CompileOptions,
    purpose: Purpose,
    say: Stages,
    calibrated: bool = False,
) -> None:
    """Say what the rest will take, before minutes are spent; InfeasibleError if it does not fit in memory.

    Args:
        traced, graph: the model.
        images: the first of the loader.
        count: of all images.
        options, purpose: what is asked for.
        say: called with a line of text.
        calibrated: whether that is done.
    """
    batch, limit = 0 if calibrated else len(images), options.compile_memory_limit
    work = Work(graph, options.fit, count, batch, limit, calibrated, purpose.lowers, purpose.epochs, MOST_ENTRIES)
    needs = work.needs(current_rss_bytes())
    check_fits(needs, limit, available_bytes(), purpose.doing)
    try:
        with memory_for("calibrating"):  # which computes the model on as many images
            stages = work.stage_seconds(measured(traced.module, images))
        needs = replace(needs, seconds=sum(stages.values()))
        if isinstance(say, Reporter):
            say.plan(stages, in_seconds=True)
    except Exception as error:  # the calibration names the layer that fails
        if ran_out(error):
            raise
    say(Event(needs.line(purpose.doing), stays=True))


def _with_bounds(graph: Graph, calibration: Calibration) -> Graph:
    """Calibrated ranges into the types."""
    return graph.rewrite(
        lambda node, builder, inputs: builder.keep(
            node, inputs, type=replace(node.type, bound=calibration.ranges.get(node.id))
        ),
        by="calibrate",
    )


def _structure_error(graph: Graph, head: OutputHead, calibration: Calibration, given: bool, seed: int) -> float:
    """The error of the lifted graph against the model, before anything is approximated.

    If it is large, that is a bug in olac, or the calibration was `given` and is of another model.
    """
    images, theirs = calibration.held_out[:CHECK_IMAGES], calibration.held_out_outputs[:CHECK_IMAGES]
    raw = graph.evaluate(images)
    if given and len(images) * math.prod(head.output_shape(raw.shape[1:])) != theirs.size:
        raise CalibrationError(f"the calibration has outputs of shape {theirs.shape[1:]}: it is of another model")
    scores = head.scores.apply(raw)
    if head.decides:
        # Nearly equal scores may lead to another class in single precision, so scores are compared.
        size = max(1e-6, float(np.max(np.abs(scores))))
        error = head.shortfall(scores, theirs) / size
    else:
        size = max(1e-6, float(np.max(np.abs(theirs))))
        error = float(np.max(np.abs(scores.reshape(theirs.shape) - theirs))) / size
    if error <= STRUCTURE_TOLERANCE:
        return error
    if not error <= STRUCTURE_TOLERANCE + ROUNDING_MARGIN * _rounding_error(graph, head, images, scores, seed) / size:
        if given:
            raise CalibrationError(
                f"the calibration is of another model: its outputs differ by {error:.2g} of the largest from this "
                "model's. Calibrate this model."
            )
        raise VerificationError(
            f"the lifted graph differs from the model by {error:.2g} of its largest output: a bug in the frontend"
        )
    return error


def _rounding_error(graph: Graph, head: OutputHead, images: Array, exact: Outputs, seed: int) -> float:
    """The change of the outputs by single precision alone, which is large if large values cancel."""
    random, values = np.random.default_rng(seed), dict[str, Array]()

    def rounded(node: Node, value: Array) -> Array:
        if isinstance(node.op, LinearOp):  # the terms of a sum may be far larger than the sum
            sizes = {name: np.abs(graph.constants[name]) for name in node.op.constant_names()}
            terms = node.op.evaluate([np.abs(values[node.inputs[0]])], sizes)
            value = value + SINGLE * terms * random.uniform(-1, 1, value.shape)
        values[node.id] = value.astype(np.float32).astype(np.float64)
        return values[node.id]

    return float(np.max(np.abs(head.scores.apply(graph.evaluate(images, rounded)) - exact)))


__all__ = ["CompileOptions", "approximate", "calibrate", "check", "compile", "lower"]
