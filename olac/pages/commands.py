"""`olac report`: the page of a compiled program."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from olac.errors import OlacError, plain

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[Any]


def add_report(commands: Commands) -> None:
    """Add the command to those of `olac`."""
    report = commands.add_parser(
        "report", help="write a page about a program: choices, levels, time, memory, precision"
    )
    report.add_argument("program", type=Path)
    report.add_argument(
        "--run",
        dest="records",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="what was measured: a file of olac run --record or olac debug --json; may be given several times",
    )
    report.add_argument("--costs", type=Path, metavar="FILE", help="predict by this table, which calibrate-costs wrote")
    report.add_argument(
        "--curves",
        type=Path,
        metavar="FILE",
        help="curves of the activations (default: PROGRAM.report if it exists)",
    )
    report.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="(default: report.html)"
    )
    report.set_defaults(run=write_report)


def write_report(options: argparse.Namespace) -> None:
    """Write the page and say where it is."""
    from olac.program.curves import beside
    from olac.program.program import CompiledProgram
    from olac.system.files import check_apart, check_writable

    curves = options.curves
    if curves is None and beside(options.program).is_file():
        curves = beside(options.program)
    inputs = {"program": options.program, "table of costs": options.costs, "file of curves": curves}
    check_apart({"report": options.output}, inputs | {f"record {i}": one for i, one in enumerate(options.records, 1)})
    check_writable(options.output)
    program = CompiledProgram.load(options.program)
    try:
        program.html(options.output, run=options.records, costs=options.costs, curves=curves)
    except ValueError as error:  # prices of another engine that does not take the program
        raise OlacError(str(error)) from error
    print(f"{plain(options.output)}: open it in a browser")
    if curves is None:
        print("It has no curves of the activations: no PROGRAM.report is beside the program.")
