"""Programs that keep the parameters and the keys of an earlier one: new weights for clients that have keys already."""

from __future__ import annotations

from dataclasses import replace

from olac.errors import InfeasibleError
from olac.ir.ops import MaxPool2d
from olac.options import AUTO_ENGINE, CompileOptions
from olac.polynomials.modes import FitOptions
from olac.program.program import AnyProgram, CompiledProgram, check_any_program
from olac.selection.job import Job

CHOICES_OF_DEGREES = (
    "degree",
    "plan",
    "degrees",
    "max_depth",
    "max_bootstraps",
    "min_agreement",
    "max_latency",
    "tolerance",
    "max_degree",
)
NAMED_STEPS = 8
WITHOUT = "Or compile without like=; clients then make all keys anew."


def with_like(options: CompileOptions) -> CompileOptions:
    """The options with what the program in `like` decides: parameters, engine, and degrees if nothing is said of them.

    If that program was planned for public keys, so is the new one: its clients have some.

    Raises:
        ArtifactError: `like` is no program, and not what clients know of one.
        ValueError: the options ask for something else.
    """
    like = options.like
    if like is None:
        return options
    check_any_program(like)
    for name, asked, theirs in (
        ("parameters", options.parameters, like.parameters),
        ("engine", None if options.engine == AUTO_ENGINE else options.engine, like.engine),
        ("log_ring", options.log_ring, like.parameters.log_ring),
        ("scale_bits", options.scale_bits, like.parameters.scale_bits),
    ):
        if asked is not None and asked != theirs:
            raise ValueError(f"{name} = {asked}, and the program to compile like has {theirs}: leave {name} open")
    return replace(
        options,
        parameters=like.parameters,
        engine=like.engine,
        public_key=options.public_key or like.public_key,
        fit=_with_degrees(options.fit, like),
    )


def _with_degrees(fit: FitOptions, like: AnyProgram) -> FitOptions:
    """With the degrees of a program, so that its levels hold; those of `fit` if it says anything of degrees."""
    default = FitOptions()
    if not isinstance(like, CompiledProgram) or any(
        getattr(fit, name) != getattr(default, name) for name in CHOICES_OF_DEGREES
    ):
        return fit
    fits = {one.node: one for one in like.report.fits}
    if not fits or any(one.function == MaxPool2d.name for one in fits.values()):
        return fit
    return replace(fit, plan=tuple(one.degree for one in fits.values()))


def check_scale(job: Job) -> tuple[str, ...]:
    """A note if the scale of the program in `like` is too coarse for the usual precision.

    Raises:
        InfeasibleError: it is too coarse for the precision that is asked for.
    """
    like = job.options.like
    if like is None or like.parameters.bootstrapping is not None:
        return ()  # the noise of bootstraps is simulated in any case
    least = job.noise.scale_bits(like.parameters.log_ring, job.precision)
    if least <= like.parameters.scale_bits:
        return ()
    problem = (
        f"a precision of {job.precision:g} takes a scale of {least} bits with these weights, and the program to "
        f"compile like has {like.parameters.scale_bits}"
    )
    if job.options.precision is not None:
        raise InfeasibleError(f"{problem}. Ask for less precision. {WITHOUT}")
    return (f"{problem}: encrypted outputs are less precise; compile without like= for the full precision",)


def unlike(error: InfeasibleError) -> InfeasibleError:
    """An error of a compilation with `like`, with what to do."""
    return InfeasibleError(
        f"{error}\nThe program keeps the parameters and degrees of the one that is given as like=. Give degree= or "
        f"plan= for lower degrees. {WITHOUT}"
    )


def key_notes(program: CompiledProgram, like: AnyProgram | None) -> tuple[str, ...]:
    """A note if a program needs keys that clients of the program in `like` do not have."""
    if like is None:
        return ()
    engine = program.planned_for
    new = program.keys_for(engine).lacking(like.keys_for(engine))
    if not new:
        return ()
    steps = ", ".join(map(str, new.steps[:NAMED_STEPS])) + (", ..." if len(new.steps) > NAMED_STEPS else "")
    what = [f"for rotation steps {steps}"] if new.steps else []
    what += ["for relinearisation"] if new.relinearise is not None else []
    return (
        f"{new.count} of {program.keys_for(engine).count} keys are new beside those of the program in like=, "
        f"{' and '.join(what)}: clients make them with Client.more_keys (olac more-keys), and keep the others",
    )
