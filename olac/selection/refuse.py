"""Why there is no program: errors that name the limit, and what helps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from olac.analysis.noise import MAX_SCALE_BITS
from olac.ckks.engines import ENGINES, FALLBACK
from olac.ckks.parameters import Parameters
from olac.errors import InfeasibleError, OlacError, SecurityError
from olac.ir.graph import Graph, Node
from olac.ir.ops import LinearOp, Polynomial, PolynomialProduct, Square
from olac.passes.scale_inputs import UNEVEN, first_readers
from olac.selection.generate import MAX_DEPTH
from olac.selection.job import UNUSABLE, Job
from olac.selection.price import Candidate
from olac.system.memory import GB

NAMED_LIMITS = 3


@dataclass
class Tried:
    """What a choice has tried without success.

    Attributes:
        too_large: candidates that do not fit in the memory.
        unreachable: for each reason why parameters with bootstraps can't hold the graph, those parameters.
        error: by how much bootstraps change outputs in the best of the programs that miss the precision.
    """

    too_large: list[Candidate] = field(default_factory=list)
    unreachable: dict[str, list[Parameters]] = field(default_factory=dict)
    error: float = math.inf

    def refuse(self, parameters: Parameters, why: str) -> None:
        """Remember parameters that can't hold the graph."""
        self.unreachable.setdefault(why, []).append(parameters)


def refusal(job: Job, tried: Tried) -> OlacError:
    """The limit that left no candidate."""
    if job.refused and not (tried.error < math.inf or tried.too_large or tried.unreachable):
        return _not_taken(job)
    error = _refusal(job, tried)
    if not job.refused:
        return error
    return type(error)(f"{error}\n{job.engine.title} does not take other parameters: {first_refusal(job)}.{_OTHERWISE}")


_OTHERWISE = f' {FALLBACK.title} takes them: engine="{FALLBACK.name}".'


def first_refusal(job: Job) -> str:
    """Why the engine did not take the first parameters that it refused."""
    why, parameters = next(iter(job.refused.items()))
    return f"{why} ({parameters.describe()})"


def _not_taken(job: Job) -> InfeasibleError:
    pinned, otherwise = job.options.parameters, _OTHERWISE
    if pinned is not None:  # for these, an engine's own recipe of bootstraps decides, too
        others = [one for one in ENGINES.values() if one.takes(pinned)]
        otherwise = "".join(f' {one.title} takes them: engine="{one.name}".' for one in others[:1])
    return InfeasibleError(f"{job.engine.title} does not take the program: {first_refusal(job)}.{otherwise}")


def _rounded_up(error: float) -> float:
    """To two digits, at least the error."""
    unit = 10.0 ** (math.floor(math.log10(error)) - 1)
    return math.ceil(error / unit * (1 - 1e-9)) * unit


def _refusal(job: Job, tried: Tried) -> OlacError:
    if tried.error < math.inf and job.options.precision is None:
        return InfeasibleError(
            f"the outputs would be noise: bootstraps change them by {tried.error:.2g} of their range at best, and "
            f"{UNUSABLE:g} is the most. {why_so_fine(job.graph, job.noise.loudest())}"
        )
    if tried.error < math.inf:
        return InfeasibleError(
            f"bootstraps do not keep a precision of {job.options.precision:g}: they change outputs by "
            f"{tried.error:.2g} of their range at best. Ask for a precision of {_rounded_up(tried.error):g}, "
            "leave it open, or lower the degrees of the activations."
        )
    if tried.too_large:
        return _too_much_memory(job, tried.too_large)
    if tried.unreachable:
        named = [f"{those[-1].describe()}: {why}" for why, those in tried.unreachable.items()][-NAMED_LIMITS:]
        return InfeasibleError("no parameters hold the program, not even with bootstraps:\n  " + "\n  ".join(named))
    return _no_chain(job)


def check_pinned(job: Job) -> None:
    """`InfeasibleError` or `SecurityError` if the parameters that are pinned can't hold the program."""
    pinned = job.options.parameters
    if pinned is None:
        return
    pinned.check_security()
    if not job.taken([pinned]):
        raise _not_taken(job)
    if pinned.bootstrapping is None and job.depth > pinned.depth:
        raise InfeasibleError(
            f"the program takes {job.depth} levels, the pinned parameters have {pinned.depth}. Lower the degrees of "
            "the activations, or pin more levels or bootstrapping."
        )


def _too_much_memory(job: Job, found: Sequence[Candidate]) -> InfeasibleError:
    smallest = sorted(found, key=lambda one: one.server_bytes)
    lines = [f"{one.parameters.describe()}: {_up(one.server_bytes):.2f} GB" for one in smallest[:NAMED_LIMITS]]
    return InfeasibleError(
        f"no parameters fit in max_memory = {(job.terms.max_memory or 0) / GB:.2f} GB:\n  "
        + "\n  ".join(lines)
        + f"\nAllow at least {_up(smallest[0].server_bytes):.2f} GB, or lower the degrees of the activations."
    )


def _up(size: float) -> float:
    """GB, rounded up to what a message shows."""
    return math.ceil(size / GB * 100) / 100


def _no_chain(job: Job) -> OlacError:
    """Why no chain holds the program, if it can't have bootstraps."""
    options, depth, log_ring = job.options, job.depth, job.rings[-1]
    if depth > MAX_DEPTH:
        return InfeasibleError(
            f"the program takes {depth} levels, {MAX_DEPTH} at most are possible without bootstrapping. "
            "Lower the degrees of the activations, or take a model of fewer layers."
        )
    bits = job.scale_bits(log_ring)
    if bits > MAX_SCALE_BITS:
        much = f"{bits}" if bits > MAX_SCALE_BITS + 1 else f"more than {MAX_SCALE_BITS}"
        return InfeasibleError(
            f"a precision of {job.precision:g} takes a scale of {much} bits, {MAX_SCALE_BITS} at most are "
            f"supported. {why_so_fine(job.graph, job.noise.loudest())}"
        )
    enough = job.with_primes(log_ring, bits)
    if enough != bits:
        larger = "Lower" if enough is None else f"Take scale_bits={enough}, leave scale_bits open, or lower"
        return InfeasibleError(
            f"there are not enough primes near 2^{bits} for {depth} levels at ring 2^{log_ring} in "
            f"{options.technique}. {larger} the degrees of the activations."
        )
    if options.log_ring is not None and not options.insecure:
        return SecurityError(
            f"ring 2^{log_ring} does not hold {depth} levels of {bits} bits at {options.security}-bit security. "
            "Leave log_ring open, lower the degrees of the activations, or pass insecure=True for experiments."
        )
    return InfeasibleError(
        f"no ring up to 2^16 holds {depth} levels of {bits} bits "
        + (f"at {job.security}-bit security " if job.security else "")
        + "without bootstrapping. Lower the degrees of the activations, or the precision."
    )


def why_so_fine(graph: Graph, loudest: Node) -> str:
    """What makes a graph need a fine scale, by the node whose noise matters most, and what to do."""
    (source,) = graph.inputs
    _, readers = first_readers(graph, source.id)
    others = {node.id: node for node in readers if not isinstance(node.op, LinearOp)}
    sizes = [one.magnitude for one in source.type.channels]
    if others and loudest.id in {source.id, *others} and sizes and max(sizes) > UNEVEN * min(sizes):
        names = ", ".join(f"{node.id} ({node.origin.path or node.op.name})" for node in others.values())
        return (
            "The columns or channels of the input are of very different size and share one unit, because layers that "
            f"are not linear read them ({names}): scale them to the same size before the model, or ask for less "
            "precision."
        )
    if loudest.id == source.id:
        return (
            "The model depends much on small differences in its input, which encryption blurs: calibrate with inputs "
            "that vary as real ones do, scale the input, or ask for less precision."
        )
    where = f"{loudest.id} ({loudest.origin.path or 'model'})"
    advice = ["scale the weights around it", "ask for less precision"]
    if any(isinstance(node.op, Polynomial | PolynomialProduct | Square) for node in graph.nodes):
        advice[1:1] = ["lower the degrees of the activations", "calibrate without outliers"]
    return (
        f"The reason is the noise of {where}: its values are large compared with what remains of them in the outputs. "
        f"{', '.join(advice[:-1]).capitalize()}, or {advice[-1]}."
    )
