"""Keys of programs with bootstraps: through bytes and files, beside other clients', and damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from olac.backends.openfhe import key_bytes, keys, special_keys
from olac.backends.openfhe.context import chain_of, make_small_context
from olac.backends.openfhe.key_bytes import KeyMaker
from olac.backends.openfhe.keys import KeySet, make_keys, new_secret_key
from olac.backends.openfhe.library import load
from olac.backends.openfhe.special_keys import special_template
from olac.backends.openfhe.wire import Wire, wire
from olac.backends.openfhe.words import extract
from olac.ckks.bootstrapping import SPECIAL_KEYS, bootstrap_model
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.ckks.sizes import SEED_BYTES
from olac.ckks.words import Words
from olac.errors import ArtifactError, BackendError
from olac.ir.ops import Array
from olac.runtime import Client, EncryptedResult, EvaluationKeys, Server
from olac.runtime.envelope import DIGEST_BYTES
from tests.runtime.bootstrapped_program import ERROR, ON_HALF, PARAMETERS, bootstrapped_program
from tests.runtime.engines import OPENFHE_ALONE
from tests.runtime.engines import engine as engine
from tests.runtime.key_sizes import one_key_bytes, special_key_bytes
from tests.runtime.small_program import ERROR as SMALL_ERROR
from tests.runtime.small_program import images as small_images
from tests.runtime.small_program import small_program

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]


class Pair:
    """A client, its server and the frame of its keys, made once."""

    def __init__(self, parameters: Parameters = PARAMETERS) -> None:
        self.program, self.images = bootstrapped_program(parameters)
        self.client = Client(self.program)
        self.seen: list[tuple[int, int]] = []
        self.keys = self.client.generate_keys(lambda done, total: self.seen.append((done, total)))
        self.frame = self.keys.to_bytes()


@pytest.fixture(scope="module")
def pair(engine: str) -> Pair:
    return Pair()


def answered(pair: Pair, server: Server, client: Client | None = None) -> Array:
    used = client or pair.client
    return used.decrypt(server.run(used.encrypt(pair.images[:1])))


def right(pair: Pair, answer: Array) -> bool:
    expected = pair.program.simulate(pair.images[:1])
    return bool(np.max(np.abs(answer - expected)) < ERROR * np.max(np.abs(expected)))


@OPENFHE_ALONE
def test_the_keys_are_those_that_bootstraps_take(pair: Pair) -> None:
    assert pair.keys.relinearisation and pair.keys.listed.bootstraps
    assert set(pair.keys.steps) >= bootstrap_model(PARAMETERS).steps
    short, *others = special_key_bytes(pair.program)
    assert short < one_key_bytes(pair.program) == others[0] == others[1]
    assert pair.seen[-1] == (pair.keys.count + SPECIAL_KEYS,) * 2
    assert (
        pair.keys.count * one_key_bytes(pair.program) + short + sum(others)
        < len(pair.frame)
        < 1.01 * pair.keys.payload_bytes
    )
    assert special_key_bytes(small_program()) == []


def test_live_keys_bytes_and_files_give_the_same(pair: Pair, tmp_path: Path) -> None:
    assert right(pair, answered(pair, Server(pair.program, pair.keys)))
    loaded = EvaluationKeys.from_bytes(pair.program, pair.frame)
    assert loaded.to_bytes() == pair.frame
    assert right(pair, answered(pair, Server(pair.program, loaded)))
    pair.keys.save(tmp_path / "evaluation.keys")
    again = EvaluationKeys.load(pair.program, tmp_path / "evaluation.keys")
    server = Server(pair.program, again)
    result = server.run(pair.client.encrypt(pair.images[:1])).to_bytes()
    assert right(pair, pair.client.decrypt(EncryptedResult.from_bytes(pair.program, result)))
    assert any(node.op.name == "bootstrap" for node in pair.program.graph.nodes)


def test_bootstraps_on_half_of_the_slots(tmp_path: Path, engine: str) -> None:
    """Special keys come from a set-up for half of the slots, too: that of the program must outlive it."""
    pair = Pair(ON_HALF)
    assert any(node.op.name == "bootstrap" for node in pair.program.graph.nodes)
    assert set(pair.keys.steps) >= pair.program.planned_for.bootstraps(ON_HALF).steps
    assert engine != "openfhe" or 512 + 1 in pair.keys.steps
    server = Server(pair.program, pair.keys)
    assert right(pair, answered(pair, server))
    second = Client(pair.program)
    second.generate_keys().save(tmp_path / "evaluation.keys")
    assert right(pair, answered(pair, server))
    loaded = EvaluationKeys.load(pair.program, tmp_path / "evaluation.keys")
    assert right(pair, answered(pair, Server(pair.program, loaded), second))


@OPENFHE_ALONE
@pytest.mark.parametrize("threads", [1, 4])
def test_threads_read_and_write_the_same_keys(pair: Pair, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    assert pair.keys.to_bytes() == pair.frame
    loaded = EvaluationKeys.from_bytes(pair.program, pair.frame)
    seen: list[tuple[int, int]] = []
    installed = loaded.install(lambda done, total: seen.append((done, total)))
    assert isinstance(installed, KeySet)
    assert seen == [(done, pair.seen[-1][1]) for done in range(1, pair.seen[-1][1] + 1)]
    # What OpenFHE holds now, word for word.
    ready, fhe = wire(PARAMETERS), load()
    primes = [ready.evaluation_key_primes] * len(installed.steps)
    primes += [ready.special_key_primes(index) for index in ready.special_indices]
    held = fhe.Serialize(fhe.CryptoContext.GetEvalAutomorphismKeyMap(installed.tag), fhe.BINARY)
    words = extract(held, [prime for part in primes for prime in part], ready.length)
    payload = np.frombuffer(pair.frame[-DIGEST_BYTES - words.nbytes : -DIGEST_BYTES], "<u8").reshape(words.shape)
    order = np.argsort([ready.context.FindAutomorphismIndex(step) for step in installed.steps])
    blocks = len(ready.evaluation_key_primes)
    rotations = len(order) * blocks
    expected = payload[:rotations].reshape(len(order), blocks, -1)[order].reshape(rotations, -1)
    assert np.array_equal(words[:rotations], expected)
    assert np.array_equal(words[rotations:], payload[rotations:])


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_refuse_the_same_words(pair: Pair, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    size, at = pair.keys.payload_bytes, sum(pair.keys.sizes[:4]) - 8  # the last bytes of the fourth key

    def too_large(payload: bytes) -> bytes:
        return payload[:at] + b"\xff" * 8 + payload[at + 8 :]

    frame = pair.frame[: -size - DIGEST_BYTES] + too_large(pair.frame[-size - DIGEST_BYTES : -DIGEST_BYTES])
    keys = EvaluationKeys.from_bytes(pair.program, frame + hashlib.sha256(frame).digest())
    with pytest.raises(ArtifactError, match="not less than their prime"):
        keys.install()


def test_clients_in_one_process_keep_their_keys(pair: Pair) -> None:
    """Special keys are made by clearing OpenFHE's own map, which holds everybody's."""
    plain = small_program()
    others = Client(plain)
    other_server = Server(plain, others.generate_keys())
    server = Server(pair.program, pair.keys)
    second = Client(pair.program)
    second_server = Server(pair.program, second.generate_keys())
    assert right(pair, answered(pair, second_server, second))
    assert right(pair, answered(pair, server))
    x = small_images()
    np.testing.assert_allclose(others.decrypt(other_server.run(others.encrypt(x))), plain.simulate(x), atol=SMALL_ERROR)
    with pytest.raises(ArtifactError, match="other keys"):
        server.run(second.encrypt(pair.images[:1]))


@OPENFHE_ALONE
def test_keys_of_others_come_back_when_making_special_ones_fails(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    fhe = load()
    made = make_keys(PARAMETERS, new_secret_key(PARAMETERS), (1, 2), False)
    held = sorted(fhe.CryptoContext.GetExistingEvalAutomorphismKeyIndices(made.tag))
    spare = new_secret_key(PARAMETERS)
    tag = spare.GetKeyTag()

    class Failing:
        """OpenFHE that can't read its own file."""

        def __getattr__(self, name: str) -> object:
            return getattr(fhe, name)

        def SerializeToFile(self, *arguments: object) -> bool:
            return False

        def DeserializeEvalBootstrapKey(self, *arguments: object) -> bool:
            return False

    monkeypatch.setattr(special_keys, "load", Failing)
    monkeypatch.setattr(key_bytes, "load", Failing)
    with pytest.raises(BackendError, match="can't read"):
        special_template(Wire(PARAMETERS))
    with pytest.raises(BackendError, match="can't write"):
        make_keys(PARAMETERS, spare, (1, 2), False)
    monkeypatch.undo()
    assert sorted(fhe.CryptoContext.GetExistingEvalAutomorphismKeyIndices(made.tag)) == held
    assert spare.GetKeyTag() == tag


def special_words() -> dict[int, Words]:
    """Of a key pair that nobody has."""
    return make_keys(PARAMETERS, new_secret_key(PARAMETERS), (), False).special


@OPENFHE_ALONE
def test_special_keys_survive_as_words(pair: Pair) -> None:
    ready, words = wire(PARAMETERS), special_words()
    assert tuple(words) == ready.special_indices
    with KeyMaker(ready, "0" * 32, False, 0) as maker:
        for index, part in words.items():
            assert len(part) == len(ready.special_key_primes(index))
            with pytest.raises(ArtifactError, match="not less than their prime"):
                maker.special(index, part | np.uint64(1 << 62))
            with pytest.raises(ArtifactError, match="not uniform"):
                maker.special(index, part * np.uint64(0))
            with pytest.raises(ArtifactError, match="blocks of coefficients"):
                maker.special(index, part[1:])
            with pytest.raises(ArtifactError, match="more or other coefficients"):
                maker.special(index, np.concatenate([part, part]))
            with pytest.raises(ArtifactError, match="more or other coefficients"):
                maker.special(index, part[:, 1:])


@OPENFHE_ALONE
@pytest.mark.parametrize("first_bits", [40, 47])
def test_templates_of_special_keys_are_of_one_prime_where_that_is_q0(first_bits: int) -> None:
    """A first prime of the scale's size depends on the levels: then the template is made with all of them."""
    parameters = Parameters(10, 20, 40, first_bits, 2, FLEXIBLE, 0, Bootstrapping(4))
    assert (chain_of(make_small_context(parameters)) == parameters.primes[:1]) is (first_bits == 47)
    ready, fhe = wire(parameters), load()
    index = ready.special_indices[0]
    words = make_keys(parameters, new_secret_key(parameters), (), False).special
    with KeyMaker(ready, "0" * 32, False, 0) as maker:
        key = fhe.Serialize(maker.special(index, words[index]), fhe.BINARY)
    assert np.array_equal(extract(key, ready.special_key_primes(index), ready.length), words[index])


def forged(frame: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The frame with another payload, as somebody would send it who can also write the right hash of it."""
    body = change(frame[:-DIGEST_BYTES])
    return body + hashlib.sha256(body).digest()


def test_damaged_and_missing_special_keys_are_refused(pair: Pair, engine: str) -> None:
    sizes = pair.keys.sizes[pair.keys.count :]
    assert len(sizes) >= SPECIAL_KEYS  # the vector engine has more
    for data in (
        pair.frame[: -sizes[-1]],
        forged(pair.frame, lambda data: data[: -sizes[-1]]),
        forged(pair.frame, lambda data: data[: -sum(sizes)]),
        forged(pair.frame, lambda data: data + bytes(sizes[-1])),
        pair.frame[: -DIGEST_BYTES - 8] + bytes(8) + pair.frame[-DIGEST_BYTES:],
    ):
        with pytest.raises(ArtifactError):
            EvaluationKeys.from_bytes(pair.program, data)
    # The residues of the key into the sparser secret, which follow its seed if the key has one.
    short_starts = -sum(sizes) + (SEED_BYTES if engine == "vector" else 0)
    changes: list[tuple[str, Callable[[bytes], bytes]]] = [
        ("not uniform", lambda data: data[: -sizes[-1]] + bytes(sizes[-1])),
        ("not less than their prime", lambda data: data[:-8] + b"\xff" * 8),
        ("not less than their prime", lambda data: data[:short_starts] + b"\xff" * 8 + data[short_starts + 8 :]),
    ]
    for message, change in changes:
        keys = EvaluationKeys.from_bytes(pair.program, forged(pair.frame, change))
        with pytest.raises(ArtifactError, match=message):
            Server(pair.program, keys)


def test_keys_of_a_program_without_bootstraps_are_refused(pair: Pair) -> None:
    plain = small_program()
    frame = Client(plain).generate_keys().to_bytes()
    with pytest.raises(ArtifactError):
        EvaluationKeys.from_bytes(pair.program, frame)


@OPENFHE_ALONE
def test_keys_that_openfhe_lacks_are_counted(pair: Pair) -> None:
    made = make_keys(PARAMETERS, new_secret_key(PARAMETERS), (1, 2), False)
    made.steps = (1, 2, 3)
    with pytest.raises(BackendError, match="lacks 1 of 6 keys for rotations and bootstraps"):
        keys._check(made)
