"""From PyTorch models to the IR: tracing, lifting, and finding what can't be compiled."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch

from olac.errors import CalibrationError, UnsupportedModelError, UnsupportedNode
from olac.frontend import handlers as handlers  # it registers liftings
from olac.frontend import last_steps as last_steps
from olac.frontend.custom import Activations
from olac.frontend.exported import is_program
from olac.frontend.joined import Joined, is_several
from olac.frontend.lift import lift
from olac.frontend.lifter import Unsupported, register_function, register_module
from olac.frontend.source import error_text
from olac.frontend.trace import Constants, Traced, evaluation_copy, trace
from olac.system.memory import ran_out

__all__ = [
    "Activations",
    "Constants",
    "Joined",
    "Traced",
    "Unsupported",
    "check",
    "lift",
    "register_function",
    "register_module",
    "trace",
]


def check(
    model: Any,
    example: Any,
    activations: Activations | None = None,
    client_head: bool = True,
    constants: Constants | None = None,
) -> list[UnsupportedNode]:
    """Every place in a model that can't be compiled; empty if the whole model can.

    Args:
        model: as for `olac.compile`.
        example: a tensor (images, *image shape). For a model of several inputs a tuple or a dict of tensors; the answer
            then also says how such a model is compiled.
        activations, constants: as for `olac.compile`.
        client_head: whether the client may compute the model's last steps.

    Raises:
        CalibrationError: the model itself fails on the example.
        TypeError, ValueError: an argument is of the wrong type, or names something that the model has not.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about the model
        if isinstance(example, (tuple, list)) and len(example) == 1:
            (example,) = example
        if is_several(example):
            return _check_several(model, example, activations, client_head, constants)
        try:
            lift(trace(model, example, activations, constants), client_head)
        except UnsupportedModelError as error:
            return list(error.nodes)
        except CalibrationError as error:
            if isinstance(example, torch.Tensor) and _runs(model, example, constants or {}):
                advice = "Give an example as compile gets it: (n, features) or (n, channels, height, width)"
                return [UnsupportedNode("", "", str(error), advice)]
            raise
    return []


def _runs(model: Any, example: torch.Tensor, constants: Constants) -> bool:
    """Whether torch itself runs the model on the example as it is."""
    try:
        plain = evaluation_copy(model.module() if is_program(model) else model)
        with torch.no_grad():
            plain(example.clone(), **constants)
    except Exception:
        return False
    return True


def _check_several(
    model: Any, example: Any, activations: Activations | None, client_head: bool, constants: Constants | None
) -> list[UnsupportedNode]:
    """`check` for an example of several inputs."""
    found = (
        []
        if len(example) == 1
        else [
            UnsupportedNode(
                "",
                "",
                f"the example has {len(example)} inputs, and a program has one",
                "Compile olac.Joined(model, example), which takes them in one vector",
            )
        ]
    )
    try:
        joined = Joined(model, example, constants)
    except (TypeError, ValueError) as error:
        return [*found, UnsupportedNode("", "", error_text(error), "Change what the model takes or gives")]
    except Exception as error:
        if ran_out(error):
            raise
        said = f"{type(error).__name__}: {error_text(error)}"
        raise CalibrationError(f"the model fails on the example: {said}") from error
    named = {f"model.{key}" if isinstance(key, str) else key: one for key, one in (activations or {}).items()}
    try:
        lift(trace(joined, joined.join(*joined.in_order(example)), named), client_head)
    except UnsupportedModelError as error:
        inner = (dataclasses.replace(one, path=one.path.removeprefix("model").removeprefix(".")) for one in error.nodes)
        found += inner
    return found
