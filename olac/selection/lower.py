"""From an approximated model to a program: the choice of parameters, and the passes after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from olac.calibration.statistics import Calibration
from olac.ckks.engines import FALLBACK
from olac.errors import InfeasibleError
from olac.ir.graph import Graph
from olac.ir.names import check_names
from olac.options import AUTO_ENGINE, CompileOptions, Stages, telling
from olac.passes.base import Pass, PassManager
from olac.passes.pipeline import lowering_pipeline
from olac.program.program import ApproximatedModel, CompiledProgram
from olac.progress import Event, Reporter
from olac.progress.stages import LOWERING
from olac.selection.generate import chains_with_bootstraps, with_bootstraps, without_bootstraps
from olac.selection.job import UNUSABLE, Job
from olac.selection.like import check_scale, key_notes
from olac.selection.notes import notes, say_memory, summary
from olac.selection.open_engine import for_this_machine
from olac.selection.price import Candidate
from olac.selection.refuse import Tried, check_pinned, first_refusal, refusal
from olac.system.internal import guard


@guard("lowering the program")
def lower(
    approximated: ApproximatedModel,
    calibration: Calibration,
    options: CompileOptions,
    pipeline: Sequence[Pass] | None = None,
    progress: Stages | None = None,
) -> CompiledProgram:
    """Choose parameters for an approximated model and lower it to ciphertexts."""
    say = telling(progress)
    raw = approximated.graph[approximated.graph.outputs[0]].type.shape
    names = check_names(options.class_names or approximated.output_names, approximated.head, raw)
    options, engine_notes = for_this_machine(options, progress)
    for note in engine_notes:
        say(Event(note, stays=True))
    say(Event("choosing parameters", LOWERING))
    passes = tuple(pipeline or lowering_pipeline(convolutions=options.convolutions))
    PassManager(passes)  # refuses those that do not chain
    job = Job(approximated.graph, calibration, options, passes, approximated.head, say)
    coarse = check_scale(job)
    job, (chosen, error), refusals = _for_an_engine(job)
    job.dump(chosen.draft.dumps)
    say_memory(job, chosen)
    if isinstance(progress, Reporter):
        progress.result = summary(job, chosen)
    report = approximated.report
    report = replace(
        report,
        pass_seconds=report.pass_seconds + tuple((one.name, one.seconds) for one in chosen.draft.timings),
        notes=(*report.notes, *engine_notes, *refusals, *coarse, *notes(job, chosen)),
        max_memory=options.memory_limit,
        noise=error,
    )
    program = CompiledProgram(
        chosen.graph,
        chosen.parameters,
        chosen.keys.steps,
        report,
        approximated.head,
        job.engine.name,
        names,
        options.public_key,
        curves=approximated.curves,
    )
    new = key_notes(program, options.like)
    return replace(program, report=replace(report, notes=(*report.notes, *new))) if new else program


Choice: TypeAlias = tuple[Candidate, float | None]


def _for_an_engine(job: Job) -> tuple[Job, Choice, tuple[str, ...]]:
    """The choice, for `FALLBACK` if the engine is open and the one that is planned for first does not take the program.

    Returns:
        the job for that engine, the choice, and a note if it is not the first engine.
    """
    try:
        return job, choose(job), ()
    except InfeasibleError:
        if job.options.engine != AUTO_ENGINE or job.engine is FALLBACK or not job.refused:
            raise
    note = f"the program is for {FALLBACK.title}, as {job.engine.title} does not take it: {first_refusal(job)}"
    job.say(note)
    other = replace(job, options=replace(job.options, engine=FALLBACK.name, costs=None), refused={})
    return other, choose(other), (note,)


def choose(job: Job) -> Choice:
    """The preferred candidate, lowered to the end, and what the noise of its bootstraps does to the outputs, if any.

    Programs with bootstraps compete with the best program without them, at its precision. The first of their scales
    that meets the precision is taken: finer scales leave fewer levels, so they take as many bootstraps or more.

    Raises:
        InfeasibleError, SecurityError: there is no program; the message names the limit.
    """
    check_pinned(job)
    tried = Tried(without_bootstraps(job))
    best = job.best(tried.too_large)
    # Without a precision to meet, the outputs must at least not be noise.
    precision = job.options.precision or (UNUSABLE if best is None else job.precision)
    coarser: Graph | None = None
    for chains in chains_with_bootstraps(job, tuple(tried.too_large)):
        if coarser is not None:
            error = job.noise.of_program(coarser, chains[0], job.engine)
            if error > precision:
                tried.error = min(tried.error, error)
                continue
        found = with_bootstraps(job, chains, best, tried.refuse)
        first = job.best([best, *found] if best else found)
        if first is None:
            tried.too_large += found
        elif first is best:
            break
        else:
            finished = job.finished(first)
            error = job.noise.of_program(finished.graph, finished.parameters, job.engine)
            if error <= precision:
                return finished, error
            tried.error, coarser = min(tried.error, error), finished.graph
    if best is None:
        raise refusal(job, tried)
    return best, None
