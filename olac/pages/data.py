"""What the page of a program shows, as plain data: gathered here, and testable without HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from olac.analysis.estimate import BARE_PROCESS_BYTES, UNUSED_SHARE, Estimate, alive_bytes
from olac.analysis.rotation_keys import KeyChoice, held_within
from olac.ckks.parameters import Parameters
from olac.costs.table import CostTable
from olac.ir.graph import Node
from olac.ir.ops import Bootstrap, LinearOp, Polynomial, PolynomialProduct, Square
from olac.pages.drawings import Part, Stack
from olac.pages.record import LayerErrors, OutputErrors, RunRecord
from olac.pages.text import amount, byte_amount, counted, duration, share, whole
from olac.passes.base import FitReport
from olac.polynomials.curves import Curve
from olac.program.curves import Curves
from olac.program.program import CompiledProgram
from olac.program.report import SelfCheck
from olac.system.memory import GB
from olac.system.threads import usable_threads

MOST_NOTES = 200
NOT_MEASURED = "not measured"
HOW_TO_DEBUG = "olac debug --json FILE"


@dataclass(frozen=True)
class Fact:
    """One figure of the head.

    Attributes:
        name: what it is.
        value: with its unit.
        more: a smaller line below it.
        bad: whether it is a warning.
    """

    name: str
    value: str
    more: str = ""
    bad: bool = False


@dataclass(frozen=True)
class Stage:
    """One of the three forms of the model: in torch, simulated, encrypted.

    Attributes:
        name: of the form.
        value: its accuracy, or its agreement with the form before it.
        what: the value is.
        errors: lines about the errors of the outputs.
        known: whether it was measured.
        how: to measure it, if it was not.
    """

    name: str
    value: str
    what: str
    errors: tuple[str, ...] = ()
    known: bool = True
    how: str = ""


@dataclass(frozen=True)
class Card:
    """One activation: what was reported of its fit, and its curve if there is one."""

    fit: FitReport
    path: str
    curve: Curve | None


@dataclass(frozen=True)
class Plan:
    """A plan of degrees that was considered.

    Attributes:
        price: levels or seconds of all activations.
        agreement: simulated; None if it was not simulated.
        cost: what the additive model says of the change of the outputs.
        degrees: in network order.
        chosen: whether it was taken.
    """

    price: float
    agreement: float | None
    cost: float
    degrees: tuple[int, ...]
    chosen: bool


@dataclass(frozen=True)
class Step:
    """One node.

    Attributes:
        name, op, path: its id, op and module path.
        kind: "linear", "activation", "bootstrap" or "other".
        level: of its result.
        ciphertexts: of its result.
        inputs: indices of its operands.
        predicted: seconds of one run.
        measured: seconds of one set of ciphertexts; None if they were not measured.
        alive: bytes of the ciphertexts that are alive meanwhile, predicted.
        process_gb: measured memory of the process after it; None if it was not measured.
        errors: of an encrypted run; None if they were not measured.
    """

    name: str
    op: str
    path: str
    kind: str
    level: int
    ciphertexts: int
    inputs: tuple[int, ...]
    predicted: float
    measured: float | None
    alive: int
    process_gb: float | None
    errors: LayerErrors | None

    @property
    def bits(self) -> float | None:
        """Bits of precision; None if they are not known or without a bound."""
        return None if self.errors is None else self.errors.bits

    @property
    def tip(self) -> str:
        """All of it in a few words."""
        where = f", {self.path}" if self.path else ""
        return f"{self.name} ({self.op}{where}): level {self.level}, {counted(self.ciphertexts, 'ciphertext')}"


@dataclass(frozen=True)
class Data:
    """All that the page shows."""

    title: str
    fingerprint: str
    subtitle: str
    facts: tuple[Fact, ...]
    stages: tuple[Stage, ...]
    notes: tuple[str, ...]
    hidden_notes: int
    cards: tuple[Card, ...]
    has_curves: bool
    plans: tuple[Plan, ...]
    price_name: str
    steps: tuple[Step, ...]
    where: str
    run_line: str
    stacks: tuple[Stack, ...]
    keys: tuple[Fact, ...]
    estimate: Estimate = field(repr=False)

    @property
    def bootstraps(self) -> int:
        """Nodes that bootstrap."""
        return sum(step.kind == "bootstrap" for step in self.steps)

    @property
    def has_measured(self) -> bool:
        """Whether seconds of nodes were measured."""
        return any(step.measured is not None for step in self.steps)

    @property
    def has_errors(self) -> bool:
        """Whether an encrypted run was compared with a simulated one."""
        return any(step.errors is not None for step in self.steps)


def gather(
    program: CompiledProgram,
    record: RunRecord | None = None,
    costs: CostTable | None = None,
    curves: Curves | None = None,
) -> Data:
    """What the page of a program shows.

    Args:
        record: of this program.
        costs: of any engine; None for the shipped table of the program's.
        curves: of this program; None if there are none.
    """
    table = costs or CostTable.default(program.planned_for)
    estimate = program.estimate(costs=table)
    engine, parameters = table.engine, program.parameters
    alive = alive_bytes(
        program.graph,
        program.kernels,
        parameters,
        {node.id: node.state.level for node in program.graph.nodes},
        engine,
    )
    fingerprint = program.fingerprint
    model = "" if curves is None else curves.model
    notes = program.report.notes
    front = program.report.front
    by_levels = all(point.price == int(point.price) for point in front)
    return Data(
        title=model or f"Program {fingerprint[:12]}",
        fingerprint=fingerprint,
        subtitle=_subtitle(program),
        facts=_facts(program, estimate, record),
        stages=_stages(program, record),
        notes=notes[:MOST_NOTES],
        hidden_notes=max(0, len(notes) - MOST_NOTES),
        cards=_cards(program, curves),
        has_curves=bool(curves and curves.activations),
        plans=tuple(Plan(one.price, one.agreement, one.cost, one.degrees, one.chosen) for one in front),
        price_name="levels of all activations" if by_levels else "predicted seconds of all activations",
        steps=_steps(program, estimate, alive, record),
        where=f"by the costs of {table.machine}, {counted(usable_threads(), 'thread')}",
        run_line=_run_line(record),
        stacks=_stacks(program, estimate, table),
        keys=_keys(program, estimate, table, record),
        estimate=estimate,
    )


def _subtitle(program: CompiledProgram) -> str:
    takes = " x ".join(map(str, program.input_shape))
    gives = " x ".join(map(str, program.output_shape)) or "1"
    return f"CKKS program for {program.planned_for.title}: inputs {takes}, outputs {gives}"


def security_fact(parameters: Parameters, log_qp: float) -> Fact:
    """The bits of security of parameters, and whether they are fewer than were asked for.

    Args:
        log_qp: log2 of the largest modulus on the program's engine.
    """
    if parameters.security == 0:
        return Fact("security", "NOT SECURE", "compiled with insecure=True, for tests", bad=True)
    bits = math.floor(parameters.security_bits_of(log_qp))
    if not parameters.secure:
        return Fact("security", f"{bits} bits", f"less than the {parameters.security} that were asked for", bad=True)
    return Fact("security", f"{bits} bits", f"log2(QP) = {log_qp:.0f} at ring 2^{parameters.log_ring}")


def _facts(program: CompiledProgram, estimate: Estimate, record: RunRecord | None) -> tuple[Fact, ...]:
    parameters, timing = program.parameters, None if record is None else record.timing
    claim = security_fact(parameters, program.planned_for.log_qp(parameters))
    predicted = f"predicted {duration(estimate.seconds_per_image)}"
    if timing is None:
        seconds = Fact("time an input", duration(estimate.seconds_per_image), "predicted")
        memory = Fact("server memory", byte_amount(estimate.server_gb * GB), "predicted peak")
    else:
        each = timing.seconds / max(1, timing.images)
        seconds = Fact("time an input", duration(each), f"measured; {predicted}")
        memory = Fact(
            "server memory",
            byte_amount(timing.peak_gb * GB),
            f"measured peak; predicted {byte_amount(estimate.server_gb * GB)}",
        )
    bootstraps = sum(isinstance(node.op, Bootstrap) for node in program.graph.nodes)
    return (
        seconds,
        memory,
        Fact("keys", byte_amount(estimate.key_file_bytes), f"in a file; {duration(estimate.keygen_seconds)} to make"),
        Fact("client memory", byte_amount(estimate.client_gb * GB), "predicted peak"),
        claim,
        Fact(
            "ring and levels",
            f"2^{parameters.log_ring}, {parameters.depth} levels",
            f"of {parameters.scale_bits} bits; {counted(parameters.digits, 'digit')} of key switching",
        ),
        Fact(
            "nodes",
            whole(len(program.graph.nodes)),
            f"{counted(len(program.report.fits), 'activation')}, {counted(bootstraps, 'bootstrap')}",
        ),
        Fact("inputs in a run", whole(program.batch), "that share ciphertexts" if program.batch > 1 else "at a time"),
    )


def _stages(program: CompiledProgram, record: RunRecord | None) -> tuple[Stage, ...]:
    check, accuracy = program.report.check, None if record is None else record.accuracy
    outputs = None if record is None else record.outputs
    if accuracy is not None and accuracy.model is not None:
        labelled = counted(accuracy.images, "labelled input")
        torch = Stage("model in torch", share(accuracy.model), f"accuracy on {labelled}")
    else:
        torch = Stage("model in torch", "reference", "the other two are compared with it")
    return (
        torch,
        _simulated(check, None if accuracy is None else accuracy.simulated),
        _encrypted(outputs, None if accuracy is None else accuracy.encrypted),
    )


def _simulated(check: SelfCheck | None, accuracy: float | None) -> Stage:
    if check is None:
        how = "Compile the model with olac.compile, which checks it."
        return Stage("simulated", NOT_MEASURED, "agreement with the model", known=False, how=how)
    errors: tuple[str, ...] = (
        f"outputs off by {amount(check.mean_error)} on average, {amount(check.max_error)} at most",
        f"{share(check.low)} to {share(check.high)} with 95% confidence, {counted(check.images, 'input')}",
    )
    if accuracy is not None:
        return Stage(
            "simulated", share(accuracy), "accuracy", (f"{share(check.agreement)} agree with the model", *errors)
        )
    return Stage("simulated", share(check.agreement), "agreement with the model", errors)


def _encrypted(outputs: OutputErrors | None, accuracy: float | None) -> Stage:
    if outputs is None and accuracy is None:
        how = f"{HOW_TO_DEBUG} measures it: give the file with --run."
        return Stage("encrypted", NOT_MEASURED, "agreement with the simulation", known=False, how=how)
    errors: tuple[str, ...] = ()
    value, what = NOT_MEASURED, "agreement with the simulation"
    if outputs is not None:
        if outputs.mean_error is None or outputs.max_error is None:
            errors = ("the outputs do not decrypt to numbers",)
        else:
            errors = (f"outputs off by {amount(outputs.mean_error)} on average, {amount(outputs.max_error)} at most",)
        if outputs.same is not None:
            value = f"{outputs.same} of {outputs.images}"
        else:
            value, what = "compared", f"with the simulation, {counted(outputs.images, 'input')}"
    if accuracy is not None:
        agreeing = () if outputs is None or outputs.same is None else (f"{value} agree with the simulation",)
        errors = (*agreeing, *errors)
        return Stage("encrypted", share(accuracy), "accuracy", errors)
    return Stage("encrypted", value, what, errors)


def _cards(program: CompiledProgram, curves: Curves | None) -> tuple[Card, ...]:
    by_node = {} if curves is None else {one.node: one for one in curves.activations}
    paths = {node.id: node.origin.path for node in program.graph.nodes}
    return tuple(Card(fit, paths.get(fit.node, ""), by_node.get(fit.node)) for fit in program.report.fits)


def _kind(node: Node) -> str:
    if isinstance(node.op, Bootstrap):
        return "bootstrap"
    if isinstance(node.op, Polynomial | PolynomialProduct | Square):
        return "activation"
    return "linear" if isinstance(node.op, LinearOp) else "other"


def _steps(
    program: CompiledProgram, estimate: Estimate, alive: Mapping[str, int], record: RunRecord | None
) -> tuple[Step, ...]:
    places = {node.id: i for i, node in enumerate(program.graph.nodes)}
    timing = None if record is None else record.timing
    ran = {} if timing is None else {one.node: one for one in timing.nodes}
    sets = 1 if timing is None else max(1, -(-timing.images // program.batch))
    errors = {} if record is None else {one.layer: one for one in record.layers}
    found = []
    for node in program.graph.nodes:
        one, row = ran.get(node.id), errors.get(node.id)
        measured = None if one is None else one.seconds / sets
        if one is None and not ran and row is not None:
            measured = row.seconds
        found.append(
            Step(
                node.id,
                node.op.name,
                node.origin.path,
                _kind(node),
                node.state.level,
                node.layout.ciphertexts,
                tuple(places[i] for i in node.inputs),
                estimate.node_seconds.get(node.id, 0.0),
                measured,
                alive[node.id],
                None if one is None else one.memory_gb,
                row,
            )
        )
    return tuple(found)


def _run_line(record: RunRecord | None) -> str:
    if record is None or record.timing is None:
        return ""
    timing = record.timing
    return (
        f"measured on {timing.engine} with {counted(timing.threads, 'thread')}: {counted(timing.images, 'input')} in "
        f"{duration(timing.seconds)}"
    )


def _stacks(program: CompiledProgram, estimate: Estimate, table: CostTable) -> tuple[Stack, ...]:
    sizes, engine, parameters = estimate.sizes, table.engine, program.parameters
    kept = sizes.plaintext_bytes if sizes.keeps_plaintexts else 0
    objects = sizes.table_bytes + sizes.key_bytes + sizes.setup_bytes + kept + sizes.ciphertext_bytes
    server = (
        Part("Python and its libraries", BARE_PROCESS_BYTES),
        Part(engine.title, sizes.library_bytes),
        Part("evaluation keys", sizes.key_bytes),
        Part("plaintexts of bootstraps", sizes.setup_bytes),
        Part("encoded weights", kept),
        Part("weights before encoding", sizes.table_bytes),
        Part("ciphertexts", sizes.ciphertext_bytes),
        Part("room between objects", UNUSED_SHARE * objects),
    )
    library = engine.client_library_bytes(parameters)
    rest = max(0.0, estimate.client_gb * GB - BARE_PROCESS_BYTES - library - estimate.key_bytes)
    client = (
        Part("Python and its libraries", BARE_PROCESS_BYTES),
        Part(engine.title, library),
        Part("evaluation keys", estimate.key_bytes),
        Part("plaintexts of bootstraps", 0.0),
        Part("encoded weights", 0.0),
        Part("weights before encoding", 0.0),
        Part("ciphertexts", 0.0),
        Part("work on one key", rest),
    )
    return Stack("server", server), Stack("client", client)


def _keys(program: CompiledProgram, estimate: Estimate, table: CostTable, record: RunRecord | None) -> tuple[Fact, ...]:
    listed = len(program.rotations)
    of_bootstraps = len(set(program.rotations) & set(table.engine.bootstraps(program.parameters).steps))
    more = f"{of_bootstraps} of them for bootstraps" if of_bootstraps else "outside of bootstraps"
    facts = [Fact("rotation keys", whole(listed), more)]
    composed = len(program.composed)
    told = "rotations without a key, made of others" if composed else "none needed"
    facts.append(Fact("composed steps", whole(composed), told))
    if program.max_memory is not None:
        choice = _within(program, table)
        limit = byte_amount(program.max_memory)
        if choice.held < choice.pool:
            told = f"of {choice.pool} held at a time, {whole(choice.reads)} reads from their file in a run"
            facts.append(Fact("paged keys", whole(choice.held), f"{told}, within {limit}"))
        else:
            facts.append(Fact("paged keys", "none", f"all are held within {limit}"))
    timing = None if record is None else record.timing
    if timing is not None and timing.keys_held is not None:
        reads = f"{whole(timing.keys_read or 0)} reads from their file"
        facts.append(Fact("paged in the run", whole(timing.keys_held), f"held at a time, {reads}"))
    facts.append(
        Fact("size", byte_amount(estimate.key_bytes), f"in memory, {byte_amount(estimate.key_file_bytes)} in a file")
    )
    return tuple(facts)


def _within(program: CompiledProgram, table: CostTable) -> KeyChoice:
    assert program.max_memory is not None
    return held_within(program, program.max_memory, table, usable_threads())


def costliest(steps: Sequence[Step], most: int = 12) -> tuple[Step, ...]:
    """The nodes that take the most seconds, measured ones if there are any, in that order."""
    taken = sorted(steps, key=lambda one: -(one.predicted if one.measured is None else one.measured))
    return tuple(taken[:most])
