"""The blocks of code of a page in Markdown, and the marks that say how each is tested.

A mark is an HTML comment on the line before the fence:

    <!-- not run: REASON -->                the block is not executed; its names and arguments are still checked
    <!-- run in a new namespace -->         Python: forget the names of the blocks before
    <!-- run in the background: URL -->     shell: a server that answers at the URL; it ends with the page
    <!-- output -->                         text that the block before has to print, apart from its numbers;
                                            a line "..." stands for any lines
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ("python",)
SHELL = ("sh", "bash", "console")
OTHERS = ("text", "json", "yaml", "toml", "ini", "html", "mermaid", "dockerfile", "nginx")
FENCE = re.compile(r"^( *)(```+|~~~+) *([\w+-]*)(.*)$")
MARK = re.compile(r"^ *<!-- *(.*?) *-->$")
COMMAND = re.compile(r"^ {4,}(olac|python|pip|make|docker|git) \S")


class PageError(Exception):
    """A page whose blocks can't be read: what is wrong and on which line."""


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the line of its first line of code (from 1), its text and its marks."""

    language: str
    line: int
    source: str
    skipped: str | None = None
    fresh: bool = False
    answers_at: str | None = None
    is_output: bool = False

    @property
    def is_code(self) -> bool:
        return self.language in PYTHON + SHELL


def pages() -> list[Path]:
    """Every page whose blocks are tested."""
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    return top + sorted((ROOT / "docs").rglob("*.md")) + sorted((ROOT / "examples").rglob("*.md"))


def blocks_of(text: str) -> list[Block]:
    """All fenced blocks of a page, in order.

    Raises:
        PageError: a fence without an end or of an unknown language, an unknown mark or one without its reason, a mark
            that stands before no fence, or a command in an indented block, which no test would see.
    """
    lines = text.split("\n")
    found: list[Block] = []
    i = 0
    while i < len(lines):
        fence = FENCE.match(lines[i])
        if fence is None:
            if COMMAND.match(lines[i]) and (i == 0 or not lines[i - 1].strip() or COMMAND.match(lines[i - 1])):
                raise PageError(f"line {i + 1}: put this command between ```sh and ```: {lines[i].strip()}")
            before_no_block = i + 1 == len(lines) or not FENCE.match(lines[i + 1])
            if (mark := MARK.match(lines[i])) and _means_something(mark[1]) and before_no_block:
                raise PageError(f"line {i + 1}: the mark stands before no block: {mark[0].strip()}")
            i += 1
            continue
        indent, ticks, language = len(fence[1]), fence[2], fence[3]
        if language not in PYTHON + SHELL + OTHERS:
            raise PageError(
                f"line {i + 1}: a block of language {language!r}, which is none of {PYTHON + SHELL + OTHERS}"
            )
        end = next((j for j in range(i + 1, len(lines)) if lines[j].strip() == ticks), None)
        if end is None:
            raise PageError(f"line {i + 1}: the block has no end")
        source = "".join(line[indent:] + "\n" for line in lines[i + 1 : end])
        mark = MARK.match(lines[i - 1]) if i else None
        found.append(_marked(language, i + 2, source, mark[1] if mark else ""))
        i = end + 1
    return found


def _means_something(mark: str) -> bool:
    return mark.startswith(("not run", "run in", "output"))


def _marked(language: str, line: int, source: str, mark: str) -> Block:
    kind, _, rest = mark.partition(":")
    rest = rest.strip()
    if kind == "not run":
        if len(rest) < 4:
            raise PageError(f"line {line - 2}: say why the block is not run: <!-- not run: REASON -->")
        return Block(language, line, source, skipped=rest)
    if kind == "run in a new namespace" and language in PYTHON:
        return Block(language, line, source, fresh=True)
    if kind == "run in the background" and language in SHELL:
        if not rest.startswith("http"):
            raise PageError(f"line {line - 2}: say where the server answers: <!-- run in the background: URL -->")
        if not set(re.findall(r":(\d+)", rest)) <= set(re.findall(r"\d+", source)):
            raise PageError(f"line {line - 2}: the command does not name the port of {rest}, which tests change")
        return Block(language, line, source, answers_at=rest)
    if kind == "output" and language == "text":
        return Block(language, line, source, is_output=True)
    if _means_something(mark):
        raise PageError(f"line {line - 2}: unknown mark, or not one for {language}: <!-- {mark} -->")
    return Block(language, line, source)
