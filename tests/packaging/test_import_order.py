"""Which module may import which: a module imports from its own layer or a lower one.

To place a new module, name it (or the package it is in) in LAYERS. The longest name that fits a
module decides its layer. Imports within functions and under TYPE_CHECKING count like any other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the lowest layer to the highest.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("olac.errors",),
    # Drawings and the text of numbers are made of plain numbers.
    ("olac.system", "olac.plugins", "olac.progress", "olac.pages.text", "olac.pages.svg", "olac.pages.drawings"),
    ("olac.ir", "olac.ckks", "olac.parameters"),
    ("olac.costs",),
    ("olac.backends.base",),
    # Analyses choose by price and check by recording, so these backends lie below them.
    ("olac.backends.recorder", "olac.backends.cost", "olac.backends.speed"),
    ("olac.kernels", "olac.frontend"),
    ("olac.calibration",),
    ("olac.polynomials",),
    ("olac.analysis",),
    ("olac.approximation",),
    ("olac.training",),
    ("olac.passes",),
    # Programs and their tables and pages know each other: a program shows itself.
    ("olac.program", "olac.options", "olac.report", "olac.pages"),
    ("olac.backends.session",),
    ("olac.backends",),
    ("olac.selection", "olac.runtime"),
    ("olac.compiler",),
    ("olac.serving", "olac.scaling"),
    ("olac", "olac.tuning", "olac.outcome", "olac.cli", "olac.demo", "olac.__main__"),
)

# Names in LAYERS that stand for themselves alone, not for the modules below them.
EXACT = frozenset({"olac"})

# Who may import what from outside. Nobody else may, in olac itself; tests and benchmarks are free.
RESERVED: dict[str, tuple[str, ...]] = {
    "cryptography": ("olac.backends.vector",),
    "llvmlite": ("olac.backends.vector",),
    "numba": ("olac.backends.vector", "olac.approximation.compiled"),
    "fastapi": ("olac.serving",),
    "httpx": ("olac.serving.remote",),
    "jinja2": ("olac.pages.page",),
    "matplotlib": ("olac.pages",),
    "openfhe": ("olac.backends.openfhe",),
    "prometheus_client": ("olac.serving.metrics",),
    "pydantic": ("olac.serving.app",),
    "ray": ("olac.scaling",),
    "starlette": ("olac.serving", "olac.scaling.serving"),
    "torch": (
        "olac.frontend",
        "olac.calibration.batches",
        "olac.calibration.collect",
        "olac.approximation",
        "olac.training",
        "olac.compiler",
        "olac.tuning",
        "olac.demo",
        "olac.cli",
    ),
    "uvicorn": ("olac.serving.run",),
}

# Who may import only some modules of a lower package, within functions as well: the runtime names no engine.
ALONE: dict[str, tuple[str, tuple[str, ...]]] = {
    "olac.runtime": ("olac.backends", ("olac.backends.base", "olac.backends.recorder", "olac.backends.session")),
}

# The folder in the tree that each import name is found in.
FOLDERS = {"olac": "olac", "olac.passes": "passes", "olac.backends": "backends"}


def within(module: str, name: str) -> bool:
    return module == name or (name not in EXACT and module.startswith(name + "."))


def layer_of(module: str) -> int | None:
    """Return the place in LAYERS of a module, or None if it has none."""
    fits = [(len(name), i) for i, names in enumerate(LAYERS) for name in names if within(module, name)]
    return max(fits)[1] if fits else None


def find_modules() -> dict[str, Path]:
    """Return the file of every module, by its import name."""
    modules = {}
    for name, folder in FOLDERS.items():
        top = ROOT / folder
        links = [path for path in top.iterdir() if path.is_symlink()]
        for path in sorted(top.rglob("*.py")):
            if not any(link in path.parents for link in links):
                parts = path.relative_to(top).with_suffix("").parts
                modules[".".join((name, *parts)).removesuffix(".__init__")] = path
    return modules


MODULES = find_modules()


def imports_of(module: str, source: str, is_package: bool, known: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Yield the line and the module of every import in source, `from a import b` as a.b where known."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{origin}.{alias.name}"
                yield node.lineno, full if full in known else origin
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            name = node.args[0].value
            if called in {"import_module", "__import__"} and isinstance(name, str):
                yield node.lineno, name


def faults_of(module: str, source: str, is_package: bool, known: frozenset[str]) -> list[str]:
    """Return what is wrong with the imports of one module."""
    own = layer_of(module)
    if own is None:
        return [f"{module} is in no layer: name it in LAYERS"]
    faults = []
    for line, name in imports_of(module, source, is_package, known):
        root = name.split(".")[0]
        if root == "olac":
            other = layer_of(name)
            if other is None:
                faults.append(f"{module}:{line} imports {name}, which is in no layer")
            elif other > own:
                faults.append(f"{module}:{line} imports {name}, which is in a higher layer")
            for user, (package, allowed) in ALONE.items():
                if within(module, user) and within(name, package) and not any(within(name, one) for one in allowed):
                    faults.append(f"{module}:{line} imports {name}, of {package} only {', '.join(allowed)} are for it")
        elif root in {"passes", "backends"}:
            faults.append(f"{module}:{line} imports {name}: import olac.passes / olac.backends")
        elif root in RESERVED and not any(within(module, user) for user in RESERVED[root]):
            faults.append(f"{module}:{line} imports {name}, which is for {', '.join(RESERVED[root])}")
    return faults


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports(module: str) -> None:
    path = MODULES[module]
    source = path.read_text(encoding="utf-8")
    assert not faults_of(module, source, path.name == "__init__.py", frozenset(MODULES))


KNOWN = frozenset({"olac", "olac.ir", "olac.ir.graph", "olac.passes", "olac.backends.base", "olac.backends.openfhe"})


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("olac.passes.fuse", "from olac.ir import graph\nfrom . import other\nimport numpy"),
        ("olac.passes.fuse", "from olac.backends import base"),
        ("olac.backends.openfhe.engine", "import openfhe\nfrom ..base import Backend\nfrom .. import session"),
        ("olac.runtime.server", "from olac.backends.session import Engine\nfrom olac.backends import base"),
        ("olac.cli", "def main():\n    import torch\n    from olac.runtime import run"),
        ("olac.ir.graph", "from .types import Type\nfrom ..errors import OlacError"),
    ],
)
def test_allowed(module: str, source: str) -> None:
    assert not faults_of(module, source, False, KNOWN)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("olac.ir.graph", "import olac.passes.fuse"),
        ("olac.ir.graph", "from .. import passes"),
        ("olac.ir.graph", "from olac import __version__"),
        ("olac.passes.fuse", "from olac.backends import openfhe"),
        ("olac.passes.fuse", "def f():\n    from ..backends.openfhe.engine import Engine"),
        ("olac.kernels.matmul", "if TYPE_CHECKING:\n    from olac.compiler import Compiler"),
        ("olac.kernels.matmul", "import torch.nn as nn"),
        ("olac.kernels.matmul", "importlib.import_module('torch')"),
        ("olac.compiler", "import openfhe"),
        ("olac.backends.session", "importlib.import_module('numba')"),
        ("olac.compiler", "from passes import fuse"),
        ("olac.runtime.server", "from olac.backends.openfhe.wire import wire"),
        ("olac.runtime.server", "from olac.backends import openfhe"),
        ("olac.runtime.server", "def f():\n    from ..backends.openfhe import wire"),
        ("olac.runtime.server", "importlib.import_module('olac.backends.openfhe.session')"),
        ("olac.runtime.server", "from olac.backends.simulator import SimulatorEvaluator"),
        ("olac.runtime.server", "import olac.backends"),
        ("olac.backends.session", "from olac.backends.openfhe import wire"),
        ("olac.backends.session", "from olac.runtime import Server"),
        ("olac.backends.base", "from olac.backends.recorder import RecorderEvaluator"),
        ("olac.unheard_of", ""),
        ("olac.compiler", "import olac.unheard_of"),
    ],
)
def test_refused(module: str, source: str) -> None:
    assert len(faults_of(module, source, False, KNOWN)) == 1


def test_relative_imports_of_a_package() -> None:
    source = "from .graph import Graph\nfrom . import graph\nfrom ..compiler import compile_model"
    assert list(imports_of("olac.ir", source, True, KNOWN)) == [
        (1, "olac.ir.graph"),
        (2, "olac.ir.graph"),
        (3, "olac.compiler"),
    ]
