"""Evaluation keys in parts: a folder with one file for each key, so that they travel alone, in parallel and again.

Each part is a frame of evaluation keys (`olac.runtime.envelope`) with one key: `relinearise-LEVEL.key`,
`rotation-STEP-LEVEL.key`, or all those that only bootstraps take, `bootstraps.key`. So each says which key of which
pair it is, and its SHA-256 is checked alone. `keys.json` lists them, with the SHA-256 of each whole file, for whoever
copies them. Readers do without it: what a program needs decides which parts are missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olac.backends.session import Engine, find_engine
from olac.ckks.key_list import KeyList
from olac.ckks.parameters import Parameters
from olac.errors import ArtifactError, BackendError, plain
from olac.program.program import AnyProgram, check_any_program
from olac.runtime.envelope import CHUNK, DIGEST_BYTES, PREFIX, parameter_fingerprint
from olac.runtime.messages import EvaluationKeys, key_sizes, keys_frame
from olac.system.files import Output, Source, check_folder, make_folder, sync_folder, write_file, write_files
from olac.system.formats import KEY_MANIFESTS
from olac.system.logs import event as log_event
from olac.system.memory import memory_for

log = logging.getLogger(__name__)

MANIFEST = "keys.json"
SUFFIX = ".key"
FORMAT = "olac-keys"
MOST_MANIFEST_BYTES = 1 << 26
MOST_HEADER_BYTES = 1 << 12
"""The header of a part has some 300 bytes."""
HEX_DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class PartFile:
    """A part as a manifest lists it.

    Attributes:
        bytes: of the whole file.
        sha256: of the whole file, 64 hexadecimal digits.
    """

    bytes: int
    sha256: str


class KeyFolder:
    """The evaluation keys of one key pair, in a folder that may hold only some of them yet.

    Args:
        program: with the parameters that the keys must be for, or these parameters.
        folder: need not exist yet.
        identity: of the key pair, 32 hexadecimal digits; None for the one in the folder's manifest.
        engine: that the keys are for, or its name; None for the one in the manifest or, without a manifest, for the one
            that the program was planned for.

    Raises:
        ArtifactError: the manifest is damaged, or of another key pair, other parameters or another engine.
        BackendError: there is no such engine.
    """

    def __init__(
        self,
        program: AnyProgram | Parameters,
        folder: str | Path,
        identity: str | None = None,
        engine: Engine | str | None = None,
    ) -> None:
        self.folder = Path(folder)
        if isinstance(program, Parameters):
            self.parameters, planned = program, None
        else:
            check_any_program(program)
            self.parameters, planned = program.parameters, program.engine
        manifest = self._manifest()
        if identity is None and manifest is None:
            raise ArtifactError(
                f"{plain(self.folder)}: holds no {MANIFEST}, so it is no folder of evaluation keys. Check the path."
            )
        listed = manifest or {}
        self.identity = _identity(identity if identity is not None else listed["keys"], self.folder)
        self.engine = self._find(engine or listed.get("engine") or planned)
        for name, wanted in self._head().items():
            if manifest is not None and manifest.get(name) != wanted:
                raise ArtifactError(
                    f"{plain(self._path(MANIFEST))}: it is of {name} {plain(manifest.get(name))[:40]!r}, expected "
                    f"{wanted[:40]!r}. Name another folder."
                )

    def _find(self, engine: Engine | str | None) -> Engine:
        try:
            return find_engine(engine)
        except BackendError as error:
            raise BackendError(f"{plain(self.folder)}: {error}") from error

    def _head(self) -> dict[str, str]:
        return {
            "keys": self.identity,
            "parameters": parameter_fingerprint(self.parameters),
            "engine": self.engine.key_files,
        }

    # What is there ---------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parts that are there; nothing of them is checked but that they are complete."""
        try:
            files = [path for path in self.folder.iterdir() if path.suffix == SUFFIX]
        except OSError:
            return ()
        return tuple(sorted(path.stem for path in files if _named(path.stem) is not None))

    @property
    def listed(self) -> KeyList:
        """The keys of the parts that are there, by their names."""
        found = KeyList()
        for name in self.names:
            found = found.with_more(KeyList.named(name))
        return found

    def missing(self, program: AnyProgram) -> tuple[str, ...]:
        """The names of the parts that a program needs and that are not there, or not for as many levels.

        Args:
            program: the program, or what clients know of it.
        """
        return program.keys_for(self.engine.model).lacking(self.listed).names

    def path(self, name: str) -> Path:
        """The file of a part; ArtifactError for what is no name of a part of these parameters.

        Args:
            name: of a part, such as those that `missing` gives.
        """
        self._part(name)
        return self._path(name + SUFFIX)

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _part(self, name: str) -> KeyList:
        try:
            part = KeyList.named(name)
            part.check(self.parameters)
        except ValueError as error:
            raise ArtifactError(f"there is no key {plain(name)[:60]!r} for these parameters: {error}") from error
        return part

    def most_bytes(self, name: str) -> int:
        """A bound of the bytes of a part's file.

        Args:
            name: of a part, such as those that `missing` gives.
        """
        size = sum(key_sizes(self.engine, self.parameters, self._part(name)))
        return PREFIX.size + MOST_HEADER_BYTES + size + DIGEST_BYTES

    # Single parts ----------------------------------------------------------------------------------------------------

    def check(self, name: str) -> EvaluationKeys:
        """Read a part, compare its SHA-256, and check that it is what its name says, for these keys.

        No library of CKKS sees its bytes, which are checked to be residues when a server takes them.

        Args:
            name: of a part, such as those that `missing` gives.

        Raises:
            ArtifactError: it is missing, damaged or another one.
        """
        return self._checked(name, self.path(name))

    def _checked(self, name: str, path: Path) -> EvaluationKeys:
        keys = EvaluationKeys.load(self.parameters, path)
        for what, found, wanted in (
            ("of the key pair", keys.identity, self.identity),
            ("for the engine", keys.for_engine, self.engine.key_files),
            ("the key", " ".join(keys.listed.names), name),
        ):
            if found != wanted:
                raise ArtifactError(f"{plain(path)}: it is {what} {plain(found)[:60]!r}, expected {wanted!r}.")
        return keys

    @memory_for("receiving a key")
    def receive(self, name: str, pieces: Iterable[bytes | memoryview], *, sha256: str | None = None) -> None:
        """Write a part that somebody sends; it takes its name only when it is complete and checked.

        Several threads or processes may receive parts at the same time. A part that is there already is replaced.

        Args:
            name: of the part.
            pieces: of the whole file.
            sha256: that it must have, 64 hexadecimal digits; None if the sender does not say.

        Raises:
            ArtifactError: there is no part of that name, it can't be written, it is too long, or as `check`. The folder
                is then as it was.
        """
        path, most = self.path(name), self.most_bytes(name)
        digest = hashlib.sha256()

        def limited() -> Iterator[bytes | memoryview]:
            left = most
            for piece in pieces:
                left -= len(piece)
                if left < 0:
                    raise ArtifactError(f"{plain(path)}: more than {most} bytes were sent, which no such key has.")
                digest.update(piece)
                yield piece

        def check(temporary: Path) -> None:
            if sha256 is not None and digest.hexdigest() != sha256.lower():
                raise ArtifactError(f"{plain(path)}: its SHA-256 is not the one that was announced. Send it again.")
            try:
                self._checked(name, temporary)
            except ArtifactError as error:
                raise ArtifactError(str(error).replace(plain(temporary), plain(path))) from error

        make_folder(self.folder)
        write_files([Output(path, limited(), check=check)])

    def take(self, name: str, path: str | Path) -> None:
        """Check a complete file on the disk of the folder, and give it the name of a part, as `receive` does.

        Args:
            name: of a part, such as those that `missing` gives.
            path: the complete file.

        Raises:
            ArtifactError: as `receive`; the file is then where it was.
        """
        target = self.path(name)
        try:
            self._checked(name, Path(path))
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(plain(path), plain(target))) from error
        make_folder(self.folder)
        try:
            os.replace(path, target)
            sync_folder(self.folder)
        except OSError as error:
            raise ArtifactError(f"{plain(target)}: can't be written: {error.strerror or error}") from error

    # All parts -------------------------------------------------------------------------------------------------------

    @memory_for("loading the evaluation keys")
    def load(self, program: AnyProgram | None = None) -> EvaluationKeys:
        """The keys of all parts that are there, or of those that a program needs; each is checked as by `check`.

        Args:
            program: whose keys are taken; None for all parts.

        Raises:
            ArtifactError: a part is damaged or another one, or there is none.
        """
        listed = self.listed
        if program is not None:
            needed = program.keys_for(self.engine.model)
            listed = listed.within(needed.steps, needed.relinearise is not None, needed.bootstraps)
        names = listed.names
        if not names:
            raise ArtifactError(
                f"{plain(self.folder)}: holds no evaluation keys that the program needs. Check the path."
            )
        first, *others = [self.check(name) for name in names]
        keys = first.with_more(*others)
        keys.name = plain(self.folder)
        return keys

    def save(self, keys: EvaluationKeys, progress: Callable[[int, int], None] | None = None) -> dict[str, PartFile]:
        """Write the parts of keys that are not there yet, and list all in the manifest.

        Args:
            keys: of the pair of this folder.
            progress: called as progress(parts done, parts in all).

        Returns:
            all parts of the folder.

        Raises:
            ArtifactError: the keys are of another pair or engine or for other parameters, or can't be written.
            ClosedError: the keys are closed.
        """
        wanted = (self.identity, self.parameters, self.engine.key_files)
        if (keys.identity, keys.parameters, keys.for_engine) != wanted:
            raise ArtifactError(f"{plain(self.folder)}: the keys are of another pair or engine. Name another folder.")
        check_folder(self.folder, keys.payload_bytes)
        make_folder(self.folder)
        found, parts, stream = dict(self.files()), keys.listed.parts, _Stream(keys.payload())
        sizes = list(keys.sizes)
        for done, part in enumerate(parts):
            (name,) = part.names
            own = [sizes.pop(0)] if part.count else sizes
            if not self._has(name, found):
                found[name] = self._write(name, part, stream.next(sum(own)))
            else:
                for _ in stream.next(sum(own)):
                    pass
            if progress is not None:
                progress(done + 1, len(parts))
        self._list(found)
        return found

    def _has(self, name: str, listed: dict[str, PartFile]) -> bool:
        try:
            self.check(name)
        except ArtifactError:
            return False
        return name in listed

    def _write(self, name: str, part: KeyList, payload: Iterator[memoryview]) -> PartFile:
        digest, size = hashlib.sha256(), 0

        def counted() -> Iterator[bytes | memoryview]:
            nonlocal size
            for piece in keys_frame(self.parameters, self.identity, part, self.engine, payload):
                digest.update(piece)
                size += len(piece)
                yield piece

        with memory_for("saving a key"):
            write_file(self.path(name), counted())
        return PartFile(size, digest.hexdigest())

    # The manifest ----------------------------------------------------------------------------------------------------

    def files(self) -> dict[str, PartFile]:
        """The parts that the manifest lists, by their names; none without a manifest."""
        manifest, found = self._manifest(), dict[str, PartFile]()
        for name, one in ({} if manifest is None else manifest["parts"]).items():
            right = isinstance(one, dict) and type(one.get("bytes")) is int and _is_hex(one.get("sha256"), 64)
            if not right or _named(name) is None:
                raise ArtifactError(f"{plain(self._path(MANIFEST))}: it lists {plain(name)[:60]!r} wrongly. {ANEW}")
            found[name] = PartFile(one["bytes"], one["sha256"])
        return found

    def differing(self) -> tuple[str, ...]:
        """The names of parts in the manifest whose file is missing or has another SHA-256, to be copied again."""
        return tuple(name for name, one in self.files().items() if _sha256(self.path(name)) != one.sha256)

    def _list(self, parts: dict[str, PartFile]) -> None:
        content = {
            "format": FORMAT,
            "version": KEY_MANIFESTS.current,
            **self._head(),
            "parts": {name: {"bytes": one.bytes, "sha256": one.sha256} for name, one in sorted(parts.items())},
        }
        write_file(self._path(MANIFEST), [json.dumps(content, indent=1).encode() + b"\n"])

    def _manifest(self) -> dict[str, Any] | None:
        path = self._path(MANIFEST)
        if not path.exists():
            return None
        with Source.of_file(path).open() as stream:
            data = stream.read(MOST_MANIFEST_BYTES)
        try:
            content = json.loads(data.decode())
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{plain(path)}: not a list of keys, or damaged. {ANEW}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ArtifactError(f"{plain(path)}: not a list of keys. {ANEW}")
        KEY_MANIFESTS.check(content.get("version"), plain(path))
        if not isinstance(content.get("parts"), dict) or not isinstance(content.get("engine"), str):
            raise ArtifactError(f"{plain(path)}: it names no parts or no engine. {ANEW}")
        return content


ANEW = "Get it again from who made it, or save the keys anew."


class _Stream:
    """Pieces of bytes as one stream, taken in order. A piece is valid until the next is asked for."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def next(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes, in pieces."""
        while size:
            if not len(self._rest):
                self._rest = next(self._pieces).cast("B")
            piece, self._rest = self._rest[:size], self._rest[size:]
            size -= len(piece)
            yield piece


def load_keys(program: AnyProgram, path: str | Path) -> EvaluationKeys:
    """Evaluation keys from a file, or from a folder of parts those that a program needs.

    Args:
        program: a program, or what clients know of it.
        path: a file or a folder.

    Raises:
        ArtifactError: as `EvaluationKeys.load` and `KeyFolder.load`.
    """
    if Path(path).is_dir():
        keys = KeyFolder(program, path).load(program)
        log_event(log, f"{plain(path)}: evaluation-keys loaded", file=str(path), bytes=keys.payload_bytes)
        return keys
    return EvaluationKeys.load(program, path)


def save_parts(keys: EvaluationKeys, folder: str | Path) -> KeyFolder:
    """Write keys to a folder, one file a key; see `KeyFolder.save`.

    Args:
        keys: evaluation keys.
        folder: is made if it does not exist.
    """
    made = KeyFolder(keys.parameters, folder, keys.identity, keys.choose_engine(None))
    made.save(keys)
    return made


def _named(name: str) -> KeyList | None:
    try:
        return KeyList.named(name)
    except ValueError:
        return None


def _is_hex(value: object, digits: int) -> bool:
    return isinstance(value, str) and len(value) == digits and not set(value) - HEX_DIGITS


def _identity(value: Any, folder: Path) -> str:
    if not _is_hex(value, 32):
        raise ArtifactError(f"{plain(folder)}: {plain(value)[:40]!r} is not the name of a key pair")
    return str(value)


def _sha256(path: Path) -> str:
    """Of a file, or empty if it can't be read."""
    digest = hashlib.sha256()
    try:
        with Source.of_file(path).open() as stream:
            while piece := stream.read(CHUNK):
                digest.update(piece)
    except ArtifactError:
        return ""
    return digest.hexdigest()


__all__ = ["KeyFolder", "PartFile", "load_keys", "save_parts"]
