"""What `make release` checks, each with a tree or a distribution that fails; the release itself takes minutes."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

import olac

ROOT = Path(__file__).resolve().parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("olac_release_script", ROOT / ".ci" / "release.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RELEASE = load()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files that name the version."""
    (tmp_path / "olac").mkdir()
    for name in ("olac/__init__.py", "setup.cfg", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def change(path: Path, pattern: str, text: str) -> None:
    before = path.read_text(encoding="utf-8")
    after = re.sub(pattern, text, before, count=1, flags=re.MULTILINE)
    assert after != before
    path.write_text(after, encoding="utf-8")


def test_the_version_stands_in_one_place_and_is_that_of_changelog_and_citation(tree: Path) -> None:
    assert RELEASE.check_version(tree) == olac.__version__
    assert re.search(r"^version = attr: olac\.__version__$", (tree / "setup.cfg").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "pattern", "text", "message"),
    [
        ("CHANGELOG.md", r"^## \d.*$", "## Unreleased", "begins with 'Unreleased'"),
        ("CHANGELOG.md", r"^## \d\S* ", "## 9.9.9 ", "begins with '9.9.9"),
        ("CHANGELOG.md", r"^(## \S+) - .*$", r"\1", "YYYY-MM-DD"),
        ("CITATION.cff", r"^version: .*$", "version: 9.9.9", "CITATION.cff does not have 'version"),
        ("CITATION.cff", r"^date-released: .*$", "date-released: 1999-01-01", "does not have 'date-released"),
        ("olac/__init__.py", r'^__version__ = ".*"$', '__version__ = "1.0.dev0"', "no version to release"),
        ("olac/__init__.py", r"^__version__ = ", "version = ", "has no __version__"),
    ],
)
def test_versions_that_differ_are_refused(tree: Path, name: str, pattern: str, text: str, message: str) -> None:
    change(tree / name, pattern, text)
    with pytest.raises(RELEASE.Refused, match=re.escape(message)):
        RELEASE.check_version(tree)


METADATA = (
    """Metadata-Version: 2.4
Name: olac
Version: 1.2.3
Summary: A compiler
Requires-Python: >=3.10
License-File: LICENSE
Description-Content-Type: text/markdown

"""
    + 100 * "A text that is long enough.\n"
)


@pytest.mark.parametrize(
    ("pattern", "text", "message"),
    [
        (r"^Version: .*$", "Version: one", "not valid"),
        (r"^Version: .*$", "Version: 1.2.4", "expected olac 1.2.3"),
        (r"^Name: .*$", "Name: other", "expected olac"),
        (r"^Summary: .*\n", "", "no Summary"),
        (r"^License-File: .*\n", "", "no License-File"),
        (r"\n\n(.|\n)*", "\n\nshort", "README.md is missing"),
    ],
)
def test_metadata(tmp_path: Path, pattern: str, text: str, message: str) -> None:
    pytest.importorskip("packaging.metadata")
    RELEASE.check_metadata(METADATA, "1.2.3")
    with pytest.raises(RELEASE.Refused, match=message):
        RELEASE.check_metadata(re.sub(pattern, text, METADATA, count=1, flags=re.MULTILINE), "1.2.3")


def test_a_wheel_holds_what_git_holds() -> None:
    wanted = {"olac/__init__.py", "olac/py.typed"}
    RELEASE.check_files({*wanted, "olac-1.2.3.dist-info/METADATA"}, wanted)
    for names in (wanted - {"olac/py.typed"}, wanted | {"tests/test_a.py"}):
        with pytest.raises(RELEASE.Refused, match="package_data"):
            RELEASE.check_files(names, wanted)


def test_every_extra_that_all_names_exists(tree: Path) -> None:
    RELEASE.check_extras(tree)
    change(tree / "setup.cfg", r"^    olac\[vector\]$", "    olac[vectors]")
    with pytest.raises(RELEASE.Refused, match="vectors"):
        RELEASE.check_extras(tree)


def test_pythons_are_run_before_they_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minors = RELEASE.supported(ROOT)
    assert "3.10" in minors and all(re.fullmatch(r"3\.\d+", minor) for minor in minors)
    here = ".".join(map(str, sys.version_info[:2]))
    broken = tmp_path / "versions" / f"{here}.99" / "bin"
    broken.mkdir(parents=True)
    (broken / "python").write_text("#!/bin/sh\nexit 1\n")
    (broken / "python").chmod(0o755)
    (tmp_path / f"python{here}").symlink_to(sys.executable)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert RELEASE.find_pythons([here, "3.99"]) == {here: tmp_path / f"python{here}"}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ('Type of "program" is "Unknown"\nType of "outputs.shape" is "tuple[Any, ...]"', "expected CompiledProgram"),
        ('Type of "program" is "CompiledProgram"', "reveals 1 types"),
    ],
)
def test_types_that_are_unknown_are_refused(told: str, message: str) -> None:
    RELEASE.check_revealed('Type of "program" is "CompiledProgram"\nType of "shape" is "tuple[Any, ...]"', "pyright")
    with pytest.raises(RELEASE.Refused, match=message):
        RELEASE.check_revealed(told, "pyright")
