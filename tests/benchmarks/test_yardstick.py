"""The yardstick's transform, against its definition, and the samples of it."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.yardstick import FEWEST, GENERATOR, PRIME, Residues, Yardstick, transform

POINTS = 32


def by_definition(values: Residues) -> list[int]:
    root = pow(GENERATOR, (PRIME - 1) // POINTS, PRIME)
    assert pow(root, POINTS // 2, PRIME) == PRIME - 1
    return [sum(int(v) * pow(root, i * j, PRIME) for i, v in enumerate(values)) % PRIME for j in range(POINTS)]


@pytest.mark.parametrize("kind", ["random", "largest", "one"])
def test_transform(kind: str) -> None:
    values: Residues = np.zeros(POINTS, dtype=np.uint64)
    if kind == "random":
        values = np.random.default_rng(0).integers(0, PRIME, POINTS, dtype=np.uint64)
    elif kind == "largest":
        values[:] = PRIME - 1
    else:
        values[5] = 1
    assert [int(value) for value in transform(values)] == by_definition(values)


def test_samples_are_taken_from_time_to_time() -> None:
    yardstick = Yardstick()
    yardstick.sample()
    wall, cpu = yardstick.wall, yardstick.cpu
    assert cpu > 0 and wall > 0
    yardstick.sample()  # too early
    assert (yardstick.wall, yardstick.cpu) == (wall, cpu)
    # There are always enough for a median that one slow sample does not move.
    seconds = yardstick.seconds
    assert 0 < seconds < yardstick.cpu and yardstick.cpu > FEWEST / 2 * seconds
