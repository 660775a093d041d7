"""From measurements to factors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from olac.costs.fit import fastest, fit, report
from olac.costs.table import CostTable, model_key
from olac.costs.work import PRIMITIVES

TABLE = CostTable.default()


def test_a_fit_to_its_own_predictions_is_exact() -> None:
    rows = [replace(row, seconds=TABLE.seconds(row.primitive, row.shape, row.threads)) for row in TABLE.rows]
    factors = fit(rows)
    again = replace(TABLE, factors=factors)
    assert factors.keys() == TABLE.factors.keys()
    assert all(min(row) >= 0 for row in factors.values())
    for row in rows:
        assert again.seconds(row.primitive, row.shape, row.threads) == pytest.approx(row.seconds, rel=1e-4)


def test_the_shipped_factors_are_the_fit_of_the_shipped_rows() -> None:
    again = replace(TABLE, factors=fit(TABLE.rows))
    for row in TABLE.rows:
        ours = TABLE.seconds(row.primitive, row.shape, row.threads)
        assert again.seconds(row.primitive, row.shape, row.threads) == pytest.approx(ours, rel=0.02)


def test_the_fastest_pass_counts() -> None:
    row = TABLE.rows[0]
    slow, other = replace(row, seconds=2 * row.seconds), replace(row, threads=row.threads + 1)
    assert fastest([slow, row, other, slow]) == (row, other)
    assert model_key(row.primitive, row.shape, 2).threads == 2


def test_the_report_has_a_line_for_each_primitive() -> None:
    lines = report(TABLE).splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(PRIMITIVES)
