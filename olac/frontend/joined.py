"""Models of several inputs or outputs: as one vector in and one vector out, which is what a program has."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from olac.frontend.unwrap import named_parts, unwrapped
from olac.ir.names import Names, part_names
from olac.system.internal import callers

Inputs: TypeAlias = torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor]


class Joined(nn.Module):
    """A model of several inputs or outputs as a module of one input and one output.

    Several inputs become one vector for each image, which is encrypted as a whole; several outputs become one vector,
    which the client splits after decryption. A single input or output stays as it is.

        joined = olac.Joined(model, {"image": images, "table": rows})
        program = olac.compile(joined, joined.join(image=images, table=rows))
        outputs = joined.split(client.decrypt(result))

    Slices of the input are linear, and are composed with the layers that read them.

    Args:
        model: it is not copied, and shares its weights.
        example: a tuple of tensors (images, ...) in the order of forward's arguments, or a dict of tensors by their
            names; or one tensor, for a model of several outputs. The model is run on it once.
        constants: values of other arguments of forward, by name. They become part of the program.

    Raises:
        TypeError: the example is none of these, or the model gives something else than real tensors.
        ValueError: tensors of the example have different numbers of images, or an output has none for each.
    """

    def __init__(self, model: nn.Module, example: Inputs, constants: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        with callers():
            self.model = model
            self._names, tensors = _named(model, example)
            self._constants: list[str] = []
            self._others: dict[str, Any] = {}
            for name, one in (constants or {}).items():
                if isinstance(one, torch.Tensor):
                    self.register_buffer(f"constant_{name}", one)
                    self._constants.append(name)
                else:
                    self._others[name] = one
            if len({len(one) for one in tensors}) != 1:
                sizes = ", ".join(str(len(one)) for one in tensors)
                raise ValueError(f"the inputs have batches of {sizes}: give as many of each")
            self._shapes = [tuple(one.shape[1:]) for one in tensors]
            training = model.training
            try:
                with torch.no_grad():
                    model.eval()
                    output = self._call(dict(zip(self._names, tensors, strict=True)))
            finally:
                model.train(training)
            self._kind = type(output)
            parts = {"": output} if isinstance(output, torch.Tensor) else named_parts(output)
            self._parts = _shapes_of(parts, len(tensors[0]))

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs, in the order of the vector."""
        return tuple(self._names)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs, in the order of the vector; places for a tuple, "" for a single tensor."""
        return tuple(self._parts)

    def join(self, *inputs: Any, **named: Any) -> torch.Tensor:
        """Inputs, in order or by name, as the one input (images, numbers); a single input as it is.

        Args:
            inputs: tensors or arrays (images, *shape), in the order of `input_names`.
            named: the same by name.

        Raises:
            TypeError: an input is missing, or there is one too many.
            ValueError: an input has another shape than in the example.
        """
        given = dict(zip(self._names, inputs, strict=False)) | named
        if set(given) != set(self._names) or len(inputs) + len(named) != len(self._names):
            raise TypeError(f"the inputs are {', '.join(self._names)}; {len(inputs)} and {', '.join(named)} were given")
        tensors = [torch.as_tensor(given[name]) for name in self._names]
        for name, one, shape in zip(self._names, tensors, self._shapes, strict=True):
            if tuple(one.shape[1:]) != shape or len(one) != len(tensors[0]):
                raise ValueError(f"{name} has shape {tuple(one.shape)}, expected ({len(tensors[0])}, *{shape})")
        if len(tensors) == 1:
            return tensors[0]
        return torch.cat([one.reshape(len(one), -1).float() for one in tensors], 1)

    def split(self, outputs: Any) -> Any:
        """Outputs of a program, an array or tensor (images, numbers), in the structure that the model gives.

        Without the axis of images if `outputs` has none. A single output as it is.

        Args:
            outputs: of `Client.decrypt`, `simulate` or this module.

        Raises:
            ValueError: outputs of another length.
        """
        if issubclass(self._kind, torch.Tensor):
            return outputs
        sizes = [math.prod(shape) for shape in self._parts.values()]
        if outputs.shape[-1] != sum(sizes):
            raise ValueError(f"outputs of shape {tuple(outputs.shape)}: expected {sum(sizes)} numbers for each input")
        parts, at = {}, 0
        for (name, shape), size in zip(self._parts.items(), sizes, strict=True):
            parts[name] = outputs[..., at : at + size].reshape(*outputs.shape[:-1], *shape)
            at += size
        return _in_structure(self._kind, parts)

    def in_order(self, example: Inputs) -> list[torch.Tensor]:
        """The tensors of an example in the order of `input_names`.

        Args:
            example: as for the constructor.
        """
        return _named(self.model, example)[1]

    def _call(self, inputs: dict[str, Any]) -> Any:
        constants = {name: getattr(self, f"constant_{name}") for name in self._constants}
        return self.model(**inputs, **constants, **self._others)

    def forward(self, x: Any) -> Any:
        """The model's outputs for one batch of joined inputs, joined.

        Args:
            x: what `join` gave.
        """
        if len(self._shapes) == 1:
            output = self._call({self._names[0]: x})
        else:
            pieces, at = {}, 0
            for name, shape in zip(self._names, self._shapes, strict=True):
                size = math.prod(shape)
                pieces[name] = x[:, at : at + size].reshape(-1, *shape)
                at += size
            output = self._call(pieces)
        if issubclass(self._kind, torch.Tensor):
            return output.float()  # comparisons give truth values
        parts = named_parts(output) or {}
        rows = [parts[name].float().reshape(-1, math.prod(shape)) for name, shape in self._parts.items()]
        return torch.cat(rows, 1)


def names_of(model: Any) -> Names:
    """The names of the numbers that a joined model gives, if it has several outputs; none for other models."""
    return part_names(model._parts) if isinstance(model, Joined) and len(model._parts) > 1 else ()


def is_several(example: Any) -> bool:
    """Whether an example is of several inputs: a tuple, a list or a dict of tensors."""
    parts = example.values() if isinstance(example, Mapping) else example if isinstance(example, (tuple, list)) else ()
    return bool(parts) and all(isinstance(one, torch.Tensor) for one in parts)


def _named(model: nn.Module, example: Inputs) -> tuple[list[str], list[torch.Tensor]]:
    """The names of forward's arguments that an example gives, and its tensors."""
    if isinstance(example, torch.Tensor):
        example = (example,)
    if not is_several(example):
        raise TypeError(f"the example is a {type(example).__name__}, expected tensors in a tuple or a dict")
    if isinstance(example, Mapping):
        return list(example), list(example.values())
    parameters = inspect.signature(unwrapped(model).forward).parameters.values()
    names = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    if len(names) < len(example):
        raise TypeError(f"the example has {len(example)} tensors, and forward takes {', '.join(names) or 'none'}")
    return names[: len(example)], list(example)


def _is_real(part: Any) -> bool:
    """Whether a part is a tensor of numbers, or of truth values, which are 0 and 1."""
    return isinstance(part, torch.Tensor) and (part.is_floating_point() or part.dtype == torch.bool)


def _shapes_of(parts: Mapping[str, Any] | None, images: int) -> dict[str, tuple[int, ...]]:
    if not parts or not all(_is_real(one) for one in parts.values()):
        kinds = ", ".join(type(one).__name__ for one in (parts or {}).values()) or "nothing"
        raise TypeError(f"the model gives {kinds}: a tensor, or a tuple, dict or dataclass of real tensors is expected")
    wrong = [name for name, one in parts.items() if one.shape[:1] != (images,)]
    if wrong:
        shape = tuple(parts[wrong[0]].shape)
        raise ValueError(f"the output {wrong[0]} has shape {shape}, without one row for each input")
    return {name: tuple(one.shape[1:]) for name, one in parts.items()}


def _in_structure(kind: Any, parts: dict[str, Any]) -> Any:
    """Parts as the class of the model's own output, or as a dict for a class of some other package."""
    if issubclass(kind, (tuple, list)):
        return kind(parts.values()) if not hasattr(kind, "_fields") else kind(**parts)
    return dict(parts)
