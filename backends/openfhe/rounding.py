"""Removes the bias of key switching.

OpenFHE divides by P at the end of a key switch. It subtracts the remainder modulo each of the k primes of P alone. The
sum of these is that of k numbers uniform in [0, 1), so both polynomials of the result are too small by k / 2 on
average: by (1 + X + ... + X^(N-1)) k / 2. The secret multiplies that, and the result is large in those slots in which
1 / (1 - X) is large: in slot 0 about sqrt(N) times the noise of the others. Here a polynomial with coefficients of
k / 2 is added. If k is odd, half of the coefficients are one more than the others, by the Rudin-Shapiro sequence, which
has no peak in any slot.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from olac.backends.openfhe.wire import wire
from olac.ckks.parameters import Parameters
from olac.ckks.primes import FIXED
from olac.ckks.words import Words
from olac.system.arrays import Index

EXACT_PRODUCTS = np.finfo(np.longdouble).nmant >= 63
"""Whether this machine's long double holds 64-bit words; if not, results are left as OpenFHE rounds them."""


class Rounding:
    """The polynomial to add to results of key switching, at any level."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._lock = threading.Lock()
        self._top: tuple[str, Any] | None = None
        self._last: tuple[int, Any] | None = None

    def half(self, level: int, tag: str) -> Any:
        """A ciphertext of noise degree 1 under a key tag, to be added without regard to its scale."""
        with self._lock:
            parameters = self._parameters
            if self._top is None or self._top[0] != tag:
                n, k = parameters.ring_dimension, len(parameters.special_primes)
                lost = k // 2 + (k % 2) * rudin_shapiro(n)
                words = np.stack([transform(lost, p, least_root(n, p)) for p in parameters.primes])
                self._top = tag, wire(parameters).ciphertext(np.stack([words, words]), parameters.depth, tag)
                self._last = None
            if self._last is None or self._last[0] != level:
                # The same polynomial modulo fewer primes. One level is kept, as programs use one after the other.
                self._last = level, self._truncated(self._top[1], level)
            return self._last[1]

    def _truncated(self, top: Any, level: int) -> Any:
        parameters = self._parameters
        if level == parameters.depth:
            return top
        context = wire(parameters).context
        if parameters.technique == FIXED:
            return context.LevelReduce(top, None, parameters.depth - level)
        return context.Compress(top, level + 1)


def rudin_shapiro(n: int) -> Index:
    """n bits, half of them set. If 1/2 is subtracted from each, their polynomial is small at every root of unity."""
    index = np.arange(n, dtype=np.int64)
    pairs, parity = index & (index >> 1), np.zeros(n, dtype=np.int64)
    while pairs.any():
        parity ^= pairs & 1
        pairs >>= 1
    return parity


def _multiply(a: Words, b: Words, p: int) -> Words:
    """a b mod p for p < 2^62, by a quotient in extended precision that is off by one at most."""
    quotient = (a.astype(np.longdouble) * b.astype(np.longdouble) / np.longdouble(p)).astype(np.uint64)
    rest = (a * b - quotient * np.uint64(p)).astype(np.int64)
    rest = np.where(rest < 0, rest + p, rest)
    return np.where(rest >= p, rest - p, rest).astype(np.uint64)


def _powers(root: int, count: int, p: int) -> Words:
    out: Words = np.ones(1, dtype=np.uint64)
    step = root
    while len(out) < count:
        out = np.concatenate([out, _multiply(out, np.full(len(out), step, dtype=np.uint64), p)])
        step = step * step % p
    return out


def least_root(n: int, p: int) -> int:
    """The least primitive root of unity of order 2n modulo a prime, which OpenFHE uses."""
    base = next(g for g in range(2, p) if pow(g, (p - 1) // 2, p) == p - 1)
    return int(_powers(pow(base, (p - 1) // (2 * n), p), 2 * n, p)[1::2].min())


def transform(coefficients: Index, p: int, root: int) -> Words:
    """The values of a polynomial at the odd powers of a root of order 2n modulo p, in bit-reversed order."""
    n = len(coefficients)
    bits = n.bit_length() - 1
    order = np.zeros(n, dtype=np.int64)
    for bit in range(bits):
        order |= ((np.arange(n) >> bit) & 1) << (bits - 1 - bit)
    twiddles = _powers(root, n, p)[order]
    values: Words = np.mod(coefficients, p).astype(np.uint64)
    modulus = np.uint64(p)
    blocks, length = 1, n
    while blocks < n:
        length //= 2
        parts = values.reshape(blocks, 2, length)
        factors = np.broadcast_to(twiddles[blocks : 2 * blocks, None], (blocks, length))
        first, second = parts[:, 0], _multiply(parts[:, 1], factors, p)
        total, difference = first + second, first + modulus - second
        parts[:, 1] = np.where(difference >= modulus, difference - modulus, difference)
        parts[:, 0] = np.where(total >= modulus, total - modulus, total)
        blocks *= 2
    return values
