"""What planners are told of engines."""

from __future__ import annotations

import copy
import pickle

import pytest

from olac.ckks.bootstrapping import bootstrap_model
from olac.ckks.engines import ENGINES, OPENFHE, engine_model
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.ckks.sizes import ciphertext_bytes, kept_plaintext_bytes, plaintext_bytes, rotation_key_bytes

PLAIN = Parameters(12, 5, 32, 40, 2, security=0)
DEEP = Parameters(11, 20, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(4))


def test_models_are_found_by_name_and_copies_are_the_same() -> None:
    for name, model in ENGINES.items():
        assert engine_model(name) is model and model.name == name
        assert pickle.loads(pickle.dumps(model)) is model and copy.deepcopy(model) is model
    with pytest.raises(ValueError, match="engine 'seal' is not one of openfhe"):
        engine_model("seal")


@pytest.mark.parametrize("parameters", [PLAIN, DEEP])
def test_openfhe_has_one_size_of_keys(parameters: Parameters) -> None:
    ring, special = parameters.log_ring, len(parameters.special_primes)
    whole = rotation_key_bytes(ring, parameters.limbs, parameters.digits, special)
    for level in (0, parameters.depth):
        assert OPENFHE.key_bytes(parameters, level) == whole
        assert OPENFHE.key_level(parameters, level) == parameters.depth
        assert OPENFHE.ciphertext_bytes(parameters, level) == ciphertext_bytes(ring, level + 1)
        assert OPENFHE.plaintext_bytes(parameters, level) == plaintext_bytes(ring, level + 1)
        assert OPENFHE.kept_plaintext_bytes(parameters, level) == kept_plaintext_bytes(ring, level + 1)
        assert OPENFHE.digits_bytes(parameters, level) == parameters.digits * plaintext_bytes(ring, level + 1 + special)
    assert OPENFHE.takes(parameters) and OPENFHE.special_primes(parameters) == parameters.special_primes
    assert OPENFHE.bootstraps(parameters) == bootstrap_model(parameters)
