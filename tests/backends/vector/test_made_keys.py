"""The keys that a client of the vector engine makes, with the engine's own transforms: right, and the same as bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from olac.backends.session import Piece
from olac.backends.vector.key_making import automorphism, automorphism_index
from olac.backends.vector.keys import KeyForm, key_forms
from olac.backends.vector.keyset import VectorKeys
from olac.backends.vector.packed import PackedKey
from olac.backends.vector.randomness import BINOMIAL_PAIRS, SIGMA, Coefficients
from olac.backends.vector.residues import add, multiply, residues, subtract
from olac.backends.vector.ring import ring
from olac.backends.vector.secret import secret_coefficients
from olac.backends.vector.session import ENGINE, VectorClient
from olac.ckks.bootstrapping import bootstrap_model
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FIXED, FLEXIBLE
from olac.ckks.words import Words
from olac.errors import ArtifactError, SecurityError

pytestmark = pytest.mark.encrypted

IDENTITY = "0" * 32
LEVELLED = Parameters(11, 5, 37, 41, 2, FIXED, security=0)
BOOTSTRAPPED = Parameters(10, 15, 37, 41, 3, FLEXIBLE, 0, Bootstrapping(1, (2, 2)))
STEPS = {1: 5, 3: 0, 700: 2, LEVELLED.conjugation_step: 4}


@cache
def client(parameters: Parameters) -> VectorClient:
    return ENGINE.client(parameters, IDENTITY)


def secret(parameters: Parameters) -> Coefficients:
    found: Coefficients = secret_coefficients(ring(parameters), client(parameters).secret_words())
    return found


def values(parameters: Parameters, coefficients: Coefficients, prime: int) -> Words:
    return residues(next(ring(parameters).transform(coefficients, (prime,))), prime)


def errors_of(
    parameters: Parameters, form: KeyForm, key: PackedKey, target: Coefficients | None, under: Coefficients
) -> np.ndarray:  # type: ignore[type-arg]
    """Coefficients of b_g + a_g s - P s' [limb in digit g], shape (digits, limbs, N); None for the square of s."""
    own = ring(parameters)
    out = np.empty((form.digits, len(form.primes), form.length))
    for digit in range(form.digits):
        for limb, prime in enumerate(form.primes):
            a, b = (key.get(digit, half, limb) for half in (1, 0))
            s = values(parameters, under, prime)
            total = add(b, multiply(a, s, prime), prime)
            if limb < form.limbs and limb // form.digit_limbs == digit:
                old = multiply(s, s, prime) if target is None else values(parameters, target, prime)
                factor = np.full(form.length, form.factor % prime, dtype=np.uint64)
                total = subtract(total, multiply(factor, old, prime), prime)
            ids = own.indices((prime,))
            out[digit, limb] = own.coefficients(own.from_words(total[None], ids)[0], int(ids[0]))
    return out


def check(
    parameters: Parameters, form: KeyForm, key: PackedKey, target: Coefficients | None, under: Coefficients
) -> None:
    found = errors_of(parameters, form, key, target, under)
    assert np.all(found == found[:, :1]) and np.max(np.abs(found)) <= BINOMIAL_PAIRS
    one = found[:, 0]
    assert abs(one.mean()) < 6 * SIGMA / np.sqrt(one.size)
    assert abs(np.mean(one**2) - SIGMA**2) < 6 * SIGMA**2 * np.sqrt(2 / one.size)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_keys_are_what_they_should_be(threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    seen: list[tuple[int, int]] = []
    made = client(LEVELLED).make_keys(STEPS, 3, lambda done, total: seen.append((done, total)))
    assert seen == [(done, 5) for done in range(1, 6)]
    product, *rotations = key_forms(LEVELLED, STEPS, 3)
    s = secret(LEVELLED)
    check(LEVELLED, product, made.relinearisation(), None, s)
    for step, form in zip(STEPS, rotations, strict=True):
        inverse = pow(automorphism_index(LEVELLED, step), -1, 2 * LEVELLED.ring_dimension)
        check(LEVELLED, form, made.rotation(step), s, automorphism(s, inverse))


def test_keys_of_bootstraps() -> None:
    """The sparser secret is what the key into it is under; it is found from the key back."""
    steps = dict.fromkeys(sorted(bootstrap_model(BOOTSTRAPPED).steps)[:2], 0)
    made = client(BOOTSTRAPPED).make_keys(steps, 0)
    count = len(made.from_sparse)
    into, back, *_, conjugation = key_forms(BOOTSTRAPPED, steps, 0)[-2 - count :]
    assert made.into_sparse is not None and count > 1
    s, none = secret(BOOTSTRAPPED), np.zeros(BOOTSTRAPPED.ring_dimension, dtype=np.int8)
    noisy = errors_of(BOOTSTRAPPED, back, made.from_sparse[0], none, s)
    error, prime = noisy[0, -1], back.primes[0]  # P t is not there modulo special primes
    own = ring(BOOTSTRAPPED)
    shifted = (noisy[0, 0] - error) % prime
    inverse = pow(back.factor, -1, prime)
    sparser = np.array([(int(c) * inverse + 1) % prime - 1 for c in shifted])
    assert np.sum(np.abs(sparser)) == np.count_nonzero(sparser) == 32
    sparse = sparser.astype(np.int8)
    for step, key in made.from_sparse.items():
        inverse = pow(automorphism_index(BOOTSTRAPPED, step), -1, 2 * own.N)
        check(BOOTSTRAPPED, back, key, sparse, automorphism(s, inverse))
    check(BOOTSTRAPPED, into, made.into_sparse, s, sparse)
    step = BOOTSTRAPPED.conjugation_step
    check(BOOTSTRAPPED, conjugation, made.rotation(step), s, automorphism(s, 2 * own.N - 1))


def pieces(made: VectorKeys) -> list[bytes]:
    return [piece.tobytes() if isinstance(piece, np.ndarray) else bytes(piece) for piece in made.blocks()]


def install(parameters: Parameters, steps: dict[int, int], relinearise: int | None, data: bytes) -> VectorKeys:
    sizes = ENGINE.key_sizes(parameters, steps, relinearise)
    starts = np.cumsum([0, *sizes])
    assert starts[-1] == len(data)

    def blocks(place: int) -> Iterator[Piece]:
        part = data[starts[place] : starts[place + 1]]
        for at in range(0, len(part), 8 * parameters.ring_dimension):
            yield np.frombuffer(part[at : at + 8 * parameters.ring_dimension], dtype=np.uint8)

    return ENGINE.install_keys(parameters, steps, relinearise, blocks, identity=IDENTITY)


def same(one: PackedKey, other: PackedKey) -> bool:
    arrays = ((one.low, other.low), (one.high8, other.high8), (one.high16, other.high16))
    return all(np.array_equal(a, b) for a, b in arrays)


@pytest.mark.parametrize("parameters", [LEVELLED, BOOTSTRAPPED], ids=["levelled", "bootstrapped"])
def test_bytes_give_the_same_keys(parameters: Parameters) -> None:
    steps = {1: 3, 5: 0, **dict.fromkeys(sorted(bootstrap_model(parameters).steps)[:2], 0)}
    made = client(parameters).make_keys(steps, 2)
    data = b"".join(pieces(made))
    held = ENGINE.held_key_sizes(parameters, steps, 2)
    installed = install(parameters, steps, 2, data)
    assert same(installed.relinearisation(), made.relinearisation())
    assert all(same(installed.rotation(step), made.rotation(step)) for step in steps)
    assert [made.relinearisation().nbytes, *(made.rotation(step).nbytes for step in steps)] == held[: len(steps) + 1]
    one, other = installed.into_sparse, made.into_sparse
    assert (one is None) == (other is None) == (parameters.bootstrapping is None) == (not made.from_sparse)
    assert one is None or other is None or same(one, other)
    assert installed.from_sparse.keys() == made.from_sparse.keys()
    assert all(same(installed.from_sparse[step], key) for step, key in made.from_sparse.items())
    # Half of what both polynomials would take.
    assert len(data) < 0.51 * sum(held)


def test_hostile_bytes() -> None:
    made = client(LEVELLED).make_keys({1: 1}, None)
    data = b"".join(pieces(made))
    with pytest.raises(ArtifactError, match="not less than their prime"):
        install(LEVELLED, {1: 1}, None, data[:-5] + b"\xff" * 5)
    with pytest.raises(ArtifactError, match="not uniform"):
        install(LEVELLED, {1: 1}, None, data[:32] + bytes(6 << 11) + data[32 + (6 << 11) :])


def test_no_keys_beyond_the_security_bound() -> None:
    beyond = Parameters(12, 7, 36, 40, 1, security=0)
    own = client(beyond)
    own.make_keys({}, None)
    own._parameters = replace(beyond, security=128)
    with pytest.raises(SecurityError, match="keys of the vector engine have a modulus of"):
        own.make_keys({}, None)
