"""A polynomial as a torch module, and the penalty that keeps its inputs where it is good.

Both may be used in a training loop of the caller's own. `olac.compile` takes a model that holds these modules: they
become polynomials as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import nn

from olac.approximation.bounded import bounded, bounded_alone, bounded_polynomial
from olac.approximation.tensors import polynomial
from olac.approximation.whitened import folding
from olac.frontend.lifter import Lifter, Value, register_module
from olac.ir.ops import Polynomial
from olac.system.arrays import Array

Tensor = torch.Tensor

STEEP, FURTHEST = 1.0, 1e6
"""The penalty grows as an exponential up to this many half ranges outside the range, and as a logarithm from there: an
image that diverges must not decide the gradient. Values beyond the second count as if they were there."""
POINTS = 257


class PolynomialActivation(nn.Module):
    """p(x) = sum_k c_k T_k(x / half_width), with Chebyshev polynomials of the first kind, in place of an activation.

    In evaluation it is exactly that polynomial. In training, results beyond `bound` are compressed to their logarithm,
    so that an image that diverges does not stop the others.

    Attributes:
        coefficients: (channels, degree + 1), or (1, degree + 1) for all channels alike; they are trained.
        half_width: a number, of the interval that the Chebyshev polynomials are for.
        low, high: (channels,) or (1,), the range that inputs should stay in; `RangePenalty` asks for it.
        bound: see above; infinite for none.
        largest: magnitude of the results of a quadratic that must fold into a single square, and so take one level: its
            curvature is then at least what that needs (see `olac.polynomials.fit.quadratic`). 0 for no such demand.

    Args:
        coefficients: as the attribute; an array or a tensor.
        half_width: as the attribute.
        low, high: as the attributes; None for -half_width and half_width.
        bound, largest: as the attributes.

    Raises:
        ValueError: coefficients that are not finite or not a matrix, a half width that is not positive, or an empty
            range.
    """

    coefficients: nn.Parameter
    half_width: Tensor
    bound: Tensor
    largest: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        coefficients: Array | Tensor,
        half_width: float = 1.0,
        low: Array | Tensor | float | None = None,
        high: Array | Tensor | float | None = None,
        *,
        bound: float = math.inf,
        largest: float = 0.0,
    ) -> None:
        super().__init__()
        given = coefficients.detach().float().clone() if isinstance(coefficients, Tensor) else _single(coefficients)
        if given.ndim != 2 or given.shape[1] < 1 or not torch.isfinite(given).all():
            raise ValueError(f"coefficients of shape (channels or 1, degree + 1), finite, not {tuple(given.shape)}")
        if not (math.isfinite(half_width) and half_width > 0):
            raise ValueError(f"half_width {half_width} is not a positive number")
        self.coefficients = nn.Parameter(given)
        for name, number in (("half_width", half_width), ("bound", bound), ("largest", largest)):
            self.register_buffer(name, torch.tensor(float(number), dtype=torch.float64))
        for name, value, default in (("low", low, -half_width), ("high", high, half_width)):
            end = torch.as_tensor(default if value is None else value, dtype=torch.float32)
            self.register_buffer(name, end.detach().clone().reshape(-1))
        if not (self.high > self.low).all():
            raise ValueError("the range of a channel is empty: its high is not above its low")
        self.watched = False
        """Whether `excess` is computed in training."""
        self.excess: Tensor | None = None
        """How far the last inputs left the range, for `RangePenalty`; with gradients."""
        self.target: Tensor | None = None
        """What the next results are compared with in training, of the inputs' shape, or None."""
        self.error: Tensor | None = None
        """The sum of squared differences of each image from `target`, (n,); with gradients."""

    @staticmethod
    def of(
        function: Callable[[Array], Array], degree: int, low: float, high: float, channels: int = 1
    ) -> PolynomialActivation:
        """The least-squares polynomial of a function over float64 arrays, on low ... high.

        Args:
            function: of float64 arrays, element by element.
            degree: of the polynomial.
            low, high: the ends of the range.
            channels: rows of coefficients, all the same at first.
        """
        half = max(abs(low), abs(high))
        x: Array = np.asarray(np.linspace(low, high, POINTS), dtype=np.float64)
        fitted = np.asarray(chebyshev.chebfit(x / half, function(x), degree), dtype=np.float64)
        return PolynomialActivation(np.repeat(fitted[None], channels, axis=0), half, low, high)

    def current(self) -> Tensor:
        """The coefficients that are used: those of a quadratic that must fold have the curvature for it."""
        largest = float(self.largest)
        return folding(self.coefficients, largest) if largest > 0 else self.coefficients

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files do not hold what the last pass left."""
        return self.__dict__ | {"excess": None, "target": None, "error": None}

    def forward(self, x: Tensor) -> Tensor:
        """The polynomial of each value: (n, channels, ...) to the same shape.

        Args:
            x: the activation's input.
        """
        coefficients, half, bound = self.current(), float(self.half_width), float(self.bound)
        if not self.training:
            return polynomial(x, coefficients, half)
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if self.watched:
                self.excess = self._excess(x)
            target, self.target = self.target, None
            if target is not None and x.device.type == "cpu":
                value, self.error = bounded_polynomial(x, coefficients, half, bound, target)
                return value
            if x.device.type == "cpu" and math.isfinite(bound):
                made = bounded_alone(x, coefficients, half, bound)
            else:
                made = bounded(polynomial(x, coefficients, half), bound)
            if target is not None:
                self.error = (made - target).square().flatten(1).sum(1)
            return made

    def _excess(self, x: Tensor) -> Tensor:
        """The mean over images and channels of exp(e) - 1, e being how far a value is outside the range.

        e is in units of the half range. The exponential is the boundary loss of arXiv 2505.11589; see `STEEP`. Only the
        two furthest values of an image and channel count: they decide whether it diverges, and the others cost time.
        """
        middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        flat = x.flatten(2) if x.ndim > 2 else x[:, :, None]
        with torch.no_grad():
            ends = torch.stack([flat.argmin(2), flat.argmax(2)], 2)
        t = (flat.gather(2, ends) - middle[:, None]) / half[:, None]
        beyond = (t.abs() - 1).nan_to_num(nan=FURTHEST, posinf=FURTHEST).clamp(0, FURTHEST)
        return (torch.expm1(beyond.clamp_max(STEEP)) + torch.log1p((beyond - STEEP).clamp_min(0))).mean()

    def extra_repr(self) -> str:
        """Degree, channels and half width, for print(model)."""
        channels, count = self.coefficients.shape
        return f"degree={count - 1}, channels={channels}, half_width={float(self.half_width):.4g}"


def _single(values: Array) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


class RangePenalty:
    """How far the inputs of a model's polynomials leave their ranges: a term of a loss, for any training loop.

        penalty = RangePenalty(model)
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels) + 0.1 * penalty()

    Make it after the model was copied or moved. Without a pass in training mode before the call, the penalty is 0. The
    exponential form is the boundary loss of arXiv 2505.11589.

    Args:
        model: holds the `PolynomialActivation`s that are watched.

    Raises:
        ValueError: the model has none.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [m for m in model.modules() if isinstance(m, PolynomialActivation)]
        if not self._modules:
            raise ValueError("the model has no PolynomialActivation")
        for module in self._modules:
            module.watched = True

    def __call__(self) -> Tensor:
        """The mean over the model's polynomials since the last call, a scalar."""
        seen = [module.excess for module in self._modules if module.excess is not None]
        for module in self._modules:
            module.excess = None
        return torch.stack(seen).mean() if seen else torch.zeros(())


@register_module(PolynomialActivation)
def _lifted(lifter: Lifter, module: PolynomialActivation, x: Value) -> Value:
    return lifter.add(Polynomial(lifter.constant("coefficients", module.current()), float(module.half_width)), x)
