"""What is known of a block without running it: its syntax, names of olac in it, arguments of its commands."""

from __future__ import annotations

import argparse
import ast
import configparser
import contextlib
import dataclasses
import importlib
import inspect
import io
import re
import shlex
from collections.abc import Iterator
from typing import Any

from tests.docs.pages import PYTHON, ROOT, Block

SEPARATORS = ("&&", "||", "|", ";", "&")


def check_unrun(block: Block) -> str | None:
    """What is wrong with a block that is not run, or None."""
    if block.language in PYTHON:
        return _check_python(block.source)
    return next(filter(None, map(_check_command, commands_of(block))), None)


def commands_of(block: Block) -> Iterator[list[str]]:
    """The words of each command of a shell block, without redirections and variables before it."""
    text = block.source
    if block.language == "console":
        text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        redirected = False
        for word in [*lexer, ";"]:
            if word in SEPARATORS:
                if words:
                    yield words
                words = []
            elif word and set(word) <= set("<>&"):
                redirected = True
                if words and words[-1] in ("1", "2"):  # of 2>&1
                    words.pop()
            elif redirected:
                redirected = False
            elif words or not re.fullmatch(r"\w+=.*", word):
                words.append(word)


def _check_command(words: list[str]) -> str | None:
    name, rest = words[0].rsplit("/", 1)[-1], words[1:]
    if name == "olac":
        from olac.cli import _parser as olac_parser

        return _parse(olac_parser(), words, rest)
    if name == "python" and rest[:2] == ["-m", "benchmarks"]:
        from benchmarks.__main__ import _parser as benchmarks_parser

        return _parse(benchmarks_parser(), words, rest[2:])
    if name == "python" and rest[:1] == ["-m"] and rest[1].startswith("benchmarks."):
        return _parse(_parser_of(rest[1]), words, rest[2:])
    if name == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        unknown = [word for word in rest if "=" not in word and word not in targets]
        return f"the Makefile has no {unknown}" if unknown else None
    if name == "pip":
        return _check_extras(rest)
    return None


def _parse(parser: argparse.ArgumentParser, words: list[str], arguments: list[str]) -> str | None:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parser.parse_args(arguments)
    except SystemExit as end:
        if end.code:
            return f"{shlex.join(words)}: {said.getvalue().strip()}"
    return None


def _parser_of(module: str) -> argparse.ArgumentParser:
    """The parser of a module whose `main` makes it: it is taken where it would parse."""
    found: list[argparse.ArgumentParser] = []

    class Taken(Exception):
        pass

    def take(parser: argparse.ArgumentParser, *given: Any, **named: Any) -> Any:
        found.append(parser)
        raise Taken

    before = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = take  # type: ignore[method-assign,assignment]
    try:
        with contextlib.suppress(Taken):
            importlib.import_module(module).main()
    finally:
        argparse.ArgumentParser.parse_args = before  # type: ignore[method-assign]
    return found[0]


def _check_extras(words: list[str]) -> str | None:
    config = configparser.RawConfigParser()
    config.read(ROOT / "setup.cfg")
    for word in words:
        for extras in re.findall(r"^(?:olac|\.)\[(.*)\]", word):
            unknown = [name for name in extras.split(",") if name not in config["options.extras_require"]]
            if unknown:
                return f"setup.cfg has no extra {unknown}"
    return None


def _check_python(source: str) -> str | None:
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        return f"{error}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("olac", "benchmarks"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):
                    return f"{node.module} has no {alias.name}"
        elif isinstance(node, ast.Attribute) and (names := _dotted(node)) and names[0] == "olac":
            if _resolve(names) is None:
                return f"there is no {'.'.join(names)}"
        elif isinstance(node, ast.Call) and (names := _dotted(node.func)) and names[0] == "olac":
            unknown = [key.arg for key in node.keywords if key.arg and key.arg not in _keywords(_resolve(names))]
            if unknown:
                return f"{'.'.join(names)} takes no {unknown}"
    return None


def _dotted(node: ast.expr) -> list[str] | None:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)):
        return [*before, node.attr]
    return None


def _resolve(names: list[str]) -> Any:
    found: Any = importlib.import_module(names[0])
    path = names[0]
    for name in names[1:]:
        path += "." + name
        try:
            found = getattr(found, name)
        except AttributeError:
            try:
                found = importlib.import_module(path)
            except ImportError:
                return None
    return found


def _keywords(function: Any) -> set[str]:
    """What a function takes by name; one that takes any takes the fields of the options of the compiler."""
    from olac.options import CompileOptions
    from olac.polynomials.modes import FitOptions

    parameters = inspect.signature(function).parameters
    found = set(parameters)
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        found |= {field.name for kind in (CompileOptions, FitOptions) for field in dataclasses.fields(kind)}
    return found
