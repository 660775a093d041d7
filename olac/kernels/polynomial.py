"""Polynomials at minimal depth, ceil(log2(degree + 1)) levels, with a coefficient for every slot.

The recursion splits p = q T_n + r at a power of two n, all in the Chebyshev basis (as baby-step giant-step evaluation
after Paterson and Stockmeyer does), so coefficients stay of the size of p on [-1, 1]. Each part is asked for at the
level and the exact scale at which it is added, so nothing is rescaled twice and no scale drifts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from olac.backends.base import Array, Ciphertext, Evaluator
from olac.errors import VerificationError
from olac.ir.layout import TensorLayout
from olac.kernels.base import Kernel, Value


def depth_of(degree: int) -> int:
    """Levels of a polynomial of that degree with coefficients that aren't 1."""
    return max(1, degree.bit_length())


def divide(coefficients: Array, n: int) -> tuple[Array, Array]:
    """q and r with p = q T_n + r in the Chebyshev basis, n <= degree < 2n; shapes (degree + 1, ...)."""
    high = coefficients[n:]
    quotient = 2.0 * high
    quotient[0] = high[0]
    remainder = coefficients[:n].copy()
    for k in range(1, len(high)):  # T_n T_k = (T_{n+k} + T_{n-k}) / 2
        remainder[n - k] -= high[k]
    return quotient, remainder


class PolynomialKernel(Kernel):
    """p(x) in every slot, for x in [-1, 1]; slots that hold no element stay zero.

    Shifted copies are made on the way, at no level: the powers of x are rotated by each copy's shift, and coefficients
    that are zero outside a copy put it together (`_raw`).

    Args:
        coefficients: Chebyshev coefficients, shape (channels or 1, degree + 1).
        layout: of the result; that of the operand but for the step of the copies, which is 0 there.
    """

    def __init__(self, coefficients: Array, layout: TensorLayout) -> None:
        self._coefficients = _in_slots(coefficients, layout)
        self._layout = layout
        self.depth = depth_of(self._coefficients.shape[1] - 1)

    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        (x,) = operands
        return tuple(
            _evaluate(evaluator, part, coefficients, level, evaluator.parameters.scale(max(0, level)), self._layout)
            for part, coefficients in zip(x, self._coefficients, strict=True)
            for level in (part.state.level - self.depth,)
        )


class PolynomialProductKernel(Kernel):
    """x p(z) in every slot, for z in [-1, 1]; slots that hold no element stay zero.

    Args:
        coefficients: Chebyshev coefficients, shape (channels or 1, degree + 1).
        layout: of both operands and of the result.
    """

    def __init__(self, coefficients: Array, layout: TensorLayout) -> None:
        self._coefficients = _in_slots(coefficients, layout)
        self.depth = depth_of(self._coefficients.shape[1] - 1) + 1

    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        return tuple(
            self._product(evaluator, x, z, coefficients)
            for x, z, coefficients in zip(*operands, self._coefficients, strict=True)
        )

    def _product(
        self, evaluator: Evaluator[Any, Any], x: Ciphertext[Any], z: Ciphertext[Any], coefficients: Array
    ) -> Ciphertext[Any]:
        parameters = evaluator.parameters
        start = min(x.state.level, z.state.level)
        level = start - self.depth
        if level < 0:
            raise VerificationError(f"a product with a polynomial takes {self.depth} levels, {start} are left")
        factor = evaluator.drop(x, level + 1)
        # The scale of p(z) makes up for whatever x's is, so that the rescale leaves the canonical one.
        scale = parameters.scale(level) * parameters.primes[level + 1] / factor.state.scale
        value = _evaluate(evaluator, evaluator.drop(z, start), coefficients, level + 1, scale)
        return evaluator.normalize(evaluator.multiply(factor, value))


def _in_slots(coefficients: Array, layout: TensorLayout) -> Array:
    """Coefficients (channels or 1, degree + 1) as (ciphertexts, degree + 1, slots), the degree the true one or 1."""
    if coefficients.shape[1] == 1:
        coefficients = np.pad(coefficients, ((0, 0), (0, 1)))
    degree = coefficients.shape[1] - 1
    while degree > 1 and not np.any(coefficients[:, degree]):
        degree -= 1
    shape = layout.shape
    columns = coefficients[:, : degree + 1].T.reshape(degree + 1, -1, *(1,) * (len(shape) - 1))
    return np.stack([layout.expand(np.broadcast_to(column, shape)) for column in columns], axis=1)


@dataclass(frozen=True)
class _Copy:
    """The powers T_1, T_2, T_4, ... of x, rotated for some copies of the result, and the slots of these copies."""

    powers: Sequence[Ciphertext[Any]]
    inside: npt.NDArray[np.bool_] | None = None

    def restrict(self, coefficients: Array) -> Array:
        """Coefficients (..., slots), zero outside the copies."""
        return coefficients if self.inside is None else np.where(self.inside, coefficients, 0.0)


def _evaluate(
    evaluator: Evaluator[Any, Any],
    x: Ciphertext[Any],
    coefficients: Array,
    level: int,
    scale: float,
    layout: TensorLayout | None = None,
) -> Ciphertext[Any]:
    """p(x) at a level and a scale; coefficients (degree + 1, slots). A layout may ask for shifted copies of it."""
    powers = [x]
    while 2 ** len(powers) < len(coefficients):
        square = evaluator.normalize(evaluator.multiply(powers[-1], powers[-1]))
        powers.append(evaluator.add_scalar(evaluator.add(square, square), -1.0))
    copies = [_Copy(powers)] if layout is None or not layout.step else _shifted(evaluator, powers, layout)
    return _finish(evaluator, *_raw(evaluator, copies, coefficients, level, scale))


def _shifted(evaluator: Evaluator[Any, Any], powers: list[Ciphertext[Any]], layout: TensorLayout) -> list[_Copy]:
    shifts = [c * layout.step for c in range(layout.distinct_copies)]
    rotated = [evaluator.rotate_hoisted(power, shifts) for power in powers]
    number = np.arange(layout.slots) // layout.period % layout.distinct_copies
    return [_Copy([power[shift] for power in rotated], number == c) for c, shift in enumerate(shifts)]


def _finish(evaluator: Evaluator[Any, Any], product: Ciphertext[Any], constant: Array) -> Ciphertext[Any]:
    result = evaluator.normalize(product)
    if not np.any(constant):
        return result
    state = result.state
    return evaluator.add_plain(result, evaluator.encode(lambda: constant, state.level, state.scale))


def _raw(
    evaluator: Evaluator[Any, Any],
    copies: Sequence[_Copy],
    coefficients: Array,
    level: int,
    scale: float,
) -> tuple[Ciphertext[Any], Array]:
    """p without its constant, before the rescale that brings it to `level` and `scale`; and the constant, by slot.

    The sum over copies of p restricted to each: the products of ciphertexts are relinearised together.
    """
    prime = evaluator.parameters.primes[level + 1]
    degree = len(coefficients) - 1
    if degree <= 1:
        product = _multiply_plain(evaluator, copies, 0, coefficients[degree], level, scale * prime)
        return product, coefficients[0] if degree else np.zeros_like(coefficients[0])
    k = degree.bit_length() - 1
    quotient, remainder = divide(coefficients, 1 << k)
    if len(quotient) == 1:
        product = _multiply_plain(evaluator, copies, k, quotient[0], level, scale * prime)
    else:
        pairs = []
        for copy in copies:
            power = evaluator.drop(copy.powers[k], level + 1)
            part = [_Copy(copy.powers)], copy.restrict(quotient)
            inner = _finish(evaluator, *_raw(evaluator, *part, level + 1, scale * prime / power.state.scale))
            pairs.append((inner, power))
        product = evaluator.multiply_sum(pairs)
    if not np.any(remainder[1:]):
        return product, remainder[0]
    while not np.any(remainder[-1]):
        remainder = remainder[:-1]
    rest, constant = _raw(evaluator, copies, remainder, level, scale)
    return evaluator.add(product, rest), constant


def _multiply_plain(
    evaluator: Evaluator[Any, Any], copies: Sequence[_Copy], k: int, factors: Array, level: int, scale: float
) -> Ciphertext[Any]:
    """The sum over copies of T_(2^k) times their factors, of that scale, one level above `level`."""

    def term(copy: _Copy) -> Ciphertext[Any]:
        power = evaluator.drop(copy.powers[k], level + 1)
        plain = evaluator.encode(lambda: copy.restrict(factors), level + 1, scale / power.state.scale)
        return evaluator.multiply_plain(power, plain)

    return functools.reduce(evaluator.add, map(term, copies))
