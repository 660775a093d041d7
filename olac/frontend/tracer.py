"""The tracer: proxies that carry values, and what is recorded for the operations on them."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx._symbolic_trace import _wrapped_fns_to_patch as _marked
from torch.fx.node import map_aggregate

from olac.errors import UnsupportedNode
from olac.frontend.custom import Custom, plain_name
from olac.frontend.source import current_path, current_source
from olac.frontend.unwrap import dense, named_parts, one_output

LEAVES: set[type[nn.Module]] = set()
"""Module classes from outside torch.nn that have a lifting of their own, and so are not traced into."""
WHOLE: set[Any] = set()
"""Functions that have a lifting of their own, and so are not traced into."""

# The results of these aren't tensors, and depend on the data rather than on shapes.
_READS_DATA = {"item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "__bool__", "__int__", "__float__"} | {
    "__index__",
    "__contains__",
    "__array__",
}

# These keep elements in row-major order; they are recorded as a reshape that leaves the batch axis open.
_RESHAPES = {"view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "squeeze", "unsqueeze", "ravel"}

# These use only the shape, type and device of their first argument, not its numbers.
_LIKE = {"zeros_like", "ones_like", "full_like", "empty_like", "_shape_as_tensor"} | {
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "new_empty_strided",
    "new_tensor",
}

# These use only the shape, type and device of their second argument.
_AS = {"expand_as", "view_as", "reshape_as", "type_as", "to"}

_UNCHANGED = {"data", "real"}
"""Attributes of a real tensor that give the tensor itself."""

_EXPANDS = {"expand", "expand_as", "broadcast_to"}

_OF_ONE_BATCH = {"cat", "concat", "concatenate", "stack", "hstack", "bmm", "baddbmm"}
"""Operations whose operands have the same size of the batch."""

_ARITHMETIC = {"add", "sub", "mul", "truediv", "div", "radd", "rsub", "rmul", "subtract", "multiply", "divide"} | {
    "matmul",
    "rmatmul",
}
"""Operations that repeat an operand whose batch axis has length 1."""

BRANCH_ADVICE = "Use shapes or constants to choose, or compute both sides and blend them"


def for_each_image(constant: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A constant (1, ...) for each image of a batch; recorded for constants that were made for the example's batch."""
    return constant.expand(len(like), *constant.shape[1:])


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one operation: a torch.nn module, or a subclass of one that keeps its forward."""
    if "forward" in vars(module):
        return False
    for base in type(module).__mro__:
        if base in LEAVES:
            return True
        if "forward" in vars(base):
            container = base in (nn.Sequential, nn.Module)
            return base.__module__.startswith(("torch.nn.", "torch.ao.nn.")) and not container
    return False


class _Method:
    """A method of a traced value, to be called."""

    def __init__(self, proxy: _Value, name: str) -> None:
        self._proxy, self._name = proxy, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._proxy.tracer.create_proxy("call_method", self._name, (self._proxy, *args), kwargs)


class _Value(fx.Proxy):
    """A traced value: an fx node, and the tensor that the example gives.

    A change in place moves the proxy on to the node of the new value. `stale` marks views of a changed tensor.
    """

    tracer: Tracer
    __array_ufunc__ = None  # numpy's numbers and arrays leave arithmetic with traced values to `_Value`

    def __init__(self, node: fx.Node, tracer: Tracer, value: Any) -> None:
        super().__init__(node, tracer)
        self.value = value
        self.stale = False

    def __getattr__(self, name: str) -> Any:
        if (name.startswith("__") and name.endswith("__")) or name in ("value", "node", "tracer", "stale"):
            raise AttributeError(name)
        attribute = getattr(self.value, name)
        if callable(attribute) and not isinstance(attribute, torch.Tensor):
            return _Method(self, name)
        if isinstance(attribute, torch.Tensor):
            if name in _UNCHANGED and not self.value.is_complex():
                return self.tracer.create_proxy("call_method", "detach", (self,), {})
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return attribute

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        return iter([self[i] for i in range(len(self.value))])  # type: ignore[index]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.problem("assigns to a part of a tensor", "Compute the parts and add them up, or use F.pad")

    def _read(self, what: str) -> Any:
        self.tracer.problem(f"the program depends on encrypted data ({what})", BRANCH_ADVICE)
        return self.value

    def __bool__(self) -> bool:
        return bool(self._read("a branch on a tensor's value"))

    def __int__(self) -> int:
        return int(self._read("int() of a tensor"))

    def __float__(self) -> float:
        return float(self._read("float() of a tensor"))

    def __index__(self) -> int:
        return operator.index(self._read("a tensor as an index"))

    def __contains__(self, item: Any) -> bool:
        return bool(item in self._read("a test of what a tensor contains"))

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(self._read("a conversion to numpy"), dtype=dtype)


def _add_in_place_operators() -> None:
    def make(function: Callable[..., Any]) -> Callable[[_Value, Any], Any]:
        def method(self: _Value, other: Any) -> Any:
            result = self.tracer.create_proxy("call_function", function, (self, other), {})
            return self.tracer.replace(self, result)

        return method

    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor"):
        setattr(_Value, f"__i{name.strip('_')}__", make(getattr(operator, name)))


_add_in_place_operators()


class Tracer(fx.Tracer):
    """Records what the model does with one input, and runs it on the example at the same time.

    `call` gives the input, and constants beside it, to the function that is its first argument.
    """

    def __init__(
        self, images: torch.Tensor, custom: Custom, call: Callable[[Callable[..., Any], Any], Any] | None = None
    ) -> None:
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]
        self._custom = custom
        self._call = call or (lambda forward, x: forward(x))
        self.problems: list[UnsupportedNode] = []
        self._images = images
        self._running = False
        self._alive: list[weakref.ref[_Value]] = []
        self._in_place: set[str] = set()
        self._changed: list[torch.Tensor] = []
        self._constants: list[tuple[torch.Tensor, int, str]] = []

    def problem(self, problem: str, advice: str) -> None:
        """Note a place that can't be compiled; tracing goes on with the example's value."""
        node = UnsupportedNode(current_path(self.scope.module_path), current_source(), problem, advice)
        if node not in self.problems:
            self.problems.append(node)

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        self._make_functional(root)
        with _unwrapped(), _recording_scripted_functions():
            return super().trace(root, concrete_args)

    def _make_functional(self, root: nn.Module, prefix: str = "") -> None:
        """Make modules that change their input in place return new tensors, and remember which modules they are."""
        for name, module in root.named_modules(prefix=prefix):
            if getattr(module, "inplace", False) is True:
                self._in_place.add(name)
                module.inplace = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._custom.holds(m, module_qualified_name) or is_leaf(m)

    def path_of_module(self, mod: nn.Module) -> str:
        try:
            return super().path_of_module(mod)
        except NameError:
            # A module that the model's code makes as it runs, or keeps in a plain list.
            name = f"_module_{len(list(self.root.children()))}"
            self.root.add_module(name, mod.float().eval())
            self._make_functional(mod, name)
            if self.submodule_paths is not None:
                for inner, child in mod.named_modules(prefix=name):
                    self.submodule_paths[child] = inner
            return name

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._running or not _has_value((args, kwargs)):
            # Inside an operation that runs on the example, or on constants only.
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        # Parameters stay tensors: results computed from constants alone are constants.
        return attr_val

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        node = self.create_node("placeholder", "x", (), {})

        def forward(root: nn.Module, x: _Value) -> Any:
            output = one_output(self._call(functools.partial(root_fn, root), x))[0]
            # Nodes hold tuples and dicts; a class would be a call of its own.
            return output if type(output) in (tuple, list, dict) else named_parts(output) or output

        return forward, [self.root, self._wrap(node, self._images)]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["path"] = current_path(self.scope.module_path)
        node.meta["source"] = current_source()
        node.meta["shape"] = tuple(self._images.shape) if node.op == "placeholder" else None
        node.meta["dtype"] = None
        return node

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, _Value):
            if a.stale:
                self.problem(
                    "reads a view of a tensor that was changed in place", "Use the operation that makes a new tensor"
                )
            return a.node
        if isinstance(a, np.generic):
            return a.item()
        if isinstance(a, torch.Tensor) and any(_shares(a, changed) for changed in self._changed):
            self.problem("reads a tensor that was changed in place", "Use the operation that makes a new tensor")
        if isinstance(a, torch.Tensor) and not isinstance(a, nn.Parameter):
            for other, name in self.tensor_attrs.items():
                if other is a:
                    return self.create_node("get_attr", name, (), {})
            # A copy, because the model's code may change the tensor later.
            for other, version, name in self._constants:
                if other is a and version == a._version:
                    return self.create_node("get_attr", name, (), {})
            made = super().create_arg(a.clone())
            if isinstance(made, fx.Node):
                self._constants.append((a, a._version, str(made.target)))
            return made
        return super().create_arg(a)

    def _wrap(self, node: fx.Node, value: Any) -> _Value:
        proxy = _Value(node, self, value)
        if isinstance(value, torch.Tensor):
            node.meta["shape"], node.meta["dtype"] = tuple(value.shape), value.dtype
        self._alive = [other for other in self._alive if other() is not None]
        self._alive.append(weakref.ref(proxy))
        return proxy

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
        proxy_factory_fn: Any = None,
    ) -> Any:
        if torch.is_autocast_enabled("cpu"):
            self.problem(
                "computes under autocast, in lower precision", "Leave autocast out of evaluation: enabled=self.training"
            )
        args, kwargs = map_aggregate((args, kwargs), lambda a: torch.as_tensor(a) if isinstance(a, np.ndarray) else a)
        own = None if kind == "call_module" else self._custom.key_of(target)
        in_place = False
        if kind != "call_module" and own is None:
            args, kwargs = _positional(target, args, kwargs)
        if own is None:
            if kind != "call_module" and _is_constant(_name_of(target), args, kwargs):
                return self._constant(kind, target, args, kwargs)
            kind, target, kwargs, in_place = self._functional(kind, target, args, kwargs)
            if isinstance(args[0] if args else None, torch.Tensor):
                args, in_place = self._constant_in_place(target, args, in_place), False
        if in_place:
            name = None
        values = map_aggregate((args, kwargs), lambda a: a.value if isinstance(a, _Value) else a)
        result = self._run(kind, target, *values)
        if isinstance(result, torch.Tensor) and (result.is_nested or result.layout is not torch.strided):
            self.problem("makes a sparse or nested tensor", "Compute with dense tensors of one shape")
            result = dense(result)
        called = _name_of(target)
        named = ""
        if own is not None:
            called, named = "", plain_name(own)
        if not _tensors(result):
            if called in _READS_DATA:
                self.problem(f"the program depends on encrypted data ({called})", BRANCH_ADVICE)
            return result
        if kind != "call_module" and called in _RESHAPES and isinstance(result, torch.Tensor):
            source = args[0] if args and isinstance(args[0], _Value) else None
            if source is not None and source.value.shape[:1] == result.shape[:1] == self._images.shape[:1]:
                kind, target, name, kwargs = "call_method", "reshape", None, {}
                args = (source, (-1, *result.shape[1:]))
                named = called
        expanded = args[0] if called in _EXPANDS and isinstance(result, torch.Tensor) else None
        if isinstance(expanded, _Value) and expanded.value.shape[:1] == result.shape[:1] == self._images.shape[:1]:
            kind, target, name, kwargs = "call_method", "expand", None, {}
            args = (expanded, -1, *result.shape[1:])
        if called.strip("_") in _ARITHMETIC and len(args) == 2 and _has_value(args):
            args = (self._one_for_all(args[0], args[1]), self._one_for_all(args[1], args[0]))
        if kind == "call_module" and isinstance(self.root.get_submodule(str(target)), nn.RNNBase):
            args, kwargs = _without_zero_states(args, kwargs)
        if kind == "call_module" or called in _OF_ONE_BATCH:
            args = self._for_each_image(args)
        node = self.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs), name, type_expr)
        node.meta["called"] = named
        if isinstance(result, torch.Tensor):
            proxy = self._wrap(node, result)
            return self.replace(args[0], proxy) if in_place else proxy
        return self._items(node, result)

    def _constant(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of an operation that uses no numbers of traced values: a tensor like any other constant."""
        values = map_aggregate((args, kwargs), lambda a: a.value if isinstance(a, _Value) else a)
        result = self._run(kind, target, *values)
        if "empty" in _name_of(target) and result.is_floating_point():
            result.fill_(math.nan)  # so that uninitialised memory is not taken for values
        return result

    def _constant_in_place(self, target: Any, args: tuple[Any, ...], functional: bool) -> tuple[Any, ...]:
        """The arguments of an operation that may change a constant in place, with a copy of the constant if it does.

        If the change is also an operation of its own, as += is, the operation is done. The constant must not be read
        again.
        """
        called = _name_of(target)
        if called == "__setitem__":
            self.problem("assigns to a part of a tensor", "Compute the parts and add them up, or use F.pad")
        elif functional:
            self._changed.append(args[0])
        elif called.endswith("_") and not called.endswith("__"):
            self.problem(f"changes a constant in place ({called})", "Use the operation that makes a new tensor")
        else:
            return args
        return (args[0].detach().clone(), *args[1:])

    def _one_for_all(self, operand: Any, other: Any) -> Any:
        """A constant made for the size of the example's batch, cut to a batch axis of length 1; other operands
        unchanged.
        """
        if not isinstance(operand, torch.Tensor) or not isinstance(other, _Value) or operand.ndim < 1:
            return operand
        images = len(self._images)
        made_for_batch = operand.ndim == other.value.ndim and len(operand) == len(other.value) == images
        return operand[:1] if made_for_batch and bool((operand == operand[:1]).all()) else operand

    def _for_each_image(self, args: Any) -> Any:
        """Arguments whose constants that were made for the example's batch follow the size of the batch."""
        values: list[_Value] = []
        map_aggregate(args, lambda a: values.append(a) if isinstance(a, _Value) else None)
        like = next((v for v in values if v.value.shape[:1] == self._images.shape[:1]), None)

        def follow(operand: Any) -> Any:
            constant = isinstance(operand, torch.Tensor) and operand.shape[:1] == self._images.shape[:1]
            if like is None or not constant or not bool((operand == operand[:1]).all()):
                return operand
            return self.create_proxy("call_function", for_each_image, (operand[:1], like), {})

        return map_aggregate(args, follow)

    def _items(self, node: fx.Node, result: Any) -> Any:
        """The parts of a result that is a tuple or a list, each with a proxy of its own."""
        parts = []
        for index, part in enumerate(result):
            if _tensors(part):
                item = self.create_node("call_function", operator.getitem, (node, index), {})
                parts.append(self._wrap(item, part) if isinstance(part, torch.Tensor) else self._items(item, part))
            else:
                parts.append(part)
        if isinstance(result, list):
            return parts
        plain = type(result) is tuple or hasattr(result, "_fields")
        return tuple(parts) if plain else type(result)(parts)

    def _functional(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[str, Any, dict[str, Any], bool]:
        """The call that makes a new tensor, and whether the original call changes its first operand in place."""
        if not args or not isinstance(args[0], (_Value, torch.Tensor)):
            return kind, target, kwargs, False
        if kind == "call_module":
            return kind, target, kwargs, target in self._in_place
        if kwargs.get("inplace") is True:
            return kind, target, {**kwargs, "inplace": False}, True
        called = _name_of(target)
        if called.startswith("__i") and hasattr(operator, called):
            return "call_function", getattr(operator, called.replace("__i", "__", 1)), kwargs, True
        if called.endswith("_") and not called.endswith("__") and getattr(operator, called, None) is not target:
            plain = called[:-1]
            if kind == "call_method" and hasattr(torch.Tensor, plain):
                return kind, plain, kwargs, True
            for place in (torch.nn.functional, torch):
                if kind == "call_function" and hasattr(place, plain) and target is not getattr(place, plain):
                    return kind, getattr(place, plain), kwargs, True
            if isinstance(args[0], _Value) and called != "requires_grad_":
                self.problem(f"changes a tensor in place ({called})", "Use the operation that makes a new tensor")
        return kind, target, kwargs, False

    def replace(self, proxy: _Value, result: Any) -> _Value:
        """Make a proxy, and all others of the same tensor, stand for the result of a change in place."""
        old = proxy.value
        for reference in self._alive:
            other = reference()
            if other is None or other is result or not isinstance(other.value, torch.Tensor):
                continue
            if other.value.untyped_storage().data_ptr() != old.untyped_storage().data_ptr():
                continue
            if (other.value.data_ptr(), other.value.shape, other.value.stride()) == (
                old.data_ptr(),
                old.shape,
                old.stride(),
            ):
                if other is not proxy:
                    other.node, other.value = result.node, result.value
            else:
                other.stale = True
        proxy.node, proxy.value, proxy.stale = result.node, result.value, False
        return proxy

    def _run(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._plain_calls():
            if kind == "call_function":
                return target(*args, **kwargs)
            if kind == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            module = self.root.get_submodule(target)
            return module.forward(*args, **kwargs)

    @contextlib.contextmanager
    def _plain_calls(self) -> Iterator[None]:
        before, self._running = self._running, True
        try:
            yield
        finally:
            self._running = before


@contextlib.contextmanager
def _unwrapped() -> Iterator[None]:
    """Within this, functions that a model's code marked by `torch.fx.wrap` are traced into, as any other code.

    Those that have a lifting of their own stay one operation.
    """
    kept = {key: one for key, one in _marked.items() if one.get(key[1]) in WHOLE}
    before = dict(_marked)
    _marked.clear()
    _marked.update(kept)
    try:
        yield
    finally:
        _marked.clear()
        _marked.update(before)


@contextlib.contextmanager
def _recording_scripted_functions() -> Iterator[None]:
    """Within this, a function of TorchScript that is called with traced values is recorded, and refused by name."""
    scripted: Any = torch.jit.ScriptFunction
    original = scripted.__call__

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        found = next((a for a in (*args, *kwargs.values()) if isinstance(a, _Value)), None)
        if found is None:
            return original(function, *args, **kwargs)
        result = found.tracer.create_proxy("call_function", function, args, kwargs)
        if isinstance(result, _Value):
            result.node.meta["called"] = f"TorchScript function {function.name}"
        return result

    scripted.__call__ = call
    try:
        yield
    finally:
        scripted.__call__ = original


def _without_zero_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call of a recurrent layer without initial states of zeros, which it has anyway."""
    given = args[1] if len(args) > 1 else kwargs.get("hx")
    states = given if isinstance(given, tuple) else (given,)
    if all(isinstance(one, torch.Tensor) and not bool(one.any()) for one in states):
        return args[:1], {name: one for name, one in kwargs.items() if name != "hx"}
    return args, kwargs


def _name_of(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", "")


_NUMPY = {"axis": "dim", "keepdims": "keepdim"}
"""Names of arguments that torch takes in numpy's spelling as well."""


def _positional(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a torch function, with operands given by name moved to their positions, and in torch's spelling."""
    called = _name_of(target)
    if called == "where":
        names = [name for name in ("condition", "input", "other") if name in kwargs]
        return (*args, *(kwargs[name] for name in names)), {k: v for k, v in kwargs.items() if k not in names}
    for place, name in enumerate(("input", "other")):
        if len(args) == place and name in kwargs:
            args, kwargs = (*args, kwargs[name]), {k: v for k, v in kwargs.items() if k != name}
    known = isinstance(target, str) or getattr(target, "__module__", "") in ("torch", None)
    if known and not kwargs.keys().isdisjoint(_NUMPY) and called not in ("normalize", "softmax"):
        kwargs = {_NUMPY.get(name, name): value for name, value in kwargs.items()}
    return args, kwargs


def _is_constant(called: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the result of an operation depends on no numbers of the traced values among its arguments."""
    if called in _LIKE:
        return not _has_value((args[1:], {k: v for k, v in kwargs.items() if k != "input"}))
    return called in _AS and bool(args) and not _has_value((args[0], args[2:]))


def _shares(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or (a.numel() > 0 and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr())


def _has_value(arguments: Any) -> bool:
    found = False

    def look(a: Any) -> Any:
        nonlocal found
        found = found or isinstance(a, _Value)
        return a

    map_aggregate(arguments, look)
    return found


def _tensors(result: Any) -> bool:
    """Whether a result is a tensor, or a tuple or list that holds one."""
    if isinstance(result, torch.Tensor):
        return True
    return isinstance(result, (tuple, list)) and any(_tensors(part) for part in result)
