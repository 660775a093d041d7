"""Ranges of columns and channels, and units of their own for those of uneven size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from olac.calibration.statistics import Calibration
from olac.errors import VerificationError
from olac.ir import Graph, GraphBuilder, Range, Stage
from olac.ir.ops import Add, Affine, Array, AveragePool, Conv2d, Input, Linear, Op, Polynomial, Reshape, Slice
from olac.ir.verify import verify
from olac.passes.base import PassContext, PassManager
from olac.passes.normalize_units import NormalizeUnits
from olac.passes.scale_inputs import FEW_VALUES, ScaleInputs
from tests.networks import calibration_of

RANDOM = np.random.default_rng(4)
SIZES = np.array([1e6, 1e-3, 1.0, 30.0])
FAR = np.array([0.0, 0.0, -40.0, 2000.0])


def calibrated(graph: Graph, images: Array) -> Calibration:
    """With the ranges of channels, which `calibration_of` leaves out."""
    channels: dict[str, Array] = {}

    def observe(node: object, value: Array) -> None:
        flat = value.reshape(len(value), value.shape[1], -1)
        channels[node.id] = np.stack([flat.min(axis=(0, 2)), flat.max(axis=(0, 2))], axis=1)  # type: ignore[attr-defined]

    graph.evaluate(images, observe)
    return replace(calibration_of(graph, images), channels=channels, held_out=images)


def scaled(graph: Graph, images: Array) -> Graph:
    """The graph after the pass and with units, after a check that it computes the same."""
    calibration = calibrated(graph, images)
    result = PassManager([ScaleInputs(), NormalizeUnits()]).run(graph, PassContext(calibration=calibration))
    before, after = graph.evaluate(images), result.evaluate(images)
    assert np.max(np.abs(after - before)) < 1e-9 * max(1.0, float(np.max(np.abs(before))))
    largest = 0.0

    def observe(node: object, value: Array) -> None:
        nonlocal largest
        largest = max(largest, float(np.max(np.abs(value))))

    result.evaluate(images, observe)
    assert largest <= 1.0
    return result


def table(count: int = 50) -> Array:
    return np.asarray(RANDOM.uniform(-1, 1, (count, 4)) * SIZES + FAR)


def pictures(count: int = 20) -> Array:
    return np.asarray(RANDOM.uniform(-1, 1, (count, 4, 5, 5)) * SIZES[:, None, None] + FAR[:, None, None])


def graph_of(shape: tuple[int, ...], *ops: tuple[Op, int], constants: dict[str, Array]) -> Graph:
    """Ops, each with the number of the value that it reads; the last is the output."""
    b = GraphBuilder(by="test")
    for name, value in constants.items():
        b.constant(name, value)
    values = [b.add(Input(shape), name="x")]
    for op, operand in ops:
        inputs = [values[operand]] * op.arity
        values.append(b.add(op, inputs, name=op.name))
    return b.build([values[-1]], Stage.POLYNOMIAL)


def weights(out: int, *rest: int) -> Array:
    """Weights with which every channel adds as much to the outputs."""
    w = RANDOM.normal(size=(out, 4, *rest))
    return np.asarray(w / SIZES.reshape(1, 4, *(1,) * len(rest)))


LINEAR = (Linear("w", "b"), 0)


def test_columns_of_uneven_size_get_units_and_middles_of_their_own() -> None:
    graph = graph_of((4,), LINEAR, constants={"w": weights(3), "b": RANDOM.normal(size=3)})
    result = scaled(graph, table())
    op = result.inputs[0].op
    assert isinstance(op, Input)
    assert list(op.factors) == pytest.approx(SIZES.tolist(), rel=0.4)
    assert list(op.offsets) == pytest.approx(FAR.tolist(), abs=10.0) and op.offsets[:2] == (0.0, 0.0)
    # No weight is large or small: none of the columns loses precision to another.
    assert np.ptp(np.log2(np.abs(result.constants[result["linear"].op.weight]).mean(axis=0))) < 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("bias", ["b", None])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 0, 2, 1)])
def test_convolutions(bias: str | None, groups: int, padding: tuple[int, int, int, int]) -> None:
    w = weights(6, 3, 3)
    if groups == 2:
        w = np.concatenate([w[:3, :2], w[3:, 2:]])
    conv = (Conv2d("w", bias, (2, 1), padding, (1, 1), groups), 0)
    op = scaled(graph_of((4, 5, 5), conv, constants={"w": w, "b": RANDOM.normal(size=6)}), pictures()).inputs[0].op
    assert isinstance(op, Input) and len(op.factors) == 4
    # At a padded border there would have to be no offset.
    assert any(op.offsets) == (not any(padding))


def test_other_linear_ops_and_several_that_read_the_input() -> None:
    mean = np.full((1, 5), 0.2)
    constants = {
        "w": weights(3, 25).reshape(3, 100),
        "scale": 1 / SIZES.reshape(4, 1, 1),
        "one": np.ones(()),
        "mean": mean,
        "v": weights(3, 1, 1),
        "b": RANDOM.normal(size=3),
    }
    flat, linear = (Reshape((100,)), 0), (Linear("w"), 1)
    for ops in (
        (flat, linear),
        ((Affine("scale", "one"), 0),),
        ((AveragePool("mean", "mean"), 0),),
        ((Slice(((1, 3, 1), (0, 5, 2), (1, 4, 1))), 0),),
        (flat, (Slice(((10, 90, 7),)), 1)),
    ):
        assert scaled(graph_of((4, 5, 5), *ops, constants=constants), pictures()).inputs[0].op.attributes()["factors"]
    b = GraphBuilder(constants, by="test")
    x = b.add(Input((4, 5, 5)), name="x")
    pooled = [
        b.add(AveragePool("mean", "mean"), [b.add(Conv2d("v", bias), [x], name="conv")], name="pool")
        for bias in ("b", None)
    ]
    wide = b.add(Linear("w"), [b.add(Reshape((100,)), [x], name="flat")], name="wide")
    narrow = [b.add(Reshape((3,)), [each], name="narrow") for each in pooled]
    total = b.add(Add(), [b.add(Add(), narrow, name="sum"), wide], name="total")
    assert scaled(b.build([total], Stage.POLYNOMIAL), pictures()).inputs[0].op.attributes()["offsets"]


def test_one_unit_is_left_where_it_does_or_must_do() -> None:
    linear = graph_of((4,), LINEAR, constants={"w": weights(3), "b": np.ones(3)})
    assert scaled(linear, RANDOM.uniform(-1, 1, (50, 4)) * [1, 2, 3, 1]).inputs[0].op == Input((4,))
    # No number of calibrated values, however they look, is few enough to tell columns apart.
    assert scaled(linear, table(FEW_VALUES - 1)).inputs[0].op == Input((4,))
    curve = (Polynomial("p", 3e6), 0)
    for ops in (
        (curve, (Linear("w", "b"), 1)),
        ((Linear("w", "b"), 0), curve),
        ((Reshape((2, 2)), 0),),
    ):
        result = scaled(
            graph_of((4,), *ops, constants={"w": weights(4), "b": np.ones(4), "p": np.array([[0.1, 1.0]])}), table()
        )
        assert result.inputs[0].op == Input((4,)) and len(result.inputs[0].type.channels) == 4


def test_columns_that_did_not_vary_are_trusted_as_far_as_they_do_no_harm() -> None:
    images = RANDOM.uniform(-1, 1, (100, 4))
    images[:, 1:] = (0.0, 5.0, 0.0)
    w = np.array([[1.0, 1e-3, 0.0, 2.0]])
    graph = graph_of((4,), LINEAR, constants={"w": w, "b": np.zeros(1)})
    node = scaled(graph, images).inputs[0]
    assert isinstance(node.op, Input)
    # In true units; types have the ranges of what the client encrypts.
    ends = [
        (one.low * factor + offset, one.high * factor + offset)
        for one, offset, factor in zip(node.type.channels, node.op.offsets, node.op.factors, strict=True)
    ]
    varied, harmless, unread, harmful = ends
    assert varied == pytest.approx((-1, 1), abs=0.1) and harmless == pytest.approx((-1, 1), abs=0.1)
    assert unread == pytest.approx((4, 6), abs=0.1)
    assert harmful == pytest.approx((-1 / 16, 1 / 16), abs=0.01)


def test_outputs_have_ranges_too_and_constants_break_nothing() -> None:
    graph = graph_of((4,), LINEAR, constants={"w": weights(3), "b": np.ones(3)})
    images = table()
    outputs = graph.evaluate(images)
    for one, column in zip(scaled(graph, images)["linear"].type.channels, outputs.T, strict=True):
        assert (one.low, one.high) == pytest.approx((column.min(), column.max()))
    for same in (np.zeros((50, 4)), np.full((50, 4), 7.0)):
        assert all(one.low < one.high for one in scaled(graph, same).inputs[0].type.channels)


@pytest.mark.parametrize(
    "op",
    [
        Input((4,), (0.0,) * 3, (1.0,) * 3),
        Input((4,), (), (1.0,) * 4),
        Input((4,), (0.0,) * 4, (1.0, 1.0, 0.0, 1.0)),
        Input((4,), (0.0, np.inf, 0.0, 0.0), (1.0,) * 4),
    ],
)
def test_inputs_that_make_no_sense_are_found(op: Input) -> None:
    b = GraphBuilder()
    graph = b.build([b.add(op, name="x")])
    with pytest.raises(VerificationError, match="offsets"):
        verify(graph)
    kept = graph.nodes[0]
    wrong = replace(kept, op=Input((4,)), type=replace(kept.type, channels=(Range(0.0, 1.0),)))
    with pytest.raises(VerificationError, match="ranges of 1 channels, expected 4"):
        verify(replace(graph, nodes=(wrong,)))
