"""What is installed: the packages listed, and the wheel and sdist built from them."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import olac

ROOT = Path(__file__).resolve().parents[2]

# The folder in the tree that each import name is found in.
FOLDERS = {"olac": "olac", "olac.passes": "passes", "olac.backends": "backends"}

BESIDE = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md")
DISTRIBUTED = ("setup.cfg", "pyproject.toml", "MANIFEST.in", "docs", *BESIDE, *FOLDERS.values())


def setup_cfg() -> configparser.RawConfigParser:
    config = configparser.RawConfigParser()
    assert config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def files_of(name: str, pattern: str) -> set[str]:
    """Return where the wheel holds the files of one of FOLDERS that match pattern."""
    top = ROOT / FOLDERS[name]
    links = [path for path in top.iterdir() if path.is_symlink()]
    return {
        f"{name.replace('.', '/')}/{path.relative_to(top).as_posix()}"
        for path in top.glob(pattern)
        if not any(link in path.parents for link in links)
    }


def packages_in_tree() -> set[str]:
    inits = {path for name in FOLDERS for path in files_of(name, "**/__init__.py")}
    return {str(PurePosixPath(path).parent).replace("/", ".") for path in inits}


def test_listed_packages_are_the_folders() -> None:
    listed = setup_cfg()["options"]["packages"].split()
    assert len(listed) == len(set(listed))
    assert set(listed) == packages_in_tree()


def test_package_dir() -> None:
    lines = setup_cfg()["options"]["package_dir"].strip().splitlines()
    assert dict(line.replace(" ", "").split("=") for line in lines) == FOLDERS


@pytest.mark.parametrize("name", ["passes", "backends"])
def test_links(name: str) -> None:
    link = ROOT / "olac" / name
    assert link.is_symlink()
    assert Path(os.readlink(link)) == Path("..", name)


def build(kind: str, source: Path, target: Path) -> Path:
    """Build a 'wheel' or an 'sdist' of source into target, without a network."""
    program = f"import sys; from setuptools import build_meta as b; b.build_{kind}(sys.argv[1])"
    target.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", program, str(target)], cwd=source, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    (built,) = target.iterdir()
    return built


def names_in_wheel(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tree, as a build writes beside what it reads."""
    copy = tmp_path_factory.mktemp("tree") / "olac"
    copy.mkdir()
    for name in DISTRIBUTED:
        path = ROOT / name
        if path.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(path, copy / name, symlinks=True, ignore=ignore)
        elif path.exists():
            shutil.copy(path, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel_names(source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return names_in_wheel(build("wheel", source, tmp_path_factory.mktemp("wheel") / "out"))


def test_wheel_has_one_top_level(wheel_names: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    version = olac.__version__
    assert tops == {"olac", f"olac-{version}.dist-info"}


def test_wheel_holds_every_file_once(wheel_names: list[str]) -> None:
    installed = [name for name in wheel_names if name.startswith("olac/")]
    assert len(installed) == len(set(installed))
    modules = {path for name in FOLDERS for path in files_of(name, "**/*.py")}
    data = files_of("olac", "py.typed") | files_of("olac", "data/*.json") | files_of("olac", "**/templates/*")
    assert set(installed) == modules | data


def test_wheel_from_sdist_is_the_same(source: Path, wheel_names: list[str], tmp_path: Path) -> None:
    sdist = build("sdist", source, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        members = [member.name for member in archive.getmembers()]
        archive.extractall(tmp_path / "tree")
    assert not [name for name in members if "/olac/passes/" in name or "/olac/backends/" in name]
    (tree,) = (tmp_path / "tree").iterdir()
    documents = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    for name in (*BESIDE, *documents):
        assert (tree / name).is_file(), f"{name} is not in the source distribution: see MANIFEST.in"
    assert sorted(names_in_wheel(build("wheel", tree, tmp_path / "wheel"))) == sorted(wheel_names)
