"""Reports for people: the claim of security names its grounds."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.ir.lowerings import Diagonals
from olac.report import parameter_lines, plan_table
from tests.runtime.small_program import deep_program, small_program

SPARSE = Parameters(16, 24, 40, 47, 2, FLEXIBLE, 128, Bootstrapping(8, correction=7))
DENSE = Parameters(14, 6, 40, 47, 7)


def lines(parameters: Parameters) -> str:
    program = small_program() if parameters.bootstrapping is None else deep_program()
    return "\n".join(parameter_lines(replace(program, parameters=parameters)))


def test_a_sparse_secret_claims_no_standard() -> None:
    text = lines(SPARSE)
    assert "128-bit security (sparse ternary secret of Hamming weight 192, within 1553" in text
    assert "Guidelines" not in text and "from level 4 to 11" in text


def test_bootstraps_on_a_part_of_the_slots_say_so() -> None:
    assert "slots" not in lines(SPARSE)
    assert SPARSE.bootstrapping is not None
    part = replace(SPARSE, bootstrapping=replace(SPARSE.bootstrapping, log_slots=12))
    assert "from level 4 to 11, on the 2^12 slots after which values repeat" in lines(part)


def test_a_dense_secret_names_model_and_source() -> None:
    text = lines(DENSE)
    assert "(uniform ternary secret, classical attacker, by the Security Guidelines" in text and "estimator" in text
    assert "less than" not in text


def test_a_program_by_earlier_bounds_says_that_it_has_less() -> None:
    earlier = Parameters(14, 7, 46, 52, 8)
    earlier.check_security(earlier=True)
    assert not earlier.secure
    assert "-bit security, less than the 128 bits that it was compiled for" in lines(earlier)


def test_no_security_is_said_in_capitals() -> None:
    text = lines(replace(DENSE, security=0))
    assert "NOT SECURE" in text and "-bit security" not in text


@pytest.mark.filterwarnings("ignore:.*compiled without security")
def test_the_plan_names_lowerings() -> None:
    program = small_program(lowering="multiplexed")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(plan_table(program))
    rows = {line.split()[0]: line for line in console.export_text().splitlines() if line.split()}
    fc = program.graph["fc"].lowering
    assert isinstance(fc, Diagonals)
    assert "multiplexed" in rows["conv"] and f"{fc.modulus}/{fc.baby}" in rows["fc"]
    assert "/" not in rows["act"] and "multiplexed" not in rows["act"]


def test_bootstraps_are_counted_by_ciphertexts() -> None:
    program = deep_program()
    count = sum(node.op.name == "bootstrap" for node in program.graph.nodes)
    assert count and any(line.startswith(f"{count} bootstraps, each from level") for line in parameter_lines(program))
