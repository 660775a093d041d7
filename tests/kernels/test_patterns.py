"""Results that linear ops with entries at the same places share are the same as for each op by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pytest

from olac.backends.recorder import RecorderEvaluator
from olac.backends.simulator import SimulatorEvaluator
from olac.ckks.parameters import Parameters
from olac.errors import VerificationError
from olac.ir.layout import TensorLayout
from olac.ir.lowerings import Diagonals
from olac.ir.ops import Conv2d, Linear, LinearOp, SparseLinear
from olac.kernels import linear as linear_module
from olac.kernels import patterns
from olac.kernels.linear import DiagonalKernel, Distinct, modulus_choices, place
from olac.kernels.patterns import Kept, diagonals_of, entries_key, weightless_kernel
from olac.system.arrays import Array, Index
from tests.kernels.diagonals import distinct

Entries = Iterable[tuple[Index, Index, Array]]
PARAMETERS = Parameters(11, 3, 30, 36, 2, security=0)
SHAPE = (2, 6, 6)
CONV = Conv2d("w", "b", padding=(1, 1, 1, 1))


def constants(seed: int, zeros: tuple[int, ...] = (), bias: float = 1.0) -> dict[str, Array]:
    weight = np.random.default_rng(seed).normal(size=(3, 2, 3, 3))
    weight.reshape(-1)[list(zeros)] = 0.0
    return {"w": weight, "b": np.full(3, bias)}


def test_other_weights_have_the_same_key_and_other_zeros_another() -> None:
    key = entries_key(CONV, SHAPE, constants(0))
    assert key == entries_key(CONV, SHAPE, constants(1))
    assert key != entries_key(CONV, SHAPE, constants(1, zeros=(4,)))
    assert key != entries_key(CONV, SHAPE, constants(1, bias=0.0))
    assert key != entries_key(CONV, (2, 6, 8), constants(1))
    assert key != entries_key(Conv2d("w", "b", stride=(2, 2), padding=(1, 1, 1, 1)), SHAPE, constants(1))


def test_of_other_ops_the_values_count() -> None:
    """Rows and columns say where entries are, zero or not."""
    op = SparseLinear("rows", "columns", "values", "bias", (2,))
    one = {"rows": np.array([0, 1]), "columns": np.array([1, 2]), "values": np.ones(2), "bias": np.zeros(2)}
    assert entries_key(op, (4,), one) == entries_key(op, (4,), {k: v.copy() for k, v in one.items()})
    assert entries_key(op, (4,), one) != entries_key(op, (4,), one | {"columns": np.array([1, 3])})


def test_only_arrays_that_can_not_change_are_hashed_once() -> None:
    mine = constants(0)
    key = entries_key(CONV, SHAPE, mine)
    mine["w"][0, 0, 0, 0] = 0.0
    other = entries_key(CONV, SHAPE, mine)
    assert other != key
    mine["w"].setflags(write=False)
    assert entries_key(CONV, SHAPE, mine) == entries_key(CONV, SHAPE, mine) == other
    before = len(patterns._DIGESTS)
    del mine["w"]
    assert len(patterns._DIGESTS) == before - 1


@pytest.mark.parametrize("zeros", [(), (0, 1, 2, 9, 30, 31)])
def test_diagonals_and_primitives_are_those_of_the_op_itself(zeros: tuple[int, ...]) -> None:
    operand = TensorLayout.dense(SHAPE, PARAMETERS.slots)
    result = TensorLayout.dense((3, 6, 6), PARAMETERS.slots)
    for seed in (2, 3):
        mine = constants(seed, zeros)
        linear = CONV.linear_map(SHAPE, mine)
        for modulus in (operand.period, operand.period // 2):
            if modulus < result.period:
                continue
            found = diagonals_of(CONV, SHAPE, mine, operand, result, modulus)
            for one, other in zip(found, distinct(place(linear, operand, result, modulus)), strict=True):
                np.testing.assert_array_equal(one, other)
        lowering = Diagonals(max(operand.period, result.period), 8)
        events = []
        for kernel in (
            weightless_kernel(CONV, SHAPE, mine, operand, result, lowering),
            DiagonalKernel.listed(linear, operand, result, lowering),
        ):
            recorder = RecorderEvaluator(PARAMETERS)
            kernel.run(recorder, [(recorder.fresh(3),)])
            events.append(recorder.events)
        assert events[0] == events[1]
        assert len(events[0]) > 20


def layouts() -> Iterator[tuple[str, LinearOp, Mapping[str, Array], TensorLayout, TensorLayout]]:
    """Ops between layouts of all kinds: gaps, batches, several ciphertexts, results smaller and larger."""
    random = np.random.default_rng(6)
    dense = TensorLayout.dense
    yield "small", CONV, constants(0), dense(SHAPE, 1024), dense((3, 6, 6), 1024)
    gap = TensorLayout.multiplexed((3, 3, 3), (6, 6), 2, 1024)
    stride = Conv2d("w", "b", stride=(2, 2), padding=(1, 1, 1, 1))
    yield "gap", stride, constants(1), dense(SHAPE, 1024), gap
    yield "batch", CONV, constants(2), dense(SHAPE, 1024, 4), dense((3, 6, 6), 1024, 4)
    yield "ciphertexts", CONV, constants(3), dense(SHAPE, 32), dense((3, 6, 6), 32)
    for rows, columns in ((5, 100), (100, 5), (3, 300)):
        weight = {"w": random.normal(size=(rows, columns)) * (random.random((rows, columns)) < 0.4)}
        yield f"{rows} of {columns}", Linear("w"), weight, dense((columns,), 256), dense((rows,), 256)


LAYOUTS = {name: (op, mine, operand, result) for name, op, mine, operand, result in layouts()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_diagonals_are_those_of_the_placed_entries(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, mine, operand, result = LAYOUTS[name]
    monkeypatch.setattr("olac.kernels.linear.ENTRIES", 7)
    linear = op.linear_map(operand.shape, mine)
    for modulus in modulus_choices(operand, result):
        found = diagonals_of(op, operand.shape, mine, operand, result, modulus)
        for one, other in zip(found, distinct(place(linear, operand, result, modulus)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_wide_layer_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of moduli, the entries are not repeated for any of them."""
    seen: list[int] = []
    placed = linear_module.distinct_diagonals

    def watched(entries: Entries, operand: TensorLayout, result: TensorLayout) -> Distinct:
        listed = list(entries)
        seen.append(sum(len(rows) for rows, _, _ in listed))
        return placed(listed, operand, result)

    monkeypatch.setattr("olac.kernels.patterns.distinct_diagonals", watched)
    monkeypatch.setattr("olac.kernels.patterns._DIAGONALS", Kept())
    op, weight = Linear("w"), {"w": np.ones((4, 512))}
    operand, result = TensorLayout.dense((512,), 1024), TensorLayout.dense((4,), 1024)
    moduli = modulus_choices(operand, result)
    assert len(moduli) > 3
    for modulus in moduli:
        diagonals_of(op, (512,), weight, operand, result, modulus)
    assert seen == [4 * 512]


def test_a_kernel_without_weights_leaves_the_other_as_it_is() -> None:
    layout = TensorLayout.dense(SHAPE, PARAMETERS.slots)
    result = TensorLayout.dense((3, 6, 6), PARAMETERS.slots)
    kernel = DiagonalKernel.listed(CONV.linear_map(SHAPE, constants(4)), layout, result, Diagonals(result.period, 8))
    weightless = kernel.weightless()
    evaluator = SimulatorEvaluator(PARAMETERS)
    value = [tuple(evaluator.encrypt(page, 3) for page in layout.pack(np.ones((1, *SHAPE))))]
    assert weightless.table_bytes == kernel.table_bytes > 0
    with pytest.raises(VerificationError, match="without weights"):
        weightless.run(evaluator, value)
    kernel.run(evaluator, value)


def test_only_the_last_results_are_kept() -> None:
    kept: Kept[int] = Kept(most=2)
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number

    for number in (1, 2, 1, 3, 2, 1):
        assert kept.get(number, lambda number=number: make(number)) == number  # type: ignore[misc]
    assert made == [1, 2, 3, 1]
