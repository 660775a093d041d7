"""Linear ops of the parts of a concatenation: the same values at a level less, where that shortens the graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from olac.analysis.levels import multiplicative_depth
from olac.ir import Graph, Node, Stage
from olac.ir.ops import (
    Add,
    Affine,
    Array,
    AveragePool,
    Conv2d,
    Gather,
    Linear,
    LinearOp,
    Multiply,
    Op,
    Pad,
    Polynomial,
    Reshape,
    Slice,
    SparseLinear,
)
from olac.passes.base import PassContext, PassManager
from olac.passes.compose_linear import ComposeLinear
from olac.passes.normalize_units import NormalizeUnits
from olac.passes.split_concatenations import MOST_PARTS, SplitConcatenations
from tests.networks import Growing, calibration_of

Reader = Callable[[Growing, str], str]
"""Adds an op that reads a concatenation; its id."""
CHANNELS, SIZE = (3, 5), 4


def branch(g: Growing, value: str, channels: int) -> str:
    """A convolution and a polynomial."""
    made = g.add(Conv2d(g.constant(channels, g.shape(value)[0], 3, 3, size=0.2), None, (1, 1), (1, 1, 1, 1)), value)
    return g.add(Polynomial(g.constant(1, 4, size=0.3), 4.0), made)


def concatenation(g: Growing, values: list[str], name: str = "cat") -> str:
    """Values one after the other on the axis of channels, as `olac.frontend.algebra.joined` makes it."""
    sizes = [g.shape(value)[0] for value in values]
    total, parts = sum(sizes), list[str]()
    for i, value in enumerate(values):
        before = sum(sizes[:i])
        parts.append(g.add(Pad(((before, total - before - sizes[i]), (0, 0), (0, 0))), value, name=f"{name}_part"))
    made = parts[0]
    for part in parts[1:]:
        made = g.add(Add(), made, part, name=name)
    return made


def joined(reader: Reader, channels: tuple[int, ...] = CHANNELS) -> tuple[Growing, Graph]:
    """Branches of an input that meet in a concatenation, its reader, a polynomial, and a linear op."""
    g = Growing(3, (2, SIZE, SIZE))
    cat = concatenation(g, [branch(g, g.input, c) for c in channels])
    value = g.add(Polynomial(g.constant(1, 4, size=0.3), 4.0), reader(g, cat))
    return g, ended(g, value)


def ended(g: Growing, value: str) -> Graph:
    """The graph whose output is a linear layer of a value."""
    size = int(np.prod(g.shape(value)))
    flat = g.add(Reshape((size,)), value)
    return g.builder.build([g.add(Linear(g.constant(3, size, size=size**-0.5)), flat, name="head")], Stage.POLYNOMIAL)


def conv(g: Growing, cat: str) -> str:
    op = Conv2d(g.constant(4, g.shape(cat)[0], 3, 3, size=0.2), g.constant(4), (2, 2), (1, 0, 0, 1))
    return g.add(op, cat, name="reader")


def linear(g: Growing, cat: str) -> str:
    size = int(np.prod(g.shape(cat)))
    flat = g.add(Reshape((size,)), cat)
    return g.add(Linear(g.constant(6, size, size=size**-0.5), g.constant(6)), flat, name="reader")


def affine(g: Growing, cat: str) -> str:
    channels = g.shape(cat)[0]
    return g.add(Affine(g.constant(channels, 1, 1), g.constant(channels, 1, 1)), cat, name="reader")


def shuffled(g: Growing, cat: str) -> str:
    """Channels in another order, of which a convolution reads some."""
    channels, *size = g.shape(cat)
    order = np.arange(channels).reshape(2, -1).T.reshape(-1)
    numbers = np.arange(channels * size[0] * size[1]).reshape(channels, -1)[order]
    moved = g.add(Gather(g.builder.constant("order", numbers.reshape(-1)), (channels, *size)), cat)
    some = g.add(Slice(((1, channels, 1), (0, SIZE, 1), (0, SIZE, 1))), moved)
    return conv(g, some)


def differences(g: Growing, cat: str) -> str:
    """Of neighbours, as a round of max-pooling takes them."""
    size = int(np.prod(g.shape(cat)))
    rows = np.arange(size - 1)
    entries = (np.concatenate([rows, rows]), np.concatenate([rows, rows + 1]), np.repeat([1.0, -1.0], size - 1))
    r, c, v = (g.builder.constant(n, one) for n, one in zip(("rows", "columns", "values"), entries, strict=True))
    return g.add(SparseLinear(r, c, v, g.constant(size - 1), (size - 1,)), cat, name="reader")


def passed(graph: Graph, *passes: SplitConcatenations | ComposeLinear) -> Graph:
    """The graph after passes, which leave its values as they are."""
    made = PassManager(passes).run(graph, PassContext())
    images = np.random.default_rng(9).uniform(-1, 1, size=(4, *graph.inputs[0].type.shape))
    assert np.allclose(made.evaluate(images), graph.evaluate(images), atol=1e-9)
    return made


def kinds(graph: Graph, kind: type[Op]) -> int:
    return sum(isinstance(node.op, kind) for node in graph.nodes)


@pytest.mark.parametrize("reader", [conv, linear, affine, shuffled, differences])
@pytest.mark.parametrize("channels", [(3, 5), (2, 2, 4)])
def test_a_concatenation_costs_no_level(reader: Reader, channels: tuple[int, ...]) -> None:
    _, graph = joined(reader, channels)
    before, after = passed(graph, ComposeLinear()), passed(graph, SplitConcatenations(), ComposeLinear())
    assert multiplicative_depth(after) == multiplicative_depth(before) - 1
    assert kinds(after, Pad) == 0
    assert kinds(after, Add) == len(channels) - 1
    assert after["reader"].type == before["reader"].type


def test_convolutions_and_linear_layers_stay_what_they_are() -> None:
    """Each part is read with its columns of the weight; a list of entries would take memory."""
    for reader, kind in ((conv, Conv2d), (shuffled, Conv2d), (linear, Linear)):
        _, graph = joined(reader)
        after = passed(graph, SplitConcatenations(), ComposeLinear())
        assert kinds(after, SparseLinear) == 0
        made = [node.linear for node in after.nodes if node.id in ("reader.summand", "reader.summand_2")]
        assert [type(op) for op in made] == [kind, kind]
        assert [op.constant_names()[1:] != () for op in made] == [True, False], "the bias is added once"
    _, graph = joined(conv)
    after = passed(graph, SplitConcatenations(), ComposeLinear())
    whole = graph.constants[graph["reader"].linear.constant_names()[0]]
    for name, columns in (("reader.summand", slice(0, 3)), ("reader.summand_2", slice(3, 8))):
        assert np.array_equal(after.constants[after[name].linear.constant_names()[0]], whole[:, columns])


def test_a_reader_of_one_part_reads_no_other() -> None:
    def last(g: Growing, cat: str) -> str:
        return conv(g, g.add(Slice(((3, 8, 1), (0, SIZE, 1), (0, SIZE, 1))), cat))

    _, graph = joined(last)
    after = passed(graph, SplitConcatenations(), ComposeLinear())
    assert kinds(after, Add) == 0
    assert kinds(after, Polynomial) == 2, "the other branch is gone"


def test_several_readers_and_a_concatenation_of_a_concatenation() -> None:
    g = Growing(3, (2, SIZE, SIZE))
    inner = concatenation(g, [branch(g, g.input, 3), branch(g, g.input, 2)], "inner")
    outer = concatenation(g, [inner, branch(g, inner, 4)], "outer")
    one, two = conv(g, outer), conv(g, outer)
    graph = ended(g, g.add(Multiply(), one, two))
    before, after = passed(graph, ComposeLinear()), passed(graph, SplitConcatenations(), ComposeLinear())
    assert multiplicative_depth(after) == multiplicative_depth(before) - 2
    assert kinds(after, SparseLinear) == 0


def test_only_longest_paths_are_split() -> None:
    """A concatenation beside a longer path stays, and so do the readers of one that are not on a longest path."""
    g = Growing(3, (2, SIZE, SIZE))
    short = conv(g, concatenation(g, [branch(g, g.input, 3), branch(g, g.input, 2)]))
    long = g.input
    for _ in range(3):
        long = branch(g, long, 4)
    long = conv(g, long)
    graph = ended(g, g.add(Add(), short, long))
    assert passed(graph, SplitConcatenations()) == graph
    g = Growing(3, (2, SIZE, SIZE))
    cat = concatenation(g, [branch(g, g.input, 3), branch(g, g.input, 2)])
    deep = conv(g, branch(g, conv(g, cat), 4))
    shallow = g.add(Conv2d(g.constant(4, 5, 2, 2), None, (4, 4)), cat, name="shallow")
    size = int(np.prod(g.shape(deep)))
    deep = g.add(Linear(g.constant(4, size)), g.add(Reshape((size,)), deep))
    shallow = g.add(Reshape((4,)), shallow)
    graph = g.builder.build([g.add(Add(), deep, shallow)], Stage.POLYNOMIAL)
    after = passed(graph, SplitConcatenations())
    assert after["shallow"] == graph["shallow"]
    assert after["cat"] == graph["cat"]
    assert len([node for node in after.nodes if "summand" in node.id]) == 2


def grouped(g: Growing, cat: str) -> str:
    return g.add(Conv2d(g.constant(8, 1, 3, 3), None, (1, 1), (1, 1, 1, 1), (1, 1), 8), cat)


def pooled(g: Growing, cat: str) -> str:
    half = g.builder.constant("half", np.repeat(np.eye(SIZE // 2), 2, 1) / 2)
    return g.add(AveragePool(half, half, (2, 2)), cat)


def squared(g: Growing, cat: str) -> str:
    return g.add(Polynomial(g.constant(1, 4, size=0.3), 4.0), cat)


def moved(g: Growing, cat: str) -> str:
    """The sum of a concatenation and what is none."""
    return conv(g, g.add(Add(), cat, g.input if g.shape(g.input) == g.shape(cat) else branch(g, g.input, 8)))


@pytest.mark.parametrize("reader", [grouped, pooled, squared, moved])
def test_what_is_not_split(reader: Reader) -> None:
    _, graph = joined(reader)
    assert passed(graph, SplitConcatenations()) == graph


def test_convolutions_of_many_parts_are_not_split() -> None:
    for parts in (MOST_PARTS, MOST_PARTS + 1):
        _, graph = joined(conv, (1,) * parts)
        assert (passed(graph, SplitConcatenations()) == graph) == (parts > MOST_PARTS)


def test_summands_that_cancel_get_units_of_their_size() -> None:
    """Slots stay within [-1, 1] also where the sum is much smaller than its summands."""
    g = Growing(3, (2, SIZE, SIZE))
    left = branch(g, g.input, 2)
    right = g.add(Affine(g.builder.constant("scale", 1.01), g.builder.constant("shift", 0.0)), left)
    right = g.add(Polynomial(g.builder.constant("line", [[0.0, 4.0]]), 4.0), right)
    left = g.add(Polynomial(g.builder.constant("line", [[0.0, 4.0]]), 4.0), left)
    cat = concatenation(g, [left, right])
    weight = np.concatenate([np.eye(2), -np.eye(2)], axis=1)[:, :, None, None]
    graph = ended(g, g.add(Conv2d(g.builder.constant("w", weight)), cat, name="reader"))
    context = PassContext(calibration=calibration_of(graph, g.images))
    made = PassManager([SplitConcatenations(), ComposeLinear(), NormalizeUnits()]).run(graph, context)
    sizes: dict[str, float] = {}

    def observe(node: Node, value: Array) -> None:
        sizes[node.id] = float(np.abs(value).max())

    assert np.allclose(made.evaluate(g.images), graph.evaluate(g.images), atol=1e-9)
    made.evaluate(g.images, observe)
    assert {"reader.summand", "reader.summand_2"} <= sizes.keys()
    assert max(sizes.values()) < 1.1
    assert sizes["reader"] < 0.05
    without = PassManager([ComposeLinear(), NormalizeUnits()]).run(graph, context)
    assert made["reader"].type.unit > 20 * without["reader"].type.unit


def test_convolutions_around_whole_channels_stay_convolutions() -> None:
    """Slices, paddings and gathers of channels go into the weight; those within a channel do not."""
    whole = [Pad(((2, 1), (0, 0), (0, 0))), Slice(((0, 3, 2), (0, SIZE, 1), (0, SIZE, 1)))]
    within = [Slice(((0, 3, 1), (0, SIZE, 1), (1, SIZE, 1))), Pad(((1, 0), (1, -1), (0, 0)))]
    for moves, kept in ((whole, True), (within, False)):
        for move in moves:
            g = Growing(3, (3, SIZE, SIZE))
            before = g.add(move, g.input)
            first = conv(g, before)
            g2 = Growing(4, (3, SIZE, SIZE))
            three = g2.add(Conv2d(g2.constant(3, 3, 3, 3), g2.constant(3), (1, 1), (1, 1, 1, 1)), g2.input)
            for made, end in ((g, first), (g2, g2.add(move, three))):
                after = passed(made.builder.build([end], Stage.POLYNOMIAL), ComposeLinear())
                assert [node.op.name for node in after.nodes] == ["input", "conv2d" if kept else "sparse_linear"]


def test_moves_of_elements_become_one() -> None:
    g = Growing(3, (3, SIZE, SIZE))
    value = g.add(Slice(((0, 3, 2), (0, SIZE, 1), (1, SIZE, 2))), g.input)
    value = g.add(Pad(((1, 0), (0, 2), (-1, 1))), value)
    after = passed(g.builder.build([value], Stage.POLYNOMIAL), ComposeLinear())
    assert [node.op.name for node in after.nodes] == ["input", "gather"]


def test_linear_ops_say_what_they_take() -> None:
    """`taken` is the linear map of an op that only moves elements, and nothing for others."""
    shape, constants = (3, 4, 5), {"i": np.array([5, -1, 0, 59.0]), "one": np.ones(())}
    ops: tuple[LinearOp, ...] = (
        Pad(((1, 0), (-1, 2), (0, 3))),
        Slice(((0, 3, 2), (1, 4, 1), (0, 5, 3))),
        Gather("i", (2, 2)),
    )
    for op in ops:
        taken, linear = op.taken(shape, constants), op.linear_map(shape, constants)
        assert taken is not None
        dense = np.zeros((len(taken), 60))
        dense[np.flatnonzero(taken >= 0), taken[taken >= 0]] = 1
        assert np.array_equal(linear.matrix().toarray(), dense)
    assert Pad(((1, 0), (0, 0), (0, 0)), 0.5).taken(shape, constants) is None
    assert Affine("one", "one").taken(shape, constants) is None
