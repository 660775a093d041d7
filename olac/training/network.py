"""Approximated graphs as torch modules that can be trained."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from olac.approximation.reconstruct import BOUND
from olac.approximation.tensors import apply_op, has_form
from olac.approximation.whitened import folds
from olac.frontend.lifter import Lifter, Value, register_module
from olac.ir import head as steps
from olac.ir.functions import CLIENT_FUNCTIONS, FUNCTIONS
from olac.ir.graph import Graph, Node
from olac.ir.head import OutputHead
from olac.ir.ops import (
    Activation,
    Add,
    Affine,
    Array,
    Conv2d,
    Input,
    Linear,
    Multiply,
    Op,
    Polynomial,
    PolynomialProduct,
    Reshape,
    Slice,
)
from olac.training.activation import PolynomialActivation

Tensor = torch.Tensor
Chebyshev: TypeAlias = Polynomial | PolynomialProduct


class GraphOp(nn.Module):
    """An op of olac's graphs with one operand, such as a pooling or a padding; its constants are buffers."""

    def __init__(self, op: Op, constants: Mapping[str, Array]) -> None:
        super().__init__()
        if op.arity != 1:
            raise ValueError(f"{op.name} takes {op.arity} operands")
        fields = {f: getattr(op, f) for f in op.constant_fields if getattr(op, f) is not None}
        self.op = replace(op, **{field: field for field in fields})
        for field, name in fields.items():
            self.register_buffer(field, torch.from_numpy(np.array(constants[name], dtype=np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """(n, *shape of the operand) to (n, *shape of the result)."""
        weights = dict(self.named_buffers())
        arrays = {} if has_form(self.op) else {name: t.detach().cpu().double().numpy() for name, t in weights.items()}
        return apply_op(self.op, [x], weights, arrays)

    def extra_repr(self) -> str:
        """The op and its attributes, for print(model)."""
        return ", ".join([self.op.name, *(f"{k}={v}" for k, v in self.op.attributes().items() if k != v)])


@register_module(GraphOp)
def _lifted(lifter: Lifter, module: GraphOp, x: Value) -> Value:
    named = {name: lifter.constant(name, value) for name, value in module.named_buffers()}
    return lifter.add(replace(module.op, **named), x)


@dataclass(frozen=True)
class Range:
    """The range that each channel of a polynomial's input should stay in.

    Attributes:
        low, high: (channels,).
        bound: results beyond it are compressed in training.
        largest: magnitude of the results.
    """

    low: Array
    high: Array
    bound: float
    largest: float


class Network:
    """A graph of polynomials as a torch module: convolutions, linear layers and `PolynomialActivation`s are trained.

    Attributes:
        module: gives the graph's outputs.
        places: for each constant of the graph that is a parameter of the module, the parameter's names.
        activations: by node id, in order; those that replace no activation are not trained.
    """

    def __init__(self, graph: Graph, ranges: Mapping[str, Range | float]) -> None:
        """
        Args:
            graph: at stage POLYNOMIAL, before squares are folded.
            ranges: by node id. A polynomial that has only a bound of its results in training, or none, stays as it is.
        """
        self.places: dict[str, list[str]] = {}
        self.activations: dict[str, PolynomialActivation] = {}
        root, made = nn.Module(), fx.Graph()
        values: dict[str, fx.Node] = {}
        for node in graph.nodes:
            op = node.op
            if isinstance(op, Input):
                values[node.id] = made.placeholder("x")
                continue
            operands = [values[i] for i in node.inputs]
            if isinstance(op, Add | Multiply):
                function = operator.add if isinstance(op, Add) else operator.mul
                values[node.id] = made.call_function(function, tuple(operands))
                continue
            name = _identifier(node.id, root)
            module = self._module(node, graph.constants, ranges.get(node.id))
            root.add_module(name, module)
            for field in op.constant_fields if not isinstance(module, GraphOp) else ():
                if (constant := getattr(op, field)) is not None:
                    self.places.setdefault(constant, []).append(f"{name}.{field}")
            operand = operands[-1]
            if isinstance(op, Conv2d) and not _even(op):
                top, bottom, left, right = op.padding
                operand = made.call_function(functional.pad, (operand, (left, right, top, bottom)))
            value = made.call_module(name, (operand,))
            if isinstance(op, PolynomialProduct):
                value = made.call_function(operator.mul, (operands[0], value))
            values[node.id] = value
        made.output(values[graph.outputs[0]])
        self.module = fx.GraphModule(root, made, "PolynomialNetwork")

    def _module(self, node: Node, constants: Mapping[str, Array], within: Range | float | None) -> nn.Module:
        op = node.op
        if isinstance(op, Polynomial | PolynomialProduct):
            made = _polynomial(op, within, constants[op.coefficients])
            self.activations[node.id] = made
            return made
        if isinstance(op, Conv2d):
            return _conv2d(op, constants)
        if isinstance(op, Linear):
            return _linear(op, constants)
        return GraphOp(op, constants)


def _polynomial(op: Chebyshev, within: Range | float | None, coefficients: Array) -> PolynomialActivation:
    if not isinstance(within, Range):
        fixed = PolynomialActivation(coefficients, op.half_width, bound=within or BOUND)
        fixed.requires_grad_(False)
        return fixed
    square = coefficients.shape[1] == 3 and bool(folds(torch.tensor(coefficients), within.largest).all())
    return PolynomialActivation(
        coefficients,
        op.half_width,
        within.low,
        within.high,
        bound=within.bound,
        largest=within.largest if square else 0.0,
    )


def plain_module(graph: Graph, head: OutputHead, ranges: Mapping[str, Range | float]) -> fx.GraphModule:
    """A graph and the client's steps after it as a torch module in evaluation mode.

    `olac.compile` takes it.
    """
    module = Network(graph, ranges).module
    made = module.graph
    (output,) = (node for node in made.nodes if node.op == "output")
    value = output.args[0]
    with made.inserting_before(output):
        for number, step in enumerate(head.steps):
            name = _identifier(f"head_{number}_{step.kind}", module)
            module.add_module(name, _client_step(step))
            value = made.call_module(name, (value,))
        output.args = (value,)
    module.recompile()
    return module.eval()


def _client_step(step: steps.Step) -> nn.Module:
    match step:
        case steps.Elementwise() if step.function in FUNCTIONS.keys() - CLIENT_FUNCTIONS:
            return GraphOp(Activation(step.function, step.parameters), {})
        case steps.Affine():
            constants = {n: np.reshape(getattr(step, n), step.shape) for n in ("scale", "shift")}
            return GraphOp(Affine("scale", "shift"), constants)
        case steps.Softmax():
            return nn.Softmax(step.axis + 1)
        case steps.LogSoftmax():
            return nn.LogSoftmax(step.axis + 1)
        case steps.Slice():
            return GraphOp(Slice(step.slices), {})
        case steps.Reshape():
            return GraphOp(Reshape(step.shape), {})
        case _:
            return ClientStep(step)


class ClientStep(nn.Module):
    """A step that only a client takes, computed by its definition in numpy, without gradients."""

    def __init__(self, step: steps.Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        """(n, *shape before the step) to (n, *shape after it)."""
        return torch.from_numpy(np.asarray(self.step.apply(x.detach().cpu().double().numpy()))).to(x.device)


@register_module(ClientStep)
def _lifted_last(lifter: Lifter, module: ClientStep, x: Value) -> Value:
    return lifter.at_client(x, module.step)


def _identifier(name: str, root: nn.Module) -> str:
    plain = re.sub(r"\W", "_", name)
    plain = plain if plain.isidentifier() else f"n_{plain}"
    unique, count = plain, 1
    while hasattr(root, unique):
        count += 1
        unique = f"{plain}_{count}"
    return unique


def _even(op: Conv2d) -> bool:
    """Whether the padding is the same on opposite sides, as torch's modules have it."""
    top, bottom, left, right = op.padding
    return (top, left) == (bottom, right)


def _conv2d(op: Conv2d, constants: Mapping[str, Array]) -> nn.Module:
    weight = constants[op.weight]
    out, inside, *kernel = weight.shape
    bias = None if op.bias is None else constants[op.bias]
    made: nn.Conv2d = skip_init(
        nn.Conv2d,
        inside * op.groups,
        out,
        (kernel[0], kernel[1]),
        op.stride,
        (op.padding[0], op.padding[2]) if _even(op) else 0,
        op.dilation,
        op.groups,
        bias=bias is not None,
    )
    _set(made, weight, bias)
    return made


def _linear(op: Linear, constants: Mapping[str, Array]) -> nn.Module:
    weight = constants[op.weight]
    bias = None if op.bias is None else constants[op.bias]
    made: nn.Linear = skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    _set(made, weight, bias)
    return made


def _set(module: nn.Conv2d | nn.Linear, weight: Array, bias: Array | None) -> None:
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(weight.copy()))
        if bias is not None and module.bias is not None:
            module.bias.copy_(torch.from_numpy(bias.copy()))
