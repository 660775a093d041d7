"""How fast this machine is, now, against the one that the cost table was measured on."""

from __future__ import annotations

import statistics
import time

import numpy as np

from olac.backends.cost import predicted_seconds
from olac.backends.openfhe.context import make_context
from olac.costs import CostTable
from olac.parameters import Parameters

REPEATS = 31
LEAST, MOST = 0.1, 30.0


def slowdown(parameters: Parameters, costs: CostTable, threads: int) -> float:
    """Measured over tabled seconds of encoding, the one heavy primitive that needs no key; takes a tenth of a second.

    A prediction times this number holds on other machines and on a busy one, as far as all primitives slow down alike.
    The lower quartile of many is taken, so that a passing load does not count.
    """
    context = make_context(parameters)
    values = np.linspace(-1.0, 1.0, parameters.slots)
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        context.MakeCKKSPackedPlaintext(values, 1, 0)
        seconds.append(time.perf_counter() - start)
    tabled = predicted_seconds(costs, "encode", parameters, parameters.depth, threads)
    return float(np.clip(statistics.quantiles(seconds[1:], n=4)[0] / tabled, LEAST, MOST))
