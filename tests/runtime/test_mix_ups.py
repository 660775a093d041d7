"""Objects and files that take the place of others: found, whatever they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olac.backends.base import Ciphertext
from olac.backends.vector.evaluator import VectorEvaluator
from olac.cli import main
from olac.errors import ArtifactError
from olac.program.program import CompiledProgram
from olac.runtime import Client, EncryptedInput, EncryptedResult, EvaluationKeys, Server, envelope
from tests.runtime.engines import engine as engine
from tests.runtime.small_pair import READERS
from tests.runtime.small_program import current_engine, images, small_program

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]


class Side:
    """A client with its server, an input and its result."""

    def __init__(self, seed: int) -> None:
        self.client = Client(program())
        self.keys = self.client.generate_keys()
        self.server = Server(program(), self.keys)
        self.image = self.client.encrypt(images(seed=seed))
        self.result = self.server.run(self.image)

    def save(self, folder: Path) -> dict[str, Path]:
        folder.mkdir()
        paths = {kind: folder / kind for kind in READERS}
        self.client.save_secret_key(paths[envelope.SECRET_KEY])
        for kind, one in (
            (envelope.EVALUATION_KEYS, self.keys),
            (envelope.INPUT, self.image),
            (envelope.RESULT, self.result),
        ):
            one.save(paths[kind])
        return paths


def program() -> CompiledProgram:
    return program_of(current_engine())


def side(seed: int) -> Side:
    return side_of(seed, current_engine())


@cache
def program_of(engine: str) -> CompiledProgram:
    return small_program()


@cache
def side_of(seed: int, engine: str) -> Side:
    return Side(seed)


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, engine: str) -> tuple[dict[str, Path], dict[str, Path]]:
    folder = tmp_path_factory.mktemp("files")
    return side(1).save(folder / "first"), side(2).save(folder / "second")


def between(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Have something done after a header was read and before its payload is."""
    read = envelope._read_header

    def then_changed(*arguments: Any) -> envelope.Header:
        header = read(*arguments)
        change()
        return header

    monkeypatch.setattr(envelope, "_read_header", then_changed)


@pytest.mark.parametrize("kind", READERS)
def test_a_file_renamed_over_another_is_not_read(
    files: tuple[dict[str, Path], dict[str, Path]], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / kind, tmp_path / "other"
    shutil.copy(files[0][kind], path)
    shutil.copy(files[1][kind], other)
    os.chmod(path, 0o600)
    between(monkeypatch, lambda: os.replace(other, path) if other.exists() else None)
    found = READERS[kind](program(), path)
    expected, wrong = files[0][kind].read_bytes(), files[1][kind].read_bytes()
    assert not other.exists() and path.read_bytes() == wrong != expected
    if kind == envelope.EVALUATION_KEYS:  # read again when they are used, and not the same any more
        for use in (found.to_bytes, found.install, lambda: found.save(tmp_path / "copy")):
            with pytest.raises(ArtifactError, match=r"evaluation-keys.*SHA-256"):
                use()
        assert not (tmp_path / "copy").exists()
    elif kind == envelope.SECRET_KEY:
        found.save_secret_key(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == expected
    else:
        assert found.to_bytes() == expected


@pytest.mark.parametrize("kind", READERS)
def test_a_file_written_over_in_place_is_refused(
    files: tuple[dict[str, Path], dict[str, Path]], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / kind
    shutil.copy(files[0][kind], path)
    os.chmod(path, 0o600)
    between(monkeypatch, lambda: path.write_bytes(files[1][kind].read_bytes()))
    with pytest.raises(ArtifactError, match="SHA-256"):
        READERS[kind](program(), path)


def test_keys_that_are_there_as_before_are_passed_on(
    files: tuple[dict[str, Path], dict[str, Path]], tmp_path: Path
) -> None:
    keys = EvaluationKeys.load(program(), files[0][envelope.EVALUATION_KEYS])
    keys.save(tmp_path / "copy")
    expected = files[0][envelope.EVALUATION_KEYS].read_bytes()
    assert (tmp_path / "copy").read_bytes() == keys.to_bytes() == expected


# Live objects --------------------------------------------------------------------------------------------------------


def test_live_objects_of_another_kind_are_refused_as_files_are() -> None:
    one, anything = side(1), np.zeros(5)
    no_results: list[tuple[Any, str]] = [(one.image, "an encrypted input was"), (anything, "ndarray"), (None, "None")]
    for given, called in no_results:
        with pytest.raises(ArtifactError, match=f"{called}.*expected an encrypted result"):
            one.client.decrypt(given)
    no_inputs: list[tuple[Any, str]] = [(one.result, "an encrypted result was"), (anything, "ndarray .* was")]
    for given, called in no_inputs:
        with pytest.raises(ArtifactError, match=f"{called} given, expected an encrypted input"):
            one.server.run(given)
    with pytest.raises(ArtifactError, match="type EncryptedInput was given, expected evaluation keys"):
        Server(program(), one.image)  # type: ignore[arg-type]


def test_live_objects_hold_what_files_would_have_to() -> None:
    one, other = side(1), side(2)
    live = one.result._live
    assert live is not None and one.image._live is not None and other.result._live is not None

    def result(live: tuple[Any, ...], count: int = 1) -> EncryptedResult:
        return EncryptedResult(program(), one.image.identity, count, live=live, engine=one.image.engine)

    state = program().output.state
    evaluator = one.server._open().evaluator
    twos = evaluator.encode(lambda: np.full(program().parameters.slots, 2.0), state.level, state.scale)
    doubled = evaluator.multiply_plain(Ciphertext(live[0], state), twos).payload
    if isinstance(evaluator, VectorEvaluator):  # which computes products when they are needed
        doubled = evaluator.settled(doubled)
    for bad, message in (
        (result(()), "0 ciphertexts, expected 1"),
        (result(live * 2), "2 ciphertexts, expected 1"),
        (result(one.image._live), "limbs and noise degree 1, expected"),
        (result((doubled,)), "noise degree 2, expected"),
        (result(live, 0), "0 inputs"),
        (result(live, 2), "1 ciphertexts, expected 2"),
    ):
        with pytest.raises(ArtifactError, match=message):
            one.client.decrypt(bad)
        with pytest.raises(ArtifactError, match=message):
            bad.to_bytes()
        with pytest.raises(ArtifactError, match=message):
            print(bad.digest)
    with pytest.raises(ArtifactError, match="other keys"):
        other.client.decrypt(one.result)
    with pytest.raises(ArtifactError, match="under another key"):
        one.client.decrypt(result(other.result._live))
    with pytest.raises(ArtifactError, match="under another key"):
        one.server.run(
            EncryptedInput(program(), one.image.identity, 1, live=other.image._live, engine=one.image.engine)
        )


# Results and their inputs --------------------------------------------------------------------------------------------


def test_the_digest_of_an_input_is_the_same_live_as_bytes_and_as_a_file(tmp_path: Path) -> None:
    one = side(1)
    one.image.save(tmp_path / "in")
    loaded = [
        EncryptedInput.load(program(), tmp_path / "in"),
        EncryptedInput.from_bytes(program(), one.image.to_bytes()),
    ]
    assert {image.digest for image in loaded} == {one.image.digest} == {one.result.input}
    again = one.client.encrypt(images(seed=1))
    assert again.digest != one.image.digest
    for image in loaded:
        assert one.server.run(image).input == image.digest


def test_results_say_which_input_they_are_of() -> None:
    one = side(1)
    again = one.client.encrypt(images(seed=1))
    expected = one.client.decrypt(one.result)
    received = EncryptedResult.from_bytes(program(), one.result.to_bytes())
    assert received.to_bytes() == one.result.to_bytes()
    for result in (one.result, received):
        np.testing.assert_allclose(one.client.decrypt(result, of=one.image), expected, atol=1e-4)
        with pytest.raises(ArtifactError, match=r"of another input than the input.*mixed up"):
            one.client.decrypt(result, of=again)
        with pytest.raises(ArtifactError, match="expected an encrypted input"):
            one.client.decrypt(result, of=one.result)  # type: ignore[arg-type]


def test_results_of_older_files_name_no_input() -> None:
    one = side(1)
    old = EncryptedResult(program(), one.result.identity, 1, live=one.result._live, engine=one.result.engine)
    received = EncryptedResult.from_bytes(program(), old.to_bytes())
    assert received.input is None
    np.testing.assert_allclose(one.client.decrypt(received), one.client.decrypt(one.result), atol=1e-4)
    with pytest.raises(ArtifactError, match="does not say which input"):
        one.client.decrypt(received, of=one.image)
    wrong = EncryptedResult(
        program(), one.result.identity, 1, live=one.result._live, engine=one.result.engine, input="x"
    ).to_bytes()
    with pytest.raises(ArtifactError, match="says input = 'x', expected 32 hexadecimal digits"):
        EncryptedResult.from_bytes(program(), wrong)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_command_checks_the_input(
    files: tuple[dict[str, Path], dict[str, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program().save(tmp_path / "p.olac")
    secret, result, own = (str(files[0][kind]) for kind in (envelope.SECRET_KEY, envelope.RESULT, envelope.INPUT))
    again = tmp_path / "again.enc"
    side(1).client.encrypt(images(seed=1)).save(again)
    arguments = ["decrypt", str(tmp_path / "p.olac"), secret, result, str(tmp_path / "out.npy"), "--input"]
    assert main([*arguments, str(again)]) == 1
    assert "of another input" in capsys.readouterr().err and not (tmp_path / "out.npy").exists()
    assert main([*arguments, own]) == 0
    assert (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("given", ["p.olac", None, b"", Path("p.olac")])
def test_what_is_no_program(given: Any) -> None:
    keys = side(0).keys
    for call in (
        lambda: Client(given),
        lambda: Client.load(given, "secret.key"),
        lambda: Server(given, keys),
        lambda: EvaluationKeys.from_bytes(given, b""),
        lambda: EncryptedInput.from_bytes(given, b""),
        lambda: EncryptedResult.load(given, __file__),
    ):
        with pytest.raises(ArtifactError, match=r"expected a program: .*CompiledProgram\.load"):
            call()
