"""Compositions of rotation steps, against all that exist; and which steps of a program get keys."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from olac.analysis.estimate import LOADING_KEYS, Sizes, key_reading_seconds
from olac.analysis.rotation_keys import KeyChoice, Uses, fewer_keys, held_within, memory_line, within
from olac.backends.cost import CostEvaluator
from olac.backends.simulator import SimulatorEvaluator
from olac.ckks.bootstrapping import bootstrap_model
from olac.ckks.engines import OPENFHE
from olac.ckks.key_pool import evictions
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FIXED, FLEXIBLE
from olac.ckks.rotations import MOST_STEPS, composition
from olac.costs.table import CostTable
from olac.kernels.execute import build_kernels, execute
from olac.kernels.record import record
from olac.program.program import CompiledProgram
from olac.report import parameter_lines
from olac.selection.notes import paging_notes
from olac.selection.price import MACHINE_BYTES, Candidate, Draft, price, with_keys
from tests.networks import key_steps
from tests.runtime.small_program import images, small_program

TABLE = CostTable.default()


def brute_force(step: int, held: frozenset[int], slots: int) -> tuple[int, ...] | None:
    for length in range(MOST_STEPS + 1):
        found = [
            path
            for path in itertools.combinations_with_replacement(sorted(held), length)
            if (sum(path) - step) % slots == 0
        ]
        if found:
            return min(found)
    return None


@pytest.mark.parametrize("seed", range(20))
def test_compositions_are_the_least_of_all(seed: int) -> None:
    chosen = random.Random(seed)
    slots = 64
    held = frozenset(chosen.sample(range(1, slots), chosen.randint(0, 8)))
    lengths = set()
    for step in range(-slots, slots):
        path = composition(step, held, slots)
        assert path == brute_force(step, held, slots)
        lengths.add(None if path is None else len(path))
        unused = held - set(path or ())
        for other in unused:
            if path is not None:
                assert composition(step, held - {other}, slots) == path
    assert seed > 0 or {0, 1, 2, 3} <= lengths


PARAMETERS = Parameters(12, 4, 35, 42, 2, FIXED, security=0)
PRICER = CostEvaluator(PARAMETERS, TABLE, 1)
ONE_KEY = OPENFHE.key_bytes(PARAMETERS, PARAMETERS.depth)


def sized(keys: int) -> Sizes:
    return Sizes(keys * ONE_KEY, 0, 0, 0, 0, True)


def seconds_at_which_a_key_pays(extra: float, keys: int) -> float:
    """Seconds of a run for which `extra` seconds and one key less leave the product of seconds and bytes unchanged."""
    before, after = MACHINE_BYTES + sized(keys).server_bytes, MACHINE_BYTES + sized(keys - 1).server_bytes
    return extra * after / (before - after)


def chosen_keys(uses: Uses, seconds: float, keys: int, max_memory: float | None = None) -> KeyChoice:
    order = [step for turn in range(int(max(uses.values()))) for (step, _), times in uses.items() if turn < times]
    return with_keys(uses, order, PRICER, seconds, sized(keys), 0.0, max_memory)


@pytest.mark.parametrize("times", [1, 3])
def test_a_key_is_given_up_exactly_if_that_pays(times: int) -> None:
    uses = {(1, 4): 100, (2, 4): 100, (3, 2): times}
    even = seconds_at_which_a_key_pays(times * PRICER.price("rotate", 2), 4)
    kept = chosen_keys(uses, 0.99 * even, 4)
    assert (kept.steps, kept.seconds, kept.sizes) == ((1, 2, 3), 0.99 * even, sized(4))
    gone = chosen_keys(uses, 1.01 * even, 4)
    assert gone.steps == (1, 2) and gone.sizes == sized(3)
    assert gone.seconds == pytest.approx(1.01 * even + times * PRICER.price("rotate", 2))


def test_three_rotations_have_to_pay_for_two_more() -> None:
    uses = {(1, 4): 1000, (16, 4): 1000, (33, 2): 1}  # 33 = 1 + 16 + 16
    even = seconds_at_which_a_key_pays(2 * PRICER.price("rotate", 2), 4)
    assert chosen_keys(uses, 0.99 * even, 4).steps == (1, 16, 33)
    assert chosen_keys(uses, 1.01 * even, 4).steps == (1, 16)


def test_within_a_limit_keys_stay_and_beyond_it_the_least_missed_are_given_up() -> None:
    uses: Uses = {(1, 4): 100, (2, 4): 100, (3, 4): 9, (4, 4): 2, (5, 4): 5}
    whole = sized(6).server_bytes
    everything = chosen_keys(uses, 1e6, 6, whole)
    assert everything.steps == (1, 2, 3, 4, 5) and everything.held == everything.pool == 5
    one_less = chosen_keys(uses, 1.0, 6, whole - 1)
    assert one_less.steps == (1, 2, 3, 5)  # 4 = 1 + 3, so 3 stays as well
    assert one_less.seconds == pytest.approx(1.0 + 2 * PRICER.price("rotate", 4))
    two_less = chosen_keys(uses, 1.0, 6, sized(4).server_bytes)
    assert two_less.steps == (1, 2, 3)  # 5 = 2 + 3
    assert two_less.sizes == sized(4) and two_less.held == two_less.pool == 3


@pytest.mark.parametrize("held", [1, 2, 4])
def test_if_no_key_can_be_given_up_some_are_read_when_needed(held: int) -> None:
    keys = 5 + LOADING_KEYS
    uses = {(step, 4): 7 for step in range(1, 1 + keys)}
    limit = sized(1 + held + LOADING_KEYS).server_bytes + 1
    order = [step for _ in range(7) for step, _ in uses]
    found = within(
        itertools.islice(fewer_keys(uses, PARAMETERS, PRICER.price, 1.0, sized(1 + keys), lambda _, b: b), 1),
        order,
        PRICER,
        0.0,
        limit,
    )
    assert len(found.steps) == found.pool == keys and found.held == held
    assert found.sizes.server_bytes == pytest.approx(limit)
    assert found.reads == evictions(order, held).total() > 0
    assert found.seconds == pytest.approx(1.0 + found.reads * key_reading_seconds(PRICER, PARAMETERS.depth))


def test_of_composing_and_reading_the_faster_is_taken() -> None:
    """Keys that are used in blocks are read once each; keys that are used in turn are read again and again."""
    uses: Uses = {(step, 4): 1000 for step in range(1, 9)}
    limit = sized(6).server_bytes
    in_turn = [step for _ in range(1000) for step in range(1, 9)]
    in_blocks = [step for step in range(1, 9) for _ in range(1000)]
    read = with_keys(uses, in_blocks, PRICER, 1.0, sized(9), 0.0, limit)
    composed = with_keys(uses, in_turn, PRICER, 1.0, sized(9), 0.0, limit)
    assert read.reads == 8 - read.held > 0 and len(read.steps) == 8
    assert composed.reads == 0 and len(composed.steps) == 5
    assert read.seconds < composed.seconds and max(read.sizes.server_bytes, composed.sizes.server_bytes) <= limit


def priced(program: CompiledProgram, max_memory: float | None = None) -> Candidate:
    draft = Draft(program.parameters, program.graph)
    return price(pricer(program), draft, draft.work, max_memory)


def pricer(program: CompiledProgram) -> CostEvaluator:
    return CostEvaluator(program.parameters, TABLE, 1)


def test_a_note_says_what_a_server_holds_and_reads() -> None:
    program = small_program()
    whole, least = priced(program), priced(program, 1.0)
    limit = least.server_bytes
    paged = priced(program, limit)
    keys = paged.keys
    assert paged.server_bytes <= limit and keys.reads > 0 and keys.held < keys.pool
    (note,) = paging_notes(paged.keys, limit)
    assert f"of the {keys.pool} rotation keys" in note
    assert f"holds {keys.held} at a time" in note and f"reads {keys.reads} keys" in note
    assert paging_notes(whole.keys, None) == paging_notes(whole.keys, whole.server_bytes) == ()
    made = CompiledProgram(program.graph, program.parameters, keys.steps)
    again = held_within(made, limit, TABLE, 1)
    assert (again.held, again.pool, again.reads, again.sizes) == (keys.held, keys.pool, keys.reads, keys.sizes)
    estimate = made.estimate(1, costs=TABLE)
    reading = keys.reads * key_reading_seconds(pricer(made), made.parameters.depth)
    assert again.seconds == pytest.approx(estimate.first_seconds + reading)
    assert note == f"within max_memory = {memory_line(keys, limit)}"
    assert "holds all keys" in memory_line(held_within(made, 1e9, TABLE, 1), 1e9)
    assert "takes at least" in memory_line(held_within(made, 1e6, TABLE, 1), 1e6)


def test_encoded_weights_give_way_before_keys_do() -> None:
    uses: Uses = {(step, 4): 1000 for step in range(1, 9)}
    order = [step for _ in range(1000) for step in range(1, 9)]
    size = replace(sized(9), plaintext_bytes=4 * ONE_KEY)
    for left, spent in ((4, 0.0), (3, 0.25), (1, 0.75), (0, 1.0)):
        limit = replace(size, plaintext_bytes=left * ONE_KEY).server_bytes + 1
        found = with_keys(uses, order, PRICER, 1.0, size, 1e-3, limit)
        assert len(found.steps) == found.held == 8 and found.reads == 0
        assert found.seconds == pytest.approx(1.0 + 1e-3 * spent)
        assert found.sizes.plaintext_bytes == pytest.approx(left * ONE_KEY, abs=2)
    beyond = with_keys(uses, order, PRICER, 1.0, size, 1e-3, sized(9).server_bytes - 1)
    assert len(beyond.steps) == 7 and beyond.sizes.plaintext_bytes > 0  # without the key there is room for some
    dear = with_keys(uses, order, PRICER, 1.0, size, 1e6, sized(9).server_bytes)
    assert len(dear.steps) < 8 and dear.sizes.plaintext_bytes == 4 * ONE_KEY


def test_nothing_fits_in_nothing() -> None:
    uses: Uses = {(step, 4): 1000 for step in range(1, 9)}
    least = chosen_keys(uses, 1.0, 9, 1.0)
    assert least.sizes.server_bytes > 1.0
    assert chosen_keys(uses, 1.0, 9, least.sizes.server_bytes).sizes == least.sizes


def test_keys_of_bootstraps_and_of_conjugation_stay() -> None:
    deep = Parameters(11, 20, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(4))
    theirs = bootstrap_model(deep).steps
    pricer = CostEvaluator(deep, TABLE, 1)
    other = next(s for s in range(1, deep.slots) if s not in theirs and composition(s, theirs, deep.slots))
    uses: Uses = {(other, 2): 1, (min(theirs), 2): 1, (deep.conjugation_step, 2): 1}
    *_, chosen = fewer_keys(uses, deep, pricer.price, 1.0, sized(100), lambda _, size: size)
    assert set(chosen.steps) == theirs and chosen.pool == 0
    without: Uses = {(1, 2): 5, (2, 2): 1, (PARAMETERS.conjugation_step, 2): 1}
    *_, chosen = fewer_keys(without, PARAMETERS, PRICER.price, 1.0, sized(4), lambda _, size: size)
    assert chosen.steps == (1, PARAMETERS.conjugation_step) and chosen.pool == 1


def with_three_keys_less(program: CompiledProgram) -> KeyChoice:
    whole = priced(program)
    uses = record(program.graph, program.parameters).uses()
    own, sizes = pricer(program), whole.keys.sizes
    choices = fewer_keys(uses, program.parameters, own.price, whole.seconds, sizes, lambda _, size: size)
    return list(itertools.islice(choices, 4))[-1]


@pytest.mark.filterwarnings("ignore:.*compiled without security")
def test_a_program_within_less_memory(tmp_path: Path) -> None:
    """The counts predicted with fewer keys are those that the recorder counts; values and files stay right."""
    program = small_program()
    graph, parameters = program.graph, program.parameters
    whole = priced(program)
    assert whole.keys.steps == key_steps(graph, parameters)
    less = with_three_keys_less(program)
    assert len(less.steps) == len(whole.keys.steps) - 3
    made = CompiledProgram(graph, parameters, less.steps)
    assert set(made.composed) == set(whole.keys.steps) - set(less.steps) and program.composed == ()
    assert "3 rare steps are composed of others" in "\n".join(parameter_lines(made))
    estimate = made.estimate(1, costs=TABLE)
    assert estimate.server_gb == pytest.approx(less.sizes.server_bytes / 1e9)
    assert program.estimate(1, costs=TABLE).seconds_per_image < estimate.seconds_per_image
    assert 0.95 * less.seconds < estimate.seconds_per_image < 1.001 * less.seconds  # some share a rotation
    evaluator = CostEvaluator(parameters, TABLE, 1, encoded=True, rotations=less.steps)
    record(graph, parameters, recorder=evaluator)
    assert estimate.seconds_per_image == pytest.approx(evaluator.seconds)
    assert set(evaluator.rotations) <= {*less.steps, parameters.conjugation_step}
    made.save(tmp_path / "program.olac")
    loaded = CompiledProgram.load(tmp_path / "program.olac")
    assert (loaded.rotations, loaded.composed) == (made.rotations, made.composed)
    x = images()
    simulator = SimulatorEvaluator(parameters, loaded.rotations)
    given, wanted = program.input.type, program.output.type
    assert given.layout is not None and given.state is not None and wanted.layout is not None
    slots = given.layout.pack(x / given.unit)
    fresh = tuple(simulator.encrypt(part, given.state.level) for part in slots)
    (output,) = execute(graph, build_kernels(graph), simulator, {program.input.id: fresh})
    answer = wanted.layout.unpack(np.stack([simulator.decrypt(part) for part in output])) * wanted.unit
    np.testing.assert_allclose(answer, program.simulate(x), atol=1e-9)


def test_every_step_less_changes_the_fingerprint() -> None:
    program = small_program()
    assert replace(program, rotations=program.rotations[1:]).fingerprint != program.fingerprint
