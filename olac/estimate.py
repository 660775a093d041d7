"""What a program will take: seconds, keys and memory, before any key is made."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from olac.backends.cost import CostEvaluator, Slowdown
from olac.bootstrapping import SPECIAL_KEYS, precomputed_bytes, working_bytes
from olac.costs import CostTable, ciphertext_bytes, plaintext_bytes, rotation_key_bytes
from olac.ir.graph import Node
from olac.ir.ops import Bootstrap, Polynomial
from olac.kernels.base import Value
from olac.kernels.linear import DiagonalKernel
from olac.kernels.record import record
from olac.memory import current_rss_bytes
from olac.program import CompiledProgram
from olac.threads import usable_threads

GB = 1e9
LIBRARY_BYTES = 60e6
"""OpenFHE's code and the precomputed tables of a context, beside the keys."""

UNUSED_SHARE = 0.035
"""Memory between objects, which the allocator keeps: ResNet-20 took 12.29 GB where its objects are 11.88 GB."""


@dataclass(frozen=True)
class Estimate:
    """Predicted costs of one program on one machine.

    Attributes:
        seconds_per_image: one encrypted run divided by the images in it, plaintexts encoded before.
        first_seconds: the first run, which also encodes.
        node_seconds: of one run, by node.
        keygen_seconds: all keys.
        setup_seconds: for the server to prepare bootstraps.
        key_bytes: relinearisation and rotation keys, and those that only bootstraps take.
        setup_bytes: plaintexts that bootstraps take.
        plaintext_bytes: all encoded weights, if they are kept; with bootstraps they are not, but encoded when needed.
        ciphertext_bytes: the largest set of ciphertexts alive at once.
        server_gb: peak memory of a server process that keeps its plaintexts; with what they are encoded from.
        client_gb: peak memory of a client process.
        process_gb: peak memory of one process that is both, from what this process holds now.
        counts: how often each primitive runs.
    """

    seconds_per_image: float
    first_seconds: float
    node_seconds: dict[str, float]
    keygen_seconds: float
    setup_seconds: float
    key_bytes: int
    setup_bytes: int
    plaintext_bytes: int
    ciphertext_bytes: int
    server_gb: float
    client_gb: float
    process_gb: float
    counts: dict[str, int]


def estimate(
    program: CompiledProgram,
    threads: int | None = None,
    costs: CostTable | None = None,
    slowdown: Slowdown | None = None,
) -> Estimate:
    """Predict a program with the shipped table of costs, or another.

    Args:
        threads: that OpenFHE will use; None for what this process has.
        slowdown: of the machine against the table's (`olac.backends.openfhe.speed.measure_slowdown` measures it).
    """
    used = threads or usable_threads()
    table = costs or CostTable.default()
    parameters = program.parameters
    kept = parameters.bootstrapping is None
    evaluator = CostEvaluator(parameters, table, used, encoded=kept, slowdown=slowdown)
    seconds: dict[str, float] = {}
    spent = 0.0
    alive: dict[str, int] = {}
    peak = 0
    last = {operand: node.id for node in program.graph.nodes for operand in node.inputs}

    def after(node: Node, value: Value) -> None:
        nonlocal spent, peak
        seconds[node.id] = evaluator.seconds - spent
        spent = evaluator.seconds
        alive[node.id] = sum(ciphertext_bytes(parameters.log_ring, part.state.level + 1) for part in value)
        peak = max(peak, sum(alive.values()) + _working_bytes(program, node))
        for operand in node.inputs:
            if last[operand] == node.id:
                alive.pop(operand, None)

    record(program.graph, parameters, program.kernels, recorder=evaluator, after=after)
    encodes = Counter(event.level for event in evaluator.events if event.primitive == "encode")
    encoding = sum(count * evaluator.price("encode", level) for level, count in encodes.items())
    encoded = sum(count * plaintext_bytes(parameters.log_ring, level + 1) for level, count in encodes.items())
    one_key = rotation_key_bytes(
        parameters.log_ring, parameters.limbs, parameters.digits, len(parameters.special_primes)
    )
    special = 0 if kept else SPECIAL_KEYS - 1
    keys = one_key * (len(program.rotations) + 1 + special)
    keygen = evaluator.price("relin_keygen", parameters.depth) + (len(program.rotations) + special) * evaluator.price(
        "rotation_keygen", parameters.depth
    )
    set_up = precomputed_bytes(parameters)
    set_up_seconds = (
        set_up / plaintext_bytes(parameters.log_ring, parameters.limbs) * evaluator.price("encode", parameters.depth)
    )
    held = current_rss_bytes()
    tables = sum(kernel.table_bytes for kernel in program.kernels.values())
    server = LIBRARY_BYTES + (1.0 + UNUSED_SHARE) * (tables + keys + set_up + (encoded if kept else 0) + peak)
    return Estimate(
        seconds_per_image=evaluator.seconds / program.batch,
        first_seconds=evaluator.seconds + (encoding if kept else 0.0),
        node_seconds=seconds,
        keygen_seconds=keygen * evaluator.slowdown.heavy,
        setup_seconds=set_up_seconds,
        key_bytes=keys,
        setup_bytes=set_up,
        plaintext_bytes=encoded,
        ciphertext_bytes=peak,
        server_gb=(BARE_PROCESS_BYTES + server) / GB,
        client_gb=(BARE_PROCESS_BYTES + LIBRARY_BYTES + keys + 4 * one_key) / GB,
        process_gb=(held + server) / GB,
        counts=dict(Counter(event.primitive for event in evaluator.events)),
    )


BARE_PROCESS_BYTES = 130e6
"""Python with numpy, scipy and networkx loaded."""


def _working_bytes(program: CompiledProgram, node: Node) -> int:
    """Ciphertexts that an op holds beside operand and result: rotations of the operand and its powers, sums, digits."""
    if isinstance(node.op, Bootstrap):
        return working_bytes(program.parameters)
    layout, kernel = node.type.layout, program.kernels.get(node.id)
    shifted = isinstance(node.op, Polynomial) and layout is not None and layout.step > 0
    if not isinstance(kernel, DiagonalKernel) and not shifted:
        return 0
    operand = program.graph[node.inputs[0]].type
    assert operand.state is not None
    limbs = operand.state.level + 1
    parameters = program.parameters
    if isinstance(kernel, DiagonalKernel):
        held = kernel.held
    else:
        assert layout is not None
        held = layout.distinct_copies * node.op.levels(program.graph.constants)
    digits = parameters.digits * (limbs + len(parameters.special_primes)) * 8 * parameters.ring_dimension
    return held * ciphertext_bytes(parameters.log_ring, limbs) + 2 * digits
