"""Encryption with a public key: by those who must not decrypt."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.analysis.noise import NOISE_MARGIN_BITS, PUBLIC_NOISE, _rescale_noise
from olac.backends.base import Ciphertext
from olac.ckks.parameters import SPARSE_WEIGHT
from olac.cli import main
from olac.errors import ArtifactError, BackendError, InputError, MissingKeyError
from olac.program.client_program import ClientProgram
from olac.program.program import CompiledProgram
from olac.runtime import Client, EncryptedInput, Encryptor, EvaluationKeys, PublicKey, Server
from tests.runtime.engines import engine as engine
from tests.runtime.small_program import ERROR, current_engine, deep_program, images, small_program

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]

FIT = 16 * ERROR
"""Errors of the small program, whose scale was not chosen for public keys."""


@cache
def _pair(engine: str) -> tuple[Client, EvaluationKeys]:
    client = Client(small_program())
    return client, client.generate_keys()


def pair() -> tuple[Client, EvaluationKeys]:
    return _pair(current_engine())


@pytest.mark.parametrize("secrets", ["openfhe", "olac"])
def test_what_an_encryptor_encrypts_the_client_decrypts(secrets: str, tmp_path: Path, engine: str) -> None:
    program, (client, keys) = small_program(), pair()
    client.public_key().save(tmp_path / "public.key")
    public = PublicKey.load(program.client(), tmp_path / "public.key")
    assert public.identity == client.identity and pickle.loads(pickle.dumps(public)).to_bytes() == public.to_bytes()
    if engine == "openfhe" and secrets == "olac":
        with pytest.raises(BackendError, match="encrypts by itself"):
            Encryptor(program, public, secrets=secrets)
        return
    encryptor = Encryptor(program.client(), public, secrets=secrets)
    assert not hasattr(encryptor, "decrypt") and not hasattr(encryptor._session, "decrypt")
    server, x = Server(program, keys), images()
    given = encryptor.encrypt(x)
    for one in (given, EncryptedInput.from_bytes(program, given.to_bytes())):
        result = server.run(one)
        np.testing.assert_allclose(client.decrypt(result, of=given), program.simulate(x), atol=FIT)
    assert encryptor.encrypt(x).digest != given.digest
    with pytest.raises(InputError, match="channels 0, 1 of the input"):
        encryptor.encrypt(x + 100)
    assert encryptor.encrypt(images(2)).sets == 2


@pytest.mark.parametrize("secrets", ["openfhe", "olac"])
@pytest.mark.parametrize("bootstrapped", [False, True])
def test_the_noise_is_what_plans_count(secrets: str, bootstrapped: bool, engine: str) -> None:
    """Measured in the slots of fresh ciphertexts, against a rescale's by the formula."""
    if engine == "openfhe" and secrets == "olac":
        pytest.skip("OpenFHE encrypts by itself")
    program = deep_program(1) if bootstrapped else small_program()
    parameters = program.parameters
    client = Client(program)
    client._session = client._engine.client(parameters, "0" * 32)
    client._identity = "0" * 32
    encryptor = Encryptor(program, client.public_key(), secrets=secrets)
    slots = np.random.default_rng(0).uniform(-1, 1, parameters.slots)
    level = program.input.state.level
    found = []
    for session in (encryptor._session, client._session):
        state = program.input.state
        part = client._session.adopt(session.encrypt(slots, level))
        found.append(np.std(client._session.decrypt(Ciphertext(part, state)) - slots))
    public, secret = found
    n, scale = parameters.ring_dimension, parameters.scale(level)
    weight = SPARSE_WEIGHT if bootstrapped else 2 * n / 3
    wanted = 3.2 * math.sqrt(2 * n / 3 + weight + 1) * math.sqrt(n / 2) / scale
    assert 0.9 < public / (math.sqrt(2) * wanted) < 1.1  # decryption adds as much as there is
    assert 10 * secret < public
    rescale = _rescale_noise(parameters.log_ring) / 2.0**NOISE_MARGIN_BITS / scale
    assert wanted < 1.02 * PUBLIC_NOISE * rescale


def test_a_program_that_was_not_planned_for_public_keys(engine: str) -> None:
    program, (client, _) = small_program(), pair()
    public = client.public_key()
    for one in (program, program.client()):
        with pytest.warns(UserWarning, match=r"less precise\. Compile it with public_key=True"):
            Encryptor(one, public)
    data = json.loads(program.client().to_bytes())
    data["client"]["public_key"] = 1
    text = json.dumps(data["client"], sort_keys=True, separators=(",", ":"))
    data["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(ArtifactError, match="public_key"):
        ClientProgram.from_bytes(json.dumps(data).encode())


def test_public_keys_that_do_not_fit(tmp_path: Path, engine: str) -> None:
    program, (client, keys) = small_program(), pair()
    public = client.public_key()
    finer = small_program(lowering="multiplexed")
    with pytest.raises(ArtifactError, match="for other parameters"):
        Encryptor(finer, public)
    with pytest.raises(ArtifactError, match="belongs to parameters"):
        PublicKey.from_bytes(finer, public.to_bytes())
    for wrong in (client, keys, b"", None):
        with pytest.raises(ArtifactError, match="expected a public key"):
            Encryptor(program, wrong)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="of kind 'evaluation-keys', expected 'public-key'"):
        PublicKey.from_bytes(program, keys.to_bytes())
    with pytest.raises(MissingKeyError):
        Client(program).public_key()
    other = Client(program)
    other.generate_keys()
    given = Encryptor(program, other.public_key()).encrypt(images())
    with pytest.raises(ArtifactError, match="under other keys"):
        Server(program, keys).run(given)
    data = public.to_bytes()
    for bad in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), data + b"\0"):
        with pytest.raises(ArtifactError):
            PublicKey.from_bytes(program, bad)
    for words in (np.zeros_like(public.words), public.words | np.uint64(1 << 63)):
        with pytest.raises(ArtifactError, match="coefficients"):
            PublicKey.from_bytes(program, PublicKey(public.parameters, public.identity, words).to_bytes())


def test_the_public_key_does_not_hold_the_secret() -> None:
    client, _ = pair()
    data = client.public_key().to_bytes()
    for limb in client._held().secret_words():
        assert limb[:8].tobytes() not in data and limb[-8:].tobytes() not in data


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = small_program()
    program.save(tmp_path / "p.olac")
    program.client().save(tmp_path / "c.json")
    np.save(tmp_path / "x.npy", images())
    place = {name: str(tmp_path / name) for name in ("p.olac", "c.json", "x.npy", "k", "pub", "in", "out", "y.npy")}
    secret, evaluation = f"{place['k']}/secret.key", f"{place['k']}/evaluation.keys"
    assert main(["keygen", place["c.json"], place["k"]]) == 0
    assert main(["public-key", place["c.json"], secret, place["pub"]]) == 0
    assert main(["public-key", place["c.json"], secret, secret]) == 1
    assert main(["encrypt", place["c.json"], place["pub"], place["x.npy"], place["in"]]) == 0
    assert main(["run", place["p.olac"], evaluation, place["in"], place["out"]]) == 0
    assert main(["decrypt", place["c.json"], place["pub"], place["out"], place["y.npy"]]) == 1
    assert "of kind 'public-key', expected 'secret-key'" in capsys.readouterr().err
    assert main(["decrypt", place["c.json"], secret, place["out"], place["y.npy"]]) == 0
    np.testing.assert_allclose(np.load(place["y.npy"]), program.simulate(images()), atol=FIT)


def test_programs_are_planned_for_public_keys(engine: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 3)).eval()
    data = torch.rand(256, 6)
    usual, public = (
        olac.compile(model, [data], log_ring=11, insecure=True, engine=engine, precision=1e-3, public_key=given)
        for given in (False, True)
    )
    assert usual.parameters.scale_bits + 2 <= public.parameters.scale_bits <= usual.parameters.scale_bits + 4
    assert (usual.public_key, public.public_key) == (False, True)
    for again in (CompiledProgram.from_bytes(public.to_bytes()), ClientProgram.from_bytes(public.client().to_bytes())):
        assert again.public_key and again.fingerprint == public.fingerprint
    assert b"public_key" not in usual.client().to_bytes()
    like = olac.compile(model, [data], insecure=True, like=public)
    assert like.public_key and like.parameters == public.parameters
    client = Client(public)
    server = Server(public, client.generate_keys())
    x = data[:1].numpy()
    wanted = public.simulate(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encryptor = Encryptor(public, client.public_key())
    error = np.abs(client.decrypt(server.run(encryptor.encrypt(x))) - wanted).max()
    assert error < 1e-3 * np.abs(model(data).detach().numpy()).max()
