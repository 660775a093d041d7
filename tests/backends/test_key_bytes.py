"""Buffers that OpenFHE reads keys from, and files in memory that it writes them to."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from olac.backends.openfhe import key_bytes
from olac.backends.openfhe.key_bytes import KeyMaker, rotation_templates, written_keys
from olac.backends.openfhe.key_maps import others_aside
from olac.backends.openfhe.keys import KeySet, make_keys, new_secret_key
from olac.backends.openfhe.library import load
from olac.backends.openfhe.memory_files import MemoryFile
from olac.backends.openfhe.wire import Wire, wire
from olac.backends.openfhe.words import extract, new_tag
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.ckks.words import Words
from olac.errors import ArtifactError, BackendError

pytestmark = pytest.mark.encrypted

PARAMETERS = Parameters(10, 2, 40, 50, 2, security=0)
BOOTSTRAPPED = Parameters(10, 20, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(4))
STEPS = (1, 2, 3, 5, 7, 11, 13, 17, 100)


def words_of(made: KeySet) -> list[Words]:
    """Of each key, shape (blocks, N), all copied."""
    blocks = np.stack([block.copy() for block in made.blocks()])
    assert not made.special
    return list(blocks.reshape(len(made.steps), -1, blocks.shape[1]))


@pytest.mark.parametrize("named", [False, True])
def test_files_in_memory(monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    if named:  # a system that has none
        monkeypatch.delattr(os, "memfd_create")
    with MemoryFile() as file:
        file.write(b"abcdef", 4)
        file.write(np.arange(2, dtype=np.uint64).data, 10)
        assert file.size == 26
        assert Path(file.path).read_bytes()[:10] == bytes(4) + b"abcdef"
        assert file.mapped()[4:10] == b"abcdef"
        room = bytearray(3)
        file.read_into(memoryview(room), 5)
        assert room == b"bcd"
        with pytest.raises(BackendError, match="ends early"):
            file.read_into(memoryview(room), 24)
        assert os.stat(file.path).st_mode & 0o077 == 0 or not named
        path = Path(file.path)
    assert not path.exists()


@pytest.mark.parametrize("together", [1, 4])
def test_keys_come_out_as_they_went_in(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    made = make_keys(PARAMETERS, new_secret_key(PARAMETERS), STEPS, False)
    expected, ready, fhe, tag = words_of(made), wire(PARAMETERS), load(), new_tag()
    with others_aside():  # a process without other keys may have templates of several
        monkeypatch.setattr(key_bytes, "KEYS_TOGETHER", together)
        with KeyMaker(ready, tag, False, len(STEPS)) as maker:
            assert maker.together == together
            for start in (0, 4):  # the second time into the same buffer
                indices = [ready.automorphism_index(step) for step in STEPS[start : start + together]]
                parts = expected[start : start + together]
                keys = maker.rotations(list(zip(indices, parts, strict=True)))
                container = fhe.CryptoContext
                container.InsertEvalAutomorphismKey(keys, tag)
                assert set(container.GetExistingEvalAutomorphismKeyIndices(tag)) >= set(indices)
                data = fhe.Serialize(maker.rotations(list(zip(indices, parts, strict=True))), fhe.BINARY)
                found = extract(data, ready.evaluation_key_primes * together, ready.length)
                by_index = [parts[i] for i in np.argsort(indices)]
                assert np.array_equal(found, np.concatenate(by_index))


def test_refused_words_leave_a_buffer_that_can_be_used() -> None:
    made = make_keys(PARAMETERS, new_secret_key(PARAMETERS), (1, 2), False)
    (first, second), ready, fhe = words_of(made), wire(PARAMETERS), load()
    with KeyMaker(ready, new_tag(), False, 2) as maker:
        for bad, message in (
            (first | np.uint64(1 << 63), "not less than their prime"),
            (first * np.uint64(0), "not uniform"),
            (first[:-1], "blocks of coefficients, expected"),
            (np.concatenate([first, second]), "more or other coefficients"),
            (first[:, :-1], "more or other coefficients"),
        ):
            with pytest.raises(ArtifactError, match=message):
                maker.rotations([(5, bad)])
        data = fhe.Serialize(maker.rotations([(5, second)]), fhe.BINARY)
        assert len(maker._free["1 rotation keys"]) == 1
    assert np.array_equal(extract(data, ready.evaluation_key_primes, ready.length), second)


def test_a_process_with_keys_makes_no_templates_that_empty_the_map() -> None:
    """Servers of programs without bootstraps may be running while keys of another are read."""
    made = make_keys(PARAMETERS, new_secret_key(PARAMETERS), (1, 2), False)
    ready, fhe = Wire(PARAMETERS), load()
    assert not rotation_templates(ready, 3)
    with others_aside():
        assert rotation_templates(ready, 3)
    assert rotation_templates(ready, 3)
    bootstrapped = Wire(BOOTSTRAPPED)
    assert rotation_templates(bootstrapped, 2)
    assert len(fhe.CryptoContext.GetExistingEvalAutomorphismKeyIndices(made.tag)) == 2


def test_rotation_keys_that_come_with_special_ones_are_not_made_again() -> None:
    steps = (1, 2, 3, 4, 6, 8)
    made = make_keys(BOOTSTRAPPED, new_secret_key(BOOTSTRAPPED), steps, False)
    assert [step for entry, _ in made._maps for step in entry] == list(steps)
    ready, fhe = wire(BOOTSTRAPPED), load()
    held = set(fhe.CryptoContext.GetExistingEvalAutomorphismKeyIndices(made.tag))
    assert held == {ready.automorphism_index(step) for step in steps} | set(ready.special_indices)
    context, asked = ready.context, []

    class Watched:
        """The context, and what automorphism keys are asked of it."""

        def __getattr__(self, name: str) -> object:
            return getattr(context, name)

        def EvalAutomorphismKeyGen(self, key: object, indices: list[int]) -> object:
            asked.extend(indices)
            return context.EvalAutomorphismKeyGen(key, indices)

    ready.context = Watched()
    try:
        make_keys(BOOTSTRAPPED, new_secret_key(BOOTSTRAPPED), steps, False)
    finally:
        ready.context = context
    assert asked == [ready.automorphism_index(step) for step in (3, 6)]


def test_bytes_that_are_not_as_before_are_noticed() -> None:
    key = new_secret_key(PARAMETERS)
    made = make_keys(PARAMETERS, key, (1,), False)
    ready = wire(PARAMETERS)
    with MemoryFile() as file:
        found = written_keys(ready, made._maps[0][1], ready.evaluation_key_primes, file)
        assert len(list(found.blocks(0, len(found.primes)))) == len(found.primes)
        file.write(bytes(8), found.holes[1] - 8)
        with pytest.raises(BackendError, match="hold no block"):
            list(found.blocks(0, 2))
        file.write(b"\xff" * 8, found.holes[0])
        with pytest.raises(BackendError, match="hold no block"):
            list(found.blocks(0, 1))
