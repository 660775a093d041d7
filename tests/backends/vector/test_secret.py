"""Secret keys of the vector engine's own: their distributions, and what is encrypted and decrypted with them."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from math import comb

import numpy as np
import pytest
import scipy.stats

from olac.backends.base import Ciphertext
from olac.backends.openfhe.session import ENGINE as OPENFHE
from olac.backends.session import OPENFHE_SECRETS, OWN_SECRETS
from olac.backends.vector.randomness import BINOMIAL_PAIRS, SIGMA
from olac.backends.vector.residues import add, multiply
from olac.backends.vector.ring import ring
from olac.backends.vector.secret import (
    OwnSecret,
    balanced_ternary,
    gaussian,
    new_secret,
    secret_coefficients,
    uniform_ternary,
    with_noise,
)
from olac.backends.vector.secret_choice import OpenFHESecret, chosen_secret
from olac.backends.vector.session import ENGINE
from olac.ckks.parameters import SPARSE_WEIGHT, Bootstrapping, Parameters
from olac.ckks.primes import FIXED, FLEXIBLE
from olac.ckks.words import Words
from olac.errors import ArtifactError, BackendError, SecurityError, VerificationError
from olac.ir.types import CipherState
from olac.system.arrays import Array

pytestmark = pytest.mark.encrypted

RARE = 1e-9
"""A right distribution fails a test of what the system's generator gave as rarely as this."""
IDENTITY = "0" * 32
LEVELLED = Parameters(11, 5, 37, 41, 2, FIXED, security=0)
SCALED = replace(LEVELLED, technique=FLEXIBLE)
BOOTSTRAPPED = Parameters(10, 15, 37, 41, 3, FLEXIBLE, 0, Bootstrapping(1, (2, 2)))
ALL = [LEVELLED, SCALED, BOOTSTRAPPED]


@cache
def own(parameters: Parameters) -> OwnSecret:
    ENGINE.client(parameters, IDENTITY)  # makes the kernels ready
    return OwnSecret(ring(parameters))


def openfhes(parameters: Parameters) -> OpenFHESecret:
    """The same secret in OpenFHE."""
    return OpenFHESecret(parameters, IDENTITY, own(parameters).words())


def state(parameters: Parameters, level: int) -> CipherState:
    return CipherState(level, 1, parameters.scale(level))


def slots_for(parameters: Parameters, size: float = 1.0) -> Array:
    return np.random.default_rng(1).uniform(-size, size, parameters.slots)


def integers(parameters: Parameters, words: Words) -> list[int]:
    """c_0 + c_1 s modulo q_0 ... q_l as whole numbers around zero, in plain Python."""
    made, primes = ring(parameters), parameters.primes[: words.shape[1]]
    secret = own(parameters).words()
    rows = []
    for i, prime in enumerate(primes):
        values = add(words[0, i], multiply(words[1, i], secret[i], prime), prime)
        row = made.coefficients(made.from_words(values[None], (i,))[0], i)
        rows.append([int(v) % prime for v in row])
    product = 1
    for prime in primes:
        product *= prime
    factors = [product // prime * pow(product // prime, -1, prime) for prime in primes]
    out = []
    for column in zip(*rows, strict=True):
        value = sum(r * f for r, f in zip(column, factors, strict=True)) % product
        out.append(value - product if value > product // 2 else value)
    return out


def polynomial(parameters: Parameters, slots: Array, scale: float) -> list[float]:
    """The coefficients of the slots times the scale, before they are rounded: by the definition, in long doubles."""
    n = parameters.ring_dimension
    pi = np.longdouble("3.14159265358979323846264338327950288")
    exponents = np.array([pow(5, j, 2 * n) for j in range(n // 2)])
    found = []
    for k in range(n):
        angles = (exponents * k % (2 * n)).astype(np.longdouble) * pi / n
        found.append(2 * np.sum(slots * np.cos(angles)) / n * np.longdouble(scale))
    return found


# Distributions -------------------------------------------------------------------------------------------------------


def test_uniform_secrets() -> None:
    n = 1 << 20
    found = uniform_ternary(n)
    assert found.dtype == np.int8 and found.shape == (n,)
    counts = np.bincount(found + 1, minlength=3)
    assert len(counts) == 3 and np.sum((counts - n / 3) ** 2) / (n / 3) < scipy.stats.chi2.isf(RARE, 2)
    pairs = np.bincount(3 * (found[:-1] + 1) + found[1:] + 1, minlength=9)
    assert np.sum((pairs - n / 9) ** 2) / (n / 9) < scipy.stats.chi2.isf(RARE, 8)
    assert {len(uniform_ternary(count)) for count in (1, 1024, 1 << 17)} == {1, 1024, 1 << 17}


def test_uniform_secrets_of_known_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """255 is left out, and more is drawn if too much was."""
    drawn = [bytes([0, 1, 2, 255, 3, 254, 253]), bytes([255] * 7), bytes([252, 255, 128])]
    monkeypatch.setattr(os, "urandom", lambda size: drawn.pop(0))
    assert uniform_ternary(8).tolist() == [-1, 0, 1, -1, 1, 0, -1, 1]
    assert not drawn


def test_sparse_secrets_are_as_openfhes() -> None:
    """Ternary, of the same weight, with as many ones and minus ones, up to two."""
    draws = 400
    found = [balanced_ternary(1024, SPARSE_WEIGHT) for _ in range(draws)]
    assert {int(np.abs(one).sum()) for one in found} == {SPARSE_WEIGHT}
    half = SPARSE_WEIGHT // 2
    ones = Counter(int((one == 1).sum()) for one in found)
    assert set(ones) == {half - 1, half, half + 1}
    ways = np.array([comb(SPARSE_WEIGHT, k) for k in (half - 1, half, half + 1)], dtype=float)
    expected = draws * ways / ways.sum()
    counts = np.array([ones[k] for k in (half - 1, half, half + 1)])
    assert np.sum((counts - expected) ** 2 / expected) < scipy.stats.chi2.isf(RARE, 2)
    places = np.abs(np.array(found)).sum(axis=0)
    mean = draws * SPARSE_WEIGHT / 1024
    deviation = np.sqrt(mean * (1 - SPARSE_WEIGHT / 1024))
    assert np.max(np.abs(places - mean)) < scipy.stats.norm.isf(RARE / 1024) * deviation
    theirs = [secret_coefficients(ring(BOOTSTRAPPED), OpenFHESecret(BOOTSTRAPPED, IDENTITY).words()) for _ in range(12)]
    assert {int((one == 1).sum()) for one in theirs} <= set(ones)
    assert {int(np.abs(one).sum()) for one in theirs} == {SPARSE_WEIGHT}


@pytest.mark.parametrize("parameters", [LEVELLED, BOOTSTRAPPED])
def test_secrets_are_new_and_of_the_kind_of_the_parameters(parameters: Parameters) -> None:
    found = [new_secret(parameters) for _ in range(20)]
    assert len({one.tobytes() for one in found}) == 20
    weights = [np.count_nonzero(one) for one in found]
    if parameters.bootstrapping is None:
        n = parameters.ring_dimension
        assert all(abs(weight - 2 * n / 3) < 7 * np.sqrt(2 * n / 9) for weight in weights)
    else:
        assert set(weights) == {SPARSE_WEIGHT}


def test_gaussian_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = gaussian(1 << 18)
    assert scipy.stats.kstest(found, "norm").pvalue > RARE
    words = [0, (1 << 64) - 1, 1 << 63, 1 << 62, 12345]
    data = b"".join(word.to_bytes(8, sys.byteorder) for word in words)
    monkeypatch.setattr(os, "urandom", lambda size: data[:size])
    expected = [scipy.stats.norm.ppf(((word >> 12) + 0.5) / 2**52) for word in words]
    np.testing.assert_allclose(gaussian(len(words)), expected, rtol=1e-12, atol=1e-12)
    assert np.all(np.isfinite(gaussian(2)))


# Fresh ciphertexts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", ALL)
def test_the_error_of_fresh_ciphertexts(parameters: Parameters) -> None:
    """Exactly a centred binomial one beside the rounded message, the same in all limbs."""
    level, errors = parameters.depth, []
    slots = slots_for(parameters)
    exact = polynomial(parameters, slots, parameters.scale(level))
    for _ in range(8):
        words = own(parameters).encrypt(slots, level)
        assert words.shape == (2, level + 1, parameters.ring_dimension)
        errors += [value - round(wanted) for value, wanted in zip(integers(parameters, words), exact, strict=True)]
    found, n = np.array(errors), len(errors)
    # A half that is rounded the other way is rare.
    assert np.max(np.abs(found)) <= BINOMIAL_PAIRS + 1
    assert abs(found.mean()) < 6 * SIGMA / np.sqrt(n)
    assert abs((found**2).mean() / SIGMA**2 - 1) < 6 * np.sqrt(2 / n)
    probability = np.array([comb(2 * BINOMIAL_PAIRS, BINOMIAL_PAIRS + k) / 4.0**BINOMIAL_PAIRS for k in range(-8, 9)])
    counts = np.array([np.sum(found == k) for k in range(-8, 9)])
    statistic = np.sum((counts - n * probability) ** 2 / (n * probability))
    assert statistic < scipy.stats.chi2.isf(RARE, len(counts))


def test_fresh_ciphertexts_share_nothing() -> None:
    slots = slots_for(LEVELLED)
    found = [own(LEVELLED).encrypt(slots, 1) for _ in range(6)]
    for part in range(2):
        for limb in range(2):
            rows = np.concatenate([one[part, limb] for one in found])
            assert len(np.unique(rows)) > len(rows) - 4  # words of 37 bits seldom collide
    for limb, prime in enumerate(LEVELLED.primes[:2]):
        counts = np.histogram(np.concatenate([one[1, limb] for one in found]), bins=64, range=(0, prime))[0]
        mean = counts.sum() / 64
        assert np.sum((counts - mean) ** 2) / mean < scipy.stats.chi2.isf(RARE, 63)


@pytest.mark.parametrize("parameters", ALL)
def test_precision_is_openfhes(parameters: Parameters) -> None:
    """Of what is encoded and encrypted, and of what is decrypted."""
    theirs, level = openfhes(parameters), parameters.depth
    slots = slots_for(parameters)
    exact = np.array(polynomial(parameters, slots, parameters.scale(level)), dtype=np.float64)
    fresh: dict[str, list[float]] = {"own": [], "openfhe": []}
    read: dict[str, list[float]] = {"own": [], "openfhe": []}
    for name, secret in (("own", own(parameters)), ("openfhe", theirs)):
        for _ in range(10):
            words = secret.encrypt(slots, level)
            fresh[name].append(float(np.mean((np.array(integers(parameters, words), dtype=float) - exact) ** 2)))
            read[name].append(float(np.mean((secret.decrypt(words, state(parameters, level)) - slots) ** 2)))
    # Errors are wider than OpenFHE's of 3.19 by 1.6 percent; the rest is chance.
    assert np.sqrt(np.mean(fresh["own"])) < 1.06 * np.sqrt(np.mean(fresh["openfhe"]))
    assert np.sqrt(np.mean(read["own"])) < 1.06 * np.sqrt(np.mean(read["openfhe"]))


@pytest.mark.parametrize("parameters", ALL)
@pytest.mark.parametrize("level", [0, 1, 4])
def test_either_client_decrypts_what_the_other_encrypts(parameters: Parameters, level: int) -> None:
    theirs, wanted = openfhes(parameters), slots_for(parameters)
    found = OwnSecret(ring(parameters), theirs.words())
    np.testing.assert_array_equal(theirs.words(), own(parameters).words())
    limit = 600.0 * np.sqrt(parameters.ring_dimension) / parameters.scale(level)
    for first in (own(parameters), theirs, found):
        words = first.encrypt(wanted, level)
        for second in (own(parameters), theirs, found):
            assert np.max(np.abs(second.decrypt(words, state(parameters, level)) - wanted)) < limit


@pytest.mark.parametrize("parameters", [LEVELLED, BOOTSTRAPPED])
def test_secrets_of_openfhe_are_read(parameters: Parameters) -> None:
    theirs = OpenFHESecret(parameters, IDENTITY)
    ours = OwnSecret(ring(parameters), theirs.words())
    np.testing.assert_array_equal(ours.words(), theirs.words())
    wanted = slots_for(parameters)
    words = theirs.encrypt(wanted, 2)
    assert np.max(np.abs(ours.decrypt(words, state(parameters, 2)) - wanted)) < 1e-5


def test_large_and_impossible_slots() -> None:
    """Coefficients far beyond the integers of doubles, and slots that no ciphertext holds."""
    wanted = slots_for(LEVELLED, 1e9)
    words = own(LEVELLED).encrypt(wanted, 5)
    found = own(LEVELLED).decrypt(words, state(LEVELLED, 5))
    assert np.max(np.abs(found - wanted)) < 1e-5
    theirs = openfhes(LEVELLED).decrypt(words, state(LEVELLED, 5))
    assert np.max(np.abs(theirs - wanted)) < 1e-5
    for bad in (np.inf, np.nan, 1e60):
        with pytest.raises(VerificationError, match="do not fit"):
            own(LEVELLED).encrypt(np.full(LEVELLED.slots, bad), 5)
    zeros = own(LEVELLED).encrypt(np.zeros(LEVELLED.slots), 3)
    assert np.max(np.abs(own(LEVELLED).decrypt(zeros, state(LEVELLED, 3)))) < 1e-6


# Decryption ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", ALL)
@pytest.mark.parametrize("level", [0, 3])
def test_another_secret_finds_noise(parameters: Parameters, level: int) -> None:
    words = own(parameters).encrypt(slots_for(parameters), level)
    for other in (OwnSecret(ring(parameters)), OpenFHESecret(parameters, IDENTITY)):
        with pytest.raises(RuntimeError):
            other.decrypt(words, state(parameters, level))


@pytest.mark.parametrize("noise", [40.0, 2.0**20])
def test_noise_is_added_as_openfhe_adds_it(noise: float) -> None:
    """Little noise, which is taken for more, and much."""
    theirs, level = openfhes(LEVELLED), 0
    made, prime = ring(LEVELLED), LEVELLED.primes[0]
    ours_read, theirs_read, random = [], [], np.random.default_rng(5)
    wanted = slots_for(LEVELLED)
    for _ in range(12):
        words = own(LEVELLED).encrypt(wanted, level)
        more = np.rint(random.normal(0.0, noise, LEVELLED.ring_dimension)).astype(np.int64)
        values = np.mod(next(made.transform(more, (prime,))).astype(np.int64), prime).astype(np.uint64)
        words[0, 0] = add(words[0, 0], values, prime)
        ours_read.append(own(LEVELLED).decrypt(words, state(LEVELLED, level)) - wanted)
        theirs_read.append(theirs.decrypt(words, state(LEVELLED, level)) - wanted)
    assert abs(np.std(ours_read) / np.std(theirs_read) - 1) < 0.06
    # Two decryptions of the same differ, and so do their noises.
    assert abs(np.std(np.diff(ours_read, axis=0))) > 0


def test_the_limit_of_noise_is_openfhes() -> None:
    """Just below and just above 5 bits less than the scale."""
    n, scale = 4096, 2.0**37
    clean = np.zeros(n)
    for factor, fails in ((0.9, False), (1.1, True)):
        wrong = clean.copy()
        # Of coefficients that are antisymmetric all is imaginary.
        half = np.random.default_rng(2).choice([-1.0, 1.0], n // 2 - 1) * factor * scale / 32
        wrong[1 : n // 2] = half
        wrong[n // 2 + 1 :] = half[::-1]
        if fails:
            with pytest.raises(RuntimeError, match="noise is too large"):
                with_noise(wrong, scale)
        else:
            assert np.all(np.isfinite(with_noise(wrong, scale)))
    for bad in (np.nan, np.inf):
        with pytest.raises(RuntimeError, match="noise is too large"):
            with_noise(np.full(n, bad), scale)


def test_real_slots_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without random numbers, the part that real slots have is returned to the bit."""
    monkeypatch.setattr("olac.backends.vector.secret.gaussian", np.zeros)
    n = 64
    real = np.zeros(n)
    half = np.arange(1.0, n // 2)
    real[0], real[1 : n // 2], real[n // 2 + 1 :] = 5.0, half, -half[::-1]
    np.testing.assert_array_equal(with_noise(real, 1e6), real)


# Secrets that are refused, and whose secrets they are ----------------------------------------------------------------


def spoilt(words: Words, what: str) -> Words:
    out = words.copy()
    if what == "a word":
        out[2, 7] ^= 1
    elif what == "the first limb":
        out[0, 7] ^= 1
    elif what == "a large word":
        out[1, 3] = LEVELLED.primes[1]
    elif what == "zeros":
        out[:] = 0
    elif what == "one":
        out[:] = 1
    elif what == "twice":
        out = np.array([row * 2 % p for row, p in zip(out, LEVELLED.primes, strict=True)], dtype=np.uint64)
    elif what == "another's limb":
        out[1] = OwnSecret(ring(LEVELLED)).words()[1]
    elif what == "too few limbs":
        out = out[:-1]
    return out


@pytest.mark.parametrize(
    "what",
    ["a word", "the first limb", "a large word", "zeros", "one", "twice", "another's limb", "too few limbs"],
)
def test_words_of_no_secret(what: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        OwnSecret(ring(LEVELLED), spoilt(own(LEVELLED).words(), what))
    assert len(str(caught.value)) < 200


def test_a_dense_secret_is_none_for_bootstraps(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = uniform_ternary(BOOTSTRAPPED.ring_dimension)
    monkeypatch.setattr("olac.backends.vector.secret.new_secret", lambda parameters: dense)
    words = OwnSecret(ring(BOOTSTRAPPED)).words()
    with pytest.raises(ArtifactError, match="weight"):
        OwnSecret(ring(BOOTSTRAPPED), words)


def test_whose_secrets_they_are(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    assert isinstance(chosen_secret(LEVELLED, IDENTITY), OpenFHESecret)
    assert isinstance(chosen_secret(LEVELLED, IDENTITY, secrets=OPENFHE_SECRETS), OpenFHESecret)
    assert isinstance(chosen_secret(LEVELLED, IDENTITY, secrets=OWN_SECRETS), OwnSecret)
    assert not recwarn.list
    for engine in (ENGINE, OPENFHE):
        with pytest.raises(BackendError, match=r"secret keys.* by the name 'mine'"):
            engine.client(LEVELLED, IDENTITY, secrets="mine")
    with pytest.raises(BackendError, match="its own secret keys"):
        OPENFHE.client(LEVELLED, IDENTITY, secrets=OWN_SECRETS)
    monkeypatch.setattr(type(OPENFHE), "unavailable", lambda self, preparing=None: "it was sold out")
    with pytest.warns(UserWarning, match="not reviewed from outside and does not run in constant time"):
        assert isinstance(chosen_secret(LEVELLED, IDENTITY), OwnSecret)
    words = own(LEVELLED).words()
    with pytest.warns(UserWarning, match="not reviewed"):
        np.testing.assert_array_equal(chosen_secret(LEVELLED, IDENTITY, words).words(), words)


def test_own_secrets_have_the_security_that_is_asked_for() -> None:
    with pytest.raises(SecurityError):
        chosen_secret(Parameters(11, 5, 37, 41, 2, FIXED, security=128), IDENTITY, secrets=OWN_SECRETS)


def test_the_session_encrypts_and_decrypts_with_them() -> None:
    session = ENGINE.client(LEVELLED, IDENTITY, own(LEVELLED).words(), OWN_SECRETS)
    wanted = slots_for(LEVELLED)
    fresh = session.encrypt(wanted, 3)
    assert ENGINE.state(LEVELLED, fresh) == state(LEVELLED, 3) and ENGINE.belongs(fresh, IDENTITY)
    assert np.max(np.abs(session.decrypt(Ciphertext(fresh, state(LEVELLED, 3))) - wanted)) < 1e-5
    np.testing.assert_array_equal(session.secret_words(), own(LEVELLED).words())
