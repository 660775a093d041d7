"""Invariants of graphs, by stage. Every one has a failing graph in tests/ir/test_verify.py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from olac.ckks.parameters import Parameters
from olac.errors import VerificationError
from olac.ir.graph import Graph, Node, describe
from olac.ir.layout import TensorLayout
from olac.ir.ops import LinearOp, ShapeError, Units
from olac.ir.states import state_problems
from olac.ir.types import Stage


def verify(graph: Graph, parameters: Parameters | None = None) -> None:
    """Raise `VerificationError` with every broken invariant, its node and its origin.

    Args:
        graph: at any stage.
        parameters: those of the program; without them depth, scales and bootstraps are not checked.
    """
    problems = [*_structure(graph)]
    if not problems:
        problems += _packed(graph, parameters) if graph.stage >= Stage.PACKED else ()
        problems += state_problems(graph, parameters) if graph.stage >= Stage.LEVELLED else ()
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
            shapes = [seen[i].type.shape for i in node.inputs]
            try:
                node.op.check(shapes, graph.constants, graph.stage)
                shape = node.op.infer(shapes, graph.constants)
                if shape != node.type.shape:
                    yield node, f"the type says {node.type.shape}, the op gives {shape}"
            except ShapeError as error:
                yield node, str(error)
        if not (np.isfinite(node.type.unit) and node.type.unit > 0):
            yield node, f"unit {node.type.unit} is not a positive number"
        count = node.type.shape[0] if node.type.shape else 0
        if len(node.type.channels) not in (0, count):
            yield node, f"ranges of {len(node.type.channels)} channels, expected {count}"
        if graph.stage > node.op.last_stage:
            yield node, f"{node.op.name} at stage {graph.stage.name}: its last stage is {node.op.last_stage.name}"
        seen[node.id] = node
    for output in graph.outputs:
        if output not in seen:
            yield None, f"the output {output} does not exist"
    if not graph.outputs:
        yield None, "the graph has no output"
    for name, array in graph.constants.items():
        if not np.all(np.isfinite(array)):
            yield None, f"the constant {name} holds values that are not finite"


def _packed(graph: Graph, parameters: Parameters | None) -> Iterator[Problem]:
    layouts = [node.type.layout for node in graph.nodes if node.type.layout is not None]
    slots, batches = {layout.ciphertext_slots for layout in layouts}, {layout.batch for layout in layouts}
    if len(slots) > 1:
        yield None, f"ciphertexts of different slot counts {sorted(slots)}"
    elif parameters is not None and slots - {parameters.slots}:
        yield None, f"ciphertexts of {slots.pop()} slots, the parameters have {parameters.slots}"
    if len(batches) > 1:
        yield None, f"ciphertexts of different numbers of images {sorted(batches)}"
    for node in graph.nodes:
        layout = node.type.layout
        if layout is None:
            yield node, "the value has no layout"
            continue
        if layout.shape != node.type.shape or layout.batch != node.type.batch:
            yield node, f"layout of {layout.shape} x {layout.batch} on {node.type.shape} x {node.type.batch}"
        operands = [found for name in node.inputs if (found := graph[name].type.layout) is not None]
        if len(operands) == len(node.inputs):
            yield from ((node, problem) for problem in _places(node, operands, layout))
        yield from ((node, problem) for problem in _units(node, [graph[name].type.unit for name in node.inputs]))


def _places(node: Node, operands: Sequence[TensorLayout], layout: TensorLayout) -> Iterator[str]:
    """What is wrong with the layouts of operands and result and the lowering between them."""
    op = node.op
    if node.lowering is None:
        if isinstance(op, LinearOp):
            yield "the linear op has no lowering"
    elif len(operands) != 1 or not node.lowering.can_lower(op, operands[0], layout):
        yield f"{op.name} can't be lowered by {node.lowering} from {', '.join(map(str, operands))} to {layout}"
    if not op.reads_shifted and any(operand.step for operand in operands):
        yield f"{op.name} reads shifted copies"
    elif not op.chooses_layout:
        expected = layout.with_step(0) if op.shifts_copies else layout
        shape, size = layout.shape, math.prod(layout.shape)
        if any(math.prod(o.shape) != size or o.reshaped(shape) != expected for o in operands):
            yield f"{op.name} moves elements: operands and result have different layouts"


def _units(node: Node, units: Sequence[float]) -> Iterator[str]:
    unit, rule = node.type.unit, node.op.units
    if rule is Units.SHARED and any(not np.isclose(u, unit, rtol=1e-12) for u in units):
        yield f"units {units} and {unit} differ"
    if rule is Units.PRODUCT and not np.isclose(units[0] * units[-1], unit, rtol=1e-12):
        yield f"the product of the units {[*units, *units][:2]} is not {unit}"
