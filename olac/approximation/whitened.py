"""The units of reconstruction's steps: parameters are whitened by the second moments of what they multiply."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from olac.approximation.common import readers
from olac.approximation.criterion import Spread
from olac.approximation.floors import LOW
from olac.approximation.least_squares import Root, whitening
from olac.approximation.sweep import batched, by_channel
from olac.approximation.tails import POINTS
from olac.approximation.tensors import chebyshev
from olac.ir.graph import Graph, last_reads
from olac.ir.ops import Conv2d, Input, Linear, Polynomial, PolynomialProduct
from olac.polynomials.fit import SQUARE, TINY
from olac.system.arrays import Array

Tensor = torch.Tensor

DAMPING = 0.1
"""In the whitening of weights, directions with less than this share of the mean variance are not amplified."""
LEAST_OWN = 0.05
"""Steps of a channel are at least as large as if its values had this share of the layer's standard deviation."""
SPREAD, REACHED = 0.05, 0.05
"""Weights of uniform spreads in the whitening of polynomials: over the layer's typical values and, above degree `LOW`,
over the range that each channel is expected to reach. Without the second, steps are large in directions that are small
where the values are, and large beyond."""


class Whitened:
    """The trained parameters, of fitted polynomials and weights: each is its old value plus a whitened step.

    Args:
        graph: the approximated graph.
        weights: its constants.
        images: from whose values the moments are.
        ranges: middle and half width that each channel is expected to reach, of the polynomials that are trained.
        refit: whether weights are trained.
        spread: how errors of outputs are scaled.
    """

    def __init__(
        self,
        graph: Graph,
        weights: dict[str, Tensor],
        images: Tensor,
        ranges: Mapping[str, tuple[Array, Array]],
        refit: bool,
        spread: Spread = "together",
    ) -> None:
        self.weights = weights
        self.theta: dict[str, Tensor] = {}
        self.map: dict[str, Tensor | Root] = {}
        self._groups: dict[str, int] = {}
        self._sizes: dict[str, Tensor] = {}
        self._largest: dict[str, float] = {}
        trained = [node.op for node in graph.nodes if isinstance(node.op, Polynomial) and node.id in ranges]
        self._small = any(weights[op.coefficients].shape[1] - 1 > LOW for op in trained)
        live = {graph.inputs[0].id: images}
        done = last_reads(graph.nodes)
        for node in graph.nodes:
            if isinstance(node.op, Input):
                continue
            operands = [live[i] for i in node.inputs]
            live[node.id] = batched(node, operands, weights, graph)
            if isinstance(node.op, Polynomial) and node.id in ranges:
                self._polynomial(node.op, operands[0], live[node.id], *ranges[node.id])
            elif isinstance(node.op, Conv2d | Linear) and refit:
                last = not any(isinstance(n.op, Polynomial | PolynomialProduct) for n in readers(graph, node))
                self._linear(node.op, operands[0], live[node.id], last and spread == "each")
            for operand in done[node.id]:
                del live[operand]

    def _add(self, name: str, mapping: Tensor | Root) -> None:
        self.theta[name] = torch.zeros_like(self.weights[name], requires_grad=True)
        self.map[name] = mapping.float()

    def _polynomial(self, op: Polynomial, x: Tensor, y: Tensor, middle: Array, half: Array) -> None:
        degree = self.weights[op.coefficients].shape[1] - 1
        shared = len(self.weights[op.coefficients]) == 1
        t = (x.reshape(1, -1) if shared else by_channel(x)).double() / op.half_width
        basis = torch.stack(chebyshev(t, degree), 1)
        second = basis @ basis.mT / t.shape[1]
        centre, deviation = float(t.mean()), float(t.std().clamp_min(1e-6))
        typical = torch.stack(
            chebyshev(torch.linspace(-1, 1, POINTS, dtype=torch.float64) * deviation + centre, degree)
        )
        second = second + SPREAD * (typical @ typical.T / POINTS)
        if degree > LOW:
            reached = (middle[:, None] + half[:, None] * np.linspace(-1, 1, POINTS)) / op.half_width
            everywhere = torch.stack(chebyshev(torch.from_numpy(reached), degree), 1)
            uniform = everywhere @ everywhere.mT / POINTS
            second = second + REACHED * (uniform.mean(0, keepdim=True) if shared else uniform)
        size = second.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        lower = torch.linalg.cholesky(second + 1e-10 * size * torch.eye(degree + 1, dtype=torch.float64))
        eye = torch.eye(degree + 1, dtype=torch.float64).expand_as(lower)
        self._add(op.coefficients, torch.linalg.solve_triangular(lower.mT, eye, upper=True) * float(y.std()))
        largest = max(float(y.abs().max()), TINY)
        if degree == 2 and bool(folds(self.weights[op.coefficients], largest).all()):
            self._largest[op.coefficients] = largest

    def _linear(self, op: Conv2d | Linear, x: Tensor, y: Tensor, each: bool) -> None:
        """Steps of a row are in units of the layer's values, or of its own, which makes them smaller.

        Its own are taken with `each`, for outputs that count alike; with groups, because what reads a small channel of
        a depthwise convolution multiplies it by large weights; and if a polynomial is above degree `LOW`, because its
        errors grow fast. Squares and cubics gain by larger steps.
        """
        weight = self.weights[op.weight]
        root, size = whitening(op, x, weight, DAMPING)
        self._groups[op.weight] = op.groups if isinstance(op, Conv2d) else 1
        columns = weight[0].numel()
        self._add(op.weight, root.scaled(float(y.std()) / (size.sqrt() * math.sqrt(columns))))
        if op.bias is not None:
            self._add(op.bias, y.std())
        if each or self._small or self._groups[op.weight] > 1:
            own = (by_channel(y).std(1) / y.std().clamp_min(TINY)).clamp_min(LEAST_OWN)
            for name in (op.weight,) if op.bias is None else (op.weight, op.bias):
                self._sizes[name] = own.reshape(-1, *(1,) * (self.weights[name].ndim - 1))

    def to(self, device: torch.device) -> Whitened:
        """Itself, with all tensors on a device."""
        self.weights = {name: value.to(device) for name, value in self.weights.items()}
        self.theta = {name: value.detach().to(device).requires_grad_() for name, value in self.theta.items()}
        self.map = {name: value.to(device) for name, value in self.map.items()}
        self._sizes = {name: value.to(device) for name, value in self._sizes.items()}
        return self

    def current(self, thetas: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """All constants, differentiable in theta; for the present theta, or for another."""
        made = dict(self.weights)
        for name, theta in (self.theta if thetas is None else thetas).items():
            mapping = self.map[name]
            if isinstance(mapping, Root):
                groups = self._groups[name]
                step = mapping.after(theta.reshape(groups, len(theta) // groups, -1)).reshape(theta.shape)
            elif mapping.ndim == 0:
                step = mapping * theta
            else:
                step = (mapping @ theta[:, :, None])[:, :, 0]
            if name in self._sizes:
                step = self._sizes[name] * step
            made[name] = self.weights[name] + step
            if name in self._largest:
                made[name] = folding(made[name], self._largest[name])
        return made


def _least_curvature(slope: Tensor, largest: float) -> Tensor:
    return (slope.square() / (8 * SQUARE * largest)).clamp_min(1e-9 * largest)


def folds(coefficients: Tensor, largest: float) -> Tensor:
    """Which channels' quadratics fold."""
    return coefficients[:, 2].abs() >= 0.99 * _least_curvature(coefficients[:, 1], largest)


def folding(coefficients: Tensor, largest: float) -> Tensor:
    """Quadratics with the curvature that their squares need to fold; see `olac.polynomials.fit.quadratic`."""
    constant, slope, curvature = coefficients.unbind(1)
    least = _least_curvature(slope, largest)
    bent = torch.where(curvature < 0, -1.0, 1.0) * torch.maximum(curvature.abs(), least)
    return torch.stack([constant, slope, bent], 1)
