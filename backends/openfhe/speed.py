"""How fast this machine is, now, against the one that the cost table was measured on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from olac.backends.base import Array
from olac.backends.cost import Slowdown, predicted_seconds
from olac.backends.openfhe.context import make_context
from olac.backends.openfhe.evaluator import OpenFHEEvaluator
from olac.costs import CostTable
from olac.parameters import Parameters

REPEATS = 15
LEAST, MOST = 0.1, 30.0


def measure_slowdown(parameters: Parameters, costs: CostTable, threads: int) -> Slowdown:
    """Measured over tabled seconds of primitives that need no evaluation key, half-way down the chain.

    Takes a fraction of a second to a few seconds, by the ring, and a key pair that is forgotten at once. Light
    primitives suffer more than heavy ones where threads are slow to wake, so the two have factors of their own.
    """
    level = max(1, parameters.depth // 2)
    if parameters.depth < 1:
        return Slowdown()
    context = make_context(parameters)
    evaluator = OpenFHEEvaluator(context, parameters)
    slots: Array = np.linspace(-1.0, 1.0, parameters.slots, dtype=np.float64)
    a = evaluator.encrypt(context.KeyGen().secretKey, slots, level)
    p = evaluator.encode(lambda: slots, level, parameters.scale(level))
    product = evaluator.multiply_plain(a, p)

    def factor(primitives: dict[str, Callable[[], object]]) -> float:
        measured = sum(_seconds(call) for call in primitives.values())
        tabled = sum(predicted_seconds(costs, name, parameters, level, threads) for name in primitives)
        return float(np.clip(measured / tabled, LEAST, MOST))

    return Slowdown(
        light=factor({"multiply_plain": lambda: evaluator.multiply_plain(a, p), "add": lambda: evaluator.add(a, a)}),
        heavy=factor(
            {
                "normalize": lambda: evaluator.normalize(product),
                "hoist": lambda: evaluator._hoist(a.payload, a.state),
                "encode": lambda: evaluator.encode(lambda: slots, level, parameters.scale(level)),
            }
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
