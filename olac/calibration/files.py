"""Calibrations as files: one safetensors file with the arrays as tensors and the rest as a JSON manifest.

As with programs, everything in a file is checked. A calibration holds images: treat it as private data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from olac.calibration.histogram import BINS, Histogram
from olac.errors import ArtifactError
from olac.ir.types import Range
from olac.system.files import Source, check_writable, write_file
from olac.system.formats import CALIBRATIONS
from olac.system.memory import memory_for
from olac.system.tensors import TensorFiles, Tensors

FILES = TensorFiles("calibration", CALIBRATIONS, writer="Calibration.save", hashes_tensors=True)
MAX_INTEGER = 1 << 52

_PARTS = ("low", "high", "sums", "squares")
_TYPES: dict[str, np.dtype[Any]] = {
    "ranges": np.dtype("<f8"),
    "held_out": np.dtype("<f8"),
    "held_out_outputs": np.dtype("<f8"),
    "sample": np.dtype("<f4"),
    "counts": np.dtype("<i8"),
    "exponents": np.dtype("<i8"),
    "channel_ranges": np.dtype("<f8"),
    **{part: np.dtype("<f8") for part in _PARTS},
}
_LATER = {"channel_ranges"}
"""Files of version 1 lack this tensor, and "channels" in the manifest."""


@memory_for("saving the calibration")
def save_fields(calibration: Mapping[str, Any], path: Path) -> None:
    """Write the fields of a calibration to one file that only its owner may read; the file is complete or absent.

    Raises:
        ArtifactError: the file can't be written.
        InfeasibleError: memory ran out.
    """
    check_writable(path)
    histograms, ranges = calibration["histograms"], calibration["ranges"]
    arrays: dict[str, Any] = {
        "ranges": [[seen.low, seen.high] for seen in ranges.values()],
        "held_out": calibration["held_out"],
        "held_out_outputs": calibration["held_out_outputs"],
        "sample": calibration["sample"],
        "counts": _joined([h.counts for h in histograms.values()], BINS),
        "exponents": _joined([h.exponents for h in histograms.values()]),
        "channel_ranges": _joined(list(calibration["channels"].values()), 2),
        **{part: _joined([getattr(h, part) for h in histograms.values()]) for part in _PARTS},
    }
    tensors = {name: np.asarray(array, dtype=_TYPES[name], order="C") for name, array in arrays.items()}
    manifest = json.dumps(
        {
            "images": calibration["images"],
            "sample_every": calibration["sample_every"],
            "fingerprint": calibration["fingerprint"],
            "nodes": list(ranges),
            "activations": {name: histogram.channels for name, histogram in histograms.items()},
            "channels": {name: len(seen) for name, seen in calibration["channels"].items()},
        }
    )
    data = FILES.pack(manifest, tensors)
    write_file(path, [data], private=True, size=len(data))


@memory_for("loading the calibration")
def load_fields(path: Path) -> dict[str, Any]:
    """Read a calibration and check all of it; returns its fields by name.

    Raises:
        InfeasibleError: memory ran out.
        ArtifactError: the file is missing, damaged, of another kind or version, or its numbers don't fit together.
    """
    source = Source.of_file(path)
    _, manifest, arrays = FILES.read(source)
    try:
        return _fields(manifest, arrays)
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise ArtifactError(f"{source.name}: not a valid calibration: {error}. {CALIBRATIONS.remake}") from error


def _joined(parts: list[npt.NDArray[Any]], *shape: int) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros((0, *shape))


def _integer(value: Any, name: str, low: int, high: int = MAX_INTEGER) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} = {str(value)[:20]} is not an integer in {low} ... {high}")
    return value


def _fields(manifest: dict[str, Any], arrays: Tensors) -> dict[str, Any]:
    if arrays.keys() | _LATER != _TYPES.keys():
        raise ValueError(f"tensors {sorted((arrays.keys() | _LATER) ^ _TYPES.keys())[:5]} are missing or too many")
    for name, array in arrays.items():
        if array.dtype != _TYPES[name]:
            raise ValueError(f"{name} is of type {array.dtype}, expected {_TYPES[name]}")
    wanted = {"images", "sample_every", "fingerprint", "nodes", "activations", "channels"}
    if {*manifest, "channels"} != wanted or ("channels" in manifest) != ("channel_ranges" in arrays):
        raise ValueError(f"the manifest does not have the parts {sorted(wanted)}")
    nodes, channels, fingerprint = manifest["nodes"], manifest["activations"], manifest["fingerprint"]
    if not isinstance(nodes, list) or not all(isinstance(node, str) for node in nodes) or len(set(nodes)) < len(nodes):
        raise ValueError("nodes is not a list of different names")
    if not isinstance(channels, dict) or not set(channels) <= set(nodes):
        raise ValueError("activations is not an object with names among the nodes")
    if (
        not isinstance(fingerprint, str)
        or len(fingerprint) not in (0, 64)
        or set(fingerprint) - set("0123456789abcdef")
    ):
        raise ValueError("fingerprint is not a SHA-256")
    counts = manifest.get("channels", {})
    if not isinstance(counts, dict) or not set(counts) <= set(nodes):
        raise ValueError("channels is not an object with names among the nodes")
    every = _integer(manifest["sample_every"], "sample_every", 1)
    if every & (every - 1):
        raise ValueError(f"sample_every = {every} is not a power of two")
    _check_shapes(arrays, len(nodes), *(_total(each) for each in (channels, counts)))
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinite values")
    by_channel, start = {}, 0
    for name, count in counts.items():
        by_channel[name] = arrays["channel_ranges"][start : start + count]
        start += count
        if np.any(by_channel[name][:, 0] > by_channel[name][:, 1]):
            raise ValueError(f"{name} has channels whose range is empty")
    histograms, start = {}, 0
    for name, count in channels.items():
        rows = slice(start, start + count)
        start += count
        histograms[name] = Histogram.of(
            arrays["counts"][rows], arrays["exponents"][rows], *(arrays[part][rows] for part in _PARTS)
        )
    return {
        "images": _integer(manifest["images"], "images", 1),
        "histograms": histograms,
        "ranges": {
            node: Range(float(low), float(high)) for node, (low, high) in zip(nodes, arrays["ranges"], strict=True)
        },
        "held_out": arrays["held_out"],
        "held_out_outputs": arrays["held_out_outputs"],
        "sample": arrays["sample"],
        "sample_every": every,
        "fingerprint": fingerprint,
        "channels": by_channel,
    }


def _total(channels: Mapping[str, Any]) -> int:
    return sum(_integer(count, "channels", 1, 1 << 24) for count in channels.values())


def _check_shapes(arrays: Tensors, nodes: int, channels: int, by_channel: int) -> None:
    """Check shapes, before memory is allocated by them."""
    shapes = {name: array.shape for name, array in arrays.items()}
    expected = {"ranges": (nodes, 2), "counts": (channels, BINS), "exponents": (channels,)}
    if "channel_ranges" in arrays:
        expected["channel_ranges"] = (by_channel, 2)
    for name, shape in (expected | dict.fromkeys(_PARTS, (channels,))).items():
        if shapes[name] != shape:
            raise ValueError(f"{name} has the shape {shapes[name]}, expected {shape}")
    held, outputs, sample = shapes["held_out"], shapes["held_out_outputs"], shapes["sample"]
    if len(held) < 2 or len(outputs) < 1 or held[0] < 1 or held[0] != outputs[0] or 0 in (*held, *outputs):
        raise ValueError(f"{held} held-out inputs with outputs {outputs}")
    if sample[0:1] != (0,) and (len(sample) < 2 or sample[1:] != held[1:]):
        raise ValueError(f"a sample of shape {sample} beside held-out inputs of shape {held}")
