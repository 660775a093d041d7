"""Files of many sets of ciphertexts: written and read one after the other, so that memory holds few of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olac.errors import ArtifactError, InputError
from olac.runtime import Client, EncryptedInput, EncryptedResult, Encryptor, Server, commands
from tests.runtime.engines import engine as engine
from tests.runtime.small_program import ERROR, current_engine, images, small_program

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]

COUNT = 12
"""Images, two in each set of ciphertexts: six sets."""


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


NOBODY = 3
"""References to an object that nobody but the list of `Alive` holds, while it is counted."""


class Alive:
    """How many ciphertexts that a method made are held at a time."""

    def __init__(self) -> None:
        self._found: list[object] = []
        self.most = 0

    @property
    def made(self) -> int:
        return len(self._found)

    @property
    def now(self) -> int:
        return sum(sys.getrefcount(one) > NOBODY for one in self._found)

    def counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def made(*given: Any) -> Any:
            self.most = max(self.most, self.now + 1)
            self._found.append(method(*given))
            return self._found[-1]

        return made


def watch(monkeypatch: pytest.MonkeyPatch, session: object, name: str) -> Alive:
    found = Alive()
    monkeypatch.setattr(type(session), name, found.counted(getattr(type(session), name)))
    return found


@pytest.mark.parametrize("public", [False, True])
def test_encrypting_holds_one_set(public: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, x = pair(), images(COUNT)
    side: Any = Encryptor(one.program, one.client.public_key()) if public else one.client
    alive = watch(monkeypatch, side._session, "encrypt")
    side.encrypt_to(tmp_path / "x.enc", x)
    assert (alive.made, alive.most, alive.now) == (COUNT // 2, 1, 0)
    whole = side.encrypt(x)
    assert alive.now == COUNT // 2, "the count sees what is held"
    given = EncryptedInput.load(one.program, tmp_path / "x.enc")
    assert (given.images, given.identity) == (COUNT, whole.identity)
    answer = one.client.decrypt(one.server.run(given), of=given)
    np.testing.assert_allclose(answer, one.program.simulate(x), atol=ERROR)


def test_running_and_decrypting_hold_as_many_sets_as_are_computed_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, x = pair(), images(COUNT)
    one.client.encrypt_to(tmp_path / "x.enc", x)
    given = EncryptedInput.open(one.program, tmp_path / "x.enc")
    monkeypatch.setattr(Server, "_together", lambda self: 2)
    session = one.server._open()
    inputs = watch(monkeypatch, session, "ciphertext")
    one.server.run_to(tmp_path / "y.enc", given)
    assert inputs.made == COUNT // 2 and inputs.most <= 2 and inputs.now == 0
    result = EncryptedResult.open(one.program, tmp_path / "y.enc")
    outputs = watch(monkeypatch, one.client._held(), "ciphertext")
    answer = one.client.decrypt(result, of=given)
    assert outputs.made == COUNT // 2 and outputs.most == 1
    np.testing.assert_allclose(answer, one.program.simulate(x), atol=ERROR)


def test_files_are_the_same_as_those_of_objects_in_memory(tmp_path: Path) -> None:
    one = pair()
    given = one.client.encrypt(images(5))
    given.save(tmp_path / "x.enc")
    opened = EncryptedInput.open(one.program, tmp_path / "x.enc")
    assert (opened.digest, opened.sets, opened.to_bytes()) == (given.digest, 3, given.to_bytes())
    assert opened.part(1, 2).to_bytes() == given.part(1, 2).to_bytes()
    one.server.run(given).save(tmp_path / "y.enc")
    one.server.run_to(tmp_path / "z.enc", opened)
    assert (tmp_path / "y.enc").read_bytes() == (tmp_path / "z.enc").read_bytes()


def test_a_file_that_changes_while_it_is_open(tmp_path: Path) -> None:
    one, path = pair(), tmp_path / "x.enc"
    one.client.encrypt_to(path, images(4))
    data = bytearray(path.read_bytes())
    opened = EncryptedInput.open(one.program, path)
    data[-1000] ^= 1  # in the second set
    path.write_bytes(data)
    one.server.run(opened.part(0, 1))
    for use in (one.server.run, lambda given: one.server.run_to(tmp_path / "y.enc", given)):
        with pytest.raises(ArtifactError, match=r"x\.enc.*another than when it was opened"):
            use(opened)
    with pytest.raises(ArtifactError, match="SHA-256"):
        EncryptedInput.open(one.program, path)
    path.unlink()
    with pytest.raises(ArtifactError, match="can't be read"):
        one.server.run(opened)
    assert list(tmp_path.iterdir()) == []


def test_words_are_checked_when_a_file_is_opened(tmp_path: Path) -> None:
    """A file with a right hash and words that are no residues."""
    one, path = pair(), tmp_path / "x.enc"
    live = one.client.encrypt(images(4))
    words = np.stack([np.array(some) for some in live.words()])
    words[1, 0, 0, 5] = np.iinfo(np.uint64).max
    EncryptedInput(one.program, live.identity, 4, words=words).save(path)
    for read in (EncryptedInput.load, EncryptedInput.open):
        with pytest.raises(ArtifactError, match="not less than their prime"):
            read(one.program, path)


def test_all_images_are_checked_before_a_file_is_begun(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    one, path, x = pair(), tmp_path / "x.enc", images(COUNT)
    for bad, problem in ((1e3, "calibrated range"), (np.nan, "not finite")):
        wrong = x.copy()
        wrong[-1, 0, 0, 0] = bad
        with pytest.raises(InputError, match=problem):
            one.client.encrypt_to(path, wrong)
        assert list(tmp_path.iterdir()) == []
    wrong[-1, 0, 0, 0] = wrong[0, 1, 0, 0] = 1e3
    recwarn.clear()
    one.client.encrypt_to(path, wrong, allow_out_of_range=True)
    (said,) = [str(one.message) for one in recwarn if "calibrated range" in str(one.message)]
    assert said.startswith("channels 0, 1 of the input hold values far outside") and recwarn[0].filename == __file__
    for wrong in (x[0, 0], x[:0]):
        with pytest.raises(InputError, match=r"shape|0 inputs"):
            one.client.encrypt_to(path, wrong)


def test_the_commands_read_and_write_by_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, x = pair(), images(COUNT).astype(np.float32)
    program, secret, keys = (tmp_path / name for name in ("p.olac", "secret.key", "evaluation.keys"))
    one.program.save(program)
    commands.keygen(program, tmp_path)
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(commands, "read_npy", lambda *_: pytest.fail("the whole file was read"))
    for kind in (EncryptedInput, EncryptedResult):
        monkeypatch.setattr(kind, "load", lambda *_: pytest.fail("the whole file was read"))
    alive = watch(monkeypatch, one.client._held(), "encrypt")
    commands.encrypt(program, secret, tmp_path / "x.npy", tmp_path / "x.enc")
    assert (alive.made, alive.most) == (COUNT // 2, 1)
    commands.run(program, keys, tmp_path / "x.enc", tmp_path / "y.enc")
    values = commands.decrypt(program, secret, tmp_path / "y.enc", tmp_path / "y.npy", encrypted=tmp_path / "x.enc")
    np.testing.assert_allclose(values, one.program.simulate(x), atol=ERROR)
    np.save(tmp_path / "x.npy", np.full_like(x, np.inf))
    with pytest.raises(InputError, match=r"x\.npy: .*not finite"):
        commands.encrypt(program, secret, tmp_path / "x.npy", tmp_path / "x.enc")
