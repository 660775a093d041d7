"""Graphs: an immutable topological tuple of nodes and the constants that their ops name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeVar

import networkx as nx
import numpy as np

from olac.errors import VerificationError
from olac.ir.layout import TensorLayout
from olac.ir.lowerings import Lowering
from olac.ir.ops import Array, Input, LinearOp, Op, ShapeError
from olac.ir.types import CipherState, Stage, ValueType

T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """Where a node comes from: module path, source line, and the passes that made it."""

    path: str = ""
    source: str = ""
    passes: tuple[str, ...] = ()

    def by(self, pass_name: str) -> Origin:
        """The same origin, with one more pass."""
        return self if self.passes[-1:] == (pass_name,) else replace(self, passes=(*self.passes, pass_name))

    def __str__(self) -> str:
        return f"{self.path or '(model)'} [{', '.join(self.passes)}]"


@dataclass(frozen=True)
class Node:
    """One value of a graph and the op that gives it."""

    id: str
    op: Op
    inputs: tuple[str, ...]
    type: ValueType
    origin: Origin = field(default=Origin(), compare=False)
    lowering: Lowering | None = None

    @property
    def place(self) -> str:
        """The id, the op, and the module path, source line and passes that the node comes from, for errors."""
        source = f", {self.origin.source}" if self.origin.source else ""
        made = f", made by {', '.join(self.origin.passes)}" if self.origin.passes else ""
        return f"node {self.id} ({self.op.name}, from {self.origin.path or 'the model itself'}{source}{made})"

    @property
    def layout(self) -> TensorLayout:
        """The layout in its type; VerificationError before stage PACKED."""
        return self._assigned("layout", self.type.layout, Stage.PACKED)

    @property
    def state(self) -> CipherState:
        """The state in its type; VerificationError before stage LEVELLED."""
        return self._assigned("state", self.type.state, Stage.LEVELLED)

    def _assigned(self, what: str, value: T | None, stage: Stage) -> T:
        if value is None:
            raise VerificationError(f"{self.place} has no {what}: nodes get one by stage {stage.name}")
        return value

    @property
    def linear(self) -> LinearOp:
        """The op, which must be linear; VerificationError for other ops."""
        if not isinstance(self.op, LinearOp):
            raise VerificationError(f"{self.place} is not linear")
        return self.op

    def levels(self, constants: Mapping[str, Array]) -> int:
        """Levels from the lowest operand to the result: the op's, and the extra ones of its lowering."""
        return self.op.levels(constants) + (0 if self.lowering is None else self.lowering.extra_levels)


def last_reads(nodes: Iterable[Node]) -> dict[str, list[str]]:
    """For each node the operands that no node after it reads."""
    last = {operand: node.id for node in nodes for operand in node.inputs}
    return {node.id: [i for i in dict.fromkeys(node.inputs) if last[i] == node.id] for node in nodes}


@dataclass(frozen=True)
class Graph:
    """A program: nodes in topological order, the ids of the outputs, named arrays, and the stage reached.

    Attributes:
        derived: what others made of the graph, such as its kernels, by name. The graph never changes, so it keeps them.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Array]
    stage: Stage = Stage.TRACED
    derived: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _by_id: dict[str, Node] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for array in self.constants.values():
            array.setflags(write=False)
        object.__setattr__(self, "constants", MappingProxyType(dict(self.constants)))
        self._by_id.update((node.id, node) for node in self.nodes)

    def __getitem__(self, node_id: str) -> Node:
        return self._by_id[node_id]

    def __eq__(self, other: object) -> bool:
        """Structural equality: nodes, outputs, stage and constants bit for bit; origins don't count."""
        if not isinstance(other, Graph):
            return NotImplemented
        return (
            self.nodes == other.nodes
            and self.outputs == other.outputs
            and self.stage == other.stage
            and self.constants.keys() == other.constants.keys()
            and all(np.array_equal(a, other.constants[k]) for k, a in self.constants.items())
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The input nodes, in order."""
        return tuple(node for node in self.nodes if isinstance(node.op, Input))

    def users(self) -> dict[str, list[Node]]:
        """For each node the nodes that read it, once for each time that they do."""
        users: dict[str, list[Node]] = {node.id: [] for node in self.nodes}
        for node in self.nodes:
            for operand in node.inputs:
                users[operand].append(node)
        return users

    def read_once(self) -> frozenset[str]:
        """The values that one node reads, once, and that are no outputs."""
        return frozenset(i for i, users in self.users().items() if len(users) == 1 and i not in self.outputs)

    def groups(self, joins: Callable[[Op], bool]) -> dict[str, frozenset[str]]:
        """For each value its group: values are in one group if ops for which `joins` holds link them to operands."""
        linked: nx.Graph[str] = nx.Graph()
        for node in self.nodes:
            linked.add_node(node.id)
            if joins(node.op):
                linked.add_edges_from((node.id, operand) for operand in node.inputs)
        return {i: group for group in map(frozenset, nx.connected_components(linked)) for i in group}

    def free_name(self, name: str) -> str:
        """The name, followed by underscores until no node has it."""
        while name in self._by_id:
            name += "_"
        return name

    def rewrite(
        self,
        step: Callable[[Node, GraphBuilder, tuple[str, ...]], str | None],
        *,
        by: str,
        stage: Stage | None = None,
    ) -> Graph:
        """A new graph, made by asking `step` for each node in order; nodes that nothing reads any more are dropped.

        `step(node, builder, inputs)` gets the new ids of the operands. It adds what replaces the node to the builder
        and returns the id of the new value; None keeps the node as it is.
        """
        builder = GraphBuilder(self.constants, by=by)
        new: dict[str, str] = {}
        for node in self.nodes:
            inputs = tuple(new[i] for i in node.inputs)
            made = step(node, builder, inputs)
            new[node.id] = builder.keep(node, inputs) if made is None else made
        return builder.build(
            [new[o] for o in self.outputs],
            stage=self.stage if stage is None else stage,
            inputs=[new[i.id] for i in self.inputs],
        )

    def evaluate(
        self,
        images: Array,
        observe: Callable[[Node, Array], Array | None] | None = None,
    ) -> Array:
        """Reference semantics in numpy over true polynomials; shape (images, *input shape) to (images, *output shape).

        `observe(node, value)` sees every value, as slot values if units differ from 1, and may return another in its
        place. Values are dropped after their last use.
        """
        done = last_reads(self.nodes)
        values: dict[str, Array] = {}
        for node in self.nodes:
            if isinstance(node.op, Input):
                value = node.op.encode(np.asarray(images, dtype=np.float64)) / node.type.unit
            else:
                value = node.op.evaluate([values[i] for i in node.inputs], self.constants)
            seen = observe(node, value) if observe is not None else None
            values[node.id] = value if seen is None else seen
            for operand in done[node.id]:
                if operand not in self.outputs:
                    del values[operand]
        output = self[self.outputs[0]]
        return values[output.id] * output.type.unit

    def to_networkx(self) -> nx.DiGraph[str]:
        """The data flow as a directed graph of node ids, with the `Node` as attribute `node`."""
        graph: nx.DiGraph[str] = nx.DiGraph()
        for node in self.nodes:
            graph.add_node(node.id, node=node)
            graph.add_edges_from((operand, node.id) for operand in node.inputs)
        return graph

    def text(self) -> str:
        """A stable text form, one node a line."""
        lines = [f"graph at stage {self.stage.name}"]
        lines += [f"  {describe(node, self.constants)}" for node in self.nodes]
        lines.append(f"  return {', '.join('%' + o for o in self.outputs)}")
        return "\n".join(lines) + "\n"


def describe(node: Node, constants: Mapping[str, Array]) -> str:
    """One line for a node: id, shape, op with its attributes, operands and type."""
    parts = []
    for name, value in node.op.attributes().items():
        if isinstance(node.op, Input) and name != "shape":
            if value == ():
                continue  # all channels have one unit
            value = f"<{len(value)}>"
        elif name in node.op.constant_fields and value is not None and value in constants:
            value = f"<{'x'.join(map(str, constants[value].shape)) or 'scalar'}>"
        elif isinstance(value, float):
            value = f"{value:.6g}"
        parts.append(f"{name}={value}")
    operands = ", ".join("%" + i for i in node.inputs)
    line = f"%{node.id}: {'x'.join(map(str, node.type.shape))} = {node.op.name}({operands}) {' '.join(parts)}".rstrip()
    if node.type.unit != 1.0:
        line += f" unit {node.type.unit:.6g}"
    if node.type.layout is not None:
        line += f" | {node.type.layout}"
    if node.lowering is not None:
        line += f" | {node.lowering}"
    if node.type.state is not None:
        line += f" | {node.type.state}"
    return line


class GraphBuilder:
    """Collects nodes and constants into a graph; ids stay unique and types are inferred."""

    def __init__(self, constants: Mapping[str, Array] | None = None, by: str = "") -> None:
        self._nodes: list[Node] = []
        self._by_id: dict[str, Node] = {}
        self._constants: dict[str, Array] = dict(constants or {})
        self._by = by

    @property
    def constants(self) -> Mapping[str, Array]:
        """All constants so far."""
        return self._constants

    def __getitem__(self, node_id: str) -> Node:
        return self._by_id[node_id]

    def constant(self, name: str, value: Any) -> str:
        """Add an array as float64 and return the name that it got: `name`, or `name.2`, ... if that is taken."""
        array = np.array(value, dtype=np.float64)
        unique, count = name, 1
        while unique in self._constants:
            if np.array_equal(self._constants[unique], array):
                return unique
            count += 1
            unique = f"{name}.{count}"
        self._constants[unique] = array
        return unique

    def add(
        self,
        op: Op,
        inputs: Iterable[str] = (),
        *,
        name: str,
        origin: Origin | None = None,
        type: ValueType | None = None,
        lowering: Lowering | None = None,
    ) -> str:
        """Append a node and return its id: `name`, or `name_2`, ... if that is taken.

        The shape is inferred, and the rest of its type is that of `type`. `ShapeError` for operands that don't fit.
        """
        operands = tuple(inputs)
        shapes = [self._by_id[i].type.shape for i in operands]
        if len(operands) != op.arity:
            raise ShapeError(f"{op.name} takes {op.arity} operands, not {len(operands)}")
        shape = op.infer(shapes, self._constants)
        unique, count = name, 1
        while unique in self._by_id:
            count += 1
            unique = f"{name}_{count}"
        given = type or ValueType(shape)
        made = (origin or Origin()).by(self._by) if self._by else (origin or Origin())
        node = Node(unique, op, operands, replace(given, shape=shape), made, lowering)
        self._nodes.append(node)
        self._by_id[unique] = node
        return unique

    def keep(self, node: Node, inputs: tuple[str, ...], **changes: Any) -> str:
        """Append a node as it is, on other operands, with the given fields changed."""
        if node.id in self._by_id:
            raise VerificationError(f"two nodes have the id {node.id}")
        kept = replace(node, inputs=inputs, **changes)
        if changes and self._by:
            kept = replace(kept, origin=kept.origin.by(self._by))
        self._nodes.append(kept)
        self._by_id[kept.id] = kept
        return kept.id

    def build(self, outputs: Iterable[str], stage: Stage = Stage.TRACED, inputs: Iterable[str] = ()) -> Graph:
        """The graph of what the outputs need; inputs stay even if nothing reads them."""
        ends = tuple(outputs)
        needed = {*ends, *inputs}
        for node in reversed(self._nodes):
            if node.id in needed:
                needed.update(node.inputs)
        nodes = tuple(node for node in self._nodes if node.id in needed)
        names = {name for node in nodes for name in node.op.constant_names()}
        return Graph(nodes, ends, {k: v for k, v in self._constants.items() if k in names}, stage)
