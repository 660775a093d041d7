"""From measurements to factors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from olac.ckks.engines import ENGINES, VECTOR, EngineModel
from olac.costs.fit import fastest, fit, report
from olac.costs.table import CostTable, model_key
from olac.costs.work import PRIMITIVES, CiphertextShape, work

TABLE = CostTable.default()


@pytest.mark.parametrize("engine", ENGINES.values(), ids=lambda engine: engine.name)
def test_a_fit_to_its_own_predictions_is_exact(engine: EngineModel) -> None:
    table = CostTable.default(engine)
    rows = [replace(row, seconds=table.seconds(row.primitive, row.shape, row.threads)) for row in table.rows]
    factors = fit(rows, engine.fused)
    again = replace(table, factors=factors)
    assert factors.keys() == table.factors.keys()
    assert all(min(row) >= 0 for row in factors.values())
    for row in rows:
        assert again.seconds(row.primitive, row.shape, row.threads) == pytest.approx(row.seconds, rel=1e-4)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=lambda engine: engine.name)
def test_the_shipped_factors_are_the_fit_of_the_shipped_rows(engine: EngineModel) -> None:
    table = CostTable.default(engine)
    again = replace(table, factors=fit(table.rows, engine.fused))
    for row in table.rows:
        ours = table.seconds(row.primitive, row.shape, row.threads)
        assert again.seconds(row.primitive, row.shape, row.threads) == pytest.approx(ours, rel=0.02)


def test_the_fastest_pass_counts() -> None:
    row = TABLE.rows[0]
    slow, other = replace(row, seconds=2 * row.seconds), replace(row, threads=row.threads + 1)
    assert fastest([slow, row, other, slow]) == (row, other)
    assert model_key(row.primitive, row.shape, 2).threads == 2


def test_the_report_has_a_line_for_each_primitive() -> None:
    lines = report(TABLE).splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(PRIMITIVES)
    own = [primitive for primitive in PRIMITIVES if primitive not in VECTOR.unpriced]
    assert [line.split()[0] for line in report(CostTable.default(VECTOR)).splitlines()[1:]] == own


def test_a_division_that_waits_for_a_rescale_takes_no_transforms_of_the_chain() -> None:
    few, many = (CiphertextShape(14, limbs, 3, 2) for limbs in (2, 20))
    alone, fused = ([work("key_switch_down", one, 1, waits)[1] for one in (few, many)] for waits in (False, True))
    assert fused[0] == fused[1] < alone[0] < alone[1]
    for primitive in set(PRIMITIVES) - {"key_switch_down"}:
        assert work(primitive, many, 2, True) == work(primitive, many, 2)
