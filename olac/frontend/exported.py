"""Programs of torch.export, as modules that call torch's own functions: tracing and handlers take these as any model.

A program holds operations of ATen, torch's library below its Python functions. Most have a Python function of the same
name and arguments; `_FORMS` has those that do not. Programs as torch.export makes them and programs after
`run_decompositions()` (core ATen) are both taken.
"""

from __future__ import annotations

import copy
import io
import os
import re
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils import _pytree as pytree

from olac.errors import ArtifactError, UnsupportedModelError, UnsupportedNode
from olac.frontend.source import at_place, source_of_text

if TYPE_CHECKING:
    from typing import TypeGuard

_GRADIENTS, _AUTOCAST = "wrap_with_set_grad_enabled", "wrap_with_autocast"

# Torch does not check the batch of their states: it writes past the end of memory if a program that was exported for
# one size of a batch is run on another. So these are not run at all.
_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}


def is_program(model: Any) -> bool:
    """Whether something is an ExportedProgram; none can exist unless its module was imported."""
    home = sys.modules.get("torch.export.exported_program")
    return home is not None and isinstance(model, home.ExportedProgram)


def is_exported(module: nn.Module) -> TypeGuard[fx.GraphModule]:
    """Whether a module is a graph of ATen operations, as `ExportedProgram.module()` gives."""
    return isinstance(module, fx.GraphModule) and any(
        isinstance(node.target, (torch._ops.OpOverload, torch._ops.HigherOrderOperator)) for node in module.graph.nodes
    )


def fixed_batch(model: nn.Module) -> int | None:
    """The number of images that a model was exported for; None if it may differ, or if the model was not exported."""
    return model.batch if isinstance(model, Exported) else None


class Exported(nn.Module):
    """A graph of ATen operations as a module that runs them one by one, as calls of torch's own functions.

    It has the parameters and buffers of the graph, which are copied. Errors and places that can't be compiled have the
    module path and the source line of the model that was exported, where the graph knows them.

    Attributes:
        batch: the images that it was exported for, None if any number.

    Raises:
        UnsupportedModelError: for control flow on data, recurrent layers and quantised operations; lists all of them.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__()
        _refuse(module)
        self.graph = copy.deepcopy(module.graph)
        self._names: dict[str, str] = {}
        self._parts: dict[str, Exported] = {}
        for node in self.graph.nodes:
            if node.op == "get_attr" or (node.op == "call_module" and not _is_guard(node)):
                self._hold(str(node.target), _attribute(module, str(node.target)))
        self._out_spec = getattr(module, "_out_spec", None)
        first = next((node for node in self.graph.nodes if node.op == "placeholder"), None)
        shape = getattr(first.meta.get("val"), "shape", None) if first is not None else None
        self.batch = int(shape[0]) if shape and isinstance(shape[0], int) else None

    def _hold(self, target: str, value: Any) -> None:
        name = self._names[target] = "held_" + re.sub(r"\W", "_", target)
        if isinstance(value, fx.GraphModule):
            self._parts[target] = Exported(value)
            setattr(self, name, self._parts[target])
        elif isinstance(value, nn.Parameter):
            self.register_parameter(name, copy.deepcopy(value))
        elif isinstance(value, torch.Tensor):
            self.register_buffer(name, value.detach().clone())
        else:
            setattr(self, name, copy.deepcopy(value))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the graph computes, in the structure of outputs that the exported model had."""
        names = {str(node.target) for node in self.graph.nodes if node.op == "placeholder"}
        named_inputs = {name: one for name, one in kwargs.items() if name in names}
        rest = {name: one for name, one in kwargs.items() if name not in names}
        given = iter(pytree.tree_leaves((args, rest)))
        values: dict[fx.Node, Any] = {}
        for node in self.graph.nodes:
            arguments = fx.node.map_arg(node.args, values.__getitem__)
            named = fx.node.map_arg(node.kwargs, values.__getitem__)
            with at_place(_path_of(node), source_of_text(node.meta.get("stack_trace") or "")):
                if node.op == "placeholder":
                    by_name = str(node.target) in named_inputs
                    values[node] = named_inputs[str(node.target)] if by_name else next(given)
                elif node.op == "get_attr":
                    values[node] = getattr(self, self._names[str(node.target)])
                elif node.op == "call_module":
                    values[node] = None if _is_guard(node) else self._module(node)(*arguments, **named)
                elif node.op == "call_function":
                    values[node] = _run(node.target, arguments, named)
                elif node.op == "output":
                    return self._output(arguments[0])
        raise UnsupportedModelError([UnsupportedNode("", "", "the exported program has no output", "Return a tensor")])

    def _module(self, node: fx.Node) -> Any:
        return getattr(self, self._names[str(node.target)])

    def _output(self, flat: Any) -> Any:
        if self._out_spec is None:
            return flat
        return pytree.tree_unflatten(list(flat) if isinstance(flat, (tuple, list)) else [flat], self._out_spec)


def _attribute(module: nn.Module, target: str) -> Any:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _is_guard(node: fx.Node) -> bool:
    """Whether a node only checks that the input has the sizes that were exported."""
    return str(node.target).rpartition(".")[2] == "_guards_fn"


def _path_of(node: fx.Node) -> str:
    """The qualified name of the module that an operation comes from; "" if the graph does not know it."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()), ("",))[0] if stack else ""
    return path if isinstance(path, str) and re.fullmatch(r"[\w.]*", path) else ""


def _refuse(module: fx.GraphModule) -> None:
    found = []
    for node in module.graph.nodes:
        problem = advice = ""
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            if node.target.name() not in (_GRADIENTS, _AUTOCAST):
                problem = f"uses {node.target.name()}, which chooses by data what to compute"
                advice = "Use shapes or constants to choose, or compute both sides and blend them"
        elif isinstance(node.target, torch._ops.OpOverload) and node.target.namespace.startswith(("quant", "torchao")):
            problem = f"{node.target._opname} is quantised"
            advice = "Compile the model as it was before quantisation"
        elif isinstance(node.target, torch._ops.OpOverload) and node.target._opname in _RECURRENT:
            problem, advice = f"{node.target._opname} in an exported program", "Give the model as a module"
        if problem:
            where = source_of_text(node.meta.get("stack_trace") or "")
            found.append(UnsupportedNode(_path_of(node), where, problem, advice))
    if found:
        raise UnsupportedModelError(list(dict.fromkeys(found)))


# Operations ----------------------------------------------------------------------------------------------------------


def _run(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if isinstance(target, torch._ops.HigherOrderOperator):
        if target.name() == _GRADIENTS:
            return args[1].forward(*args[2:])  # without a call, which would be a module of its own
        device, dtype, enabled = args[:3]
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            return args[4].forward(*args[5:])
    if not isinstance(target, torch._ops.OpOverload):
        return None if _only_asserts(getattr(target, "__name__", "")) else target(*args, **kwargs)
    name = target._opname
    if target.namespace != "aten":
        return _recorded(target, args, kwargs)
    if _only_asserts(name):
        return None
    kwargs = {key: one for key, one in kwargs.items() if key not in ("device", "pin_memory", "layout")}
    form = _FORMS.get(name) or _FORMS.get(name.removesuffix("_copy"))
    if form is not None:
        return form(*args, **kwargs)
    plain = name.removesuffix("_copy") if not hasattr(torch, name) else name
    if not plain.endswith("_"):
        # Functions of torch._C._nn have ATen's own arguments, and so have those of torch.nn.functional of that name.
        for place in (F,) if hasattr(torch._C._nn, plain) else (torch, F):
            if callable(function := getattr(place, plain, None)):
                return _recorded(function, args, kwargs)
    for prefix, home in (("special_", torch.special), ("linalg_", torch.linalg), ("fft_", torch.fft)):
        if plain.startswith(prefix) and callable(function := getattr(home, plain.removeprefix(prefix), None)):
            return _recorded(function, args, kwargs)
    if args and hasattr(torch.Tensor, plain):
        return getattr(args[0], plain)(*args[1:], **kwargs)
    return _recorded(target, args, kwargs)


def _only_asserts(name: str) -> bool:
    return name.startswith(("_assert", "_check", "sym_constrain_range"))


def _recorded(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The result of a function; tracing records it without a call, as not all of torch's own can be called then."""
    proxy = next((one for one in pytree.tree_leaves((args, dict(kwargs))) if isinstance(one, fx.Proxy)), None)
    if proxy is None:
        return target(*args, **kwargs)
    return proxy.tracer.create_proxy("call_function", target, tuple(args), dict(kwargs))


def _convolution(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Any:
    axes = weight.ndim - 2
    if transposed:
        upward: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
        return upward(x, weight, bias, stride, padding, output_padding, groups, dilation)
    forward: Any = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    return forward(x, weight, bias, stride, padding, dilation, groups)


def _addmm(bias: Any, x: Any, weight: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    if isinstance(weight, torch.Tensor) and isinstance(bias, torch.Tensor):
        return F.linear(x, weight.t() * alpha, bias * beta)
    return torch.addmm(bias, x, weight, beta=beta, alpha=alpha)


def _matrix_product(x: Any, weight: Any) -> Any:
    constant = isinstance(weight, torch.Tensor) and weight.ndim == 2 and isinstance(x, fx.Proxy)
    return F.linear(x, weight.t()) if constant else torch.matmul(x, weight)


def _batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, *cudnn: bool
) -> Any:
    return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)


def _instance_norm(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, own: bool, momentum: float, eps: float, *cudnn: bool
) -> Any:
    return F.instance_norm(x, mean, var, weight, bias, own, momentum, eps)


def _layer_norm(x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *cudnn: bool) -> Any:
    return F.layer_norm(x, shape, weight, bias, eps)


def _group_norm(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *cudnn: bool) -> Any:
    return F.group_norm(x, groups, weight, bias, eps)


def _elu(x: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
    """scale * (x if x > 0 else alpha * (exp(input_scale * x) - 1)): ELU, SELU and CELU in one."""
    y = F.elu(x, alpha) if input_scale == 1 else F.celu(input_scale * x * alpha, alpha) / (input_scale * alpha)
    return y if scale == 1 else scale * y


def _pool(function: Any) -> Callable[..., Any]:
    """A pooling function; ATen says `[]` for a stride that is the kernel's size."""

    def call(x: Any, kernel: Any, stride: Any = (), *args: Any, **kwargs: Any) -> Any:
        return function(x, kernel, list(stride) or None, *args, **kwargs)

    return call


def _slice(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    before = (slice(None),) * (dim % x.ndim)
    return x[before + (slice(start, end, step),)]  # noqa: RUF005  # mypy takes a star here for Python 3.11


def _index(x: Any, indices: Sequence[Any]) -> Any:
    return x[tuple(slice(None) if one is None else one for one in indices)]


def _convert(x: Any, *args: Any, dtype: Any = None, **kwargs: Any) -> Any:
    """A conversion. Models are computed in single precision, so conversions between real types change nothing."""
    types = [one for one in (*args, dtype) if isinstance(one, torch.dtype)]
    wanted = types[0] if types else x.dtype
    return x if wanted.is_floating_point and x.dtype.is_floating_point else x.to(wanted)


def _padded(mode: str) -> Callable[..., Any]:
    return lambda x, pad: F.pad(x, list(pad), mode=mode)


def _resized(mode: str) -> Callable[..., Any]:
    """Resizing in one of the overloads: (x, size, scales) for nearest, (x, size, align_corners, scales) for others."""

    def call(x: Any, size: Any, *rest: Any) -> Any:
        aligned = None if mode == "nearest" else bool(rest[0])
        if size is None:
            scales = rest[0 if mode == "nearest" else 1]
            return F.interpolate(x, scale_factor=tuple(scales), mode=mode, align_corners=aligned)
        return F.interpolate(x, size=tuple(size), mode=mode, align_corners=aligned)

    return call


_FORMS: dict[str, Callable[..., Any]] = {
    "convolution": _convolution,
    "addmm": _addmm,
    "mm": _matrix_product,
    "matmul": _matrix_product,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": lambda x, w, b, m, v, momentum, eps: (
        _batch_norm(x, w, b, m, v, False, momentum, eps),
        None,
        None,
    ),
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "native_layer_norm": lambda x, shape, w, b, eps: (F.layer_norm(x, shape, w, b, eps), None, None),
    "group_norm": _group_norm,
    "native_group_norm": lambda x, w, b, n, c, size, groups, eps: (F.group_norm(x, groups, w, b, eps), None, None),
    "elu": _elu,
    "selu": F.selu,
    "celu": F.celu,
    "relu6": F.relu6,
    "max_pool1d": _pool(F.max_pool1d),
    "max_pool2d": _pool(F.max_pool2d),
    "max_pool3d": _pool(F.max_pool3d),
    "max_pool2d_with_indices": lambda *args: (_pool(F.max_pool2d)(*args), None),
    "max_pool3d_with_indices": lambda *args: (_pool(F.max_pool3d)(*args), None),
    "avg_pool1d": _pool(F.avg_pool1d),
    "avg_pool2d": _pool(F.avg_pool2d),
    "avg_pool3d": _pool(F.avg_pool3d),
    "_adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "_adaptive_avg_pool3d": F.adaptive_avg_pool3d,
    "adaptive_max_pool2d": lambda x, size: (F.adaptive_max_pool2d(x, size), None),
    "dropout": F.dropout,
    "feature_dropout": F.dropout2d,
    "alpha_dropout": F.alpha_dropout,
    "native_dropout": lambda x, p, train: (F.dropout(x, p, bool(train)), None),
    "embedding": lambda weight, indices, *rest: F.embedding(indices, weight),
    "_softmax": lambda x, dim, half: torch.softmax(x, dim),
    "_log_softmax": lambda x, dim, half: torch.log_softmax(x, dim),
    "constant_pad_nd": lambda x, pad, value=0.0: F.pad(x, list(pad), value=value),
    "pad": lambda x, pad, mode="constant", value=None: F.pad(x, list(pad), mode, value),
    "reflection_pad1d": _padded("reflect"),
    "reflection_pad2d": _padded("reflect"),
    "replication_pad1d": _padded("replicate"),
    "replication_pad2d": _padded("replicate"),
    "upsample_nearest1d": _resized("nearest"),
    "upsample_nearest2d": _resized("nearest"),
    "upsample_bilinear2d": _resized("bilinear"),
    "_unsafe_view": lambda x, shape: x.reshape(shape),
    "view": lambda x, shape: x.reshape(shape) if not isinstance(shape, torch.dtype) else x.view(shape),
    "slice": _slice,
    "index": _index,
    "split_with_sizes": lambda x, sizes, dim=0: torch.split(x, list(sizes), dim),
    "unsafe_split": torch.split,
    "unsafe_chunk": torch.chunk,
    "numpy_T": lambda x: x.T,
    "to": _convert,
    "_to_copy": _convert,
    "alias": lambda x: x,
    "lift_fresh": lambda x: x,
    "lift_fresh_copy": lambda x: x.clone(),
    "clone": lambda x, **kwargs: x.clone(),
    "sym_size": lambda x, dim: x.shape[dim],
    "sym_numel": lambda x: x.numel(),
    "linear": F.linear,
}


# Files ---------------------------------------------------------------------------------------------------------------

_NO_WEIGHTS = re.compile(r"(^|/)data/aotinductor/|(^|/)data/constants/(custom_obj|opaque_obj)")


def load_exported(path: str | Path) -> nn.Module:
    """Read a program that `torch.export.save` wrote, as a module for `olac.compile`.

    This is for the owner of the model, who compiles it. No server and no client of olac calls it. Weights are read as
    torch reads them with weights_only, so objects in pickles are refused; but torch also evaluates the program's
    expressions of sizes, so a file from a stranger may still run code: load files of your own.

    Args:
        path: a file of `torch.export.save`.

    Raises:
        ArtifactError: the file is missing or damaged, holds compiled code or objects other than tensors, or is of a
            version that this torch can't read.
        UnsupportedModelError: the program has control flow on data, or quantised operations.
    """
    try:
        data = Path(path).read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path} is no file of torch.export.save: {error}") from error
    objects = [name for name in names if _NO_WEIGHTS.search(name)]
    if objects:
        raise ArtifactError(
            f"{path} holds compiled code or objects other than tensors ({objects[0]}): export the model without them"
        )
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        program = torch.export.load(io.BytesIO(data))
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        raise ArtifactError(f"torch can't load {path} with weights only: {type(error).__name__}: {text}") from error
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    return Exported(module)
