"""Tracing: a model and an example become a torch.fx graph whose shapes are all concrete.

Each proxy carries the value that the example gives, so sizes, shape arithmetic and branches on shapes are resolved as
the model's own code runs. A change of a value in place is recorded as the operation that makes a new value: the graph
is purely functional.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from olac.errors import CalibrationError, UnsupportedModelError, UnsupportedNode
from olac.frontend.custom import Activations, Custom
from olac.frontend.exported import fixed_batch, is_program
from olac.frontend.first_layer import shape_advice
from olac.frontend.forms import refused_forms
from olac.frontend.frames import find_frames
from olac.frontend.source import error_text, source_of_error
from olac.frontend.tracer import Tracer
from olac.frontend.unwrap import one_output, plain_calls, unwrapped, unwrapped_copy, unwrapped_path
from olac.system.internal import callers, guard
from olac.system.memory import ran_out
from olac.system.shapes import described

BATCH = 2
"""Images that a model is traced with: more than one, so that a squeeze() does not drop the batch axis. A model that
takes batches of another size only is traced with that size.
"""
OTHER_SIZES = (3, 4, 5, 6, 7, 8, 16, 32)
"""Sizes of a batch that are tried after two images, one, and as many as the example has."""

Constants = Mapping[str, Any]
"""Values of arguments of forward, by name."""


@dataclass
class Traced:
    """A traced model.

    Each fx node has in its meta: "path", the qualified name of the module that owns it; "source", the user's file and
    line ("model.py:12", or ""); "shape", torch's, and "dtype" (both None for results that aren't one tensor); "frame",
    where the batch axis is in that shape (see `olac.frontend.frames`); "called", the name of the operation if the node
    has another one in its place.

    Attributes:
        module: the fx graph, in float32 on the CPU; runs on batches of any size.
        example: (batch, *input shape), the images that it was traced with: two, or as many as the model allows.
        problems: places that can't be compiled, found while tracing; `lift` reports them with its own.
        custom: the activations that the caller named; each of them is one node.
        batch_problem: evidence that images of a batch aren't independent; reported only if there are no other problems.
        notes: what a user should know of how the model was taken, for the report.
        advice: the path of the first layer and what it takes, if the example has another shape (`shape_advice`).
        lifted: by fx node name the ids of the IR nodes made for it, in order; filled by `lift`.
        results: by fx node name the place of its value (a tuple of places if it has several); filled by `lift`.
    """

    module: fx.GraphModule
    example: torch.Tensor
    problems: tuple[UnsupportedNode, ...] = ()
    batch_problem: UnsupportedNode | None = None
    notes: tuple[str, ...] = ()
    advice: tuple[str, str] = ("", "")
    custom: Custom | None = None
    lifted: dict[str, tuple[str, ...]] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.example.shape[1:])


@guard("tracing the model")
def trace(
    model: Any, example: torch.Tensor, activations: Activations | None = None, constants: Constants | None = None
) -> Traced:
    """Trace a model, an nn.Module or an ExportedProgram, on an example of shape (images, *image shape).

    `activations` are modules and functions that become one operation each (see `olac.frontend.custom`). `constants` are
    values of other arguments of forward, by name.

    The model stays unchanged: the tracer works on a copy in evaluation mode, in float32 on the CPU. The model may be in
    training mode, in half precision or on a GPU.

    Raises:
        UnsupportedModelError: for several inputs, complex or integer inputs, and code that can't be traced. `lift`
            finds single operations that can't be compiled.
        CalibrationError: if the model itself fails on the example.
        TypeError, ValueError: if `activations` or `constants` names something that is no part of the model.
    """
    with callers():
        if is_program(model):
            model = model.module()
        if not isinstance(model, nn.Module):
            raise TypeError(f"a torch.nn.Module is compiled, not {described(model)}. {_model_advice(model)}")
        _check_example(example)
        custom = Custom(activations, model)
        inputs = _Inputs.of(unwrapped(model), constants or {})
    _check_model(model, inputs.constants)
    with torch.no_grad(), plain_calls():
        return _trace(evaluation_copy(model), example, custom, inputs)


@dataclass(frozen=True)
class _Inputs:
    """How a model is called: with the encrypted input, and with constants by the names that forward has for them."""

    name: str
    constants: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, constants: Constants) -> _Inputs:
        """ValueError for a constant that forward does not take."""
        if not constants:
            return cls("", {})
        parameters = inspect.signature(model.forward).parameters
        names = [name for name, one in parameters.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
        any_name = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        unknown = [] if any_name else sorted(set(constants) - set(names))
        if unknown:
            raise ValueError(f"constants names {', '.join(unknown)}; forward takes {', '.join(names)}")
        free = [name for name in names if name not in constants]
        if not free:
            raise ValueError(f"constants names all arguments of forward ({', '.join(names)}): leave the input out")
        return cls(free[0], {name: _as_constant(one) for name, one in constants.items()})

    def call(self, function: Callable[..., Any], x: Any) -> Any:
        """The function's result for the encrypted input and the constants."""
        return function(**{self.name: x}, **self.constants) if self.constants else function(x)


def _as_constant(value: Any) -> Any:
    """A constant as evaluation has it: real tensors and arrays in float32 on the CPU; others as they are."""
    if not isinstance(value, (torch.Tensor, np.ndarray)):
        return value
    tensor = torch.as_tensor(value).detach().to("cpu")
    return tensor.float() if tensor.is_floating_point() else tensor


def _trace(root: nn.Module, example: torch.Tensor, custom: Custom, inputs: _Inputs) -> Traced:
    """`trace` of an evaluation copy."""

    def plain(batch: torch.Tensor) -> Any:
        return inputs.call(root, batch)

    before = _parameters(root)
    images = _images_for(root, plain, fixed_batch(root), example.detach().to("cpu", torch.float32))
    _check_same_parameters(before, _parameters(root))
    size = len(images)
    note = one_output(plain(images.clone()))[1]
    # Batches of other sizes, and other numbers in a batch of the same size.
    batches = [_distinct(images, 3 * size if size != BATCH else 3), images[-1:], 0.75 * images.flip(0)]
    expected = [_expected(plain, batch, size) for batch in batches]
    whole = None if example.dtype != torch.uint8 else _outputs(plain, example[:size].cpu())
    _drop_hooks(root)
    tracer = Tracer(images, custom, inputs.call)
    try:
        with custom.patched():
            graph = tracer.trace(root)
    except UnsupportedModelError:
        raise
    except Exception as error:
        if ran_out(error):
            raise
        node = UnsupportedNode(
            tracer.scope.module_path,
            source_of_error(error.__traceback__),
            f"can't be traced ({type(error).__name__}: {error_text(error)})",
            "Keep forward to torch operations, with control flow on shapes and constants only",
        )
        raise UnsupportedModelError([*tracer.problems, node]) from error
    _drop_dead(graph)
    try:
        module = fx.GraphModule(root, graph)
    except SyntaxError as error:
        node = UnsupportedNode("", "", "a module's name is a Python keyword", "Rename it")
        raise UnsupportedModelError([*tracer.problems, node]) from error
    find_frames(module, size)
    traced = Traced(module, images, tuple(tracer.problems), custom=custom, notes=(note,) if note else ())
    traced.advice = shape_advice(root, tuple(example.shape))
    traced.batch_problem = _compare(traced, batches, expected)
    if whole is not None and not _same(_outputs(plain, example[:size].cpu().float()), whole):
        node = UnsupportedNode(
            "",
            "",
            "the model gives other outputs for uint8 inputs than for the same numbers as floats",
            "Convert the inputs before they go to the model, and calibrate with the converted inputs",
        )
        raise UnsupportedModelError([*tracer.problems, node])
    return traced


def evaluation_copy(model: nn.Module) -> nn.Module:
    """A copy of a model in evaluation mode, in float32 on the CPU; the model itself isn't changed."""
    try:
        with _Copies():
            plain = unwrapped_copy(model)
    except UnsupportedModelError:
        raise
    except Exception as error:
        if ran_out(error):
            raise
        raise UnsupportedModelError(
            [
                UnsupportedNode(
                    "", "", f"the model can't be copied ({error_text(error)})", "Make copy.deepcopy(model) work"
                )
            ]
        ) from error
    plain = plain.to("cpu").float().eval()
    for module in plain.modules():
        if isinstance(module, fx.GraphModule):
            _silence(module)
        # Tensors held as plain attributes are no buffers, so nn.Module.to does not move them.
        for name, value in list(vars(module).items()):
            if isinstance(value, torch.Tensor):
                moved = value.detach().to("cpu")
                vars(module)[name] = moved.float() if moved.is_floating_point() else moved
    return plain


class _Copies(TorchFunctionMode):
    """Within this, deepcopy also copies tensors that were computed from others: as constants.

    Pruned modules, and those with weight_norm, hold such weights and compute them anew before each run.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = copied = tensor.detach().clone()
            return copied
        return func(*args, **(kwargs or {}))


def _silence(module: fx.GraphModule) -> None:
    """Let a graph module raise its errors without printing them. Each graph module has a class of its own."""

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return nn.Module.__call__(self, *args, **kwargs)  # looked up at each call: a tracer may have replaced it

    type(module).__call__ = call  # type: ignore[method-assign]


def _parameters(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """For each parameter a summary that tells whether it changed."""
    return {
        name: (tuple(one.shape), repr(float(one.double().sum())), repr(float(one.double().square().sum())))
        for name, one in model.named_parameters()
    }


def _check_same_parameters(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raise `UnsupportedModelError` if running the model changed parameters.

    A model that makes its parameters when it first runs has none yet: those of the copy are random.
    """
    changed = [name for name, one in after.items() if before.get(name) != one]
    if changed:
        named = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        node = UnsupportedNode(
            changed[0].rpartition(".")[0],
            "",
            f"running the model makes or changes parameters ({named})",
            "Run one batch through it before compiling, and let it leave them alone in evaluation",
        )
        raise UnsupportedModelError([node])


def _outputs(model: Callable[[torch.Tensor], Any], batch: torch.Tensor) -> Any:
    """The model's output tensor for a batch; None if it fails."""
    try:
        return one_output(model(batch.clone()))[0]  # a copy, because the model may change it in place
    except Exception:
        return None


def _expected(model: Callable[[torch.Tensor], Any], batch: torch.Tensor, size: int) -> Any:
    """The model's output tensor for a batch, part by part if it takes batches of this size only; None if it fails."""
    if size == BATCH:
        return _outputs(model, batch)
    if len(batch) % size:
        return None
    parts = [_outputs(model, part) for part in batch.split(size)]
    return torch.cat(parts) if all(isinstance(part, torch.Tensor) and part.ndim for part in parts) else None


def _images_for(
    root: nn.Module, model: Callable[[torch.Tensor], Any], fixed: int | None, example: torch.Tensor
) -> torch.Tensor:
    """The images that a model is traced with: two; or one, all of the example or another number if it takes no two.

    `fixed` is the number of images that it was exported for, or None.

    A model may be written, or exported, for batches of one size. One that takes two images, but gives one row for them,
    is traced with one image if it gives one row for that, too: there the first axis is the batch.

    Raises CalibrationError if the model fails on all of these.
    """
    first: tuple[Exception, tuple[int, ...]] | None = None
    merged: torch.Tensor | None = None
    for count in dict.fromkeys((BATCH if fixed is None else fixed, BATCH, 1, len(example), *OTHER_SIZES)):
        images = _distinct(example, count)
        try:
            output = one_output(model(images.clone()))[0]
        except Exception as error:
            if ran_out(error):
                raise
            first = first or (error, tuple(images.shape))
            continue
        if count != BATCH or fixed == BATCH or not isinstance(output, torch.Tensor) or output.shape[:1] != (1,):
            if merged is None or output.shape[:1] == (count,):
                return images
        elif merged is None:
            merged = images
    if merged is not None:
        return merged
    assert first is not None
    why, failed = first
    given = tuple(example.shape)
    _, advice = shape_advice(root, given)
    parts = "" if failed == given else f" (of the given one, {given})"
    raise CalibrationError(
        f"the model fails on a batch of shape {failed}{parts}: {type(why).__name__}: {error_text(why)}"
        + (f". {advice}" if advice else "")
    ) from why


def _model_advice(given: Any) -> str:
    """What to write for a model that is none."""
    if isinstance(given, type):
        return f"Make one: {given.__name__}(...)"
    if isinstance(given, Mapping):
        return "These may be its weights: make the model, then model.load_state_dict(weights)"
    if isinstance(given, (str, bytes)):
        return "Load the model from the file first"
    if isinstance(given, (torch.Tensor, np.ndarray)) or hasattr(given, "__getitem__"):
        return "The model comes first: olac.compile(model, loader)"
    if hasattr(given, "get_params") and hasattr(given, "fit"):
        return "Give olac.from_sklearn(estimator)"
    if callable(given):
        return "Put the function into the forward of a module"
    return "Give the model itself"


def _values_missing(module: nn.Module) -> str:
    """Why the parameters and buffers of a module have no values; "" if they have some."""
    held = [one for one in (*module._parameters.values(), *module._buffers.values()) if one is not None]
    if any(is_lazy(one) for one in held):
        return "has lazy parameters that were never initialised"
    if any(one.is_meta for one in held):
        return "has parameters on the meta device, which have no values"
    return ""


def _check_model(model: nn.Module, constants: Constants) -> None:
    missing = [(path, module, _values_missing(module)) for path, module in model.named_modules()]
    nodes = [
        UnsupportedNode(
            unwrapped_path(model, path),
            "",
            f"{type(module).__name__} {what}",
            "Run one batch through the model before it is trained and compiled: model(inputs)"
            if "lazy" in what
            else "Load its weights first: model.to_empty(device='cpu'), then load_state_dict",
        )
        for path, module, what in missing
        if what
    ]
    if nodes:
        raise UnsupportedModelError(nodes)
    nodes = refused_forms(model)
    if nodes:
        raise UnsupportedModelError(nodes)
    parameters = list(inspect.signature(unwrapped(model).forward).parameters.values())
    parameters = [p for p in parameters if p.name not in constants]
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    positional = [p for p in parameters if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
    if len(required) > 1 or not (positional or constants):
        names = ", ".join(required) or "none"
        node = UnsupportedNode(
            "",
            "",
            f"forward takes {len(required)} inputs ({names}), and a compiled model has exactly one",
            "Name the values of inputs that are constants: constants={name: tensor}. If several are encrypted, compile "
            "olac.Joined(model, example), which takes them in one vector",
        )
        raise UnsupportedModelError([node])


def _check_example(example: torch.Tensor) -> None:
    if not isinstance(example, torch.Tensor):
        advice = (
            "torch.from_numpy(x).float()" if isinstance(example, np.ndarray) else "one batch, next(iter(loader))[0]"
        )
        raise TypeError(f"the example is a torch.Tensor, not {described(example)}. Give {advice}")
    if example.dtype != torch.uint8 and not example.is_floating_point():
        node = UnsupportedNode(
            "x", "", f"inputs of type {example.dtype} are not supported", "Give real inputs, e.g. inputs.float()"
        )
        raise UnsupportedModelError([node])
    if example.ndim < 2 or example.numel() == 0:
        raise CalibrationError(
            f"an example has shape (n, features) or (n, channels, height, width), not {tuple(example.shape)}"
        )


def _distinct(images: torch.Tensor, count: int) -> torch.Tensor:
    """`count` images; if there are fewer, scaled copies are added, so that no two are alike."""
    rounds = -(-count // len(images))
    return torch.cat([images * (1 - i / (rounds + 1)) for i in range(rounds)])[:count]


def _drop_hooks(model: nn.Module) -> None:
    """Remove forward hooks, which would get proxies; `_compare` finds whether one changed the outputs."""
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()


def _drop_dead(graph: fx.Graph) -> None:
    for node in reversed(graph.nodes):
        if node.op not in ("placeholder", "output") and not node.users:
            graph.erase_node(node)


def _compare(traced: Traced, batches: list[torch.Tensor], expected: list[Any]) -> UnsupportedNode | None:
    """Run the traced module and the model on other batches; a problem if they differ."""
    _silence(traced.module)
    for batch, output in zip(batches, expected, strict=True):
        if isinstance(output, torch.Tensor) and not _same(_outputs(traced.module, batch), output):
            return UnsupportedNode(
                "",
                "",
                "the outputs for an input depend on the size of its batch, on chance, on a forward hook, or on a test "
                "of the input's type",
                "Make forward treat each input alone, without randomness, move what hooks do into modules, and leave "
                "out tests such as isinstance(x, torch.Tensor), which a traced input fails",
            )
    return None


def _same(got: Any, output: Any) -> bool:
    """Whether two outputs are the same, up to rounding.

    A squeeze() drops the batch axis of a single image in the model, and never in the traced module.
    """
    if not (isinstance(got, torch.Tensor) and isinstance(output, torch.Tensor)):
        return False
    if got.squeeze().shape != output.squeeze().shape or got.is_complex() != output.is_complex():
        return False
    ours, theirs = (torch.view_as_real(one) if one.is_complex() else one.double() for one in (got, output))
    scale = float(theirs.nan_to_num(0.0, 0.0, 0.0).abs().max()) if theirs.numel() else 0.0
    return torch.allclose(ours.reshape(theirs.shape), theirs, rtol=1e-3, atol=1e-4 * scale + 1e-12, equal_nan=True)
