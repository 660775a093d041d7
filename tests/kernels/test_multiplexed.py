"""Multiplexed parallel convolutions compared with torch.nn.functional, and their primitives with the paper's counts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from olac.backends.recorder import RecorderEvaluator
from olac.backends.simulator import SimulatorEvaluator
from olac.ckks.parameters import Parameters
from olac.ckks.primes import FIXED, FLEXIBLE
from olac.errors import VerificationError
from olac.ir.layout import TensorLayout
from olac.ir.lowerings import Multiplexed
from olac.ir.ops import AveragePool, Conv2d
from olac.kernels.multiplexed import MultiplexedKernel
from tests.golden import check_golden

PARAMETERS = {t: Parameters(10, 4, 30, 36, 2, t, security=0) for t in (FIXED, FLEXIBLE)}
SLOTS = 512
ROTATIONS = ("rotate", "hoisted_rotate", "ext_rotate")


def steps_of(kernel: MultiplexedKernel, parameters: Parameters) -> frozenset[int]:
    recorder = RecorderEvaluator(parameters)
    kernel.run(recorder, [(recorder.fresh(parameters.depth),)])
    return frozenset(recorder.rotations)


def run(kernel: MultiplexedKernel, operand: TensorLayout, images: np.ndarray, technique: str) -> np.ndarray:  # type: ignore[type-arg]
    parameters = PARAMETERS[technique]
    evaluator = SimulatorEvaluator(parameters, steps_of(kernel, parameters))
    (result,) = kernel.run(evaluator, [(evaluator.encrypt(operand.pack(images)[0], 4),)])
    assert (result.state.level, result.state.noise_degree) == (4 - kernel.depth, 1)
    assert result.state.scale == pytest.approx(parameters.scale(2), rel=1e-12)
    return evaluator.decrypt(result)


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_convolutions_match_torch(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    c, out, h, w = draw(1, 7), draw(1, 9), draw(1, 7), draw(1, 7)
    stride, dilation = (draw(1, 3),) * 2, (draw(1, 2), draw(1, 2))
    padding = (draw(0, 2), draw(0, 2), draw(0, 2), draw(0, 2))
    size = (draw(1, 3), draw(1, 3))
    if any(
        extent + before + after < rate * (filter_ - 1) + 1
        for extent, before, after, rate, filter_ in zip(
            (h, w), padding[::2], padding[1::2], dilation, size, strict=True
        )
    ):
        return
    random = np.random.default_rng(draw(0, 2**31))
    weight, bias = random.normal(size=(out, c, *size)), random.normal(size=out)
    weight[random.random(weight.shape) < data.draw(st.sampled_from([0.0, 0.0, 0.9]))] = 0.0
    op = Conv2d("w", data.draw(st.sampled_from(["b", None])), stride, padding, dilation)
    constants = {"w": weight, "b": bias}
    gap = draw(1, 3)
    operand = TensorLayout.multiplexed((c, h, w), (draw(1, 9), draw(1, 9)), gap, SLOTS)
    shape = op.infer([(c, h, w)], constants)
    result = TensorLayout.multiplexed(shape, operand.padded, gap * stride[0], SLOTS)
    if not Multiplexed().can_lower(op, operand, result):
        # The images don't grow, and all fit into one ciphertext, so nothing else prevents it.
        room = all(stride[0] * (n - 1) < m // gap for n, m in zip(shape[1:], operand.padded, strict=True))
        same = result.padded[1] == operand.padded[1] or shape[1] == 1
        assert operand.ciphertexts > 1 or result.ciphertexts > 1 or not room or not same
        return
    images = random.normal(size=(1, c, h, w))
    kernel = MultiplexedKernel(op, constants, operand, result)
    slots = run(kernel, operand, images, data.draw(st.sampled_from([FIXED, FLEXIBLE])))
    padded = np.pad(images, ((0, 0), (0, 0), padding[:2], padding[2:]))
    x, w_, b_ = torch.tensor(padded), torch.tensor(weight), None if op.bias is None else torch.tensor(bias)
    expected = torch.nn.functional.conv2d(x, w_, b_, stride=stride, dilation=dilation).numpy()
    # The whole result, not only its elements: copies repeat, and slots that hold no element are zero.
    assert np.allclose(slots, result.pack(expected)[0], atol=1e-9)


@pytest.mark.parametrize("out", [1, 3, 12])
@pytest.mark.parametrize("channels", [1, 3, 5, 20])
@pytest.mark.parametrize("gap", [1, 2, 3])
def test_every_number_of_channels(channels: int, out: int, gap: int) -> None:
    """Pages, rows and columns of cells that are no powers of two, and fewer output channels than copies."""
    random = np.random.default_rng(channels)
    weight, images = random.normal(size=(out, channels, 3, 3)), random.normal(size=(1, channels, 4, 3))
    op = Conv2d("w", None, (1, 1), (1, 1, 1, 1))
    operand = TensorLayout.multiplexed((channels, 4, 3), (4 * gap, 3 * gap), gap, SLOTS)
    result = TensorLayout.multiplexed((out, 4, 3), operand.padded, gap, SLOTS)
    kernel = MultiplexedKernel(op, {"w": weight}, operand, result)
    expected = torch.nn.functional.conv2d(torch.tensor(images), torch.tensor(weight), padding=1).numpy()
    assert np.allclose(run(kernel, operand, images, FIXED), result.pack(expected)[0], atol=1e-9)


def test_planes_that_are_no_power_of_two_apart_are_summed_one_by_one() -> None:
    """5 planes of 100 slots fill 512: with room for 8 there would be three rotations, so there are 2 + 1."""
    random = np.random.default_rng(0)
    weight, images = random.normal(size=(2, 5, 3, 3)), random.normal(size=(1, 5, 10, 10))
    op = Conv2d("w", None, (1, 1), (1, 1, 1, 1))
    operand = TensorLayout.multiplexed((5, 10, 10), (10, 10), 1, SLOTS)
    result = TensorLayout.multiplexed((2, 10, 10), (10, 10), 1, SLOTS)
    assert (operand.plane, operand.period) == (100, 512)
    kernel = MultiplexedKernel(op, {"w": weight}, operand, result)
    assert {100, 200, 400} <= steps_of(kernel, PARAMETERS[FIXED])
    expected = torch.nn.functional.conv2d(torch.tensor(images), torch.tensor(weight), padding=1).numpy()
    assert np.allclose(run(kernel, operand, images, FIXED), result.pack(expected)[0], atol=1e-9)


@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_weights_of_zero(factor: float) -> None:
    """Groups without any weight, and filters of which one element is left."""
    weight = np.zeros((9, 2, 3, 3))
    weight[8, 0, 1, 1] = factor
    op = Conv2d("w", "b", (2, 2), (1, 1, 1, 1))
    bias = np.random.default_rng(1).normal(size=9)
    operand = TensorLayout.multiplexed((2, 8, 8), (8, 8), 1, SLOTS)
    result = TensorLayout.multiplexed((9, 4, 4), (8, 8), 2, SLOTS)
    images = np.random.default_rng(0).normal(size=(1, 2, 8, 8))
    kernel = MultiplexedKernel(op, {"w": weight, "b": bias}, operand, result)
    expected = np.tile(bias[None, :, None, None], (1, 1, 4, 4))
    expected[0, 8] += factor * images[0, 0, ::2, ::2]
    assert np.allclose(run(kernel, operand, images, FIXED), result.pack(expected)[0], atol=1e-9)


# Layouts -------------------------------------------------------------------------------------------------------------

PLAIN = TensorLayout.multiplexed((4, 4, 4), (4, 4), 1, SLOTS)
SAME = Conv2d("w", None, (1, 1), (1, 1, 1, 1))
STRIDED = Conv2d("w", None, (2, 2), (1, 1, 1, 1))
HALVED = TensorLayout.multiplexed((4, 2, 2), (4, 4), 2, SLOTS)


def test_what_can_be_multiplexed() -> None:
    assert Multiplexed().can_lower(SAME, PLAIN, PLAIN)
    assert Multiplexed().can_lower(STRIDED, PLAIN, HALVED)
    wider = TensorLayout.multiplexed((4, 5, 4), (5, 4), 1, SLOTS)
    beside = TensorLayout.multiplexed((4, 4, 4), (5, 4), 1, SLOTS)
    taller = Conv2d("w", None, (1, 1), (2, 1, 1, 1))
    assert Multiplexed().can_lower(taller, beside, wider)  # the new row has its pixels in the padding of planes


REFUSED = {
    "depthwise": (Conv2d("w", None, (1, 1), (1, 1, 1, 1), groups=4), PLAIN, PLAIN),
    "no convolution": (AveragePool("r", "c"), PLAIN, PLAIN),
    "a stride without a gap": (STRIDED, PLAIN, TensorLayout.multiplexed((4, 2, 2), (4, 4), 1, SLOTS)),
    "dense planes": (STRIDED, PLAIN, TensorLayout.dense((4, 2, 2), SLOTS)),
    "a gap without a stride": (SAME, PLAIN, TensorLayout.multiplexed((4, 4, 4), (8, 8), 2, SLOTS)),
    "rows of another length": (SAME, PLAIN, TensorLayout.multiplexed((4, 4, 4), (4, 5), 1, SLOTS)),
    "two strides": (Conv2d("w", None, (2, 1), (1, 1, 1, 1)), PLAIN, TensorLayout.dense((4, 2, 4), SLOTS)),
    "more rows than planes have": (
        Conv2d("w", None, (1, 1), (2, 1, 1, 1)),
        PLAIN,
        TensorLayout.multiplexed((4, 5, 4), (4, 4), 1, SLOTS),
    ),
    "several ciphertexts": (SAME, TensorLayout.dense((40, 4, 4), SLOTS), PLAIN),
    "a result of several": (SAME, PLAIN, TensorLayout.dense((40, 4, 4), SLOTS)),
    "shifted copies": (SAME, PLAIN.with_step(16), PLAIN),
    "another shape than it was packed as": (SAME, TensorLayout.dense((4, 16), SLOTS).reshaped((4, 4, 4)), PLAIN),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_multiplexed(name: str) -> None:
    op, operand, result = REFUSED[name]
    assert not Multiplexed().can_lower(op, operand, result)
    if isinstance(op, Conv2d):
        with pytest.raises(VerificationError, match="can't be multiplexed"):
            MultiplexedKernel(op, {"w": np.ones((4, 4, 3, 3))}, operand, result)


def test_too_few_levels() -> None:
    kernel = MultiplexedKernel(SAME, {"w": np.ones((4, 4, 3, 3))}, PLAIN, PLAIN)
    recorder = RecorderEvaluator(PARAMETERS[FIXED])
    with pytest.raises(VerificationError, match="takes 2 levels, 1 are left"):
        kernel.run(recorder, [(recorder.fresh(1),)])


# Counts --------------------------------------------------------------------------------------------------------------


def resnet20_convolution(inputs: int, outputs: int, size: int, stride: int) -> tuple[MultiplexedKernel, Counter[str]]:
    """One of the six kinds of convolutions of ResNet-20 on 2^15 slots: its kernel, and its primitives."""
    gap, slots = 32 // size, 1 << 15
    operand = TensorLayout.multiplexed((inputs, size, size), (32, 32), gap, slots)
    result = TensorLayout.multiplexed((outputs, size // stride, size // stride), (32, 32), gap * stride, slots)
    op = Conv2d("w", None, (stride, stride), (1, 1, 1, 1))
    kernel = MultiplexedKernel(op, {"w": np.ones((outputs, inputs, 3, 3))}, operand, result)
    recorder = RecorderEvaluator(Parameters(16, 4, 40, 47, 2, security=0))
    kernel.run(recorder, [(recorder.fresh(4),)])
    return kernel, Counter(event.primitive for event in recorder.events)


@pytest.mark.parametrize(
    ("inputs", "outputs", "size", "stride", "copies", "sums"),
    [
        (3, 16, 32, 1, 8, 2),
        (16, 16, 32, 1, 2, 4),
        (16, 32, 32, 2, 2, 4),
        (32, 32, 16, 1, 4, 5),
        (32, 64, 16, 2, 4, 5),
        (64, 64, 8, 1, 8, 6),
    ],
)
def test_rotations_and_products_are_those_of_the_paper(
    inputs: int, outputs: int, size: int, stride: int, copies: int, sums: int
) -> None:
    """Rotations: 8 by the filter, `sums` per group, one per channel (but for step 0), and those that fill copies.

    9 products per group, and a mask per channel: for the six kinds 34, 88, 176, 104, 208 and 136.
    """
    _, counts = resnet20_convolution(inputs, outputs, size, stride)
    groups = outputs // copies
    filled = (outputs * (size // stride) ** 2).bit_length() - 1
    assert sum(counts[name] for name in ROTATIONS) == 8 + groups * sums + outputs - 1 + 15 - filled
    assert counts["multiply_plain"] == counts["encode"] == 9 * groups + outputs
    assert counts["normalize"] == groups + 1
    assert counts["hoist"] <= groups + 1


def test_the_primitives_of_a_small_convolution() -> None:
    operand = TensorLayout.multiplexed((3, 4, 4), (8, 8), 2, SLOTS)
    result = TensorLayout.multiplexed((5, 2, 2), (8, 8), 4, SLOTS)
    weight = np.random.default_rng(0).normal(size=(5, 3, 3, 3))
    kernel = MultiplexedKernel(STRIDED, {"w": weight}, operand, result)
    recorder = RecorderEvaluator(PARAMETERS[FIXED])
    kernel.run(recorder, [(recorder.fresh(3),)])
    lines = [f"rotation steps {' '.join(map(str, recorder.rotations))}", *map(str, recorder.events)]
    check_golden("multiplexed_primitives.txt", "\n".join(lines) + "\n")
