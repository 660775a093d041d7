"""Key switching without bias: its transform against the definition, and its effect on slot 0."""

from __future__ import annotations

import numpy as np
import pytest

from olac.ckks.parameters import Parameters
from olac.ckks.primes import TECHNIQUES


def test_transform_is_openfhes() -> None:
    """Values at the odd powers of the root, in bit-reversed order."""
    pytest.importorskip("openfhe")
    from olac.backends.openfhe.rounding import least_root, rudin_shapiro, transform

    n, p = 16, Parameters(12, 1, 40, 50, 1, security=0).primes[0]
    root, bits = least_root(n, p), rudin_shapiro(n)
    assert pow(root, n, p) == p - 1
    assert all(pow(root, k, p) >= root for k in range(1, 2 * n, 2))
    expected = [
        sum(int(bit) * pow(root, (2 * int(f"{i:04b}"[::-1], 2) + 1) * k, p) for k, bit in enumerate(bits)) % p
        for i in range(n)
    ]
    assert transform(bits, p, root).tolist() == expected


def test_bits_have_no_peak() -> None:
    pytest.importorskip("openfhe")
    from olac.backends.openfhe.rounding import rudin_shapiro

    bits = rudin_shapiro(4096)
    spectrum = np.fft.fft((bits - 0.5) * np.exp(1j * np.pi * np.arange(4096) / 4096))
    assert np.max(np.abs(spectrum)) <= np.sqrt(2 * 4096) / 2 + 1e-6


@pytest.mark.encrypted
@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("digits", [1, 2, 4])
def test_slot_0_is_as_exact_as_the_others(technique: str, digits: int) -> None:
    """Left alone, its error is 25 to 200 times that of the others, by the key and the number of special primes."""
    pytest.importorskip("openfhe")
    from olac.backends.openfhe.evaluator import OpenFHEEvaluator
    from olac.backends.openfhe.keys import make_keys, new_secret_key
    from olac.backends.openfhe.wire import wire

    parameters = Parameters(12, 3, 25, 32, digits, technique, security=0)
    errors = []
    for _ in range(3):
        key = new_secret_key(parameters)
        keys = make_keys(parameters, key, (1, 3, 4), False, None)
        evaluator = OpenFHEEvaluator(wire(parameters).context, parameters)
        slots = np.random.default_rng(0).uniform(-1, 1, parameters.slots)
        fresh = evaluator.encrypt(key, slots, 3)
        low = evaluator.level_reduce(fresh, 1)
        for ciphertext in (fresh, low):
            turned = {4: evaluator.rotate(ciphertext, 4), **evaluator.rotate_hoisted(ciphertext, [1, 3])}
            errors += [evaluator.decrypt(key, c) - np.roll(slots, -step) for step, c in turned.items()]
        del keys
    noise = np.sqrt(np.mean(np.square(errors), axis=0))
    assert noise[0] < 4 * np.median(noise)
