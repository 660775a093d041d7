"""Matrices: linear layers on any axis, products with constants, products of encrypted tensors."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from olac.frontend.algebra import add, contract, einsum, plus
from olac.frontend.lifter import Lifter, Unsupported, Value, any_order, register_function, register_module
from olac.ir.ops import Array

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@register_function(F.linear)
@any_order
def linear(lifter: Lifter, input: Any, weight: Any, bias: Any = None) -> Any:
    """A matrix on the last axis."""
    if not isinstance(input, Value) or not isinstance(weight, torch.Tensor) or isinstance(bias, Value):
        made = _matmul(lifter, input, _transposed(lifter, weight))
        return made if bias is None else _plus(lifter, made, bias)
    if weight.ndim != 2:
        raise Unsupported(f"a linear layer with a weight of shape {tuple(weight.shape)}", "Use a weight (out, in)")
    axis = lifter.axes(-1, input)[0]
    return contract(lifter, input, axis, weight, bias)


def _transposed(lifter: Lifter, weight: Any) -> Any:
    if not isinstance(weight, Value):
        return weight.T
    raise Unsupported("a linear layer whose weights are encrypted", "Use matmul for a product of encrypted tensors")


def _plus(lifter: Lifter, x: Value, other: Any) -> Value:
    return add(lifter, x, other) if isinstance(other, Value) else plus(lifter, x, other)


@register_module(nn.Linear)
@any_order
def _module_linear(lifter: Lifter, m: nn.Linear, x: Value) -> Any:
    return linear(lifter, x, m.weight, m.bias)


@register_function(F.bilinear)
def _bilinear(lifter: Lifter, input1: Any, input2: Any, weight: Any, bias: Any = None) -> Any:
    made = _einsum(lifter, "...i,oij,...j->...o", input1, weight, input2)
    return made if bias is None else _plus(lifter, made, bias)


@register_function(torch.matmul, operator.matmul, torch.bmm, torch.mm, torch.mv, torch.dot, torch.inner)
@register_function("matmul", "bmm", "mm", "mv", "dot", "inner", "__matmul__", "__rmatmul__")
@any_order
def _matmul(lifter: Lifter, a: Any, b: Any) -> Any:
    if lifter.called == "rmatmul":
        a, b = b, a
    ranks = [one.rank if isinstance(one, Value) else one.ndim for one in (a, b)]
    if lifter.called == "inner" and ranks[1] > 1:
        raise Unsupported("an inner product of several rows", "Use matmul")
    if min(ranks) < 1:
        raise Unsupported("a product of matrices with a number", "Use *")
    text = {1: "k"}
    before = LETTERS[: max(ranks) - 2] if max(ranks) > 2 else ""
    left = text.get(ranks[0], before[len(before) - (ranks[0] - 2) :] + "xk")
    right = text.get(ranks[1], before[len(before) - (ranks[1] - 2) :] + "ky")
    result = before + ("x" if ranks[0] > 1 else "") + ("y" if ranks[1] > 1 else "")
    return _einsum(lifter, f"{left},{right}->{result}", a, b)


@register_function(torch.addmm, "addmm", torch.baddbmm, "baddbmm")
@any_order
def _addmm(lifter: Lifter, input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    made = lifter.affine(_matmul(lifter, mat1, mat2), scale=float(alpha))
    if not beta:
        return made
    return _plus(lifter, made, lifter.affine(input, scale=float(beta)) if isinstance(input, Value) else beta * input)


@register_function(torch.einsum)
@any_order
def _torch_einsum(lifter: Lifter, equation: str, *operands: Any) -> Any:
    if not isinstance(equation, str):
        raise Unsupported("an einsum by lists of axes", 'Write it as an equation, such as "bij,bjk->bik"')
    given = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    return _einsum(lifter, equation.replace(" ", ""), *given)


def _einsum(lifter: Lifter, equation: str, *operands: Any) -> Value:
    """An einsum whose subscripts name torch's axes; axes of length 1 are repeated."""
    inputs, _, result = equation.partition("->")
    texts = inputs.split(",")
    if "..." in equation:
        ranks = [one.rank if isinstance(one, Value) else one.ndim for one in operands]
        hidden = max(r - len(t.replace("...", "")) for r, t in zip(ranks, texts, strict=True) if "..." in t)
        free = [c for c in LETTERS.upper() if c not in equation][:hidden]
        filled = []
        for rank, text in zip(ranks, texts, strict=True):
            count = rank - len(text.replace("...", ""))
            filled.append(text.replace("...", "".join(free[hidden - count :])))
        texts, result = filled, result.replace("...", "".join(free))
    if "->" not in equation:
        every = "".join(texts)
        result = "".join(sorted(c for c in set(every) if every.count(c) == 1))
    batch = {text[one.frame.at] for one, text in zip(operands, texts, strict=True) if isinstance(one, Value)}
    merged = {one.frame.merged for one in operands if isinstance(one, Value)}
    if len(batch) != 1 or len(merged) != 1 or next(iter(batch)) not in result:
        raise Unsupported("multiplies or sums over the batch axis", "Treat each input alone")
    (images,) = batch
    alone = merged == {1}  # the batch axis holds no axis of an image
    parts: list[Value | Array] = [
        one if isinstance(one, Value) else _constant(lifter, one, text, images, not alone)
        for one, text in zip(operands, texts, strict=True)
    ]
    names = [text.replace(images, "") if alone else text for text in texts]
    result = result.replace(images, "") if alone else result
    parts, names = _without_ones(lifter, parts, names)
    return einsum(lifter, parts, names, result)


def _constant(lifter: Lifter, constant: Any, text: str, images: str, merged: bool) -> Array:
    """A constant operand without the batch axis; its length must be 1 or the batch's, with the same numbers for all."""
    array: Array = constant.detach().double().cpu().numpy()
    if images not in text:
        return array
    at = text.index(images)
    first = array.take([0], axis=at)
    if merged or not ((array == first).all()):
        raise Unsupported("a constant differs between the inputs of a batch", "Use one constant for all inputs")
    return first.squeeze(at)


def _without_ones(
    lifter: Lifter, parts: list[Value | Array], names: list[str]
) -> tuple[list[Value | Array], list[str]]:
    """Operands without the axes of length 1 that others have longer."""
    longest: dict[str, int] = {}
    for one, text in zip(parts, names, strict=True):
        for letter, size in zip(text, one.shape, strict=True):
            longest[letter] = max(size, longest.get(letter, 1))
    for number, (one, text) in enumerate(zip(parts, names, strict=True)):
        kept = [a for a, c in enumerate(text) if one.shape[a] == longest[c]]
        if len(kept) < len(text):
            shape = tuple(one.shape[a] for a in kept)
            parts[number] = lifter.reshape(one, shape) if isinstance(one, Value) else one.reshape(shape)
            names[number] = "".join(text[a] for a in kept)
    return parts, names
