"""Key-switching keys are encryptions of what they should be, with errors of the right size, under fresh randomness."""

from __future__ import annotations

import itertools
import json
import operator
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from olac.backends.vector.key_making import KeyMaker, Secret, automorphism, automorphism_index, new_key
from olac.backends.vector.keys import (
    KeyForm,
    check_security,
    encapsulation_form,
    from_sparse_form,
    key_forms,
    read_limbs,
    switching_form,
    write_key,
)
from olac.backends.vector.randomness import BINOMIAL_PAIRS, SIGMA, sparse_ternary
from olac.backends.vector.residues import Values, add, multiply, subtract
from olac.ckks.candidates import longest_chains
from olac.ckks.parameters import SPARSE_WEIGHT, Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.ckks.special import vector_special_primes
from olac.ckks.vector_bootstrapping import vector_bootstrap_model
from olac.ckks.words import Words
from olac.errors import ArtifactError, SecurityError
from tests.backends.vector.reference import Integers, Listed, ReferenceRing, coefficients_of, noise_of, product, root

ROOT = Path(__file__).resolve().parents[3]
RING = ReferenceRing()
PARAMETERS = Parameters(
    10, 15, 37, 41, 3, FLEXIBLE, security=0, bootstrapping=Bootstrapping(rest=1, budget=(2, 2), correction=8)
)


SPECIAL = vector_special_primes(PARAMETERS)
SECRET = sparse_ternary(PARAMETERS.ring_dimension, SPARSE_WEIGHT)
MAKER = KeyMaker(RING, PARAMETERS, SECRET)
WHOLE = SECRET.astype(object)


def check(key: Listed, target: Integers, secret: Integers) -> None:
    """Errors are the same modulo all limbs of a digit, others in other digits, and distributed as they should be."""
    digits = [np.array(limbs, dtype=np.int64) for limbs in noise_of(key, target, secret)]
    for limbs in digits:
        assert np.all(limbs == limbs[0])
    found = np.array([limbs[0] for limbs in digits])
    assert np.max(np.abs(found)) <= BINOMIAL_PAIRS
    assert abs(found.mean()) < 6 * SIGMA / np.sqrt(found.size)
    assert abs(np.mean(found**2) - SIGMA**2) < 6 * SIGMA**2 * np.sqrt(2 / found.size)
    for one, other in itertools.combinations(found, 2):
        assert abs(np.mean(one * other)) < 6 * SIGMA**2 / np.sqrt(len(one))


@pytest.mark.parametrize("level", [0, 4, 5, 6, 15])
def test_relinearisation(level: int) -> None:
    form = switching_form(PARAMETERS, level)
    key = Listed(MAKER.relinearisation(level))
    assert key.form == form and form.primes[: level + 1] == PARAMETERS.primes[: level + 1]
    assert form.primes[level + 1 :] == SPECIAL[: form.special]
    assert key.form.digits == 1 + max(digit for digit, _ in key.b) == {0: 1, 4: 1, 5: 1, 6: 2, 15: 3}[level]
    check(key, product(WHOLE, WHOLE), WHOLE)


@pytest.mark.parametrize("step", [1, 17, 511, PARAMETERS.conjugation_step])
def test_rotations(step: int) -> None:
    """From s to the secret that the automorphism takes to s."""
    key = Listed(MAKER.rotation(step, 7))
    check(key, WHOLE, automorphism_of(step))
    wrong = np.array(noise_of(key, WHOLE, WHOLE), dtype=np.int64)
    assert np.std(wrong.astype(float)) > 2.0**30


def test_indices_are_openfhes() -> None:
    pytest.importorskip("openfhe")
    from olac.backends.openfhe.wire import wire

    parameters = Parameters(10, 1, 40, 50, 1, security=0)
    steps = [1, 2, 3, 100, 511, parameters.conjugation_step]
    assert [automorphism_index(parameters, s) for s in steps] == [wire(parameters).automorphism_index(s) for s in steps]


def test_encapsulation() -> None:
    into, back, moved = map(Listed, MAKER.encapsulation((0, 5), 14))
    assert back.form == moved.form == from_sparse_form(PARAMETERS, 14)
    # All limbs are one digit, as large as q_0, and P is not much more than that.
    assert (back.form.limbs, back.form.digits, back.form.digit_limbs) == (15, 1, 15)
    assert 2**16 < back.form.factor / PARAMETERS.primes[0] < 2**60 and back.form.factor in special_products()
    assert into.form == encapsulation_form(PARAMETERS)
    assert into.form.primes == PARAMETERS.encapsulation_primes and into.form.limbs == into.form.digits == 1
    assert into.form.log_modulus == PARAMETERS.log_encapsulation
    # The sparser secret, which nobody keeps, from the key back: b + a s = e + P t modulo P Q; e is there modulo P.
    form, limb = back.form, 6
    p = form.primes[limb]
    values = RING.transform(SECRET, (p,))[0].astype(np.int64) % p
    total = add(back.b[0, limb], multiply(back.a[0, limb], values.astype(np.uint64), p), p)
    inverse = np.full(len(total), pow(form.factor, -1, p), dtype=np.uint64)
    error = np.array(noise_of(back, np.zeros(len(total), dtype=object), WHOLE)[0][-1], dtype=object)
    sparser = coefficients_of(multiply(subtract(total, residues_of(error, p), p), inverse, p), p)
    assert np.max(np.abs(sparser)) == 1 and np.sum(np.abs(sparser)) == 32
    check(back, sparser, WHOLE)
    check(into, WHOLE, sparser)
    check(moved, sparser, automorphism_of(5))
    other = Listed(next(MAKER.encapsulation((), 0)))
    assert np.std(np.array(noise_of(other, WHOLE, sparser), dtype=float)) > 2.0**30


def special_products() -> set[int]:
    """P for every number of special primes."""
    return set(itertools.accumulate(SPECIAL, operator.mul))


def automorphism_of(step: int) -> Integers:
    """s(X^(1/g))."""
    inverse = pow(automorphism_index(PARAMETERS, step), -1, 2 * PARAMETERS.ring_dimension)
    moved = np.zeros(PARAMETERS.ring_dimension, dtype=object)
    for place, coefficient in enumerate(SECRET):
        wraps, at = divmod(place * inverse, PARAMETERS.ring_dimension)
        moved[at] += int(coefficient) * (-1) ** wraps
    return moved


def residues_of(coefficients: Integers, p: int) -> Words:
    found: Words = (RING.transform(coefficients, (p,))[0].astype(np.int64) % p).astype(np.uint64)
    return found


def parts(key: Listed) -> list[bytes]:
    """Seeds, residues of a_g and of b_g."""
    return [key.seed, *(limb.tobytes() for limb in (*key.a.values(), *key.b.values()))]


def test_no_two_keys_share_randomness() -> None:
    made = (MAKER.rotation(1, 7), MAKER.rotation(1, 7), MAKER.relinearisation(7), *MAKER.encapsulation((0, 0), 7))
    keys = list(map(Listed, made))
    found = [part for key in keys for part in parts(key)]
    assert len(set(found)) == len(found)
    noise = [np.array(noise_of(key, np.zeros(1024, dtype=object), WHOLE)[1][0]) for key in keys[:3]]
    assert all(np.any(one != other) for one, other in itertools.combinations(noise, 2))


FORKS = """
import json, os
from tests.backends.vector.test_keys import MAKER, Listed, parts

def made():
    return [part.hex() for key in (MAKER.rotation(1, 0), *MAKER.encapsulation((0,), 0)) for part in parts(Listed(key))]

found = [made()]
for _ in range(2):
    read, write = os.pipe()
    if not os.fork():
        with os.fdopen(write, "w") as pipe:
            json.dump(made(), pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found.append(json.load(pipe))
    os.wait()
found.append(made())
print(json.dumps(found))
"""


def test_forked_processes_share_no_randomness() -> None:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", FORKS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found = [part for one in json.loads(done.stdout) for part in one]
    limbs = len(switching_form(PARAMETERS, 0).primes)
    assert len(set(found)) == len(found) == 4 * (3 + 2 * (limbs + 3 + limbs))


# Bytes --------------------------------------------------------------------------------------------------------------


KEY = Listed(MAKER.rotation(3, 6))
DATA = b"".join(map(bytes, write_key(KEY.form, KEY.seed, lambda digit, limb: KEY.b[digit, limb])))


def pieces(data: bytes, size: int) -> Iterator[memoryview]:
    """In a buffer that is written over for each of them."""
    room = bytearray(size)
    for at in range(0, len(data), size):
        piece = data[at : at + size]
        room[: len(piece)] = piece
        yield memoryview(room)[: len(piece)]


@pytest.mark.parametrize("size", [1000, 1 << 13, 1 << 20])
def test_bytes(size: int) -> None:
    assert {prime.bit_length() for prime in KEY.form.primes[1:]} <= set(range(37, 41))
    assert len(DATA) == KEY.form.bytes == 32 + 2 * 1024 * (6 + (6 + KEY.form.special) * 5)
    found = list(read_limbs(KEY.form, pieces(DATA, size)))
    assert [(digit, limb) for digit, limb, _, _ in found] == list(KEY.a) == list(KEY.b)
    for digit, limb, a, b in found:
        assert np.array_equal(a, KEY.a[digit, limb]) and np.array_equal(b, KEY.b[digit, limb])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DATA[:-1], "1 bytes early"),
        (DATA[:20], "12 bytes early"),
        (DATA + b"\0", "more bytes"),
        (DATA[:32] + b"\xff" * 6 + DATA[38:], "not less than their prime"),
        (DATA[:-6] + b"\xff" * 6, "not less than their prime"),
        (DATA[:32] + bytes(6 * 1024) + DATA[32 + 6 * 1024 :], "not uniform"),
    ],
    ids=["a byte early", "short", "long", "first", "last", "zeros"],
)
def test_hostile_bytes(data: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        list(read_limbs(KEY.form, pieces(data, 5000)))


def test_forms() -> None:
    form = switching_form(PARAMETERS, 15)
    assert (form.limbs, form.digits, form.digit_limbs) == (16, 3, 6)
    assert form.factor == np.prod(np.array(SPECIAL, dtype=object))
    assert form.log_modulus == pytest.approx(sum(np.log2(form.primes)))
    sizes = [switching_form(PARAMETERS, level).bytes for level in range(16)]
    assert sizes == sorted(sizes)


def test_keys_reach_as_far_as_they_are_used() -> None:
    model = vector_bootstrap_model(PARAMETERS)
    steps = {3: 0, 5: 7, 501: 2, **dict.fromkeys(sorted(model.steps), 0)}
    product, *others = key_forms(PARAMETERS, steps, 0)
    rotations, (into, *back, conjugation) = others[: len(steps)], others[len(steps) :]
    levels = [form.limbs - 1 for form in rotations]
    assert levels == [max(level, model.step_levels.get(step, 0)) for step, level in steps.items()]
    assert product == switching_form(PARAMETERS, model.product_level)
    assert key_forms(PARAMETERS, steps, 15)[0] == switching_form(PARAMETERS, 15)
    assert into == encapsulation_form(PARAMETERS) and conjugation == switching_form(PARAMETERS, 15)
    assert back == [from_sparse_form(PARAMETERS, model.raised_level)] * len(model.from_sparse_steps) and len(back) > 1

    plain = Parameters(10, 5, 37, 41, 2, security=0)
    assert key_forms(plain, {3: 4}, None) == [switching_form(plain, 4)]
    assert key_forms(plain, {3: 4}, 2) == [switching_form(plain, 2), switching_form(plain, 4)]


def test_moduli_of_keys_are_within_the_security_bound() -> None:
    """Over all chains that programs may get, and refused beyond it."""
    for parameters in longest_chains():
        check_security(parameters)
    # Special primes of one size may be a little more than OpenFHE's.
    beyond = Parameters(12, 7, 36, 40, 1, security=128)
    with pytest.raises(SecurityError, match="modulus of 593 bits at ring dimension 4096, 128-bit security allows 592"):
        check_security(beyond)
    check_security(replace(beyond, security=0))


# Residues -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prime", [3, 97, (1 << 37) - 25, (1 << 46) - 21, (1 << 50) - 27])
def test_residues(prime: int) -> None:
    """Against Python's integers, with those whose products are just below and above multiples of the prime."""
    ends = [0, 1, 2, prime // 2, prime // 2 + 1, prime - 2, prime - 1]
    left = [*itertools.chain.from_iterable([one] * len(ends) for one in ends)]
    right = ends * len(ends)
    rng = np.random.default_rng(prime)
    for one in (int(v) for v in rng.integers(1, prime, 2000)):
        left += [one, one, one]
        inverse = pow(one, -1, prime) if np.gcd(one, prime) == 1 else 1
        right += [inverse, prime - inverse, int(rng.integers(0, prime))]
    a, b = np.array(left, dtype=np.uint64), np.array(right, dtype=np.uint64)
    assert multiply(a, b, prime).tolist() == [x * y % prime for x, y in zip(left, right, strict=True)]
    assert add(a, b, prime).tolist() == [(x + y) % prime for x, y in zip(left, right, strict=True)]
    assert subtract(a, b, prime).tolist() == [(x - y) % prime for x, y in zip(left, right, strict=True)]


def test_automorphism_is_that_of_values() -> None:
    """f(X^g) at a root w is f at w^g."""
    coefficients, p, g = sparse_ternary(64, 20), 257, 5
    w = root(64, p)
    moved = automorphism(coefficients, g)
    for power in range(1, 128, 2):
        at = pow(w, power, p)
        there = sum(int(c) * pow(at, i, p) for i, c in enumerate(moved)) % p
        assert there == sum(int(c) * pow(at, i * g, p) for i, c in enumerate(coefficients)) % p
    assert np.array_equal(automorphism(moved, pow(g, -1, 128)), coefficients)


def test_values_at_their_bounds() -> None:
    """A transform may give twice the prime, and less than zero."""

    class Extreme:
        def transform(self, coefficients: Integers, primes: Sequence[int]) -> Values:
            return np.array([[p, -p, 0, p - 1, 1 - p, 2 * p - 1, -2 * p, 5] for p in primes], dtype=float)

    p = (1 << 37) - 25
    assert Secret(Extreme(), np.zeros(8, dtype=np.int8)).values(p).tolist() == [0, 0, 0, p - 1, 1, p - 1, 0, 5]


def test_small_form() -> None:
    """Digits of one limb, and a ring of 16."""
    form = KeyForm(16, (97, 193, 257, 641), 1, 1)
    secret = Secret(RING, sparse_ternary(16, 4))
    key = Listed(new_key(form, RING, secret.square, secret.values))
    whole = secret.coefficients.astype(object)
    found = np.array(noise_of(key, product(whole, whole), whole), dtype=np.int64)
    assert found.shape == (3, 4, 16) and np.all(found == found[:, :1]) and np.max(np.abs(found)) <= BINOMIAL_PAIRS
