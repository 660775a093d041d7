"""Which loss labels have, if the caller names none."""

from __future__ import annotations

import torch
from torch.nn import functional

from olac.approximation.criterion import Criterion
from olac.errors import CalibrationError
from olac.ir import head as steps
from olac.ir.head import OutputHead
from olac.training.loop import Loss

Tensor = torch.Tensor

CLASSES = ("classification", "map", "own")
"""Tasks in which integers are classes."""


def loss_for(own: Loss | None, criterion: Criterion, head: OutputHead) -> Loss:
    """The caller's loss, or the usual one of the task, which is chosen by each batch's labels.

    It is of raw outputs. Shapes, scales and shifts at the beginning of the client's steps are applied to them first.
    Integers of shape (n,), or of maps (n, ...), are then classes: cross entropy over axis 1. Numbers of the shape of
    the outputs are targets: binary cross entropy for a binary or multilabel task, squared errors otherwise.
    CalibrationError for labels that fit neither, and for classes that the outputs do not have.
    """
    if own is not None:
        return _checked(own)
    task = criterion.task

    def loss(raw: Tensor, labels: Tensor) -> Tensor:
        outputs, rest = _begun(raw, head)
        last = type(rest[0]) if rest else None
        logits = last in (None, steps.Softmax, steps.LogSoftmax, steps.ArgMax)
        if task in CLASSES and logits and not labels.is_floating_point() and outputs.ndim == labels.ndim + 1 > 1:
            least, most = int(labels.min()), int(labels.max())
            if least < 0 or most >= outputs.shape[1]:
                raise CalibrationError(f"labels of {least} to {most} are not among {outputs.shape[1]} classes")
            return functional.cross_entropy(outputs, labels.long())
        if outputs.numel() == labels.numel() and len(outputs) == len(labels):
            given = labels.reshape(outputs.shape).float()
            sigmoid = isinstance(rest[0], steps.Elementwise) and rest[0].function == "sigmoid" if rest else True
            if task in ("binary", "multilabel") and sigmoid:
                return functional.binary_cross_entropy_with_logits(outputs, given)
            if not rest:
                return functional.mse_loss(outputs, given)
        shapes = f"{tuple(labels.shape)} for outputs of shape {tuple(outputs.shape)}"
        raise CalibrationError(
            f"labels of type {labels.dtype} and shape {shapes} have no usual loss in a {task} task: give loss=, a "
            "function of raw outputs and labels, or a loader without labels"
        )

    return loss


def _begun(raw: Tensor, head: OutputHead) -> tuple[Tensor, tuple[steps.Step, ...]]:
    """Raw outputs after the shapes, scales and shifts at the beginning of a head, and the steps that are left."""
    for number, step in enumerate(head.steps):
        if isinstance(step, steps.Reshape):
            raw = raw.reshape(len(raw), *step.shape)
        elif isinstance(step, steps.Affine):
            scale, shift = (torch.tensor(part).reshape(step.shape).to(raw) for part in (step.scale, step.shift))
            raw = scale * raw + shift
        else:
            return raw, head.steps[number:]
    return raw, ()


def _checked(own: Loss) -> Loss:
    def loss(raw: Tensor, labels: Tensor) -> Tensor:
        found = own(raw, labels)
        if not isinstance(found, Tensor) or found.numel() != 1:
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"type {type(found).__name__}"
            raise CalibrationError(f"the loss returned something of {what}. Return one number, such as a mean.")
        return found.reshape(())

    return loss
