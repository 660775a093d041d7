"""The `olac` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from olac import __version__
from olac.errors import OlacError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 on success, 1 with a message for any of olac's errors, 2 for wrong usage."""
    # Threads that spin at OpenMP's barriers make every primitive several times slower as soon as another process wants
    # a core; threads that sleep cost a few percent. It has to be said before torch or OpenFHE load the library.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    options = _parser().parse_args(arguments)
    try:
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
    demo.add_argument("--degree", type=int, default=None, help="of every activation; the tolerance decides if left out")
    demo.add_argument("--technique", choices=("FIXEDMANUAL", "FLEXIBLEAUTO"), default="FIXEDMANUAL")
    demo.set_defaults(run=_demo)

    info = commands.add_parser("info", help="what a compiled program is and what it will take")
    info.add_argument("program", type=Path)
    info.set_defaults(run=_info)
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
    from olac.program import CompiledProgram
    from olac.report import parameter_lines, plan_table

    console = Console()
    program = CompiledProgram.load(options.program)
    estimate = program.estimate()
    for line in parameter_lines(program):
        console.print(line)
    console.print(
        f"predicted: {estimate.seconds_per_image:.2f} s an image, keys of {estimate.key_bytes / 1e9:.3f} GB in "
        f"{estimate.keygen_seconds:.1f} s, server {estimate.server_gb:.2f} GB, client {estimate.client_gb:.2f} GB"
    )
    console.print(plan_table(program, estimate.node_seconds))


if __name__ == "__main__":
    sys.exit(main())
