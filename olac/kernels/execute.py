"""From a packed graph to kernels, and from kernels to a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from olac.backends.base import Evaluator
from olac.errors import MissingKeyError, VerificationError
from olac.ir.graph import Graph, Node, last_reads
from olac.ir.lowerings import Diagonals, Lowering, Multiplexed
from olac.ir.ops import (
    Add,
    Bootstrap,
    Conv2d,
    Input,
    LinearOp,
    Multiply,
    Op,
    Polynomial,
    PolynomialProduct,
    Reshape,
    Square,
)
from olac.kernels.base import Kernel, Value
from olac.kernels.elementwise import AddKernel, BootstrapKernel, MultiplyKernel, ReshapeKernel, SquareKernel
from olac.kernels.lanes import in_lanes
from olac.kernels.multiplexed import MultiplexedKernel
from olac.kernels.patterns import diagonal_kernel, weightless_kernel
from olac.kernels.polynomial import PolynomialKernel, PolynomialProductKernel

KernelFactory = Callable[[Graph, Node], Kernel]


def _linear(graph: Graph, node: Node) -> Kernel:
    if node.lowering is None:
        raise VerificationError(f"{node.id} has no lowering: kernels are made from stage PACKED on")
    if type(node.lowering) not in LOWERED:
        raise VerificationError(f"{node.id}: no kernel for {node.op.name} by {node.lowering}")
    return LOWERED[type(node.lowering)](graph, node)


def _diagonals(graph: Graph, node: Node) -> Kernel:
    assert isinstance(node.lowering, Diagonals)
    operand = graph[node.inputs[0]]
    return diagonal_kernel(node.linear, operand.type.shape, graph.constants, operand.layout, node.layout, node.lowering)


def _weightless_diagonals(graph: Graph, node: Node) -> Kernel:
    assert isinstance(node.lowering, Diagonals)
    operand = graph[node.inputs[0]]
    return weightless_kernel(
        node.linear, operand.type.shape, graph.constants, operand.layout, node.layout, node.lowering
    )


def _multiplexed(graph: Graph, node: Node) -> Kernel:
    assert isinstance(node.op, Conv2d)
    return MultiplexedKernel(node.op, graph.constants, graph[node.inputs[0]].layout, node.layout)


def _polynomial(graph: Graph, node: Node) -> Kernel:
    assert isinstance(node.op, Polynomial | PolynomialProduct)
    if node.op.half_width != 1.0:
        raise VerificationError(f"{node.id} is a polynomial on [-{node.op.half_width}, ...], not on [-1, 1]")
    kernel = PolynomialKernel if isinstance(node.op, Polynomial) else PolynomialProductKernel
    return kernel(graph.constants[node.op.coefficients], node.layout)


def _square(graph: Graph, node: Node) -> Kernel:
    assert isinstance(node.op, Square)
    return SquareKernel(graph.constants[node.op.shift], node.layout)


KERNELS: dict[type[Op], KernelFactory] = {
    LinearOp: _linear,  # type: ignore[type-abstract]
    Polynomial: _polynomial,
    PolynomialProduct: _polynomial,
    Add: lambda graph, node: AddKernel(),
    Multiply: lambda graph, node: MultiplyKernel(),
    Square: _square,
    Bootstrap: lambda graph, node: BootstrapKernel(node.state.level),
    Reshape: lambda graph, node: ReshapeKernel(),
}
"""By class of op, which may be a base class: the function that makes a node's kernel."""

LOWERED: dict[type[Lowering], KernelFactory] = {Diagonals: _diagonals, Multiplexed: _multiplexed}
"""By class of lowering: the function that makes the kernel of an op with such a lowering."""

WEIGHTLESS: dict[type[Lowering], KernelFactory] = {Diagonals: _weightless_diagonals}
"""The same for runs on no data, if kernels are made faster without weights."""


def _factory(node: Node) -> KernelFactory:
    for base in type(node.op).__mro__:
        if base in KERNELS:
            return KERNELS[base]
    raise VerificationError(f"no kernel for {node.op.name}")


def build_kernel(graph: Graph, node: Node) -> Kernel:
    """The kernel of one node of a graph at stage PACKED or later."""
    return _factory(node)(graph, node)


def build_kernels(graph: Graph) -> dict[str, Kernel]:
    """The kernels of all nodes but the inputs. They are made once, and the graph keeps them."""
    # Lowering, estimates and runs all need them, and sorting matrices with millions of entries takes seconds.
    return _kept(graph, "kernels", build_kernel)


def build_weightless_kernels(graph: Graph) -> dict[str, Kernel]:
    """Kernels for runs on no data, without weights; linear ops with entries at the same places share one."""
    return build_kernels(graph) if "kernels" in graph.derived else _kept(graph, "weightless kernels", _build_weightless)


def _kept(graph: Graph, name: str, build: KernelFactory) -> dict[str, Kernel]:
    if name not in graph.derived:
        graph.derived[name] = {node.id: build(graph, node) for node in graph.nodes if not isinstance(node.op, Input)}
    return dict(graph.derived[name])


def _build_weightless(graph: Graph, node: Node) -> Kernel:
    factory = _factory(node)
    if factory is _linear and node.lowering is not None:
        factory = WEIGHTLESS.get(type(node.lowering), factory)
    return factory(graph, node)


def alive(graph: Graph, after: str) -> tuple[str, ...]:
    """The values that are still needed after a node, in the graph's order."""
    place = {node.id: index for index, node in enumerate(graph.nodes)}
    here = place[after]
    used = {operand for node in graph.nodes[here + 1 :] for operand in node.inputs} | set(graph.outputs)
    return tuple(node.id for node in graph.nodes[: here + 1] if node.id in used)


def execute(
    graph: Graph,
    kernels: Mapping[str, Kernel],
    evaluator: Evaluator[Any, Any],
    inputs: Mapping[str, Value],
    after: Callable[[Node, Value], None] | None = None,
    *,
    start_after: str | None = None,
    keep: Callable[[Node, Mapping[str, Value]], None] | None = None,
) -> tuple[Value, ...]:
    """Run a graph; each value is dropped after its last use.

    If the layouts have several images in a ciphertext, kernels compute in lanes (see `olac.kernels.lanes`).

    Args:
        evaluator: of ciphertexts.
        inputs: those of the graph; with `start_after`, all values that are alive after that node.
        after: called as after(node, value) after every node.
        start_after: the last node that an earlier run finished; None for a whole run.
        keep: called as keep(node, values) after every node, with all values that are held then.
    """
    done = last_reads(graph.nodes)
    evaluator = in_lanes(evaluator, graph.inputs[0].layout.batch)
    values: dict[str, Value] = {} if start_after is None else dict(inputs)
    nodes = graph.nodes
    if start_after is not None:
        nodes = nodes[[node.id for node in nodes].index(start_after) + 1 :]
    for node in nodes:
        if isinstance(node.op, Input):
            values[node.id] = inputs[node.id]
        else:
            try:
                operands = _lowered(evaluator, graph, node, [values[i] for i in node.inputs])
                values[node.id] = kernels[node.id].run(evaluator, operands)
            except (MissingKeyError, VerificationError) as error:
                raise type(error)(f"{error.args[0]}, at {node.id} from {node.origin}") from error
        if after is not None:
            after(node, values[node.id])
        for operand in done[node.id]:
            if operand not in graph.outputs:
                del values[operand]
        if keep is not None:
            keep(node, values)
    return tuple(values[output] for output in graph.outputs)


def _lowered(evaluator: Evaluator[Any, Any], graph: Graph, node: Node, operands: list[Value]) -> list[Value]:
    """The operands, reduced to the level that the node needs if all are above it: its kernel is faster there."""
    if node.type.state is None or isinstance(node.op, Bootstrap):
        return operands
    wanted = node.type.state.level + node.levels(graph.constants)
    if min(part.state.level for value in operands for part in value) <= wanted:
        return operands
    return [tuple(evaluator.level_reduce(part, wanted) for part in value) for value in operands]
