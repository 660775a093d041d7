"""Recurrent layers, step by step: each step of a sequence has its own activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from olac.frontend.algebra import activate, add, joined, linear_of, multiply, negative, take_slices
from olac.frontend.handlers.attention import require_order
from olac.frontend.lifter import Lifter, Unsupported, Value, any_order, register_module

State = tuple[Value | None, ...]


def _steps(lifter: Lifter, x: Value) -> list[Value]:
    """The steps of a sequence (steps, features), each (features,)."""
    steps, size = x.shape
    return [take_slices(lifter, x, [(t, t + 1, 1), (0, size, 1)], (size,)) for t in range(steps)]


def _gates(
    lifter: Lifter, x: Value, hidden: Value | None, weights: tuple[Any, Any, Any, Any]
) -> tuple[Value, Value | torch.Tensor]:
    """W x + b, and R h + c, or just c if the hidden state is zero."""
    w, r, b, c = weights
    zero = torch.zeros(len(r))
    given = linear_of(lifter, x, w, zero if b is None else b)
    kept = zero if c is None else c
    return given, kept if hidden is None else linear_of(lifter, hidden, r, kept)


def _sum(lifter: Lifter, x: Value, other: Value | torch.Tensor) -> Value:
    if isinstance(other, Value):
        return add(lifter, x, other)
    return lifter.affine(x, shift=other.detach().double().numpy())


def _part(lifter: Lifter, x: Any, number: int, size: int) -> Any:
    window = (number * size, (number + 1) * size, 1)
    return take_slices(lifter, x, [window], (size,)) if isinstance(x, Value) else x[window[0] : window[1]]


def _lstm_cell(lifter: Lifter, x: Value, state: State, weights: Any, size: int) -> State:
    hidden, cell = state
    gates = _sum(lifter, *_gates(lifter, x, hidden, weights))
    i, f, g, o = (_part(lifter, gates, n, size) for n in range(4))
    i, o = activate(lifter, i, "sigmoid"), activate(lifter, o, "sigmoid")
    new = multiply(lifter, i, activate(lifter, g, "tanh"))
    if cell is not None:
        new = add(lifter, multiply(lifter, activate(lifter, f, "sigmoid"), cell), new)
    return multiply(lifter, o, activate(lifter, new, "tanh")), new


def _gru_cell(lifter: Lifter, x: Value, state: State, weights: Any, size: int) -> State:
    (hidden,) = state
    given, kept = _gates(lifter, x, hidden, weights)
    (xr, xz, xn), (hr, hz, hn) = ([_part(lifter, one, n, size) for n in range(3)] for one in (given, kept))
    r, z = activate(lifter, _sum(lifter, xr, hr), "sigmoid"), activate(lifter, _sum(lifter, xz, hz), "sigmoid")
    scaled = multiply(lifter, r, hn) if isinstance(hn, Value) else lifter.affine(r, scale=hn.detach().double().numpy())
    new = activate(lifter, add(lifter, xn, scaled), "tanh")
    # (1 - z) n + z h = n + z (h - n)
    other = negative(lifter, new) if hidden is None else add(lifter, hidden, negative(lifter, new))
    return (add(lifter, new, multiply(lifter, z, other)),)


def _rnn_cell(function: str) -> Any:
    def cell(lifter: Lifter, x: Value, state: State, weights: Any, size: int) -> State:
        return (activate(lifter, _sum(lifter, *_gates(lifter, x, state[0], weights)), function),)

    return cell


def _recurrent(lifter: Lifter, m: nn.RNNBase, x: Value, initial: Any, cell: Any, states: int) -> Any:
    if len(x.shape) != 2:
        raise Unsupported("a recurrent layer without a batch axis", "Give (batch, steps, features)")
    require_order(m, x)
    if getattr(m, "proj_size", 0):
        raise Unsupported("a recurrent layer with projections", "Use proj_size=0")
    given = initial if isinstance(initial, tuple) else (initial,)
    if any(one is not None and not (isinstance(one, torch.Tensor) and not one.any()) for one in given):
        raise Unsupported("a recurrent layer with an initial state that isn't zero", "Leave the state out")
    outputs = _steps(lifter, x)
    ends: list[State] = []
    for layer in range(m.num_layers):
        made = []
        for suffix in ("", "_reverse") if m.bidirectional else ("",):
            names = (f"{kind}_l{layer}{suffix}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            weights = tuple(getattr(m, name, None) for name in names)
            state: State = (None,) * states
            run = []
            for step in outputs[::-1] if suffix else outputs:
                state = cell(lifter, step, state, weights, m.hidden_size)
                run.append(state[0])
            made.append(run[::-1] if suffix else run)
            ends.append(state)
        outputs = [joined(lifter, both, 0) if len(both) > 1 else both[0] for both in zip(*made, strict=True)]
    rows = [lifter.reshape(one, (1, *one.shape)) for one in outputs]
    whole = joined(lifter, rows, 0) if len(rows) > 1 else rows[0]
    last = []
    for number in range(states):
        each = [lifter.reshape(one, (1, m.hidden_size)) for end in ends if (one := end[number]) is not None]
        last.append(joined(lifter, each, 0) if len(each) > 1 else each[0])
    return whole, last[0] if states == 1 else tuple(last)


@register_module(nn.LSTM)
@any_order
def _lstm(lifter: Lifter, m: nn.LSTM, input: Value, hx: Any = None) -> Any:
    return _recurrent(lifter, m, input, hx, _lstm_cell, 2)


@register_module(nn.GRU)
@any_order
def _gru(lifter: Lifter, m: nn.GRU, input: Value, hx: Any = None) -> Any:
    return _recurrent(lifter, m, input, hx, _gru_cell, 1)


@register_module(nn.RNN)
@any_order
def _rnn(lifter: Lifter, m: nn.RNN, input: Value, hx: Any = None) -> Any:
    return _recurrent(lifter, m, input, hx, _rnn_cell(m.nonlinearity), 1)


@register_module(nn.LSTMCell)
@any_order
def _module_lstm_cell(lifter: Lifter, m: nn.LSTMCell, x: Value, hx: Any = None) -> Any:
    return _lstm_cell(lifter, x, _given(hx, 2), (m.weight_ih, m.weight_hh, m.bias_ih, m.bias_hh), m.hidden_size)


@register_module(nn.GRUCell)
@any_order
def _module_gru_cell(lifter: Lifter, m: nn.GRUCell, x: Value, hx: Any = None) -> Any:
    return _gru_cell(lifter, x, _given(hx, 1), (m.weight_ih, m.weight_hh, m.bias_ih, m.bias_hh), m.hidden_size)[0]


@register_module(nn.RNNCell)
@any_order
def _module_rnn_cell(lifter: Lifter, m: nn.RNNCell, x: Value, hx: Any = None) -> Any:
    weights = (m.weight_ih, m.weight_hh, m.bias_ih, m.bias_hh)
    return _rnn_cell(m.nonlinearity)(lifter, x, _given(hx, 1), weights, m.hidden_size)[0]


def _given(hx: Any, states: int) -> State:
    """The states that a cell is called with; None for zeros."""
    if hx is None:
        return (None,) * states
    given = hx if isinstance(hx, tuple) else (hx,)
    found: list[Value | None] = []
    for one in given:
        if isinstance(one, torch.Tensor):
            if one.any():
                raise Unsupported("a recurrent cell with a constant state that isn't zero", "Begin with zeros")
            found.append(None)
        else:
            found.append(one)
    return tuple(found)
