"""Wrappers around models, modules, calls and outputs that change nothing of what is computed: olac looks through them.

These are DataParallel and DistributedDataParallel, torch.compile, checkpointing of activations, observers of
quantisation that only watch, and outputs that hold one tensor in a tuple, a dict or a class of their own.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.utils.checkpoint
from torch import fx, nn

from olac.frontend.exported import Exported, is_exported
from olac.frontend.replaced import replaced_functions

_HELD_BY_NAME = ("_orig_mod", "_checkpoint_wrapped_module")
"""Names under which torch.compile and torch's checkpoint wrapper hold the module that they wrap."""


def inner_name(module: nn.Module) -> str:
    """The name under which a wrapper holds its module; "" for a module that is no wrapper."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "module"
    return next((name for name in _HELD_BY_NAME if name in _children(module)), "")


def _children(module: nn.Module) -> dict[str, nn.Module | None]:
    """The modules that a module itself holds; none for TorchScript, which is refused."""
    return {} if isinstance(module, torch.jit.ScriptModule) else module._modules


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside all wrappers of a model; the model itself if there is none."""
    while name := inner_name(model):
        model = getattr(model, name)
    return model


def unwrapped_path(model: nn.Module, path: str) -> str:
    """The qualified name that a module has once all wrappers are taken off: "features.0" for "module.features.0"."""
    kept: list[str] = []
    at: Any = model
    for part in path.split(".") if path else ():
        if not isinstance(at, nn.Module) or part != inner_name(at):
            kept.append(part)
        at = _children(at).get(part) if isinstance(at, nn.Module) else None
    return ".".join(kept)


def unwrapped_copy(model: nn.Module) -> nn.Module:
    """A deep copy of a model in which each wrapper gave way to the module inside.

    Observers became the identity, and graphs of ATen operations modules that call torch's own functions.
    """
    memo: dict[int, Any] = {}
    # From the inside outwards: the copy of a module holds the copies that are known for its parts.
    for module in reversed(list(model.modules())):
        if name := inner_name(module):
            inner = copy.deepcopy(_children(module)[name], memo)
            assert inner is not None
            inner._forward_hooks.update(module._forward_hooks)
            inner._forward_pre_hooks.update(module._forward_pre_hooks)
            memo[id(module)] = inner
        elif _only_watches(module):
            memo[id(module)] = nn.Identity()
        elif is_exported(module):
            memo[id(module)] = Exported(module)
    plain = copy.deepcopy(model, memo)
    for module in plain.modules():
        _restore_forward(module)
    return plain


def _restore_forward(module: nn.Module) -> None:
    """Undo `module.forward = torch.compile(module.forward)`, whose function belongs to the module that was copied."""
    original = getattr(vars(module).get("forward"), "_torchdynamo_orig_callable", None)
    if getattr(original, "__func__", None) is type(module).forward:
        del module.forward


def _only_watches(module: nn.Module) -> bool:
    """Whether a module is an observer of torch.ao: it returns its input, and notes statistics for a quantisation."""
    observers = sys.modules.get("torch.ao.quantization.observer")
    return observers is not None and isinstance(module, observers.ObserverBase)


# Calls ---------------------------------------------------------------------------------------------------------------

_CHECKPOINT_OPTIONS = (
    "use_reentrant",
    "preserve_rng_state",
    "context_fn",
    "determinism_check",
    "debug",
    "early_stop",
)


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `torch.utils.checkpoint.checkpoint` computes: it takes its own options out, and calls the function."""
    return function(*args, **{name: value for name, value in kwargs.items() if name not in _CHECKPOINT_OPTIONS})


@contextlib.contextmanager
def plain_calls() -> Iterator[None]:
    """Within this, checkpointed and compiled functions are called as they were written."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced_functions({torch.utils.checkpoint.checkpoint: _call}))
        if hasattr(torch.compiler, "set_stance"):  # torch 2.6
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        dynamo = sys.modules.get("torch._dynamo")  # it is loaded if anything was compiled
        if dynamo is not None:
            stack.enter_context(dynamo.config.patch(error_on_nested_fx_trace=False))
        yield


# Outputs -------------------------------------------------------------------------------------------------------------


def named_parts(output: Any) -> dict[str, Any] | None:
    """The parts of a tuple, a list, a dict or a dataclass by name, those that are None left out; None for others.

    The names are those of the dict, the namedtuple or the dataclass; parts of a plain tuple or list have their place.
    """
    if isinstance(output, Mapping):
        parts = {str(name): part for name, part in output.items()}
    elif isinstance(output, (tuple, list)):
        names = getattr(output, "_fields", None) or [str(place) for place in range(len(output))]
        parts = dict(zip(names, output, strict=True))
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        parts = {one.name: getattr(output, one.name) for one in dataclasses.fields(output)}
    else:
        return None
    return {name: part for name, part in parts.items() if part is not None}


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """A sparse or nested tensor as one that has all its numbers in memory; others unchanged."""
    if tensor.is_nested:
        padded: torch.Tensor = torch.nested.to_padded_tensor(tensor, 0.0)
        return padded
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def one_output(output: Any) -> tuple[Any, str]:
    """The tensor of an output that has only one, or that has logits, and a note if other parts were left out.

    An output of several tensors without logits is returned as it is; `lift` refuses it.
    """
    parts = named_parts(output)
    if parts is None:
        return dense(output) if isinstance(output, torch.Tensor) else output, ""
    if len(parts) == 1:
        return one_output(next(iter(parts.values())))
    logits = parts.get("logits")
    if isinstance(logits, (torch.Tensor, fx.Proxy)):
        others = ", ".join(name for name in parts if name != "logits")
        return logits, f"of the outputs of the model, logits are computed, and {others} left out"
    return output, ""
