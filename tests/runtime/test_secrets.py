"""Clients with OpenFHE's secret keys and with the vector engine's own: what they give each other, and their files."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from olac.backends.session import OPENFHE_SECRETS, OWN_SECRETS
from olac.backends.vector.secret import OwnSecret
from olac.backends.vector.secret_choice import OpenFHESecret
from olac.ckks.primes import TECHNIQUES
from olac.ckks.words import Words, as_bytes
from olac.errors import ArtifactError, BackendError
from olac.program.program import CompiledProgram
from olac.runtime import Client, EncryptedInput, EncryptedResult, EvaluationKeys, Server, envelope
from tests.runtime.small_program import DEEP_ERROR, DEEP_SHAPE, ERROR, deep_program, images, small_program

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]

ROOT = Path(__file__).resolve().parents[2]
KINDS = {OPENFHE_SECRETS: OpenFHESecret, OWN_SECRETS: OwnSecret}


@cache
def program() -> CompiledProgram:
    return small_program()


@cache
def pair() -> tuple[Client, EvaluationKeys]:
    client = Client(program(), engine="vector", secrets=OWN_SECRETS)
    return client, client.generate_keys()


def kind_of(client: Client) -> type:
    return type(client._held().secret)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("first", "second"), [tuple(KINDS), tuple(KINDS)[::-1]])
@pytest.mark.parametrize("name", [*TECHNIQUES, "deep"])
def test_either_client_reads_what_the_other_makes(first: str, second: str, name: str, tmp_path: Path) -> None:
    """The secret key, ciphertexts and evaluation keys, as files; with bootstraps, too."""
    model = deep_program(2) if name == "deep" else small_program(name)
    x = np.random.default_rng(0).uniform(-1, 1, (1, *DEEP_SHAPE)) if name == "deep" else images()
    error = DEEP_ERROR if name == "deep" else ERROR
    client = Client(model, engine="vector", secrets=first)
    keys = client.generate_keys()
    client.save_secret_key(tmp_path / "secret.key")
    assert stat.S_IMODE((tmp_path / "secret.key").stat().st_mode) == 0o600
    other = Client.load(model, tmp_path / "secret.key", engine="vector", secrets=second)
    assert (kind_of(client), kind_of(other)) == (KINDS[first], KINDS[second])
    other.save_secret_key(tmp_path / "again.key")
    assert (tmp_path / "again.key").read_bytes() == (tmp_path / "secret.key").read_bytes()
    server = Server(model, EvaluationKeys.from_bytes(model, keys.to_bytes()))
    for encrypts, decrypts in ((client, other), (other, client), (other, other)):
        given = EncryptedInput.from_bytes(model, encrypts.encrypt(x).to_bytes())
        result = EncryptedResult.from_bytes(model, server.run(given).to_bytes())
        assert np.max(np.abs(decrypts.decrypt(result) - model.simulate(x))) < error


def test_a_client_of_the_other_engine_reads_it_too(tmp_path: Path) -> None:
    client, keys = pair()
    client.save_secret_key(tmp_path / "secret.key")
    other = Client.load(program(), tmp_path / "secret.key", engine="openfhe")
    result = Server(program(), keys).run(EncryptedInput.from_bytes(program(), other.encrypt(images()).to_bytes()))
    for one in (client, other):
        assert np.max(np.abs(one.decrypt(result) - program().simulate(images()))) < ERROR


def test_where_openfhe_loads_it_makes_secret_keys() -> None:
    client = Client(program(), engine="vector")
    client.generate_keys()
    assert kind_of(client) is OpenFHESecret
    for engine, secrets in (("openfhe", OWN_SECRETS), ("vector", "nobody"), ("openfhe", "nobody")):
        with pytest.raises(BackendError, match="secret keys"):
            Client(program(), engine=engine, secrets=secrets).generate_keys()


def test_another_secret_is_noticed() -> None:
    """By the name of the pair, and without it by the noise."""
    client, keys = pair()
    result = Server(program(), keys).run(client.encrypt(images()))
    other = Client(program(), engine="vector", secrets=OWN_SECRETS)
    other.generate_keys()
    with pytest.raises(ArtifactError, match="made with other keys"):
        other.decrypt(result)
    other._identity = client._identity
    with pytest.raises(BackendError, match="does not decrypt: the vector engine found noise in place of numbers"):
        other.decrypt(EncryptedResult.from_bytes(program(), result.to_bytes()))


def written(path: Path, words: Words) -> Path:
    """A secret key file with any words."""
    data = as_bytes(words)
    pieces = envelope.frame(envelope.SECRET_KEY, program(), {"keys": "0" * 32}, [data], len(data))
    path.write_bytes(b"".join(pieces))
    path.chmod(0o600)
    return path


def test_files_that_hold_no_secret(tmp_path: Path) -> None:
    client, _ = pair()
    words = client._held().secret_words()
    path = tmp_path / "secret.key"

    def load() -> None:
        Client.load(program(), path, engine="vector", secrets=OWN_SECRETS)

    primes = program().parameters.primes
    uniform = np.stack([np.random.default_rng(0).integers(0, p, words.shape[1], np.uint64) for p in primes])
    mixed = np.concatenate([words[:1], uniform[1:]])
    for wrong in (uniform, mixed, np.zeros_like(words), words[::-1], words | np.uint64(1 << 60)):
        written(path, wrong)
        with pytest.raises(ArtifactError, match=r"secret\.key"):
            load()
    written(path, words)
    load()
    path.chmod(0o644)
    with pytest.raises(ArtifactError, match="chmod 600"):
        load()
    path.chmod(0o600)
    good = path.read_bytes()
    for bad in (good[:-1], good + b"\0", good[:400] + bytes([good[400] ^ 1]) + good[401:], b"", good[:60]):
        path.write_bytes(bad)
        with pytest.raises(ArtifactError):
            load()


FORKS = """
import hashlib, json, os, warnings
import numpy as np
warnings.simplefilter("ignore")
from olac.backends.vector.secret import balanced_ternary, gaussian, uniform_ternary
from olac.runtime import Client, EncryptedInput, EncryptedResult, Server
from tests.runtime.small_program import images, small_program

program = small_program()
client = Client(program, engine="vector", secrets="olac")
keys = client.generate_keys()
server = Server(program, keys)

def drawn():
    given = client.encrypt(images())
    answer = client.decrypt(server.run(given))
    other = Client(program, engine="vector", secrets="olac")
    other.generate_keys()
    random = [uniform_ternary(4096), balanced_ternary(4096, 192), gaussian(64), other._held().secret_words()]
    random += [given._live[0].data[: 1 << 12], answer]
    right = bool(np.max(np.abs(answer - program.simulate(images()))) < 1e-3)
    return right, [hashlib.sha256(one.tobytes()).hexdigest() for one in random]

client.encrypt(images())
found = []
for _ in range(2):
    read, write = os.pipe()
    if not os.fork():
        os.write(write, json.dumps(drawn()).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found.append(json.load(pipe))
    os.wait()
print(json.dumps([*found, drawn()]))
"""


def test_forks_work_and_share_no_randomness() -> None:
    """OpenFHE, whose state a fork would repeat, is not used, so clients and servers that were made before it go on."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", FORKS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [right for right, _ in found] == [True] * 3
    assert len({value for _, one in found for value in one}) == 18
