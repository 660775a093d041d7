"""Forms of a model that olac refuses as a whole: quantised, TorchScript, sharded. Each comes with the way back."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from olac.errors import UnsupportedNode
from olac.frontend.unwrap import unwrapped_path

_QUANTISED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.ao.nn.sparse.quantized",
    "torch.ao.nn.quantizable",
)
_TRAINED_FOR_IT = ("torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat")

_BACK_FROM_QUANTISED = (
    "Compile the model as it was before quantisation: build it again and load the float weights. If only the quantised "
    "model is left, its weights can be read by weight().dequantize()"
)
_BACK_FROM_QAT = (
    "Compile the float model: take to_float() of each such module, or load the trained weights into the model as it "
    "was before prepare_qat"
)
_BACK_FROM_SCRIPT = "Compile the nn.Module that was scripted or traced; its state_dict() loads into the original class"
_BACK_FROM_SHARDS = "Gather the weights (a full state_dict) and load them into the model without sharding"


def refused_forms(model: nn.Module) -> list[UnsupportedNode]:
    """Every module that is quantised, trained for quantisation, TorchScript or sharded; empty for other models.

    A module that is listed stands for all within it.
    """
    found: list[UnsupportedNode] = []
    listed: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(f"{one}." if one else "") for one in listed):
            continue
        refusal = _refusal(module)
        if refusal is not None:
            listed.append(path)
            found.append(UnsupportedNode(unwrapped_path(model, path), "", *refusal))
    return found


def _refusal(module: nn.Module) -> tuple[str, str] | None:
    """What is wrong with a module itself and what to do; None if nothing is."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        name = getattr(module, "original_name", "") or kind.__name__
        how = "traced" if kind.__name__ == "TopLevelTracedModule" else "scripted"
        return f"{name} is a TorchScript module ({how})", _BACK_FROM_SCRIPT
    if kind.__module__.startswith(_TRAINED_FOR_IT):
        return f"{kind.__name__} is trained for quantisation (QAT)", _BACK_FROM_QAT
    if _rounds(module):
        return f"{kind.__name__} rounds values as a quantised model does", _BACK_FROM_QAT
    if kind.__module__.startswith(_QUANTISED) or any(_is_quantised(one) for one in _tensors(module)):
        return f"{kind.__name__} is quantised", _BACK_FROM_QUANTISED
    if kind.__module__.startswith("torch.distributed.fsdp") or any(_is_sharded(one) for one in _tensors(module)):
        return f"{kind.__name__} has weights that are sharded over processes", _BACK_FROM_SHARDS
    return None


def _tensors(module: nn.Module) -> list[Any]:
    own = (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
    return [one for one in own if isinstance(one, torch.Tensor)]


def _is_quantised(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of one of torch's quantised types, or of a class of torchao."""
    return tensor.is_quantized or type(tensor).__module__.partition(".")[0] == "torchao"


def _is_sharded(tensor: torch.Tensor) -> bool:
    return type(tensor).__module__.startswith("torch.distributed.")


def _rounds(module: nn.Module) -> bool:
    """Whether a module is a FakeQuantize of torch.ao. None can exist unless its module was imported."""
    home = sys.modules.get("torch.ao.quantization.fake_quantize")
    return home is not None and isinstance(module, home.FakeQuantizeBase)
