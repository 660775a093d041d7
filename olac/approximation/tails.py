"""What keeps reconstruction from trading errors outside the values that it sees for smaller ones inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from olac.approximation.extremes import extremes, reach
from olac.approximation.floors import LOW
from olac.approximation.moments import ends
from olac.approximation.tensors import CHUNK, Weights, chebyshev, run
from olac.ir.functions import channel_functions
from olac.ir.graph import Graph, Node
from olac.ir.ops import Activation, Polynomial
from olac.polynomials.fit import TINY
from olac.system.arrays import Array

Tensor = torch.Tensor

POINTS = 33
"""Points of each channel's range at which errors are compared."""


class Tails:
    """The growth of the polynomials' errors over the ranges that their channels are expected to reach."""

    def __init__(
        self,
        original: Graph,
        approximated: Graph,
        fitted: Sequence[Node],
        sizes: Mapping[str, Tensor],
        ranges: Mapping[str, tuple[Array, Array]],
    ) -> None:
        # Zeros of a Chebyshev polynomial: they are dense at the ends, where polynomials leave the function first.
        points = np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS)
        self._parts: list[tuple[str, Tensor, Tensor, Tensor]] = []
        for node in fitted:
            op, made = original[node.id].op, node.op
            assert isinstance(op, Activation) and isinstance(made, Polynomial)
            middle, half = ranges[node.id]
            x = middle[:, None] + half[:, None] * points
            functions = channel_functions(op.function, op.parameters, node.type.shape[0])
            target = (
                functions[0](x) if len(functions) == 1 else np.stack([f(a) for f, a in zip(functions, x, strict=True)])
            )
            count = approximated.constants[made.coefficients].shape[1]
            basis = torch.stack(chebyshev(torch.from_numpy(x / made.half_width), count - 1), 1)
            wanted = torch.from_numpy(target)
            self._parts.append((made.coefficients, basis.float(), wanted.float(), sizes[node.id]))
        start = {name: torch.from_numpy(approximated.constants[name].copy()).float() for name, *_ in self._parts}
        self._before = self._errors(start)

    def _errors(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        return [
            torch.log1p(((weights[name][:, None] @ basis)[:, 0] - target).square() / size)
            for name, basis, target, size in self._parts
        ]

    def to(self, device: torch.device) -> Tails:
        """Itself, with all tensors on a device."""
        self._parts = [(name, a.to(device), b.to(device), c.to(device)) for name, a, b, c in self._parts]
        self._before = [value.to(device) for value in self._before]
        return self

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        grown = [
            (now - then).clamp_min(0).mean() for now, then in zip(self._errors(weights), self._before, strict=True)
        ]
        return torch.stack(grown).mean() if grown else torch.zeros(())


def expected_ranges(
    original: Graph, weights: Weights, degrees: Mapping[str, int], images: Tensor
) -> dict[str, tuple[Array, Array]]:
    """Middle and half width of the range that each channel of an activation's input is expected to reach.

    Activations are given with the degrees of their polynomials; see `olac.approximation.floors.LOW`.
    """
    inputs = {name: original[name].inputs[0] for name in degrees}
    seen: dict[str, list[Tensor]] = {name: [] for name in inputs}
    for part in images.split(CHUNK):
        values = run(original, weights, part, keep=frozenset(inputs.values()))
        for name, operand in inputs.items():
            seen[name].append(ends(values[operand]))
    found = {}
    for name, parts in seen.items():
        furthest = torch.cat(parts).double()
        low, high = furthest[:, :, 0].amin(0).numpy(), furthest[:, :, 1].amax(0).numpy()
        middle, half = (low + high) / 2, np.maximum((high - low) / 2, TINY)
        found[name] = middle, half * reach(extremes(furthest), middle, half, together=degrees[name] > LOW)
    return found
