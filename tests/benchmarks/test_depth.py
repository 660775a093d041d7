"""Depth as the recorder counts it, against what ops claim and what compiled programs consume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.depth import activation_depth, circuit_depth, node_levels
from olac.analysis.levels import multiplicative_depth
from olac.backends.base import Evaluator
from olac.ckks.parameters import Parameters
from olac.ckks.primes import FIXED, FLEXIBLE
from olac.ir import Graph, GraphBuilder, Stage
from olac.ir.ops import Array, Constants, Conv2d, Input, Op, Polynomial, Shape
from olac.kernels import execute
from olac.kernels.base import Kernel, Value
from olac.passes.base import PassContext, PassManager
from olac.passes.fold_squares import FoldSquares
from olac.passes.normalize_units import NormalizeUnits
from olac.passes.pipeline import lowering_pipeline
from tests.networks import calibration_of, images_for, normalized, random_network, residual_network, residual_quadratics


@pytest.mark.parametrize("technique", [FIXED, FLEXIBLE])
@pytest.mark.parametrize("square", [False, True])
def test_a_program_consumes_the_depth_that_was_counted(technique: str, square: bool) -> None:
    graph = residual_network(square=square)
    graph, calibration = normalized(graph, images_for(graph, 4))
    depth = circuit_depth(graph)
    assert depth == multiplicative_depth(graph)
    parameters = Parameters(11, depth + 2, 30, 36, 1, technique, security=0)
    context = PassContext(calibration=calibration, parameters=parameters)
    program = PassManager(lowering_pipeline()).run(graph, context)
    fresh, last = program.inputs[0].type.state, program[program.outputs[0]].type.state
    assert fresh is not None
    assert last is not None
    assert fresh.level - last.level == depth


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_ops_claim_the_levels_that_their_kernels_use(seed: int) -> None:
    graph, images = random_network(seed)
    passes = [FoldSquares(), NormalizeUnits()]
    folded = PassManager(passes).run(graph, PassContext(calibration=calibration_of(graph, images)))
    for each in (graph, folded):
        assert node_levels(each) == {node.id: node.op.levels(each.constants) for node in each.nodes}
        assert circuit_depth(each) == multiplicative_depth(each)


def chain(*degrees: int) -> Graph:
    """A convolution before each polynomial; leading zeros that a degree must not count."""
    b = GraphBuilder(by="test")
    w = b.constant("w", np.eye(2)[:, :, None, None])
    last = b.add(Input((2, 3, 3)), name="x")
    for degree in degrees:
        last = b.add(Conv2d(w), [last], name="conv")
        coefficients = np.ones((2, degree + 1)) @ np.eye(degree + 1, degree + 3)
        last = b.add(Polynomial(b.constant("p", coefficients), 3.0), [last], name="act")
    return b.build([last], Stage.POLYNOMIAL)


@pytest.mark.parametrize(
    ("degree", "levels"), [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4), (15, 4), (59, 6), (64, 7), (127, 7)]
)
def test_polynomials_of_every_depth(degree: int, levels: int) -> None:
    assert node_levels(chain(degree)) == {"x": 0, "conv": 1, "act": levels}


def test_what_the_activations_take() -> None:
    graph = chain(3, 7, 1)
    assert circuit_depth(graph) == 3 + 2 + 3 + 1
    assert activation_depth(graph) == 6
    assert activation_depth(graph, ["act_2"]) == 3
    assert activation_depth(graph, []) == 0


@pytest.mark.parametrize("blocks", [9, 54])
def test_residual_networks(blocks: int) -> None:
    """Two activations a block and one of the stem, as in a CIFAR ResNet-20 and ResNet-110."""
    graph = residual_quadratics(blocks=blocks, shape=4)
    activations = 2 * blocks + 1
    linear = activations + 2  # pooling and the head
    assert circuit_depth(graph) == linear + 2 * activations
    assert activation_depth(graph) == 2 * activations
    folded = PassManager([FoldSquares()]).run(graph, PassContext())
    assert circuit_depth(folded) == linear + activations
    assert activation_depth(folded) == activations


@dataclass(frozen=True)
class Fourth(Op):
    """The fourth power, which claims a level too few."""

    name: ClassVar[str] = "fourth"

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        return shapes[0]

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return np.asarray(operands[0] ** 4)

    def levels(self, constants: Constants) -> int:
        return 1


class FourthKernel(Kernel):
    """Two squares."""

    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        squares = [evaluator.rescale(evaluator.multiply(x, x)) for x in operands[0]]
        return tuple(evaluator.rescale(evaluator.multiply(x, x)) for x in squares)


def test_kernels_are_believed_not_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels: dict[type[Op], execute.KernelFactory] = dict(execute.KERNELS)
    kernels[Fourth] = lambda graph, node: FourthKernel()
    monkeypatch.setattr("olac.kernels.execute.KERNELS", kernels)
    monkeypatch.setattr("benchmarks.depth.KERNELS", kernels)
    b = GraphBuilder(by="test")
    y = b.add(Fourth(), [b.add(Input((2, 30, 40)), name="x")], name="y")
    graph = b.build([y], Stage.POLYNOMIAL)
    assert multiplicative_depth(graph) == 1
    assert circuit_depth(graph) == activation_depth(graph) == 2
