"""Polynomials at minimal depth, ceil(log2(degree + 1)) levels, with a coefficient for every slot.

The recursion splits p = q T_n + r at a power of two n, all in the Chebyshev basis (as baby-step giant-step evaluation
after Paterson and Stockmeyer does), so coefficients stay of the size of p on [-1, 1]. Each part is computed at the
level and the exact scale at which it is added, so nothing is rescaled twice and no scale drifts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from olac.backends.base import Array, Ciphertext, Evaluator
from olac.errors import VerificationError
from olac.ir.layout import TensorLayout
from olac.kernels.base import Kernel, Value, add_slots


def depth_of(degree: int) -> int:
    """Levels of a polynomial of this degree whose coefficients aren't 1."""
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


class _Evaluation(Kernel):
    """The evaluation of a polynomial in every slot.

    Args:
        coefficients: Chebyshev coefficients, shape (channels or 1, degree + 1).
        layout: of the result; operands have the same, but their copies are not shifted.
    """

    def __init__(self, coefficients: Array, layout: TensorLayout) -> None:
        self._coefficients = _trimmed(coefficients)
        self._layout = layout
        self.depth = depth_of(self._coefficients.shape[1] - 1)

    @property
    def table_bytes(self) -> int:
        return self._coefficients.nbytes

    def _in_slots(self, page: int) -> Array:
        """The coefficients of one ciphertext, shape (degree + 1, slots)."""
        return self._layout.expand_channels(self._coefficients, page)


class PolynomialKernel(_Evaluation):
    """p(x) in every slot, for x in [-1, 1]; slots that hold no element stay zero.

    Shifted copies are made on the way and take no level: the powers of x are rotated by each copy's shift, and
    coefficients that are zero outside a copy combine them. Only the part of the polynomial that takes all levels is
    evaluated copy by copy. The rest has a level to spare: it uses powers of x with all copies combined first.
    """

    @property
    def held(self) -> int:
        """Powers of the operand, rotated for each of the shifted copies."""
        return self._layout.distinct_copies * self.depth if self._layout.step else 0

    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        (x,) = operands
        return tuple(
            _evaluate(
                evaluator, part, self._in_slots(page), level, evaluator.parameters.scale(max(0, level)), self._layout
            )
            for page, part in enumerate(x)
            for level in (part.state.level - self.depth,)
        )


class PolynomialProductKernel(_Evaluation):
    """x p(z) in every slot, for z in [-1, 1]; slots that hold no element stay zero."""

    def __init__(self, coefficients: Array, layout: TensorLayout) -> None:
        super().__init__(coefficients, layout)
        self.depth += 1

    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        return tuple(
            self._product(evaluator, x, z, self._in_slots(page))
            for page, (x, z) in enumerate(zip(*operands, strict=True))
        )

    def _product(
        self, evaluator: Evaluator[Any, Any], x: Ciphertext[Any], z: Ciphertext[Any], coefficients: Array
    ) -> Ciphertext[Any]:
        parameters = evaluator.parameters
        start = min(x.state.level, z.state.level)
        level = start - self.depth
        if level < 0:
            raise VerificationError(f"a product with a polynomial takes {self.depth} levels, {start} are left")
        factor = evaluator.level_reduce(x, level + 1)
        # The scale of p(z) compensates that of x, so that the rescale gives the canonical one.
        scale = parameters.scale(level) * parameters.primes[level + 1] / factor.state.scale
        value = _evaluate(evaluator, evaluator.level_reduce(z, start), coefficients, level + 1, scale)
        return evaluator.rescale(evaluator.multiply(factor, value))


def _trimmed(coefficients: Array) -> Array:
    """Coefficients (channels or 1, degree + 1) up to the true degree, at least 1."""
    if coefficients.shape[1] == 1:
        coefficients = np.pad(coefficients, ((0, 0), (0, 1)))
    degree = coefficients.shape[1] - 1
    while degree > 1 and not np.any(coefficients[:, degree]):
        degree -= 1
    return coefficients[:, : degree + 1]


class _Powers:
    """T_1, T_2, T_4, ... of a value in [-1, 1]; each is made, or reduced to a level, when it is first needed.

    Args:
        level: that of the value.
        value: makes the value.
    """

    def __init__(self, evaluator: Evaluator[Any, Any], level: int, value: Callable[[], Ciphertext[Any]]) -> None:
        self.level = level
        self._evaluator = evaluator
        self._value = value
        self._made: list[Ciphertext[Any]] = []
        self._reduced: dict[tuple[int, int], Ciphertext[Any]] = {}

    def __getitem__(self, k: int) -> Ciphertext[Any]:
        """T_(2^k), k levels below the value."""
        evaluator = self._evaluator
        if not self._made:
            self._made.append(self._value())
        while len(self._made) <= k:
            square = evaluator.rescale(evaluator.multiply(self._made[-1], self._made[-1]))
            self._made.append(evaluator.add_scalar(evaluator.add(square, square), -1.0))
        return self._made[k]

    def at(self, k: int, level: int) -> Ciphertext[Any]:
        """T_(2^k) at a level. A level reduction may take as long as a rescale, so each is made once."""
        if (k, level) not in self._reduced:
            self._reduced[k, level] = self._evaluator.level_reduce(self[k], level)
        return self._reduced[k, level]

    def restrict(self, coefficients: Array) -> Array:
        """Coefficients (..., slots), unchanged."""
        return coefficients


class _Rotations:
    """Powers rotated by several steps; the rotations of a power are made when one is first needed."""

    def __init__(self, evaluator: Evaluator[Any, Any], powers: _Powers, steps: Sequence[int]) -> None:
        self._evaluator = evaluator
        self._powers = powers
        self._steps = steps
        self._made: dict[int, Mapping[int, Ciphertext[Any]]] = {}

    def at(self, k: int, level: int, step: int) -> Ciphertext[Any]:
        """T_(2^k) rotated by a step."""
        if k not in self._made:
            self._made[k] = self._evaluator.rotate_hoisted(self._powers[k], self._steps)
        return self._evaluator.level_reduce(self._made[k][step], level)


@dataclass(frozen=True)
class _Copy:
    """One of the shifted copies of a result: the slots that it takes, and the powers rotated for it."""

    rotations: _Rotations
    step: int
    inside: npt.NDArray[np.bool_]

    def at(self, k: int, level: int) -> Ciphertext[Any]:
        """T_(2^k), rotated for this copy, at a level."""
        return self.rotations.at(k, level, self.step)

    def restrict(self, coefficients: Array) -> Array:
        """Coefficients (..., slots), zero outside this copy."""
        return np.where(self.inside, coefficients, 0.0)


_Part = _Powers | _Copy
"""The powers for a polynomial, or for its restriction to one copy."""


def _evaluate(
    evaluator: Evaluator[Any, Any],
    x: Ciphertext[Any],
    coefficients: Array,
    level: int,
    scale: float,
    layout: TensorLayout | None = None,
) -> Ciphertext[Any]:
    """p(x) at a level and a scale; coefficients (degree + 1, slots). The layout may have shifted copies."""
    powers = _Powers(evaluator, x.state.level, lambda: x)
    if layout is None or not layout.step:
        return _finish(evaluator, *_raw(evaluator, powers, [powers], coefficients, level, scale))
    steps = [c * layout.step for c in range(layout.distinct_copies)]
    rotations = _Rotations(evaluator, powers, steps)
    number = np.arange(layout.slots) // layout.period % layout.distinct_copies
    copies = [_Copy(rotations, step, number == c) for c, step in enumerate(steps)]
    whole = _Powers(evaluator, powers.level - 1, lambda: _combine(evaluator, copies, powers.level - 1))
    return _finish(evaluator, *_raw(evaluator, whole, copies, coefficients, level, scale))


def _combine(evaluator: Evaluator[Any, Any], copies: Sequence[_Copy], level: int) -> Ciphertext[Any]:
    """x with each copy rotated as in the result, at a level and its canonical scale."""
    parameters = evaluator.parameters
    ones = np.ones(evaluator.slots)
    scale = parameters.scale(level) * parameters.primes[level + 1]
    return evaluator.rescale(_multiply_plain(evaluator, copies, 0, ones, level, scale))


def _finish(evaluator: Evaluator[Any, Any], product: Ciphertext[Any], constant: Array) -> Ciphertext[Any]:
    result = evaluator.rescale(product)
    return add_slots(evaluator, result, constant) if np.any(constant) else result


def _raw(
    evaluator: Evaluator[Any, Any],
    whole: _Powers,
    copies: Sequence[_Part],
    coefficients: Array,
    level: int,
    scale: float,
) -> tuple[Ciphertext[Any], Array]:
    """p without its constant, before the rescale that brings it to `level` and `scale`; and the constant, by slot.

    In `whole`, all copies are in their places. If its powers are too low for p, the result is the sum over copies of p
    restricted to each copy: their products of ciphertexts are relinearised together.
    """
    prime = evaluator.parameters.primes[level + 1]
    degree = len(coefficients) - 1
    parts = [whole] if depth_of(degree) <= whole.level - level else copies
    if degree <= 1:
        product = _multiply_plain(evaluator, parts, 0, coefficients[degree], level, scale * prime)
        return product, coefficients[0] if degree else np.zeros_like(coefficients[0])
    k = degree.bit_length() - 1
    quotient, remainder = divide(coefficients, 1 << k)
    if len(quotient) == 1:
        product = _multiply_plain(evaluator, parts, k, quotient[0], level, scale * prime)
    else:
        pairs = []
        for part in parts:
            power = part.at(k, level + 1)
            restricted, inner_scale = part.restrict(quotient), scale * prime / power.state.scale
            inner = _finish(evaluator, *_raw(evaluator, whole, [part], restricted, level + 1, inner_scale))
            pairs.append((inner, power))
        product = evaluator.multiply_sum(pairs)
    if not np.any(remainder[1:]):
        return product, remainder[0]
    while not np.any(remainder[-1]):
        remainder = remainder[:-1]
    rest, constant = _raw(evaluator, whole, copies, remainder, level, scale)
    return evaluator.add(product, rest), constant


def _multiply_plain(
    evaluator: Evaluator[Any, Any], parts: Sequence[_Part], k: int, factors: Array, level: int, scale: float
) -> Ciphertext[Any]:
    """The sum over parts of T_(2^k) times their factors, at that scale and one level above `level`."""

    def term(pair: tuple[_Part, Ciphertext[Any]]) -> Ciphertext[Any]:
        part, power = pair
        plain = evaluator.encode(lambda: part.restrict(factors), level + 1, scale / power.state.scale)
        return evaluator.multiply_plain(power, plain)

    pairs = [(part, part.at(k, level + 1)) for part in parts]
    return functools.reduce(evaluator.add, evaluator.each(term, pairs))
