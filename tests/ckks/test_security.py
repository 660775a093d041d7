"""Bounds and figures of security against the results of the lattice estimator (tests/ckks_security.json)."""

from __future__ import annotations

import builtins
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.security import DENSE, ENCAPSULATED, SPARSE, Point, descend, guesses, points
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.ckks.security import EARLIER_SECURITY_BOUNDS, ENCAPSULATION_BOUNDS, SECURITY_BOUNDS, SPARSE_SECURITY_BOUNDS

KEPT: dict[str, Any] = json.loads((Path(__file__).parents[1] / "ckks_security.json").read_text())
BITS = {Point(row["secret"], row["log_ring"], row["log_q"]): row["bits"] for row in KEPT["estimates"]}


def figure(point: Point) -> float:
    """The security that olac states for a modulus of `log_qp` bits."""
    if point.secret == DENSE:
        parameters = Parameters(point.log_ring, 1, 30, 30, 1, security=0)
        vars(parameters)["log_qp"] = float(point.log_q)
        return parameters.security_bits
    setup = Bootstrapping(4)
    parameters = Parameters(point.log_ring, setup.depth, 40, 47, 3, FLEXIBLE, 0, setup)
    sparse = point.secret == SPARSE
    vars(parameters)["log_qp"] = float(point.log_q) if sparse else 100.0
    vars(parameters)["log_encapsulation"] = 60.0 if sparse else float(point.log_q)
    return parameters.security_bits


def test_the_estimates_are_those_of_these_bounds() -> None:
    assert set(points()) <= set(BITS)
    assert all(row["bits"] == min(row["costs"].values()) for row in KEPT["estimates"])
    assert {"usvp", "bdd", "dual", "dual_hybrid"} <= set(KEPT["estimates"][-1]["costs"])
    assert re.fullmatch("[0-9a-f]{40}", KEPT["commit"]) and re.fullmatch(r"\d{4}-\d\d-\d\d", KEPT["date"])
    assert "MATZOV" in KEPT["model"] and KEPT["command"].startswith("python -m benchmarks.security")


def test_what_is_within_a_bound_has_its_bits() -> None:
    tables = {DENSE: SECURITY_BOUNDS, SPARSE: SPARSE_SECURITY_BOUNDS, ENCAPSULATED: ENCAPSULATION_BOUNDS}
    for secret, table in tables.items():
        for level, bounds in table.items():
            for log_ring, bound in bounds.items():
                point = Point(secret, log_ring, bound)
                assert level == figure(point) <= BITS[point]


def test_no_figure_is_above_the_estimator_s_and_none_far_below() -> None:
    """Between the bounds, beyond them, and at the bounds of earlier versions, for all rings and secrets."""
    for point, bits in BITS.items():
        assert figure(point) <= bits, point
        if point.secret == DENSE and 80 < bits < 250:
            assert figure(point) > bits - 8, point  # 2^10 and 2^11 have few bits of modulus to choose from
    lowest = min(BITS[Point(DENSE, ring, bound)] for ring, bound in EARLIER_SECURITY_BOUNDS[128].items())
    assert 125 < lowest < 126


def test_descent_finds_the_least_and_stays_in_bounds() -> None:
    assert descend(lambda x, y: (x - 37) ** 2 + (y - 5) ** 2, (100, 0), (16, 4), (0, 0)) == 0
    assert descend(lambda x: x, (100,), (16,), (41,)) == 41


def test_guesses_are_counted() -> None:
    for most, wanted in ((0, (1, 0.350436753852275)), (1, (33, 0.736293996803598))):
        assert list(guesses(512, 32, 16, most)) == pytest.approx(wanted)


def test_without_the_estimator_the_command_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def lacking(name: str, *rest: Any) -> Any:
        if name == "estimator":
            raise ImportError("No module named 'estimator'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", lacking)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["security", "--json", str(tmp_path / "none.json")]) == 2
    assert "pip install passagemath-standard-no-symbolics" in capsys.readouterr().err
    assert not (tmp_path / "none.json").exists()
