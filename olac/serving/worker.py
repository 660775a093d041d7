"""A worker: a process that holds one program and one key set, and runs the jobs that it is given.

    python -m olac.serving.worker --program FILE --keys FOLDER --identity ID --engine NAME --memory BYTES

Keys and inputs come from outside, and the library of CKKS sees them here alone: what goes wrong with them ends this
process and nothing else. It reads jobs as lines of JSON, and writes what happens as lines of JSON:

    {"job": ID, "input": FILE, "result": FILE, "checkpoint": FILE}      {"cancel": ID}
    {"event": "ready" | "progress" | "done" | "failed" | "cancelled", ...}      "last" if the process ends after it

It ends when its standard input ends, so it never outlives the process that started it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from olac.errors import OlacError
from olac.plugins import load_plugins
from olac.program.program import CompiledProgram
from olac.runtime import EncryptedInput, KeyFolder, Progress, Server
from olac.serving.logs import event, set_up
from olac.system.memory import GB, check_limits, current_rss_bytes

log = logging.getLogger("olac.serving.worker")

END_WITH_PARENT = 1
"""prctl's PR_SET_PDEATHSIG."""


class _Cancelled(Exception):
    """Raised within a run that is not wanted any more."""


class Worker:
    """What the process does.

    Args:
        options: of the command line.
        out: where events are written.
    """

    def __init__(self, options: argparse.Namespace, out: TextIO) -> None:
        self._options = options
        self._out = out
        self._jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._server: Server | None = None

    def tell(self, event: str, **fields: object) -> None:
        """Write an event."""
        print(json.dumps({"event": event, "memory": current_rss_bytes(), **fields}), file=self._out, flush=True)

    def listen(self) -> None:
        """Read jobs until the other side is gone; then the process ends, whatever it does."""
        for line in sys.stdin:
            given = json.loads(line)
            if "cancel" in given:
                self._cancelled.add(given["cancel"])
            else:
                self._jobs.put(given)
        os._exit(0)

    def work(self) -> int:
        """Run jobs for ever; 1 if the program or the keys can't be used, after the first job has failed by that."""
        while True:
            job = self._jobs.get()
            try:
                self._run(job)
            except _Cancelled:
                self.tell("cancelled", job=job["job"])
            except OlacError as error:
                last = self._server is None
                self.tell("failed", job=job["job"], kind=type(error).__name__, error=str(error), last=last)
                if last:
                    return 1
            except MemoryError:
                self.tell("failed", job=job["job"], kind="InfeasibleError", error="memory ran out", last=True)
                return 1
            except Exception as error:
                # Its text may hold anything, so it is told to nobody. The log has its type and place.
                log.exception("a job failed by a bug")
                kind = type(error).__name__
                self.tell("failed", job=job["job"], kind=kind, error=f"internal error ({kind})", last=True)
                return 1
            self._cancelled.discard(job["job"])

    def _load(self) -> Server:
        start, options = time.monotonic(), self._options
        program = CompiledProgram.load(options.program)
        keys = KeyFolder(program, options.keys, options.identity, options.engine).load(program)
        server = Server(program, keys, max_memory=options.memory)
        self.tell("ready", seconds=time.monotonic() - start)
        event(log, "keys loaded", identity=options.identity, seconds=round(time.monotonic() - start, 3))
        return server

    def _run(self, job: dict[str, Any]) -> None:
        if self._server is None:
            self._server = self._load()
        server, id_ = self._server, job["job"]
        given = EncryptedInput.open(server.program, job["input"])
        start = time.monotonic()

        def progress(at: Progress) -> None:
            if id_ in self._cancelled:
                raise _Cancelled
            self.tell(
                "progress",
                job=id_,
                done=at.done,
                total=at.total,
                eta=at.eta_seconds,
                layer=at.node,
                memory=at.memory_gb * GB,
            )

        server.run_to(
            job["result"],
            given,
            progress,
            checkpoint=job["checkpoint"],
            checkpoint_seconds=self._options.checkpoint_seconds,
        )
        size = Path(job["result"]).stat().st_size
        self.tell("done", job=id_, bytes=size, seconds=time.monotonic() - start)


def main(arguments: Sequence[str] | None = None) -> int:
    """The process."""
    parser = argparse.ArgumentParser(prog="python -m olac.serving.worker", description=__doc__)
    parser.add_argument("--program", required=True)
    parser.add_argument("--keys", required=True)
    parser.add_argument("--identity", required=True)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--memory", type=float, required=True)
    parser.add_argument("--checkpoint-seconds", type=float, default=60.0)
    parser.add_argument("--log-level", default="info")
    options = parser.parse_args(arguments)
    # Libraries may print. Only events go to the other side.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the process that started this one
    _end_with_parent()
    set_up(options.log_level)
    worker = Worker(options, out)
    threading.Thread(target=worker.listen, name="listen", daemon=True).start()
    check_limits()
    load_plugins()
    code = worker.work()
    with suppress(OSError):
        out.flush()
    os._exit(code)


def _end_with_parent() -> None:
    """Also while a library holds Python's lock, which keeps `listen` from noticing; on Linux."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
