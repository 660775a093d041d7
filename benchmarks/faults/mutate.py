"""Mutations of files: blind ones of bytes, and informed ones, which correct lengths and hashes."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from olac.calibration import files as calibrations
from olac.program import artifact
from olac.runtime.envelope import DIGEST_BYTES, PREFIX

Random = np.random.Generator

NESTED = "@nested@"
HUGE = "@huge@"
RAW = {f'"{NESTED}"': "[" * 50_000 + "]" * 50_000, f'"{HUGE}"': "9" * 3_000}
"""JSON that `json.dumps` would not write."""

POISON: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 255, 1 << 16, 1 << 31, (1 << 53) + 1, 1 << 63, (1 << 64) - 1, -(1 << 63),
    10**40,
    0.0, 0.5, 1.0, -0.0, 1e-300, 1e300, -1e300, float("nan"), float("inf"), float("-inf"),
    "", "x", "0", "nan", "x" * 20_000, "\0", "a\nb", "[bold red]\x1b[31m", "../../etc/passwd", "\ud800", "ä",
    [], {}, [[]], [None], [0] * 1000, {"": 0}, NESTED, HUGE,
)  # fmt: skip
"""Values that no reader expects."""


@dataclass(frozen=True)
class Mutated:
    """The bytes of a file after a mutation.

    Attributes:
        forged: whether hashes were corrected, as in an attack that puts in other content.
    """

    data: bytes
    forged: bool
    what: str


# Bytes ---------------------------------------------------------------------------------------------------------------


def blind(random: Random, data: bytes) -> Mutated:
    """Damage as by a disk, a connection, or a program that doesn't know the format."""
    which = int(random.integers(10))
    size = len(data)
    # Headers are short and payloads long: half of the positions are at the beginning.
    at = int(random.integers(max(1, size if random.random() < 0.5 else min(size, 2048))))
    length = int(2 ** random.uniform(0, np.log2(max(2, size))))
    piece = data[at : at + length]
    junk = random.bytes(min(length, 4096))
    out = bytearray(data)
    if which <= 2:
        for _ in range(int(random.integers(1, 9)) if which else 1):
            place = (at + int(random.integers(64))) % size
            out[place] ^= 1 << int(random.integers(8))
        what = "bits flipped"
    elif which == 3:
        out[at : at + length] = bytes([int(random.choice([0, 255, 32]))]) * len(piece)
        what = "overwritten"
    elif which == 4:
        out, what = bytearray(data[:at]), "cut short"
    elif which == 5:
        out += [junk, bytes(length), piece, data][int(random.integers(4))]
        what = "longer"
    elif which == 6:
        del out[at : at + length]
        what = "a piece is missing"
    elif which == 7:
        out[at:at] = piece if random.random() < 0.5 else junk
        what = "a piece is added"
    elif which == 8:
        there = int(random.integers(size))
        low, high = sorted((at, there))
        out = bytearray(data[:low] + data[high:] + data[low:high])
        what = "pieces swapped"
    else:
        out, what = bytearray([b"", bytes(size), junk, b"OLAC", b"{}", b"\x93NUMPY"][int(random.integers(6))]), "other"
    return Mutated(bytes(out), False, f"{what} at {at}, {length}")


# JSON ----------------------------------------------------------------------------------------------------------------


def changed_json(random: Random, value: Any) -> tuple[str, str]:
    """The text of a JSON value with one to three changes, and what they are."""
    value = json.loads(json.dumps(value))
    said = []
    for _ in range(int(random.choice([1, 1, 1, 2, 3]))):
        value, what = _changed(random, value)
        said.append(what)
    text = json.dumps(value)
    for mark, raw in RAW.items():
        text = text.replace(mark, raw)
    if random.random() < 0.03 and text.startswith("{") and len(text) > 2:  # a key twice
        text = "{" + text[1:-1] + ", " + text[1:]
        said.append("every key twice")
    return text, "; ".join(said)


def _changed(random: Random, root: Any) -> tuple[Any, str]:
    places: list[tuple[Any, Any, str]] = []

    def walk(parent: Any, name: str) -> None:
        items = parent.items() if isinstance(parent, dict) else enumerate(parent) if isinstance(parent, list) else ()
        for key, child in items:
            places.append((parent, key, f"{name}.{key}"[-80:]))
            walk(child, f"{name}.{key}")

    walk(root, "")
    if not places or random.random() < 0.02:
        poison = POISON[int(random.integers(len(POISON)))]
        return poison, f"the whole is {repr(poison)[:30]}"
    parent, key, name = places[int(random.integers(len(places)))]
    old = parent[key]
    which = int(random.integers(8))
    if which == 0 and isinstance(parent, dict):
        del parent[key]
        return root, f"{name} is missing"
    if which == 1 and isinstance(parent, dict):
        parent[str(POISON[int(random.integers(len(POISON)))])[:100]] = old
        return root, f"a name beside {name}"
    if which <= 1:
        parent.insert(key, old) if random.random() < 0.5 else parent.pop(key)
        return root, f"{name} twice or not at all"
    if which == 2 and len(places) > 1:
        other, place, there = places[int(random.integers(len(places)))]
        if isinstance(other, dict) and not isinstance(other.get(place), (dict, list)):
            parent[key], other[place] = other[place], old
            return json.loads(json.dumps(root)), f"{name} and {there} swapped"
    if which <= 4 and type(old) in (int, float):
        with np.errstate(all="ignore"):
            near = [old + 1, old - 1, -old, old * 2, old // 2, old * 1.0000001, old + 0.5, old * 1e6, float(old)]
        parent[key] = near[int(random.integers(len(near)))]
        return root, f"{name} is {parent[key]!r} in place of {old!r}"
    parent[key] = POISON[int(random.integers(len(POISON)))]
    return root, f"{name} is {repr(parent[key])[:30]}"


# Frames --------------------------------------------------------------------------------------------------------------


def frame(random: Random, data: bytes) -> Mutated:
    """A key or ciphertext file with corrected lengths and hash."""
    magic, version, kind, header_bytes, _ = PREFIX.unpack(data[: PREFIX.size])
    header = data[PREFIX.size : PREFIX.size + header_bytes]
    payload = data[PREFIX.size + header_bytes : -DIGEST_BYTES]
    forged, which = False, int(random.integers(8))
    if which <= 4:
        text, what = changed_json(random, json.loads(header))
        header = text.encode("utf-8", "surrogatepass")
    elif which == 5:
        payload, what = _words(random, payload)
        forged = True
    elif which == 6:
        version, what = int(random.integers(1 << 16)), "version"
    else:
        header, what = _text(random, header), "text of the header"
    lengths = [len(header), len(payload)]
    if random.random() < 0.05:
        lengths[int(random.integers(2))] = int(random.choice([0, 1, 1 << 20, (1 << 31) - 1]))
        what += ", lengths"
    start = PREFIX.pack(magic, version, kind, *lengths) + header + payload
    return Mutated(start + hashlib.sha256(start).digest(), forged, what)


def _text(random: Random, header: bytes) -> bytes:
    choices = [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b'{"program": 1e999}', header[:-1], header + b" {}"]
    choices += [b"[" * 200_000, b" " * 100_000 + header, header.decode().encode("utf-16"), b"\xef\xbb\xbf" + header]
    return choices[int(random.integers(len(choices)))]


def _words(random: Random, payload: bytes) -> tuple[bytes, str]:
    words = np.frombuffer(payload, "<u8").copy()
    size = len(words)
    at, length = int(random.integers(size)), int(2 ** random.uniform(0, np.log2(size)))
    which = int(random.integers(7))
    if which == 0:
        words[at : at + length] = 0
    elif which == 1:
        words[at] = random.integers(1 << 63, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    elif which == 2:
        words[at : at + length] = np.uint64((1 << 64) - 1)
    elif which == 3:
        words[at] ^= np.uint64(1)
    elif which == 4:
        words = np.roll(words, length)
    elif which == 5:
        words = words[: size - min(length, size - 1)]
    else:
        words = np.concatenate([words, words[:length]])
    return words.tobytes(), f"words ({which}) at {at}, {length}"


# Programs and calibrations -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sections:
    """The parts of a safetensors file."""

    header: dict[str, Any]
    data: bytes

    @staticmethod
    def of(raw: bytes) -> Sections:
        """The header as JSON and the data after it."""
        length = int.from_bytes(raw[:8], "little")
        return Sections(json.loads(raw[8 : 8 + length]), raw[8 + length :])

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """All arrays."""
        kinds = {"F64": "<f8", "F32": "<f4", "I64": "<i8"}
        out = {}
        for name, about in self.header.items():
            if name != "__metadata__":
                low, high = about["data_offsets"]
                out[name] = np.frombuffer(self.data[low:high], kinds[about["dtype"]]).reshape(about["shape"])
        return out


def joined(header: str, data: bytes) -> bytes:
    """A safetensors file with the text of its header and the data."""
    raw = header.encode("utf-8", "surrogatepass")
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + data


def program(random: Random, raw: bytes) -> Mutated:
    """A program's file with corrected hashes, and usually with a corrected fingerprint."""
    return _safetensors(random, raw, artifact.FILES.entry, _program_entry)


def calibration(random: Random, raw: bytes) -> Mutated:
    """A calibration's file with a corrected hash."""
    return _safetensors(random, raw, calibrations.FILES.entry, _calibration_entry)


Entry = Callable[[Random, dict[str, Any], str, dict[str, np.ndarray[Any, Any]]], str]


def _safetensors(random: Random, raw: bytes, name: str, entry: Entry) -> Mutated:
    parts = Sections.of(raw)
    outer = json.loads(parts.header["__metadata__"][name])
    tensors, data, forged = parts.tensors(), parts.data, True
    which = int(random.integers(10))
    manifest, what = outer["manifest"], ""
    if which <= 5:
        manifest, what = changed_json(random, json.loads(manifest))
    elif which <= 7:
        victim = str(random.choice(sorted(tensors)))
        low, high = parts.header[victim]["data_offsets"]
        data, what = _numbers(random, parts, victim, low, high)
    else:
        header = {key: value for key, value in parts.header.items() if key != "__metadata__"}
        text, what = changed_json(random, header if which == 8 else outer)
        if which == 8:
            text = text[:1] + json.dumps({"__metadata__": parts.header["__metadata__"]})[1:-1] + ", " + text[1:]
            return Mutated(joined(text, data), forged, f"tensors: {what}")
        return Mutated(
            joined(json.dumps({**parts.header, "__metadata__": {name: text}}), data), forged, f"metadata: {what}"
        )
    tensors = Sections(parts.header, data).tensors()
    text = entry(random, outer, manifest, tensors)
    return Mutated(joined(json.dumps({**parts.header, "__metadata__": {name: text}}), data), forged, what)


def _numbers(random: Random, parts: Sections, victim: str, low: int, high: int) -> tuple[bytes, str]:
    values = parts.tensors()[victim].copy().reshape(-1)
    if not len(values):
        return parts.data, f"nothing in {victim}"
    at = int(random.integers(len(values)))
    choices: list[float] = [0, 1, -1, 0.5, 1e300, -1e300, 1e-300, float("nan"), float("inf"), 1e6, 2.0**52]
    number = choices[int(random.integers(len(choices)))]
    some = slice(None) if random.random() < 0.3 else slice(at, at + int(random.integers(1, 4)))
    with np.errstate(all="ignore"):
        if values.dtype.kind == "i":
            values[some] = int(np.clip(np.nan_to_num(number), -(2**62), 2**62))
        else:
            values[some] = values[some] * 3 if random.random() < 0.2 else number
    return parts.data[:low] + values.tobytes() + parts.data[high:], f"{victim} {some} is {number}"


def _program_entry(
    random: Random, outer: dict[str, Any], manifest: str, tensors: dict[str, np.ndarray[Any, Any]]
) -> str:
    if random.random() < 0.8:
        try:
            parsed = json.loads(manifest)
            parsed["fingerprint"] = artifact._program(parsed, tensors).fingerprint
            manifest = json.dumps(parsed)
        except Exception:  # unreadable content has no fingerprint
            pass
    digest = hashlib.sha256(manifest.encode("utf-8", "replace")).hexdigest()
    return json.dumps({**outer, "sha256": digest, "manifest": manifest})


def _calibration_entry(
    random: Random, outer: dict[str, Any], manifest: str, tensors: dict[str, np.ndarray[Any, Any]]
) -> str:
    try:
        digest = calibrations.FILES.digest(manifest, tensors)
    except UnicodeEncodeError:
        digest = ""
    return json.dumps({**outer, "sha256": digest, "manifest": manifest})


def npy(random: Random, data: bytes) -> Mutated:
    """A .npy file with another header."""
    length = struct.unpack("<H", data[8:10])[0]
    header, body = data[10 : 10 + length].decode(), data[10 + length :]
    shape, kind = header[header.index("(") : header.index(")") + 1], "'<f8'"
    shapes = [
        "()",
        "(-1,)",
        "(0,)",
        "(1 << 40,)",
        "(4, 1000000000000)",
        "(4.0,)",
        "'4'",
        "None",
        "((((",
        "(4,",
        "(1e400,)",
    ]
    shapes += ["(" * 3000, f"({'9' * 5000},)", "(True, 4)", "(4, 1)", "(2, 2)", "(1, 4)", "(4, 10**9)"]
    kinds = [
        "'O'",
        "'<c16'",
        "'S8'",
        "'<U2'",
        "'<M8[s]'",
        "'<i8'",
        "'?'",
        "'>f8'",
        "'<f2'",
        "'|V8'",
        "[('a', '<f8')]",
        "7",
    ]
    kinds += ["'<f16'", "'<m8'", "'" + "x" * 9000 + "'", "None", "['<f8']", "'<u8'", "('<f8', (1000000,))", "'\\x00'"]
    which = int(random.integers(4))
    if which == 0:
        header = header.replace(shape, shapes[int(random.integers(len(shapes)))])
    elif which == 1:
        header = header.replace(kind, kinds[int(random.integers(len(kinds)))])
    elif which == 2:
        at = int(random.integers(len(header)))
        header = header[:at] + chr(int(random.integers(1, 255))) + header[at + int(random.integers(3)) :]
    else:
        header = ["", "{", "{}", "os.system('x')", "[" * 9000, header * 2, "\0" * 60, "{'descr': {}}"][
            int(random.integers(8))
        ]
    major, minor = (int(random.integers(5)), 0) if random.random() < 0.2 else (1, 0)
    raw = header.encode("latin1")
    size = struct.pack("<H", min(len(raw), 65535)) if major in (0, 1) else struct.pack("<I", len(raw))
    return Mutated(data[:6] + bytes([major, minor]) + size + raw + body, True, header[:80])
