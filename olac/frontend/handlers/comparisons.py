"""Comparisons of encrypted numbers, which are 1 where they hold and 0 elsewhere, and choices by them.

A comparison is a step function of the difference. Its polynomial is near the step except close to 0, so numbers that
are nearly equal give something between 0 and 1.
"""

from __future__ import annotations

import operator
from typing import Any

import torch

from olac.frontend.algebra import activate, add, multiply, negative, number, plus, times
from olac.frontend.lifter import Lifter, Unsupported, Value, any_order, register_function


def _less(lifter: Lifter, a: Any, b: Any) -> Any:
    """a - b, of which one may be a constant."""
    a, b = number(a), number(b)
    if isinstance(a, Value) and isinstance(b, Value):
        return add(lifter, a, negative(lifter, b), "difference")
    return plus(lifter, a, -b) if isinstance(a, Value) else plus(lifter, negative(lifter, b), a)


@register_function(torch.gt, torch.greater, torch.ge, torch.greater_equal, operator.gt, operator.ge)
@register_function("gt", "ge", "greater", "greater_equal", "__gt__", "__ge__")
@any_order
def _greater(lifter: Lifter, a: Any, b: Any) -> Any:
    return activate(lifter, _less(lifter, a, b), "positive")


@register_function(torch.lt, torch.less, torch.le, torch.less_equal, operator.lt, operator.le)
@register_function("lt", "le", "less", "less_equal", "__lt__", "__le__")
@any_order
def _smaller(lifter: Lifter, a: Any, b: Any) -> Any:
    return _greater(lifter, b, a)


@register_function(torch.eq, torch.ne, operator.eq, operator.ne, "eq", "ne", "__eq__", "__ne__")
def _equal(lifter: Lifter, a: Any, b: Any) -> Any:
    raise Unsupported(
        "tests whether encrypted numbers are equal, and they are known up to a small error only",
        "Compare the size of the difference with a threshold: (a - b).abs() < threshold",
    )


@register_function(torch.logical_and, operator.and_, torch.bitwise_and, "logical_and", "__and__", "bitwise_and")
@any_order
def _and(lifter: Lifter, a: Any, b: Any) -> Any:
    _require_truth(a, b)
    if isinstance(a, Value) and isinstance(b, Value):
        return multiply(lifter, a, b)
    x, constant = (a, b) if isinstance(a, Value) else (b, a)
    return times(lifter, x, (torch.as_tensor(constant) != 0).double())


@register_function(torch.logical_not, operator.invert, torch.bitwise_not, "logical_not", "__invert__", "bitwise_not")
@any_order
def _not(lifter: Lifter, x: Value) -> Any:
    _require_truth(x)
    return _inverted(lifter, x)


def _inverted(lifter: Lifter, x: Value) -> Value:
    return lifter.affine(x, scale=-1.0, shift=1.0)


@register_function(torch.logical_or, operator.or_, torch.bitwise_or, "logical_or", "__or__", "bitwise_or")
@any_order
def _or(lifter: Lifter, a: Any, b: Any) -> Any:
    _require_truth(a, b)
    if isinstance(a, Value) and isinstance(b, Value):
        return _inverted(lifter, multiply(lifter, _inverted(lifter, a), _inverted(lifter, b)))
    x, constant = (a, b) if isinstance(a, Value) else (b, a)
    return _inverted(lifter, times(lifter, _inverted(lifter, x), (torch.as_tensor(constant) == 0).double()))


def _require_truth(*operands: Any) -> None:
    """Refuse encrypted numbers that are no truth values: torch would ask which of them are 0."""
    if any(isinstance(x, Value) and not x.truth for x in operands):
        raise Unsupported("asks which encrypted numbers are 0", "Compare their size with a threshold first")


@register_function(torch.where)
@any_order
def _where(lifter: Lifter, condition: Any, input: Any, other: Any) -> Any:
    """other + condition * (input - other)."""
    input, other = number(input), number(other)
    if isinstance(condition, Value):
        _require_truth(condition)
    chosen = _difference(lifter, input, other)
    if isinstance(condition, Value):
        part = multiply(lifter, condition, chosen) if isinstance(chosen, Value) else times(lifter, condition, chosen)
    else:
        part = times(lifter, chosen, torch.as_tensor(condition).double())
    return add(lifter, part, other) if isinstance(other, Value) else plus(lifter, part, other)


def _difference(lifter: Lifter, a: Any, b: Any) -> Any:
    if isinstance(a, Value) or isinstance(b, Value):
        return _less(lifter, a, b)
    return torch.as_tensor(a).double() - torch.as_tensor(b).double()


@register_function("where")
@any_order
def _method_where(lifter: Lifter, x: Any, condition: Any, other: Any) -> Any:
    return _where(lifter, condition, x, other)


@register_function(torch.masked_fill, "masked_fill")
@any_order
def _masked_fill(lifter: Lifter, input: Any, mask: Any, value: Any) -> Any:
    number = float(value)
    if number == float("-inf") or number < -1e4:
        raise Unsupported(
            f"fills with {number:g}, which stretches the range of all values",
            "Give attention its mask (F.scaled_dot_product_attention(..., attn_mask=mask)), or fill with -20",
        )
    return _where(lifter, mask, number, input)


COMPARISONS = frozenset({"gt", "ge", "lt", "le", "greater", "greater_equal", "less", "less_equal"}) | {
    "logical_and",
    "logical_or",
    "logical_not",
    "and",
    "or",
    "invert",
    "bitwise_and",
    "bitwise_or",
    "bitwise_not",
    "mul",
    "multiply",
    "rmul",
}
"""Plain names of operations whose results are truth values in torch, and 0 or 1 in a program."""
