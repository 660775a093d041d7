"""Cases in processes of their own, so that crashes and hangs are noticed and affect nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.faults.outcomes import Finding, Outcome, Verdict

ROOT = Path(__file__).resolve().parents[2]
CPU_SECONDS = 120.0
WALL_SECONDS = 900.0
START_SECONDS = 900.0
POLL_SECONDS = 0.5
MEMORY_BYTES = 6 << 30
TAIL = 300


@dataclass
class Worker:
    """A process that does the cases of some kinds, one after another.

    Attributes:
        kinds: that it will be asked for.
        folder: of the material.
        memory: bytes that it may map in addition to what it has when it is ready.
        threads: number of OpenMP's threads.
        program: arguments of Python that start it.
    """

    kinds: Sequence[str]
    folder: Path
    memory: int = MEMORY_BYTES
    threads: int = 1
    program: Sequence[str] = ("-m", "benchmarks.faults.worker")
    _process: subprocess.Popen[str] | None = None
    _errors: IO[bytes] | None = None

    def _start(self) -> subprocess.Popen[str]:
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, *self.program, str(self.folder), str(self.memory), *self.kinds],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": paths,
                "OMP_NUM_THREADS": str(self.threads),
                "PYTHONWARNINGS": "ignore",
            },
        )
        self._process = process
        ready = self._answer(process, START_SECONDS, START_SECONDS)
        if not isinstance(ready, dict):
            raise RuntimeError(f"the process for {', '.join(self.kinds)} did not start: {ready}\n{self._tail()}")
        return process

    def _answer(self, process: subprocess.Popen[str], cpu: float, wall: float) -> dict[str, Any] | Outcome:
        """The next line of its output, or how the process failed to write one."""
        assert process.stdout is not None
        began, used = time.monotonic(), _cpu_seconds(process.pid)
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not selector.select(POLL_SECONDS):
                if _cpu_seconds(process.pid) - used > cpu or time.monotonic() - began > wall:
                    return Outcome.HUNG
        line = process.stdout.readline()
        if not line:
            return Outcome.CRASHED
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _tail(self) -> str:
        assert self._errors is not None
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", "replace")[-TAIL:]

    def case(self, kind: str, seed: int, cpu: float = CPU_SECONDS, wall: float = WALL_SECONDS) -> Finding:
        """One case; a process that crashed or hung is replaced when it is needed again."""
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps({"kind": kind, "seed": seed}) + "\n")
        process.stdin.flush()
        answer = self._answer(process, cpu, wall)
        if isinstance(answer, dict):
            return Finding(kind, seed, Verdict(Outcome(answer["outcome"]), answer["what"]))
        self.close()
        code = process.returncode
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Finding(kind, seed, Verdict(answer, name))

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if self._errors is not None:
            self._last = self._tail()
            self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self.close()


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
