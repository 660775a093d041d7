"""A third lowering of convolutions, added from outside by two files: chosen by price, saved, run by all backends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.backends.base import Array
from olac.backends.cost import CostEvaluator
from olac.backends.recorder import RecorderEvaluator
from olac.backends.simulator import SimulatorEvaluator
from olac.ckks.primes import FIXED, FLEXIBLE, Technique
from olac.costs.table import CostTable
from olac.errors import ArtifactError
from olac.ir.lowerings import LOWERINGS, Diagonals, Multiplexed, register_lowering
from olac.kernels.execute import LOWERED, execute
from olac.kernels.record import record
from olac.passes.choose_lowerings import lowered_depth
from olac.passes.pipeline import lowering_pipeline
from tests.outside.gathered import Gathered
from tests.outside.gathered_kernel import gathered

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security", "ignore:.*outside the calibrated range")


@pytest.fixture
def registered() -> Iterator[None]:
    """The registrations that importing the two files makes, until the end of the test."""
    register_lowering(Gathered)
    LOWERED[Gathered] = gathered
    yield
    del LOWERINGS[Gathered.kind], LOWERED[Gathered]


class Strided(nn.Module):
    """A vector as an image, so that there are no planes for a gap; one convolution with a stride and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.strided = nn.Conv2d(1, 1, 3, stride=2, padding=1)
        self.second = nn.Conv2d(1, 1, 3, padding=1)
        self.head = nn.Linear(256, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.strided(x.reshape(len(x), 1, 32, 32)))
        outputs: torch.Tensor = self.head(torch.flatten(torch.tanh(self.second(x)), 1))
        return outputs


def compiled(convolutions: str, technique: Technique = FIXED, batch: int = 1) -> tuple[olac.CompiledProgram, Array]:
    torch.manual_seed(1)
    model, images = Strided().eval(), torch.rand(32, 1024) * 2 - 1
    program = olac.compile(
        model,
        [images],
        method="channel",
        degree=3,
        log_ring=12,
        insecure=True,
        technique=technique,
        convolutions=convolutions,
        batch=batch,
    )
    return program, images[:batch].double().numpy()


def kinds(program: olac.CompiledProgram) -> dict[str, str]:
    return {node.id: node.lowering.kind for node in program.graph.nodes if node.lowering is not None}


def priced(monkeypatch: pytest.MonkeyPatch, **dear: float) -> None:
    """Predictions in which some primitives are expensive and the others almost free."""
    monkeypatch.setattr(
        "olac.passes.choose_lowerings.predicted_seconds", lambda costs, primitive, *rest: dear.get(primitive, 1e-6)
    )


def test_auto_takes_it_if_it_is_predicted_to_be_faster(registered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """By diagonals each of the 256 outputs takes a quarter of a product; gathered there are 9 + 16 + 16."""
    priced(monkeypatch, encode=1.0)
    program, forced, diagonals = (compiled(how)[0] for how in ("auto", "gathered", "diagonals"))
    assert kinds(program) == {"strided": "gathered", "second": "diagonals", "head": "diagonals"}
    assert program.fingerprint == forced.fingerprint
    assert set(kinds(diagonals).values()) == {"diagonals"}
    counts = [one.estimate(threads=1).counts["encode"] for one in (program, diagonals)]
    assert counts[1] - counts[0] > 10
    priced(monkeypatch, rotate=1.0, hoisted_rotate=1.0)
    assert set(kinds(compiled("auto")[0]).values()) == {"diagonals"}


@pytest.mark.parametrize("how", ["auto", "gathered"])
def test_the_chain_has_its_levels(registered: None, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    priced(monkeypatch, encode=1.0)
    program, diagonals = compiled(how)[0], compiled("diagonals")[0]
    assert program.parameters.depth == diagonals.parameters.depth + 2
    states = [program.graph[name].type.state for name in (program.graph["strided"].inputs[0], "strided")]
    assert states[0] is not None and states[1] is not None
    assert states[0].level - states[1].level == 3 == program.kernels["strided"].depth
    assert program.output.type.state is not None and program.output.type.state.level == 0
    assert compiled(how, batch=2)[0].parameters.depth == program.parameters.depth
    assert lowered_depth(diagonals.graph, lowering_pipeline(convolutions=how)) == program.parameters.depth


def test_the_others_are_chosen_as_ever(registered: None) -> None:
    assert kinds(compiled("multiplexed")[0])["second"] == Multiplexed.kind
    assert not Multiplexed.automatic and Diagonals.automatic and Gathered.automatic


def test_it_comes_back_from_a_file(registered: None, tmp_path: Path) -> None:
    program, x = compiled("gathered")
    program.save(tmp_path / "p.olac")
    loaded = olac.CompiledProgram.load(tmp_path / "p.olac")
    assert loaded.graph == program.graph and loaded.fingerprint == program.fingerprint
    assert loaded.graph["strided"].lowering == Gathered()
    np.testing.assert_array_equal(loaded.simulate(x), program.simulate(x))
    del LOWERINGS[Gathered.kind]
    try:
        with pytest.raises(ArtifactError, match="unknown lowering 'gathered': a newer olac or an extension made it"):
            olac.CompiledProgram.load(tmp_path / "p.olac")
    finally:
        LOWERINGS[Gathered.kind] = Gathered


@pytest.mark.parametrize("technique", [FIXED, FLEXIBLE])
def test_the_slots_are_those_of_the_graph(registered: None, technique: Technique) -> None:
    program, x = compiled("gathered", technique)
    evaluator = SimulatorEvaluator(program.parameters, program.rotations)
    given, wanted = program.input.type, program.output.type
    assert given.layout is not None and given.state is not None and wanted.layout is not None
    fresh = tuple(evaluator.encrypt(page, given.state.level) for page in given.layout.pack(x / given.unit))
    after: dict[str, Array] = {}
    (result,) = execute(
        program.graph,
        program.kernels,
        evaluator,
        {program.input.id: fresh},
        lambda node, value: after.update({node.id: np.stack([evaluator.decrypt(part) for part in value])}),
    )
    outputs = wanted.layout.unpack(np.stack([evaluator.decrypt(part) for part in result])) * wanted.unit
    assert np.allclose(outputs, program.graph.evaluate(x), atol=1e-6)
    # Slots that hold no element are zero, and copies are copies.
    layout = program.graph["strided"].type.layout
    assert layout is not None
    assert np.allclose(after["strided"], layout.pack(layout.unpack(after["strided"])), atol=1e-9)


def test_recorder_and_cost_agree_with_what_it_was_chosen_for(registered: None) -> None:
    program, _ = compiled("gathered")
    recorder = RecorderEvaluator(program.parameters)
    record(program.graph, program.parameters, recorder=recorder)
    assert set(recorder.rotations) <= set(program.rotations) | set(program.composed)
    priced = CostEvaluator(program.parameters, CostTable.default(), 1, rotations=program.rotations)
    record(program.graph, program.parameters, recorder=priced)
    assert [event.primitive for event in priced.events] == [event.primitive for event in recorder.events]
    assert priced.seconds > 0


@pytest.mark.encrypted
@pytest.mark.parametrize("technique", [FIXED, FLEXIBLE])
def test_encrypted(registered: None, technique: Technique) -> None:
    program, x = compiled("gathered", technique)
    client = olac.Client(program)
    server = olac.Server(program, client.generate_keys())
    error = np.abs(client.decrypt(server.run(client.encrypt(x))) - program.simulate(x))
    assert error.max() < 1e-3


@pytest.mark.parametrize("kind", ["", "auto", "diagonals"])
def test_kinds_are_unique(kind: str) -> None:
    with pytest.raises(ValueError, match="is empty or taken"):
        register_lowering(type("Other", (Gathered,), {"kind": kind}))
