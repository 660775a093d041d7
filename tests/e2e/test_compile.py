"""olac.compile: its options, what it refuses, and that it leaves the model alone."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.ckks.parameters import BOOTSTRAP_FIRST_BITS, BOOTSTRAP_SCALE_BITS, Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.costs.table import CostTable
from olac.errors import InfeasibleError, InputError, SecurityError, UnsupportedModelError
from olac.ir import Graph, Stage
from olac.ir.ops import Bootstrap
from olac.passes.base import Pass, PassContext
from olac.passes.pipeline import approximation_pipeline, lowering_pipeline
from olac.passes.place_bootstraps import PlaceBootstraps
from olac.program.program import CompiledProgram
from olac.report import parameter_lines
from olac.selection.generate import FEW_DIGITS
from olac.selection.price import MACHINE_BYTES


def small_net(layers: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for i in range(layers):
        parts += [nn.Linear(6 if i == 0 else 8, 8), nn.Tanh()]
    return nn.Sequential(*parts, nn.Linear(8, 3))


def images(count: int = 64) -> torch.Tensor:
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_a_table_of_costs_decides_on_lowerings() -> None:
    table = CostTable.default()

    def dear(*primitives: str) -> CostTable:
        factors = {
            key: tuple((1000 if key.primitive in primitives else 1) * x for x in row)
            for key, row in table.factors.items()
        }
        return replace(table, factors=factors)

    shipped = olac.compile(small_net(), [images()], degree=3, engine=table.engine.name)
    assert olac.compile(small_net(), [images()], degree=3, costs=table).fingerprint == shipped.fingerprint
    products = dear("multiply_plain", "encode", "ext_add")
    rotations = dear("rotate", "hoisted_rotate", "ext_rotate", "hoist", "key_switch_down", "rotation_keygen")
    few_products = olac.compile(small_net(), [images()], degree=3, costs=products)
    few_rotations = olac.compile(small_net(), [images()], degree=3, costs=rotations)
    assert len(few_rotations.rotations) <= len(shipped.rotations) < len(few_products.rotations)
    for costs in (products, rotations):
        assert shipped.estimate(costs=costs).seconds_per_image > 10 * shipped.estimate().seconds_per_image


def test_a_table_of_costs_limits_the_latency_of_activations() -> None:
    table = CostTable.default()
    slow = replace(table, factors={key: tuple(1000 * x for x in row) for key, row in table.factors.items()})
    allowed = olac.compile(small_net(), [images()], max_latency=5.0)
    assert allowed.estimate().seconds_per_image < 5.0
    with pytest.raises(InfeasibleError, match="predicted seconds"):
        olac.compile(small_net(), [images()], max_latency=5.0, costs=slow)


def test_the_smallest_secure_ring_is_taken() -> None:
    program = olac.compile(small_net(), [images()], degree=3)
    parameters = program.parameters
    assert parameters.security_bits >= 128
    assert parameters.depth == 4
    assert parameters.log_ring == 13
    assert olac.compile(small_net(), [images()], degree=3, security=256).parameters.security_bits >= 256
    finer = olac.compile(small_net(), [images()], degree=3, precision=1e-6).parameters
    assert finer.scale_bits > parameters.scale_bits


def test_more_levels_take_a_larger_ring() -> None:
    rings = [olac.compile(small_net(n), [images()], degree=7).parameters.log_ring for n in (1, 2, 4)]
    assert rings == sorted(rings)
    assert rings[-1] > rings[0]


def repeating(program: CompiledProgram) -> list[int]:
    """Slots after which the values that a program bootstraps repeat."""
    layouts = (node.type.layout for node in program.graph.nodes if isinstance(node.op, Bootstrap))
    return [layout.repeats_after for layout in layouts if layout is not None]


DEEP = 12
"""Layers of the least network that no chain is long enough for."""


@pytest.fixture(scope="module")
def usual() -> tuple[CompiledProgram, list[str]]:
    """The deep network, compiled with default options, and the names of the passes that were dumped."""
    dumps: list[str] = []
    program = olac.compile(
        small_net(DEEP),
        [images()],
        degree=15,
        dump_after=("assign_layouts", "assign_levels"),
        dump=lambda name, text: dumps.append(name),
    )
    return program, dumps


def test_what_is_too_deep_for_any_chain_gets_bootstraps(usual: tuple[CompiledProgram, list[str]]) -> None:
    program, dumps = usual
    assert dumps == ["assign_layouts", "assign_levels"]
    parameters = program.parameters
    assert parameters.bootstrapping is not None
    assert (parameters.log_ring, parameters.security, parameters.technique) == (16, 128, FLEXIBLE)
    assert program.planned_for.log_qp(parameters) <= 1553
    assert sum(isinstance(node.op, Bootstrap) for node in program.graph.nodes) > 2
    assert parameters.log_bootstrap_slots == max(repeating(program)).bit_length() - 1 < 15
    assert set(program.rotations) >= program.planned_for.bootstraps(parameters).steps
    estimate = program.estimate()
    assert estimate.server_gb > (estimate.key_bytes + estimate.setup_bytes) / 1e9 > 1
    assert 0 < estimate.setup_seconds < 300
    x = images().double().numpy()
    expected = olac.approximate(small_net(DEEP), [images()], degree=15).simulate(x)
    np.testing.assert_allclose(program.simulate(x), expected, atol=2e-3)  # bootstraps take values through a sine


def test_bootstraps_that_take_too_much_memory_say_what_would_do() -> None:
    deep = small_net(DEEP)
    with pytest.raises(
        InfeasibleError, match=r"(?s)max_memory = 2\.00 GB.*bootstraps to level.*: \d+\.\d\d GB.*Allow at"
    ) as caught:
        olac.compile(deep, [images()], degree=15, max_memory=2e9)
    found = re.search(r"Allow at least (\d+\.\d\d) GB", str(caught.value))
    assert found is not None
    enough = olac.compile(deep, [images()], degree=15, max_memory=float(found[1]) * 1e9)
    assert enough.estimate().server_gb <= float(found[1])
    with pytest.raises(InfeasibleError, match=rf"Allow at least {found[1]} GB"):
        olac.compile(deep, [images()], degree=15, max_memory=float(found[1]) * 1e9 - 1.1e7)


def test_a_precision_with_bootstraps_is_met_or_refused(usual: tuple[CompiledProgram, list[str]]) -> None:
    """Simulated with the measured noise of bootstraps; without a precision the usual scale is taken."""
    program, _ = usual
    assert program.report.noise is not None
    assert (program.parameters.scale_bits, program.parameters.first_bits) == (
        BOOTSTRAP_SCALE_BITS,
        BOOTSTRAP_FIRST_BITS,
    )
    assert f"change outputs by up to {program.report.noise:.2g} of their range" in "\n".join(parameter_lines(program))
    finer = olac.compile(small_net(DEEP), [images()], degree=15, precision=program.report.noise / 8)
    assert finer.report.noise is not None
    assert finer.report.noise <= program.report.noise / 8
    assert finer.parameters.scale_bits > BOOTSTRAP_SCALE_BITS
    with pytest.raises(InfeasibleError, match=r"do not keep a precision of 1e-08") as refused:
        olac.compile(small_net(DEEP), [images()], degree=15, precision=1e-8)
    told = r"by ([0-9.e-]+) of their range at best\. Ask for a precision of ([0-9.e-]+),"
    asked = re.search(told, str(refused.value))
    assert asked is not None
    assert 0.95 * float(asked[1]) <= float(asked[2]) < 1.2 * float(asked[1])
    assert olac.compile(small_net(DEEP), [images()], degree=15, precision=float(asked[2])).report.noise is not None


def test_without_a_limit_memory_counts_too() -> None:
    """Of the numbers of digits the one whose run keeps a server's memory and time the least; the lines say how much."""
    lines: list[str] = []
    program = olac.compile(small_net(4), [images()], degree=7, threads=1, progress=lines.append)
    assert program.report.noise is None
    parameters = program.parameters
    choices = [
        replace(parameters, digits=digits)
        for digits in range(1, parameters.depth + 2)
        if Parameters.valid_digits(parameters.depth, digits)
    ]
    secure = [one for one in choices if one.secure and program.planned_for.takes(one)]
    made = {one.digits: replace(program, parameters=one).estimate(1) for one in secure}
    occupied = {d: e.seconds_per_image * (MACHINE_BYTES + e.server_gb * 1e9) for d, e in made.items()}
    assert len(occupied) > 3
    assert min(occupied, key=occupied.__getitem__) == parameters.digits
    assert any(f"{made[parameters.digits].server_gb:.2f} GB of memory, or " in line for line in lines)


def test_a_ring_that_needs_many_digits_is_held_against_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a ring holds the chain with many digits alone, keys are large there: the next one may be better in all."""
    deep: dict[str, Any] = {"degree": 7, "threads": 1}
    rings = {n: olac.compile(small_net(n), [images()], **deep).parameters for n in (1, 2, 3, 4, 5, 6, 7)}
    tight = {n: p for n, p in rings.items() if _least_digits(p) > FEW_DIGITS}
    passed = [n for n, p in rings.items() if p.log_ring > 12 and _holds(replace(p, digits=p.depth + 1), p.log_ring - 1)]
    assert tight or passed
    for n in passed:
        lower_ring = olac.compile(small_net(n), [images()], log_ring=rings[n].log_ring - 1, **deep)
        made = olac.compile(small_net(n), [images()], **deep)
        here, there = (
            one.estimate(1).seconds_per_image * (MACHINE_BYTES + one.estimate(1).server_gb * 1e9)
            for one in (made, lower_ring)
        )
        assert here <= there
        assert _least_digits(lower_ring.parameters) > FEW_DIGITS


def _holds(parameters: Parameters, log_ring: int) -> bool:
    return replace(parameters, log_ring=log_ring).secure


def _least_digits(parameters: Parameters) -> int:
    choices = (d for d in range(1, parameters.depth + 2) if Parameters.valid_digits(parameters.depth, d))
    return min(d for d in choices if _holds(replace(parameters, digits=d), parameters.log_ring))


def test_what_bootstraps_do_not_help_is_refused() -> None:
    """Other securities and pinned scales have none; a precision that no scale gives stays infeasible."""
    deep = {"degree": 15}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("without bootstrapping", deep | {"security": 192}),
        ("without bootstrapping", deep | {"scale_bits": 40}),
        ("a precision of", {"degree": 3, "precision": 1e-13}),
    ]
    for message, choices in cases:
        with pytest.raises(InfeasibleError, match=message):
            olac.compile(small_net(20 if choices["degree"] == 15 else 1), [images()], **choices)
    without = tuple(one for one in lowering_pipeline() if not isinstance(one, PlaceBootstraps))
    with pytest.raises(InfeasibleError, match="without bootstrapping"):
        olac.compile(small_net(20), [images()], degree=15, lowering=without)


def test_levels_between_bootstraps_that_do_not_suffice_name_the_node() -> None:
    pinned = Parameters(11, 18, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(2))
    with pytest.raises(InfeasibleError, match=r"(?s)not even with bootstraps.*levels run out at .* from "):
        olac.compile(small_net(6), [images()], degree=7, parameters=pinned, insecure=True)


def test_pinned_parameters_are_taken_or_refused_never_replaced() -> None:
    setup = Bootstrapping(6)
    pinned = Parameters(11, setup.depth, 40, 47, 3, FLEXIBLE, 0, setup)
    with pytest.raises(ValueError, match="insecure=True"):
        olac.compile(small_net(8), [images()], degree=7, parameters=pinned)
    program = olac.compile(small_net(8), [images()], degree=7, parameters=pinned, insecure=True)
    assert program.parameters == pinned
    assert any(isinstance(node.op, Bootstrap) for node in program.graph.nodes)
    largest = max(repeating(program))
    assert largest < pinned.slots
    part = replace(pinned, bootstrapping=replace(setup, log_slots=largest.bit_length()))  # twice as many as needed
    assert olac.compile(small_net(8), [images()], degree=7, parameters=part, insecure=True).parameters == part
    assert any("NOT SECURE" in note for note in program.report.notes)
    with pytest.raises(SecurityError, match="exceeds the 0 bits"):
        olac.compile(small_net(20), [images()], degree=15, parameters=replace(pinned, security=128))
    with pytest.raises(ValueError, match="128-bit security, 192 bits are asked for"):
        olac.compile(small_net(), [images()], parameters=replace(pinned, security=128), security=192)
    leveled = Parameters(13, 3, 30, 37, 4)
    with pytest.raises(InfeasibleError, match="takes 4 levels, the pinned parameters have 3"):
        olac.compile(small_net(), [images()], degree=3, parameters=leveled)
    assert (
        olac.compile(small_net(), [images()], degree=3, parameters=Parameters(13, 4, 29, 36, 5)).parameters.depth == 4
    )


def test_a_pinned_ring_that_is_too_small_is_refused_and_insecure_waives_it() -> None:
    with pytest.raises(SecurityError, match="insecure=True"):
        olac.compile(small_net(), [images()], degree=7, log_ring=12)
    program = olac.compile(small_net(), [images()], degree=7, log_ring=12, insecure=True)
    assert program.parameters.log_ring == 12
    assert any("NOT SECURE" in note for note in program.report.notes)


def test_too_little_memory_says_what_is_needed() -> None:
    with pytest.raises(InfeasibleError, match=r"(?s)max_memory = 0\.10 GB.*Allow at least 0\.[12]. GB"):
        olac.compile(small_net(), [images()], degree=3, max_memory=1e8)
    roomy = olac.compile(small_net(), [images()], degree=3, max_memory=4e9)
    assert roomy.estimate().server_gb < 4


@pytest.mark.filterwarnings("ignore:.*compiled without security")
def test_a_limit_of_memory_holds_for_the_program(tmp_path: Path) -> None:
    """Kept weights count in it. The least that a refusal names is met, and files carry the limit."""
    torch.manual_seed(0)
    parts = (nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 64))
    model, x = nn.Sequential(*parts), torch.rand(48, 1, 8, 8)
    pinned: dict[str, Any] = {"degree": 3, "insecure": True, "log_ring": 12, "reconstruct": 0}
    free = olac.compile(model, [x], **pinned)
    whole = free.estimate()
    assert free.max_memory is None
    assert whole.server_gb > whole.server_gb_without_kept_weights + 0.9 * whole.plaintext_bytes / 1e9
    limits = np.linspace(whole.server_gb_without_kept_weights, whole.server_gb, 3)
    seconds = []
    for limit in limits:
        made = olac.compile(model, [x], max_memory=f"{limit * 1e9:.0f} B", **pinned)
        made.save(tmp_path / "p.olac")
        for program in (made, CompiledProgram.load(tmp_path / "p.olac")):
            assert program.max_memory == pytest.approx(limit * 1e9)
            found = program.estimate()
            assert found.server_gb_without_kept_weights <= found.server_gb <= limit * (1 + 1e-6)
        seconds.append(found.seconds_per_image)
    assert seconds == sorted(seconds, reverse=True) and seconds[0] > 1.1 * seconds[-1]
    with pytest.raises(InfeasibleError, match=r"Allow at least (\d+\.\d\d) GB") as caught:
        olac.compile(model, [x], max_memory="0.1GB", **pinned)
    least = re.search(r"Allow at least (\d+\.\d\d GB)", str(caught.value))
    assert least is not None
    assert olac.compile(model, [x], max_memory=least[1], **pinned).estimate().server_gb <= float(least[1][:-3])


@pytest.mark.parametrize("amount", [8, 0, -1e9, float("nan"), float("inf"), "8", "8 apples"])
def test_limits_of_memory_that_are_none_are_refused(amount: float | str) -> None:
    with pytest.raises(ValueError, match="max_memory"):
        olac.compile(small_net(), [images()], max_memory=amount)


def test_a_server_that_takes_more_than_this_machine_has_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("olac.selection.notes.total_bytes", lambda: 200_000_000)
    (note,) = olac.compile(small_net(), [images()], degree=3).report.notes[-1:]
    assert re.search(
        r"a server takes 0\.2\d GB of memory, or 0\.2\d GB if it keeps no encoded weights; this machine has 0\.2", note
    )
    monkeypatch.setattr("olac.selection.notes.total_bytes", lambda: 20_000_000_000)
    assert not any("this machine" in note for note in olac.compile(small_net(), [images()], degree=3).report.notes)


def test_unknown_options_and_bad_values_are_named() -> None:
    with pytest.raises(TypeError, match="no option 'degre': did you mean degree"):
        olac.compile(small_net(), [images()], degre=3)  # type: ignore[call-arg]
    choices: tuple[tuple[str, Any], ...] = (
        ("degree", 0),
        ("tolerance", -1.0),
        ("precision", 0.0),
        ("batch", 0),
        ("padding", 0.5),
    )
    for name, value in choices:
        with pytest.raises(ValueError, match=name):
            olac.compile(small_net(), [images()], **{name: value})


def test_all_unsupported_places_come_in_one_error_and_from_check() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LPPool2d(2, 2), nn.LocalResponseNorm(2), nn.Flatten(), nn.Linear(18, 2))
    example = torch.rand(2, 1, 8, 8)
    with pytest.raises(UnsupportedModelError) as caught:
        olac.compile(net, [example])
    assert [node.path for node in caught.value.nodes] == ["1", "2"]
    assert tuple(olac.check(net, example)) == caught.value.nodes


def test_the_self_check_reports_on_unseen_images() -> None:
    program = olac.compile(small_net(2), [images(200)], degree=7)
    check = program.report.check
    assert check is not None
    assert check.images == 12  # of 25 that are held out; the others are for choices
    assert check.agreement > 0.9
    with torch.no_grad():
        expected = small_net(2)(images(200)).double().numpy()
    held_out = np.arange(8, 200, 16)
    error = np.abs(program.simulate(images(200)[held_out].numpy()) - expected[held_out])
    assert check.max_error == pytest.approx(error.max(), rel=1e-3)


def test_approximate_and_compile_simulate_the_same() -> None:
    approximated = olac.approximate(small_net(), [images()])
    program = olac.compile(small_net(), [images()])
    assert approximated.graph.stage == Stage.POLYNOMIAL
    assert np.allclose(approximated.simulate(images().numpy()), program.simulate(images().numpy()), atol=1e-9)
    for wrong in (np.zeros((2, 5)), np.full((1, 6), np.nan), np.zeros((1, 2, 6)), "image"):
        with pytest.raises(InputError):
            program.simulate(wrong)


@dataclass(frozen=True)
class Count(Pass):
    """Counts nodes; a pass from outside."""

    seen: tuple[int, ...] = ()
    name: ClassVar[str] = "count"
    counts: ClassVar[list[int]] = []

    def run(self, graph: Graph, context: PassContext) -> Graph:
        self.counts.append(len(graph.nodes))
        return graph


def test_a_changed_pipeline_and_dumps() -> None:
    Count.counts.clear()
    dumps: dict[str, str] = {}
    options = olac.CompileOptions(dump_after=("all",), dump=dumps.__setitem__)
    program = olac.compile(small_net(), [images()], options, pipeline=(Count(), *approximation_pipeline()))
    assert Count.counts == [4]
    assert next(iter(dumps)) == "count"
    assert next(reversed(dumps)) == "assign_levels"
    assert "graph at stage LEVELLED" in dumps["assign_levels"]
    assert [name for name, _ in program.report.pass_seconds] == list(dumps)


def test_progress_speaks_of_every_step() -> None:
    lines: list[str] = []
    olac.compile(small_net(), [images()], progress=lines.append)
    text = "\n".join(lines)
    for item in (*approximation_pipeline(), *lowering_pipeline()):
        assert f"pass {item.name}" in lines
    assert any(line.startswith("re-fitting the weights of ") for line in lines)
    for word in ("tracing", "calibrating", "fitting", "parameters", "lowering"):
        assert word in text
