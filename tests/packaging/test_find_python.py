""".ci/find-python, with stubs that report what a Python of some kind would report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "find-python"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a POSIX shell script")


def find(*arguments: str | Path, path: str | Path = "", **variables: str | Path) -> tuple[int, str, str]:
    """Run the script with nothing in its environment but PATH and variables."""
    environment = {"PATH": str(path)} | {name: str(value) for name, value in variables.items()}
    result = subprocess.run(
        ["/bin/sh", str(SCRIPT), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result.returncode, result.stdout, result.stderr


def stub(path: Path, text: str, status: int = 0) -> Path:
    """Write a program that prints text and ends with status."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {status}\n".replace("cat", "/bin/cat"))
    path.chmod(0o755)
    return path


def facts(
    path: Path,
    version: str = "3.10",
    *,
    implementation: str = "CPython",
    system: str = "linux",
    machine: str = "x86_64",
    libc: str = "2.36",
    venv: str = "venv",
) -> Path:
    """Write a stub that reports these facts of itself."""
    return stub(path, f"olac-python {implementation} {version} {system} {machine} {libc} {venv} {path}")


@pytest.mark.parametrize(
    ("version", "libc"),
    [("3.10", "2.34"), ("3.10", "2.39"), ("3.10", "3.0"), ("3.12", "2.38"), ("3.12", "2.41")],
)
def test_given_and_good(tmp_path: Path, version: str, libc: str) -> None:
    python = facts(tmp_path / "with space" / "python", version, libc=libc)
    assert find(python) == (0, f"{python}\n", "")


@pytest.mark.parametrize(
    ("fact", "reason"),
    [
        ({"version": "3.11"}, "CPython 3.11"),
        ({"version": "3.1"}, "CPython 3.1,"),
        ({"implementation": "PyPy"}, "PyPy 3.10, not CPython"),
        ({"libc": "2.33"}, "glibc >= 2.34 is needed, and here is glibc 2.33"),
        ({"version": "3.12", "libc": "2.36"}, "glibc >= 2.38 is needed, and here is glibc 2.36"),
        ({"libc": "none"}, "without glibc"),
        ({"system": "darwin"}, "darwin x86_64, not linux x86_64"),
        ({"machine": "aarch64"}, "linux aarch64, not linux x86_64"),
        ({"venv": "no-venv"}, "without venv or ensurepip"),
    ],
)
def test_given_and_unfit(tmp_path: Path, fact: dict[str, str], reason: str) -> None:
    python = facts(tmp_path / "python", **fact)
    status, out, err = find(python)
    assert (status, out) == (1, "")
    assert f"error: PYTHON={python} will not do: " in err
    assert reason in err
    assert "CPython 3.10 with glibc >= 2.34" in err
    assert "make demo PYTHON=/path/to/python3.10" in err


def test_given_and_broken(tmp_path: Path) -> None:
    python = stub(tmp_path / "python", "pyenv: python3.10: command not found\nand more", status=127)
    status, out, err = find(python)
    assert (status, out) == (1, "")
    assert "it does not run (pyenv: python3.10: command not found)." in err
    assert "and more" not in err


def test_given_and_not_a_python(tmp_path: Path) -> None:
    assert "does not behave like a Python" in find(stub(tmp_path / "python", "hello"))[2]
    assert "there is no such program" in find(tmp_path / "absent")[2]


def test_given_is_not_replaced(tmp_path: Path) -> None:
    facts(tmp_path / "bin" / "python3.10")
    assert find(tmp_path / "absent", path=tmp_path / "bin")[:2] == (1, "")


def test_this_python() -> None:
    status, out, err = find(sys.executable)
    if status == 0:
        assert Path(out.strip()).exists()
        assert sys.version_info[:2] in {(3, 10), (3, 12)}
    else:
        assert "will not do" in err


def test_this_python_is_not_named_by_its_environment() -> None:
    status, out, _ = find(sys.executable)
    if status != 0 or sys.prefix == sys.base_prefix:
        pytest.skip("not a virtual environment of a fitting Python")
    assert not Path(out.strip()).is_relative_to(sys.prefix)


def test_path_past_a_broken_shim(tmp_path: Path) -> None:
    stub(tmp_path / "shims" / "python3.10", "pyenv: python3.10: command not found", status=127)
    facts(tmp_path / "shims" / "python3", "3.13")
    python = facts(tmp_path / "bin" / "python3.10")
    path = f"{tmp_path}/nowhere::{tmp_path}/shims:{tmp_path}/bin"
    assert find(path=path) == (0, f"{python}\n", "")


def test_path_takes_3_12_where_3_10_is_not(tmp_path: Path) -> None:
    facts(tmp_path / "python3.10", libc="2.31")
    python = facts(tmp_path / "python3.12", "3.12", libc="2.39")
    assert find(path=tmp_path) == (0, f"{python}\n", "")


@pytest.mark.parametrize("variable", ["PYENV_ROOT", "HOME"])
def test_pyenv_with_nothing_on_path(tmp_path: Path, variable: str) -> None:
    root = tmp_path / ".pyenv"
    facts(root / "versions" / "3.9.1" / "bin" / "python", "3.9")
    python = facts(root / "versions" / "3.10.13" / "bin" / "python")
    value = tmp_path if variable == "HOME" else root
    assert find(**{variable: value}) == (0, f"{python}\n", "")


def test_pyenv_on_path_tells_its_root(tmp_path: Path) -> None:
    stub(tmp_path / "bin" / "pyenv", str(tmp_path / "elsewhere"))
    python = facts(tmp_path / "elsewhere" / "versions" / "3.10.4" / "bin" / "python")
    assert find(path=tmp_path / "bin") == (0, f"{python}\n", "")


def test_uv_and_conda(tmp_path: Path) -> None:
    conda = facts(tmp_path / "conda" / "bin" / "python")
    assert find(CONDA_PREFIX=tmp_path / "conda") == (0, f"{conda}\n", "")
    uv = facts(tmp_path / ".local/share/uv/python/cpython-3.10.14-linux-x86_64-gnu/bin/python3")
    assert find(HOME=tmp_path, CONDA_PREFIX=tmp_path / "conda") == (0, f"{uv}\n", "")


def test_none_lists_what_was_found(tmp_path: Path) -> None:
    shim = stub(tmp_path / "bin" / "python3.10", "pyenv: python3.10: command not found", status=127)
    new = facts(tmp_path / "bin" / "python3", "3.13")
    old = facts(tmp_path / ".pyenv" / "versions" / "3.12.1" / "bin" / "python", "3.12", libc="2.36")
    status, out, err = find(path=tmp_path / "bin", HOME=tmp_path)
    assert (status, out) == (1, "")
    assert f"{shim}: it does not run (pyenv: python3.10: command not found)\n" in err
    assert f"{new}: it is CPython 3.13, neither 3.10 nor 3.12\n" in err
    assert f"{old}: it is CPython 3.12, for which glibc >= 2.38 is needed" in err
    assert "CPython 3.10 with glibc >= 2.34, or on CPython 3.12 with glibc >= 2.38" in err
    assert "pyenv install 3.10" in err
    assert "uv python install 3.10" in err
    assert "make demo PYTHON=/path/to/python3.10" in err


def test_none_at_all(tmp_path: Path) -> None:
    status, out, err = find(path=tmp_path, HOME=tmp_path)
    assert (status, out) == (1, "")
    assert "No Python was found at all." in err
