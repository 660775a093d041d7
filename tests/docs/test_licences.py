"""No dependency of olac or of its extras is under the GPL, LGPL or AGPL, and docs/licences.md names all of them."""

from __future__ import annotations

import configparser
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
COPYLEFT = re.compile(r"\b[AL]?GPL|\bGNU\b", re.IGNORECASE)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked() -> dict[str, list[Requirement]]:
    """What setup.cfg requires, by extra; "" for what is always required."""
    config = configparser.RawConfigParser()
    assert config.read(ROOT / "setup.cfg", encoding="utf-8")
    lists = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    return {
        extra: [Requirement(line) for line in lines.splitlines() if line and not line.startswith("olac[")]
        for extra, lines in lists.items()
    }


def licence(of: Mapping[str, str] | metadata.PackageMetadata) -> str:
    """The licence as a package's metadata gives it; free text counts by its first line only."""
    expression = of.get("License-Expression") if isinstance(of, Mapping) else of["License-Expression"]
    if expression:
        return str(expression)
    classifiers = of.get_all("Classifier") or [] if not isinstance(of, Mapping) else []
    named = [one.split(" :: ")[-1] for one in classifiers if one.startswith("License ::")]
    free = of.get("License") if isinstance(of, Mapping) else of["License"]
    return "; ".join(named) or str(free or "").strip().split("\n")[0]


def is_copyleft(text: str) -> bool:
    """Whether no alternative of a licence is free of the GPL family."""
    return all(COPYLEFT.search(one) for one in re.split(r"\s+OR\s+", text)) if text else False


def installed() -> dict[str, str]:
    """The licence of each installed package that olac or an extra needs, also of those that these need in turn."""
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [one for requirements in asked().values() for one in requirements]
    while waiting:
        one = waiting.pop()
        key = (normal(one.name), frozenset(one.extras))
        if key in seen or (one.marker is not None and not applies(one, set())):
            continue
        seen.add(key)
        try:
            of = metadata.metadata(one.name)
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed here, such as ray
        found[key[0]] = licence(of)
        for text in metadata.requires(one.name) or []:
            further = Requirement(text)
            if applies(further, set(one.extras)):
                further.marker = None
                waiting.append(further)
    return found


def applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras})


def test_no_dependency_is_under_the_gpl() -> None:
    licences = installed()
    assert {"numpy", "scipy", "rich", "torch", "markdown-it-py"} <= set(licences)  # the last one is a need of rich
    assert {name: text for name, text in licences.items() if is_copyleft(text)} == {}


@pytest.mark.parametrize(
    ("text", "copyleft"),
    [
        ("MIT", False),
        ("Apache-2.0 OR GPL-3.0-only", False),
        ("GPL-3.0-only", True),
        ("GNU Lesser General Public License v3 (LGPLv3)", True),
        ("AGPL-3.0-or-later", True),
        ("BSD-3-Clause AND LGPL-2.1-or-later", True),
        ("", False),
    ],
)
def test_what_counts_as_copyleft(text: str, copyleft: bool) -> None:
    assert is_copyleft(text) == copyleft


def test_the_page_names_each_package() -> None:
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    words = {normal(word) for word in re.findall(r"[A-Za-z][\w.-]*\w", page)}
    for extra, requirements in asked().items():
        assert {normal(one.name) for one in requirements} <= words, extra or "install_requires"
        assert not extra or f"`{extra}`" in page or extra == "all"
