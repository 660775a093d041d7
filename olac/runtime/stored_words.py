"""Ciphertexts that stay in the file that they came in, and are read when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from olac.ckks.words import WORD_BYTES, Words, check_words
from olac.runtime.envelope import Header, Part, Payload


class StoredWords:
    """The words of ciphertexts in a frame whose hash was right.

    They are read each time that they are asked for, and compared with what was checked first. So the file has to stay
    where and as it is.

    Args:
        header: of the frame.
        parts: where each ciphertext is.
        shape: of the words of one, (2, limbs, N).
    """

    def __init__(self, header: Header, parts: Sequence[Part], shape: tuple[int, int, int]) -> None:
        self._header, self._parts, self._shape = header, parts, shape

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, some: slice) -> StoredWords:
        """Some of the ciphertexts; nothing is read."""
        return StoredWords(self._header, self._parts[some], self._shape)

    def __iter__(self) -> Iterator[Words]:
        """The words of one ciphertext after the other, each in memory of its own.

        Raises:
            ArtifactError: the file is gone, or is not what it was.
        """
        with self._header.named_in_errors(), self._header.source.reader() as reader:
            for part in self._parts:
                room = bytearray(part.size)
                for _ in part.pieces(reader, memoryview(room)):
                    pass
                yield np.frombuffer(room, "<u8").reshape(self._shape)

    @staticmethod
    def of(payload: Payload, count: int, shape: tuple[int, int, int], primes: Sequence[int]) -> StoredWords:
        """Read a payload of ciphertexts once, one at a time, and check the words and the hash.

        Args:
            payload: of which nothing was read yet.
            count: of ciphertexts.
            shape: as above.
            primes: of the limbs.

        Raises:
            ArtifactError: a word is no residue, or the hash is wrong.
        """
        size, parts = shape[0] * shape[1] * shape[2] * WORD_BYTES, []
        for _ in range(count):
            data, part = payload.read_part(size)
            with payload.header.named_in_errors():
                words = np.frombuffer(data, "<u8").reshape(-1, shape[2])
                check_words(words, tuple(primes) * shape[0], shape[2])
            parts.append(part)
        payload.finish()
        return StoredWords(payload.header, parts, shape)
