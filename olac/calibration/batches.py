"""Calibration data as a stream of batches. What is no such data is refused, with the line to write in its place."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import nn

from olac.errors import CalibrationError, plain
from olac.system.internal import callers_items
from olac.system.shapes import described, shape_of

KEYS = ("images", "pixel_values")
"""Under which a dict holds its inputs."""
IN_BATCHES = "torch.utils.data.DataLoader({}, batch_size=64)"
LONGEST = 40
"""The longest key that is shown in a line to write, in characters."""


def as_inputs(item: Any, where: str) -> torch.Tensor:
    """A loader's item as inputs (n, ...) in float32 on the CPU: a tensor or array, or a tuple or dict that holds one.

    Raises CalibrationError, naming `where`, for anything else, and for NaN and infinities.
    """
    given = _inputs_of(item, where)
    if not isinstance(given, torch.Tensor):
        try:
            array = np.asanyarray(given)
            if isinstance(array, np.ma.MaskedArray) and np.any(array.mask):
                raise CalibrationError(f"{where} is an array with masked values: fill them in (array.filled(value))")
            given = torch.as_tensor(np.asarray(array))
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise CalibrationError(
                f"{where} is {described(item)}. A batch is an array or tensor of numbers (n, *input shape), or a tuple "
                f"of it and labels.{_advice_for(item)}"
            ) from error
    if given.layout is not torch.strided or given.is_meta:
        raise CalibrationError(f"{where} is a tensor without its values in memory; give it dense (inputs.to_dense())")
    if given.dtype != torch.uint8 and not given.is_floating_point():
        raise CalibrationError(
            f"{where} has type {given.dtype}, shape {tuple(given.shape)}. Give floats, as the model gets them: "
            "inputs.float()"
        )
    if given.ndim < 2:
        raise CalibrationError(
            f"{where} has shape {tuple(given.shape)}, without a batch axis before the input's. For one row or image: "
            "x[None]"
        )
    inputs: torch.Tensor = given.detach().to("cpu", torch.float32)
    if not torch.isfinite(inputs).all():
        raise CalibrationError(
            f"{where} holds NaN or infinite values, or values beyond single precision (shape {tuple(inputs.shape)}). "
            "Fill them in as for training, or leave these inputs out: x[torch.isfinite(x).flatten(1).all(1)]"
        )
    return inputs


def _inputs_of(item: Any, where: str) -> Any:
    """The part of a loader's item that holds the inputs: that of a known key, or the first of a tuple."""
    if isinstance(item, Mapping):
        known = [key for key in KEYS if key in item]
        if not known:
            raise CalibrationError(_unknown_key(item, where))
        return item[known[0]]
    if not isinstance(item, (tuple, list)):
        return item
    if not item:
        raise CalibrationError(f"{where} is empty")
    if len(item) > 1 and _is_many(item[0], 1) and _is_scalar(item[1]) and not isinstance(item[1], str):
        raise CalibrationError(
            f"{where} is one input with its label ({described(item)}), not a batch. Give "
            f"{IN_BATCHES.format('dataset')}, where dataset is what you gave"
        )
    if _is_scalar(item[0]):
        raise CalibrationError(
            f"{where} is {described(item)}. A batch is an array or tensor: give [torch.tensor(rows)] for a list of rows"
        )
    later = next((i for i, one in enumerate(item) if i and _may_be_inputs(one)), None)
    if later is not None and not _may_be_inputs(item[0]) and shape_of(item[0]) is not None:
        raise CalibrationError(
            f"{where} is {described(item)}. The inputs come first in a tuple, and the first part looks like labels. "
            f"Give {'[(x, y) for y, x in loader]' if len(item) == 2 else f'(batch[{later}] for batch in loader)'}"
        )
    return item[0]


def _unknown_key(item: Mapping[Any, Any], where: str) -> str:
    """The message for a dict that holds its inputs under another key than those that are known."""
    said = f"{where} is {described(item)}. Inputs are taken from {' or '.join(map(repr, KEYS))}"
    if "input_ids" in item:
        return (
            f"{said}. Numbers of tokens can't be encrypted: compile the part of the model after its embedding, and "
            "give (embedding(batch['input_ids']) for batch in loader)"
        )
    likely = [key for key, one in item.items() if isinstance(key, str) and _may_be_inputs(one)]
    single = any(_is_scalar(one) for one in item.values())
    likely = likely or [key for key, one in item.items() if isinstance(key, str) and single and _is_many(one, 1)]
    if likely:
        key = plain(likely[0])[:LONGEST]
        loader = IN_BATCHES.format("dataset") if single else "loader"
        return f"{said}. Give (batch[{key!r}] for batch in {loader})"
    return f"{said}: give one of them, or tensors"


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (Number, str)) or shape_of(value) == ()


def _is_many(value: Any, axes: int) -> bool:
    """Whether a value is an array of floats or bytes with at least so many axes."""
    shape, kind = shape_of(value), str(getattr(value, "dtype", ""))
    return shape is not None and len(shape) >= axes and ("float" in kind or kind.endswith("uint8"))


def _may_be_inputs(value: Any) -> bool:
    return _is_many(value, 2)


def _advice_for(item: Any) -> str:
    """The line to write for a batch of another kind; "" or a sentence after a space."""
    if isinstance(item, str):
        return " Read files first, e.g. torch.from_numpy(numpy.load(path))."
    if hasattr(item, "to_numpy"):
        return " Give table.to_numpy(dtype='float32')."
    if type(item).__module__.partition(".")[0] == "PIL":
        return " Turn pictures into tensors: transform=torchvision.transforms.ToTensor() of the dataset."
    return ""


def check_loader(loader: Any, name: str = "the calibration data") -> None:
    """Raise CalibrationError for what is no loader, with what to write instead.

    Args:
        loader: what was given for one.
        name: what it is for, in the message.
    """
    advice = _wrong_loader(loader)
    if advice:
        raise CalibrationError(f"{name} is {described(loader)}, and batches are needed. {advice}")


def _wrong_loader(loader: Any) -> str:
    """What to write in place of a loader that is none; "" for one that may be."""
    if isinstance(loader, nn.Module):
        return "The model comes first: olac.compile(model, loader)"
    if isinstance(loader, (str, bytes)):
        return "Read the file first: torch.from_numpy(numpy.load(path)).float()"
    if hasattr(loader, "to_numpy"):  # a table of pandas or polars
        return "Give table.to_numpy(dtype='float32'), without the column of labels"
    if isinstance(loader, Mapping):
        return "A dict is one batch, so give [batch]" if any(key in loader for key in KEYS) else _key_advice(loader)
    if isinstance(loader, torch.utils.data.Dataset) and not isinstance(loader, torch.utils.data.IterableDataset):
        return f"Give {IN_BATCHES.format('dataset')}"
    if isinstance(loader, (tuple, list)) and len(loader) == 2 and _is_labelled(*loader):
        return "A pair of inputs and labels is one batch: give [(x, y)], or x alone"
    if callable(loader) and not isinstance(loader, Iterable):
        return "Call it, and give what it returns: loader()"
    if not isinstance(loader, Iterable):
        if hasattr(loader, "__getitem__") and hasattr(loader, "__len__"):
            return f"Give {IN_BATCHES.format('dataset')}"
        return "Give a DataLoader, a list of tensors (n, *input shape), or one tensor"
    return ""


def _key_advice(loader: Mapping[Any, Any]) -> str:
    likely = [key for key, one in loader.items() if isinstance(key, str) and _may_be_inputs(one)]
    return f"Give data[{plain(likely[0])[:LONGEST]!r}]" if likely else "Give a DataLoader, or one tensor"


def _is_labelled(inputs: Any, labels: Any) -> bool:
    """Whether these are inputs and their labels."""
    shapes = shape_of(inputs), shape_of(labels)
    if shapes[0] is None or shapes[1] is None or not _may_be_inputs(inputs):
        return False
    return shapes[0][:1] == shapes[1][:1] and (len(shapes[1]) == 1 or not _may_be_inputs(labels))


def _batches(loader: Any) -> Iterator[torch.Tensor]:
    check_loader(loader)
    if isinstance(loader, (torch.Tensor, np.ndarray)):
        loader = [loader]
    expected: tuple[int, ...] | None = None
    for index, item in enumerate(callers_items(loader)):
        inputs = as_inputs(item, f"batch {index}")
        shape = tuple(inputs.shape[1:])
        if expected is not None and shape != expected:
            raise CalibrationError(
                f"batch {index} has inputs of shape {shape}, and the first has {expected}. All inputs need one shape: "
                "resize or pad them as the model was trained"
            )
        expected = shape
        if len(inputs):
            yield inputs


def first_batch(loader: Any) -> tuple[torch.Tensor, Iterator[torch.Tensor]]:
    """The first batch of a loader, and an iterator over all of them, the first included.

    The loader is iterated once, so it may be a generator. Raises CalibrationError for an empty loader.
    """
    stream = _batches(loader)
    first = next(stream, None)
    if first is None:
        used = (
            ". A generator that was read before has nothing left: make a new one, or give a list or a DataLoader"
            if isinstance(loader, Iterator)
            else ""
        )
        raise CalibrationError(f"the calibration data is empty ({described(loader)}){used}")
    return first, itertools.chain([first], stream)


__all__ = ["as_inputs", "check_loader", "first_batch"]
