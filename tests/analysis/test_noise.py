"""Noise of outputs: one simulation for all scales, and bootstraps with their measured precision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from olac.analysis.noise import MAX_SCALE_BITS, OutputNoise, decoded
from olac.calibration.statistics import Calibration
from olac.ckks.bootstrapping import bootstrap_model
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.errors import InfeasibleError
from olac.ir.graph import Graph, GraphBuilder
from olac.ir.head import Affine as LastAffine
from olac.ir.head import ArgMax, Elementwise, OutputHead, Step
from olac.ir.ops import Affine, Bootstrap, Input
from olac.ir.types import Stage, ValueType

SETUP = Bootstrapping(4, (3, 3), 7)
PARAMETERS = Parameters(11, SETUP.depth, 40, 47, 3, FLEXIBLE, 0, SETUP)


def chain(factor: float, bootstraps: int = 0, correction: int = 7) -> Graph:
    """x times a factor, after a number of bootstraps."""
    builder = GraphBuilder({}, by="test")
    kind = ValueType((256,))
    one, zero = builder.constant("factor", np.full((), factor)), builder.constant("zero", np.zeros(()))
    x = builder.add(Input((256,)), [], name="x", type=kind)
    for number in range(bootstraps):
        x = builder.add(Bootstrap(correction), [x], name=f"boot{number}", type=kind)
    return builder.build([builder.add(Affine(one, zero), [x], name="y", type=kind)], stage=Stage.POLYNOMIAL)


def calibration(size: float = 1.0) -> Calibration:
    images = np.random.default_rng(0).uniform(-size, size, (32, 256))
    return Calibration(0, {}, {}, images, images)


def test_bits_grow_with_the_precision_and_the_ring() -> None:
    noise = OutputNoise(chain(1.0), calibration())
    bits = noise.scale_bits(14, 1e-3)
    assert noise.scale_bits(14, 1e-3 / 16) == bits + 4
    assert noise.scale_bits(16, 1e-3) == bits + 2  # a rescale's noise grows with the ring's dimension
    assert OutputNoise(chain(1.0), calibration(1 / 8)).scale_bits(14, 1e-3) == bits + 3
    assert 20 < bits < 30


@pytest.mark.parametrize("finite", [1, 3])
def test_few_images_do_not_leave_the_largest_noise_to_luck(finite: int) -> None:
    """Two outputs of one image would be below what outputs of many images reach, in most cases."""
    builder = GraphBuilder({}, by="test")
    one, zero = builder.constant("factor", np.ones(())), builder.constant("zero", np.zeros(()))
    x = builder.add(Input((2,)), [], name="x", type=ValueType((2,)))
    y = builder.add(Affine(one, zero), [x], name="y", type=ValueType((2,)))
    graph = builder.build([y], stage=Stage.POLYNOMIAL)
    few, many = np.full((3, 2), np.nan), np.ones((1000, 2))
    few[:finite] = 1.0
    wanted = OutputNoise(graph, Calibration(0, {}, {}, many, many)).scale_bits(14, 1e-3)
    for seed in range(20):
        found = OutputNoise(graph, Calibration(0, {}, {}, few, few), seed=seed).scale_bits(14, 1e-3)
        assert abs(found - wanted) <= 1


def test_what_the_client_computes_counts() -> None:
    """A scale within the head blows noise up, in its own range and not in one that a shift has widened."""
    bits = OutputNoise(chain(1.0), calibration()).scale_bits(14, 1e-3)

    def with_head(*steps: Step) -> int:
        return OutputNoise(chain(1.0), calibration(), OutputHead(steps)).scale_bits(14, 1e-3)

    assert with_head(LastAffine((8.0,), (0.0,))) == bits
    assert with_head(LastAffine((1.0,), (1000.0,))) == bits
    assert with_head(LastAffine((1.0,), (-1.0,)), Elementwise("relu")) == bits  # outputs that are always zero
    assert with_head(LastAffine((1.0,), (-7 / 8,)), Elementwise("relu")) == bits + 3
    assert with_head(LastAffine((16.0,), (0.0,)), Elementwise("exp")) == bits + 4
    assert with_head(ArgMax(0)) == bits


def test_no_output_is_more_exact_than_the_mean_of_an_image() -> None:
    """OpenFHE adds noise to all slots alike when it decrypts, as much as the slots have on average."""
    clean = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    noisy = clean + np.array([[0.0, 0.0, 2.0, 0.0], [0.0, -1e-3, 0.0, 0.0]])
    assert decoded(noisy, clean) - clean == pytest.approx(np.array([[1, 1, 2, 1], [5e-4, -1e-3, 5e-4, 5e-4]]))


def test_bootstraps_bring_the_noise_that_was_measured() -> None:
    quiet = OutputNoise(chain(1.0), calibration(0.1))
    sigma = bootstrap_model(PARAMETERS).noise
    assert quiet.of_program(chain(1.0), PARAMETERS) < 1e-4
    one, four = (quiet.of_program(chain(1.0, bootstraps), PARAMETERS) * 0.1 for bootstraps in (1, 4))
    assert 3.5 * sigma < one < 6 * sigma  # the largest of 8192
    assert 1.5 < four / one < 2.5
    finer = replace(PARAMETERS, scale_bits=45, first_bits=53, bootstrapping=replace(SETUP, correction=8))
    assert quiet.of_program(chain(1.0, 1), finer) < quiet.of_program(chain(1.0, 1), PARAMETERS) / 10
    # The sine's effect is no noise: with a correction factor of 3, slots of 1 become 0.9, as they should.
    large = OutputNoise(chain(1.0), calibration(1.0))
    error = large.of_program(chain(1.0, 1, correction=3), PARAMETERS)
    assert 3.5 * sigma < error < 6 * sigma


def test_outputs_that_diverge_have_no_scale() -> None:
    with pytest.raises(InfeasibleError, match="diverge"):
        OutputNoise(chain(float("inf")), calibration())
    assert OutputNoise(chain(1.0), calibration()).scale_bits(16, 1e-12) > MAX_SCALE_BITS
