"""The `olac` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from olac import __version__
from olac.errors import ArtifactError, OlacError
from olac.plugins import load_plugins

if TYPE_CHECKING:
    from olac.costs import CostTable
    from olac.runtime import Progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 on success, 1 with a message for any of olac's errors, 2 for wrong usage."""
    # Threads that spin at OpenMP's barriers make every primitive several times slower as soon as another process wants
    # a core; threads that sleep cost a few percent. It has to be said before torch or OpenFHE load the library.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    options = _parser().parse_args(arguments)
    try:
        load_plugins()
        return int(options.run(options) or 0)
    except OlacError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}[/]: ", end="")
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="olac", description="Compile PyTorch models into programs that run on encrypted inputs."
    )
    parser.add_argument("--version", action="version", version=f"olac {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train, compile and run a digits CNN encrypted, and measure it")
    demo.add_argument("--output", type=Path, default=Path("build/demo.json"), help="the JSON file to write")
    demo.add_argument("--images", type=int, default=10, help="held-out images to encrypt (1 to 360)")
    demo.add_argument("--degree", type=int, default=None, help="of every activation; chosen for each if left out")
    demo.add_argument("--technique", choices=("FIXEDMANUAL", "FLEXIBLEAUTO"), default="FIXEDMANUAL")
    demo.set_defaults(run=_demo)

    info = commands.add_parser("info", help="what a compiled program is and what it will take")
    info.add_argument("program", type=Path)
    info.add_argument("--costs", type=Path, metavar="FILE", help="predict from this table of calibrate-costs")
    info.add_argument("--max-memory", type=float, metavar="GB", help="say what a server does within that")
    info.set_defaults(run=_info)

    calibrate = commands.add_parser(
        "calibrate-costs", help="measure OpenFHE on this machine: a table of costs for predictions and choices"
    )
    calibrate.add_argument("--output", type=Path, required=True, metavar="FILE", help="the table to write (JSON)")
    calibrate.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to measure")
    calibrate.add_argument(
        "--rings", type=int, nargs="+", metavar="LOG2", help="log2 of the ring dimensions to measure (all of 12 ... 16)"
    )
    calibrate.add_argument("--passes", type=int, default=1, help="times that all is measured; the fastest counts")
    calibrate.add_argument("--quick", action="store_true", help="few settings and calls, for a rough table")
    calibrate.set_defaults(run=_calibrate_costs)

    keygen = commands.add_parser(
        "keygen", help="client: make secret.key (stays) and evaluation.keys (goes to the server)"
    )
    keygen.add_argument("program", type=Path)
    keygen.add_argument("folder", type=Path)
    keygen.add_argument("--overwrite", action="store_true", help="replace a secret key that is there already")
    keygen.set_defaults(run=_keygen)

    encrypt = commands.add_parser("encrypt", help="client: encrypt images from a .npy file")
    for name in ("program", "secret_key", "images", "output"):
        encrypt.add_argument(name, type=Path)
    encrypt.set_defaults(run=_encrypt)

    run = commands.add_parser("run", help="server: run a program on an encrypted input; needs no secret key")
    for name in ("program", "evaluation_keys", "input", "output"):
        run.add_argument(name, type=Path)
    run.add_argument("--max-memory", type=float, metavar="GB", help="that this process may take")
    run.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="keeps what the run has come to; a later run continues from it"
    )
    run.add_argument(
        "--checkpoint-seconds", type=float, default=60.0, metavar="S", help="between checkpoints without a bootstrap"
    )
    run.set_defaults(run=_run)

    decrypt = commands.add_parser("decrypt", help="client: decrypt a result into a .npy file")
    for name in ("program", "secret_key", "result", "output"):
        decrypt.add_argument(name, type=Path)
    decrypt.add_argument(
        "--decimals", type=int, metavar="D", help="round outputs that are to be shared (SECURITY.md says what it does)"
    )
    decrypt.set_defaults(run=_decrypt)

    debug = commands.add_parser(
        "debug", help="client, with both keys: compare an encrypted run with a simulated one, layer by layer"
    )
    for name in ("program", "secret_key", "evaluation_keys", "images"):
        debug.add_argument(name, type=Path)
    debug.add_argument(
        "--threshold", type=float, default=0.05, help="largest error that passes for right, in a layer's unit"
    )
    debug.add_argument("--max-memory", type=float, metavar="GB", help="that this process may take")
    debug.set_defaults(run=_debug)
    return parser


def _demo(options: argparse.Namespace) -> None:
    try:
        from olac.demo import run_demo
    except ModuleNotFoundError as error:
        raise OlacError(f"the demo needs torch and scikit-learn ({error}): pip install 'olac[demo]'") from error
    if not 1 <= options.images <= 360:
        raise OlacError(f"--images {options.images} is outside 1 ... 360")
    run_demo(options.output, options.images, degree=options.degree, technique=options.technique)


def _info(options: argparse.Namespace) -> None:
    from olac.costs import CostTable
    from olac.program import CompiledProgram
    from olac.report import memory_line, parameter_lines, plan_table
    from olac.rotation_keys import held_within
    from olac.threads import usable_threads

    console = Console()
    program = CompiledProgram.load(options.program)
    costs = CostTable.default() if options.costs is None else _load_costs(options.costs)
    estimate = program.estimate(costs=costs)
    for line in parameter_lines(program):
        console.print(line)
    console.print(
        f"predicted: {estimate.seconds_per_image:.2f} s an image, keys of {estimate.key_bytes / 1e9:.3f} GB in "
        f"{estimate.keygen_seconds:.1f} s, server {estimate.server_gb:.2f} GB, client {estimate.client_gb:.2f} GB"
    )
    if options.max_memory is not None:
        limit = options.max_memory * 1e9
        console.print(memory_line(held_within(program, limit, costs, usable_threads()), limit), soft_wrap=True)
    console.print(plan_table(program, estimate.node_seconds))


def _load_costs(path: Path) -> CostTable:
    from olac.costs import CostTable

    try:
        return CostTable.load(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: {error}. Make a table with olac calibrate-costs.") from error


def _calibrate_costs(options: argparse.Namespace) -> None:
    from olac.backends.openfhe.measure import RINGS, measure_costs
    from olac.cost_fit import report
    from olac.files import check_writable, write_file

    check_writable(options.output)
    try:
        table = measure_costs(
            options.threads,
            options.rings or RINGS,
            quick=options.quick,
            passes=options.passes,
            progress=lambda line: print(line, flush=True),
        )
    except ValueError as error:
        raise OlacError(str(error)) from error
    write_file(options.output, [table.to_json().encode()])
    print(report(table))
    print(f"a bootstrap takes {table.bootstrap_factor:.2f} times the primitives that it is made of")


def _keygen(options: argparse.Namespace) -> None:
    from olac.program import CompiledProgram
    from olac.runtime import commands

    estimate = CompiledProgram.load(options.program).estimate()
    console = Console()
    console.print(
        f"keys of {estimate.key_bytes / 1e9:.3f} GB, about {estimate.keygen_seconds:.0f} s and "
        f"{estimate.client_gb:.2f} GB of memory"
    )
    with console.status("making keys") as status:
        secret, evaluation = commands.keygen(
            options.program,
            options.folder,
            overwrite=options.overwrite,
            progress=lambda done, total: status.update(f"making keys: {done} of {total}"),
        )
    console.print(f"{secret}: keep it, whoever has it reads everything\n{evaluation}: for the server", soft_wrap=True)


def _encrypt(options: argparse.Namespace) -> None:
    from olac.runtime import commands

    commands.encrypt(options.program, options.secret_key, options.images, options.output)


def _run(options: argparse.Namespace) -> int:
    from olac.runtime import commands

    last: Progress | None = None
    with _shown() as show:

        def keep(progress: Progress) -> None:
            nonlocal last
            last = progress
            show(progress)

        try:
            commands.run(
                options.program,
                options.evaluation_keys,
                options.input,
                options.output,
                max_memory=_bytes(options.max_memory),
                progress=keep,
                checkpoint=options.checkpoint,
                checkpoint_seconds=options.checkpoint_seconds,
            )
        except KeyboardInterrupt:
            stopped = _stopped(last, options.checkpoint)
        else:
            return 0
    print(stopped, file=sys.stderr)
    return 130


@contextmanager
def _shown() -> Iterator[Callable[[Progress], None]]:
    """Shows a run: one line that changes on a terminal, a line for each layer elsewhere."""
    console = Console()
    with console.status("loading keys") as status:

        def show(progress: Progress) -> None:
            line = (
                f"{progress.done} of {progress.total}: {progress.node} at level {progress.level}, "
                f"{progress.memory_gb:.2f} GB, {_duration(progress.eta_seconds)} left"
            )
            if console.is_terminal:
                status.update(line)
            else:
                print(line, flush=True)  # files and pipes keep every line as it comes

        yield show


def _bytes(gigabytes: float | None) -> float | None:
    return None if gigabytes is None else gigabytes * 1e9


def _stopped(last: Progress | None, checkpoint: Path | None) -> str:
    """One line: where a run was interrupted, and whether it can be continued."""
    where = "before the first layer" if last is None else f"behind {last.node} ({last.done} of {last.total})"
    if checkpoint is None:
        kept = "no checkpoint was kept (--checkpoint FILE keeps one)"
    elif not checkpoint.exists():
        kept = "there was no checkpoint yet"
    else:
        upto = f" the run up to {last.checkpoint}" if last is not None and last.checkpoint else " what there was"
        kept = f"{checkpoint} holds{upto}: the same command continues from there"
    return f"interrupted {where}; {kept}"


def _duration(seconds: float) -> str:
    """For people: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _decrypt(options: argparse.Namespace) -> None:
    from olac.runtime import commands

    values = commands.decrypt(
        options.program, options.secret_key, options.result, options.output, decimals=options.decimals
    )
    shown = ".4g" if options.decimals is None else f".{max(options.decimals, 0)}f"
    for row in values.reshape(len(values), -1):
        print(f"class {row.argmax()}: " + " ".join(format(value, shown) for value in row))


def _debug(options: argparse.Namespace) -> None:
    from olac.report import debug_table
    from olac.runtime import commands
    from olac.runtime.debug import first_fault

    with _shown() as show:
        rows = commands.debug(
            options.program,
            options.secret_key,
            options.evaluation_keys,
            options.images,
            max_memory=_bytes(options.max_memory),
            progress=show,
        )
    Console().print(debug_table(rows))
    fault = first_fault(rows, options.threshold)
    print("every layer is right" if fault is None else f"the first layer that goes wrong is {fault}")


if __name__ == "__main__":
    sys.exit(main())
