"""Which loss labels have, if the caller names none."""

from __future__ import annotations

import torch
from torch.nn import functional

from olac.approximation.criterion import Criterion
from olac.errors import CalibrationError
from olac.ir.head import OutputHead
from olac.training.loop import Loss

Tensor = torch.Tensor

LOGITS = frozenset({"softmax", "log_softmax", "argmax", "sigmoid", "log_sigmoid", "max", "reshape"})
"""Last steps of the client before which outputs are logits."""


def loss_for(own: Loss | None, criterion: Criterion, head: OutputHead) -> Loss:
    """The caller's loss, or the usual one of the task, which is chosen by each batch's labels.

    Integers of shape (n,), or of maps (n, ...), are classes: cross entropy over axis 1 of the raw outputs. Numbers of
    the raw outputs' own shape are targets: binary cross entropy for a binary or multilabel task, squared errors
    otherwise. CalibrationError for labels that fit neither.
    """
    if own is not None:
        return own
    task = criterion.task
    plain = all(name in LOGITS for name in head.names)

    def loss(raw: Tensor, labels: Tensor) -> Tensor:
        whole = not labels.is_floating_point()
        if plain and whole and raw.ndim == labels.ndim + 1 and raw.shape[1] > 1:
            return functional.cross_entropy(raw, labels.long())
        if raw.numel() == labels.numel() and len(raw) == len(labels):
            given = labels.reshape(raw.shape).float()
            if plain and task in ("binary", "multilabel"):
                return functional.binary_cross_entropy_with_logits(raw, given)
            if not head:
                return functional.mse_loss(raw, given)
        shapes = f"{tuple(labels.shape)} for outputs of shape {tuple(raw.shape)}"
        raise CalibrationError(
            f"labels of type {labels.dtype} and shape {shapes} have no usual loss in a {task} task: give loss=, a "
            "function of raw outputs and labels, or a loader without labels"
        )

    return loss
