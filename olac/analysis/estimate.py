"""What a program will take: seconds, keys and memory, before any key is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from olac.analysis.key_levels import KeyLevels, key_levels
from olac.backends.cost import CostEvaluator, Slowdown
from olac.ckks.engines import OPENFHE, OPENFHE_BYTES, EngineModel
from olac.ckks.parameters import Parameters
from olac.costs.table import CostTable
from olac.ir.graph import Graph, Node, last_reads
from olac.ir.ops import Bootstrap
from olac.kernels.base import Kernel, Value
from olac.kernels.execute import build_weightless_kernels
from olac.kernels.record import record
from olac.pages.drawings import Bar, estimate_snippet
from olac.pages.text import byte_amount, duration
from olac.system.memory import GB, current_rss_bytes
from olac.system.threads import usable_threads

LIBRARY_BYTES = OPENFHE_BYTES

BARE_PROCESS_BYTES = 130e6
"""Python with numpy, scipy and networkx loaded."""

UNUSED_SHARE = 0.035
"""Memory between objects, which the allocator keeps: ResNet-20 took 12.29 GB for objects of 11.88 GB."""

LOADING_KEYS = 2
"""While a key is read from a file, the bytes of this many further keys are held."""
READING_RATE = 8e8
"""Bytes of a key that are read, hashed and checked in a second. OpenFHE's time to make the key is added: a key of 78 MB
at ring 2^16 takes 0.24 s in all, on one thread."""


class Lowered(Protocol):
    """What an estimate asks of a program."""

    @property
    def graph(self) -> Graph:
        """At stage LEVELLED."""

    @property
    def parameters(self) -> Parameters:
        """Those that it runs with."""

    @property
    def rotations(self) -> tuple[int, ...]:
        """Steps that have keys."""

    @property
    def batch(self) -> int:
        """Images of one run."""

    @property
    def planned_for(self) -> EngineModel:
        """The engine that runs it by default."""


@dataclass(frozen=True, repr=False)
class Estimate:
    """Predicted costs of one program on one machine.

    Attributes:
        seconds_per_image: of one encrypted run, divided by its images; plaintexts are encoded before.
        first_seconds: of the first run, which also encodes plaintexts.
        node_seconds: of one run, by node.
        keygen_seconds: to make all keys.
        setup_seconds: to prepare bootstraps on the server.
        key_bytes: relinearisation and rotation keys, and those that only bootstraps take, in memory.
        key_file_bytes: the same in a file.
        setup_bytes: plaintexts that bootstraps take.
        plaintext_bytes: all encoded weights, if they are kept; with bootstraps they are encoded when needed.
        ciphertext_bytes: the largest set of ciphertexts alive at once.
        server_gb: peak memory of a server process that keeps its encoded weights, or as many of them as the program's
            limit allows; what they are encoded from is included.
        server_gb_without_kept_weights: the same if all weights are encoded anew in each run.
        client_gb: peak memory of a client process.
        process_gb: peak memory of one process that is both, from what this process holds now.
        counts: how often each primitive runs.
        sizes: what `server_gb` is made of.
    """

    seconds_per_image: float
    first_seconds: float
    node_seconds: dict[str, float]
    keygen_seconds: float
    setup_seconds: float
    key_bytes: int
    key_file_bytes: int
    setup_bytes: int
    plaintext_bytes: int
    ciphertext_bytes: int
    server_gb: float
    server_gb_without_kept_weights: float
    client_gb: float
    process_gb: float
    counts: dict[str, int]
    sizes: Sizes

    def __repr__(self) -> str:
        """One line."""
        return (
            f"<Estimate: {duration(self.seconds_per_image)} an image, keys of {byte_amount(self.key_file_bytes)}, "
            f"server {byte_amount(self.server_gb * GB)}, client {byte_amount(self.client_gb * GB)}>"
        )

    def __str__(self) -> str:
        """A table of seconds and memory, 80 columns wide."""
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _repr_html_(self) -> str:
        """For notebooks: the same table, and the seconds of the nodes."""
        bars = [Bar(name, seconds) for name, seconds in self.node_seconds.items()]
        return estimate_snippet(self._rows(), bars)

    def _rows(self) -> list[tuple[str, str]]:
        return [
            ("predicted time an image", duration(self.seconds_per_image)),
            ("predicted time of a first run", duration(self.first_seconds)),
            ("predicted time to make keys", duration(self.keygen_seconds)),
            ("keys in a file", byte_amount(self.key_file_bytes)),
            ("memory of a server", byte_amount(self.server_gb * GB)),
            ("the same without kept weights", byte_amount(self.server_gb_without_kept_weights * GB)),
            ("memory of a client", byte_amount(self.client_gb * GB)),
        ]


@dataclass(frozen=True)
class Sizes:
    """Bytes that a server holds, by purpose; attributes without a description are those of `Estimate`."""

    key_bytes: int
    setup_bytes: int
    plaintext_bytes: int
    ciphertext_bytes: int
    table_bytes: int
    """What kernels encode plaintexts from."""
    keeps_plaintexts: bool
    library_bytes: float = LIBRARY_BYTES
    """The engine's code and tables."""

    @property
    def server_bytes(self) -> float:
        """Peak memory of a server process."""
        return BARE_PROCESS_BYTES + self.held_bytes

    @property
    def least_server_bytes(self) -> float:
        """The same if no encoded weights are kept."""
        return replace(self, keeps_plaintexts=False).server_bytes

    @property
    def held_bytes(self) -> float:
        """The same without Python itself."""
        kept = self.plaintext_bytes if self.keeps_plaintexts else 0
        objects = self.table_bytes + self.key_bytes + self.setup_bytes + kept + self.ciphertext_bytes
        return self.library_bytes + (1.0 + UNUSED_SHARE) * objects


def sizes(
    graph: Graph,
    kernels: Mapping[str, Kernel],
    parameters: Parameters,
    keys: Mapping[int, int],
    encodes: Mapping[int, int],
    levels: Mapping[str, int],
    engine: EngineModel = OPENFHE,
) -> Sizes:
    """What a program will hold on an engine, before it is lowered to the end.

    Args:
        graph: packed, with its bootstraps.
        kernels: of its nodes, with or without weights; those of bootstraps need not be there.
        parameters: those that it would run with.
        keys: how many evaluation keys are used up to each level (`KeyLevels.of`).
        encodes: how many plaintexts are encoded, by level.
        levels: of every value.
    """
    bootstraps = engine.bootstraps(parameters)
    return Sizes(
        key_bytes=engine.keys_bytes(parameters, keys),
        setup_bytes=bootstraps.precomputed_bytes,
        plaintext_bytes=sum(n * engine.kept_plaintext_bytes(parameters, level) for level, n in encodes.items()),
        ciphertext_bytes=max(alive_bytes(graph, kernels, parameters, levels, engine).values(), default=0),
        table_bytes=sum(kernel.table_bytes for kernel in kernels.values()),
        keeps_plaintexts=bootstraps.keeps_plaintexts,
        library_bytes=engine.library_bytes(parameters),
    )


def key_reading_seconds(evaluator: CostEvaluator, level: int) -> float:
    """To read a key that is used up to a level from a file and make it."""
    engine, parameters = evaluator.engine, evaluator.parameters
    size = engine.key_bytes(parameters, level)
    return evaluator.price("deserialize_key", engine.key_level(parameters, level)) + size / READING_RATE


def alive_bytes(
    graph: Graph,
    kernels: Mapping[str, Kernel],
    parameters: Parameters,
    levels: Mapping[str, int],
    engine: EngineModel,
) -> dict[str, int]:
    """Bytes of the ciphertexts that are alive while each node is computed, in the order of the run."""
    done = last_reads(graph.nodes)
    alive: dict[str, int] = {}
    found: dict[str, int] = {}
    for node in graph.nodes:
        alive[node.id] = node.layout.ciphertexts * engine.ciphertext_bytes(parameters, levels[node.id])
        working = _working_bytes(node, kernels.get(node.id), parameters, levels, engine)
        found[node.id] = sum(alive.values()) + working
        for operand in done[node.id]:
            del alive[operand]
    return found


def estimate(
    program: Lowered,
    threads: int | None = None,
    costs: CostTable | None = None,
    slowdown: Slowdown | None = None,
) -> Estimate:
    """Predict a program with a table of costs, on a server without a limit of memory.

    `CompiledProgram.estimate` keeps to the memory that the program was compiled for.

    Args:
        threads: that the engine will use; None for those that this process has.
        costs: of the engine that runs it; None for the shipped table of the one that it was planned for.
        slowdown: of this machine against the table's (`olac.backends.session.Engine.slowdown` measures it).
    """
    used = threads or usable_threads()
    table = costs or CostTable.default(program.planned_for)
    parameters, engine = program.parameters, table.engine
    bootstraps = engine.bootstraps(parameters)
    kept = bootstraps.keeps_plaintexts
    evaluator = CostEvaluator(parameters, table, used, encoded=kept, slowdown=slowdown, rotations=program.rotations)
    seconds: dict[str, float] = {}
    levels: dict[str, int] = {}
    spent = 0.0

    def after(node: Node, value: Value) -> None:
        nonlocal spent
        seconds[node.id] = evaluator.seconds - spent
        spent = evaluator.seconds
        levels[node.id] = max(part.state.level for part in value)

    record(program.graph, parameters, recorder=evaluator, after=after)
    encodes = Counter(event.level for event in evaluator.events if event.primitive == "encode")
    encoding = sum(count * evaluator.price("encode", level) for level, count in encodes.items())
    reach = key_levels(evaluator.uses(), evaluator.counts(), bootstraps)
    keys = reach.of(program.rotations, parameters, bootstraps)
    size = sizes(program.graph, build_weightless_kernels(program.graph), parameters, keys, encodes, levels, engine)
    set_up_seconds = bootstraps.precomputed_limbs / parameters.limbs * evaluator.price("encode", parameters.depth)
    held = current_rss_bytes()
    return Estimate(
        seconds_per_image=evaluator.seconds / program.batch,
        first_seconds=evaluator.seconds + (encoding if kept else 0.0),
        node_seconds=seconds,
        keygen_seconds=_keygen_seconds(evaluator, keys, reach),
        setup_seconds=set_up_seconds,
        key_bytes=size.key_bytes,
        key_file_bytes=engine.keys_file_bytes(parameters, keys),
        setup_bytes=size.setup_bytes,
        plaintext_bytes=size.plaintext_bytes,
        ciphertext_bytes=size.ciphertext_bytes,
        server_gb=size.server_bytes / GB,
        server_gb_without_kept_weights=size.least_server_bytes / GB,
        client_gb=client_bytes(engine, parameters, size.key_bytes) / GB,
        process_gb=(held + size.held_bytes) / GB,
        counts=dict(Counter(event.primitive for event in evaluator.events)),
        sizes=size,
    )


def client_bytes(engine: EngineModel, parameters: Parameters, key_bytes: float) -> float:
    """Peak memory of a client process that makes keys of so many bytes."""
    one_key = engine.key_bytes(parameters, parameters.depth)
    return BARE_PROCESS_BYTES + engine.client_library_bytes(parameters) + key_bytes + 4 * one_key


def _keygen_seconds(evaluator: CostEvaluator, keys: Mapping[int, int], reach: KeyLevels) -> float:
    """To make all keys, from how many are used up to each level."""
    engine, parameters = evaluator.engine, evaluator.parameters
    by_reach: Counter[int] = Counter()
    for level, count in (Counter(keys) - Counter([reach.product])).items():
        by_reach[engine.key_level(parameters, level)] += count
    product = evaluator.price("relin_keygen", engine.key_level(parameters, reach.product))
    # Keys from the sparser secret are of other shapes, and take as long for their bytes.
    depth, other = parameters.depth, engine.bootstraps(parameters).from_sparse_bytes
    product += other / engine.key_bytes(parameters, depth) * evaluator.price("rotation_keygen", depth)
    return product + sum(count * evaluator.price("rotation_keygen", level) for level, count in by_reach.items())


def _working_bytes(
    node: Node, kernel: Kernel | None, parameters: Parameters, levels: Mapping[str, int], engine: EngineModel
) -> int:
    """Bytes that an op holds beside operand and result: rotations of the operand, its powers, sums and digits."""
    if isinstance(node.op, Bootstrap):
        return engine.bootstraps(parameters).working_bytes
    if kernel is None or not kernel.held:
        return 0
    level = levels[node.inputs[0]]
    held = kernel.held * engine.ciphertext_bytes(parameters, level) + engine.waiting_bytes(parameters, level)
    return held + 2 * engine.digits_bytes(parameters, level)
