"""Lists of evaluation keys."""

from __future__ import annotations

import pytest

from olac.ckks.engines import OPENFHE, VECTOR
from olac.ckks.key_list import BOOTSTRAPS, KeyList, keys_for
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE

PLAIN = Parameters(11, 5, 32, 40, 2, security=0)
DEEP = Parameters(11, 20, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(4))


def test_what_a_list_lacks_and_what_two_hold_together() -> None:
    needed = KeyList(((1, 3), (2, 5), (7, 2)), 4, True)
    held = KeyList(((1, 3), (2, 4), (9, 5)), 3)
    assert needed.lacking(held) == KeyList(((2, 5), (7, 2)), 4, True)
    both = held.with_more(needed.lacking(held))
    assert both == KeyList(((1, 3), (2, 5), (7, 2), (9, 5)), 4, True)
    assert not needed.lacking(both) and not needed.lacking(needed) and needed.lacking(KeyList()) == needed
    assert both.within([1, 9], False, False) == KeyList(((1, 3), (9, 5)))
    assert held.lacking(needed) == KeyList(((9, 5),))


def test_names_and_back() -> None:
    keys = KeyList(((1, 3), (70, 0)), 4, True)
    assert keys.names == ("relinearise-4", "rotation-1-3", "rotation-70-0", BOOTSTRAPS)
    assert tuple(map(KeyList.named, keys.names)) == keys.parts
    whole = KeyList()
    for part in keys.parts:
        whole = whole.with_more(part)
    assert whole == keys


@pytest.mark.parametrize(
    "name",
    [
        "",
        "rotation-1",
        "rotation-01-3",
        "rotation--1-3",
        "relinearise",
        "../bootstraps",
        "bootstraps ",
        "rotation-1-3\n",
        "rotation-\u0661-3",
        "rotation-99999999-1",
        "rotation-1-3-4",
    ],
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a key"):
        KeyList.named(name)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (KeyList(((0, 1),)), "steps"),
        (KeyList(((1025, 1),)), "steps"),
        (KeyList(((1, 6),)), "levels"),
        (KeyList(((1, -1),)), "levels"),
        (KeyList(relinearise=6), "levels"),
        (KeyList(bootstraps=True), "bootstraps"),
    ],
)
def test_keys_that_parameters_do_not_have(keys: KeyList, message: str) -> None:
    KeyList(((1, 5), (1024, 0)), 5).check(PLAIN)
    with pytest.raises(ValueError, match=message):
        keys.check(PLAIN)


@pytest.mark.parametrize("rotations", [((2, 1), (1, 1)), ((1, 1), (1, 2))])
def test_steps_increase(rotations: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="do not increase"):
        KeyList(rotations)


def test_keys_reach_as_far_as_the_engine_lets_them() -> None:
    assert keys_for(PLAIN, OPENFHE, [4, 1], {1: 2}, 3) == KeyList(((1, 5), (4, 5)), 5)
    assert keys_for(PLAIN, VECTOR, [4, 1], {1: 2}, 3) == KeyList(((1, 2), (4, 0)), 3)
    assert keys_for(PLAIN, VECTOR, [], {}, None) == KeyList()
    model = VECTOR.bootstraps(DEEP)
    deep = keys_for(DEEP, VECTOR, model.steps, {}, None)
    assert deep.bootstraps and deep.relinearise == model.product_level
    assert deep.by_step == {step: model.step_levels[step] for step in sorted(model.steps)}
