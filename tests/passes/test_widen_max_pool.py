"""Max-pooling after fitted polynomials, whose values spread further than those of the activations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from olac.calibration.histogram import Histogram
from olac.ir import Graph, GraphBuilder, Stage
from olac.ir.ops import Activation, Add, Input, MaxPool2d, Polynomial, Slice
from olac.passes.base import PassContext, PassManager
from olac.passes.expand_max_pool import ExpandMaxPool, WidenMaxPool
from olac.passes.fit_activations import FitActivations
from olac.polynomials.modes import Channel, Fixed
from tests.networks import calibration_of

SHAPE = (2, 1, 4)
RANDOM = np.random.default_rng(3)
IMAGES = RANDOM.uniform(-1.0, 1.0, (200, *SHAPE))


def network() -> Graph:
    """ReLU, then a sum of it and its input's half, then max-pooling."""
    b = GraphBuilder(by="test")
    x = b.add(Input(SHAPE), name="x")
    y = b.add(Activation("relu"), [x], name="act")
    z = b.add(Add(), [y, x], name="sum")
    return b.build([b.add(MaxPool2d((1, 2), (1, 2)), [z], name="pool")])


def approximated(alpha: int) -> tuple[Graph, PassContext]:
    graph = network()
    histogram = Histogram(SHAPE[0])
    histogram.add(IMAGES)
    context = PassContext(calibration=replace(calibration_of(graph, IMAGES), histograms={"act": histogram}))
    fit = FitActivations(Channel(), Fixed(2))
    return PassManager([ExpandMaxPool(alpha), fit]).run(graph, context), context


@pytest.mark.parametrize("alpha", [4, 7, 10])
def test_values_beyond_the_calibrated_ones_are_compared(alpha: int) -> None:
    before, context = approximated(alpha)
    report = next(fit for fit in context.fits if fit.function == "max_pool2d")
    after = PassManager([WidenMaxPool()]).run(before, context)
    (wider,) = (fit for fit in context.fits if fit.function == "max_pool2d")
    factor = wider.high / report.high
    assert 1.1 < factor <= 4.0
    assert wider.max_error == pytest.approx(factor * report.max_error)
    assert wider.low == -wider.high
    assert after.stage is Stage.POLYNOMIAL
    # Images whose values in a window are as far apart, after the polynomial, as they may be now.
    images = IMAGES.copy()
    images[:, :, :, ::2] *= 1.3
    summed = np.asarray(_values(after, images)["sum"])
    wanted = summed.reshape(*summed.shape[:-1], 2, 2).max(-1)
    assert np.abs(after.evaluate(images) - wanted).max() <= wider.high * 2.0**-alpha
    assert after["pool"].type.shape == before["pool"].type.shape
    same = [n for n in after.nodes if isinstance(n.op, Polynomial) and n.id == "act"]
    assert same[0].op == before["act"].op, "what was fitted stays"


def test_it_is_needed() -> None:
    """Without it, the same images have large errors."""
    before, context = approximated(7)
    after = PassManager([WidenMaxPool()]).run(before, context)
    far = IMAGES * np.where(np.arange(4) % 2, -2.4, 2.4)
    assert np.abs(before.evaluate(far)).max() > 100 * np.abs(after.evaluate(far)).max()


def test_nothing_changes_where_no_fitted_polynomial_comes_before() -> None:
    b = GraphBuilder(by="test")
    x = b.add(Input(SHAPE), name="x")
    y = b.add(Slice(((0, 2, 1), (0, 1, 1), (0, 4, 1))), [x], name="same")
    graph = b.build([b.add(MaxPool2d((1, 2), (1, 2)), [y], name="pool")])
    context = PassContext(calibration=calibration_of(graph, IMAGES))
    expanded = PassManager([ExpandMaxPool(), FitActivations()]).run(graph, context)
    fits = list(context.fits)
    assert PassManager([WidenMaxPool()]).run(expanded, context) == expanded
    assert context.fits == fits


def _values(graph: Graph, images: np.ndarray) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    found: dict[str, np.ndarray] = {}  # type: ignore[type-arg]
    graph.evaluate(images, lambda node, value: found.update({node.id: value}))
    return found
