"""Images in lanes: each is computed as if it were alone, with the primitives of one image."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from olac.backends.recorder import Encoder, RecorderEvaluator
from olac.backends.simulator import SimulatorEvaluator
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FIXED, FLEXIBLE
from olac.errors import MissingKeyError, VerificationError
from olac.ir import Graph
from olac.ir.ops import Array
from olac.ir.states import bootstrap_fault
from olac.kernels.execute import build_kernels, execute
from olac.kernels.lanes import LaneEvaluator, in_lanes
from olac.kernels.record import record
from olac.passes.assign_layouts import AssignLayouts
from olac.passes.assign_levels import AssignLevels
from olac.passes.base import PassContext, PassManager
from olac.passes.choose_lowerings import ChooseLowerings, Convolutions, Copies, Halving
from tests.networks import images_for, normalized, random_network, residual_network

DEPTH = 40


def parameters_of(technique: str, batch: int) -> Parameters:
    """2^10 slots for each image."""
    return Parameters(10 + batch.bit_length(), DEPTH, 35, 42, 1, technique, security=0)


def lowered(
    graph: Graph,
    batch: int,
    copies: Copies = "plain",
    halving: Halving = "never",
    convolutions: Convolutions = "auto",
    technique: str = FIXED,
) -> Graph:
    graph, calibration = normalized(graph, images_for(graph, 6))
    context = PassContext(calibration=calibration, parameters=parameters_of(technique, batch), batch=batch)
    return PassManager([AssignLayouts(), ChooseLowerings(copies, halving, convolutions), AssignLevels()]).run(
        graph, context
    )


def in_slots(graph: Graph, images: Array, technique: str = FIXED) -> Array:
    """A batch through the kernels, in true units, with keys for the steps that a recording finds and no others."""
    source, sink = graph.inputs[0], graph[graph.outputs[0]]
    parameters = parameters_of(technique, source.layout.batch)
    evaluator = SimulatorEvaluator(parameters, record(graph, parameters).rotations)
    slots = source.layout.pack(images / source.type.unit)
    fresh = tuple(evaluator.encrypt(page, source.state.level) for page in slots)
    (result,) = execute(graph, build_kernels(graph), evaluator, {source.id: fresh})
    return sink.layout.unpack(np.stack([evaluator.decrypt(part) for part in result])) * sink.type.unit


WAYS: dict[str, tuple[Copies, Halving, Convolutions]] = {
    "plain": ("plain", "never", "auto"),
    "shifted copies": ("shifted", "never", "auto"),
    "complex slots": ("plain", "always", "auto"),
    "multiplexed": ("plain", "never", "multiplexed"),
}


@pytest.mark.parametrize("technique", [FIXED, FLEXIBLE])
@pytest.mark.parametrize("way", WAYS)
def test_each_image_is_computed_as_if_it_were_alone(way: str, technique: str) -> None:
    copies, halving, convolutions = WAYS[way]
    plain = residual_network(3, (2, 4, 4))
    graph = lowered(plain, 4, copies, halving, convolutions, technique)
    images = images_for(plain, 4, seed=5)
    expected = plain.evaluate(images)
    found = in_slots(graph, images, technique)
    assert np.allclose(found, expected, atol=1e-6 * np.max(np.abs(expected)))
    others = images.copy()
    others[[0, 2, 3]] = images_for(plain, 3, seed=6)
    assert np.allclose(in_slots(graph, others, technique)[1], found[1], atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 8]))
def test_random_networks(seed: int, batch: int) -> None:
    plain, _ = random_network(seed)
    images = images_for(plain, batch, seed=seed + 1)
    expected = plain.evaluate(images)
    found = in_slots(lowered(plain, batch), images)
    assert np.allclose(found, expected, atol=1e-6 * max(1.0, np.max(np.abs(expected))))


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_takes_the_primitives_of_one_image(way: str) -> None:
    """Rotations move each image by the same steps as one image with as many slots is moved."""
    copies, halving, convolutions = WAYS[way]
    events = {}
    for batch in (1, 4):
        graph = lowered(residual_network(3, (2, 4, 4)), batch, copies, halving, convolutions)
        parameters = parameters_of(FIXED, batch)
        found = record(graph, parameters).events
        turn = parameters.conjugation_step
        events[batch] = Counter(
            (one.primitive, one.level, "conjugation" if one.step == turn else one.step // batch) for one in found
        )
        assert all(one.step % batch == 0 for one in found)
    assert events[4] == events[1]


def test_keys_are_those_of_the_steps_of_ciphertexts() -> None:
    parameters = Parameters(10, 2, 30, 36, 1, security=0)
    simulator = SimulatorEvaluator(parameters, [12])
    lanes = in_lanes(simulator, 4)
    values = np.asarray(range(512), dtype=np.float64)
    moved = simulator.decrypt(lanes.rotate(simulator.encrypt(values, 2), 3))
    assert np.allclose(moved, np.roll(values, -12), atol=1e-6)
    with pytest.raises(MissingKeyError, match="step 4"):
        lanes.rotate(simulator.encrypt(values, 2), 1)
    assert in_lanes(simulator, 1) is simulator


def test_a_run_on_no_data_encodes_what_a_run_encodes() -> None:
    graph = lowered(residual_network(3, (2, 4, 4)), 4)
    parameters = parameters_of(FIXED, 4)
    encoded: list[Array] = []

    class Keeping(SimulatorEvaluator):
        def _encode(self, values, level, scale):  # type: ignore[no-untyped-def]
            encoded.append(np.asarray(values()))
            return super()._encode(values, level, scale)

    keeping = Keeping(parameters, record(graph, parameters).rotations)
    encoder = Encoder(keeping)
    source = graph.inputs[0]
    execute(graph, build_kernels(graph), encoder, {source.id: (encoder.fresh(source.state.level),)})
    first, encoded = encoded, []
    fresh = tuple(keeping.encrypt(page, source.state.level) for page in source.layout.pack(np.zeros((4, 2, 4, 4))))
    execute(graph, build_kernels(graph), keeping, {source.id: fresh})
    assert len(first) == len(encoded) > 10
    assert all(np.array_equal(one, other) for one, other in zip(first, encoded, strict=True))


def test_bootstraps_work_on_the_slots_of_all_images() -> None:
    """Content that repeats after 16 slots of an image repeats after 64 of a ciphertext of four."""
    graph = lowered(residual_network(3, (2, 4, 4)), 4)
    kind = replace(graph[graph.outputs[0]].type, bound=None)
    layout = graph[graph.outputs[0]].layout
    log_slots = layout.ciphertext_repeats_after.bit_length() - 1
    assert bootstrap_fault(kind, log_slots) is None
    assert bootstrap_fault(kind, log_slots - 1) is not None
    parameters = Parameters(10, 18, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(2, log_slots=6))
    simulator = SimulatorEvaluator(parameters)
    lanes = LaneEvaluator(simulator, 4)
    values: Array = np.tile(np.linspace(-0.9, 0.9, 64), 8)
    raised = lanes.bootstrap(simulator.encrypt(values, 4))
    assert np.allclose(simulator.decrypt(raised), values, atol=1e-2)
    with pytest.raises(VerificationError, match="do not repeat"):
        lanes.bootstrap(simulator.encrypt(np.sort(values), 4))


def test_recorded_kernels_count_the_steps_of_ciphertexts() -> None:
    parameters = Parameters(10, 2, 30, 36, 1, security=0)
    recorder = RecorderEvaluator(parameters)
    lanes = in_lanes(recorder, 8)
    a = recorder.fresh(2)
    lanes.rotate_sum([(a, 0), (a, 5)])
    found = lanes.rotate_hoisted(a, [0, 1, 65])  # an image has 64 slots
    assert sorted(found) == [0, 1]
    assert recorder.rotations == (8, 40)
