"""Runs of many images in parts, in this process; and what is refused before anything runs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olac.errors import ArtifactError, BackendError
from olac.program import CompiledProgram
from olac.runtime import Client, EncryptedInput, Server, save_parts
from olac.scaling import run_batches
from tests.runtime.small_program import ERROR, images, small_program

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]


@pytest.fixture(scope="module")
def program() -> CompiledProgram:
    return small_program(batch=2)


@pytest.fixture(scope="module")
def client(program: CompiledProgram) -> Client:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Client(program)


def test_results_are_in_order_and_cover_all_images(program: CompiledProgram, client: Client) -> None:
    x = images(9)
    results = list(run_batches(program, client.generate_keys(), client.encrypt(x), sets=2))
    assert [result.images for result in results] == [4, 4, 1]
    found = np.concatenate([client.decrypt(result) for result in results])
    np.testing.assert_allclose(found, program.simulate(x), atol=ERROR)


def test_bit_equal_to_one_run(program: CompiledProgram, client: Client) -> None:
    keys, given = client.generate_keys(), client.encrypt(images(6))
    with Server(program, keys) as server:
        whole = server.run(given)
    parts = list(run_batches(program, keys, given, actors=3))
    assert [part.digest for part in parts] == [whole.part(at, 1).digest for at in range(3)]


def test_inputs_are_made_as_they_are_needed(program: CompiledProgram, client: Client) -> None:
    made = []

    def inputs() -> Iterator[EncryptedInput]:
        for number in range(3):
            made.append(number)
            yield client.encrypt(images(2, seed=number))

    results = run_batches(program, client.generate_keys(), inputs())
    assert made == []
    first = next(results)
    assert made == [0]
    np.testing.assert_allclose(client.decrypt(first), program.simulate(images(2, seed=0)), atol=ERROR)
    assert len(list(results)) == 2
    assert made == [0, 1, 2]


def test_keys_from_a_folder_of_parts(program: CompiledProgram, client: Client, tmp_path: Path) -> None:
    x = images(2)
    save_parts(client.generate_keys(), tmp_path / "keys")
    (result,) = run_batches(program, tmp_path / "keys", client.encrypt(x))
    np.testing.assert_allclose(client.decrypt(result), program.simulate(x), atol=ERROR)


def test_a_part_goes_on_from_its_checkpoint(program: CompiledProgram, client: Client, tmp_path: Path) -> None:
    keys, given, other = client.generate_keys(), client.encrypt(images(2)), client.encrypt(images(2, seed=2))
    (wanted,) = run_batches(program, keys, given)
    path = tmp_path / f"{program.fingerprint[:32]}-{given.digest}.checkpoint"
    with Server(program, keys) as server:
        server.run(given, checkpoint=path, checkpoint_seconds=0, keep_checkpoint=True)
    (result,) = run_batches(program, keys, given, checkpoints=tmp_path)
    assert result.digest == wanted.digest
    assert list(tmp_path.iterdir()) == []
    with Server(program, keys) as server:
        server.run(other, checkpoint=path, checkpoint_seconds=0, keep_checkpoint=True)
    with pytest.raises(ArtifactError, match="another input"):  # so the file is read
        list(run_batches(program, keys, given, checkpoints=tmp_path))


@pytest.mark.parametrize(
    ("choice", "message"),
    [({"executor": "spark"}, "'local' and 'ray'"), ({"actors": 0}, "actors=0"), ({"sets": 0}, "sets=0")],
)
def test_arguments_out_of_range(program: CompiledProgram, client: Client, choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_batches(program, client.generate_keys(), [], **choice)


def test_what_is_no_input(program: CompiledProgram, client: Client) -> None:
    with pytest.raises(ArtifactError, match="expected an encrypted input"):
        list(run_batches(program, client.generate_keys(), [images(1)]))  # type: ignore[list-item]


def test_without_ray(program: CompiledProgram, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendError, match=r"olac\[ray\]"):
        run_batches(program, client.generate_keys(), [], executor="ray")
