"""Tensor files: safetensors files whose metadata holds a JSON manifest. Nothing in a file is executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from olac.errors import ArtifactError
from olac.system.files import MAGIC, Source
from olac.system.formats import Versions

MAX_HEADER_BYTES = 100_000_000
Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class TensorFiles:
    """One kind of tensor files.

    Attributes:
        kind: its name in the metadata and in messages.
        versions: those that are written and read.
        writer: the method that writes them, for messages.
        hashes_tensors: whether the hash in a file covers the tensors; it always covers the manifest.
    """

    kind: str
    versions: Versions
    writer: str
    hashes_tensors: bool

    @property
    def entry(self) -> str:
        """The key of the metadata's only entry. With several, safetensors would write equal files in any order."""
        return f"olac-{self.kind}"

    def pack(self, manifest: str, tensors: Tensors) -> bytes:
        """The content of a file; tensors must be contiguous."""
        from safetensors.numpy import save

        outer = {"version": self.versions.current, "sha256": self.digest(manifest, tensors), "manifest": manifest}
        data: bytes = save(tensors, metadata={self.entry: json.dumps(outer)})
        return data

    def digest(self, manifest: str, tensors: Tensors) -> str:
        """SHA-256 of the manifest, and of every tensor with its name, type and shape if the hash covers these."""
        digest = hashlib.sha256(manifest.encode())
        for name in sorted(tensors) if self.hashes_tensors else ():
            array = tensors[name]
            digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def read(self, source: Source) -> tuple[int, dict[str, Any], Tensors]:
        """The version, the manifest and the tensors, after a check of the version and the hash.

        Raises:
            ArtifactError: the file is damaged, of another kind or of a version that is not read.
        """
        from safetensors import SafetensorError

        with source.open() as stream:
            start = stream.read(8)
        if start[:4] == MAGIC:
            raise ArtifactError(
                f"{source.name}: it holds keys or ciphertexts, not a {self.kind} of olac. Give the {self.kind} file."
            )
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(MAX_HEADER_BYTES, source.size - 8):
            raise ArtifactError(
                f"{source.name}: not a {self.kind} of olac, or cut short ({source.size} bytes). "
                "Check the path, or get it again."
            )
        try:
            with _opened(source, length) as (metadata, load):
                if self.entry not in metadata:
                    raise ArtifactError(
                        f"{source.name}: a safetensors file, but not a {self.kind} of olac. "
                        f"Give a file that {self.writer} wrote."
                    )
                outer = _object(metadata[self.entry])
                self.versions.check(outer.get("version"), source.name)
                manifest, tensors = outer.get("manifest"), load()
                if not isinstance(manifest, str) or self.digest(manifest, tensors) != outer.get("sha256"):
                    raise ArtifactError(f"{source.name}: its hash is wrong: it was damaged or changed. Get it again.")
                return outer["version"], _object(manifest), tensors
        except (SafetensorError, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise ArtifactError(
                f"{source.name}: not a {self.kind} of olac, or damaged: {error}. Get it again."
            ) from error


@contextmanager
def _opened(source: Source, length: int) -> Iterator[tuple[Mapping[str, str], Callable[[], Tensors]]]:
    """The metadata of a file with a header of this length, and a function that reads its tensors."""
    from safetensors import safe_open
    from safetensors.numpy import load

    if source.path is None:
        # safetensors gives the tensors of bytes, but not their metadata.
        yield json.loads(source.data[8 : 8 + length]).get("__metadata__", {}), lambda: load(source.data)
    else:
        with safe_open(str(source.path), framework="np") as opened:
            yield opened.metadata() or {}, lambda: {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def _object(text: str) -> dict[str, Any]:
    parsed = json.loads(text)
    if not isinstance(parsed, dict):
        raise ValueError("its manifest is not an object")
    return parsed
