"""Published programs: a folder for each, which is complete or absent and never changes.

    programs/ID/program.olac   the program, for workers
    programs/ID/client.json    what clients get
    programs/ID/about.json     its fingerprint and what a run takes, so that the app needs no weights

An ID stays with its program: a new version gets a new ID, so jobs that wait run on the program that they are for.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from olac.ckks.sizes import ciphertext_bytes
from olac.errors import ArtifactError, plain
from olac.program.client_program import ClientProgram, Port
from olac.program.program import CompiledProgram
from olac.serving.names import RULES, is_name
from olac.system.files import make_folder, write_file
from olac.system.memory import GB

PROGRAM, CLIENT, ABOUT = "program.olac", "client.json", "about.json"
FORMAT, VERSION = "olac-served", 1
FRAME_BYTES = 1 << 13
"""Room for all of a frame of ciphertexts but its payload."""


@dataclass(frozen=True)
class About:
    """What a server says of a program without loading it.

    Attributes:
        fingerprint: of the program.
        server_bytes: predicted peak memory of a worker.
        least_server_bytes: the same if encoded weights are not kept.
        seconds: predicted for a run, with weights encoded before.
        images: of one run, at most.
        engine: the engine that it was planned for.
    """

    fingerprint: str
    server_bytes: float
    least_server_bytes: float
    seconds: float
    images: int
    engine: str

    @staticmethod
    def of(program: CompiledProgram) -> About:
        """Predicted by the shipped tables of costs."""
        found = program.estimate()
        return About(
            program.fingerprint,
            found.server_gb * GB,
            found.server_gb_without_kept_weights * GB,
            found.seconds_per_image * program.batch,
            program.batch,
            program.engine,
        )


@dataclass(frozen=True)
class Published:
    """A published program.

    Attributes:
        id: its name.
        folder: its files.
        about: what a run takes.
        client: what clients know of it.
        client_file: the same as the bytes of its file.
    """

    id: str
    folder: Path
    about: About
    client: ClientProgram
    client_file: bytes

    @cached_property
    def input_bytes(self) -> int:
        """A bound of the bytes of an encrypted input of one set of ciphertexts."""
        return FRAME_BYTES + self._bytes(self.client.input)

    @cached_property
    def result_bytes(self) -> int:
        """A bound of the bytes of a result of one set of ciphertexts."""
        return FRAME_BYTES + self._bytes(self.client.output)

    def most_bytes(self, sets: int) -> int:
        """A bound of the bytes of an encrypted input of several sets of ciphertexts."""
        return FRAME_BYTES + sets * self._bytes(self.client.input)

    def stored_bytes(self, input_bytes: int) -> int:
        """A bound of the bytes that an input of this size and its result take together."""
        sets = max(1, -(-(input_bytes - FRAME_BYTES) // self._bytes(self.client.input)))
        return self.most_bytes(sets) + FRAME_BYTES + sets * self._bytes(self.client.output)

    def _bytes(self, port: Port) -> int:
        one = ciphertext_bytes(self.client.parameters.log_ring, port.state.level + 1)
        return port.layout.ciphertexts * one


def id_of(path: str | Path) -> str:
    """An ID made of a file's name: resnet20 for ResNet20.olac."""
    name = re.sub(r"[^a-z0-9._-]+", "-", Path(path).stem.lower()).strip("-._")[:64]
    return name or "program"


def publish(program: str | Path, data: str | Path, id_: str | None = None) -> str:
    """Publish a program in the data folder of a server, which may be running; returns its ID.

    Args:
        program: the file of a `CompiledProgram`.
        data: the folder; it is made if it does not exist.
        id_: None for one made of the file's name.

    Raises:
        ArtifactError: the program can't be read, the ID is not allowed or is that of another program, or the files
            can't be written.
    """
    name = id_of(program) if id_ is None else id_
    if not is_name("program", name):
        raise ArtifactError(f"{plain(name)[:60]!r} can't be the ID of a program: {RULES['program']}.")
    compiled = CompiledProgram.load(program)
    home = Path(data) / "programs"
    make_folder(home)
    target = home / name
    if target.exists():
        found = _about(target)
        if found.fingerprint == compiled.fingerprint:
            return name
        raise ArtifactError(
            f"{plain(target)}: another program has this ID, and clients may have jobs for it. Publish this one under "
            "another ID, with --id."
        )
    staging = home / f".{name}.{secrets.token_hex(8)}.part"
    make_folder(staging)
    try:
        compiled.save(staging / PROGRAM)
        compiled.client().save(staging / CLIENT)
        about = {"format": FORMAT, "version": VERSION, **asdict(About.of(compiled))}
        write_file(staging / ABOUT, [json.dumps(about, indent=1).encode() + b"\n"])
        os.rename(staging, target)
    except OSError as error:
        raise ArtifactError(f"{plain(target)}: can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return name


def _about(folder: Path) -> About:
    path = folder / ABOUT
    try:
        given: Any = json.loads(path.read_text(encoding="utf-8"))
        if given.pop("format") != FORMAT or given.pop("version") != VERSION:
            raise ValueError("another format")
        return About(**given)
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise ArtifactError(
            f"{plain(path)}: can't be read ({type(error).__name__}). Publish the program anew under another ID."
        ) from error


class Catalogue:
    """The published programs of a data folder, read when they are asked for.

    Args:
        data: the folder of the server.
    """

    def __init__(self, data: str | Path) -> None:
        self._home = Path(data) / "programs"
        self._known: dict[str, Published] = {}
        self._lock = threading.Lock()

    def find(self, id_: str) -> Published | None:
        """A program by its ID, which may be any text; None if there is none. ArtifactError if it is damaged."""
        if not is_name("program", id_):
            return None
        with self._lock:
            if id_ not in self._known:
                folder = self._home / id_
                if not (folder / ABOUT).is_file():
                    return None
                about, client = _about(folder), ClientProgram.load(folder / CLIENT)
                if client.fingerprint != about.fingerprint:
                    raise ArtifactError(f"{plain(folder)}: its files are of two programs. Publish it anew.")
                self._known[id_] = Published(id_, folder, about, client, (folder / CLIENT).read_bytes())
            return self._known[id_]

    def all(self) -> tuple[Published, ...]:
        """All programs by their IDs; those that are damaged are left out."""
        try:
            names = sorted(path.name for path in self._home.iterdir())
        except OSError:
            return ()
        found = []
        for name in names:
            with suppress(ArtifactError):
                one = self.find(name)
                if one is not None:
                    found.append(one)
        return tuple(found)


__all__ = ["About", "Catalogue", "Published", "id_of", "publish"]
