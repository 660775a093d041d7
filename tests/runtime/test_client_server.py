"""Client and server in one process: live objects, bytes and files, and everything that must be refused."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olac.analysis.estimate import UNUSED_SHARE, estimate
from olac.analysis.rotation_keys import fewer_keys
from olac.backends.cost import CostEvaluator
from olac.ckks.parameters import Parameters
from olac.ckks.primes import FIXED, TECHNIQUES
from olac.ckks.sizes import SEED_BYTES, residue_bytes
from olac.ckks.words import WORD_BYTES
from olac.costs.table import CostTable
from olac.errors import ArtifactError, BackendError, InfeasibleError, InputError, MissingKeyError, OlacError
from olac.ir.graph import Graph
from olac.ir.ops import Array
from olac.ir.types import Range
from olac.kernels.record import record
from olac.program.program import CompiledProgram
from olac.runtime import Client, EncryptedInput, EncryptedResult, EvaluationKeys, Progress, Server, commands, envelope
from olac.runtime import client as client_module
from olac.runtime.check_ranges import check_output
from olac.system.formats import FRAMES
from tests.runtime.engines import engine as engine
from tests.runtime.small_pair import READERS
from tests.runtime.small_program import ERROR, LIMIT, SHAPE, current_engine, images, small_program

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]

BATCH = 2


class Pair:
    """A client and a server of one program, made once for many tests."""

    def __init__(self, technique: str) -> None:
        self.program = small_program(technique, batch=BATCH)
        self.client = Client(self.program)
        self.keys = self.client.generate_keys()
        self.server = Server(self.program, self.keys)
        self.key_frame = self.keys.to_bytes()
        self.input_frame = self.client.encrypt(images(BATCH)).to_bytes()


@pytest.fixture(params=TECHNIQUES)
def each(request: pytest.FixtureRequest) -> Pair:
    return _pair(request.param)


@pytest.fixture
def pair() -> Pair:
    return _pair(FIXED)


def _pair(technique: str) -> Pair:
    return _pair_of(technique, current_engine())


@cache
def _pair_of(technique: str, engine: str) -> Pair:
    return Pair(technique)


def _close(program: CompiledProgram, given: Array, answer: Array) -> None:
    np.testing.assert_allclose(answer, program.simulate(given), atol=ERROR)


# What works ----------------------------------------------------------------------------------------------------------


def test_live_objects(each: Pair) -> None:
    x = images(BATCH)
    seen: list[Progress] = []
    result = each.server.run(each.client.encrypt(x), seen.append)
    _close(each.program, x, each.client.decrypt(result))
    nodes = [node.id for node in each.program.graph.nodes]
    assert [p.node for p in seen] == nodes == list(each.server.last_run)
    assert [p.done for p in seen] == list(range(1, len(nodes) + 1))
    assert {p.total for p in seen} == {len(nodes)}
    assert [p.level for p in seen] == [n.type.state.level for n in each.program.graph.nodes if n.type.state]
    assert all(seconds >= 0 for seconds in each.server.last_run.values())


def test_bytes_in_every_direction(each: Pair) -> None:
    x = images(BATCH)
    keys = EvaluationKeys.from_bytes(each.program, each.key_frame)
    assert (keys.steps, keys.count, keys.identity) == (each.keys.steps, each.keys.count, each.keys.identity)
    assert keys.to_bytes() == each.key_frame
    server = Server(each.program, keys)
    given = EncryptedInput.from_bytes(each.program, each.input_frame)
    assert given.to_bytes() == each.input_frame
    answer = server.run(given).to_bytes()
    _close(each.program, x, each.client.decrypt(EncryptedResult.from_bytes(each.program, answer)))
    # Live and received objects mix: a live input on loaded keys, a received one on live keys.
    _close(each.program, x, each.client.decrypt(server.run(each.client.encrypt(x))))
    _close(each.program, x, each.client.decrypt(each.server.run(given)))


def test_a_program_with_fewer_keys_gives_the_same(pair: Pair) -> None:
    whole = pair.program
    table, uses = CostTable.default(), record(whole.graph, whole.parameters).uses()
    price, estimate = CostEvaluator(whole.parameters, table, 1).price, whole.estimate(1, costs=table)
    *_, least = fewer_keys(
        uses, whole.parameters, price, estimate.seconds_per_image, estimate.sizes, lambda _, size: size
    )
    program = replace(whole, rotations=least.steps)
    assert program.composed
    client = Client(program)
    keys = client.generate_keys()
    assert keys.steps == least.steps
    _close(whole, images(BATCH), client.decrypt(Server(program, keys).run(client.encrypt(images(BATCH)))))


def test_single_images_and_batches_that_are_not_full(pair: Pair) -> None:
    x = images(1)
    encrypted = pair.client.encrypt(x[0])
    assert encrypted.images == 1
    answer = pair.client.decrypt(pair.server.run(encrypted))
    assert answer.shape == (1, 5)
    _close(pair.program, x, answer)


def test_encoded_weights_are_kept_and_give_the_same(pair: Pair) -> None:
    x = images(BATCH)
    server = Server(pair.program, pair.keys)
    server.prepare()
    kept = server._cache.bytes
    assert kept > 0
    for _ in range(2):
        _close(pair.program, x, pair.client.decrypt(server.run(pair.client.encrypt(x))))
    assert server._cache.bytes == kept
    bare = Server(pair.program, pair.keys, cache_bytes=0)
    _close(pair.program, x, pair.client.decrypt(bare.run(pair.client.encrypt(x))))
    assert bare._cache.bytes == 0


def test_a_server_keeps_to_the_memory_that_its_program_was_compiled_for(pair: Pair) -> None:
    """Beside what else is in this process; what is asked for goes before."""
    whole = estimate(pair.program)
    some = whole.plaintext_bytes // 2
    room = whole.sizes.least_server_bytes + (1 + UNUSED_SHARE) * some
    limited = replace(pair.program, report=replace(pair.program.report, max_memory=room))
    assert limited.fingerprint == pair.program.fingerprint
    received = EvaluationKeys.from_bytes(limited, pair.key_frame)
    server = Server(limited, received)
    assert server._cache.budget == pytest.approx(some, abs=2)
    server.prepare()
    one = limited.planned_for.kept_plaintext_bytes(limited.parameters, limited.parameters.depth)
    assert some - one < server._cache.bytes <= some
    assert Server(limited, received, cache_bytes="1GB")._cache.budget == 1e9
    assert Server(limited, received, max_memory="900GB")._cache.budget > some
    small = replace(pair.program, report=replace(pair.program.report, max_memory=2e8))
    assert Server(small, pair.keys)._cache.budget == 0  # live keys are there already


@pytest.mark.parametrize("name", ["max_memory", "cache_bytes"])
@pytest.mark.parametrize("amount", [8, -1e9, float("nan"), float("inf"), "8", "much"])
def test_what_is_no_amount_of_memory_is_refused(pair: Pair, name: str, amount: float | str) -> None:
    given: dict[str, Any] = {name: amount}
    with pytest.raises(ValueError, match=name):
        Server(pair.program, pair.keys, **given)


def test_clients_in_one_process_do_not_disturb_each_other(pair: Pair) -> None:
    x = images(BATCH)
    other = Client(pair.program)
    keys = other.generate_keys()
    server = Server(pair.program, keys)
    _close(pair.program, x, pair.client.decrypt(pair.server.run(pair.client.encrypt(x))))
    _close(pair.program, x, other.decrypt(server.run(other.encrypt(x))))
    with pytest.raises(ArtifactError, match="other keys"):
        server.run(pair.client.encrypt(x))
    with pytest.raises(ArtifactError, match="other keys"):
        pair.client.decrypt(server.run(other.encrypt(x)))


def test_runs_from_several_threads_take_turns(pair: Pair) -> None:
    x = images(BATCH)
    results: list[EncryptedResult] = []
    encrypted = pair.client.encrypt(x)
    threads = [threading.Thread(target=lambda: results.append(pair.server.run(encrypted))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    for result in results:
        _close(pair.program, x, pair.client.decrypt(result))


def test_progress_of_key_generation() -> None:
    seen: list[tuple[int, int]] = []
    keys = Client(small_program()).generate_keys(lambda done, total: seen.append((done, total)))
    assert seen[-1] == (keys.count, keys.count)
    assert seen == sorted(seen)


def test_files_and_commands(pair: Pair, tmp_path: Path) -> None:
    program, folder = tmp_path / "p.olac", tmp_path / "keys"
    pair.program.save(program)
    secret, evaluation = commands.keygen(program, folder)
    assert stat.S_IMODE(os.stat(secret).st_mode) == 0o600
    x = images(BATCH)
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    commands.encrypt(program, secret, tmp_path / "x.npy", tmp_path / "x.enc")
    commands.run(program, evaluation, tmp_path / "x.enc", tmp_path / "y.enc")
    answer = commands.decrypt(program, secret, tmp_path / "y.enc", tmp_path / "y.npy")
    np.testing.assert_array_equal(answer, np.load(tmp_path / "y.npy"))
    _close(pair.program, x, answer)
    with pytest.raises(ArtifactError, match="not overwritten"):
        commands.keygen(program, folder)
    for name in (evaluation, tmp_path / "x.enc", tmp_path / "y.enc"):
        with pytest.raises(ArtifactError, match="of kind"):
            Client.load(pair.program, name)


# Secrets -------------------------------------------------------------------------------------------------------------


def test_the_secret_key_is_in_nothing_that_the_server_gets(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    pair.client.save_secret_key(path)
    secret = path.read_bytes()
    limbs = pair.client._held().secret_words()
    assert all(limb.tobytes() in secret for limb in limbs)
    program = tmp_path / "p.olac"
    pair.program.save(program)
    for sent in (pair.key_frame, pair.input_frame, program.read_bytes()):
        for limb in limbs:
            assert limb[:8].tobytes() not in sent
            assert limb[-8:].tobytes() not in sent


def test_the_secret_key_is_not_overwritten_unless_asked(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    pair.client.save_secret_key(path)
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match="not overwritten"):
        Client.load(pair.program, path).save_secret_key(path)
    assert path.read_bytes() == before
    pair.client.save_secret_key(path, overwrite=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Client.load(pair.program, path)
    x = images(BATCH)
    _close(pair.program, x, again.decrypt(pair.server.run(again.encrypt(x))))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_client_without_a_key_says_so(pair: Pair, tmp_path: Path) -> None:
    client = Client(pair.program)
    for use in (
        lambda: client.encrypt(images()),
        lambda: client.save_secret_key(tmp_path / "s"),
        lambda: client.decrypt(pair.server.run(pair.client.encrypt(images()))),
    ):
        with pytest.raises(MissingKeyError, match="generate_keys"):
            use()


# Inputs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((1, 4, 4)),
        np.zeros((1, *SHAPE, 1)),
        np.zeros((0, *SHAPE)),
        np.zeros(32),
        np.full(SHAPE, np.nan),
        np.full(SHAPE, np.inf),
        "images",
        None,
    ],
    ids=str,
)
def test_inputs_of_another_shape_or_not_finite(pair: Pair, bad: Any) -> None:
    with pytest.raises(InputError):
        pair.client.encrypt(bad)


def test_values_beyond_the_calibrated_range_warn(pair: Pair, recwarn: pytest.WarningsRecorder) -> None:
    pair.client.encrypt(np.full(SHAPE, LIMIT))
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"channels 0, 1 of the input hold values outside the calibrated range"):
        pair.client.encrypt(np.full(SHAPE, 1.1 * LIMIT))


def test_values_far_beyond_the_calibrated_range_are_refused(pair: Pair) -> None:
    image = np.zeros(SHAPE)
    image[1, 2, 3] = 3.1 * LIMIT
    with pytest.raises(InputError, match=r"^channel 1 of the input holds .*allow_out_of_range") as refused:
        pair.client.encrypt(image)
    assert "6.2" not in str(refused.value)
    with pytest.warns(UserWarning, match="channel 1 of the input holds values far outside"):
        pair.client.encrypt(image, allow_out_of_range=True)
    with pytest.raises(InputError, match="too large for any ciphertext"), pytest.warns(UserWarning):
        pair.client.encrypt(np.full(SHAPE, 1e300), allow_out_of_range=True)


def test_outputs_far_beyond_their_calibrated_range_are_told(
    pair: Pair, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.client.decrypt(pair.server.run(pair.client.encrypt(images())))
    assert not recwarn.list
    narrow = replace(pair.program.output.type, channels=(Range(-1e-9, 1e-9),) * 4 + (Range(-9.0, 9.0),))
    assert check_output(np.zeros((1, 5)), narrow) == ""
    assert "columns 0, 2 of the outputs hold" in check_output(np.array([[1.0, 0.0, -1.0, 0.0, 9.0]]), narrow)
    graph = pair.program.graph
    made = graph.rewrite(
        lambda node, builder, inputs: builder.keep(node, inputs, type=narrow) if node.id in graph.outputs else None,
        by="",
    )
    program = replace(pair.program, graph=made)
    assert program.fingerprint != pair.program.fingerprint
    program.__dict__["fingerprint"] = pair.program.fingerprint
    result = pair.server.run(pair.client.encrypt(images()))
    monkeypatch.setattr(pair.client, "program", program)
    with pytest.warns(UserWarning, match="of the outputs hold"):
        pair.client.decrypt(result)


def test_what_overflows_does_not_decrypt_silently_as_nonsense_or_crash(pair: Pair) -> None:
    with pytest.warns(UserWarning, match="calibrated"):
        encrypted = pair.client.encrypt(np.full(SHAPE, 1e6), allow_out_of_range=True)
    with pytest.raises(BackendError, match="does not decrypt"):
        pair.client.decrypt(pair.server.run(encrypted))


# Keys and memory -----------------------------------------------------------------------------------------------------


def _frame(pair: Pair, kind: str, fields: dict[str, Any], payload: bytes) -> bytes:
    return b"".join(envelope.frame(kind, pair.program, fields, [payload], len(payload)))


def _header_fields(data: bytes) -> tuple[dict[str, Any], bytes]:
    import json

    _, _, _, header, payload = envelope.PREFIX.unpack(data[: envelope.PREFIX.size])
    start = envelope.PREFIX.size + header
    fields: dict[str, Any] = json.loads(data[envelope.PREFIX.size : start])
    return fields, data[start : start + payload]


def test_missing_rotation_keys_are_named(pair: Pair) -> None:
    fields, payload = _header_fields(pair.key_frame)
    at = sum(pair.keys.sizes[:2])  # the relinearisation key is the first
    lost = fields["steps"].pop(1)
    fields["levels"].pop(1)
    cut = _frame(pair, envelope.EVALUATION_KEYS, fields, payload[:at] + payload[at + pair.keys.sizes[2] :])
    keys = EvaluationKeys.from_bytes(pair.program, cut)
    with pytest.raises(MissingKeyError, match=rf"rotation steps {lost}\b"):
        Server(pair.program, keys)


def test_a_missing_relinearisation_key_is_named(pair: Pair) -> None:
    fields, payload = _header_fields(pair.key_frame)
    fields["relinearisation"] = None
    cut = _frame(pair, envelope.EVALUATION_KEYS, fields, payload[pair.keys.sizes[0] :])
    with pytest.raises(MissingKeyError, match="relinearisation"):
        Server(pair.program, EvaluationKeys.from_bytes(pair.program, cut))


def test_lists_of_keys_that_make_no_sense_are_refused(pair: Pair) -> None:
    fields, payload = _header_fields(pair.key_frame)
    depth, slots = pair.program.parameters.depth, pair.program.parameters.slots
    for steps in (
        [*fields["steps"][:-1], slots + 1],
        [0, *fields["steps"][1:]],
        [*fields["steps"][:-1], fields["steps"][0]],
        [*fields["steps"][:-1], "7"],
        [*fields["steps"][:-1], True],
        7,
    ):
        with pytest.raises(ArtifactError, match="steps"):
            data = _frame(pair, envelope.EVALUATION_KEYS, fields | {"steps": steps}, payload)
            EvaluationKeys.from_bytes(pair.program, data)
    for levels in ([depth + 1, *fields["levels"][1:]], [-1, *fields["levels"][1:]], fields["levels"][1:], None, "5"):
        with pytest.raises(ArtifactError, match="levels"):
            data = _frame(pair, envelope.EVALUATION_KEYS, fields | {"levels": levels}, payload)
            EvaluationKeys.from_bytes(pair.program, data)
    for name, value in (
        ("relinearisation", depth + 1),
        ("relinearisation", True),
        ("bootstraps", True),
        ("bootstraps", 0),
    ):
        with pytest.raises(ArtifactError, match=name):
            data = _frame(pair, envelope.EVALUATION_KEYS, fields | {name: value}, payload)
            EvaluationKeys.from_bytes(pair.program, data)


def test_key_generation_that_would_not_fit_is_refused_before_it_starts(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "available_bytes", lambda: 1000)
    monkeypatch.setattr(client_module, "current_rss_bytes", lambda: 0)
    client = Client(pair.program)
    with pytest.raises(InfeasibleError, match="GB are available"):
        client.generate_keys()
    assert client._session is None


def test_a_server_that_would_not_fit_is_refused(pair: Pair) -> None:
    with pytest.raises(InfeasibleError, match="max_memory"):
        Server(pair.program, EvaluationKeys.from_bytes(pair.program, pair.key_frame), max_memory=1e6)


# Hostile bytes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Iterator[dict[str, Path]]:
    pair, folder = _pair(FIXED), tmp_path_factory.mktemp("files")
    paths = {kind: folder / kind for kind in READERS}
    pair.client.save_secret_key(paths[envelope.SECRET_KEY])
    paths[envelope.EVALUATION_KEYS].write_bytes(pair.key_frame)
    paths[envelope.INPUT].write_bytes(pair.input_frame)
    pair.server.run(pair.client.encrypt(images())).save(paths[envelope.RESULT])
    yield paths


@pytest.mark.parametrize("kind", READERS)
def test_damaged_files_are_refused(files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    program, data = _pair(FIXED).program, files[kind].read_bytes()
    path = tmp_path / kind
    start = envelope.PREFIX.size
    rng = np.random.default_rng(0)
    damaged = [data[:length] for length in (0, 1, 4, 5, 20, start, start + 10, len(data) // 2, len(data) - 1)]
    damaged += [data + b"\0", data + data, b"", rng.bytes(1000), b"OLAC" + rng.bytes(1000)]
    places = [*range(start + 4), *(int(i) for i in rng.integers(start, 600, 8)), len(data) // 2, len(data) - 1]
    for at in places:
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    for bad in damaged:
        path.write_bytes(bad)
        with pytest.raises(ArtifactError) as caught:
            READERS[kind](program, path)
        assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(ArtifactError, match="does not exist"):
        READERS[kind](program, path)
    READERS[kind](program, files[kind])


@pytest.mark.parametrize("kind", READERS)
def test_files_of_another_kind_version_or_program(files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    pair, read = _pair(FIXED), READERS[kind]
    for other, path in files.items():
        if other != kind:
            with pytest.raises(ArtifactError, match=f"of kind '{other}', expected '{kind}'"):
                read(pair.program, path)
    data = bytearray(files[kind].read_bytes())
    data[4:6] = (FRAMES.current + 1).to_bytes(2, "little")
    newer = tmp_path / "newer"
    newer.write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"version {FRAMES.current + 1}.*Update olac"):
        read(pair.program, newer)
    strangers = {
        "program": small_program(batch=BATCH, seed=1),
        "parameters": replace(pair.program, parameters=replace(pair.program.parameters, first_bits=41)),
    }
    for what, stranger in strangers.items():
        if what == "program" and kind in (envelope.SECRET_KEY, envelope.EVALUATION_KEYS):
            read(stranger, files[kind])  # keys belong to parameters
            continue
        with pytest.raises(ArtifactError, match=f"belongs to {what}"):
            read(stranger, files[kind])


HOSTILE: dict[str, Callable[[np.ndarray[Any, Any], int], None]] = {
    "a word as large as its prime": lambda words, prime: words.__setitem__((0, -1), prime),
    "the largest words": lambda words, prime: words.fill(2**64 - 1),
    "zeros": lambda words, prime: words.fill(0),
    "one limb of zeros": lambda words, prime: words[-1].fill(0),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", READERS)
def test_words_that_are_no_residues_never_reach_an_engine(
    files: dict[str, Path], tmp_path: Path, kind: str, name: str, engine: str
) -> None:
    pair = _pair(FIXED)
    parameters = pair.program.parameters
    fields, payload = _header_fields(files[kind].read_bytes())
    if kind == envelope.EVALUATION_KEYS and engine == "vector":
        hostile = _hostile_packed(payload, parameters, HOSTILE[name])
    else:
        words = np.frombuffer(payload, "<u8").reshape(-1, parameters.ring_dimension).copy()
        HOSTILE[name](words, parameters.primes[0])
        hostile = words.tobytes()
    assert len(hostile) == len(payload)
    path = tmp_path / "hostile"
    path.write_bytes(_frame(pair, kind, fields, hostile))
    with pytest.raises(ArtifactError, match="hostile"):
        message = READERS[kind](pair.program, path)
        # Keys are read when they are used.
        Server(pair.program, message)


def _hostile_packed(payload: bytes, parameters: Parameters, change: Callable[[Any, int], None]) -> bytes:
    """The keys of the vector engine with other residues in the first digit of the first key, modulo q_0."""
    prime, count = parameters.primes[0], parameters.ring_dimension
    start, size = SEED_BYTES, residue_bytes(prime) * count
    packed = np.zeros((count, WORD_BYTES), dtype=np.uint8)
    packed[:, : residue_bytes(prime)] = np.frombuffer(payload[start : start + size], np.uint8).reshape(count, -1)
    words = packed.view("<u8").reshape(1, count)
    assert words.max() < prime
    change(words, prime)
    return payload[:start] + packed[:, : residue_bytes(prime)].tobytes() + payload[start + size :]


@pytest.mark.parametrize(
    "change",
    [{"images": 0}, {"images": 1 << 40}, {"images": "1"}, {"images": True}, {"limbs": 1}, {"ciphertexts": 2},
     {"ciphertexts": 1 << 40}, {"keys": "x"}, {"keys": None}],
    ids=str,
)  # fmt: skip
def test_headers_that_make_no_sense(pair: Pair, change: dict[str, Any]) -> None:
    fields, payload = _header_fields(pair.input_frame)
    with pytest.raises(ArtifactError, match=next(iter(change))):
        EncryptedInput.from_bytes(pair.program, _frame(pair, envelope.INPUT, fields | change, payload))


@pytest.mark.parametrize("header", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b'{"program": 1e999}'])
def test_headers_that_are_no_objects(pair: Pair, header: bytes) -> None:
    start = envelope.PREFIX.pack(envelope.MAGIC, FRAMES.current, envelope.INPUT.encode(), len(header), 0)
    with pytest.raises(ArtifactError):
        EncryptedInput.from_bytes(pair.program, start + header + bytes(envelope.DIGEST_BYTES))


def test_keys_are_read_alone_in_any_order(pair: Pair, tmp_path: Path) -> None:
    """Each is held to what it was when all were checked, whatever became of the others."""
    path = tmp_path / "evaluation.keys"
    path.write_bytes(pair.key_frame)
    start = len(pair.key_frame) - envelope.DIGEST_BYTES - pair.keys.payload_bytes
    ends = [start, *(start + end for end in accumulate(pair.keys.sizes))]
    keys = EvaluationKeys.load(pair.program, path)
    received = EvaluationKeys.from_bytes(pair.program, pair.key_frame)
    changed = bytearray(pair.key_frame)
    changed[ends[2] - 1] ^= 1  # the last byte of the second key
    path.write_bytes(changed)
    for place in reversed(range(keys.count)):
        expected = pair.key_frame[ends[place] : ends[place + 1]]
        assert b"".join(bytes(block.data) for block in received.blocks(place)) == expected
        if place != 1:
            assert b"".join(bytes(block.data) for block in keys.blocks(place)) == expected
            continue
        with pytest.raises(ArtifactError, match="SHA-256"):
            for _ in keys.blocks(place):
                pass
    path.write_bytes(changed[: ends[2]])
    with pytest.raises(ArtifactError, match=r"ends .* bytes early"):
        next(keys.blocks(2))


def test_a_file_that_changes_after_it_was_checked(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "evaluation.keys"
    path.write_bytes(pair.key_frame)
    keys = EvaluationKeys.load(pair.program, path)
    changed = bytearray(pair.key_frame)
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)
    with pytest.raises(ArtifactError, match="SHA-256"):
        Server(pair.program, keys)
    path.write_bytes(pair.key_frame[: len(changed) // 2])
    with pytest.raises(ArtifactError):
        Server(pair.program, EvaluationKeys.load(pair.program, path))


def test_a_result_of_uniform_words_does_not_decrypt(pair: Pair) -> None:
    result = pair.server.run(pair.client.encrypt(images())).to_bytes()
    fields, payload = _header_fields(result)
    words = np.frombuffer(payload, "<u8").copy()
    rng = np.random.default_rng(0)
    words[:] = rng.integers(pair.program.parameters.primes[0], size=len(words), dtype=np.uint64)
    bad = EncryptedResult.from_bytes(pair.program, _frame(pair, envelope.RESULT, fields, words.tobytes()))
    with pytest.raises(BackendError, match="does not decrypt"):
        pair.client.decrypt(bad)


def test_messages_of_another_program_in_memory(pair: Pair) -> None:
    graph = pair.program.graph
    constants = {name: array * (1 + (name == "fc.weight")) for name, array in graph.constants.items()}
    other = replace(pair.program, graph=Graph(graph.nodes, graph.outputs, constants, graph.stage))
    client = Client(other)
    Server(other, pair.keys)  # keys belong to parameters
    client.generate_keys()
    with pytest.raises(ArtifactError, match="another program"):
        pair.server.run(client.encrypt(images()))
    with pytest.raises(ArtifactError, match="another program"):
        client.decrypt(pair.server.run(pair.client.encrypt(images())))


# Arrays --------------------------------------------------------------------------------------------------------------


def test_npy_files(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="file of numbers"):
        commands.read_npy(path, (4,), 1)
    np.savez(tmp_path / "x.npz", a=np.ones(2))
    with pytest.raises(ArtifactError, match="archive"):
        commands.read_npy(tmp_path / "x.npz", (4,), 1)
    for data in (b"", b"text", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"\x80\x04K\x01."):
        path.write_bytes(data)
        with pytest.raises(OlacError, match=r"x\.npy"):
            commands.read_npy(path, (4,), 1)
    np.save(path, np.array([1j]))
    with pytest.raises(InputError, match="complex"):
        commands.read_npy(path, (4,), 1)
    np.save(path, np.array(["a"]))
    with pytest.raises(InputError):
        commands.read_npy(path, (4,), 1)
    # A header that claims far more than there is.
    np.save(path, np.zeros((3, 7)))
    path.write_bytes(path.read_bytes().replace(b"(3, 7)", b"(3000000000000, 7)", 1)[:-11])
    with pytest.raises(OlacError):
        commands.read_npy(path, (4,), 1)
    np.save(path, np.arange(4, dtype=np.uint8))
    assert commands.read_npy(path, (4,), 1).dtype == np.float64
    with pytest.raises(ArtifactError, match="does not exist"):
        commands.read_npy(tmp_path / "missing.npy", (4,), 1)
