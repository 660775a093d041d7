"""A case as olac gets it: a module of one input, the images for it, and what torch gives for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import olac
from benchmarks.zoo.cases import Case
from olac.errors import UnsupportedNode
from olac.frontend import Traced, check, lift, trace
from olac.ir.graph import Graph
from olac.ir.head import OutputHead
from olac.ir.split import split_head

TRACED = 2
"""Images that a case is traced with."""


def flat(outputs: Any) -> list[torch.Tensor]:
    """All tensors of what a module returns, in order."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        return [tensor for value in outputs.values() for tensor in flat(value)]
    if isinstance(outputs, Sequence) and not isinstance(outputs, str):
        return [tensor for value in outputs for tensor in flat(value)]
    return []


@dataclass(frozen=True)
class Subject:
    """A module that olac is to compile.

    Attributes:
        case: where it comes from.
        given: the case's own module, of any number of inputs and outputs.
        model: what olac gets: the same, or `olac.Joined` of it.
    """

    case: Case
    given: nn.Module
    model: Any

    @property
    def is_joined(self) -> bool:
        """Whether inputs or outputs are joined to one."""
        return self.model is not self.given

    def example(self) -> Any:
        """An example for `olac.check`: a tensor, or a tuple of several."""
        inputs = self.case.inputs(TRACED)
        if self.is_joined:
            return self.model.join(*inputs)
        return inputs[0] if len(inputs) == 1 else inputs

    def images(self, count: int, seed: int = 0) -> torch.Tensor:
        """Images for a subject of one input."""
        inputs = self.case.inputs(count, seed)
        if self.is_joined:
            joined: torch.Tensor = self.model.join(*inputs)
            return joined
        (only,) = inputs
        return only

    def expected(self, count: int, seed: int = 0) -> torch.Tensor:
        """What the case's own module gives for these images; several outputs are one vector for each image."""
        outputs = flat(self.given(*self.case.inputs(count, seed)))
        if len(outputs) == 1:
            return outputs[0]
        return torch.cat([output.reshape(count, -1) for output in outputs], 1)

    def problems(self, client_head: bool) -> list[UnsupportedNode]:
        """What `olac.check` reports."""
        activations, example = dict(self.case.activations) or None, self.example()
        try:
            return check(self.model, example, activations=activations, client_head=client_head)
        except TypeError as error:
            if isinstance(example, torch.Tensor) or "is a torch.Tensor" not in str(error):
                raise
            # An olac that takes one tensor only says for a model of several inputs what to do.
            return check(self.model, example[0], activations=activations, client_head=client_head)

    def joined(self) -> Subject | None:
        """The same with its inputs and outputs joined to one by `olac.Joined`, which olac advises for several.

        None if there is one of each, or if they can't be joined.
        """
        maker, inputs = getattr(olac, "Joined", None), self.case.inputs(TRACED)
        if maker is None or len(inputs) == len(flat(self.given(*inputs))) == 1:
            return None
        try:
            return Subject(self.case, self.given, maker(self.given, inputs).eval())
        except (TypeError, ValueError):
            return None

    def lifted(self) -> Lifted:
        """The model as a graph; for one that `olac.check` finds no problem in."""
        head = self.case.client_head
        traced = trace(self.model, self.example(), dict(self.case.activations) or None)
        whole = lift(traced, head)
        return Lifted(traced, whole, *split_head(whole, head))


@dataclass(frozen=True)
class Lifted:
    """A traced model, all of it as a graph, and this graph without the steps of the client, which are the head."""

    traced: Traced
    whole: Graph
    graph: Graph
    head: OutputHead


def subject_of(case: Case) -> Subject:
    """A case as it is given."""
    model = case.model()
    return Subject(case, model, model)
