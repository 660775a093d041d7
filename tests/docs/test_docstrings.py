"""Every public name has a page of the API and a docstring that is complete."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import olac
import olac.costs
import olac.errors
import olac.runtime
import olac.scaling

PAGES = Path(__file__).parents[2] / "docs" / "api"
NAMES = [
    *(f"olac.{name}" for name in olac.__all__ if name != "__version__"),
    *(f"olac.scaling.{name}" for name in olac.scaling.__all__),
    *(f"olac.costs.{name}" for name in olac.costs.__all__),
    *(f"olac.runtime.{name}" for name in olac.runtime.__all__ if name not in olac.__all__),
    *(
        f"olac.errors.{name}"
        for name, value in vars(olac.errors).items()
        if inspect.isclass(value) and issubclass(value, olac.errors.OlacError)
    ),
]


MADE = ("EncryptedInput", "EncryptedResult", "EvaluationKeys")
"""Classes whose objects olac makes: nobody else calls their constructors. The same goes for errors."""


def found(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def section(text: str | None, title: str) -> set[str]:
    """The names that a section of a docstring explains; "a, b: ..." explains both."""
    match = re.search(rf"^{title}:\n((?:    .*\n?|\n)*)", inspect.cleandoc(text or "") + "\n", re.MULTILINE)
    lines = re.findall(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*):", match[1], re.MULTILINE) if match else []
    return {name.strip("* ") for line in lines for name in line.split(",")}


def parameters(function: Callable[..., Any]) -> set[str]:
    return {name for name in inspect.signature(function).parameters if name not in ("self", "cls")}


def shortfalls(name: str, value: Any) -> Iterator[str]:
    """What the docstrings of a public function or class leave out."""
    if not inspect.isclass(value):
        if not value.__doc__:
            yield f"{name} has no docstring"
        for parameter in sorted(parameters(value) - section(value.__doc__, "Args")):
            yield f"{name}: its Args leave out {parameter}"
        return
    if not value.__doc__ or (dataclasses.is_dataclass(value) and value.__doc__.startswith(f"{value.__name__}(")):
        yield f"{name} has no docstring"
    if dataclasses.is_dataclass(value):
        explained = set().union(*(section(vars(base).get("__doc__"), "Attributes") for base in value.__mro__))
        for field in dataclasses.fields(value):
            if not field.name.startswith("_") and field.name not in explained:
                yield f"{name}: its Attributes leave out {field.name}"
    elif "__init__" in vars(value) and value.__name__ not in MADE and not issubclass(value, olac.errors.OlacError):
        for parameter in sorted(parameters(value.__init__) - section(value.__doc__, "Args")):
            yield f"{name}: its Args leave out {parameter}"
    for attribute, member in vars(value).items():
        inner = getattr(member, "__func__", member)
        if attribute.startswith("_"):
            continue
        if isinstance(inner, property):
            if not inner.__doc__:
                yield f"{name}.{attribute} has no docstring"
        elif inspect.isfunction(inner):
            yield from shortfalls(f"{name}.{attribute}", inner)


def test_public_names_have_complete_docstrings() -> None:
    missing = [one for name in NAMES for one in shortfalls(name, found(name))]
    assert len(NAMES) > 50 and missing == []


def test_each_public_name_is_on_one_page() -> None:
    text = [line for page in PAGES.glob("*.md") for line in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]
    assert sorted(text) == sorted(set(text)), "twice"
    assert sorted(set(NAMES) - set(text)) == [], "no page has these"
    for name in text:
        assert found(name) is not None


def incomplete(first: int, second: int) -> int:
    """Add.

    Args:
        first: a number.
    """
    return first + second


@dataclasses.dataclass
class Incomplete:
    """Two numbers.

    Attributes:
        first: a number.
    """

    first: int
    second: int

    @property
    def total(self) -> int:
        return self.first + self.second


def test_what_is_left_out_is_found() -> None:
    assert list(shortfalls("f", incomplete)) == ["f: its Args leave out second"]
    assert list(shortfalls("C", Incomplete)) == ["C: its Attributes leave out second", "C.total has no docstring"]
