"""Engines side by side: their primitives on one chain, and one program on each of them."""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import bootstraps, encrypted
from benchmarks.data import DataError, data_folder, test_set
from benchmarks.encrypted import Reporter
from benchmarks.encrypted_steps import BEFORE, recipe_file
from benchmarks.named_engines import named
from benchmarks.primitives import Bench, WrongResult, measure
from benchmarks.results import BOOTSTRAP, ENCRYPTED, PRIMITIVES, ResultsFile, Row, machine
from benchmarks.yardstick import Yardstick
from olac.ckks.parameters import Parameters
from olac.ckks.primes import FLEXIBLE
from olac.errors import OlacError
from olac.program.program import CompiledProgram
from olac.system.threads import set_threads, usable_threads

SHARES = (Fraction(1), Fraction(8, 9), Fraction(3, 4), Fraction(1, 2), Fraction(3, 10), Fraction(3, 20))
"""Of the limbs of a chain: where primitives are measured by default."""


def run(options: argparse.Namespace, command: str, console: Console) -> list[Row]:
    """Measure what the command line asks for; returns all rows of the file that compare engines."""
    names = list(dict.fromkeys(options.engines))
    program = None if options.program is None else _program(options.program)
    parameters = chain(options) if program is None else program.parameters
    limbs = limbs_of(parameters, options.limbs)
    set_threads(options.threads)
    results = ResultsFile.open(options.json, command, options.append)
    reporter = Reporter(console)
    with reporter.showing():
        engines = {
            name: named(name, parameters, lambda what, done, total: reporter.show(f"{what}: {done} of {total}"))
            for name in names
        }
        if program is not None:
            _run_program(options, program, names, results, reporter)
        if not options.no_primitives:
            # Only bootstraps know of the bootstrapping, and they have a benchmark of their own.
            bare = replace(parameters, bootstrapping=None)
            benches = []
            for name, engine in engines.items():
                reporter.show(f"{name}: making keys")
                benches.append(Bench(name, engine, bare))
            for count in limbs:
                reporter.show(f"primitives at {count} limbs")
                for row in _rows(benches, parameters, count, options.rounds):
                    results.add(row)
    return [row for row in results.rows if row.get("kind") in (PRIMITIVES, ENCRYPTED, BOOTSTRAP)]


def _program(path: Path) -> CompiledProgram:
    try:
        return CompiledProgram.load(path)
    except OlacError as error:
        raise DataError(f"{path}: {error}") from error


def chain(options: argparse.Namespace) -> Parameters:
    """The chain that the command line asks for: with room for a bootstrap, or of some levels."""
    if options.depth is None:
        return bootstraps.parameters_of(options)
    try:
        security = 0 if options.insecure else 128
        made = Parameters(options.ring, options.depth, options.scale, options.first, options.digits, FLEXIBLE, security)
        made.check_security()
    except (ValueError, OlacError) as error:
        raise DataError(str(error)) from error
    return made


def limbs_of(parameters: Parameters, wanted: list[int] | None) -> list[int]:
    """Numbers of limbs to measure at, the most first; DataError if the chain does not have them."""
    if wanted is None:
        wanted = [max(1, int(share * parameters.limbs)) for share in SHARES]
    if max(wanted) > parameters.limbs:
        raise DataError(f"--limbs {max(wanted)}: the chain has {parameters.limbs}")
    return sorted(set(wanted), reverse=True)


def _rows(benches: list[Bench], parameters: Parameters, limbs: int, rounds: int) -> Iterator[Row]:
    yardstick = Yardstick()
    try:
        times = measure(benches, limbs - 1, rounds, yardstick)
    except WrongResult as error:
        raise encrypted.RunError(str(error)) from error
    for bench in benches:
        found, (in_file, held) = times[bench.name], bench.key_bytes(limbs - 1)
        yield {
            "kind": PRIMITIVES,
            "engine": bench.name,
            "parameters": parameters.describe(),
            "log_ring": parameters.log_ring,
            "levels": parameters.depth,
            "limbs": limbs,
            "threads": usable_threads(),
            "rounds": rounds,
            "cpu_seconds": {name: round(seconds, 7) for name, seconds in found.cpu.items()},
            "wall_seconds": {name: round(seconds, 7) for name, seconds in found.wall.items()},
            "errors": {name: float(f"{error:.3g}") for name, error in found.errors.items()},
            "rotation_key_bytes": in_file,
            "held_rotation_key_bytes": held,
            "keygen_seconds": round(bench.keygen_seconds, 4),
            "ntt_cpu_seconds": round(yardstick.seconds, 6),
            "machine": machine(),
            "date": datetime.date.today().isoformat(),
        }


# Programs ------------------------------------------------------------------------------------------------------------


def _run_program(
    options: argparse.Namespace, program: CompiledProgram, names: list[str], results: ResultsFile, reporter: Reporter
) -> None:
    """Run a program on each engine, in turns; of the rounds on an engine the one with the least CPU time counts."""
    recipe = _recipe(options.program)
    folder = data_folder(options.data)
    test_set(folder, options.images)
    given = argparse.Namespace(
        model=recipe["model"],
        images=options.images,
        calibration=recipe["calibration"],
        effort=recipe.get("effort", BEFORE["effort"]),
        weights=None,
        data=folder,
        simulate=None,
        force=options.force,
        engine=None,
    )
    best: dict[str, Row] = {}
    with ExitStack() as stack:
        folders = {}
        for name in names:
            work = None if options.work is None else options.work / name
            folders[name] = stack.enter_context(encrypted.folders_of(work, options.program))
            folders[name].make()
        for turn in range(options.program_rounds):
            for name in names:
                reporter.line(f"{name}:")
                given.engine = name
                request = encrypted.request_of(given, folders[name], recipe, usable_threads(), options.images)
                row = encrypted.measured(given, folders[name], request, reporter)
                if name not in best or row["cpu_seconds"] < best[name]["cpu_seconds"]:
                    best[name] = row
                    results.add(row)
                if options.work is None and turn + 1 == options.program_rounds:
                    folders[name].remove_keys()


def _recipe(program: Path) -> dict[str, Any]:
    """What a program was compiled from, which says what images it takes."""
    path = recipe_file(program)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found["model"], found["calibration"], found["strategy"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} does not say what images {program.name} takes ({error}): `encrypted --program` writes both"
        ) from error
    return found
