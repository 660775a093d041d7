"""Makes evaluation keys of words, and words of keys, with files in memory that OpenFHE reads and writes.

A key of a large ring has some 80 MB, and most of the time to read it is spent on copies. So a buffer holds OpenFHE's
bytes of one key or a few, with holes for the words. Words are written to it block by block, hashed and checked while
they are in the processor's cache, and OpenFHE reads the buffer directly into the key. As in
`olac.backends.openfhe.wire`, every byte outside the holes was written by this process, and only this process can write
the buffer between check and parsing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from olac.backends.openfhe.key_maps import KEY_MAPS, forget, others_aside
from olac.backends.openfhe.library import load
from olac.backends.openfhe.memory_files import MemoryFile
from olac.backends.openfhe.special_keys import special_template
from olac.backends.openfhe.wire import Wire
from olac.backends.openfhe.words import Template, holes, new_tag, template
from olac.backends.session import Piece
from olac.ckks.words import WORD_BYTES, Words, check_highest, is_block
from olac.errors import ArtifactError, BackendError

if TYPE_CHECKING:
    from typing_extensions import Self

BUFFER_BYTES = 320e6
KEYS_TOGETHER = 4
"""Limits of a buffer, which holds several rotation keys because OpenFHE makes tables anew for each buffer it reads."""
SPARE_STEP = 1
"""Step of the rotation key that templates are made from."""
INDEX_BYTES = 4


def label(number: int) -> bytes:
    """The placeholder of a key's automorphism index in templates: no index, and unlikely to occur by chance."""
    return b"\xe3\x9c\x5a" + bytes([0xC0 + number])


class KeyBuffer:
    """OpenFHE's bytes of evaluation keys under a tag, which are filled with words and parsed many times."""

    def __init__(self, template: Template, tag: str) -> None:
        self._template = template
        self._file = MemoryFile()
        self._holes: list[int] = []
        self._labels: dict[int, int] = {}
        at = 0
        for piece in template.renamed(tag):
            self._file.write(piece, at)
            for number in range(KEYS_TOGETHER):
                if label(number) in piece:
                    self._labels[number] = at + piece.index(label(number))
            at += len(piece)
            self._holes.append(at)
            at += WORD_BYTES * template.length
        self._holes.pop()

    def fill(self, blocks: Iterable[Piece], number: int = 0, keys: int = 1) -> None:
        """Check the blocks of the key `number` of `keys` and put them into their holes.

        Raises:
            ArtifactError: words that are no residues; whatever `blocks` raises.
        """
        size = len(self._holes) // keys
        first = number * size
        highest: list[int] = []
        for piece in blocks:
            block = np.frombuffer(piece, dtype="<u8")
            if len(highest) == size or block.shape != (self._template.length,):
                raise ArtifactError(f"more or other coefficients than {size} times {self._template.length}")
            self._file.write(block.data.cast("B"), self._holes[first + len(highest)])
            highest.append(int(block.max()))
        if len(highest) != size:
            raise ArtifactError(f"{len(highest)} blocks of coefficients, expected {size}")
        check_highest(np.array(highest, dtype=np.uint64), self._template.primes[first : first + size])

    def set_index(self, index: int, number: int = 0) -> None:
        """The automorphism index of the key `number`."""
        self._file.write(index.to_bytes(INDEX_BYTES, "little"), self._labels[number])

    def parsed(self, parse: Callable[..., tuple[Any, bool]]) -> Any:
        """The object that OpenFHE reads from it."""
        key, done = parse(self._file.path, load().BINARY)
        if not done:
            raise BackendError(f"OpenFHE can't read {self._file.path}")
        return key

    def close(self) -> None:
        """Free the memory."""
        self._file.close()


class KeyMaker:
    """Makes keys of words, under one tag; several threads may use it at the same time.

    Templates are made in the constructor.

    Args:
        ready: for the parameters.
        tag: of the keys.
        relinearise: whether there will be a relinearisation key.
        rotations: the number of rotation keys that there will be.
    """

    def __init__(self, ready: Wire, tag: str, relinearise: bool, rotations: int) -> None:
        self._ready, self._tag, self._fhe = ready, tag, load()
        self._free: dict[str, list[KeyBuffer]] = {}
        if ready.parameters.bootstrapping is not None:
            special_template(ready)
        if relinearise:
            relinearisation_template(ready)
        rotation_template(ready)
        most = min(KEYS_TOGETHER, int(BUFFER_BYTES // (len(ready.evaluation_key_primes) * WORD_BYTES * ready.length)))
        # Making a template of n keys takes about as long as reading n keys.
        self.together = most if most > 1 and rotations >= 2 * most and rotation_templates(ready, most) else 1

    def relinearisation(self, blocks: Iterable[Piece]) -> Any:
        """An EvalKey."""
        with self._buffer("relinearisation", relinearisation_template) as buffer:
            buffer.fill(blocks)
            return buffer.parsed(self._fhe.DeserializeEvalKey)

    def rotations(self, keys: Sequence[tuple[int, Iterable[Piece]]]) -> Any:
        """An EvalKeyMap with the keys of automorphism indices, 1 or `together`."""
        count = len(keys)
        with self._buffer(rotations_name(count), lambda ready: ready.templates[rotations_name(count)]) as buffer:
            for number, (index, blocks) in enumerate(sorted(keys, key=lambda key: key[0])):
                buffer.set_index(index, number)
                buffer.fill(blocks, number, count)
            return buffer.parsed(self._fhe.DeserializeEvalKeyMap)

    def special(self, index: int, blocks: Iterable[Piece]) -> Any:
        """An EvalKeyMap with the key of a special index."""
        if index != self._ready.special_indices[0]:
            return self.rotations([(index, blocks)])
        with self._buffer("special", special_template) as buffer:
            buffer.fill(blocks)
            return buffer.parsed(self._fhe.DeserializeEvalKeyMap)

    @contextmanager
    def _buffer(self, name: str, made: Callable[[Wire], Template]) -> Iterator[KeyBuffer]:
        free = self._free.setdefault(name, [])
        try:
            buffer = free.pop()
        except IndexError:
            buffer = KeyBuffer(made(self._ready), self._tag)
        try:
            yield buffer
        finally:
            free.append(buffer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for buffers in self._free.values():
            for buffer in buffers:
                buffer.close()
        self._free.clear()


def relinearisation_template(ready: Wire) -> Template:
    """Of an EvalKey."""
    name = "relinearisation key"
    if name in ready.templates:
        return ready.templates[name]
    with KEY_MAPS.changing():
        fhe, tag = load(), ready.spare.GetKeyTag()
        ready.context.EvalMultKeyGen(ready.spare)
        data = fhe.Serialize(fhe.CryptoContext.GetEvalMultKeyVector(tag)[0], fhe.BINARY)
        forget({tag})
        ready.templates[name] = template(data, ready.evaluation_key_primes, ready.length, tag)
    return ready.templates[name]


def rotations_name(count: int) -> str:
    """The name of templates of `count` rotation keys."""
    return f"{count} rotation keys"


def rotation_template(ready: Wire) -> Template:
    """Of an EvalKeyMap with one key, with a label in the place of its index."""
    name = rotations_name(1)
    if name in ready.templates:
        return ready.templates[name]
    with KEY_MAPS.changing():
        fhe, index = load(), ready.automorphism_index(SPARE_STEP)
        keys = ready.context.EvalAutomorphismKeyGen(ready.spare, [index])
        data = fhe.Serialize(keys, fhe.BINARY)
        forget({ready.spare.GetKeyTag()})
        made = template(data, ready.evaluation_key_primes, ready.length, ready.spare.GetKeyTag())
        # A map begins with the number of its elements and the first index.
        count = (1).to_bytes(8, "little")
        first = made.pieces[0].replace(count + index.to_bytes(INDEX_BYTES, "little"), count + label(0))
        ready.templates[name] = _labelled(replace(made, pieces=(first, *made.pieces[1:])), 1)
    return ready.templates[name]


def rotation_templates(ready: Wire, count: int) -> bool:
    """Whether there is now a template of an EvalKeyMap with `count` keys, each with a label in the place of its index.

    OpenFHE's map of all keys is emptied for a moment. A process that holds keys makes no template, as it may be using
    them, unless it bootstraps: then that map is emptied anyway.
    """
    fhe, name, tag = load(), rotations_name(count), new_tag()
    if name in ready.templates:
        return True
    container = fhe.CryptoContext
    with KEY_MAPS.changing():
        if container.GetAllEvalAutomorphismKeys() and ready.parameters.bootstrapping is None:
            return False
        buffer = KeyBuffer(rotation_template(ready), tag)
        with others_aside(), MemoryFile() as file:
            try:
                # Random, because other words could look like the beginning of a block. They protect nothing.
                words = np.random.default_rng()
                buffer.fill(words.integers(0, p, ready.length, dtype=np.uint64) for p in ready.evaluation_key_primes)
                for number in range(count):
                    buffer.set_index(int.from_bytes(label(number), "little"))
                    container.InsertEvalAutomorphismKey(buffer.parsed(fhe.DeserializeEvalKeyMap), tag)
            finally:
                buffer.close()
            _write(container.GetEvalAutomorphismKeyMap(tag), file)
            made = template(file.mapped(), ready.evaluation_key_primes * count, ready.length, tag)
            ready.templates[name] = _labelled(made, count)
    return True


def _write(keys: Any, file: MemoryFile) -> None:
    if not load().SerializeToFile(file.path, keys, load().BINARY):
        raise BackendError(f"OpenFHE can't write {file.path}")


def _labelled(made: Template, count: int) -> Template:
    """The template, with each label in the piece before the words of its key, and nowhere else."""
    size = len(made.primes) // count
    for number in range(count):
        found = [place for place, piece in enumerate(made.pieces) for _ in range(piece.count(label(number)))]
        if found != [number * size]:
            raise BackendError("OpenFHE's bytes of rotation keys don't hold their indices")
    return made


@dataclass(frozen=True)
class WrittenKeys:
    """Keys as OpenFHE wrote them into a file in memory.

    Attributes:
        holes: where the words of each block begin.
        primes: for each block, the prime that its words are less than.
        length: words in a block.
    """

    file: MemoryFile
    holes: tuple[int, ...]
    primes: tuple[int, ...]
    length: int

    def blocks(self, first: int, count: int) -> Iterator[Words]:
        """Some blocks, each of them valid until the next is asked for."""
        room = np.empty(self.length + 1, dtype="<u8")
        view, words = room.data.cast("B"), room[1:]
        for at, prime in zip(self.holes[first : first + count], self.primes[first : first + count], strict=True):
            self.file.read_into(view, at - WORD_BYTES)
            if int(room[0]) != self.length or not is_block(words, prime):
                raise BackendError(f"OpenFHE's bytes hold no block of {self.length} words at {at}")
            yield words


def written_keys(ready: Wire, keys: Any, primes: tuple[int, ...], file: MemoryFile) -> WrittenKeys:
    """Have OpenFHE write an EvalKey, or an EvalKeyMap by increasing automorphism index, into a file."""
    _write(keys, file)
    # Bytes of equally many keys differ only in indices and words. So places are found once, and `blocks` checks them.
    name = (file.size, len(primes))
    if name not in ready.layouts:
        ready.layouts[name] = holes(file.mapped(), primes, ready.length)
    return WrittenKeys(file, ready.layouts[name], primes, ready.length)
