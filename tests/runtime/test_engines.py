"""Clients and servers on an engine of their own: `engine=`, and what two engines give each other."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import olac.backends
from olac.backends import session
from olac.backends.openfhe import library
from olac.backends.openfhe.evaluator import OpenFHEEvaluator
from olac.backends.openfhe.session import ENGINE as OPENFHE
from olac.backends.session import Engine, Preparing, available_engine, find_engine
from olac.backends.vector import available
from olac.backends.vector.evaluator import VectorEvaluator
from olac.backends.vector.session import ENGINE as VECTOR
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.errors import ArtifactError, BackendError
from olac.program.program import CompiledProgram
from olac.runtime import Client, EncryptedInput, EncryptedResult, EvaluationKeys, Progress, Server, envelope, forecast
from olac.system.threads import set_threads, usable_threads
from tests.backends.plain_engine import ENGINE as PLAIN
from tests.backends.plain_engine import PlainEvaluator
from tests.runtime.small_program import ERROR, images, small_program

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]


@cache
def program() -> CompiledProgram:
    return small_program()


def header_fields(data: bytes) -> dict[str, Any]:
    start = envelope.PREFIX.size
    fields: dict[str, Any] = json.loads(data[start : start + envelope.PREFIX.unpack(data[:start])[3]])
    return fields


def right(client: Client, result: EncryptedResult) -> bool:
    return bool(np.max(np.abs(client.decrypt(result) - program().simulate(images()))) < ERROR)


@pytest.mark.parametrize("engine", [PLAIN, VECTOR])
def test_a_round_trip_on_a_second_engine(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live, as bytes and as files, with a checkpoint, and with keys that are read as they are needed."""

    def no_openfhe(*_: object) -> None:
        raise AssertionError("the first engine was asked")

    # The vector engine's clients encrypt with OpenFHE.
    used = ("client", "words") if engine is VECTOR else ()
    for method in {"client", "server", "install_keys", "words", "state", "belongs"} - {*used}:
        monkeypatch.setattr(type(OPENFHE), method, no_openfhe)
    client = Client(program(), engine=engine)
    keys = client.generate_keys()
    given = client.encrypt(images())
    server = Server(program(), keys)  # on the engine that made the keys
    assert type(server._open().evaluator) is (PlainEvaluator if engine is PLAIN else VectorEvaluator)
    server.prepare()
    assert right(client, server.run(given))

    client.save_secret_key(tmp_path / "secret.key")
    keys.save(tmp_path / "evaluation.keys")
    given.save(tmp_path / "input")
    received = EvaluationKeys.load(program(), tmp_path / "evaluation.keys")
    image = EncryptedInput.load(program(), tmp_path / "input")
    whole = Server(program(), received, engine=engine)

    def stop(progress: Progress) -> None:
        if progress.node == "act":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        whole.run(image, stop, checkpoint=tmp_path / "checkpoint", checkpoint_seconds=0.0)
    answer = whole.run(image, checkpoint=tmp_path / "checkpoint").to_bytes()
    assert "conv" not in whole.last_run
    whole.close()
    assert not received.installed

    def two_at_a_time(self: Server, keys: EvaluationKeys, max_memory: float | None) -> tuple[float, int]:
        self._predicted = dict.fromkeys((node.id for node in program().graph.nodes), 0.0)
        return 0.0, 2

    monkeypatch.setattr(Server, "_check_memory", two_at_a_time)
    paged = Server(program(), received, engine=engine)
    assert paged.run(image).to_bytes() == answer
    assert paged.pages is not None and paged.pages.evictions > 0
    other = Client.load(program(), tmp_path / "secret.key", engine=engine)
    assert right(other, EncryptedResult.from_bytes(program(), answer))


@pytest.mark.parametrize(("first", "second"), [(OPENFHE, PLAIN), (PLAIN, OPENFHE)])
def test_engines_read_each_others_words(first: Engine, second: Engine) -> None:
    client = Client(program(), first)
    keys = client.generate_keys()
    given = client.encrypt(images())
    with pytest.raises(ArtifactError, match=f"another engine than {second.title}. Save them"):
        Server(program(), keys, engine=second)
    received = EvaluationKeys.from_bytes(program(), keys.to_bytes())
    server = Server(program(), received, engine=second)
    result = server.run(given)  # objects of one engine are words to the other
    assert right(client, result)
    assert received.installed
    both = Server(program(), received, engine=first)
    assert right(client, both.run(EncryptedInput.from_bytes(program(), given.to_bytes())))
    assert right(client, server.run(given))


def test_keys_know_the_engine_that_they_are_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live, as bytes, as files, and with keys of different sizes that are read as they are needed."""
    client = Client(program(), engine=VECTOR)
    keys = client.generate_keys()
    given = client.encrypt(images())
    answer = Server(program(), keys).run(given)
    assert right(client, answer)
    keys.save(tmp_path / "evaluation.keys")
    loaded = EvaluationKeys.load(program(), tmp_path / "evaluation.keys")
    assert loaded.for_engine == keys.for_engine == "vector" and loaded.outside
    assert header_fields(loaded.to_bytes())["engine"] == "vector" and loaded.to_bytes() == keys.to_bytes()
    assert len(set(loaded.sizes)) > 1 and loaded.payload_bytes == sum(loaded.sizes)
    assert (tmp_path / "evaluation.keys").stat().st_size < loaded.payload_bytes + 2000
    assert loaded.memory_bytes > 1.5 * loaded.payload_bytes
    server = Server(program(), loaded)
    assert server._engine is VECTOR and right(client, server.run(given))

    def two_at_a_time(self: Server, keys: EvaluationKeys, max_memory: float | None) -> tuple[float, int]:
        self._predicted = dict.fromkeys((node.id for node in program().graph.nodes), 0.0)
        return 0.0, 2

    monkeypatch.setattr(Server, "_check_memory", two_at_a_time)
    paged = Server(program(), loaded)
    assert paged.run(given).to_bytes() == answer.to_bytes()
    assert paged.pages is not None and paged.pages.evictions > 0


def test_keys_of_another_engine_are_refused(tmp_path: Path) -> None:
    """With what to do instead."""
    client = Client(program(), engine=VECTOR)
    keys = client.generate_keys()
    path = tmp_path / "evaluation.keys"
    keys.save(path)
    for given, where in ((keys, ""), (EvaluationKeys.load(program(), path), f" in {path}")):
        for engine in (OPENFHE, "openfhe", PLAIN):
            with pytest.raises(ArtifactError) as caught:
                Server(program(), given, engine=engine)
            assert str(caught.value) == (
                f"the evaluation keys{where} were made for the engine 'vector', and {find_engine(engine).title} can't "
                "use them. Use them with engine='vector', or make keys for "
                f"{find_engine(engine).title}: Client(program, engine='openfhe').generate_keys()."
            )
            with pytest.raises(ArtifactError, match="were made for the engine 'vector'"):
                given.install(engine=engine)
    old = EvaluationKeys.from_bytes(program(), Client(program()).generate_keys().to_bytes())
    assert old.for_engine == "openfhe" and "engine" not in header_fields(old.to_bytes())
    with pytest.raises(ArtifactError, match=r"were made for the engine 'openfhe', and .* engine='vector'"):
        Server(program(), old, engine="vector")


@pytest.mark.parametrize(
    "name", ["third", "openfhe.key_maps", "../vector", "", None, 7, ["vector"], "simulator", "x" * 99]
)
def test_key_files_of_unknown_engines(name: object) -> None:
    data = Client(program()).generate_keys().to_bytes()
    _, _, _, size, payload = envelope.PREFIX.unpack(data[: envelope.PREFIX.size])
    start, fields = envelope.PREFIX.size + size, header_fields(data)

    def named(engine: object) -> bytes:
        parts = [data[start : start + payload]]
        return b"".join(
            envelope.frame(envelope.EVALUATION_KEYS, program(), {**fields, "engine": engine}, parts, payload)
        )

    with pytest.raises(ArtifactError, match="which this version of olac does not have") as caught:
        EvaluationKeys.from_bytes(program(), named(name))
    assert len(str(caught.value)) < 300
    assert EvaluationKeys.from_bytes(program(), named("openfhe")).for_engine == "openfhe"
    with pytest.raises(ArtifactError, match=r"the payload has \d+ bytes, expected"):
        EvaluationKeys.from_bytes(program(), named("vector"))


def test_engines_are_found_by_the_name_of_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_engine() is find_engine("openfhe") is OPENFHE
    assert find_engine(PLAIN) is PLAIN
    monkeypatch.setattr(olac.backends, "__path__", [*olac.backends.__path__, str(tmp_path)])
    for name, source in (("second", "from tests.backends.plain_engine import ENGINE"), ("broken", "import no_such")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "session.py").write_text(source)
    client = Client(program(), engine="second")
    assert client._engine is PLAIN
    for unknown in ("third", "simulator"):
        with pytest.raises(BackendError, match=f"no engine '{unknown}': olac.backends holds no {unknown}/session.py"):
            Client(program(), engine=unknown)
    with pytest.raises(ModuleNotFoundError, match="no_such"):
        find_engine("broken")


def test_a_refusal_names_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(program(), engine=PLAIN)
    server = Server(program(), client.generate_keys())

    def refuse(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(OpenFHEEvaluator, "_rescale", refuse)
    with pytest.raises(BackendError, match="the plain engine refused an operation of the program: no"):
        server.run(client.encrypt(images()))


def test_an_engine_that_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Preparing | None] = []

    def unavailable(self: Engine, preparing: Preparing | None = None) -> str:
        asked.append(preparing)
        return "" if len(asked) == 1 else "it was sold out"

    monkeypatch.setattr(type(PLAIN), "unavailable", unavailable)

    def preparing(what: str, done: int, total: int) -> None:
        pass

    keys = Client(program(), engine=PLAIN).generate_keys()
    Server(program(), keys, preparing=preparing)
    assert asked == [preparing]
    with pytest.raises(BackendError, match="can't be used here: it was sold out"):
        Server(program(), keys)
    with pytest.warns(UserWarning, match="OpenFHE is used, as .* can't be: it was sold out"):
        assert available_engine(PLAIN, program().parameters) is OPENFHE


@pytest.fixture
def sold_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that can't use the vector engine."""
    monkeypatch.setattr(available, "_checked", "it was sold out")


GONE = "the vector engine can't be used here: it was sold out"


@pytest.mark.usefixtures("sold_out")
def test_programs_for_an_engine_that_is_not_there_run_on_openfhe() -> None:
    planned = replace(program(), engine="vector")
    with pytest.warns(UserWarning, match="OpenFHE is used, as the vector engine can't be: it was sold out"):
        client = Client(planned)
    keys = client.generate_keys()
    assert keys.for_engine == "openfhe"
    found = client.decrypt(Server(planned, keys).run(client.encrypt(images())))
    assert np.max(np.abs(found - planned.simulate(images()))) < ERROR
    with pytest.warns(UserWarning, match="OpenFHE is used"):
        assert forecast(planned, measure=False).costs.engine is OPENFHE.model


@pytest.mark.usefixtures("sold_out")
def test_programs_that_openfhe_does_not_take_either_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    by_own_recipe = Parameters(11, 18, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(4, recipe="vector"))
    with pytest.raises(BackendError, match=f"{GONE}. OpenFHE does not take the program: its bootstraps do not follow"):
        available_engine("vector", by_own_recipe)
    planned = replace(program(), engine="vector")
    monkeypatch.setattr(type(OPENFHE.model), "refuses", lambda self, parameters: "it is too vectorial")
    with pytest.raises(BackendError, match=f"{GONE}. OpenFHE does .* compile the program for an engine that"):
        Client(planned)
    monkeypatch.setattr(session, "_MEASURED", {})  # other tests of this process may have measured the engine
    with pytest.warns(UserWarning, match=GONE):  # a prediction does not need the engine
        found = forecast(planned)
    assert found.costs.engine is VECTOR.model and found.slowdown is None and "machine of the table" in found.where


def test_keys_for_an_engine_that_is_not_there_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = replace(program(), engine="vector")
    keys = Client(planned).generate_keys()
    monkeypatch.setattr(available, "_checked", "it was sold out")
    advice = r"Make keys for OpenFHE: Client\(program, engine='openfhe'\).generate_keys\(\)\."
    with pytest.raises(BackendError, match=rf"{GONE}\. {advice}"):
        Server(planned, keys)
    monkeypatch.setattr(type(OPENFHE.model), "refuses", lambda self, parameters: "it is too vectorial")
    with pytest.raises(BackendError, match=rf"{GONE}\. Use a machine where the vector engine can be used\."):
        Server(planned, keys)


def test_a_server_sets_the_threads_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    before = usable_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))
    keys = Client(program()).generate_keys()
    try:
        Server(program(), keys, threads=3)
        found = library.loops(library.load())
        assert usable_threads() == 3 and found is not None and found.value == 3
        Server(program(), keys)
        assert usable_threads() == 3
        with pytest.raises(ValueError, match="threads 0"):
            Server(program(), keys, threads=0)
    finally:
        set_threads(before)
