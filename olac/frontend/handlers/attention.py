"""Attention as torch writes it: products of encrypted matrices, and a softmax by fitted functions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from olac.frontend.algebra import add, along_axes, contract, drop, einsum, encrypted_softmax, plus
from olac.frontend.lifter import (
    FUNCTIONS,
    MODULES,
    Lifter,
    Unsupported,
    Value,
    any_order,
    register_function,
    register_module,
)

LARGEST = 1e4
"""Masks subtract as much where they are infinite: exponentials of that are 0."""


def _attended(
    lifter: Lifter, query: Value, key: Value, value: Value, mask: Any, scale: float, causal: bool = False
) -> tuple[Value, Value]:
    """The result of attention and its weights, over tensors (..., tokens, features) of one image."""
    free = "abcdefgh"[: len(query.shape) - 2]
    scores = _scaled(lifter, einsum(lifter, [query, key], [free + "qz", free + "kz"], free + "qk"), scale)
    if causal:
        q, k = scores.shape[-2:]
        mask = torch.ones(q, k, dtype=torch.bool).tril()
    weights = _masked_softmax(lifter, scores, mask)
    return einsum(lifter, [weights, value], [free + "qk", free + "kz"], free + "qz"), weights


def _scaled(lifter: Lifter, x: Value, factor: float) -> Value:
    """The value times a number."""
    return lifter.affine(x, scale=factor, suffix="scaled")


def _masked_softmax(lifter: Lifter, scores: Value, mask: Any) -> Value:
    """The softmax over the last axis; a mask of booleans keeps what is True, other masks are added.

    What a mask takes out is multiplied by 0 after the exponential, so that its range stays that of the scores.
    """
    kept = None
    if isinstance(mask, Value):
        scores = add(lifter, scores, mask)
    elif mask is not None:
        given = torch.as_tensor(mask)
        while given.ndim > len(scores.shape) and len(given) == 1:
            given = given[0]
        kept = given if given.dtype == torch.bool else given > -LARGEST
        if given.dtype != torch.bool:
            finite = torch.where(kept, given.double(), torch.zeros(()).double())
            if bool(finite.any()):
                scores = plus(lifter, scores, finite)
        if not bool(kept.expand(torch.broadcast_shapes(kept.shape, scores.shape)).any(-1).all()):
            raise Unsupported(
                "a mask that leaves a token nothing to attend to", "Leave at least one element in each row"
            )
        kept = None if bool(kept.all()) else kept
    return encrypted_softmax(lifter, scores, len(scores.shape) - 1, kept)


def require_order(m: Any, *values: Value) -> None:
    """Refuse a module over sequences whose batch axis is not where its `batch_first` says."""
    at = 0 if m.batch_first else 1
    if any(x.placed and (x.frame.at, x.frame.merged) != (at, 1) for x in values):
        raise Unsupported(
            f"{type(m).__name__} with the batch axis elsewhere than batch_first={m.batch_first} says",
            "Make it with batch_first=True, or give it (steps, batch, features)",
        )


@register_function(F.scaled_dot_product_attention)
@any_order
def _scaled_dot_product_attention(
    lifter: Lifter,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if not all(isinstance(one, Value) for one in (query, key, value)):
        raise Unsupported("attention with constants", "Write it as products of matrices and a softmax")
    given = (query, key, value)
    if any(one.frame.at >= one.rank - 2 for one in given):
        raise Unsupported("attention over the batch axis", "Keep the batch axis before tokens and features")
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        raise Unsupported("attention with groups of heads", "Repeat keys and values by repeat_interleave")
    if len({one.shape[:-2] for one in given}) > 1:
        raise Unsupported("attention over tensors with different heads", "Repeat keys and values to all heads")
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    mask = _without_batch(lifter, attn_mask, query)
    return _attended(lifter, query, key, value, mask, factor, is_causal)[0]


def _without_batch(lifter: Lifter, mask: Any, like: Value) -> Any:
    """A constant mask for one image."""
    if not isinstance(mask, torch.Tensor):
        return mask
    at = mask.ndim - (like.rank - like.frame.at)
    if at < 0 or like.frame.merged > 1:
        return mask
    if not bool((mask == mask.narrow(at, 0, 1)).all()):
        raise Unsupported("a mask differs between the inputs of a batch", "Use one mask for all inputs")
    return mask.select(at, 0)


@register_module(nn.MultiheadAttention)
@any_order
def _multihead_attention(
    lifter: Lifter,
    m: nn.MultiheadAttention,
    query: Value,
    key: Value,
    value: Value,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    if key_padding_mask is not None:
        raise Unsupported("attention with a padding mask for each input", "Calibrate and run with full sequences")
    if m.bias_k is not None or m.add_zero_attn:
        raise Unsupported("attention with bias_k or add_zero_attn", "Leave them out")
    given = (query, key, value)
    if not all(isinstance(one, Value) for one in given) or any(len(one.shape) != 2 for one in given):
        raise Unsupported("attention with constants, or without a batch axis", "Give (batch, tokens, features)")
    require_order(m, *given)
    size = m.embed_dim
    if m._qkv_same_embed_dim:
        weights = m.in_proj_weight.split(size)
    else:
        weights = (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
    biases = (None,) * 3 if m.in_proj_bias is None else m.in_proj_bias.split(size)
    heads: list[Value] = []
    for x, weight, bias in zip(given, weights, biases, strict=True):
        made = contract(lifter, x, 1, weight, bias)
        split = lifter.reshape(made, (made.shape[0], m.num_heads, size // m.num_heads))
        heads.append(lifter.permute(split, (1, 0, 2)))
    mask = attn_mask
    if isinstance(mask, torch.Tensor):
        if mask.ndim == 3:
            mask = _one_of_batch(lifter, mask, m.num_heads)
        mask = ~mask if mask.dtype == torch.bool else mask  # here True takes out
    made, found = _attended(lifter, heads[0], heads[1], heads[2], mask, 1 / math.sqrt(size // m.num_heads))
    joined = lifter.reshape(lifter.permute(made, (1, 0, 2)), (made.shape[1], size))
    out = contract(lifter, joined, 1, m.out_proj.weight, m.out_proj.bias)
    if not need_weights:
        return out, None
    mean = drop(lifter, along_axes(lifter, found, [0], None), [0]) if average_attn_weights else found
    return out, mean


def _one_of_batch(lifter: Lifter, mask: torch.Tensor, heads: int) -> torch.Tensor:
    """A mask (batch * heads, tokens, tokens) as (heads, tokens, tokens)."""
    each = mask.reshape(-1, heads, *mask.shape[1:])
    if not bool((each == each[:1]).all()):
        raise Unsupported("a mask differs between the inputs of a batch", "Use one mask for all inputs")
    return each[0]


@register_module(nn.TransformerEncoderLayer)
@any_order
def _encoder_layer(
    lifter: Lifter,
    m: nn.TransformerEncoderLayer,
    src: Value,
    src_mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool = False,
) -> Any:
    require_order(m.self_attn, src)

    def attended(x: Value) -> Value:
        made: Value = _multihead_attention(
            lifter, m.self_attn, x, x, x, src_key_padding_mask, need_weights=False, attn_mask=src_mask
        )[0]
        return made

    def forward(x: Value) -> Value:
        hidden = contract(lifter, x, 1, m.linear1.weight, m.linear1.bias)
        hidden = _activated(lifter, m.activation, hidden)
        return contract(lifter, hidden, 1, m.linear2.weight, m.linear2.bias)

    def norm(module: nn.Module, x: Value) -> Value:
        return _activated(lifter, module, x)

    if m.norm_first:
        x = add(lifter, src, attended(norm(m.norm1, src)))
        return add(lifter, x, forward(norm(m.norm2, x)))
    x = norm(m.norm1, add(lifter, src, attended(src)))
    return norm(m.norm2, add(lifter, x, forward(x)))


def _activated(lifter: Lifter, activation: Any, x: Value) -> Value:
    """An activation or a norm that a layer holds, as a function or as a module."""
    if isinstance(activation, nn.Module):
        handler = next((MODULES[base] for base in type(activation).__mro__ if base in MODULES), None)
        if handler is None:
            raise Unsupported(f"the activation {type(activation).__name__}", "Use a supported activation")
        made: Value = handler(lifter, activation, x)
        return made
    if activation not in FUNCTIONS:
        raise Unsupported(f"the activation {getattr(activation, '__name__', activation)}", "Use a supported activation")
    result: Value = FUNCTIONS[activation](lifter, x)
    return result


@register_module(nn.TransformerEncoder)
@any_order
def _encoder(
    lifter: Lifter,
    m: nn.TransformerEncoder,
    src: Value,
    mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool | None = None,
) -> Any:
    for layer in m.layers:
        if type(layer).forward is not nn.TransformerEncoderLayer.forward:
            raise Unsupported("a TransformerEncoder of layers with a forward of their own", "Call the layers in a loop")
        src = _encoder_layer(lifter, layer, src, mask, src_key_padding_mask)
    return src if m.norm is None else _activated(lifter, m.norm, src)
