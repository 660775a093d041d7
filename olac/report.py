"""What people read about a program: parameters, plan and self-check."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from olac.calibration.statistics import calibration_images
from olac.ckks.parameters import SPARSE_WEIGHT, Parameters
from olac.errors import plain
from olac.ir.ops import Bootstrap, Polynomial
from olac.program.program import CompiledProgram
from olac.program.report import SelfCheck, percent
from olac.program.rows import Row
from olac.system.shapes import counted, noun

SHOWN_NOTES = 100
SHOWN_NAMES = 10
SHOWN_CHARACTERS = 2000
SHORT = 1000.0
"""Seconds below this are shown with decimals."""
TEXT_WIDTH = 80


def parameter_lines(program: CompiledProgram) -> list[str]:
    """Ring, chain, security, keys, what the client computes and the self-check, one line each."""
    parameters, engine = program.parameters, program.planned_for
    log_qp = engine.log_qp(parameters)
    lines = [
        f"ring dimension {parameters.ring_dimension}, {parameters.depth} levels of {parameters.scale_bits} bits, "
        f"{parameters.digits} digit{'s' if parameters.digits != 1 else ''} of key switching, {parameters.technique}; "
        f"planned for {engine.title}",
        f"log2(QP) = {log_qp:.1f}: {_security(parameters, log_qp)}",
        f"{len(program.rotations)} rotation keys",
    ]
    if program.batch > 1:
        lines.insert(0, f"{counted(program.batch, program.input_shape)} share a ciphertext")
    if program.composed:
        lines[-1] += f"; {len(program.composed)} rare steps are composed of others"
    if program.head:
        lines.append(
            f"the client computes the model's last steps, exactly: {program.head}. It sees what goes into them, "
            f"values of shape {program.output.type.shape}"
        )
    if program.output_names:
        lines.append(f"outputs: {_some(program.output_names)}")
    setup = parameters.bootstrapping
    if setup is not None:
        bootstraps = [node.type.layout for node in program.graph.nodes if isinstance(node.op, Bootstrap)]
        count = sum(layout.ciphertexts for layout in bootstraps if layout is not None)
        slots = "" if setup.log_slots is None else f", on the 2^{setup.log_slots} slots after which values repeat"
        lines.append(f"{count} bootstraps, each from level {setup.input_level} to {setup.output_level}{slots}")
    if program.report.noise is not None:
        lines.append(
            f"noise and bootstraps change outputs by up to {program.report.noise:.2g} of their range (simulated)"
        )
    check = program.report.check
    if check is not None:
        lines += _check_lines(check, noun(program.input_shape, 2))
    notes = [plain(note) for note in program.report.notes[:SHOWN_NOTES]]
    lines += [note if len(note) <= SHOWN_CHARACTERS else note[:SHOWN_CHARACTERS] + "..." for note in notes]
    more = len(program.report.notes) - SHOWN_NOTES
    return lines + ([f"and {more} more notes"] if more > 0 else [])


def _some(names: Sequence[str]) -> str:
    """The first few names."""
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _check_lines(check: SelfCheck, inputs: str) -> list[str]:
    """The lines about the self-check of a program whose inputs are called that."""
    lines = [
        f"self-check as {check.task} on {check.images} calibration {inputs} that decided nothing: agreement "
        f"{percent(check.agreement)} ({check.meaning or 'inputs whose largest output is the same'}), 95% confidence "
        f"{percent(check.low)} to {percent(check.high)}",
        f"output error: mean {check.mean_error:.3g}, largest {check.max_error:.3g}"
        + ("" if check.explained is None else f"; R2 {_r_squared(check.explained)}"),
    ]
    if check.goal is not None and check.low < check.goal <= check.agreement:
        if check.images_to_goal is None:
            lines.append(f"the interval reaches below {percent(check.goal)}; no number of {inputs} raises it to that")
        else:
            needed = calibration_images(check.images_to_goal)
            lines.append(
                f"if the agreement stays, {check.images_to_goal} such {inputs} show at least {percent(check.goal)}: "
                + ("more than a calibration holds" if needed is None else f"calibrate with about {needed} in all")
            )
    return lines


def _r_squared(value: float) -> str:
    return f"{value:.4f}" if value > -10 else "below -10" if math.isfinite(value) else "none, as some are not finite"


def _security(parameters: Parameters, log_qp: float) -> str:
    """What security is claimed, and by which sources."""
    if parameters.security == 0:
        return "NOT SECURE (asked for)"
    claim = f"{math.floor(parameters.security_bits_of(log_qp))}-bit security"
    if not parameters.secure:
        claim += f", less than the {parameters.security} bits that it was compiled for: compile the model again"
    if parameters.bootstrapping is not None:
        return (
            f"{claim} (sparse ternary secret of Hamming weight {SPARSE_WEIGHT}, within {parameters.security_bound}, "
            "the largest published for it, and the lattice estimator; no standard has a table for such secrets)"
        )
    return (
        f"{claim} (uniform ternary secret, classical attacker, by the Security Guidelines for Implementing Homomorphic "
        "Encryption of 2024 and the lattice estimator)"
    )


def program_text(program: CompiledProgram) -> str:
    """What `olac info` shows of a program, `TEXT_WIDTH` columns wide, predicted by the shipped table of costs."""
    estimate = program.estimate()
    console = Console(width=TEXT_WIDTH, file=io.StringIO(), record=True, color_system=None)
    for line in parameter_lines(program):
        console.print(line, markup=False, highlight=False)
    console.print(str(estimate), markup=False, highlight=False)
    console.print(plan_table(program, estimate.node_seconds))
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def plan_table(
    program: CompiledProgram,
    predicted: Mapping[str, float] | None = None,
    measured: Mapping[str, float] | None = None,
) -> Table:
    """One row per node: op, degree, level of the result, ciphertexts, predicted and measured seconds.

    Diagonals are given as modulus / baby step + step of imaginary parts (see `olac.ir.lowerings.Diagonals`), another
    lowering by its name.
    """
    table = _table("plan, seconds of one run")
    table.add_column("layer", overflow="fold", min_width=8)
    table.add_column("op", no_wrap=True)
    for name in ("degree", "level", "cipher-\ntexts"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("diagonals", justify="right", overflow="fold", min_width=9)
    for name, given in (("predicted", predicted), ("measured", measured)):
        if given is not None:
            table.add_column(name, justify="right", no_wrap=True)
    degrees = {fit.node: fit.degree for fit in program.report.fits}
    constants = program.graph.constants
    for node in program.graph.nodes:  # a copy of a node, made for shifted copies, has no fit of its own
        if isinstance(node.op, Polynomial):
            degrees.setdefault(node.id, constants[node.op.coefficients].shape[1] - 1)
    for node in program.graph.nodes:
        row: list[str | Text] = [
            Text(plain(node.id)),  # unchanged: rich must not read it as markup
            Text(plain(node.op.name)),
            str(degrees.get(node.id, "")),
            str(node.state.level),
            str(node.layout.ciphertexts),
            "" if node.lowering is None else node.lowering.brief,
        ]
        if predicted is not None:
            row.append(_seconds(predicted.get(node.id, 0.0)))
        if measured is not None:
            row.append(_seconds(measured.get(node.id, 0.0)))
        table.add_row(*row)
    return table


def debug_table(rows: Sequence[Row]) -> Table:
    """One row per layer: an encrypted run compared with a simulated one (see `olac.program.rows.Row`)."""
    table = _table("encrypted against simulated")
    table.add_column("layer, op", overflow="fold", min_width=16)  # an op has a line of its own if there is no room
    for name in ("level", "error", "of unit", "bits", "|slot|", "encryp-\nted", "outside", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            Text(f"{plain(row.layer)} {plain(row.op)}"),
            str(row.level),
            f"{row.true_error:.1e}",
            f"{row.error:.1e}",
            f"{row.bits:.1f}",
            f"{row.largest:.2g}",
            f"{row.largest_encrypted:.2g}",
            str(row.outside or ""),
            f"{row.seconds:.2f}" if row.seconds < SHORT else f"{row.seconds:.0f}",
            style="red" if row.outside else None,
        )
    return table


def _table(title: str) -> Table:
    """A table whose numbers are whole in 80 columns: names give way, by lines of their own."""
    return Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 0))


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < SHORT else f"{value:.0f}"
