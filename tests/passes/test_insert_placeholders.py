"""Placeholders: polynomials of given degrees, and the circuit that is counted by them."""

from __future__ import annotations

import pytest

from benchmarks.depth import node_levels
from olac.ir.ops import Affine, Polynomial, Square
from olac.ir.types import Stage
from olac.passes.base import PassContext, PassManager
from olac.passes.insert_placeholders import InsertPlaceholders, circuit_pipeline
from tests.approximation.nets import activations, residual

NET = residual(2)


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 7, 8, 31])
def test_placeholders_have_the_degree_and_take_its_levels(degree: int) -> None:
    made = PassManager([InsertPlaceholders(dict.fromkeys(activations(NET), degree))]).run(NET, PassContext())
    assert made.stage == Stage.POLYNOMIAL and [node.id for node in made.nodes] == [node.id for node in NET.nodes]
    levels = node_levels(made)
    for name in activations(NET):
        op = made[name].op
        assert isinstance(op, Polynomial)
        coefficients = made.constants[op.coefficients]
        assert coefficients.shape == (1, degree + 1) and coefficients[0, degree] != 0
        assert levels[name] == degree.bit_length()


def test_a_circuit_has_the_squares_and_the_identities_after_products() -> None:
    """Of two quadratics that are added, neither has the unit of the sum."""
    degrees = dict(zip(activations(NET), (2, 2, 3, 2, 2), strict=True))
    before, after = (PassManager(circuit_pipeline(degrees)[:n]).run(NET, PassContext()) for n in (4, 5))
    squares = [node.id for node in after.nodes if isinstance(node.op, Square)]
    assert squares == [name for name, degree in degrees.items() if degree == 2]
    freed = [
        node for node in after.nodes if isinstance(node.op, Affine) and node.id not in {n.id for n in before.nodes}
    ]
    assert freed and all(node.inputs[0] in squares for node in freed)
