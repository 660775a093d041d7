"""What pages show, as data: what is predicted, measured and not known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from olac.ckks.engines import OPENFHE
from olac.ckks.parameters import Parameters
from olac.costs.table import CostTable
from olac.errors import ArtifactError
from olac.pages.data import Data, costliest, gather, security_fact
from olac.pages.record import RunRecord
from tests.pages.examples import record_of, shown_program
from tests.runtime.small_program import deep_program, small_program

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")
PROGRAM = shown_program()


def _facts(data: Data) -> dict[str, tuple[str, str, bool]]:
    return {one.name: (one.value, one.more, one.bad) for one in (*data.facts, *data.keys)}


def test_without_a_record_it_says_what_is_not_measured() -> None:
    data = gather(small_program())
    assert data.title.startswith("Program ") and not data.has_curves and not data.has_measured and not data.has_errors
    facts = _facts(data)
    assert facts["time an input"][1] == "predicted" and facts["security"] == (
        "NOT SECURE",
        "compiled with insecure=True, for tests",
        True,
    )
    torch, simulated, encrypted = data.stages
    assert torch.value == "reference" and simulated.value == "100%" and "0.0500 on average" in simulated.errors[0]
    assert not encrypted.known and "olac debug --json" in encrypted.how and data.notes == ("a note",)
    unchecked = gather(deep_program())
    assert not unchecked.stages[1].known and unchecked.bootstraps == 2


def test_security_is_that_of_the_parameters_and_a_warning_if_it_is_less_than_asked() -> None:
    secure, earlier = Parameters(14, 6, 40, 47, 7), Parameters(14, 7, 46, 52, 8)
    claim = security_fact(secure, OPENFHE.log_qp(secure))
    assert claim.value.endswith(" bits") and int(claim.value.split()[0]) >= 128 and not claim.bad
    claim = security_fact(earlier, OPENFHE.log_qp(earlier))
    assert int(claim.value.split()[0]) < 128 and claim.bad and "less than the 128" in claim.more


def test_what_was_measured_stands_beside_what_was_predicted() -> None:
    record = record_of(PROGRAM)
    data = gather(PROGRAM, record, curves=PROGRAM.curves)
    facts = _facts(data)
    assert facts["time an input"][0] == "5.25 s" and "measured; predicted" in facts["time an input"][1]
    assert facts["server memory"][0] == "750 MB" and facts["paged in the run"][:2] == (
        "4",
        "held at a time, 9 reads from their file",
    )
    assert [one.value for one in data.stages] == ["97.0%", "96.0%", "95.0%"]
    assert data.stages[2].errors[0] == "1 of 2 agree with the simulation"
    estimate = PROGRAM.estimate()
    for i, (step, node) in enumerate(zip(data.steps, PROGRAM.graph.nodes, strict=True)):
        assert step.name == node.id and step.level == node.state.level
        assert step.predicted == pytest.approx(estimate.node_seconds[node.id])
        assert step.measured == (i + 1) / 4  # two inputs took two sets of ciphertexts
        assert [data.steps[k].name for k in step.inputs] == list(node.inputs)
    assert data.steps[1].bits is None and data.steps[0].bits == 12.5
    assert [one.name for one in costliest(data.steps, 2)] == [data.steps[-1].name, data.steps[-2].name]


def test_a_comparison_alone_gives_seconds_but_no_memory() -> None:
    whole = record_of(PROGRAM)
    data = gather(PROGRAM, RunRecord(whole.fingerprint, layers=whole.layers, outputs=whole.outputs))
    assert data.has_measured and data.steps[0].measured == 0.5 and data.steps[0].process_gb is None
    assert data.stages[2].value == "1 of 2" and not data.run_line


def test_memory_is_that_of_the_estimate() -> None:
    data, estimate = gather(PROGRAM), PROGRAM.estimate()
    server, client = (sum(part.size for part in stack.parts) for stack in data.stacks)
    assert server == pytest.approx(estimate.server_gb * 1e9) and client == pytest.approx(estimate.client_gb * 1e9)
    assert max(step.alive for step in data.steps) == estimate.ciphertext_bytes


def test_keys_that_are_paged_within_a_limit() -> None:
    program = shown_program()
    roomy = replace(program, report=replace(program.report, max_memory=8e9))
    assert _facts(gather(roomy))["paged keys"][0] == "none"
    least = gather(program).estimate.sizes.least_server_bytes
    tight = replace(program, report=replace(program.report, max_memory=least - 1.5e6))
    value, more, _ = _facts(gather(tight))["paged keys"]
    assert value != "none" and "reads from their file" in more


def test_activations_plans_and_curves() -> None:
    data = gather(PROGRAM, curves=PROGRAM.curves)
    (card,) = data.cards
    assert data.title == "SmallNet" and card.fit.node == "act" and card.curve is not None and card.curve.effect == 0.125
    assert [(plan.degrees, plan.chosen) for plan in data.plans] == [((3,), False), ((7,), True)]
    assert data.price_name == "levels of all activations"
    by_time = tuple(replace(point, price=point.price + 0.5) for point in PROGRAM.report.front)
    timed = replace(PROGRAM, report=replace(PROGRAM.report, front=by_time))
    assert gather(timed).price_name == "predicted seconds of all activations"


def test_costs_of_another_table_change_the_prediction() -> None:
    table = CostTable.default(PROGRAM.planned_for)
    factors = {key: tuple(3 * one for one in row) for key, row in table.factors.items()}
    slower = replace(table, machine="a slow one", factors=factors)
    data = gather(PROGRAM, costs=slower)
    assert "a slow one" in data.where
    assert data.estimate.seconds_per_image > 2 * gather(PROGRAM).estimate.seconds_per_image


def test_a_record_of_another_program_is_refused() -> None:
    with pytest.raises(ArtifactError, match="the record is of the program"):
        PROGRAM.html(run=record_of(deep_program()))
