"""docs/reference/errors.md explains each class of errors, each note of reports and each warning, by its own words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "errors.md"
SOURCES = [
    path
    for folder in ("olac", "passes", "backends")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not any((ROOT / "olac" / link) in path.parents for link in ("passes", "backends"))
]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in SOURCES}
WORDS = 4
"""As many words of a message as the page has to quote."""
SAYING = re.compile(r"notes$|_shortfalls$|^check_scale$|^check_input$|^check_output$|^one_output$")
"""Functions that return notes or warnings."""
SAID = {"note", "notes", "message"}
"""Variables that hold some."""


def texts(node: ast.AST) -> Iterator[str]:
    """The messages in an expression, with a line break in place of what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\n" for part in node.values)
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts(child)


def words(text: str) -> str:
    """The first words of the longest part of a message that is always the same."""
    longest = max((re.sub(r"^\W+", "", part) for part in text.split("\n")), key=len)
    return " ".join(longest.split()[:WORDS]).rstrip(".,:;")


def name_of(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def said(source: str) -> set[str]:
    """The first words of all warnings and notes in a module's source."""
    tree = ast.parse(source)
    constants = {
        name_of(target): one.value
        for one in tree.body
        if isinstance(one, ast.Assign) and isinstance(one.value, ast.Constant)
        for target in one.targets
    }
    places: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if name_of(node.func) == "warn":  # of warnings, or olac's own, which also logs
                places += node.args
            elif re.search(r"notes\.append$", ast.unparse(node.func)):
                places.append(node.args[0])
        elif isinstance(node, ast.Assign) and SAID & {name_of(target) for target in node.targets}:
            places.append(node.value)
        elif isinstance(node, ast.FunctionDef) and SAYING.search(node.name):
            places += [one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value is not None]
    places += [
        constants[n.id] for place in places for n in ast.walk(place) if isinstance(n, ast.Name) and n.id in constants
    ]
    return {found for place in places for text in texts(place) if len((found := words(text)).split()) >= 3}


def classes() -> set[str]:
    """All errors of olac, in all modules."""
    bases = {
        name: {base.rpartition(".")[2] for base in re.split(r"[\s,]+", of)}
        for text in TEXTS.values()
        for name, of in re.findall(r"^class (\w+)\((.*?)\):", text, re.MULTILINE | re.DOTALL)
    }
    found = {"OlacError"}
    while more := {name for name, of in bases.items() if of & found} - found:
        found |= more
    return {name for name in found if not name.startswith("_")}


def test_each_error_has_a_section() -> None:
    sections = set(re.findall(r"^### `(\w+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert sections == classes()


def test_each_note_and_warning_is_explained() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    found = {(name, one) for name, text in TEXTS.items() for one in said(text)}
    assert len(found) > 30
    missing = sorted(one for one in found if one[1] not in page)
    assert missing == [], "docs/reference/errors.md quotes none of these: add each with its cause and remedy"


def test_what_code_says_is_found() -> None:
    source = """
TOLD = "somebody is told of this"

def size_notes(n: int) -> tuple[str, ...]:
    return (f"{n}: the size of this is large",)

def other(context, n):
    warnings.warn(f"this one is only a warning of {n}")
    warn(log, f"{n}: this one is logged as well")
    context.notes.append(TOLD)
    note = f"as {n} can't be used here"
    return "no note at all is here"
"""
    assert said(source) == {
        "the size of this",
        "this one is only",
        "this one is logged",
        "somebody is told of",
        "can't be used here",
    }
