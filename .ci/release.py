"""`make release`: builds the wheel and the source distribution, and checks all that a release promises.

    .venv/bin/python .ci/release.py [--quick] [--allow-changes]

1. The tree is clean, and the version of `olac.__version__` is that of CHANGELOG.md and CITATION.cff, with one date.
2. `python -m build`, from what git holds, makes the source distribution and, from that, the wheel: dist/.
3. Both have valid metadata. The wheel holds every file of the packages that git holds.
4. On each supported Python that is found, both are installed into a clean environment without torch. Every module that
   needs no extra is imported there, and a program goes from keys to a decrypted result. --quick: on one Python only.
5. pyright and mypy check a script against the installed wheel: no error, and types that are known.

It needs the network, for the dependencies; nothing is uploaded.
"""

from __future__ import annotations

import argparse
import ast
import configparser
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"olac": "olac", "passes": "olac/passes", "backends": "olac/backends"}
"""Folders of the tree, and where a wheel holds them."""
GOLDEN = ROOT / "tests" / "golden" / "formats"
SCRIPT = """\
import numpy as np
import torch

import olac

model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
program = olac.compile(model, [torch.rand(64, 4)], degree=3, class_names=["no", "yes"])
reveal_type(program)
client = olac.Client(program)
server = olac.Server(program, client.generate_keys())
outputs = client.decrypt(server.run(client.encrypt(np.zeros(4))))
reveal_type(outputs.shape)
print(program.named(outputs), program.estimate().server_gb)
"""
REVEALED = ("CompiledProgram", "tuple[")
"""What a type checker must say of the two expressions."""
WRONG = "\nolac.compile(model, [torch.rand(64, 4)], degree='three')\n"
"""An error that a type checker must find, so that types are not just unknown."""
IMPORTS = """\
import importlib, pkgutil, sys
import olac
skipped = []
for found in pkgutil.walk_packages(olac.__path__, "olac.", onerror=lambda name: None):
    if found.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(found.name)
    except ImportError as error:
        missing = getattr(error, "name", "") or ""
        if missing.partition(".")[0] == "olac":
            raise
        skipped.append(f"{found.name} ({missing})")
assert "torch" not in sys.modules
print(len(skipped), "modules need an extra:", ", ".join(sorted({one.rpartition("(")[2][:-1] for one in skipped})))
"""


class Refused(Exception):
    """The release can't be made; the message says why."""


def main() -> int:
    parser = argparse.ArgumentParser(description="build and check a release")
    parser.add_argument("--quick", action="store_true", help="install on the first Python that is found, on no other")
    parser.add_argument("--allow-changes", action="store_true", help="build what is committed, beside other changes")
    options = parser.parse_args()
    try:
        version = check_version(ROOT)
        if not options.allow_changes:
            check_clean()
        with tempfile.TemporaryDirectory(prefix="olac-release-") as place:
            release(version, Path(place), options.quick)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def release(version: str, place: Path, quick: bool) -> None:
    sdist, wheel = build(place, version)
    say(f"built {sdist.name} ({sdist.stat().st_size:,} bytes) and {wheel.name} ({wheel.stat().st_size:,} bytes)")
    check_metadata(metadata_of(wheel), version)
    check_metadata(metadata_of(sdist), version)
    check_files(names_in(wheel), tracked())
    pythons = find_pythons(supported(ROOT))
    missing = sorted(set(supported(ROOT)) - set(pythons))
    if missing:
        say(f"not found, so not tried: CPython {', '.join(missing)}")
    if not pythons:
        raise Refused(f"none of CPython {', '.join(supported(ROOT))} is found on PATH or among pyenv's versions")
    chosen = dict(list(pythons.items())[:1]) if quick else pythons
    for minor, python in chosen.items():
        environment = install(python, wheel, place / f"venv{minor}")
        try_out(environment, version, place / f"run{minor}")
        reinstall(environment, sdist, version)
        say(f"CPython {minor}: wheel and source distribution are installed and work")
    first = place / f"venv{next(iter(chosen))}"
    check_extras(ROOT)
    check_types(first, place)
    target = ROOT / "dist"
    target.mkdir(exist_ok=True)
    for made in (sdist, wheel):
        shutil.copy(made, target / made.name)
    say(f"olac {version} is ready in {target}")


def say(line: str) -> None:
    print(line, flush=True)


# Versions ------------------------------------------------------------------------------------------------------------


def version_of(root: Path) -> str:
    """`__version__` of olac/__init__.py, the one place where the version stands."""
    tree = ast.parse((root / "olac" / "__init__.py").read_text(encoding="utf-8"))
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "__version__":
            return str(ast.literal_eval(statement.value))
    raise Refused("olac/__init__.py has no __version__")


def check_version(root: Path) -> str:
    """The version, which CHANGELOG.md and CITATION.cff must have as well, with one date."""
    version = version_of(root)
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise Refused(f"{version} is no version to release: three numbers are expected")
    headings = re.findall(r"^## (.+)$", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    found = re.fullmatch(r"(\S+) - (\d{4}-\d\d-\d\d)", headings[0]) if headings else None
    if found is None or found[1] != version:
        first = headings[0] if headings else "nothing"
        raise Refused(f"CHANGELOG.md begins with {first!r}, expected '{version} - YYYY-MM-DD'")
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    for field, value in (("version", version), ("date-released", found[2])):
        if not re.search(rf"^{field}: {re.escape(value)}$", citation, re.MULTILINE):
            raise Refused(f"CITATION.cff does not have '{field}: {value}'")
    return version


def check_clean() -> None:
    changed = run(["git", "status", "--porcelain"], ROOT).splitlines()
    if changed:
        raise Refused(f"{len(changed)} files are changed or not committed, such as {changed[0][3:]}: commit them first")


# Files ---------------------------------------------------------------------------------------------------------------


def build(place: Path, version: str) -> tuple[Path, Path]:
    """The source distribution and the wheel, made of what git holds."""
    tree, out = place / "tree", place / "dist"
    tree.mkdir()
    with tempfile.TemporaryFile() as archive:
        subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, stdout=archive, check=True)
        archive.seek(0)
        with tarfile.open(fileobj=archive) as packed:
            packed.extractall(tree)
    run([sys.executable, "-m", "build", "--outdir", str(out), str(tree)], place)
    sdist, wheel = out / f"olac-{version}.tar.gz", out / f"olac-{version}-py3-none-any.whl"
    for made in (sdist, wheel):
        if not made.is_file():
            raise Refused(f"the build did not make {made.name}, but {', '.join(p.name for p in out.iterdir())}")
    return sdist, wheel


def names_in(path: Path) -> set[str]:
    """The files in a wheel, or in a source distribution without its top folder."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return set(wheel.namelist())
    with tarfile.open(path) as sdist:
        return {one.name.partition("/")[2] for one in sdist.getmembers() if one.isfile()}


def metadata_of(path: Path) -> str:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
            return wheel.read(name).decode()
    with tarfile.open(path) as sdist:
        member = sdist.extractfile(f"{path.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert member is not None
        return member.read().decode()


def check_metadata(text: str, version: str) -> None:
    """What an index requires, and what people look for."""
    from packaging.metadata import Metadata

    try:
        Metadata.from_email(text.encode(), validate=True)
    except Exception as error:  # an ExceptionGroup, which Python 3.10 does not have
        parts = [str(one) for one in getattr(error, "exceptions", ())] or [str(error)]
        raise Refused(f"the metadata is not valid: {'; '.join(parts)}") from error
    fields = email.message_from_string(text)
    if (fields["Name"], fields["Version"]) != ("olac", version):
        raise Refused(f"the metadata is of {fields['Name']} {fields['Version']}, expected olac {version}")
    for name in ("Summary", "Requires-Python", "License-File", "Description-Content-Type"):
        if not fields[name]:
            raise Refused(f"the metadata has no {name}")
    if len(str(fields.get_payload())) < 1000:
        raise Refused("the metadata has no description: README.md is missing")


def tracked() -> set[str]:
    """Where a wheel has to hold the files of the packages that git holds."""
    found = set()
    for folder, inside in FOLDERS.items():
        for line in run(["git", "ls-files", "-s", folder], ROOT).splitlines():
            mode, _, path = line.partition(" ")
            if mode != "120000":  # a link
                found.add(inside + path.partition("\t")[2].removeprefix(folder))
    return found


def check_files(names: set[str], wanted: set[str]) -> None:
    """A wheel holds the files of the packages and no others."""
    inside = {name for name in names if ".dist-info/" not in name}
    if inside != wanted:
        lacking, more = sorted(wanted - inside), sorted(inside - wanted)
        raise Refused(f"the wheel lacks {lacking[:5]} and holds {more[:5]} beside: see package_data in setup.cfg")


# Environments --------------------------------------------------------------------------------------------------------


def supported(root: Path) -> list[str]:
    """The minor versions of CPython that the classifiers name, such as "3.10"."""
    config = configparser.RawConfigParser()
    config.read(root / "setup.cfg", encoding="utf-8")
    return re.findall(r"^Programming Language :: Python :: (3\.\d+)$", config["metadata"]["classifiers"], re.MULTILINE)


def find_pythons(minors: list[str]) -> dict[str, Path]:
    """A Python that runs for each minor version, among pyenv's versions and on PATH."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found: dict[str, Path] = {}
    for minor in minors:
        paths = sorted(pyenv.glob(f"{minor}.*/bin/python"), reverse=True)
        on_path = shutil.which(f"python{minor}")
        for path in [*paths, *([Path(on_path)] if on_path else [])]:
            code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2], sys.implementation.name)"
            tried = subprocess.run([str(path), "-c", code], capture_output=True, text=True, check=False)
            if tried.stdout.strip() == f"{minor} cpython":
                found[minor] = path
                break
    return found


def install(python: Path, wheel: Path, place: Path) -> Path:
    """A new environment with the wheel and its dependencies; torch is none of them."""
    say(f"installing {wheel.name} with {python}")
    run([str(python), "-m", "venv", str(place)], wheel.parent)
    run([str(place / "bin" / "python"), "-m", "pip", "install", "-q", str(wheel)], place)
    run([str(place / "bin" / "python"), "-m", "pip", "check"], place)
    return place


def try_out(environment: Path, version: str, place: Path) -> None:
    """Import what is installed, and take a program from keys to a decrypted result."""
    place.mkdir()
    olac, python = str(environment / "bin" / "olac"), str(environment / "bin" / "python")
    if run([olac, "--version"], place).strip() != f"olac {version}":
        raise Refused(f"olac --version does not say {version}")
    say(run([python, "-c", IMPORTS], place).strip())
    golden = max(GOLDEN.iterdir(), key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
    quiet = {"PYTHONWARNINGS": "ignore"}
    program, image = str(golden / "program.olac"), str(golden / "image.npy")
    run([olac, "info", program], place, quiet)
    run([olac, "client", program, "-o", "client.json"], place, quiet)
    run([olac, "keygen", "client.json", "keys"], place, quiet)
    run([olac, "encrypt", "client.json", "keys/secret.key", image, "input.enc"], place, quiet)
    run([olac, "run", program, "keys/evaluation.keys", "input.enc", "result.enc"], place, quiet)
    run([olac, "decrypt", "client.json", "keys/secret.key", "result.enc", "output.npy"], place, quiet)
    code = "import numpy as n, sys; a, b = map(n.load, sys.argv[1:]); assert n.abs(a - b).max() < 0.05, (a, b)"
    run([python, "-c", code, "output.npy", str(golden / "output.npy")], place)


def reinstall(environment: Path, sdist: Path, version: str) -> None:
    """The source distribution in place of the wheel: the same files are installed."""
    python = str(environment / "bin" / "python")
    listing = (
        "import importlib.metadata as m; "
        "print(sorted(str(p) for p in m.files('olac') if '.dist-info' not in str(p) and '.pyc' not in str(p)))"
    )
    before = run([python, "-c", listing], environment)
    run([python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", str(sdist)], environment)
    if run([python, "-c", listing], environment) != before:
        raise Refused("the source distribution installs other files than the wheel")
    if run([str(environment / "bin" / "olac"), "--version"], environment).strip() != f"olac {version}":
        raise Refused(f"olac --version does not say {version} when it is installed from the source distribution")


def check_extras(root: Path) -> None:
    """olac[all] names every extra but those that are left out on purpose."""
    config = configparser.RawConfigParser()
    config.read(root / "setup.cfg", encoding="utf-8")
    extras = config["options.extras_require"]
    inside = set(re.findall(r"olac\[([\w-]+)\]", extras["all"]))
    unknown = inside - set(extras)
    if unknown:
        raise Refused(f"olac[all] names extras that there are not: {', '.join(sorted(unknown))}")


# Types ---------------------------------------------------------------------------------------------------------------


def check_types(environment: Path, place: Path) -> None:
    """pyright and mypy on a script, with the installed wheel and the torch of this environment."""
    torch = Path(next(packages_with("torch"), ""))
    if not torch.name:
        say("types are not checked: torch is not installed beside this script")
        return
    (site,) = environment.glob("lib/python3.*/site-packages")
    (site / "torch-of-release.pth").write_text(f"{torch}\n")
    folder = place / "types"
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    (folder / "wrong.py").write_text(SCRIPT + WRONG)
    python = str(environment / "bin" / "python")
    for name, command in (
        ("pyright", ["-m", "pyright", "--pythonpath", python]),
        ("mypy", ["-m", "mypy", "--python-executable", python, "--cache-dir", str(folder / "cache")]),
    ):
        if not any(packages_with(name)):
            say(f"types are not checked by {name}: it is not installed")
            continue
        told, code = answer([sys.executable, *command, "script.py"], folder)
        if name == "pyright" and not re.search(r"^\d+ errors?, ", told, re.MULTILINE):
            say(f"types are not checked by pyright, which does not run here: {told.strip().splitlines()[-1:]}")
            continue
        if code:
            raise Refused(f"{name} finds errors in a script that uses olac:\n{told}")
        check_revealed(told, name)
        if answer([sys.executable, *command, "wrong.py"], folder)[1] == 0:
            raise Refused(f"{name} does not find the wrong argument in a script: types are unknown")
        say(f"types are known to {name}")


def check_revealed(told: str, name: str) -> None:
    """A type checker knows the types of both expressions."""
    lines = [line for line in told.splitlines() if "eveal" in line or "Type of" in line]
    for wanted, line in zip(REVEALED, lines, strict=False):
        if wanted not in line or "Unknown" in line or '"Any"' in line:
            raise Refused(f"{name} says {line.strip()!r}, expected {wanted}")
    if len(lines) != len(REVEALED):
        raise Refused(f"{name} reveals {len(lines)} types, expected {len(REVEALED)}:\n{told}")


def packages_with(name: str) -> Iterator[str]:
    """Folders of this environment that hold a package."""
    return (folder for folder in sys.path if folder and (Path(folder) / name).is_dir())


def answer(command: list[str], place: Path, more: dict[str, str] | None = None) -> tuple[str, int]:
    """What a command writes, and its exit status. Nothing of this tree is on its import path."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        command, cwd=place, env=kept | (more or {}), capture_output=True, text=True, errors="replace", check=False
    )
    return done.stdout + done.stderr, done.returncode


def run(command: list[str], place: Path, more: dict[str, str] | None = None) -> str:
    told, code = answer(command, place, more)
    if code:
        raise Refused(f"{' '.join(command)} fails with {code}:\n{told.strip()[-4000:]}")
    return told


if __name__ == "__main__":
    sys.exit(main())
