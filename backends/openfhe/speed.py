"""Measures how fast this machine is now against the one of the cost table."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from olac.backends.base import Array, Ciphertext
from olac.backends.cost import Slowdown, predicted_seconds
from olac.backends.openfhe.context import make_context
from olac.backends.openfhe.evaluator import OpenFHEEvaluator
from olac.ckks.parameters import Parameters
from olac.costs.table import CostTable

REPEATS = 40
OPERANDS = 12
LEAST, MOST = 0.1, 30.0


def measure_slowdown(parameters: Parameters, costs: CostTable, threads: int) -> Slowdown:
    """Measured over tabled seconds of primitives that need no evaluation key, half-way down the chain.

    This takes up to a few seconds, by the ring, and a key pair that is deleted at once. Slow waking of threads affects
    light primitives more than heavy ones, so the two have factors of their own.
    """
    level = max(1, parameters.depth // 2)
    if parameters.depth < 1:
        return Slowdown()
    context = make_context(parameters)
    evaluator = OpenFHEEvaluator(context, parameters)
    slots: Array = np.linspace(-1.0, 1.0, parameters.slots, dtype=np.float64)
    key, scale = context.KeyGen().secretKey, parameters.scale(level)
    # The operands of a program are rarely in the caches. So several take turns here.
    a = itertools.cycle([evaluator.encrypt(key, slots, level) for _ in range(OPERANDS)])
    p = itertools.cycle([evaluator.encode(lambda: slots, level, scale) for _ in range(OPERANDS)])
    products = itertools.cycle([evaluator.multiply_plain(next(a), next(p)) for _ in range(OPERANDS)])

    def hoist(ciphertext: Ciphertext[Any]) -> Any:
        return evaluator._hoist(ciphertext.payload, ciphertext.state)

    def factor(**primitives: Callable[[], object]) -> float:
        measured = sum(_seconds(call) for call in primitives.values())
        tabled = sum(predicted_seconds(costs, name, parameters, level, threads) for name in primitives)
        return float(np.clip(measured / tabled, LEAST, MOST))

    return Slowdown(
        light=factor(
            multiply_plain=lambda: evaluator.multiply_plain(next(a), next(p)),
            add=lambda: evaluator.add(next(a), next(a)),
        ),
        heavy=factor(
            normalize=lambda: evaluator.rescale(next(products)),
            hoist=lambda: hoist(next(a)),
            encode=lambda: evaluator.encode(lambda: slots, level, scale),
        ),
    )


def _seconds(call: Callable[[], object]) -> float:
    call()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.fmean(seconds)
