"""Runs the blocks of a page in order, as a reader would type them.

Python blocks share one namespace in this process. Shell blocks are run by `bash -euo pipefail`. Both work in the same
folder, which is empty at the start. In the shell `olac` and `python` are those of this process.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.docs.pages import PYTHON, ROOT, Block
from tests.docs.unrun import check_unrun

OPTIONAL = ("sklearn", "fastapi", "httpx", "uvicorn", "jinja2", "matplotlib", "numba", "cryptography")
"""Packages of extras: where one is missing, pages that need it are skipped."""
SECONDS = 120
"""Longest time of a shell block, and until a server answers."""
PORT = "8750"
"""Pages write this port. Tests take a free one in its place, as several pages may be tested at once."""
NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")


class BlockFailed(Exception):
    """A block that failed: the page, the line, and what it said."""


def run_page(name: str, blocks: Sequence[Block], folder: Path) -> str:
    """Run all blocks of a page in `folder`; return all that they printed.

    Args:
        name: the page, for messages and tracebacks.
        blocks: what `blocks_of` gives.
        folder: an empty folder. It becomes the current one meanwhile.

    Raises:
        BlockFailed: of the first block that fails, or that prints something else than the page says.
    """
    run = _Run(name, folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        for block in blocks:
            run.block(block)
    finally:
        os.chdir(before)
        run.close()
    return run.printed


class _Run:
    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder
        self._port = str(_free_port())
        self._servers: list[subprocess.Popen[bytes]] = []
        self._bin = folder.parent / (folder.name + ".bin")
        self._bin.mkdir()
        for command, code in (
            ("python", ""),
            ("olac", '-c "import sys; from olac.cli import main; sys.exit(main())" '),
        ):
            path = self._bin / command
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {code}"$@"\n')
            path.chmod(0o755)
        self._log = self._bin / "servers.log"
        self._module = self._new_module()
        self.printed = ""
        self._last = ""

    def block(self, block: Block) -> None:
        if block.skipped is not None:
            if block.is_code and (wrong := check_unrun(block)):
                raise BlockFailed(f"{self._name}:{block.line}: {wrong}")
            return
        source = block.source.replace(PORT, self._port)
        if block.is_output:
            if wrong := difference(block.source, self._last):
                raise BlockFailed(f"{self._name}:{block.line}: {wrong}\nit printed:\n{self._last}")
        elif block.language in PYTHON:
            if block.fresh:
                self._module = self._new_module()
            self._python(block, source)
        elif block.answers_at is not None:
            self._server(block, source)
        elif block.is_code:
            self._shell(block, commands(source) if block.language == "console" else source)

    def close(self) -> None:
        for server in self._servers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
        for server in self._servers:
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait(20)
        sys.modules.pop(self._module.__name__, None)

    def _new_module(self) -> ModuleType:
        module = ModuleType("a_page")  # dataclasses look their module up in sys.modules
        sys.modules[module.__name__] = module
        return module

    def _python(self, block: Block, source: str) -> None:
        out = io.StringIO()
        # Tracebacks name the lines of the page.
        code: Any = compile("\n" * (block.line - 1) + source, self._name, "exec", dont_inherit=True)
        try:
            with contextlib.redirect_stdout(out):
                exec(code, self._module.__dict__)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] in OPTIONAL:
                pytest.skip(f"{self._name}:{block.line} needs {error.name}, which is not installed")
            raise
        finally:
            self._said(out.getvalue())

    def _shell(self, block: Block, source: str) -> None:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", source],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=self._environment(),
            check=False,
        )
        self._said(done.stdout)
        if done.returncode:
            raise BlockFailed(f"{self._name}:{block.line}: exit code {done.returncode}\n{source}\n{done.stderr}")

    def _server(self, block: Block, source: str) -> None:
        with self._log.open("ab") as log:
            server = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", source],
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,
            )
        self._servers.append(server)
        url = (block.answers_at or "").replace(PORT, self._port)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and server.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise BlockFailed(f"{self._name}:{block.line}: nothing answers at {url}\n{self._log.read_text()}")

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        found = os.environ | {
            "PYTHONPATH": path,
            "PATH": f"{self._bin}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "80",
        }
        found.pop("OLAC_TOKEN", None)
        return found

    def _said(self, text: str) -> None:
        self.printed += text
        self._last = text


def commands(source: str) -> str:
    """The commands of a `console` block: the lines that begin with "$ ", with what continues them."""
    found, goes_on = [], False
    for line in source.splitlines():
        if line.startswith("$ ") or goes_on:
            found.append(line.removeprefix("$ "))
            goes_on = line.endswith("\\")
    return "\n".join(found) + "\n"


def difference(expected: str, printed: str) -> str | None:
    """What is not as the page says, numbers and spaces apart; None if all is. A line "..." stands for any lines."""
    wanted, given = (_plain(text) for text in (expected, printed))
    at = 0
    anywhere = False
    for line in wanted:
        if line == "...":
            anywhere = True
            continue
        if anywhere:
            at = next((i for i in range(at, len(given)) if given[i] == line), len(given))
        if at >= len(given) or given[at] != line:
            return f"the page says {line!r}, and not: {given[at] if at < len(given) else 'the end'!r}"
        at, anywhere = at + 1, False
    if at < len(given) and not anywhere:
        return f"the page does not say {given[at]!r}"
    return None


def _plain(text: str) -> list[str]:
    """The lines that have text, with each number as 0 and each run of spaces as one."""
    return [" ".join(NUMBER.sub("0", line).split()) for line in text.splitlines() if line.strip()]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
