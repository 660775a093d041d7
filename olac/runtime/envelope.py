"""The frame around keys and ciphertexts, as files and as bytes.

    4 bytes   b"OLAC"
    2 bytes   version of the format
    16 bytes  kind, ASCII, padded with zeros
    4 bytes   length of the header
    8 bytes   length of the payload
    header    JSON: the fingerprint of the parameters, for ciphertexts that of the program, and what the kind needs
    payload   coefficient words, little-endian uint64
    32 bytes  SHA-256 of all that comes before

All integers are little-endian. The hash finds damage and mix-ups. It is no signature: whoever can change a file can
change its hash as well. So readers take nothing from the payload but words that they check one by one.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from olac.ckks.parameters import Parameters
from olac.errors import ArtifactError
from olac.system.files import MAGIC as MAGIC
from olac.system.files import SECRET_KEY as SECRET_KEY
from olac.system.files import Reader, Source
from olac.system.formats import FRAMES

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

EVALUATION_KEYS = "evaluation-keys"
INPUT = "input"
RESULT = "result"
CHECKPOINT = "checkpoint"
PUBLIC_KEY = "public-key"
KINDS = (SECRET_KEY, PUBLIC_KEY, EVALUATION_KEYS, INPUT, RESULT, CHECKPOINT)

PREFIX = struct.Struct("<4sH16sIQ")
DIGEST_BYTES = hashlib.sha256().digest_size
MAX_HEADER_BYTES = 1 << 20
CHUNK = 1 << 20
WITHOUT_LEVELS = 2
"""The last version in which keys belonged to one program, which decided up to which level they reach."""


class Named(Protocol):
    """A program, or what a client knows of it."""

    @property
    def parameters(self) -> Parameters:
        """Those that it runs with."""

    @property
    def fingerprint(self) -> str:
        """Of all that it computes."""


Owner = Named | Parameters
"""What a frame belongs to: ciphertexts to a program, keys to parameters."""


def parameter_fingerprint(parameters: Parameters) -> str:
    """SHA-256 of one set of parameters."""
    return hashlib.sha256(json.dumps(parameters.fields(), sort_keys=True).encode()).hexdigest()


def kind_of(path: str | Path) -> str:
    """The kind that a file says it is of; empty if it is no frame. ArtifactError if it does not exist."""
    with Source.of_file(path).open() as stream:
        start = stream.read(PREFIX.size)
    if len(start) < PREFIX.size or start[: len(MAGIC)] != MAGIC:
        return ""
    _, _, kind, _, _ = PREFIX.unpack(start)
    return str(kind.rstrip(b"\0").decode("ascii", "replace"))


@dataclass(frozen=True)
class Header:
    """The checked beginning of a frame.

    Attributes:
        source: where it was read.
        kind: the kind of the frame.
        version: of the format.
        fields: the fingerprints, and further fields of the kind.
        start: the bytes that it was read from, from the magic to the end of the JSON.
        payload_bytes: the bytes between it and the hash.
    """

    source: Source
    kind: str
    version: int
    fields: dict[str, Any]
    start: bytes
    payload_bytes: int

    def error(self, problem: str, advice: str) -> ArtifactError:
        """An error that names the source."""
        return ArtifactError(f"{self.source.name} ({self.kind}): {problem}. {advice}")

    def names(self, error: ArtifactError) -> bool:
        """Whether an error names the source already."""
        return str(error).startswith(self.source.name)

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Errors that are raised within, by checks that do not know the source, name it."""
        try:
            yield
        except ArtifactError as error:
            if self.names(error):
                raise
            raise self.error(str(error), "Nothing of it was used: get it again from who made it.") from error

    def _expect(self, name: str, right: bool, expected: str) -> None:
        if not right:
            raise self.error(f"the header says {name} = {_short(self.fields.get(name))}, expected {expected}", DAMAGED)

    def integer(self, name: str, low: int, high: int) -> int:
        """The field as an integer within [low, high]."""
        value: Any = self.fields.get(name)
        self._expect(name, type(value) is int and low <= value <= high, f"an integer in {low} ... {high}")
        return int(value)

    def integers(self, name: str) -> tuple[int, ...]:
        """The field as integers."""
        value: Any = self.fields.get(name)
        self._expect(name, type(value) is list and all(type(v) is int for v in value), "a list of integers")
        return tuple(value)

    def flag(self, name: str) -> bool:
        """The field as true or false."""
        value: Any = self.fields.get(name)
        self._expect(name, type(value) is bool, "true or false")
        return bool(value)

    def identity(self, name: str) -> str:
        """The field as 32 hexadecimal digits."""
        value: Any = self.fields.get(name)
        right = type(value) is str and len(value) == 32 and not set(value) - set("0123456789abcdef")
        self._expect(name, right, "32 hexadecimal digits")
        return str(value)

    def expect(self, name: str, fingerprint: str) -> None:
        """Raise `ArtifactError` unless the field is that fingerprint, of what the frame belongs to."""
        if self.fields.get(name) != fingerprint:
            raise self.error(
                f"it belongs to {name} {_short(self.fields.get(name))}, expected {fingerprint[:16]}...",
                "Use the program file that it was made for, or make it anew.",
            )

    def expect_payload(self, size: int) -> None:
        """Raise `ArtifactError` unless the payload has `size` bytes."""
        if self.payload_bytes != size:
            raise self.error(f"the payload has {self.payload_bytes} bytes, expected {size}", DAMAGED)


DAMAGED = "The file was damaged or not written by olac: get it again from who made it."


@dataclass(frozen=True)
class Part:
    """A part of a payload whose hash was right; it can be read again at any time, by any thread.

    The state of SHA-256 before the part is kept, so a part is checked alone against what was checked first.

    Attributes:
        start, size: its offset in the whole frame, and its bytes.
        before: SHA-256 of all that comes before it.
        after: the digest of that and the part.
    """

    start: int
    size: int
    before: Hash
    after: bytes

    def pieces(self, reader: Reader, buffer: memoryview) -> Iterator[memoryview]:
        """The part in pieces as large as the buffer. Each piece is in the buffer until the next is asked for.

        None of it may be used before the iteration has ended, as the hash is compared then.

        Raises:
            ArtifactError: the part is gone or, at the end, is not what it was. The error names no file.
        """
        digest = self.before.copy()
        for at in range(0, self.size, len(buffer)):
            piece = buffer[: min(len(buffer), self.size - at)]
            found = reader.read_into(piece, self.start + at)
            if found != len(piece):
                raise ArtifactError(f"it ends {len(piece) - found} bytes early, which it did not when it was opened")
            digest.update(piece)
            yield piece
        if digest.digest() != self.after:
            raise ArtifactError(f"the SHA-256 up to byte {self.start + self.size} is another than when it was opened")


class Payload:
    """A payload that is being read, from the same open file as its header, and the hash so far.

    Attributes:
        header: as it was read from the stream.
        stream: the open file, at first at the end of the header.
    """

    def __init__(self, header: Header, stream: BinaryIO) -> None:
        self.header = header
        self.stream = stream
        self._digest = hashlib.sha256(header.start)
        self._left = header.payload_bytes
        self._at = len(header.start)

    def read(self, size: int) -> bytes:
        """The next `size` bytes."""
        data = self.stream.read(size)
        self._take(data, size)
        return data

    def _take(self, data: bytes | memoryview, size: int) -> None:
        if size > self._left or len(data) != size:
            raise self.header.error(f"it ends {size - len(data)} bytes early", DAMAGED)
        self._left -= size
        self._at += size
        self._digest.update(data)

    def read_part(self, size: int) -> tuple[bytes, Part]:
        """The next `size` bytes, and where they are; the part may be read again after `finish`."""
        start, before = self._at, self._digest.copy()
        data = self.read(size)
        return data, Part(start, size, before, self._digest.digest())

    def parts(self, sizes: Iterable[int]) -> tuple[Part, ...]:
        """Read everything once and compare the hash; the parts of these sizes, which are all of the payload."""
        buffer, parts = memoryview(bytearray(CHUNK)), []
        for size in sizes:
            start, before, left = self._at, self._digest.copy(), size
            while left:
                piece = buffer[: min(CHUNK, left)]
                found = self.stream.readinto(piece)  # type: ignore[attr-defined]
                self._take(piece[:found], len(piece))
                left -= len(piece)
            parts.append(Part(start, size, before, self._digest.digest()))
        self.finish()
        return tuple(parts)

    def finish(self) -> None:
        """Compare the hash; only after the whole payload."""
        found = self.stream.read(DIGEST_BYTES)
        if self._left or found != self._digest.digest():
            raise self.header.error(
                f"its SHA-256 is {self._digest.hexdigest()[:16]}..., it claims {found.hex()[:16]}...", DAMAGED
            )


@contextmanager
def open_frame(source: Source, kind: str, owner: Owner) -> Iterator[Payload]:
    """Parse the beginning of a frame and check all that can be checked without the payload, which is read next.

    The source is opened once: a file that replaces it in the meantime is not read at all. The hash of the whole frame
    is checked when all of the payload was read.

    Args:
        owner: what the frame has to belong to: a program, or for keys parameters.

    Raises:
        ArtifactError: another kind of file, a newer version, another owner, or a wrong length.
    """
    with source.open() as stream:
        yield Payload(_read_header(source, stream, kind, owner), stream)


def _read_header(source: Source, stream: BinaryIO, kind: str, owner: Owner) -> Header:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    shortest = PREFIX.size + DIGEST_BYTES
    prefix = stream.read(PREFIX.size)
    if prefix[: len(MAGIC)] != MAGIC:
        raise ArtifactError(
            f"{source.name}: not a file of kind {kind!r} (it begins with {prefix[:4]!r}, expected {MAGIC!r}). "
            "Check that the right file was given."
        )
    if size < shortest:
        raise ArtifactError(f"{source.name}: {size} bytes are too few for a {kind}. {DAMAGED}")
    _, version, raw_kind, header_bytes, payload_bytes = PREFIX.unpack(prefix)
    found = raw_kind.rstrip(b"\0").decode("ascii", "replace")
    FRAMES.check(version, source.name)
    if found != kind:
        what = f"it is of kind {found!r}" if found in KINDS else f"its kind {found!r} is unknown"
        raise ArtifactError(f"{source.name}: {what}, expected {kind!r}. Check that the right file was given.")
    if header_bytes > MAX_HEADER_BYTES or size != shortest + header_bytes + payload_bytes:
        raise ArtifactError(
            f"{source.name} ({kind}): it has {size} bytes, its header says "
            f"{shortest + header_bytes + payload_bytes}. {DAMAGED}"
        )
    raw = stream.read(header_bytes)
    try:
        fields = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{source.name} ({kind}): its header is not JSON. {DAMAGED}") from error
    if not isinstance(fields, dict):
        raise ArtifactError(f"{source.name} ({kind}): its header is not an object. {DAMAGED}")
    header = Header(source, kind, version, fields, prefix + raw, payload_bytes)
    for name, fingerprint in _owner_fields(owner).items():
        header.expect(name, fingerprint)
    return header


def _owner_fields(owner: Owner) -> dict[str, str]:
    """The fields of a header that name what the frame belongs to."""
    if isinstance(owner, Parameters):
        return {"parameters": parameter_fingerprint(owner)}
    return {"parameters": parameter_fingerprint(owner.parameters), "program": owner.fingerprint}


def frame(
    kind: str,
    owner: Owner,
    fields: dict[str, Any],
    payload: Iterable[bytes | memoryview],
    payload_bytes: int,
) -> Iterator[bytes | memoryview]:
    """The bytes of a frame, in pieces; `payload` must give `payload_bytes` bytes in all."""
    full = {**_owner_fields(owner), **fields}
    header = json.dumps(full, sort_keys=True).encode()
    start = PREFIX.pack(MAGIC, FRAMES.current, kind.encode(), len(header), payload_bytes) + header
    digest = hashlib.sha256(start)
    yield start
    written = 0
    for piece in payload:
        digest.update(piece)
        written += len(piece)
        yield piece
    if written != payload_bytes:
        raise AssertionError(f"a {kind} of {written} bytes was announced with {payload_bytes}")
    yield digest.digest()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:36] + "..." + text[-1]
