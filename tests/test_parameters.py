from __future__ import annotations

import math

import pytest

from olac.backends.openfhe.context import chain_of, make_context
from olac.errors import InfeasibleError, SecurityError
from olac.parameters import (
    FIXED,
    FLEXIBLE,
    SECURITY_BOUNDS,
    Parameters,
    candidates,
    is_prime,
    require_candidates,
)


def test_is_prime_against_a_sieve() -> None:
    sieve = [True] * 5000
    sieve[0] = sieve[1] = False
    for i in range(2, 71):
        if sieve[i]:
            sieve[i * i :: i] = [False] * len(sieve[i * i :: i])
    assert [is_prime(n) for n in range(5000)] == sieve
    assert is_prime((1 << 61) - 1)
    assert not is_prime(((1 << 31) - 1) * ((1 << 61) - 1))


@pytest.mark.parametrize("technique", [FIXED, FLEXIBLE])
@pytest.mark.parametrize(
    ("log_ring", "depth", "scale_bits", "first_bits", "digits"),
    [(11, 4, 30, 36, 2), (12, 7, 28, 35, 3), (13, 0, 30, 40, 1), (13, 1, 50, 60, 1), (14, 9, 40, 40, 5)],
)
def test_primes_are_the_ones_that_openfhe_makes(
    log_ring: int, depth: int, scale_bits: int, first_bits: int, digits: int, technique: str
) -> None:
    parameters = Parameters(log_ring, depth, scale_bits, first_bits, digits, technique, security=0)
    context = make_context(parameters)  # it compares, too
    assert chain_of(context) == parameters.primes
    for prime in (*parameters.primes, *parameters.special_primes):
        assert is_prime(prime)
        assert prime % (2 * parameters.ring_dimension) == 1
    assert len({*parameters.primes, *parameters.special_primes}) == depth + 1 + len(parameters.special_primes)


@pytest.mark.parametrize("technique", [FIXED, FLEXIBLE])
def test_scales_are_the_ones_that_openfhe_keeps(technique: str) -> None:
    parameters = Parameters(12, 6, 30, 36, 3, technique, security=0)
    context = make_context(parameters)
    for level in range(7):
        assert parameters.scale(level) == pytest.approx(context.GetScalingFactorReal(6 - level), rel=1e-12)


@pytest.mark.parametrize("security", [128, 192, 256])
@pytest.mark.parametrize("log_ring", [13, 14])
def test_security_is_refused_where_openfhe_refuses_it(log_ring: int, security: int) -> None:
    """On both sides of the bound, at every number of digits: olac and OpenFHE say the same."""
    seen = set()
    for depth in range(1, 10):
        for digits in (1, 2, depth + 1):
            if not Parameters.valid_digits(depth, digits):
                continue
            parameters = Parameters(log_ring, depth, 30, 40, digits, security=security)
            try:
                parameters.check_security()
                make_context(parameters)
                seen.add(True)
                assert parameters.security_bits >= security
            except SecurityError:
                seen.add(False)
                with pytest.raises(SecurityError):
                    parameters.check_security()
    assert False in seen


def test_security_bits_meet_the_table_and_fall_with_log_qp() -> None:
    bits = [Parameters(14, depth, 30, 40, depth + 1, security=0).security_bits for depth in range(1, 20)]
    assert bits == sorted(bits, reverse=True)
    assert bits[0] == 256.0
    assert bits[-1] < 100
    for depth in range(1, 20):
        parameters = Parameters(14, depth, 30, 40, depth + 1, security=0)
        for level, bounds in SECURITY_BOUNDS.items():
            assert (parameters.log_qp <= bounds[14]) == (parameters.security_bits >= level)


def test_special_primes_hold_the_largest_digit() -> None:
    for digits in (1, 2, 3, 4, 8):
        parameters = Parameters(13, 7, 40, 50, digits, security=0)
        size = parameters.digit_limbs
        largest = max(math.prod(parameters.primes[i : i + size]) for i in range(0, 8, size))
        assert math.prod(parameters.special_primes) > largest


@pytest.mark.parametrize(
    "arguments",
    [
        (9, 3, 30, 40, 2),
        (13, 3, 10, 40, 2),
        (13, 3, 60, 60, 2),
        (13, 3, 40, 30, 2),
        (13, -1, 30, 40, 1),
        (13, 3, 30, 40, 5),
        (13, 4, 30, 40, 4),
        (13, 3, 30, 40, 2, "FIXEDAUTO"),
        (13, 3, 30, 40, 2, FIXED, 80),
    ],
)
def test_parameters_that_cannot_be_are_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(ValueError):
        Parameters(*arguments)  # type: ignore[arg-type]


def test_candidates_are_all_secure_and_smallest_first() -> None:
    found = candidates(7, 30, 37)
    assert found[0].log_ring == 14
    assert [p.log_ring for p in found] == sorted(p.log_ring for p in found)
    assert all(p.log_qp <= SECURITY_BOUNDS[128][p.log_ring] for p in found)


def test_no_candidates_is_an_error_that_says_what_would_do() -> None:
    with pytest.raises(InfeasibleError, match="Lower the degrees"):
        require_candidates(candidates(60, 40, 50), 60, 40, 128)
