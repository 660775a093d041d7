"""From measurements of primitives to the factors of a cost table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import numpy as np
from scipy.optimize import nnls

from olac.costs.table import CostTable, MeasuredRow, ModelKey, model_key
from olac.costs.work import PRIMITIVES, CiphertextShape, work

FIT_ROUNDS = 20


def fastest(rows: Iterable[MeasuredRow]) -> tuple[MeasuredRow, ...]:
    """One row for each primitive, shape and number of threads."""
    best: dict[tuple[str, CiphertextShape, int], MeasuredRow] = {}
    for row in rows:
        key = (row.primitive, row.shape, row.threads)
        if key not in best or row.seconds < best[key].seconds:
            best[key] = row
    return tuple(best.values())


def fit(rows: Iterable[MeasuredRow], fused: bool = False) -> dict[ModelKey, tuple[float, ...]]:
    """Nonnegative factors for each primitive that minimise the squared logarithms of predicted / measured.

    Args:
        fused: as in `work`.
    """
    groups: dict[ModelKey, list[MeasuredRow]] = {}
    for row in rows:
        groups.setdefault(model_key(row.primitive, row.shape, row.threads), []).append(row)
    factors = {}
    for key, group in groups.items():
        amounts = np.array([work(row.primitive, row.shape, row.threads, fused) for row in group])
        seconds = np.array([row.seconds for row in group])
        weights = 1 / seconds
        for _ in range(FIT_ROUNDS):
            solution = nnls(amounts * weights[:, None], seconds * weights)[0]
            ratios = amounts @ solution / seconds
            # log(ratio) = weight * (predicted - measured): the next least-squares problem is that of the logarithms
            weights = np.where(np.isclose(ratios, 1), 1, np.log(ratios) / (ratios - 1 + 1e-12)) / seconds
        factors[key] = tuple(float(factor) for factor in solution)
    return factors


def report(table: CostTable) -> str:
    """Predicted / measured, for each primitive."""
    lines = [f"{'primitive':24s} rows  median  lowest highest   (predicted / measured)"]
    for primitive in PRIMITIVES:
        ratios = [
            table.seconds(primitive, row.shape, row.threads) / row.seconds
            for row in table.rows
            if row.primitive == primitive
        ]
        if not ratios:  # the engine does not run it
            continue
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        lines.append(f"{primitive:24s} {len(ratios):4d}  {middle:6.2f}  {low:6.2f}  {high:6.2f}")
    return "\n".join(lines)
