"""Coefficient words into and out of OpenFHE objects, without ever parsing bytes from outside.

OpenFHE's parser crashes, allocates without bound or accepts nonsense where bytes are hostile. So what travels between
processes is only coefficients: arrays of uint64 words. The receiver makes an object of the same kind itself, with a
key pair that it throws away, serialises it, and puts the received words, each checked to be less than its prime, in
place of its own. Every other byte that reaches the parser was written by this process.
"""

from __future__ import annotations

import functools
import re
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from olac.backends.openfhe.context import chain_of, make_context, make_small_context, set_up_bootstrapping
from olac.backends.openfhe.library import load
from olac.errors import ArtifactError, BackendError
from olac.parameters import Parameters

Words = npt.NDArray[np.uint64]
WORD_BYTES = 8
MAX_STRUCTURE_BYTES = 1 << 16
UNIFORM_BITS = 8
"""The largest of a block's words has at most so many bits less than the prime; by chance, less than 2^-1000."""
SPARE_STEP = 1
"""Step of the rotation key that templates are made from."""
TAG_PATTERN = re.compile(rb"[0-9a-f]{32}")


@dataclass(frozen=True)
class Template:
    """OpenFHE's bytes of one kind of object, with holes where the coefficient words go.

    Attributes:
        pieces: the bytes around the holes, one more than there are holes.
        primes: what the words of each hole must stay below.
        length: words in a hole.
        tag: the key tag that stands in the pieces.
    """

    pieces: tuple[bytes, ...]
    primes: tuple[int, ...]
    length: int
    tag: str

    def fill(self, words: Words, tag: str) -> bytes:
        """The bytes of an object with these words, shape (holes, length), under another key tag."""
        check_words(words, self.primes, self.length)
        raw = np.ascontiguousarray(words, dtype="<u8")
        old, new = self.tag.encode(), tag.encode()
        out: list[bytes | memoryview] = [self.pieces[0].replace(old, new)]
        for block, piece in zip(raw, self.pieces[1:], strict=True):
            out += [block.data, piece.replace(old, new)]
        return b"".join(out)


def check_words(words: Words, primes: Sequence[int], length: int) -> None:
    """Raise `ArtifactError` unless words have shape (primes, length) and could be residues of an encryption."""
    if words.shape != (len(primes), length):
        raise ArtifactError(f"coefficients of shape {words.shape}, expected {(len(primes), length)}")
    bounds = np.array(primes, dtype=np.uint64)
    highest = words.max(axis=1)
    wrong = np.flatnonzero(highest >= bounds)
    if len(wrong):
        raise ArtifactError(
            f"coefficients that are not less than their prime, in {len(wrong)} of {len(primes)} limbs: it was not "
            "made by olac, or for other parameters"
        )
    # Thousands of uniform words come close to their prime. All zeros, say, would be an encryption that hides nothing.
    if np.any(highest < bounds >> np.uint64(UNIFORM_BITS)):
        raise ArtifactError("coefficients that are not uniform: it is no encryption")


def holes(data: bytes, primes: Sequence[int], length: int) -> tuple[int, ...]:
    """Where the coefficients lie in bytes that OpenFHE made in this process: an offset for each of `primes`.

    A block is the number of words as 8 bytes and then the words, each less than its prime.
    """
    mark = length.to_bytes(WORD_BYTES, "little")
    out: list[int] = []
    at = 0
    while len(out) < len(primes):
        at = data.find(mark, at)
        start = at + WORD_BYTES
        if at < 0 or start + WORD_BYTES * length > len(data):
            raise BackendError(f"OpenFHE's bytes hold {len(out)} blocks of {length} words, expected {len(primes)}")
        words = np.frombuffer(data, "<u8", length, start)
        # The ring dimension itself stands in the bytes as well; what follows it is no block of residues.
        if int(words.max()) < primes[len(out)] and int(words.max()) >= primes[len(out)] >> UNIFORM_BITS:
            out.append(start)
            at = start + WORD_BYTES * length
        else:
            at += 1
    rest = len(data) - WORD_BYTES * length * len(primes)
    if rest > MAX_STRUCTURE_BYTES + 64 * len(primes):
        raise BackendError(f"OpenFHE's bytes hold {rest} more than the coefficients")
    return tuple(out)


def extract(data: bytes, primes: Sequence[int], length: int) -> Words:
    """The words, shape (primes, length), of bytes that OpenFHE made in this process."""
    offsets = holes(data, primes, length)
    return np.stack([np.frombuffer(data, "<u8", length, at) for at in offsets]).astype(np.uint64, copy=False)


def template(data: bytes, primes: Sequence[int], length: int, tag: str) -> Template:
    """A template from bytes that OpenFHE made in this process."""
    pieces, last = [], 0
    for at in holes(data, primes, length):
        pieces.append(data[last:at])
        last = at + WORD_BYTES * length
    pieces.append(data[last:])
    if not any(tag.encode() in piece for piece in pieces):
        raise BackendError("OpenFHE's bytes don't hold the key tag")
    return Template(tuple(pieces), tuple(primes), length, tag)


def new_tag() -> str:
    """A key tag that nobody outside this process knows: OpenFHE keeps all evaluation keys in one static map."""
    return secrets.token_hex(16)


class Wire:
    """Words of ciphertexts and keys for one set of parameters.

    Use `wire(parameters)`: it makes one for a process.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.context = make_context(parameters)
        self.length = parameters.ring_dimension
        self.key_primes = parameters.primes + parameters.special_primes
        self._fhe = load()
        self._templates: dict[str, Template] = {}
        self._ready_to_bootstrap = False

    def automorphism_index(self, step: int) -> int:
        """Where OpenFHE's maps hold the key of a rotation step, or of conjugation (`conjugation_step`)."""
        if step == self.parameters.conjugation_step:
            return 2 * self.parameters.ring_dimension - 1
        index: int = self.context.FindAutomorphismIndex(step)
        return index

    # Ciphertexts -----------------------------------------------------------------------------------------------------

    def ciphertext_words(self, ciphertext: Any, level: int) -> Words:
        """The words, shape (2, level + 1, N), of a ciphertext at a level of olac's."""
        primes = self.parameters.primes[: level + 1]
        data = self._fhe.Serialize(ciphertext, self._fhe.BINARY)
        return extract(data, primes * 2, self.length).reshape(2, level + 1, self.length)

    def ciphertext(self, words: Words, level: int, tag: str) -> Any:
        """A ciphertext of noise degree 1 and its level's canonical scale; words of shape (2, level + 1, N)."""
        data = self._ciphertext_template(level).fill(words.reshape(-1, self.length), tag)
        return self._fhe.DeserializeCiphertextString(data, self._fhe.BINARY)

    def _ciphertext_template(self, level: int) -> Template:
        name = f"ciphertext {level}"
        if name not in self._templates:
            zeros = [0.0] * self.parameters.slots
            plain = self.context.MakeCKKSPackedPlaintext(zeros, 1, self.parameters.depth - level)
            ciphertext = self.context.Encrypt(self._spare, plain)
            data = self._fhe.Serialize(ciphertext, self._fhe.BINARY)
            primes = self.parameters.primes[: level + 1] * 2
            self._templates[name] = template(data, primes, self.length, self._spare.GetKeyTag())
        return self._templates[name]

    # Secret keys -----------------------------------------------------------------------------------------------------

    def secret_key_words(self, key: Any) -> Words:
        """The words, shape (limbs, N), of a secret key."""
        return extract(self._fhe.Serialize(key, self._fhe.BINARY), self.parameters.primes, self.length)

    def secret_key(self, words: Words, tag: str) -> Any:
        """A secret key from words of shape (limbs, N)."""
        name = "secret key"
        if name not in self._templates:
            data = self._fhe.Serialize(self._spare, self._fhe.BINARY)
            self._templates[name] = template(data, self.parameters.primes, self.length, self._spare.GetKeyTag())
        return self._fhe.DeserializePrivateKeyString(self._templates[name].fill(words, tag), self._fhe.BINARY)

    # Evaluation keys -------------------------------------------------------------------------------------------------

    @property
    def evaluation_key_primes(self) -> tuple[int, ...]:
        """What the words of one evaluation key stay below, block by block: 2 polynomials for each digit."""
        return self.key_primes * (2 * self.parameters.digits)

    def relinearisation_key_words(self, key: Any) -> Words:
        """The words, shape (2 digits (limbs + special limbs), N), of an EvalKey."""
        return extract(self._fhe.Serialize(key, self._fhe.BINARY), self.evaluation_key_primes, self.length)

    def relinearisation_key(self, words: Words, tag: str) -> Any:
        """An EvalKey from such words."""
        return self._fhe.DeserializeEvalKeyString(self._relinearisation_template().fill(words, tag), self._fhe.BINARY)

    def _relinearisation_template(self) -> Template:
        name = "relinearisation key"
        if name not in self._templates:
            self.context.EvalMultKeyGen(self._spare)
            spare_tag = self._spare.GetKeyTag()
            key = self._fhe.CryptoContext.GetEvalMultKeyVector(spare_tag)[0]
            data = self._fhe.Serialize(key, self._fhe.BINARY)
            self._templates[name] = template(data, self.evaluation_key_primes, self.length, spare_tag)
        return self._templates[name]

    def rotation_key_words(self, keys: Any, count: int) -> list[Words]:
        """The words of each of the `count` keys in an EvalKeyMap, by increasing automorphism index."""
        data = self._fhe.Serialize(keys, self._fhe.BINARY)
        words = extract(data, self.evaluation_key_primes * count, self.length)
        return list(words.reshape(count, -1, self.length))

    def rotation_key(self, words: Words, index: int, tag: str) -> Any:
        """An EvalKeyMap with one key, for an automorphism index, from the words of one key."""
        ready, spare_index = self._rotation_template(), self.context.FindAutomorphismIndex(SPARE_STEP)
        first = ready.pieces[0].replace(_entry(spare_index), _entry(index))
        data = Template((first, *ready.pieces[1:]), ready.primes, ready.length, ready.tag).fill(words, tag)
        return self._fhe.DeserializeEvalKeyMapString(data, self._fhe.BINARY)

    def _rotation_template(self) -> Template:
        name, spare_index = "rotation key", self.context.FindAutomorphismIndex(SPARE_STEP)
        if name not in self._templates:
            keys = self.context.EvalAutomorphismKeyGen(self._spare, [spare_index])
            data = self._fhe.Serialize(keys, self._fhe.BINARY)
            made = template(data, self.evaluation_key_primes, self.length, self._spare.GetKeyTag())
            if made.pieces[0].count(_entry(spare_index)) != 1:
                raise BackendError("OpenFHE's bytes of a rotation key don't hold its index")
            self._templates[name] = made
        return self._templates[name]

    def prepare_keys(self, relinearise: bool) -> None:
        """Make the templates of evaluation keys: with them, several threads may make keys from words.

        Best before there are other keys in this process.
        """
        if self.parameters.bootstrapping is not None:
            self._special_template()
        if relinearise:
            self._relinearisation_template()
        self._rotation_template()

    # Keys of bootstrapping -------------------------------------------------------------------------------------------

    @property
    def special_indices(self) -> tuple[int, int, int]:
        """Where OpenFHE's map holds the keys into the sparser secret, back from it, and of conjugation.

        No rotation has one of these automorphism indices.
        """
        order = 2 * self.parameters.ring_dimension
        return order - 4, order - 2, order - 1

    def special_key_primes(self, index: int) -> tuple[int, ...]:
        """What the words of a key with a special index stay below, block by block."""
        short = index == self.special_indices[0]
        return self.parameters.encapsulation_primes * 2 if short else self.evaluation_key_primes

    def special_keys(self, key: Any) -> tuple[Any, dict[int, Words]]:
        """Fresh special keys of a secret key: an EvalKeyMap under its tag, and the words of each."""
        indices = self.special_indices
        data = self._picked(self.context, key, indices)
        primes = [self.special_key_primes(i) for i in indices]
        words = extract(data, [p for part in primes for p in part], self.length)
        parts = np.split(words, np.cumsum([len(part) for part in primes])[:-1])
        return self._fhe.DeserializeEvalKeyMapString(data, self._fhe.BINARY), dict(zip(indices, parts, strict=True))

    def special_key(self, words: Words, index: int, tag: str) -> Any:
        """An EvalKeyMap with one special key from its words."""
        if index != self.special_indices[0]:
            return self.rotation_key(words, index, tag)
        return self._fhe.DeserializeEvalKeyMapString(self._special_template().fill(words, tag), self._fhe.BINARY)

    def _special_template(self) -> Template:
        name, index = "special key", self.special_indices[0]
        if name not in self._templates:
            # The basis of this key is q_0 and two primes that the ring decides, whatever the levels are.
            context = make_small_context(self.parameters)
            if chain_of(context) == self.parameters.primes[:1]:
                data = self._picked(context, context.KeyGen().secretKey, (index,))
            else:
                data = self._picked(self.context, self._spare, (index,))
            # The sparser secret that this key leads to has a tag of its own.
            (tag,) = set(TAG_PATTERN.findall(data))
            self._templates[name] = template(data, self.special_key_primes(index), self.length, tag.decode())
        return self._templates[name]

    def _picked(self, context: Any, key: Any, indices: Sequence[int]) -> bytes:
        """Bytes of an EvalKeyMap with some special keys of a secret key of the context, under its own tag.

        OpenFHE makes them only together with rotation keys, and picks some only from a file that it wrote itself.
        """
        fhe, container, boots = self._fhe, self._fhe.CryptoContext, self.parameters.bootstrapping
        assert boots is not None
        own, passing = key.GetKeyTag(), new_tag()
        # Half of the slots and a level for each layer: of all set-ups this has the fewest rotations.
        log_slots = self.parameters.log_ring - 2
        half = 1 << log_slots
        # OpenFHE forgets all keys or none, so those of others step aside for the while.
        others = container.GetAllEvalAutomorphismKeys()
        set_up_bootstrapping(context, self.parameters, precompute=False, slots=half, budget=(log_slots, log_slots))
        try:
            key.SetKeyTag(passing)
            try:
                context.EvalBootstrapKeyGen(key, half)
            finally:
                key.SetKeyTag(own)
            with tempfile.TemporaryDirectory() as folder:
                path = str(Path(folder) / "keys")
                if not fhe.SerializeEvalBootstrapKey(path, fhe.BINARY, context, passing, half):
                    raise BackendError(f"OpenFHE can't write {path}")
                container.ClearEvalAutomorphismKeys()
                if not fhe.DeserializeEvalBootstrapKey(path, fhe.BINARY, passing, list(indices)):
                    raise BackendError(f"OpenFHE can't read {path}")
            data: bytes = fhe.Serialize(container.GetEvalAutomorphismKeyMap(passing), fhe.BINARY)
        finally:
            container.ClearEvalAutomorphismKeys()
            for tag, keys in others.items():
                container.InsertEvalAutomorphismKey(keys, tag)
        return data.replace(passing.encode(), own.encode())

    def prepare_bootstraps(self) -> None:
        """Prepare this process for bootstraps, once: the plaintexts of both transforms take most of the time."""
        if not self._ready_to_bootstrap:
            set_up_bootstrapping(self.context, self.parameters, precompute=True)
            self._ready_to_bootstrap = True

    @functools.cached_property
    def _spare(self) -> Any:
        """A secret key that protects nothing: templates are made with it."""
        key = self.context.KeyGen().secretKey
        if TAG_PATTERN.fullmatch(key.GetKeyTag().encode()) is None:
            raise BackendError(f"OpenFHE gave the key tag {key.GetKeyTag()!r}, expected 32 hexadecimal digits")
        return key


def _entry(index: int) -> bytes:
    """How a map with one element begins: the number of elements and the index."""
    return (1).to_bytes(8, "little") + index.to_bytes(4, "little")


@functools.lru_cache(maxsize=4)
def wire(parameters: Parameters) -> Wire:
    """The wire of this process for these parameters."""
    return Wire(parameters)
