"""A model that was trained again is compiled like before, and runs with the keys that clients have."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.backends.cost import CostEvaluator
from olac.backends.recorder import RecorderEvaluator
from olac.ckks.engines import OPENFHE, VECTOR, EngineModel
from olac.ckks.key_list import KeyList
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.ckks.rotations import composition
from olac.costs.table import CostTable
from olac.errors import ArtifactError, InfeasibleError
from olac.ir.ops import Bootstrap
from olac.kernels.record import record
from olac.program.client_program import ClientProgram
from olac.program.program import CompiledProgram
from olac.runtime import Client, Server, load_keys, save_parts
from olac.selection.price import with_keys
from olac.system.memory import bytes_of

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")


def model(seed: int, wide: int = 8, depth: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    hidden = [layer for _ in range(depth - 1) for layer in (nn.Linear(wide, wide), nn.Tanh())]
    return nn.Sequential(nn.Linear(6, wide), nn.Tanh(), *hidden, nn.Linear(wide, 3)).eval()


DATA = torch.rand(256, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1


@cache
def first() -> CompiledProgram:
    return olac.compile(model(0), [DATA], method="channel", log_ring=11, insecure=True, precision=0.01)


def like(trained: nn.Module, before: CompiledProgram | ClientProgram, **choices: object) -> CompiledProgram:
    return olac.compile(trained, [DATA], method="channel", insecure=True, like=before, **choices)  # type: ignore[arg-type]


@pytest.mark.encrypted
def test_new_weights_run_with_old_keys(tmp_path: Path) -> None:
    old = first()
    client = Client(old.client())
    keys = client.generate_keys()
    client.save_secret_key(tmp_path / "secret.key")
    keys.save(tmp_path / "evaluation.keys")
    for seed in (1, 2):
        new = like(model(seed), old)
        assert new.fingerprint != old.fingerprint
        assert (new.parameters, new.engine, new.rotations) == (old.parameters, old.engine, old.rotations)
        assert [one.degree for one in new.report.fits] == [one.degree for one in old.report.fits]
        assert not any("new beside" in note for note in new.report.notes)
        again = Client.load(new.client(), tmp_path / "secret.key")
        assert not again.more_keys(keys).listed
        with Server(new, keys) as server:
            answer = again.decrypt(server.run(again.encrypt(DATA[:1])))
        np.testing.assert_allclose(answer, new.simulate(DATA[:1]), atol=0.02)
        np.testing.assert_allclose(answer, model(seed)(DATA[:1]).detach().numpy(), atol=0.1)


@cache
def deep() -> CompiledProgram:
    """Runs out of levels, and was compiled for a process of 1 GB."""
    setup = Bootstrapping(4)
    parameters = Parameters(11, setup.depth, 40, 47, 3, FLEXIBLE, 0, setup)
    return olac.compile(
        model(0, depth=10),
        [DATA],
        method="channel",
        degree=3,
        parameters=parameters,
        insecure=True,
        engine="vector",
        max_memory="1GB",
    )


@pytest.mark.encrypted
def test_new_weights_run_with_old_keys_of_bootstraps_within_a_limit_of_memory(tmp_path: Path) -> None:
    """Through files, as a service would: the client keeps its keys, and gets the description of the new version."""
    old, trained = deep(), model(1, depth=10)
    client = Client(old.client())
    save_parts(client.generate_keys(), tmp_path / "keys")
    client.save_secret_key(tmp_path / "secret.key")
    least = f"{1.01 * old.estimate(1).server_gb:.3f}GB"
    new = like(trained, old, max_memory=least)
    assert (new.parameters, new.rotations, new.max_memory) == (old.parameters, old.rotations, bytes_of(least, "least"))
    assert sum(isinstance(node.op, Bootstrap) for node in new.graph.nodes) >= 2
    assert new.estimate(1).server_gb <= 1.01 * old.estimate(1).server_gb < 1.0
    again = Client.load(new.client(), tmp_path / "secret.key")
    keys = load_keys(new, tmp_path / "keys")
    assert not again.more_keys(keys).listed
    with Server(new, keys) as server:
        answer = again.decrypt(server.run(again.encrypt(DATA[:1])))
    np.testing.assert_allclose(answer, new.simulate(DATA[:1]), atol=0.01)
    np.testing.assert_allclose(answer, trained(DATA[:1]).detach().numpy(), atol=0.1)


def test_a_limit_of_memory_that_the_old_parameters_exceed() -> None:
    with pytest.raises(InfeasibleError, match=r"(?s)max_memory = 0\.20 GB.*Allow at least 0\.\d\d GB.*without like="):
        like(model(1, depth=10), deep(), max_memory="0.2GB")


def test_what_clients_know_is_enough_to_compile_like() -> None:
    new = like(model(1), first().client(), degree=max(one.degree for one in first().report.fits))
    assert new.parameters == first().parameters and new.rotations == first().rotations


@pytest.mark.encrypted
def test_a_wider_layer_takes_new_keys_and_says_which(tmp_path: Path) -> None:
    old = first()
    # Of the keys before only those that no composition makes up for.
    new = like(model(1, wide=40), old)
    lacking = new.keys_for(new.planned_for).lacking(old.keys_for(old.planned_for))
    notes = [note for note in new.report.notes if "new beside those of the program in like=" in note]
    assert bool(notes) == bool(lacking)
    client = Client(old)
    keys = client.generate_keys()
    client.save_secret_key(tmp_path / "secret.key")
    again = Client.load(new, tmp_path / "secret.key")
    more = again.more_keys(old)
    assert more.listed == lacking
    with Server(new, keys.with_more(more)) as server:
        answer = again.decrypt(server.run(again.encrypt(DATA[:1])))
    np.testing.assert_allclose(answer, new.simulate(DATA[:1]), atol=0.02)


def test_models_that_the_parameters_do_not_hold() -> None:
    with pytest.raises(InfeasibleError, match=r"(?s)the plan has 1 degrees, the model 3 activations.*without like="):
        like(model(0, depth=3), first())
    with pytest.raises(InfeasibleError, match=r"(?s)levels, the pinned parameters have .*without like="):
        like(model(0, depth=3), first(), degree=7)
    with pytest.raises(InfeasibleError, match=r"takes a scale of \d+ bits with these weights.*without like="):
        like(model(1), first(), precision=1e-6)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"log_ring": 12}, "log_ring = 12, and the program to compile like has 11"),
        ({"scale_bits": 50}, "scale_bits = 50"),
        ({"engine": "openfhe"}, "engine = openfhe, and the program to compile like has vector"),
        ({"insecure": False}, "no security"),
    ],
)
def test_choices_that_contradict(choice: dict[str, Any], message: str) -> None:
    assert first().engine == "vector"
    given: dict[str, Any] = {"like": first(), "insecure": True} | choice
    with pytest.raises(ValueError, match=message):
        olac.compile(model(1), [DATA], **given)


def test_what_is_no_program() -> None:
    with pytest.raises(ArtifactError, match="expected a program"):
        like(model(1), "p.olac")  # type: ignore[arg-type]


# The choice of keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [OPENFHE, VECTOR])
def test_keys_are_kept_where_steps_can_be_composed_of_them(engine: EngineModel) -> None:
    table = CostTable.default(engine)
    program = first()
    parameters, slots = program.parameters, program.parameters.slots
    pricer = CostEvaluator(parameters, table, 1)
    recorder = record(program.graph, parameters)
    uses, order = recorder.uses(), [event.step for event in recorder.events if event.step]
    whole = program.estimate(1, costs=table)
    taken = sorted({step for step, _ in uses})
    top = parameters.depth
    for steps in ([], taken, taken[:1], taken[::2], [1, 2, 4, 8, 16, 32], [7, slots - 1]):
        kept = KeyList(tuple((step, top) for step in sorted(steps)))
        found = with_keys(uses, order, pricer, whole.seconds_per_image, whole.sizes, 0.0, None, kept)
        held = frozenset(steps)
        # By brute force: a step is new if no one, two or three of the kept make it up.
        new = {step for step in taken if composition(step, held, slots) is None}
        assert set(found.steps) - held == new
        assert set(found.steps) & held >= set(taken) & held
        evaluator = RecorderEvaluator(parameters, found.steps)
        events = record(program.graph, parameters, recorder=evaluator).events
        assert {event.step for event in events if event.step} <= set(found.steps)
        assert all(found.levels[event.step] >= event.level for event in events if event.step)
        sizes = sum(table.engine.key_bytes(parameters, found.levels[step]) for step in found.steps)
        every = sum(table.engine.key_bytes(parameters, max(at for s, at in uses if s == step)) for step in taken)
        assert found.sizes.key_bytes - whole.sizes.key_bytes == sizes - every
        extra = sum(
            count * (len(composition(step, frozenset(found.steps), slots) or ()) - 1) * pricer.price("rotate", level)
            for (step, level), count in uses.items()
        )
        assert found.seconds == pytest.approx(whole.seconds_per_image + extra)
