"""Keys belong to a key pair and parameters: they serve other programs, grow, and travel one by one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from olac.ckks.key_list import BOOTSTRAPS, KeyList
from olac.cli import main
from olac.errors import ArtifactError, BackendError, ClosedError, MissingKeyError
from olac.ir.ops import Bootstrap
from olac.program.program import CompiledProgram
from olac.runtime import Client, EvaluationKeys, Server, envelope
from olac.runtime.key_parts import MANIFEST, KeyFolder, load_keys, save_parts
from tests.runtime.engines import engine as engine
from tests.runtime.small_program import (
    DEEP_ERROR,
    DEEP_SHAPE,
    ERROR,
    current_engine,
    deep_program,
    images,
    small_program,
)

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]


class Side:
    """A program with fewer keys than it could have, a client of it, and its keys as bytes."""

    def __init__(self) -> None:
        self.whole = small_program()
        fewer = tuple(step for step in self.whole.rotations if step not in (3, 12))
        self.program = replace(self.whole, rotations=fewer)
        assert self.program.composed == (3, 12)
        self.client = Client(self.program)
        self.keys = self.client.generate_keys()
        self.frame = self.keys.to_bytes()

    @property
    def received(self) -> EvaluationKeys:
        return EvaluationKeys.from_bytes(self.program.parameters, self.frame)

    def client_of(self, program: CompiledProgram, folder: Path) -> Client:
        path = folder / "secret.key"
        if not path.exists():
            self.client.save_secret_key(path)
        return Client.load(program.client(), path)


@cache
def _side(engine: str) -> Side:
    return Side()


def side() -> Side:
    return _side(current_engine())


def right(program: CompiledProgram, client: Client, keys: EvaluationKeys) -> bool:
    with Server(program, keys) as server:
        answer = client.decrypt(server.run(client.encrypt(images())))
    return bool(np.max(np.abs(answer - program.simulate(images()))) < ERROR)


# Programs with the same parameters -----------------------------------------------------------------------------------


def test_keys_serve_other_weights(tmp_path: Path) -> None:
    one, program = side(), replace(small_program(seed=7), rotations=side().program.rotations)
    assert program.fingerprint != one.program.fingerprint and program.parameters == one.program.parameters
    client = one.client_of(program, tmp_path)
    for keys in (one.keys, one.received):
        assert right(program, client, keys) and right(one.program, one.client, keys)
    with pytest.raises(ArtifactError, match="is of another program"):  # what is encrypted stays for its program
        Server(program, one.keys).run(one.client.encrypt(images()))


def test_a_program_that_takes_fewer_keys_holds_no_others(tmp_path: Path) -> None:
    one = side()
    # All keys of both: parts of composed steps may have to reach further.
    received = one.received.with_more(one.client_of(one.whole, tmp_path).more_keys(one.received))
    needed = one.program.keys_for(one.program.planned_for)
    assert set(needed.steps) < set(received.steps) == set(one.whole.rotations)
    server = Server(one.program, received)
    some = received.some(needed)
    assert some.steps == needed.steps and some.installed and not received.installed
    assert Server(one.program, received)._open().keys is server._open().keys  # type: ignore[attr-defined]
    assert set(server._open().evaluator.rotation_steps or ()) == set(needed.steps)  # composes as it was compiled to
    assert right(one.program, one.client, received)
    received.install()  # all of them, as if they were made here
    assert right(one.program, one.client, received)
    received.close()
    with pytest.raises(ClosedError):
        received.some(needed.within([1], False, False))


def test_only_new_keys_are_made_for_a_new_version(tmp_path: Path) -> None:
    one = side()
    client = one.client_of(one.whole, tmp_path)
    with pytest.raises(MissingKeyError, match=r"rotation steps (\d+, )*3\b.*more_keys"):
        Server(one.whole, one.received)
    held = one.program.keys_for(one.program.planned_for)
    seen: list[tuple[int, int]] = []
    lists = []
    for given in (one.keys, one.received, one.program, one.program.client(), held):
        more = client.more_keys(given, lambda done, total: seen.append((done, total)))
        lists.append(more.listed)
        assert more.identity == one.keys.identity and 0 < more.count < one.keys.count
        assert {3, 12} <= set(more.steps)
    assert len(set(lists)) == 1 and seen[-1] == (more.count, more.count)
    sent = EvaluationKeys.from_bytes(one.whole.client(), more.to_bytes())
    for keys in (one.keys.with_more(more), one.received.with_more(sent), sent.with_more(one.received)):
        assert keys.steps == one.whole.rotations
        assert right(one.whole, client, keys) and right(one.program, one.client, keys)
        again = EvaluationKeys.from_bytes(one.whole, keys.to_bytes())
        assert again.listed == keys.listed and right(one.whole, client, again)
        assert not client.more_keys(keys).listed
    assert right(one.program, one.client, one.keys)  # those that were there before are as they were


def test_keys_for_too_few_levels_do_not_serve(engine: str) -> None:
    one = side()
    needed = one.program.keys_for(one.program.planned_for)
    low = dict.fromkeys(needed.steps, 0)
    made = one.client._held().make_keys(low, needed.relinearise)
    keys = EvaluationKeys(
        one.program.parameters, one.client.identity, KeyList(tuple(low.items()), needed.relinearise), one.keys._maker,
        live=made,
    )  # fmt: skip
    with pytest.raises(MissingKeyError, match=r"rotation steps 1, .*for too few levels"):
        Server(one.program, keys)
    more = one.client.more_keys(keys)
    assert more.listed.by_step == needed.by_step and more.listed.relinearise is None
    if engine == "vector":
        assert right(one.program, one.client, keys.with_more(more))


def test_keys_that_do_not_fit_together(tmp_path: Path) -> None:
    one = side()
    other = Client(one.program)
    with pytest.raises(MissingKeyError, match="no secret key"):
        other.more_keys(one.program)
    keys = other.generate_keys()
    with pytest.raises(ArtifactError, match="of another key pair than those"):
        one.received.with_more(keys)
    with pytest.raises(ArtifactError, match="of another key pair"):
        other.more_keys(one.keys)
    finer = small_program(lowering="multiplexed")
    assert finer.parameters != one.program.parameters
    with pytest.raises(ArtifactError, match=r"for other parameters .*generate_keys"):
        other.more_keys(finer)
    with pytest.raises(ArtifactError, match=r"for other parameters \(ring .*like="):
        Server(finer, keys)
    with pytest.raises(ArtifactError, match="belongs to parameters"):
        EvaluationKeys.from_bytes(finer, one.frame)
    with pytest.raises(ArtifactError, match="belongs to parameters"):
        one.client_of(finer, tmp_path)
    name = "openfhe" if current_engine() == "vector" else "vector"
    stranger = Client.load(one.program, tmp_path / "secret.key", engine=name)
    with pytest.raises(ArtifactError, match="for the engine"):
        stranger.more_keys(one.keys)
    with pytest.raises(ArtifactError, match="for another engine"):
        one.received.with_more(stranger.more_keys(KeyList()))


def test_older_files_belong_to_one_program() -> None:
    one = side()
    older = bytearray(one.frame)
    older[4:6] = envelope.WITHOUT_LEVELS.to_bytes(2, "little")
    with pytest.raises(ArtifactError, match="belongs to program None"):
        EvaluationKeys.from_bytes(one.program, bytes(older))
    with pytest.raises(ArtifactError, match="belongs to one program"):
        EvaluationKeys.from_bytes(one.program.parameters, bytes(older))


# Bootstraps ----------------------------------------------------------------------------------------------------------


def test_new_keys_leave_those_of_bootstraps_alone(tmp_path: Path) -> None:
    program = deep_program(blocks=2)
    assert any(isinstance(node.op, Bootstrap) for node in program.graph.nodes)
    client = Client(program)
    keys = client.generate_keys()
    whole = save_parts(keys, tmp_path / "whole")
    assert whole.listed == keys.listed and BOOTSTRAPS in whole.names and not whole.missing(program)
    lost = [name for name in whole.names if name.startswith("rotation-1")]
    for name in lost:
        whole.path(name).unlink()
    assert set(whole.missing(program)) == set(lost)
    received = load_keys(program, tmp_path / "whole")
    with pytest.raises(MissingKeyError, match="rotation steps 1,"):
        Server(program, received)
    more = client.more_keys(received)
    assert not more.listed.bootstraps and not more.relinearisation and set(more.listed.names) == set(lost)
    x = np.random.default_rng(0).uniform(-1, 1, DEEP_SHAPE)
    with Server(program, received.with_more(more)) as server:
        answer = client.decrypt(server.run(client.encrypt(x)))
    assert np.max(np.abs(answer - program.simulate(x))) < DEEP_ERROR
    whole.path(BOOTSTRAPS).unlink()
    with pytest.raises(MissingKeyError, match="the keys of bootstraps"):
        Server(
            program, received.with_more(more).some(more.listed.with_more(replace(received.listed, bootstraps=False)))
        )


# Parts ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> KeyFolder:
    return save_parts(side().received, tmp_path / "keys")


def pieces(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    yield from (data[at : at + 5000] for at in range(0, len(data), 5000))


def test_parts_are_one_file_a_key_and_make_the_whole_again(saved: KeyFolder) -> None:
    one, folder = side(), saved.folder
    assert saved.names == tuple(sorted(one.keys.listed.names)) and not saved.missing(one.program)
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *(f"{name}.key" for name in saved.names)}
    assert load_keys(one.program, folder).to_bytes() == one.frame
    files = saved.files()
    for name in saved.names:
        data = saved.path(name).read_bytes()
        assert files[name].bytes == len(data) <= saved.most_bytes(name)
        assert files[name].sha256 == hashlib.sha256(data).hexdigest()
        assert saved.check(name).listed.names == (name,)
    live = save_parts(one.keys, folder.parent / "live")
    assert live.files() == files
    assert right(one.program, one.client, load_keys(one.program, folder))


def test_an_upload_in_parallel_that_is_resumed(saved: KeyFolder, tmp_path: Path) -> None:
    one = side()
    server = KeyFolder(one.program, tmp_path / "server" / saved.identity, saved.identity)
    assert server.missing(one.program) == one.keys.listed.names
    first, *rest = server.missing(one.program)

    def broken() -> Iterator[bytes]:
        yield from list(pieces(saved.path(first)))[:-1]
        raise RuntimeError("the line is down")

    with pytest.raises(RuntimeError, match="the line is down"):
        server.receive(first, broken())
    assert not server.names and not list(server.folder.iterdir())

    def send(name: str) -> None:
        server.receive(name, pieces(saved.path(name)), sha256=saved.files()[name].sha256)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(send, rest[:-1]))
    assert server.missing(one.program) == (first, rest[-1])
    with pytest.raises(MissingKeyError):
        Server(one.program, server.load(one.program))
    for name in server.missing(one.program):
        send(name)
    assert not server.missing(one.program)
    assert right(one.program, one.client, server.load(one.program))


def test_a_new_version_adds_its_parts(saved: KeyFolder, tmp_path: Path) -> None:
    one = side()
    client = one.client_of(one.whole, tmp_path)
    missing = saved.missing(one.whole)
    assert len(missing) < len(saved.names)
    more = client.more_keys(saved.listed)
    assert more.listed.names == missing
    seen: list[tuple[int, int]] = []
    before = saved.files()
    after = saved.save(more, lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, len(missing)) for i in range(len(missing))]
    assert after == before | {name: after[name] for name in missing} and not saved.differing()
    assert right(one.whole, client, saved.load(one.whole)) and right(one.program, one.client, saved.load(one.program))
    times = {path: path.stat().st_mtime_ns for path in saved.folder.glob("*.key")}
    saved.save(more)  # what is there already is not written again
    assert times == {path: path.stat().st_mtime_ns for path in saved.folder.glob("*.key")}


def test_parts_that_are_wrong_never_take_their_names(saved: KeyFolder, tmp_path: Path) -> None:
    one = side()
    server = KeyFolder(one.program, tmp_path / "server", saved.identity)
    first, second, *_ = one.keys.listed.names
    good = saved.path(first).read_bytes()
    stranger = Client(one.program)
    others = save_parts(stranger.generate_keys(), tmp_path / "others")
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for name, data, message in (
        (first, bytes(flipped), "SHA-256"),
        (first, good[:-1], r"its header says"),
        (first, b"", "not a file of kind 'evaluation-keys'"),
        (second, good, "it is the key 'relinearise"),
        (first, others.path(first).read_bytes(), "of the key pair"),
        (first, one.frame, "bytes were sent|it is the key"),
        (first, good + bytes(1 << 16), "more than .* bytes were sent"),
        (first, one.client.encrypt(images()).to_bytes(), "of kind 'input'|bytes were sent"),
    ):
        with pytest.raises(ArtifactError, match=message) as caught:
            server.receive(name, [data])
        assert str(server.path(name)) in str(caught.value) and ".part" not in str(caught.value)
        assert not list(server.folder.iterdir())
    with pytest.raises(ArtifactError, match="not the one that was announced"):
        server.receive(first, [good], sha256="0" * 64)
    for name in ("../x", "rotation-4097-1", "rotation-1-99", BOOTSTRAPS, "secret"):
        with pytest.raises(ArtifactError, match="there is no key"):
            server.receive(name, [good])
        with pytest.raises(ArtifactError, match="there is no key"):
            server.path(name)
    for identity in ("../x", "A" * 32, "", "0" * 31):
        with pytest.raises(ArtifactError, match="not the name of a key pair"):
            KeyFolder(one.program, tmp_path / "server", identity)
    with pytest.raises(BackendError, match="no engine"):
        KeyFolder(one.program, tmp_path / "server", saved.identity, "third")


def test_damaged_folders(saved: KeyFolder, tmp_path: Path) -> None:
    one, name = side(), side().keys.listed.names[1]
    with pytest.raises(ArtifactError, match=f"holds no {MANIFEST}"):
        load_keys(one.program, tmp_path)
    data = saved.path(name).read_bytes()
    saved.path(name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert saved.differing() == (name,)
    with pytest.raises(ArtifactError, match=rf"{name}\.key.*SHA-256"):
        load_keys(one.program, saved.folder)
    saved.path(name).unlink()
    assert saved.differing() == (name,) == saved.missing(one.program)
    with pytest.raises(MissingKeyError, match="rotation steps 1"):
        Server(one.program, load_keys(one.program, saved.folder))
    os.replace(saved.path(saved.names[0]), saved.path(name))
    with pytest.raises(ArtifactError, match="it is the key"):
        load_keys(one.program, saved.folder)
    other = Client(one.program).generate_keys()
    with pytest.raises(ArtifactError, match="it is of keys"):
        save_parts(other, saved.folder)
    with pytest.raises(ArtifactError, match="of another pair or engine"):
        saved.save(other)
    manifest = saved.folder / MANIFEST
    content = json.loads(manifest.read_text())
    for change in (
        b"{", b"[]", b"\xff", b"[" * 100_000,
        json.dumps(content | {"parts": []}).encode(),
        json.dumps(content | {"keys": "../x"}).encode(),
        json.dumps(content | {"version": 2}).encode(),
        json.dumps(content | {"engine": None}).encode(),
        json.dumps(content | {"parameters": "0" * 64}).encode(),
    ):  # fmt: skip
        manifest.write_bytes(change)
        with pytest.raises(ArtifactError, match=str(saved.folder)):
            KeyFolder(one.program, saved.folder)
    manifest.write_text(json.dumps(content | {"parts": {"../x": {"bytes": 1, "sha256": "0" * 64}}}))
    with pytest.raises(ArtifactError, match=r"lists '\.\./x' wrongly"):
        KeyFolder(one.program, saved.folder).files()


def test_residues_of_a_part_are_checked_by_its_name(saved: KeyFolder, engine: str) -> None:
    one, name = side(), side().keys.listed.names[1]
    part = saved.check(name)
    payload = bytearray(b"".join(part.payload()))
    payload[64:] = b"\xff" * (len(payload) - 64)
    fields = json.loads(saved.path(name).read_bytes()[envelope.PREFIX.size :].split(b"}")[0] + b"}")
    data = b"".join(
        envelope.frame(envelope.EVALUATION_KEYS, one.program.parameters, fields, [bytes(payload)], len(payload))
    )
    saved.receive(name, [data])
    with pytest.raises(ArtifactError, match=rf"{saved.folder} \(evaluation-keys\)"):
        Server(one.program, load_keys(one.program, saved.folder))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_commands_with_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = side()
    path = {
        name: str(tmp_path / name) for name in ("old.json", "new.olac", "new.json", "x.npy", "in", "out", "y.npy", "k")
    }
    one.program.client().save(path["old.json"])
    one.whole.client().save(path["new.json"])
    one.whole.save(path["new.olac"])
    np.save(path["x.npy"], images())
    assert main(["keygen", path["old.json"], path["k"], "--parts"]) == 0
    (folder,) = (tmp_path / "k").glob("evaluation-*")
    secret = str(tmp_path / "k" / "secret.key")
    assert main(["encrypt", path["new.json"], secret, path["x.npy"], path["in"]]) == 0
    run = ["run", path["new.olac"], str(folder), path["in"], path["out"]]
    assert main(run) == 1
    assert "MissingKeyError" in capsys.readouterr().err
    more = ["more-keys", path["new.json"], secret, path["old.json"], str(folder)]
    assert main(more) == 0
    assert "keys for the server" in capsys.readouterr().out
    assert main([*more[:3], path["new.json"], str(folder)]) == 0
    assert "has all keys" in capsys.readouterr().out
    assert main(run) == 0 and main(["decrypt", path["new.json"], secret, path["out"], path["y.npy"]]) == 0
    np.testing.assert_allclose(np.load(path["y.npy"]), one.whole.simulate(images()), atol=ERROR)
    assert main(["keygen", path["old.json"], path["k"], "--parts"]) == 1
    assert "not overwritten" in capsys.readouterr().err
    assert main(["keygen", path["old.json"], path["k"], "--parts", "--overwrite"]) == 0
    assert len(list((tmp_path / "k").glob("evaluation-*"))) == 2


def test_a_complete_file_becomes_a_part_only_if_it_is_that_part(tmp_path: Path) -> None:
    one = side()
    there = save_parts(one.keys, tmp_path / "there")
    here = KeyFolder(one.program, tmp_path / "here", there.identity)
    name, other = there.names[:2]
    file, data = tmp_path / "file", there.path(name).read_bytes()
    for wrong, as_ in ((data, other), (data[:-1], name), (data[:-40] + bytes(40), name)):
        file.write_bytes(wrong)
        with pytest.raises(ArtifactError) as error:
            here.take(as_, file)
        assert str(file) not in str(error.value) and file.read_bytes() == wrong and here.names == ()
    file.write_bytes(data)
    here.take(name, file)
    assert here.names == (name,) and not file.exists() and here.path(name).read_bytes() == data
