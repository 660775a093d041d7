"""deploy/: the syntax of the Dockerfile and of the compose file, that what they name exists, and their commands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from olac.cli import _parser

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
COMPOSE = ROOT / "deploy" / "compose.yaml"

INSTRUCTIONS = frozenset(
    "ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL RUN SHELL STOPSIGNAL USER VOLUME WORKDIR".split()  # noqa: SIM905
)


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile and their arguments, lines that go on joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = []
    for line in joined.splitlines():
        name, _, arguments = line.partition(" ")
        if name not in INSTRUCTIONS or not arguments.strip() or arguments.rstrip().endswith("\\"):
            raise ValueError(f"no instruction: {line}")
        found.append((name, arguments.strip()))
    if not found or found[0][0] not in ("FROM", "ARG"):
        raise ValueError("it does not begin with FROM")
    return found


def block(text: str) -> Any:
    """YAML of mappings in blocks; values are plain or quoted text, or JSON on one line.

    Every text that this takes is YAML of the same meaning, apart from plain numbers and words, which stay text.
    """
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        bare = re.sub(r"(^|\s)#.*$", "", line).rstrip()
        if "\t" in bare:
            raise ValueError(f"line {number} has a tab")
        if bare:
            lines.append((number, len(bare) - len(bare.lstrip()), bare.strip()))
    found, left = _mapping(lines, 0)
    if left:
        raise ValueError(f"line {left[0][0]} is indented wrongly")
    return found


def _mapping(lines: list[tuple[int, int, str]], indent: int) -> tuple[dict[str, Any], list[tuple[int, int, str]]]:
    found: dict[str, Any] = {}
    while lines and lines[0][1] == indent:
        number, _, line = lines[0]
        match = re.fullmatch(r"([A-Za-z_][A-Za-z0-9_-]*):(?: +(\S.*))?", line)
        if match is None or match[1] in found:
            raise ValueError(f"line {number} is no entry, or one that was there before: {line}")
        lines = lines[1:]
        if match[2] is None:
            if not lines or lines[0][1] <= indent:
                raise ValueError(f"line {number} has no value")
            found[match[1]], lines = _mapping(lines, lines[0][1])
        else:
            found[match[1]] = json.loads(match[2]) if match[2][0] in '[{"' else match[2]
            if isinstance(found[match[1]], str) and ": " in match[2] and match[2][0] != '"':
                raise ValueError(f"line {number} holds a mapping within a value")
    return found, lines


def arguments_of(command: list[str]) -> Any:
    """The command of olac, parsed."""
    return _parser().parse_args(command)


def test_the_dockerfile() -> None:
    found = instructions(DOCKERFILE.read_text(encoding="utf-8"))
    stages = {arguments.split()[2] for name, arguments in found if name == "FROM" and " AS " in arguments}
    for name, arguments in found:
        if name in ("CMD", "ENTRYPOINT", "VOLUME"):
            assert all(isinstance(one, str) for one in json.loads(arguments))
        if name == "HEALTHCHECK":
            program = json.loads(arguments.partition("CMD ")[2])
            compile(program[2], "healthcheck", "exec")
        if name == "RUN":
            assert shlex.split(arguments)
        if name == "COPY":
            *sources, target = arguments.split()
            if sources[0].startswith("--from="):
                assert sources.pop(0).partition("=")[2] in stages and sources == [target]
            else:
                assert all((ROOT / source).exists() for source in sources)
    (command,) = (json.loads(arguments) for name, arguments in found if name == "CMD")
    assert dict(found)["ENTRYPOINT"] == '["olac"]' and dict(found)["USER"] == "olac"
    options = arguments_of(command)
    assert str(options.port) == dict(found)["EXPOSE"] and [str(options.data)] == json.loads(dict(found)["VOLUME"])
    assert options.tokens is not None


def test_the_compose_file() -> None:
    text = COMPOSE.read_text(encoding="utf-8")
    found = block(text)
    assert set(found) == {"services", "secrets", "volumes"} and set(found["services"]) == {
        "server",
        "publish",
        "client",
    }
    server = found["services"]["server"]
    assert (COMPOSE.parent / server["build"]["context"] / server["build"]["dockerfile"]).resolve() == DOCKERFILE
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    for one in found["services"].values():
        assert one["image"] == server["image"] and set(one.get("secrets", [])) <= set(found["secrets"])
        for volume in one.get("volumes", []):
            source, target, *_ = volume.split(":")
            assert (source in found["volumes"] or source.startswith("./")) and target.startswith("/")
        assert set(one.get("depends_on", [])) <= set(found["services"])
        arguments_of(one["command"])
    publish, client = (arguments_of(found["services"][name]["command"]) for name in ("publish", "client"))
    assert publish.id == client.program and client.url == f"http://server:{arguments_of(server['command']).port}"
    for secret in found["secrets"].values():  # they are not kept in the repository
        assert f"/deploy/{Path(secret['file']).parent.name}/" in (ROOT / ".gitignore").read_text(encoding="utf-8")


def test_the_compose_file_is_yaml() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    text = COMPOSE.read_text(encoding="utf-8")
    assert yaml.load(text, Loader=yaml.BaseLoader) == block(text)  # which leaves numbers and words as text


@pytest.mark.parametrize("text", ["RUN x", "FROM x\nMAKE y", "FROM x\nRUN", "FROM x\nRUN a \\"])
def test_wrong_dockerfiles(text: str) -> None:
    with pytest.raises(ValueError):
        instructions(text)


@pytest.mark.parametrize(
    "text", ["a:\nb: c", "a: b\n  c: d", "a: [b", "a: b\na: c", "a:\n\tb: c", "a: b: c", "- a", "a:\n  b: c\n d: e"]
)
def test_wrong_compose_files(text: str) -> None:
    with pytest.raises(ValueError):
        block(text)
