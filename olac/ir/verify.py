"""Invariants of graphs, by stage. Every one has a failing graph in tests/ir/test_verify.py."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from olac.errors import VerificationError
from olac.ir.graph import Graph, Node, describe
from olac.ir.lowerings import Diagonals, Multiplexed, can_multiplex
from olac.ir.ops import (
    Activation,
    AtClient,
    Bootstrap,
    Input,
    LinearOp,
    MaxPool2d,
    Multiply,
    Polynomial,
    PolynomialProduct,
    Reshape,
    ShapeError,
    Square,
)
from olac.ir.types import Stage


def verify(graph: Graph) -> None:
    """Raise `VerificationError` with every broken invariant, its node and its origin."""
    problems = [*_structure(graph)]
    if not problems:
        for stage, check in (
            (Stage.POLYNOMIAL, _polynomial),
            (Stage.PACKED, _packed),
            (Stage.LEVELLED, _levelled),
        ):
            if graph.stage >= stage:
                problems += check(graph)
    if problems:
        text = "\n".join(
            f"  {problem}" + (f"\n    {describe(node, graph.constants)}\n    from {node.origin}" if node else "")
            for node, problem in problems
        )
        raise VerificationError(f"the graph at stage {graph.stage.name} is not valid:\n{text}")


Problem = tuple[Node | None, str]


def _structure(graph: Graph) -> Iterator[Problem]:
    seen: dict[str, Node] = {}
    for node in graph.nodes:
        if node.id in seen:
            yield node, f"the id {node.id} is given twice"
        missing = [i for i in node.inputs if i not in seen]
        if missing:
            yield node, f"operands {missing} are not defined before their use"
        unnamed = [name for name in node.op.constant_names() if name not in graph.constants]
        if unnamed:
            yield node, f"constants {unnamed} do not exist"
        if len(node.inputs) != node.op.arity:
            yield node, f"{node.op.name} takes {node.op.arity} operands, not {len(node.inputs)}"
        elif not missing and not unnamed:
            try:
                shape = node.op.infer([seen[i].type.shape for i in node.inputs], graph.constants)
                if shape != node.type.shape:
                    yield node, f"the type says {node.type.shape}, the op gives {shape}"
            except ShapeError as error:
                yield node, str(error)
        if not (np.isfinite(node.type.unit) and node.type.unit > 0):
            yield node, f"unit {node.type.unit} is not a positive number"
        yield from _channels(node)
        seen[node.id] = node
    for output in graph.outputs:
        if output not in seen:
            yield None, f"the output {output} does not exist"
    if not graph.outputs:
        yield None, "the graph has no output"
    for name, array in graph.constants.items():
        if not np.all(np.isfinite(array)):
            yield None, f"the constant {name} holds values that are not finite"


def _channels(node: Node) -> Iterator[Problem]:
    """What is said of each channel is said of all."""
    count = node.type.shape[0] if node.type.shape else 0
    if len(node.type.channels) not in (0, count):
        yield node, f"ranges of {len(node.type.channels)} channels, of {count}"
    if isinstance(node.op, Input):
        offsets, factors = node.op.offsets, node.op.factors
        if len(offsets) != len(factors) or len(factors) not in (0, count):
            yield node, f"{len(offsets)} offsets and {len(factors)} factors for {count} channels"
        if not np.all(np.isfinite(offsets)) or not all(np.isfinite(factor) and factor > 0 for factor in factors):
            yield node, "offsets or factors are not finite, or factors not positive"


def _polynomial(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        if isinstance(node.op, Activation):
            yield node, f"the activation {node.op.function} is left at stage {graph.stage.name}"
        if isinstance(node.op, MaxPool2d):
            yield node, f"max-pooling is left at stage {graph.stage.name}"
        if isinstance(node.op, AtClient):
            yield node, f"{node.op.step.name}, which only clients compute, is left at stage {graph.stage.name}"


def _packed(graph: Graph) -> Iterator[Problem]:
    slots = {node.type.layout.slots for node in graph.nodes if node.type.layout is not None}
    if len(slots) > 1:
        yield None, f"ciphertexts of different slot counts {sorted(slots)}"
    for node in graph.nodes:
        layout = node.type.layout
        if layout is None:
            yield node, "the value has no layout"
            continue
        if layout.shape != node.type.shape or layout.batch != node.type.batch:
            yield node, f"layout of {layout.shape} x {layout.batch} on {node.type.shape} x {node.type.batch}"
        operands = [graph[i].type.layout for i in node.inputs]
        shifted = next((operand for operand in operands if operand is not None and operand.step), None)
        if isinstance(node.lowering, Multiplexed):
            fits = len(operands) == 1 and operands[0] is not None and can_multiplex(node.op, operands[0], layout)
            if not fits:
                yield node, f"{node.op.name} can't be multiplexed from {operands} to {layout}"
        if isinstance(node.op, LinearOp):
            if node.lowering is None:
                yield node, "the linear op has no lowering"
            elif (
                shifted
                and isinstance(node.lowering, Diagonals)
                and not layout.period <= node.lowering.modulus <= shifted.period
            ):
                yield node, f"shifted copies of {shifted} can't be read with {node.lowering}"
            if layout.step or (shifted and layout.ciphertexts > 1):
                yield node, "the result of a linear op has shifted copies, or several ciphertexts from shifted copies"
        elif isinstance(node.op, Reshape):
            if operands[0] is not None and operands[0].reshaped(node.type.shape) != layout:
                yield node, "a reshape moves elements"
        elif shifted and not isinstance(node.op, Bootstrap):
            yield node, f"{node.op.name} reads shifted copies"
        elif isinstance(node.op, Polynomial):
            if any(operand is not None and operand != layout.with_step(0) for operand in operands):
                yield node, "operands and result have different layouts"
        elif not isinstance(node.op, Input) and any(operand != layout for operand in operands):
            yield node, "operands and result have different layouts"
    for node in graph.nodes:
        units = [graph[i].type.unit for i in node.inputs]
        free = isinstance(node.op, LinearOp | Polynomial | PolynomialProduct | Multiply | Square)
        if not free and any(not np.isclose(u, node.type.unit, rtol=1e-12) for u in units):
            yield node, f"units {units} and {node.type.unit} differ"
        product = isinstance(node.op, Multiply | Square)
        if product and not np.isclose(units[0] * units[-1], node.type.unit, rtol=1e-12):
            yield node, f"units {[*units, *units][:2]} do not multiply to {node.type.unit}"


def _levelled(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        state = node.type.state
        if state is None:
            yield node, "the value has no level"
            continue
        operands = [graph[i].type.state for i in node.inputs]
        if state.level < 0:
            yield node, f"level {state.level} is below zero"
        rises = any(o is not None and o.level < state.level for o in operands)
        if rises and not isinstance(node.op, Bootstrap):
            yield node, "the level rises without a bootstrap"
        if state.noise_degree != 1:
            yield node, f"a value of noise degree {state.noise_degree} crosses nodes"
        taken = node.levels(graph.constants)
        if taken and any(o is not None and o.level - taken < state.level for o in operands):
            yield node, f"{node.op.name} takes {'a level' if taken == 1 else f'{taken} levels'}"
