"""From an approximated model to a program: the choice of parameters and the passes behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from olac.analysis.bootstraps import Profiles
from olac.analysis.estimate import Sizes
from olac.analysis.noise import MAX_SCALE_BITS, OutputNoise
from olac.analysis.rotation_keys import memory_line
from olac.backends.cost import predicted_seconds
from olac.calibration.statistics import Calibration
from olac.ckks.bootstrapping import BOOTSTRAP_NOISE, steps_with_keys
from olac.ckks.candidates import candidates, deep_chains, require_candidates
from olac.ckks.parameters import BOOTSTRAP_FIRST_BITS, BOOTSTRAP_SCALE_BITS, Parameters
from olac.ckks.sizes import rotation_key_bytes
from olac.costs.table import CostTable
from olac.errors import InfeasibleError, SecurityError
from olac.ir.graph import Graph, Node
from olac.ir.layout import TensorLayout
from olac.ir.ops import Array, Bootstrap, Input, LinearOp, Polynomial, PolynomialProduct, Square
from olac.ir.states import WIDEST
from olac.kernels.record import record
from olac.options import CompileOptions, Stages, telling
from olac.passes.base import Pass, PassContext, PassManager, PassTiming
from olac.passes.choose_lowerings import lowered_depth
from olac.passes.pipeline import lowering_pipeline
from olac.passes.place_bootstraps import PlaceBootstraps
from olac.passes.scale_inputs import UNEVEN, first_readers
from olac.program.program import ApproximatedModel, CompiledProgram
from olac.selection.search import (
    MACHINE_BYTES,
    Deep,
    Digits,
    Packed,
    preferred,
    preferred_deep,
    price_deep,
    price_digits,
    price_sparse,
)
from olac.system.internal import guard
from olac.system.memory import GB, total_bytes
from olac.system.threads import usable_threads

DEFAULT_PRECISION = 1e-3
"""Of programs without bootstraps."""

INTEGER_BITS = 7
"""Bits of the first prime beyond the scale: slots up to 2^6 decrypt, where calibrated ones stay within 1."""

MAX_DEPTH = 100

NAMED_BOOTSTRAPS = NAMED_LIMITS = 3

NOTED_IMAGES = 256
"""Images on which slots are looked at that enter bootstraps."""

FEW_DIGITS = 3

USUAL_KEYS = 64
"""Rotation keys of a convolutional network, about."""


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
    say("choosing parameters")
    graph = approximated.graph
    costs = options.costs or CostTable.default()
    threads = options.threads or usable_threads()
    passes = tuple(pipeline or lowering_pipeline(convolutions=options.convolutions))
    managed = PassManager(passes, options.dump_after, options.dump, say)

    def context(parameters: Parameters) -> PassContext:
        return PassContext(
            calibration=calibration, parameters=parameters, costs=costs, threads=threads, batch=options.batch
        )

    def program(priced: Digits, timings: Sequence[PassTiming]) -> CompiledProgram:
        lowered = priced.lowered
        report = replace(
            approximated.report,
            pass_seconds=approximated.report.pass_seconds + tuple((t.name, t.seconds) for t in timings),
            notes=approximated.report.notes
            + _notes(options)
            + bootstrap_notes(lowered, calibration.judged[:NOTED_IMAGES])
            + paging_notes(priced, options.memory_limit)
            + memory_notes(priced.keys.sizes, total_bytes()),
            max_memory=options.memory_limit,
        )
        return CompiledProgram(lowered, priced.parameters, priced.keys.steps, report, approximated.head)

    # The scale of a chain of one prime is that prime: slots above a half would not fit.
    depth = max(1, lowered_depth(graph, passes, options.batch))
    noise = OutputNoise(graph, calibration, approximated.head, options.seed)
    try:
        choices = _parameter_choices(graph, noise, depth, options)
    except (InfeasibleError, SecurityError):
        sets = _deep_choices(graph, noise, options) if _places_bootstraps(passes) else []
        if not sets:
            raise
        return _lower_deep(graph, sets, noise, passes, context, program, options, say)
    found: list[Digits] = []
    for same in choices:
        first = _representative(same, costs, threads)
        say(f"lowering at ring 2^{first.log_ring}")
        if first.bootstrapping is not None and _places_bootstraps(passes):
            return _lower_deep(graph, [[first]], noise, passes, context, program, options, say)
        lowered = managed.run(graph, context(first))
        found += price_digits(lowered, same, costs, threads, options.memory_limit, tuple(managed.timings))
        best = preferred(found, options.memory_limit)
        if best and (not _is_tight(same) or same is choices[-1]):
            _say_memory(best[0].keys.sizes, options, say)
            return program(best[0], best[0].timings)
    smallest = sorted(found, key=lambda one: one.server_bytes)
    limits = [f"{one.parameters.describe()}: {_up(one.server_bytes):.2f} GB" for one in smallest[:NAMED_LIMITS]]
    raise _too_much_memory(options, limits, _up(smallest[0].server_bytes))


def _is_tight(choices: Sequence[Parameters]) -> bool:
    """Whether a ring holds the chain with many digits only: the next ring may be faster then, and its keys smaller."""
    return min(parameters.digits for parameters in choices) > FEW_DIGITS


def _up(size: float) -> float:
    """GB, rounded up to what a message shows."""
    return math.ceil(size / GB * 100) / 100


def _say_memory(size: Sizes, options: CompileOptions, say: Stages) -> None:
    """What a server will take, where nobody has said what it may: it need not be this machine."""
    if options.memory_limit is None:
        say(
            f"a server will take {_server_memory(size)} (this machine has {total_bytes() / GB:.1f} GB); "
            "max_memory sets a limit"
        )


def _server_memory(size: Sizes) -> str:
    least = size.least_server_bytes
    without = "" if size.server_bytes == least else f", or {least / GB:.2f} GB if it keeps no encoded weights"
    return f"{size.server_bytes / GB:.2f} GB of memory{without}"


def memory_notes(size: Sizes, machine_bytes: float) -> tuple[str, ...]:
    """Where a server takes more memory than the machine has that the program is compiled on."""
    if size.server_bytes <= machine_bytes:
        return ()
    return (
        f"a server takes {_server_memory(size)}; this machine has {machine_bytes / GB:.1f} GB. A server that has less "
        "keeps fewer encoded weights, and reads keys when they are needed; compile with max_memory to plan for that",
    )


def _too_much_memory(options: CompileOptions, limits: Sequence[str], least: float) -> InfeasibleError:
    return InfeasibleError(
        f"no parameters fit in max_memory = {(options.memory_limit or 0) / GB:.2f} GB:\n  "
        + "\n  ".join(limits)
        + f"\nAllow at least {least:.2f} GB, or lower the degrees of the activations."
    )


def _places_bootstraps(passes: Sequence[Pass]) -> bool:
    """Whether there is a pass that waits for a plan of bootstraps."""
    return any(isinstance(one, PlaceBootstraps) and one.boots is None for one in passes)


def _deep_choices(graph: Graph, noise: OutputNoise, options: CompileOptions) -> list[list[Parameters]]:
    """Parameters with bootstraps that the options allow, for programs too deep for any chain without them.

    They are for one image: what is pinned is not replaced. Without a precision to meet there is one scale; with one,
    all that bootstraps were measured at, the smallest first.
    """
    pinned = options.parameters is not None or options.scale_bits is not None or options.insecure
    if pinned or options.batch > 1:
        return []
    rings = (15, 16) if options.log_ring is None else (options.log_ring,)
    if noise.scale_bits(rings[0], options.precision or DEFAULT_PRECISION) > MAX_SCALE_BITS:
        return []
    usual = (BOOTSTRAP_SCALE_BITS, BOOTSTRAP_FIRST_BITS)
    scales = [usual] if options.precision is None else sorted(BOOTSTRAP_NOISE)
    made = (
        deep_chains(scale_bits=scale, first_bits=first, security=options.security, log_rings=rings)
        for scale, first in scales
    )
    return [chains for chains in made if chains]


def _lower_deep(
    graph: Graph,
    sets: Sequence[Sequence[Parameters]],
    noise: OutputNoise,
    passes: Sequence[Pass],
    context: Callable[[Parameters], PassContext],
    program: Callable[[Digits, Sequence[PassTiming]], CompiledProgram],
    options: CompileOptions,
    say: Stages,
) -> CompiledProgram:
    """The preferred program among parameters with bootstraps, of the first of the sets that meets the precision.

    Layouts and lowerings depend on the ring, and on the keys that bootstraps have anyway; where bootstraps go, and what
    the program takes, on all parameters.
    """
    where = next((i for i, one in enumerate(passes) if isinstance(one, PlaceBootstraps)), len(passes))

    def pack(parameters: Parameters) -> Packed:
        boots = parameters.bootstrapping
        assert boots is not None
        budget = f"{boots.budget[0]} + {boots.budget[1]}"
        slots = "" if boots.log_slots is None else f" on 2^{boots.log_slots} slots"
        say(f"lowering at ring 2^{parameters.log_ring}, with bootstraps in {budget} levels{slots}")
        dumps: list[tuple[str, str]] = []  # of many that are packed, one is taken
        manager = PassManager(passes[:where], options.dump_after, lambda name, text: dumps.append((name, text)), say)
        packed = manager.run(graph, context(parameters))
        return Packed(packed, Profiles(packed, parameters), tuple(manager.timings), tuple(dumps))

    refused: dict[str, list[Parameters]] = {}
    most_exact: float = math.inf
    too_large: list[Deep] = []
    coarser: Graph | None = None
    for choices in sets:
        if coarser is not None and options.precision is not None:
            # Finer scales leave fewer levels, so there are as many bootstraps as in what was too coarse, or more.
            expected = noise.of_program(coarser, choices[0])
            if expected > options.precision:
                most_exact = min(most_exact, expected)
                continue
        around = context(choices[0])
        assert around.costs is not None
        found = price_deep(
            graph,
            choices,
            pack,
            around.costs,
            around.threads,
            lambda parameters, why: refused.setdefault(why, []).append(parameters),
            options.fit.max_bootstraps,
            options.memory_limit,
            say,
        )
        if options.parameters is None:
            most = options.fit.max_bootstraps
            found += price_sparse(graph, found, pack, around.costs, around.threads, options.memory_limit, most, say)
        best = preferred_deep(found, options.memory_limit)
        too_large += [] if best else found
        for one in best[:1]:
            rest = (
                replace(other, boots=one.boots) if isinstance(other, PlaceBootstraps) else other
                for other in passes[where:]
            )
            if options.dump is not None:
                for name, text in one.packed.dumps:
                    options.dump(name, text)
            second = PassManager(tuple(rest), options.dump_after, options.dump, say)
            lowered = second.run(one.packed.graph, context(one.parameters))
            error = noise.of_program(lowered, one.parameters)
            if options.precision is not None and error > options.precision:
                most_exact, coarser = min(most_exact, error), lowered
                continue
            (whole,) = price_digits(lowered, [one.parameters], around.costs, around.threads, options.memory_limit)
            _say_memory(whole.keys.sizes, options, say)
            made = program(whole, (*one.packed.timings, *second.timings))
            return replace(made, report=replace(made.report, noise=error))
    if most_exact < math.inf:
        raise InfeasibleError(
            f"bootstraps do not keep a precision of {options.precision:g}: they change outputs by {most_exact:.2g} of "
            f"their range at best. Ask for a precision of {math.ceil(most_exact * 1e3) / 1e3:g}, leave it open, or "
            "lower the degrees of the activations."
        )
    if too_large:
        smallest = sorted(too_large, key=lambda one: one.server_bytes)
        lines = [f"{one.parameters.describe()}: {_up(one.server_bytes):.2f} GB" for one in smallest[:NAMED_LIMITS]]
        raise _too_much_memory(options, lines, _up(smallest[0].server_bytes))
    lines = [f"{those[-1].describe()}: {why}" for why, those in refused.items()][-NAMED_LIMITS:]
    raise InfeasibleError("no parameters hold the program, not even with bootstraps:\n  " + "\n  ".join(lines))


def key_steps(graph: Graph, parameters: Parameters) -> tuple[int, ...]:
    """Rotation steps that need keys where none is composed: of the graph's kernels and of bootstraps."""
    return tuple(sorted(steps_with_keys(record(graph, parameters).rotations, parameters)))


def _parameter_choices(
    graph: Graph,
    noise: OutputNoise,
    depth: int,
    options: CompileOptions,
) -> list[list[Parameters]]:
    """Parameters worth trying: for each ring, the smallest first, those that differ in digits alone."""
    if options.parameters is not None:
        pinned = options.parameters
        pinned.check_security()
        if pinned.bootstrapping is None and depth > pinned.depth:
            raise InfeasibleError(
                f"the program takes {depth} levels, the pinned parameters have {pinned.depth}. Lower the degrees of "
                "the activations, or pin more levels or bootstrapping."
            )
        if not _holds_batch(graph, pinned.log_ring, options.batch):
            raise InfeasibleError(
                f"a batch of {options.batch} images does not fit in the {pinned.slots} slots of the pinned parameters"
            )
        return [[pinned]]
    if depth > MAX_DEPTH:
        raise InfeasibleError(
            f"the program takes {depth} levels, {MAX_DEPTH} at most are possible without bootstrapping. "
            "Lower the degrees of the activations, or take a model of fewer layers."
        )
    rings = (12, 13, 14, 15, 16) if options.log_ring is None else (options.log_ring,)
    found: list[list[Parameters]] = []
    precision = options.precision or DEFAULT_PRECISION
    security = 0 if options.insecure else options.security
    bits = 0
    for log_ring in rings:
        noise_bits = noise.scale_bits(log_ring, precision)
        bits = options.scale_bits or max(noise_bits, log_ring + 6)
        if bits > MAX_SCALE_BITS or not _holds_batch(graph, log_ring, options.batch):
            continue
        same_ring = candidates(
            depth,
            bits,
            min(60, bits + INTEGER_BITS),
            technique=options.technique,
            security=security,
            log_rings=(log_ring,),
        )
        found += [same_ring] if same_ring else []
        if same_ring and options.memory_limit is None and not _is_tight(same_ring):
            return found
    if not found and not _holds_batch(graph, rings[-1], options.batch):
        raise InfeasibleError(
            f"a batch of {options.batch} images does not fit in the {1 << (rings[-1] - 1)} slots of ring "
            f"2^{rings[-1]}. Take a smaller batch" + ("." if options.log_ring is None else " or a larger ring.")
        )
    if not found and bits > MAX_SCALE_BITS:
        much = f"{bits}" if bits > MAX_SCALE_BITS + 1 else f"more than {MAX_SCALE_BITS}"
        raise InfeasibleError(
            f"a precision of {precision:g} takes a scale of {much} bits, {MAX_SCALE_BITS} at most are "
            f"supported. {why_so_fine(graph, noise.loudest())}"
        )
    if options.log_ring is not None and not found and not options.insecure:
        raise SecurityError(
            f"ring 2^{options.log_ring} does not hold {depth} levels of {bits} bits at {security}-bit security. "
            "Leave log_ring open, lower the degrees of the activations, or pass insecure=True for experiments."
        )
    return require_candidates(found, depth, bits, security)


def why_so_fine(graph: Graph, loudest: Node) -> str:
    """What makes a graph need a fine scale, by the node whose noise matters most, and what to do."""
    (source,) = graph.inputs
    _, readers = first_readers(graph, source.id)
    others = {node.id: node for node in readers if not isinstance(node.op, LinearOp)}
    sizes = [one.magnitude for one in source.type.channels]
    if others and loudest.id in {source.id, *others} and sizes and max(sizes) > UNEVEN * min(sizes):
        names = ", ".join(f"{node.id} ({node.origin.path or node.op.name})" for node in others.values())
        return (
            "The columns or channels of the input are of very different size, and share one unit because not only "
            f"linear layers read them, but {names}: scale them to the same size before the model, or ask for less "
            "precision."
        )
    if loudest.id == source.id:
        return (
            "The model makes much of small differences in its input, which encryption blurs: calibrate with images "
            "that vary as real ones do, scale the input, or ask for less precision."
        )
    where = f"{loudest.id} ({loudest.origin.path or 'model'})"
    advice = ["scale the weights around it", "ask for less precision"]
    if any(isinstance(node.op, Polynomial | PolynomialProduct | Square) for node in graph.nodes):
        advice[1:1] = ["lower the degrees of the activations", "calibrate without outliers"]
    return (
        f"It is for the noise of {where}: its values are large beside what is left of them in the outputs. "
        f"{', '.join(advice[:-1]).capitalize()}, or {advice[-1]}."
    )


def _holds_batch(graph: Graph, log_ring: int, batch: int) -> bool:
    """Whether every value of a batch, in dense planes, fits in one ciphertext."""
    slots = 1 << (log_ring - 1)
    return batch == 1 or all(
        batch * TensorLayout.dense(node.type.shape, slots).image_stride <= slots
        for node in graph.nodes
        if isinstance(node.op, Input | LinearOp)
    )


def _representative(choices: Sequence[Parameters], costs: CostTable, threads: int) -> Parameters:
    """Whose prices lowerings are chosen by, before it is known how many keys there will be."""

    def occupied(parameters: Parameters) -> float:
        one_key = rotation_key_bytes(
            parameters.log_ring, parameters.limbs, parameters.digits, len(parameters.special_primes)
        )
        return _key_switch_price(parameters, costs, threads) * (MACHINE_BYTES + USUAL_KEYS * one_key)

    return min(choices, key=occupied)


def _key_switch_price(parameters: Parameters, costs: CostTable, threads: int) -> float:
    """Seconds of key switching over the chain: what the number of digits decides."""
    return sum(
        predicted_seconds(costs, primitive, parameters, level, threads)
        for level in range(1, parameters.depth + 1)
        for primitive in ("rotate", "multiply")
    )


def _notes(options: CompileOptions) -> tuple[str, ...]:
    return ("NOT SECURE: the security check was waived",) if options.insecure else ()


def paging_notes(priced: Digits, max_memory: float | None) -> tuple[str, ...]:
    """What a server has to do to stay within the memory that was asked for."""
    keys = priced.keys
    if max_memory is None or keys.held == keys.pool:
        return ()
    return (f"within max_memory = {memory_line(keys, max_memory)}",)


def bootstrap_notes(graph: Graph, images: Array) -> tuple[str, ...]:
    """Where images that no fit has seen leave [-1, 1] at a bootstrap, the furthest first."""
    entering = {node.inputs[0]: node.id for node in graph.nodes if isinstance(node.op, Bootstrap)}
    largest: dict[str, float] = {}

    def observe(node: Node, value: Array) -> None:
        if node.id in entering:
            largest[entering[node.id]] = float(np.max(np.abs(value)))

    if entering:
        graph.evaluate(images, observe)
    beyond = sorted(((size, name) for name, size in largest.items() if size > WIDEST), reverse=True)
    if not beyond:
        return ()
    named = ", ".join(f"{size:.3g} at {name}" for size, name in beyond[:NAMED_BOOTSTRAPS])
    more = f" and {len(beyond) - NAMED_BOOTSTRAPS} more" if len(beyond) > NAMED_BOOTSTRAPS else ""
    return (
        f"on {len(images)} unseen calibration images slots leave [-1, 1] at {len(beyond)} of {len(largest)} bootstraps "
        f"({named}{more}), which lose precision there: calibrate with more images",
    )
