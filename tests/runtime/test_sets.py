"""Any number of images in one run: further sets of ciphertexts, computed with the same encoded weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olac.backends.base import Evaluator
from olac.errors import ArtifactError
from olac.ir.graph import Node
from olac.kernels.base import Value
from olac.runtime import Client, EncryptedInput, EncryptedResult, Progress, Server, commands
from olac.runtime.checkpoints import Checkpoint
from tests.runtime.engines import engine as engine
from tests.runtime.small_program import (
    DEEP_ERROR,
    DEEP_SHAPE,
    ERROR,
    SHAPE,
    current_engine,
    deep_program,
    images,
    small_program,
)

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]

COUNT = 5
"""Images: two sets of two, and one that is half full."""


class Pair:
    def __init__(self) -> None:
        self.program = small_program(batch=2)
        self.client = Client(self.program)
        self.server = Server(self.program, self.client.generate_keys())


def pair() -> Pair:
    return _pair_of(current_engine())


@cache
def _pair_of(engine: str) -> Pair:
    return Pair()


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers compute two sets at a time."""
    monkeypatch.setattr(Server, "_together", lambda self: 2)


def test_each_image_has_its_result(tmp_path: Path) -> None:
    one, x = pair(), images(COUNT)
    given = one.client.encrypt(x)
    assert (given.images, given.sets) == (COUNT, 3)
    again = EncryptedInput.from_bytes(one.program, given.to_bytes())
    assert again.to_bytes() == given.to_bytes() and again.digest == given.digest
    for source in (given, again):
        result = one.server.run(source)
        again_result = EncryptedResult.from_bytes(one.program, result.to_bytes())
        for answer in (result, again_result):
            found = one.client.decrypt(answer, of=given)
            assert found.shape == (COUNT, 5)
            np.testing.assert_allclose(found, one.program.simulate(x), atol=ERROR)


def test_weights_are_encoded_once_for_all_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    one, counts = pair(), list[int]()
    evaluator = type(one.server._open().evaluator)
    plain = evaluator._encode

    def counting(self: Evaluator[Any, Any], *rest: Any) -> Any:
        counts[-1] += 1
        return plain(self, *rest)

    monkeypatch.setattr(evaluator, "_encode", counting)
    for count in (1, COUNT):
        counts.append(0)
        one.server.run(one.client.encrypt(images(count)))
    assert counts[0] == counts[1] > 0


def test_progress_counts_each_set(pairs: None) -> None:
    one, seen, observed = pair(), list[Progress](), list[str]()

    def observe(node: Node, value: Value) -> None:
        assert len(value) == node.layout.ciphertexts
        observed.append(node.id)

    x = images(COUNT)
    encrypted = one.client.encrypt(x)
    assert repr(encrypted) == f"<EncryptedInput of {COUNT} inputs>"
    result = one.server.run(encrypted, seen.append, observe=observe)
    np.testing.assert_allclose(one.client.decrypt(result), one.program.simulate(x), atol=ERROR)
    nodes = [node.id for node in one.program.graph.nodes]
    assert [at.node for at in seen] == nodes * 2
    first = [2 * place for place in range(1, len(nodes) + 1)]
    assert [at.done for at in seen] == first + [2 * len(nodes) + place for place in range(1, len(nodes) + 1)]
    assert {at.total for at in seen} == {3 * len(nodes)}
    assert seen[-1].eta_seconds == 0 < seen[0].eta_seconds
    assert observed == [name for name in nodes for _ in range(2)] + nodes
    assert set(one.server.last_run) == set(nodes)


def test_results_are_given_as_they_are_there(pairs: None) -> None:
    one, asked = pair(), list[int]()

    def inputs() -> object:
        for start in (0, 5):
            asked.append(start)
            yield one.client.encrypt(x[start : start + 5])

    x = images(7)
    found, sizes = [], []
    for result in one.server.stream(inputs()):  # type: ignore[arg-type]
        sizes.append((result.images, len(asked)))
        found.append(one.client.decrypt(result))
    assert sizes == [(4, 1), (1, 1), (2, 2)]  # a set that is not full ends a part
    np.testing.assert_allclose(np.concatenate(found), one.program.simulate(x), atol=ERROR)


def test_parts_of_an_input_are_inputs() -> None:
    one, x = pair(), images(COUNT)
    given = one.client.encrypt(x)
    last = given.part(2, 1)
    assert (last.images, last.sets, given.part(0, 2).images) == (1, 1, 4)
    answer = one.client.decrypt(one.server.run(last), of=last)
    np.testing.assert_allclose(answer, one.program.simulate(x[4:]), atol=ERROR)
    with pytest.raises(ArtifactError, match="another input"):
        one.client.decrypt(one.server.run(last), of=given)


# Checkpoints ---------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def stop(node: str, turn: int) -> Callable[[Progress], None]:
    seen = 0

    def progress(at: Progress) -> None:
        nonlocal seen
        seen += at.node == node
        if at.node == node and seen == turn:
            raise Stopped

    return progress


@pytest.mark.parametrize(("turn", "finished", "sets"), [(1, 0, 2), (2, 2, 1)])
def test_a_run_of_several_sets_continues(pairs: None, tmp_path: Path, turn: int, finished: int, sets: int) -> None:
    program = deep_program()
    client = Client(program)
    server = Server(program, client.generate_keys())
    x = np.random.default_rng(0).uniform(-1, 1, size=(3, *DEEP_SHAPE))
    given = client.encrypt(x)
    path = tmp_path / "c"
    with pytest.raises(Stopped):
        server.run(given, stop("act1", turn), checkpoint=path)
    held = Checkpoint.load(program, given, path, server._open())
    assert (held.after, len(held.outputs), held.sets) == ("sum0_boot", finished, sets)
    seen: list[Progress] = []
    result = server.run(given, seen.append, checkpoint=path)
    assert seen[0].node == "fc1"
    assert (seen[0].done, seen[-1].done) == (
        finished * len(program.graph.nodes) + sets * (1 + [n.id for n in program.graph.nodes].index("fc1")),
        seen[-1].total,
    )
    np.testing.assert_allclose(client.decrypt(result), program.simulate(x), atol=DEEP_ERROR)
    assert not path.exists()
    with pytest.raises(Stopped):
        server.run(given, stop("act1", turn), checkpoint=path)
    with pytest.raises(ArtifactError, match="another input"):
        server.run(client.encrypt(x[:2]), checkpoint=path)


# Commands ------------------------------------------------------------------------------------------------------------


def test_files_of_any_length(tmp_path: Path) -> None:
    one, x = pair(), images(COUNT)
    p, secret, keys = (tmp_path / name for name in ("p.olac", "secret.key", "evaluation.keys"))
    one.program.save(p)
    commands.keygen(p, tmp_path)
    np.save(tmp_path / "x.npy", x)
    commands.encrypt(p, secret, tmp_path / "x.npy", tmp_path / "x.enc")
    commands.run(p, keys, tmp_path / "x.enc", tmp_path / "y.enc")
    values = commands.decrypt(p, secret, tmp_path / "y.enc", tmp_path / "y.npy")
    np.testing.assert_allclose(values, one.program.simulate(x), atol=ERROR)
    assert np.load(tmp_path / "y.npy").shape == (COUNT, 5)
    assert images(COUNT).shape == (COUNT, *SHAPE)
