"""`python -m benchmarks examples`: runs the scripts of examples/, each in a process of its own; seconds and memory."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.results import machine, versions
from olac.system.files import write_file
from olac.system.memory import GB

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples"
LIMIT_SECONDS = 300.0
"""Longest wall time of an example, on two cores."""
EVERY_SECONDS = 0.1
"""Between two looks at the memory of an example's processes."""


@dataclass(frozen=True)
class Ran:
    """One example.

    Attributes:
        name: of its file.
        cpu_seconds: of all its processes.
        wall_seconds: from start to end.
        peak_gb: the most memory that its processes held together.
        error: the end of what it said if it failed, else "".
    """

    name: str
    cpu_seconds: float
    wall_seconds: float
    peak_gb: float
    error: str = ""


def scripts() -> list[Path]:
    """All examples, by name."""
    return sorted(FOLDER.glob("*.py"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "--only", nargs="+", choices=[path.stem for path in scripts()], metavar="NAME", help="these examples alone"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")


def run(options: argparse.Namespace, console: Console, command: str) -> int:
    """Run the examples one after the other and print a table; 1 if one failed or took more than five minutes."""
    chosen = [path for path in scripts() if options.only is None or path.stem in options.only]
    found = []
    for path in chosen:
        with console.status(path.name):
            found.append(run_one(path))
        console.print(f"{path.name}: {found[-1].error or 'done'}", markup=False)
    table = Table(box=box.SIMPLE, pad_edge=False)
    for title in ("example", "CPU seconds", "seconds", "peak GB"):
        table.add_column(title, justify="left" if title == "example" else "right")
    for ran in found:
        table.add_row(ran.name, f"{ran.cpu_seconds:.1f}", f"{ran.wall_seconds:.1f}", f"{ran.peak_gb:.2f}")
    console.print(table)
    if options.json is not None:
        rows = [asdict(ran) for ran in found]
        content = {"examples": rows, "command": command, "versions": versions(), "machine": machine()}
        write_file(options.json, [json.dumps(content, indent=1).encode() + b"\n"])
    return int(any(ran.error or ran.wall_seconds > LIMIT_SECONDS for ran in found))


def run_one(path: Path, environment: dict[str, str] | None = None) -> Ran:
    """Run a script in an empty folder, with `olac` and `python` of this process on PATH."""
    with tempfile.TemporaryDirectory(prefix="olac-examples-") as place:
        tools, work = Path(place) / "bin", Path(place) / "work"
        tools.mkdir()
        work.mkdir()
        tool = tools / "olac"
        code = shlex.quote("import sys; from olac.cli import main; sys.exit(main())")
        tool.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {code} "$@"\n')
        tool.chmod(0o755)
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        variables = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": paths}
        variables |= {"TMPDIR": str(work)} | (environment or {})
        before, start = _children_seconds(), time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, str(path)],
            cwd=work,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        peak: list[float] = [0.0]
        watcher = threading.Thread(target=_watch, args=(process, peak), daemon=True)
        watcher.start()
        try:
            said, _ = process.communicate(timeout=2 * LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
        wall = time.perf_counter() - start
        watcher.join()
    error = "" if process.returncode == 0 else f"exit code {process.returncode}\n{said[-2000:]}"
    return Ran(path.name, _children_seconds() - before, wall, peak[0] / GB, error)


def _children_seconds() -> float:
    """CPU seconds of the processes that this one waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watch(process: subprocess.Popen[str], peak: list[float]) -> None:
    """Keep the largest memory of a process and its descendants, until it ends."""
    while process.poll() is None:
        peak[0] = max(peak[0], sum(map(_held_bytes, _family(process.pid))))
        time.sleep(EVERY_SECONDS)


def _family(pid: int) -> list[int]:
    """A process and its descendants, as far as they are there."""
    found = [pid]
    for one in found:
        try:
            for thread in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
        except OSError:
            continue
    return found


def _held_bytes(pid: int) -> float:
    """Memory that a process holds alone, and its share of what it holds with others."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0.0)
