from __future__ import annotations

import math
from dataclasses import replace

import pytest

from olac.backends.openfhe.context import chain_of, make_context
from olac.ckks.candidates import candidates, longest_chains
from olac.ckks.parameters import (
    BOOTSTRAP_FIRST_BITS,
    BOOTSTRAP_SCALE_BITS,
    MOST_DIGITS,
    OPENFHE_RECIPE,
    RECIPES,
    Bootstrapping,
    Parameters,
)
from olac.ckks.primes import FIXED, FLEXIBLE, is_prime
from olac.ckks.security import EARLIER_SECURITY_BOUNDS, ENCAPSULATION_BOUNDS, SECURITY_BOUNDS, SPARSE_SECURITY_BOUNDS
from olac.errors import SecurityError


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
def test_security_is_refused_if_openfhe_refuses_it(log_ring: int, security: int) -> None:
    """On both sides of the bound, with every number of digits: olac and OpenFHE agree."""
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
            assert (round(parameters.log_qp, 2) <= bounds[14]) == (parameters.security_bits >= level)


def test_no_bound_was_raised() -> None:
    """The bounds of 2024 are those of the standard of 2018 or lower; what OpenFHE accepts has to be within both."""
    for level, bounds in EARLIER_SECURITY_BOUNDS.items():
        assert all(SECURITY_BOUNDS[level][log_ring] <= bound for log_ring, bound in bounds.items())
    assert SECURITY_BOUNDS[128][14] < EARLIER_SECURITY_BOUNDS[128][14]
    tiny = Parameters(11, 1, 15, 15, 2)
    with pytest.raises(SecurityError):
        tiny.check_security()


def test_what_only_the_earlier_bounds_allow_is_no_longer_chosen_but_runs() -> None:
    """log2(QP) of 434 at 2^14, with an earlier bound of 438: new programs are refused, older ones state their bits."""
    parameters = Parameters(14, 3, 47, 53, 1)
    assert 430 < parameters.log_qp < 438
    assert not parameters.secure and 124 < parameters.security_bits < 128
    with pytest.raises(SecurityError, match=r"= 434 .*exceeds the 430 bits .*about 125 bits"):
        parameters.check_security()
    parameters.check_security(earlier=True)
    make_context(parameters)
    assert 1 not in [one.digits for one in candidates(3, 47, 53, log_rings=(14,))]
    with pytest.raises(SecurityError, match="exceeds the 438 bits"):
        Parameters(14, 4, 47, 53, 1).check_security(earlier=True)


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
    assert all(round(p.log_qp, 2) <= SECURITY_BOUNDS[128][p.log_ring] for p in found)


# Bootstrapping -------------------------------------------------------------------------------------------------------


def sparse(log_ring: int, rest: int, digits: int, security: int = 128) -> Parameters:
    setup = Bootstrapping(rest)
    return Parameters(
        log_ring, setup.depth, BOOTSTRAP_SCALE_BITS, BOOTSTRAP_FIRST_BITS, digits, FLEXIBLE, security, setup
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "leaves 0 levels"),
        ((4, (0, 3)), "level budget"),
        ((4, (3, 6)), "level budget"),
        ((4, (3,)), "level budget"),
        ((4, (3, 3, 3)), "level budget"),
        ((4, (3, 3), 0), "correction factor of 0"),
        ((4, (3, 3), 16), "correction factor of 16"),
        ((4, (3, 5), 8, 4), r"2\^4 slots with a level budget of \(3, 5\)"),
    ],
)
def test_bootstrapping_that_cannot_be_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bootstrapping(*arguments)  # type: ignore[arg-type]


def test_levels_around_a_bootstrap() -> None:
    setup = Bootstrapping(10, (3, 2))
    assert setup.depth == 10 + RECIPES[OPENFHE_RECIPE].sine + 5 == 25
    assert setup.input_level == 3
    assert setup.output_level == 12
    assert Bootstrapping(1).input_level <= Bootstrapping(1).output_level


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"technique": FIXED}, "loses its precision"),
        ({"depth": 21}, "a depth of 21 with bootstrapping for 20 levels"),
        ({"first_bits": 49}, "more bits above the scale"),
    ],
)
def test_parameters_that_do_not_match_bootstrapping_are_refused(changes: dict[str, object], message: str) -> None:
    right = {"log_ring": 11, "depth": 20, "scale_bits": 40, "first_bits": 48, "digits": 3, "technique": FLEXIBLE}
    setup = Bootstrapping(4)
    assert Parameters(**right, security=0, bootstrapping=setup).depth == 20  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        Parameters(**(right | changes), security=0, bootstrapping=setup)  # type: ignore[arg-type]


def test_the_slots_of_bootstraps() -> None:
    whole = Parameters(11, 20, 40, 48, 3, FLEXIBLE, 0, Bootstrapping(4))
    part = replace(whole, bootstrapping=Bootstrapping(4, log_slots=9))
    assert whole.log_bootstrap_slots == replace(whole, bootstrapping=None).log_bootstrap_slots == 10
    assert part.log_bootstrap_slots == 9
    assert part.describe() == whole.describe() + " on 2^9 slots"
    for log_slots in (10, 11):
        with pytest.raises(ValueError, match=rf"2\^{log_slots} slots at ring 2\^11: take fewer than 2\^10"):
            replace(whole, bootstrapping=Bootstrapping(4, log_slots=log_slots))


def test_sparse_secrets_are_held_to_their_own_bound() -> None:
    assert SPARSE_SECURITY_BOUNDS == {128: {15: 768, 16: 1553}}
    for log_ring, bound in SPARSE_SECURITY_BOUNDS[128].items():
        seen = set()
        for rest in range(1, 16):
            for digits in range(1, 7):
                if not Parameters.valid_digits(Bootstrapping(rest).depth, digits):
                    continue
                parameters = sparse(log_ring, rest, digits)
                secure = parameters.log_qp_bound_use <= bound
                seen.add(secure)
                if secure:
                    parameters.check_security()
                    assert parameters.security_bits == 128.0  # nothing above is claimed
                else:
                    with pytest.raises(SecurityError, match=f"exceeds the {bound} bits .* with a sparse secret"):
                        parameters.check_security()
                assert parameters.security_bits <= 128.0
                assert parameters.security_bound == bound
        assert seen == ({False} if log_ring == 15 else {False, True})


def test_the_dense_bound_is_not_that_of_sparse_secrets() -> None:
    """log2(QP) of 1662 would be allowed at 2^16 for a uniform secret."""
    parameters = sparse(16, 14, 3)
    assert 1553 < parameters.log_qp < SECURITY_BOUNDS[128][16]
    with pytest.raises(SecurityError, match="sparse secret"):
        parameters.check_security()
    Parameters(16, parameters.depth, parameters.scale_bits, parameters.first_bits, 3, FLEXIBLE).check_security()


@pytest.mark.parametrize("log_ring", [11, 13, 14, 17])
def test_rings_without_a_bound_for_sparse_secrets_are_refused(log_ring: int) -> None:
    parameters = sparse(log_ring, 1, 3)
    assert parameters.security_bits == 0.0
    with pytest.raises(SecurityError, match=r"exceeds the 0 bits .* with a sparse secret"):
        parameters.check_security()
    sparse(log_ring, 1, 3, security=0).check_security()
    assert "NOT SECURE" in sparse(log_ring, 1, 3, security=0).describe()


@pytest.mark.parametrize("security", [192, 256])
def test_nothing_above_128_bits_with_sparse_secrets(security: int) -> None:
    with pytest.raises(SecurityError, match="exceeds the 0 bits"):
        sparse(16, 1, 3, security).check_security()
    assert longest_chains(security=security) == []


def test_longest_chains_have_the_most_levels_of_each_number_of_digits() -> None:
    found = longest_chains()
    assert found
    for parameters in found:
        parameters.check_security()
        assert parameters.bootstrapping is not None
        assert parameters.bootstrapping.depth == parameters.depth
        assert "sparse secret held to log2(QP) 1553, bootstraps to level" in parameters.describe()
    assert [(p.log_ring, p.digits) for p in found] == sorted({(p.log_ring, p.digits) for p in found})
    for log_ring in (15, 16):
        for digits in range(2, MOST_DIGITS + 1):
            rests = []
            for rest in range(1, 21):
                if Parameters.valid_digits(Bootstrapping(rest).depth, digits):
                    try:
                        sparse(log_ring, rest, digits).check_security()
                        rests.append(rest)
                    except SecurityError:
                        pass
            made = [
                p.bootstrapping.rest for p in found if (p.log_ring, p.digits) == (log_ring, digits) and p.bootstrapping
            ]
            assert made == rests[-1:]


def test_the_modulus_of_the_key_into_the_sparser_secret_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = sparse(16, 8, 3)
    assert usual.log_encapsulation == pytest.approx(BOOTSTRAP_FIRST_BITS + 66, abs=0.01)
    assert sparse(16, 8, 3, security=0).security_bits == usual.security_bits == 128.0
    usual.check_security()
    assert replace(usual, bootstrapping=None).log_encapsulation == 0.0
    monkeypatch.setitem(ENCAPSULATION_BOUNDS[128], 16, 106)
    assert usual.security_bits < 128 and longest_chains(log_rings=(16,)) == []
    with pytest.raises(SecurityError, match=r"key into the sparser secret .* has a modulus of 107 bits .* allows 106"):
        usual.check_security()
    usual.check_security(earlier=True)


def test_encapsulation_primes() -> None:
    """q_0 and two primes of 33 bits; tests that turn keys into words and back show that they are OpenFHE's."""
    for log_ring in (11, 12, 16):
        parameters = sparse(log_ring, 4, 3, security=0)
        first, *others = parameters.encapsulation_primes
        assert first == parameters.primes[0]
        assert len(set(others)) == 2
        for prime in others:
            assert is_prime(prime)
            assert prime % (2 * parameters.ring_dimension) == 1
            assert prime.bit_length() == 33


def test_openfhe_takes_as_many_levels() -> None:
    for rest, budget in ((4, (3, 3)), (2, (4, 2))):
        setup = Bootstrapping(rest, budget)
        make_context(Parameters(11, setup.depth, 40, 47, 3, FLEXIBLE, 0, setup))  # it compares
