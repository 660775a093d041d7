"""Bodies of requests on their way to disk: in pieces, with a limit, hashed while they come, never held as a whole."""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import hashlib
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

PIECE = 1 << 20
"""Bytes that are written at a time."""
SILENT_SECONDS = 60.0
"""A client that sends nothing for so long is given up."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UploadError(Exception):
    """A body that is not taken.

    Attributes:
        status: of the answer.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Upload:
    """A complete body.

    Attributes:
        path: of a file, synced, which is deleted at the end of `receive` unless it was moved.
        bytes: its size.
        sha256: of all of it, 64 hexadecimal digits.
    """

    path: Path
    bytes: int
    sha256: str


@asynccontextmanager
async def receive(
    request: Request, path: Path, most: int, silent_seconds: float = SILENT_SECONDS
) -> AsyncIterator[Upload]:
    """Write the body of a request to a new file.

    Args:
        most: its bytes, at most.

    Raises:
        UploadError: it is longer, another one than its header Content-Digest says, or it stopped coming; or the disk is
            full.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise UploadError(413, f"the body has {announced} bytes, and at most {most} are taken here")
    wanted = _announced_digest(request)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            size, digest = await _write(request, handle, most, silent_seconds)
            if wanted is not None and wanted != digest:
                raise UploadError(422, "the body's SHA-256 is not the one of its header Content-Digest. Send it again.")
            await run_in_threadpool(os.fsync, handle)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise UploadError(507, "the server's disk is full. Try again later, or tell its operator.") from error
        finally:
            os.close(handle)
        yield Upload(path, size, digest.hex())
    finally:
        path.unlink(missing_ok=True)


async def _write(request: Request, handle: int, most: int, silent_seconds: float) -> tuple[int, bytes]:
    digest, size, held = hashlib.sha256(), 0, bytearray()

    def flush() -> None:
        digest.update(held)
        done = 0
        while done < len(held):
            done += os.write(handle, memoryview(held)[done:])

    pieces = aiter_of(request)
    while True:
        try:
            piece = await asyncio.wait_for(pieces.__anext__(), silent_seconds)
        except StopAsyncIteration:
            break
        except asyncio.TimeoutError:
            raise UploadError(408, f"nothing came for {silent_seconds:.0f} s. Send it again.") from None
        except ClientDisconnect:
            raise UploadError(400, "the body broke off. Send it again.") from None
        size += len(piece)
        if size > most:
            raise UploadError(413, f"the body has more than the {most} bytes that are taken here")
        held += piece
        if len(held) >= PIECE:
            await run_in_threadpool(flush)
            held = bytearray()
    await run_in_threadpool(flush)
    return size, digest.digest()


def aiter_of(request: Request) -> AsyncIterator[bytes]:
    """The pieces of a body."""
    return request.stream().__aiter__()


async def discard(request: Request, most: int) -> None:
    """Read a body that is not taken, so that the client gets the answer in place of a broken connection."""
    announced = request.headers.get("content-length", "")
    if not announced.isdecimal() or int(announced) > most:
        return
    pieces = aiter_of(request)
    try:
        while True:
            await asyncio.wait_for(pieces.__anext__(), SILENT_SECONDS)
    except (StopAsyncIteration, asyncio.TimeoutError, ClientDisconnect):
        return


def content_digest(sha256: bytes) -> str:
    """The value of a header Content-Digest (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(sha256).decode()}:"


def _announced_digest(request: Request) -> bytes | None:
    header = request.headers.get("content-digest")
    if header is None:
        return None
    found = re.search(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/=]*):", header)
    try:
        digest = base64.b64decode(found[1], validate=True) if found else b""
    except binascii.Error:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise UploadError(400, "the header Content-Digest holds no sha-256: sha-256=:BASE64: is its form (RFC 9530)")
    return digest


__all__ = ["Upload", "UploadError", "content_digest", "discard", "receive"]
