"""Diagonal kernels compared with torch.nn.functional, over random shapes, strides, groups, gaps, pages and batches."""

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
from olac.ir.layout import TensorLayout
from olac.ir.lowerings import Diagonals
from olac.ir.ops import Conv2d, LinearMap
from olac.kernels.lanes import in_lanes
from olac.kernels.linear import DiagonalKernel, baby_choices, can_shift, count, modulus_choices, place
from tests.kernels.diagonals import distinct

PARAMETERS = {t: Parameters(10, 3, 30, 36, 2, t, security=0) for t in (FIXED, FLEXIBLE)}
SLOTS = 512


def run(kernel: DiagonalKernel, operand: TensorLayout, images: np.ndarray, technique: str) -> np.ndarray:  # type: ignore[type-arg]
    evaluator = SimulatorEvaluator(PARAMETERS[technique])
    value = tuple(evaluator.encrypt(page, 3) for page in operand.pack(images))
    result = kernel.run(in_lanes(evaluator, operand.batch), [value])
    assert all(part.state.level == 2 and part.state.noise_degree == 1 for part in result)
    assert all(part.state.scale == PARAMETERS[technique].scale(2) for part in result) or technique == FLEXIBLE
    return np.stack([evaluator.decrypt(part) for part in result])


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_convolutions_match_torch(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    c, out = groups * draw(1, 3), groups * draw(1, 3)
    h, w, kh, kw = draw(3, 8), draw(3, 8), draw(1, 3), draw(1, 3)
    stride, dilation = (draw(1, 3), draw(1, 3)), (draw(1, 2), draw(1, 2))
    padding = (draw(0, 2), draw(0, 2), draw(0, 2), draw(0, 2))
    random = np.random.default_rng(draw(0, 2**31))
    if h + padding[0] + padding[1] < dilation[0] * (kh - 1) + 1:
        return
    if w + padding[2] + padding[3] < dilation[1] * (kw - 1) + 1:
        return
    weight, bias = random.normal(size=(out, c // groups, kh, kw)), random.normal(size=out)
    op = Conv2d("w", "b", stride, padding, dilation, groups)
    constants = {"w": weight, "b": bias}
    operand = TensorLayout.multiplexed((c, h, w), (draw(1, 9), draw(1, 9)), data.draw(st.sampled_from([1, 2])), SLOTS)
    shape = op.infer([(c, h, w)], constants)
    batch = data.draw(st.sampled_from([1, 1, 2, 4]))
    gap = data.draw(st.sampled_from([1, 2]))
    operand = TensorLayout.multiplexed((c, h, w), operand.padded, operand.gap, SLOTS // batch, batch)
    result = TensorLayout.multiplexed(shape, operand.padded, gap, SLOTS // batch, batch)
    modulus = data.draw(st.sampled_from(modulus_choices(operand, result)))
    baby = data.draw(st.sampled_from(baby_choices(operand, modulus)))
    images = random.normal(size=(batch, c, h, w))
    lowering = Diagonals(modulus, baby, data.draw(imaginary_choices(modulus)))
    kernel = DiagonalKernel.listed(op.linear_map((c, h, w), constants), operand, result, lowering)
    slots = run(kernel, operand, images, data.draw(st.sampled_from([FIXED, FLEXIBLE])))
    padded = np.pad(images, ((0, 0), (0, 0), padding[:2], padding[2:]))
    x, w_, b_ = (torch.tensor(a) for a in (padded, weight, bias))
    expected = torch.nn.functional.conv2d(x, w_, b_, stride=stride, dilation=dilation, groups=groups).numpy()
    # The whole result, not only its elements: copies repeat, and slots that hold no element are zero.
    assert np.allclose(slots, result.pack(expected), atol=1e-9)
    assert np.allclose(op.evaluate([images], constants), expected, atol=1e-9)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_convolutions_of_shifted_copies_match_torch(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    c, out, h, w = draw(1, 4), draw(1, 6), draw(2, 6), draw(2, 6)
    stride, padding = (draw(1, 2), draw(1, 2)), (draw(0, 2), draw(0, 2), draw(0, 2), draw(0, 2))
    kernel = (draw(1, min(3, h)), draw(1, min(3, w)))
    random = np.random.default_rng(draw(0, 2**31))
    weight, bias = random.normal(size=(out, c, *kernel)), random.normal(size=out)
    op, constants = Conv2d("w", "b", stride, padding), {"w": weight, "b": bias}
    plain = TensorLayout.multiplexed((c, h, w), (draw(1, 7), draw(1, 7)), data.draw(st.sampled_from([1, 2])), SLOTS)
    shape = op.infer([(c, h, w)], constants)
    result = TensorLayout.multiplexed(shape, plain.padded, plain.gap * max(stride), SLOTS)
    if not can_shift(plain, result) or plain.period == 1:
        return
    operand = plain.with_step(1 << draw(0, plain.period.bit_length() - 2))
    modulus = data.draw(st.sampled_from(modulus_choices(operand, result)))
    baby = data.draw(st.sampled_from(baby_choices(operand, modulus)))
    images = random.normal(size=(1, c, h, w))
    lowering = Diagonals(modulus, baby, data.draw(imaginary_choices(modulus)))
    made = DiagonalKernel.listed(op.linear_map((c, h, w), constants), operand, result, lowering)
    slots = run(made, operand, images, data.draw(st.sampled_from([FIXED, FLEXIBLE])))
    padded = np.pad(images, ((0, 0), (0, 0), padding[:2], padding[2:]))
    x, w_, b_ = (torch.tensor(a) for a in (padded, weight, bias))
    expected = torch.nn.functional.conv2d(x, w_, b_, stride=stride).numpy()
    assert np.allclose(slots, result.pack(expected), atol=1e-9)


@pytest.mark.parametrize("columns", [16, 64, 256])
@pytest.mark.parametrize("step", [1, 2, 8])
def test_a_product_serves_as_many_diagonals_as_there_are_copies(columns: int, step: int) -> None:
    """A full square matrix has a diagonal for each column; copies share them, as far as their shifts differ."""
    random = np.random.default_rng(columns)
    matrix, x = random.normal(size=(columns, columns)), random.normal(size=(1, columns))
    linear, result = LinearMap.from_sparse(matrix, np.zeros(columns)), TensorLayout.dense((columns,), SLOTS)
    operand = result.with_step(step)
    copies = min(SLOTS // columns, columns // step)
    assert operand.distinct_copies == copies
    assert count(*distinct(place(linear, operand, result, columns)), 4, 0).products == columns // copies
    kernel = DiagonalKernel.listed(linear, operand, result, Diagonals(columns, 4))
    assert np.allclose(run(kernel, operand, x, FLEXIBLE), result.pack(x @ matrix.T), atol=1e-9)
    recorder = RecorderEvaluator(PARAMETERS[FIXED])
    kernel.run(recorder, [(recorder.fresh(2),)])
    names = [event.primitive for event in recorder.events]
    assert names.count("encode") == names.count("multiply_plain") == columns // copies


def test_shifted_copies_of_one_large_result_are_refused() -> None:
    operand, result = TensorLayout.dense((16,), SLOTS).with_step(2), TensorLayout.dense((40,), SLOTS)
    linear = LinearMap.from_sparse(np.ones((40, 16)), np.zeros(40))
    with pytest.raises(ValueError, match="shifted copies"):
        DiagonalKernel.listed(linear, operand, result, Diagonals(16, 4))


def imaginary_choices(modulus: int) -> st.SearchStrategy[int]:
    """No complex halving, or halving by each power of two below the modulus."""
    return st.sampled_from([0, *(1 << bit for bit in range(modulus.bit_length() - 1))])


@pytest.mark.parametrize("imaginary", [1, 4, 32])
@pytest.mark.parametrize("step", [0, 16])
def test_complex_halving_halves_the_products(imaginary: int, step: int) -> None:
    random = np.random.default_rng(imaginary)
    matrix, x = random.normal(size=(64, 64)), random.normal(size=(1, 64))
    linear, result = LinearMap.from_sparse(matrix, np.ones(64)), TensorLayout.dense((64,), SLOTS)
    operand = result.with_step(step)
    kernel = DiagonalKernel.listed(linear, operand, result, Diagonals(64, 4, imaginary))
    assert np.allclose(run(kernel, operand, x, FLEXIBLE), result.pack(x @ matrix.T + 1), atol=1e-9)
    recorder = RecorderEvaluator(PARAMETERS[FIXED])
    kernel.run(recorder, [(recorder.fresh(2),)])
    names = [event.primitive for event in recorder.events]
    # The last product is with the imaginary unit, and i in every slot is encoded for it. Copies shifted by 16 and 32
    # leave no diagonals for imaginary parts rotated by 32: both take the same ones.
    copies = operand.distinct_copies
    halved = 1 if step and step <= imaginary < step * copies else 2
    assert names.count("multiply_plain") == 64 // copies // halved + 1


@pytest.mark.parametrize("imaginary", [3, 64, 128])
def test_imaginary_parts_of_no_diagonal_are_refused(imaginary: int) -> None:
    layout = TensorLayout.dense((64,), SLOTS)
    with pytest.raises(ValueError, match=f"imaginary {imaginary}"):
        DiagonalKernel.listed(
            LinearMap.from_sparse(np.ones((64, 64)), np.zeros(64)), layout, layout, Diagonals(64, 4, imaginary)
        )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**31), st.booleans())
def test_dense_matrices_match_numpy(rows: int, columns: int, seed: int, folded: bool) -> None:
    random = np.random.default_rng(seed)
    matrix, x = random.normal(size=(rows, columns)), random.normal(size=(1, columns))
    operand, result = TensorLayout.dense((columns,), SLOTS), TensorLayout.dense((rows,), SLOTS)
    modulus = modulus_choices(operand, result)[-1 if folded else 0]
    kernel = DiagonalKernel.listed(
        LinearMap.from_sparse(matrix, np.zeros(rows)), operand, result, Diagonals(modulus, max(1, modulus // 4))
    )
    assert np.allclose(run(kernel, operand, x, FIXED), result.pack(x @ matrix.T), atol=1e-9)


@pytest.mark.parametrize(("size", "position_bytes"), [(16, 1), (256, 1), (512, 2)])
def test_what_a_kernel_keeps_and_holds(size: int, position_bytes: int) -> None:
    operand = result = TensorLayout.dense((size,), SLOTS)
    linear = LinearMap.from_sparse(np.ones((size, size)), np.zeros(size))
    kernel = DiagonalKernel.listed(linear, operand, result, Diagonals(size, 4))
    assert kernel.table_bytes == size * size * (8 + position_bytes)
    recorder = RecorderEvaluator(PARAMETERS[FIXED])
    kernel.run(recorder, [(recorder.fresh(3),)])
    count = Counter(event.primitive for event in recorder.events)
    assert kernel.held == (count["hoisted_rotate"] + 1) + (count["ext_rotate"] + 1) == 4 + size // 4


@pytest.mark.parametrize("rows", [1, 10, 100, 512])
def test_folding_an_operand_of_several_ciphertexts(rows: int) -> None:
    random = np.random.default_rng(rows)
    matrix, x = random.normal(size=(rows, 1300)), random.normal(size=(1, 1300))
    operand, result = TensorLayout.dense((1300,), SLOTS), TensorLayout.dense((rows,), SLOTS)
    choices = modulus_choices(operand, result)
    assert operand.ciphertexts == 3
    assert choices[-1] == result.period
    for modulus in choices[-2:]:
        kernel = DiagonalKernel.listed(
            LinearMap.from_sparse(matrix, np.ones(rows)), operand, result, Diagonals(modulus, 4)
        )
        assert np.allclose(run(kernel, operand, x, FIXED), result.pack(x @ matrix.T + 1), atol=1e-9)


def test_folding_replaces_products_by_log2_rotations() -> None:
    operand, result = TensorLayout.dense((256,), SLOTS), TensorLayout.dense((16,), SLOTS)
    linear = LinearMap.from_sparse(np.ones((16, 256)), np.zeros(16))
    counts = {
        modulus: count(*distinct(place(linear, operand, result, modulus)), modulus, 0).products
        for modulus in modulus_choices(operand, result)
    }
    assert counts == {256: 256, 128: 128, 64: 64, 32: 32, 16: 16}


def test_counted_steps_are_the_recorded_ones() -> None:
    """A 3x3 convolution of 16 channels at 8x8: 8 baby steps, hoisted, 15 giant steps and 144 products."""
    operand = TensorLayout.dense((16, 8, 8), 1024)
    weight = np.random.default_rng(0).normal(size=(16, 16, 3, 3))
    op = Conv2d("w", None, (1, 1), (1, 1, 1, 1))
    linear = op.linear_map((16, 8, 8), {"w": weight})
    counts = count(*distinct(place(linear, operand, operand, 1024)), 64, 0)
    recorder = RecorderEvaluator(Parameters(11, 2, 30, 36, 3, security=0))
    DiagonalKernel.listed(linear, operand, operand, Diagonals(1024, 64)).run(recorder, [(recorder.fresh(2),)])
    names = [event.primitive for event in recorder.events]
    assert (counts.products, counts.babies, counts.giants) == (144, 8, 15)
    assert names.count("multiply_plain") == counts.products
    assert names.count("hoisted_rotate") == counts.babies
    assert names.count("ext_rotate") == counts.giants
    assert names.count("key_switch_down") == names.count("normalize") == 1
