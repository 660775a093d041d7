"""The state of a reconstruction as a file, so that one that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from olac.approximation.steps import Numbers
from olac.errors import ArtifactError
from olac.ir.graph import Graph
from olac.system.files import Source, write_file
from olac.system.formats import FITS
from olac.system.tensors import TensorFiles

Tensor = torch.Tensor

FILES = TensorFiles("fit", FITS, writer="a fit with checkpoint=", hashes_tensors=True)


@dataclass(frozen=True)
class Checkpoint:
    """The state of one reconstruction, in a file that only its owner may read: it holds weights of the model."""

    path: Path

    @staticmethod
    def of(
        folder: Path, graphs: tuple[Graph, ...], images: tuple[Tensor, ...], settings: Mapping[str, Any]
    ) -> Checkpoint:
        """The file in a folder for a fit of these graphs on these images; another fit has another file."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for graph in graphs:
            digest.update(repr(graph.nodes).encode())
            for name, array in sorted(graph.constants.items()):
                digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        for part in images:
            digest.update(f"{tuple(part.shape)}".encode())
            digest.update(np.ascontiguousarray(part.numpy()).data)
        return Checkpoint(folder / f"fit-{digest.hexdigest()[:16]}.safetensors")

    def save(self, state: tuple[Numbers, dict[str, Tensor]]) -> None:
        """Replace the file; ArtifactError if it can't be written."""
        numbers, tensors = state
        arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tensors.items()}
        data = FILES.pack(json.dumps(numbers), arrays)
        write_file(self.path, [data], private=True, size=len(data))

    def load(self) -> tuple[Numbers, dict[str, Tensor]] | None:
        """The state in the file, or None if there is no file. ArtifactError if the file is damaged."""
        if not self.path.exists():
            return None
        with self.checking():
            _, manifest, arrays = FILES.read(Source.of_file(self.path))
            numbers = {name: float(value) for name, value in manifest.items()}
            if not all(math.isfinite(value) and value >= 0 for value in numbers.values()):
                raise ValueError("a number is negative or not finite")
            return numbers, {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Raises ArtifactError for a state that does not fit."""
        try:
            yield
        except (ArtifactError, ValueError, TypeError, LookupError, RuntimeError) as error:
            text = str(error).rstrip(".")
            raise ArtifactError(f"{self.path}: {text}. Delete it: the fit then begins anew.") from error
