"""What is computed of a linear map without its entries is what its entries give: diagonals, products and plaintexts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from olac.backends.recorder import RecorderEvaluator
from olac.ckks.parameters import Parameters
from olac.ir.layout import TensorLayout
from olac.ir.lowerings import Diagonals
from olac.ir.ops import AveragePool, Constants, Conv2d, Linear, LinearOp, ShapeError
from olac.kernels.linear import (
    DiagonalKernel,
    Plan,
    Product,
    baby_choices,
    can_shift,
    counted_modulo,
    diagonals_of_taps,
    distinct_diagonals,
    distinct_numbers,
    modulus_choices,
    place,
)
from olac.kernels.patterns import diagonal_kernel
from olac.system.arrays import Array
from tests.kernels.diagonals import distinct


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Conv2d, tuple[int, int, int], Mapping[str, Array]]:
    """A convolution, the shape of its operand and its constants; some weights are zero."""

    def number(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    groups = draw(st.sampled_from([1, 1, 2, 3]))
    c, out, kernel = groups * number(1, 3), groups * number(1, 3), (number(1, 3), number(1, 3))
    shape = (c, number(1, 9), number(1, 9))
    random = np.random.default_rng(number(0, 2**31))
    weight = random.normal(size=(out, c // groups, *kernel)) * (random.random((out, c // groups, *kernel)) < 0.8)
    padding = (number(0, 3), number(0, 3), number(0, 3), number(0, 3))
    strides, dilation = (number(1, 3), number(1, 3)), (number(1, 2), number(1, 2))
    op = Conv2d("w", draw(st.sampled_from(["b", None])), strides, padding, dilation, groups)
    constants = {"w": weight, "b": random.normal(size=out)}
    try:
        op.infer([shape], constants)
    except ShapeError:
        assume(False)
    return op, shape, constants


@st.composite
def placed(
    draw: st.DrawFn, op: LinearOp, shape: tuple[int, ...], constants: Constants
) -> tuple[TensorLayout, TensorLayout, Diagonals]:
    """Layouts of operand and result, of one image or several, and diagonals between them."""
    slots = draw(st.sampled_from([32, 128, 512]))
    padded, gap = (draw(st.integers(1, 12)), draw(st.integers(1, 12))), draw(st.sampled_from([1, 2, 3, 4]))
    target = op.infer([shape], constants)
    operand = TensorLayout.multiplexed(shape, padded, gap if len(shape) == 3 else 1, slots)
    stride = draw(st.sampled_from([1, 2, 3]))
    wide = draw(st.sampled_from([operand.padded, (1, 1)]))
    result = TensorLayout.multiplexed(target, wide, gap * stride if len(target) == 3 else 1, slots)
    batch = draw(st.sampled_from([1, 1, 2, 4]))
    operand, result = replace(operand, batch=batch), replace(result, batch=batch)
    if can_shift(operand, result) and operand.period > 1 and draw(st.booleans()):
        operand = operand.with_step(1 << draw(st.integers(0, operand.period.bit_length() - 2)))
    larger = [] if operand.step else [max(operand.period, result.period)]
    smaller = [] if operand.step else [max(1, result.period // 2)]
    choices = [n for n in modulus_choices(operand, result) + larger + smaller if not operand.step or n >= result.period]
    modulus = draw(st.sampled_from(choices))
    imaginary = draw(st.sampled_from([0, *(1 << bit for bit in range(modulus.bit_length() - 1))]))
    return operand, result, Diagonals(modulus, draw(st.sampled_from(baby_choices(operand, modulus))), imaginary)


def same(
    op: LinearOp,
    shape: tuple[int, ...],
    constants: Constants,
    operand: TensorLayout,
    result: TensorLayout,
    lowering: Diagonals,
) -> int:
    """Check that both kernels of an op have the same products in the same order, and the same slots; how many."""
    listed = DiagonalKernel.listed(op.linear_map(shape, constants), operand, result, lowering)
    computed = diagonal_kernel(op, shape, constants, operand, result, lowering)
    assert ordered(computed._plan) == ordered(listed._plan)
    assert computed._weights.biased == listed._weights.biased
    products = 0
    for page, giants in enumerate(listed._plan):
        np.testing.assert_array_equal(computed._weights.bias(page), listed._weights.bias(page))
        for giant, some in giants.items():
            for product in some:
                one = computed._weights.slots(page, giant, product)
                other = listed._weights.slots(page, giant, product)
                assert one.dtype == other.dtype and len(one) == operand.slots
                np.testing.assert_array_equal(one, other)
                products += 1
    return products


def ordered(plan: Plan) -> list[list[tuple[int, list[object]]]]:
    return [[(giant, list(some)) for giant, some in page.items()] for page in plan]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    op, shape, constants = data.draw(convolutions())
    operand, result, lowering = data.draw(placed(op, shape, constants))
    same(op, shape, constants, operand, result, lowering)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_matrices(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    random = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    constants = {"w": random.normal(size=(rows, columns)) * (random.random((rows, columns)) < 0.7), "b": np.ones(rows)}
    op = Linear("w", data.draw(st.sampled_from(["b", None])))
    operand, result, lowering = data.draw(placed(op, (columns,), constants))
    same(op, (columns,), constants, operand, result, lowering)


def test_a_reshaped_operand() -> None:
    """Its planes are not those of the convolution, so its diagonals come from entries."""
    random = np.random.default_rng(0)
    constants = {"w": random.normal(size=(2, 4, 2, 2)), "b": random.normal(size=2)}
    op, shape = Conv2d("w", "b", padding=(1, 0, 1, 0)), (4, 3, 2)
    operand = TensorLayout.multiplexed((2, 3, 4), (3, 4), 2, 64).reshaped(shape)
    result = TensorLayout.dense(op.infer([shape], constants), 64)
    assert operand.grid != operand.shape
    assert same(op, shape, constants, operand, result, Diagonals(operand.period, 4)) > 4


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_diagonals_of_taps(data: st.DataObject) -> None:
    op, shape, constants = data.draw(convolutions())
    operand, result, _ = data.draw(placed(op, shape, constants))
    operand = operand.with_step(0)
    found = diagonals_of_taps(op.taps(shape, constants), operand, result)
    listed = distinct_diagonals(op.entries(shape, constants), operand, result)
    for one, other in zip(found, listed, strict=True):
        np.testing.assert_array_equal(one, other)
    for modulus in modulus_choices(operand, result):
        expected = distinct(place(op.linear_map(shape, constants), operand, result, modulus))
        for one, other in zip(counted_modulo(found, operand, result, modulus), expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("stride", [1, 2])
def test_planes_that_are_cut_by_ciphertexts(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planes of 5 x 9 slots begin anywhere in ciphertexts of 32; tables of diagonals are filled one by one."""
    monkeypatch.setattr("olac.kernels.linear.PATTERN_BYTES", 1)
    monkeypatch.setattr("olac.kernels.linear.ENTRIES", 5)
    random = np.random.default_rng(stride)
    constants = {"w": random.normal(size=(5, 3, 3, 3))}
    op, shape = Conv2d("w", None, (stride, stride), (1, 1, 1, 1)), (3, 5, 9)
    operand = TensorLayout.dense(shape, 32)
    result = TensorLayout.dense(op.infer([shape], constants), 32)
    assert operand.plane == 45 and operand.ciphertexts == 5 and result.ciphertexts > 2
    found = diagonals_of_taps(op.taps(shape, constants), operand, result)
    expected = distinct(place(op.linear_map(shape, constants), operand, result, operand.period))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert same(op, shape, constants, operand, result, Diagonals(32, 4)) == len(found[0])


@settings(max_examples=100, deadline=None)
@given(convolutions())
def test_entries_are_those_of_the_map(given_op: tuple[Conv2d, tuple[int, int, int], Mapping[str, Array]]) -> None:
    op, shape, constants = given_op
    linear = op.linear_map(shape, constants)
    rows, columns, values = (np.concatenate(part) for part in zip(*op.entries(shape, constants), strict=True))
    np.testing.assert_array_equal(rows, linear.rows)
    np.testing.assert_array_equal(columns, linear.columns)
    np.testing.assert_array_equal(values, linear.values)
    assert op.entry_count(shape, constants) == len(values)
    computed, (size_out, size_in) = op.computed_map(shape, constants), linear.matrix().shape
    places = np.divmod(np.arange(size_out * size_in), size_in)
    np.testing.assert_array_equal(computed.values(*places).reshape(size_out, size_in), linear.matrix().toarray())
    np.testing.assert_array_equal(computed.shifts(np.arange(size_out)), linear.bias)


def test_a_large_layer_is_never_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of ResNet-18 at 224 x 224 pixels, of 113 million entries: its plan, its price and one plaintext."""
    monkeypatch.setattr(Conv2d, "_entries", None)
    op, shape = Conv2d("w", None, (1, 1), (1, 1, 1, 1)), (64, 56, 56)
    weight = np.random.default_rng(0).normal(size=(64, 64, 3, 3))
    layout = TensorLayout.dense(shape, 1 << 15)
    assert op.entry_count(shape, {"w": weight}) == 64 * 64 * (3 * 56 - 2) ** 2 == 112_869_376
    assert layout.plane == 56 * 56 and layout.ciphertexts == 7
    kernel = diagonal_kernel(op, shape, {"w": weight}, layout, layout, Diagonals(layout.period, 64))
    recorder = RecorderEvaluator(Parameters(16, 2, 30, 36, 3, security=0))
    kernel.run(recorder, [(recorder.fresh(2),) * 7])
    products = recorder.counts()["multiply_plain", 2]
    assert products == sum(len(some) for page in kernel._plan for some in page.values()) > 64 * 9
    assert kernel.table_bytes == weight.nbytes + 64 * 8 + 2 * 7 * (4 << 15)  # weights, zero biases, elements of slots
    # The last 1408 slots of the first ciphertext are of channel 10. Its first rows read those of channel 0 beside them.
    number = -10 * 3136 % layout.period
    giant, product = number // 64 * 64, Product(0, number % 64)
    assert product in kernel._plan[0][giant]
    slots = np.roll(kernel._weights.slots(0, giant, product), -giant)
    np.testing.assert_array_equal(slots[10 * 3136 :], weight[10, 0, 1, 1])
    assert np.count_nonzero(slots[: 10 * 3136]) == 0


def test_an_op_without_a_closed_form_is_listed() -> None:
    constants = {"r": np.full((2, 4), 0.25), "c": np.full((1, 6), 1 / 6)}
    op, shape = AveragePool("r", "c"), (3, 4, 6)
    assert op.taps(shape, constants) is None and op.computed_map(shape, constants) is None
    assert op.entry_count(shape, constants) == 3 * 2 * 24
    layout = TensorLayout.dense(shape, 128)
    result = TensorLayout.dense((3, 2, 1), 128)
    assert same(op, shape, constants, layout, result, Diagonals(128, 8)) > 10


@pytest.mark.parametrize("largest", [1, 40, 10**9])
def test_distinct_numbers(largest: int) -> None:
    """By flags or by sorting."""
    numbers = np.random.default_rng(largest).integers(0, largest, 30)
    np.testing.assert_array_equal(distinct_numbers(numbers), np.unique(numbers))
    assert len(distinct_numbers(numbers[:0])) == 0
