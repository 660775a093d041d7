"""Runs all tests of a module on each engine, if the module imports `engine`.

The programs of `small_program` and `bootstrapped_program` are then for one engine after the other. What a module keeps
between tests has to be kept by engine, or in fixtures that ask for `engine`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from olac.ckks.engines import ENGINES
from tests.runtime import small_program

OPENFHE_ALONE = pytest.mark.parametrize("engine", ["openfhe"], indirect=True, scope="module")
"""A mark of tests that look into OpenFHE's own objects."""


@pytest.fixture(scope="module", params=ENGINES, autouse=True)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the engine that programs are for."""
    with small_program.planned_for(request.param):
        yield request.param
