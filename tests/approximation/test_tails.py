"""Errors of polynomials over the ranges that their channels are expected to reach."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from olac.approximation.common import DIVERGED
from olac.approximation.criterion import Classification, Criterion, Regression
from olac.approximation.engine import ImageFitter
from olac.approximation.floors import LOW
from olac.approximation.tails import Tails, expected_ranges
from olac.approximation.tensors import chebyshev, tensors
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Linear, Polynomial
from olac.system.arrays import Array
from tests.approximation.nets import activations, from_histograms, images, residual, values

Tensor = torch.Tensor
NET, TRAIN = residual(1), images(200, 1)
DEGREES = dict.fromkeys(activations(NET), 7)
APPROXIMATED = from_histograms(NET, TRAIN, DEGREES)
FITTED = [node for node in APPROXIMATED.nodes if isinstance(node.op, Polynomial)]
NARROW, WIDE = 0, 1
"""Channels of the first activation; the range of one is a fifth of the other's."""


def operation(node: Node) -> Polynomial:
    assert isinstance(node.op, Polynomial)
    return node.op


def constants() -> dict[str, Tensor]:
    return {
        operation(n).coefficients: torch.from_numpy(np.array(APPROXIMATED.constants[operation(n).coefficients])).float()
        for n in FITTED
    }


def ranges() -> dict[str, tuple[Array, Array]]:
    """Ranges of one half width, but for `NARROW` in the first activation."""
    found: dict[str, tuple[Array, Array]] = {}
    for node in FITTED:
        half = np.full(node.type.shape[0], operation(node).half_width)
        half[NARROW] *= 0.2 if node is FITTED[0] else 1.0
        found[node.id] = 0 * half, half
    return found


def tails() -> Tails:
    sizes = {node.id: torch.ones(()) for node in FITTED}
    return Tails(NET, APPROXIMATED, FITTED, sizes, ranges())


def bent(channel: int, at: float, by: float) -> dict[str, Tensor]:
    """Coefficients of the first activation, of which one channel's polynomial is changed about a point alone.

    The change is the polynomial of degree 7 that is `by` at the point, in half widths, and least in mean square.
    """
    changed = constants()
    name = operation(FITTED[0]).coefficients
    points = torch.linspace(-1, 1, 401, dtype=torch.float64)
    basis = torch.stack(chebyshev(points, 7), 1)
    here = torch.stack(chebyshev(torch.tensor([at], dtype=torch.float64), 7), 1)[0]
    step = torch.linalg.solve(basis.T @ basis, here)
    changed[name] = changed[name].clone()
    changed[name][channel] += (by * step / (here @ step)).float()
    return changed


def test_nothing_is_added_for_what_was_there() -> None:
    assert float(tails()(constants())) == 0.0


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_a_polynomial_that_leaves_its_function_at_an_end_of_its_range_counts(end: float) -> None:
    # Both signs, because a change may happen to lessen an error.
    grown = [float(tails()(bent(WIDE, end, by))) for by in (-3.0, 3.0)]
    more = [float(tails()(bent(WIDE, end, 2 * by))) for by in (-3.0, 3.0)]
    assert min(grown) > 1e-4 and all(a < b for a, b in zip(grown, more, strict=True))


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_ranges_are_a_channels_own(end: float) -> None:
    """What is far outside a narrow channel's range matters little to it, and much to a wide one."""
    assert float(tails()(bent(NARROW, end, 3.0))) < 0.3 * float(tails()(bent(WIDE, end, 3.0)))
    assert float(tails()(bent(NARROW, 0.2 * end, 3.0))) > 1e-4


def test_gains_elsewhere_do_not_pay_for_a_tail() -> None:
    """Each channel's growth counts by itself."""
    one = bent(WIDE, 1.0, 3.0)
    better = {name: value.clone() for name, value in one.items()}
    name = operation(FITTED[1]).coefficients
    worse = constants()
    worse[name] = 2 * worse[name]
    start = APPROXIMATED.rewrite(
        lambda node, builder, inputs: _with(node, builder, inputs, name, worse[name]), by="test"
    )
    fitted = [node for node in start.nodes if isinstance(node.op, Polynomial)]
    sizes = {node.id: torch.ones(()) for node in fitted}
    compared = Tails(NET, start, fitted, sizes, ranges())
    second = operation(fitted[1]).coefficients
    better[second] = better.pop(name)  # much better than at the start
    better[operation(fitted[0]).coefficients] = one[operation(FITTED[0]).coefficients]
    assert float(compared(better)) == pytest.approx(float(tails()(one)), rel=1e-5)


def _with(node: Node, builder: GraphBuilder, inputs: tuple[str, ...], name: str, value: Tensor) -> str | None:
    if not isinstance(node.op, Polynomial) or node.op.coefficients != name:
        return None
    made = builder.constant(f"{node.id}.other", value.double().numpy())
    return builder.keep(node, inputs, op=replace(node.op, coefficients=made))


@pytest.mark.parametrize("count", [64, 256])
def test_expected_ranges_hold_nearly_all_values_of_further_images(count: int) -> None:
    found = expected_ranges(NET, tensors(NET), DEGREES, images(count, 3))
    every, seen = values(NET, images(1000, 4)), values(NET, images(count, 3))
    left = beyond = channels = 0
    for name, (middle, half) in found.items():
        operand = NET[name].inputs[0]
        further = np.moveaxis(np.asarray(every[operand]), 1, 0).reshape(len(middle), -1)
        before = np.moveaxis(np.asarray(seen[operand]), 1, 0).reshape(len(middle), -1)
        left += int((np.abs(further - middle[:, None]) > half[:, None] * (1 + 1e-6)).any(1).sum())
        beyond += int(((further.max(1) > before.max(1)) | (further.min(1) < before.min(1))).sum())
        channels += len(middle)
        assert (middle - half <= before.min(1) + 1e-4).all() and (middle + half >= before.max(1) - 1e-4).all()
    assert left <= 0.15 * channels < 0.6 * channels < beyond


def test_ranges_of_high_degrees_hold_the_furthest_value_of_all_channels() -> None:
    low, high = (
        expected_ranges(NET, tensors(NET), dict.fromkeys(DEGREES, degree), images(256, 3)) for degree in (LOW, LOW + 1)
    )
    for name, (middle, half) in low.items():
        assert np.array_equal(middle, high[name][0]) and (high[name][1] >= half).all()
        assert high[name][1].sum() > 1.1 * half.sum()


@pytest.mark.parametrize(("criterion", "diverge"), [(Classification(), False), (Regression(), True)], ids=str)
def test_copies_diverge_by_the_spread_of_the_criterion(criterion: Criterion, diverge: bool) -> None:
    """An output of a hundredth of the others' size is far off in its own unit, and near in that of all."""
    last = next(node for node in reversed(NET.nodes) if isinstance(node.op, Linear))
    assert isinstance(last.op, Linear)
    weight, bias = (np.array(NET.constants[name]) for name in (last.op.weight, last.op.bias or ""))
    weight[0], bias[0] = weight[0] / 100, bias[0] / 100
    off = bias.copy()
    off[0] += 0.1 * DIVERGED

    def with_bias(value: Array) -> Graph:
        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            if node.id != last.id:
                return None
            names = builder.constant("small", weight), builder.constant("bias", value)
            return builder.keep(node, inputs, op=Linear(*names))

        return NET.rewrite(step, by="test")

    fitter = ImageFitter(TRAIN.numpy(), images(50, 2).numpy(), criterion=criterion)
    original = with_bias(bias)
    assert fitter.diverging(original, original)[0] == 0
    number, copies = fitter.diverging(original, with_bias(off))
    assert number == (copies if diverge else 0)
