"""Values that are rounding noise compared with their operands, and their units."""

from __future__ import annotations

import numpy as np
import pytest

from olac.ir import Graph, Stage
from olac.ir.ops import Affine, Array, Conv2d, Linear, Polynomial, PolynomialProduct
from olac.passes.normalize_units import NOISE, noise_floors
from tests.networks import Growing, normalized

ONES = np.ones((1, 4)) / 4


def cancelled() -> tuple[Graph, Array]:
    """x minus its mean; the mean of that, which is 0 up to rounding; then a linear layer."""
    g = Growing(0, (4,))
    value = g.add(Linear(g.builder.constant("centre", np.eye(4) - ONES)), g.input, name="centred")
    noise = g.add(Linear(g.builder.constant("mean", ONES)), value, name="mean")
    g.values[noise] += 1e-9 * g.random.normal(size=g.values[noise].shape)  # as single precision leaves it
    return g.graph(g.linear(noise, 3)), g.images


def weight_sizes(graph: Graph) -> list[float]:
    return [float(np.abs(graph.constants[n.op.weight]).max()) for n in graph.nodes if isinstance(n.op, Linear | Conv2d)]


def test_units_do_not_go_below_what_single_precision_tells_apart() -> None:
    graph, images = cancelled()
    result, _ = normalized(graph, images)
    assert result["mean"].type.unit == pytest.approx(NOISE * 1.0, rel=0.8)
    assert max(weight_sizes(result)) < 10 / NOISE
    assert result.evaluate(images) == pytest.approx(graph.evaluate(images), abs=1e-12)


@pytest.mark.parametrize("degree", [1, 2, 5])
def test_polynomials_of_noise_are_straight_lines(degree: int) -> None:
    rng = np.random.default_rng(degree)
    g = Growing(1, (4,))
    value = g.add(Linear(g.builder.constant("centre", np.eye(4) - ONES)), g.input, name="centred")
    noise = g.add(Linear(g.builder.constant("mean", ONES)), value, name="mean")
    c = g.builder.constant("c", rng.normal(size=(1, degree + 1)))
    curve = g.add(Polynomial(c, 1e-9), noise, name="curve")
    graph = g.graph(g.linear(curve, 2))
    result, _ = normalized(graph, g.images)
    op = result["curve"].op
    assert isinstance(op, Polynomial) and result.constants[op.coefficients].shape == (1, 2)
    # Within its old narrow interval it is as right as a line can be: at 0, and from end to end.
    assert result.evaluate(g.images) == pytest.approx(graph.evaluate(g.images), abs=1e-5)
    # Beyond this interval it does not grow as the curve would.
    disturbed = result.evaluate(g.images, lambda node, x: x + 0.5 if node.id == "mean" else None)
    slope = np.abs(graph.constants["c"][0, 1::2]).sum()
    assert np.max(np.abs(disturbed)) < 1e4 * (1 + slope)


def test_what_is_computed_from_noise_is_noise() -> None:
    g = Growing(2, (4,))
    value = g.add(Linear(g.builder.constant("centre", np.eye(4) - ONES)), g.input, name="centred")
    noise = g.add(Linear(g.builder.constant("mean", ONES)), value, name="mean")
    scaled = g.add(Affine(g.builder.constant("s", np.full(1, 50.0)), g.builder.constant("t", np.zeros(1))), noise)
    spread = g.add(Linear(g.builder.constant("spread", np.ones((4, 1)))), scaled, name="spread")
    product = g.add(PolynomialProduct(g.builder.constant("p", np.array([[0.5, 0.5]])), 2.0), spread, g.input)
    graph = g.graph(product)
    floors = noise_floors(graph, {n: float(np.max(np.abs(v))) for n, v in g.values.items()})
    assert floors["mean"] == pytest.approx(NOISE, rel=0.5)
    assert floors["spread"] == pytest.approx(50 * floors["mean"])
    result, _ = normalized(graph, g.images)
    assert result["spread"].type.unit >= floors["spread"]
    assert max(weight_sizes(result)) < 10 / NOISE


def test_depth_does_not_make_noise_of_values() -> None:
    """Sums grow with each layer relative to their largest values, but only noise passes its floor on."""
    g = Growing(3, (64,))
    value = g.input
    for _ in range(30):
        value = g.linear(value, 64)
    graph = g.graph(value)
    result, calibration = normalized(graph, g.images)
    for node in result.nodes:
        assert node.type.unit == pytest.approx(1.25 * calibration.ranges[node.id].magnitude)


def test_small_values_have_small_units_and_zeros_have_one() -> None:
    g = Growing(4, (4,))
    small = g.add(Linear(g.constant(3, 4, size=1e-14)), g.input, name="small")
    zero = g.add(Linear(g.builder.constant("zero", np.zeros((2, 3)))), small, name="zero")
    assert g.graph(zero, small).stage == Stage.POLYNOMIAL
    result, calibration = normalized(g.graph(zero, small), g.images)
    assert result["small"].type.unit == pytest.approx(1.25 * calibration.ranges["small"].magnitude)
    assert result["zero"].type.unit == 1.0
