"""Lifting: a traced torch.fx graph becomes a graph of the IR at stage TRACED.

Each torch operation has a small handler, found by module class, function or method name. `register_module` and
`register_function` add handlers from outside.
"""

from __future__ import annotations

import inspect
import keyword
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from olac.errors import UnsupportedModelError, UnsupportedNode, VerificationError, plain
from olac.frontend.advice import GENERIC_ADVICE, advice_for
from olac.frontend.custom import NotElementwiseError, plain_name
from olac.frontend.frames import FIRST, Frame
from olac.frontend.handlers.comparisons import COMPARISONS
from olac.frontend.lifter import FUNCTIONS, MODULES, UNKNOWN, Absent, Lifter, ModuleHandler, Unknown, Unsupported, Value
from olac.frontend.trace import Traced
from olac.ir.functions import Definition
from olac.ir.graph import Graph
from olac.ir.head import Reshape as LastReshape
from olac.ir.ops import (
    Activation,
    AtClient,
    Input,
    ShapeError,
)
from olac.ir.split import step_of
from olac.ir.types import Stage
from olac.system.internal import guard


def _identifier(path: str, operation: str) -> str:
    name = re.sub(r"\W", "_", f"{path}_{operation}".strip("_") if operation else path, flags=re.ASCII)
    if not name or not (name[0].isalpha() or name[0] == "_"):
        name = f"m{name}"
    return f"{name}_" if keyword.iskeyword(name) else name


def _operation(node: fx.Node) -> str:
    """The operation's plain name: "add", "relu", "getitem"."""
    target = node.meta.get("called") or node.target
    if target is getattr:
        target = node.args[1]
    name = target if isinstance(target, str) else getattr(target, "__name__", "function")
    return name.strip("_") or name


def _handler_of(module: nn.Module) -> ModuleHandler | None:
    for base in type(module).__mro__:
        if base in MODULES:
            return MODULES[base]
        if "forward" in vars(base):
            return None
    return None


def _placeholder(lifter: Lifter, node: fx.Node) -> Any:
    """A stand-in for the value of what can't be compiled, so that the rest of the model is checked, too."""
    shape = lifter.shape
    if shape is None or math.prod(shape) == 0:
        return UNKNOWN
    return Value(lifter.add(Input(shape or (1,)), suffix="unsupported").id, shape, frame=lifter.frame)


def _find(value: Any, kind: type) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_find(v, kind) for v in value)
    if isinstance(value, dict):
        return any(_find(v, kind) for v in value.values())
    return isinstance(value, kind)


NAMED_OUTPUTS = 6
REFUSING = (TypeError, ValueError, IndexError, KeyError, AttributeError, RuntimeError, NotImplementedError)
"""What olac's handlers raise for arguments that they do not know; `check` lists them with everything else."""
_ELEMENTWISE = "The result for an element may depend on this element and its channel only; see activations="


def _lift_custom(lifter: Lifter, traced: Traced, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """The value of a module or function that the caller named as an activation; None for other nodes."""
    custom = traced.custom
    if custom is None:
        return None
    path = str(node.target)
    module = traced.module.get_submodule(path) if node.op == "call_module" else None
    key = custom.key_of(node.target) if module is None else None
    if (module is None and key is None) or (module is not None and not custom.holds(module, path)):
        return None
    operands = [*args, *kwargs.values()]
    values = [v for v in operands if isinstance(v, (Value, Unknown))]
    if len(values) != 1 or _find([v for v in operands if v is not values[0]], Value):
        raise Unsupported(f"{_operation(node)} is called with {len(values)} values", _ELEMENTWISE)
    x = values[0]
    if isinstance(x, Unknown):
        return UNKNOWN

    def call(function: Any, given: Any) -> Any:
        return function(
            *(given if a is x else a for a in args), **{k: given if a is x else a for k, a in kwargs.items()}
        )

    try:
        if module is None:
            made: Definition = custom.of_function(key, call, len(operands) == 1, x.shape)
        elif len(operands) != 1:
            raise Unsupported(
                f"{type(module).__name__} with more than its input", "Call the module with one tensor only"
            )
        else:
            made = custom.of_module(module, path, x.shape)
    except NotElementwiseError as error:
        what = plain_name(key) if module is None else type(module).__name__
        raise Unsupported(f"{what} can't be an activation: {error}", _ELEMENTWISE) from error
    return lifter.add(Activation(made.name, (), made), x)


def _lift_node(lifter: Lifter, traced: Traced, node: fx.Node, args: Any, kwargs: Any) -> Any:
    operation = lifter.called = _operation(node)
    own = _lift_custom(lifter, traced, node, args, kwargs)
    if own is not None:
        return own
    if node.op == "call_module":
        module = traced.module.get_submodule(str(node.target))
        lifter.called = type(module).__name__
        handler = _handler_of(module)
        if handler is None:
            name = type(module).__name__
            if type(module).__module__.startswith("torch.ao."):
                raise Unsupported(f"{name} is quantised", "Compile the model as it was before quantisation")
            raise Unsupported(f"{name} is not supported", advice_for(name))
        if _find((args, kwargs), Unknown):
            return UNKNOWN
        if not args and len(kwargs) == 1:
            args, kwargs = tuple(kwargs.values()), {}
        if not _takes_more(handler) and (len(args) != 1 or kwargs or not isinstance(args[0], Value)):
            raise Unsupported(
                f"{type(module).__name__} with more than its input", "Call the module with one tensor only"
            )
        try:
            return handler(lifter, module, *_settled(lifter, handler, args), **_settled(lifter, handler, kwargs))
        except _refusing(handler) as error:
            name = type(module).__name__
            raise Unsupported(f"{name} in a form that isn't supported ({error})", advice_for(name)) from error
    function = FUNCTIONS.get(node.target)
    if function is None and node.op == "call_method" and str(node.target).startswith("__"):
        function = FUNCTIONS.get(operation)
    if function is None:
        raise Unsupported(f"{operation} is not supported", advice_for(operation))
    if _find((args, kwargs), Unknown):
        return UNKNOWN
    if operation != "getitem" and _find((args, kwargs), Absent):
        raise Unsupported("uses where the largest elements are", "Use their values, or take argmax as the last step")
    if not _find((args, kwargs), Value):
        raise VerificationError(f"{node.format_node()} works on constants only")
    try:
        return function(lifter, *_settled(lifter, function, args), **_settled(lifter, function, kwargs))
    except _refusing(function) as error:
        raise Unsupported(
            f"{operation} with arguments that aren't supported ({error})", advice_for(operation)
        ) from error


def _refusing(handler: Any) -> tuple[type[Exception], ...]:
    """The errors by which a handler refuses arguments. Other errors of a handler from outside are faults of it."""
    return REFUSING if handler.__module__.startswith("olac.frontend.") else (TypeError,)


def _takes_more(handler: ModuleHandler) -> bool:
    """Whether a module's handler takes more operands than one."""
    return len(inspect.signature(handler).parameters) > 3


def _settled(lifter: Lifter, handler: Any, given: Any) -> Any:
    """Arguments whose values have their axes in torch's order, unless the handler takes any order."""
    if getattr(handler, "any_order", False):
        return given
    return _each(given, lifter.settle)


def _each(value: Any, change: Callable[[Value], Value]) -> Any:
    """Values in tuples, lists and dicts, each changed."""
    if isinstance(value, (tuple, list)):
        return type(value)(_each(v, change) for v in value)
    if isinstance(value, dict):
        return {k: _each(v, change) for k, v in value.items()}
    return change(value) if isinstance(value, Value) else value


def _framed(result: Any, frame: Any, truth: bool = False) -> Any:
    """A result whose values know where the batch axis is, and whether they are truth values."""
    if isinstance(result, (tuple, list)):
        frames = frame if isinstance(frame, tuple) and len(frame) == len(result) else [None] * len(result)
        return type(result)(_framed(one, part) for one, part in zip(result, frames, strict=True))
    if not isinstance(result, Value):
        return result
    if not isinstance(frame, Frame):
        raise Unsupported("works along the batch axis", "Treat each input alone, with the batch axis first")
    return Value(result.id, result.shape, result.order, frame, truth)


def _constant_value(traced: Traced, target: str) -> Any:
    value: Any = traced.module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _resolve(value: Any, environment: dict[fx.Node, Any]) -> Any:
    """An fx argument with nodes replaced by their values."""
    if isinstance(value, fx.Node):
        return environment[value]
    if isinstance(value, tuple):
        return tuple(_resolve(v, environment) for v in value)
    if isinstance(value, list):
        return [_resolve(v, environment) for v in value]
    if isinstance(value, dict):
        return {k: _resolve(v, environment) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(_resolve(v, environment) for v in (value.start, value.stop, value.step)))
    return value


def _check_shape(lifter: Lifter, node: fx.Node, result: Any) -> None:
    shape = node.meta.get("shape")
    if isinstance(result, Value) and shape is not None and result.frame.dims(result.shape, lifter.batch) != shape:
        raise VerificationError(
            f"{node.format_node()}: lifted to {result.shape}, but torch gives {tuple(shape)} with the batch axis"
        )


def _check_type(node: fx.Node, result: Any, classes: bool, called: str) -> None:
    """Raise `Unsupported` if torch makes integers, booleans or complex numbers: encrypted values are real.

    `classes` says that the client computes the value and that it is a class, an integer. Comparisons give numbers.
    """
    dtype = node.meta.get("dtype")
    truth = dtype == torch.bool and called in COMPARISONS
    allowed = dtype is None or dtype.is_floating_point or (classes and dtype == torch.int64) or truth
    if isinstance(result, Value) and not allowed:
        raise Unsupported(f"converts to {dtype}", "Leave conversions to anything but real numbers out")


def _places(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_places(v) for v in value)
    return value.place if isinstance(value, Value) else None


def _values(value: Any) -> Iterator[Value]:
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _values(part)
    elif isinstance(value, Value):
        yield value


@dataclass(frozen=True)
class _OnlyAtClient:
    """An fx node whose value only the client can compute, its plain name, and whether the value is a class."""

    node: fx.Node
    called: str
    decides: bool


class _LastSteps:
    """Follows values that only the client can compute: only further steps of the head may use them."""

    def __init__(self, lifter: Lifter) -> None:
        self._lifter = lifter
        self._known: dict[str, _OnlyAtClient] = {}

    def decided(self, values: Any) -> bool:
        """Whether one of the values is a class."""
        return any((v.id in self._known and self._known[v.id].decides) or self._chosen(v) for v in _values(values))

    def _chosen(self, value: Value) -> bool:
        op = self._lifter.builder[value.id].op
        return isinstance(op, AtClient) and op.step.decides

    def follow(self, node: fx.Node, arguments: Sequence[Any], result: Any) -> _OnlyAtClient | None:
        """Note what was made for an fx node; returns the client-only node that it reads but must not read, or None."""
        builder = self._lifter.builder
        made = [builder[i] for i in self._lifter.made]
        read = next((self._known[v.id] for v in _values(arguments) if v.id in self._known), None)
        steps = [step_of(one, builder.constants) for one in made]
        if read is not None and not all(
            isinstance(step, LastReshape) if read.decides else step is not None for step in steps
        ):
            return read
        here = [one.op.step for one in made if isinstance(one.op, AtClient)]
        if read is not None or here:
            called = self._lifter.called
            for value in _values(result):
                decides = self._chosen(value)
                self._known[value.id] = (
                    _OnlyAtClient(node, called, decides)
                    if read is None
                    else replace(read, decides=read.decides or decides)
                )
        return None


@guard("lifting the model")
def lift(traced: Traced, client_head: bool = True) -> Graph:
    """The traced model as a graph at stage TRACED, with one input, `x`, and one output.

    With `client_head`, the last ops may be some that only clients compute, such as softmax, and if there is one number
    for each image, the output has shape (): `olac.ir.split.split_head` takes these off.

    Node ids come from module paths ("layer1_0_conv1"); constants are float64. Fills `traced.lifted` and
    `traced.results`, from which calibration knows the fx node of each IR node.

    Raises:
        UnsupportedModelError: with every place that can't be compiled, including those that tracing found.
        VerificationError: if a shape in the IR differs from torch's.
    """
    within: frozenset[str] = frozenset()
    while True:
        graph, misplaced = _lifted(traced, client_head, within)
        if graph is not None:
            return graph
        # These are not the last steps, so they are computed on encrypted values.
        within |= misplaced


def _several_outputs(result: tuple[Any, ...] | list[Any] | dict[str, Any]) -> tuple[str, str]:
    """The problem of an output of several parts, and what to do."""
    kind, first = "tuple", "0"
    named = ""
    if isinstance(result, dict):
        shown = [plain(name) for name in result][:NAMED_OUTPUTS]
        more = ", ..." if len(result) > len(shown) else ""
        kind, first, named = "dict", repr(shown[0]) if shown else "...", f" ({', '.join(shown)}{more})"
    return (
        f"forward returns a {kind} of {len(result)} values{named}",
        f"Compile a module whose forward returns one of them, such as model(x)[{first}], or olac.Joined(model, "
        "example), which gives all in one vector",
    )


def _lifted(traced: Traced, client_head: bool, within: frozenset[str]) -> tuple[Graph | None, frozenset[str]]:
    """The graph, or None and the fx nodes that were left to the client although other operations read them.

    Args:
        within: names of fx nodes that the client does not compute.
    """
    lifter = Lifter(traced, client_head)
    last = _LastSteps(lifter)
    early: set[str] = set()
    problems = list(traced.problems)
    environment: dict[fx.Node, Any] = {}
    output: Any = None
    lifted: dict[str, tuple[str, ...]] = {}

    def report(node: fx.Node, problem: str, advice: str) -> None:
        found = UnsupportedNode(node.meta.get("path", ""), node.meta.get("source", ""), problem, advice)
        if found not in problems:
            problems.append(found)

    for node in traced.module.graph.nodes:
        path = node.meta.get("path", "")
        if node.op == "placeholder":
            shape = traced.input_shape
            lifter.at(node, "x")
            environment[node] = _framed(lifter.add(Input(shape)), FIRST)
        elif node.op == "get_attr":
            environment[node] = _constant_value(traced, str(node.target))
            continue
        elif node.op == "output":
            result = node.args[0]
            output = environment.get(result) if isinstance(result, fx.Node) else None
            given = result.meta.get("shape") if isinstance(result, fx.Node) else None
            if isinstance(result, (tuple, list, dict)):
                report(node, *_several_outputs(result))
            elif isinstance(output, Absent):
                report(node, "where the largest elements are is not supported", "Take argmax as the last step")
            elif not isinstance(output, (Value, Unknown)):
                report(node, "the output does not depend on the input", "Return a tensor computed from the input")
            elif isinstance(output, Unknown) and not problems:
                report(node, f"the output of shape {given} has no batch axis", "Return one row for each input")
            elif isinstance(output, Value) and output.frame != FIRST:
                merged = output.frame.merged > 1
                report(
                    node,
                    f"the output of shape {given} has "
                    + ("several rows for each input" if merged else "its batch axis elsewhere"),
                    "Return one row for each input" + (", e.g. y.reshape(len(x), -1)" if merged else ""),
                )
            elif isinstance(output, Value) and output.order is not None:
                lifter.at(node, "output")
                output = environment[node] = lifter.settle(output)
                lifted[node.name] = tuple(lifter.made)
            elif isinstance(output, Value) and not output.shape:
                lifter.at(node, "output")
                output = environment[node] = lifter.add(AtClient(LastReshape(())), output)
                lifted[node.name] = tuple(lifter.made)
            continue
        else:
            lifter.at(node, _identifier(path, "" if node.op == "call_module" else _operation(node)))
            lifter.encrypted = not client_head or node.name in within
            args, kwargs = _resolve(node.args, environment), _resolve(dict(node.kwargs), environment)
            try:
                made = _lift_node(lifter, traced, node, args, kwargs)
                result = _framed(made, lifter.frame, node.meta.get("dtype") == torch.bool)
                classes = last.decided([args, list(kwargs.values()), result])
                _check_type(node, result, classes, lifter.called)
                _check_shape(lifter, node, result)
            except (Unsupported, ShapeError) as error:
                if isinstance(error, Unsupported):
                    report(node, error.problem, error.advice)
                else:
                    report(node, str(error), GENERIC_ADVICE)
                result = _placeholder(lifter, node)
            misplaced = last.follow(node, [args, list(kwargs.values())], result)
            if misplaced is not None:
                if misplaced.node.name not in within:
                    early.add(misplaced.node.name)
                report(
                    misplaced.node,
                    f"{misplaced.called} is supported as one of the last steps only, which the client computes",
                    advice_for(misplaced.called),
                )
            environment[node] = result
        lifted[node.name] = tuple(lifter.made)
    if early:
        return None, frozenset(early)
    if not problems and traced.batch_problem is not None:
        problems.append(traced.batch_problem)
    if problems:
        path, advice = traced.advice
        raise UnsupportedModelError(
            [replace(one, advice=advice) if advice and one.path == path else one for one in problems]
        )
    placeholder = next(n for n in traced.module.graph.nodes if n.op == "placeholder")
    graph = lifter.builder.build([output.id], Stage.TRACED, inputs=[environment[placeholder].id])
    traced.lifted = lifted
    traced.results = {node.name: _places(value) for node, value in environment.items()}
    return graph, frozenset()
