"""Precisions so coarse that a ring has few primes near the scale that would do."""

from __future__ import annotations

import pytest

from olac.ckks.parameters import Parameters
from olac.ckks.primes import FLEXIBLE, TECHNIQUES, fewest_bits, flexible_scales, modulus_chain
from olac.errors import InfeasibleError
from olac.options import CompileOptions
from olac.program.program import ApproximatedModel, CompiledProgram
from olac.selection.job import INTEGER_BITS
from olac.selection.lower import lower
from tests.networks import cubic_blocks
from tests.selection.jobs import job_of


def made(**choices: object) -> CompiledProgram:
    """At ring 2^12, for OpenFHE."""
    graph, calibration, _ = cubic_blocks(3)
    usual = {"threads": 1, "engine": "openfhe", "log_ring": 12, "insecure": True}
    return lower(ApproximatedModel(graph), calibration, CompileOptions(**{**usual, **choices}))  # type: ignore[arg-type]


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_the_scale_has_as_many_bits_as_it_takes_for_enough_primes(technique: str) -> None:
    graph, calibration, _ = cubic_blocks(3)
    job = job_of(graph, calibration, precision=0.5, technique=technique)
    parameters = made(precision=0.5, technique=technique).parameters
    assert parameters.scale_bits > max(job.noise.scale_bits(12, 0.5), 12 + 6)
    assert len({*parameters.primes, *parameters.special_primes}) == parameters.limbs + len(parameters.special_primes)
    with pytest.raises(InfeasibleError, match="there are not enough primes near"):
        coarser = parameters.scale_bits - 1
        modulus_chain(parameters.log_ring, parameters.depth, coarser, coarser + INTEGER_BITS, technique)


def test_a_scale_that_is_asked_for_is_refused_with_one_that_does() -> None:
    with pytest.raises(InfeasibleError) as caught:
        made(scale_bits=17)
    graph, calibration, _ = cubic_blocks(3)
    depth, enough = job_of(graph, calibration).depth, int(str(caught.value).split("scale_bits=")[1].split(",")[0])
    assert str(caught.value) == (
        f"there are not enough primes near 2^17 for {depth} levels at ring 2^12 in FIXEDMANUAL. Take "
        f"scale_bits={enough}, leave scale_bits open, or lower the degrees of the activations."
    )
    assert made(scale_bits=enough).parameters.scale_bits == enough > 17


def test_pinned_parameters_without_enough_primes() -> None:
    with pytest.raises(InfeasibleError, match=r"primes near 2\^17 for 24 levels at ring 2\^12 .* of \d+ bits"):
        made(parameters=Parameters(12, 24, 17, 24, 5, security=0))


def test_chains_whose_scales_drift_are_none() -> None:
    """OpenFHE refuses them when it makes keys."""
    assert fewest_bits(12, 13, INTEGER_BITS, FLEXIBLE, 18) == 20
    scales = flexible_scales(modulus_chain(12, 13, 20, 27, FLEXIBLE))
    assert min(scales) / scales[-1] > 0.5 and max(scales) / scales[-1] < 2 and scales[-1] != max(scales)


@pytest.mark.encrypted
@pytest.mark.parametrize(("log_ring", "depth"), [(12, 13), (12, 20), (13, 9)])
def test_openfhe_takes_the_least_scale_of_a_chain(log_ring: int, depth: int) -> None:
    from olac.backends.openfhe.context import make_context

    bits = fewest_bits(log_ring, depth, INTEGER_BITS, FLEXIBLE, log_ring + 4)
    assert bits is not None
    assert make_context(Parameters(log_ring, depth, bits, bits + INTEGER_BITS, 1, FLEXIBLE, 0)) is not None
