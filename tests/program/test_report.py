"""Reports for people: the claim of security names its grounds."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.table import Table

from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.ir.lowerings import Diagonals
from olac.report import debug_table, parameter_lines, plan_table
from olac.runtime.debug import Row
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


# Tables in 80 columns -------------------------------------------------------------------------------------------------


def in_80_columns(table: Table) -> list[list[str]]:
    """The words of each line, of which none is cut off."""
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    assert "\u2026" not in text and max(map(len, text.splitlines())) <= 80
    return [line.split() for line in text.splitlines()]


def test_the_plan_keeps_its_numbers_whole_in_80_columns() -> None:
    program = deep_program()
    names = {node.id: f"layer4_1_shortcut_conv_bn_{node.id}" for node in program.graph.nodes}
    nodes = [
        replace(node, id=names[node.id], inputs=tuple(names[one] for one in node.inputs))
        for node in program.graph.nodes
    ]
    graph = replace(program.graph, nodes=tuple(nodes), outputs=tuple(names[one] for one in program.graph.outputs))
    long = replace(program, graph=graph)
    seconds = {node.id: 123456.789 if node.op.name == "bootstrap" else 999.123 for node in long.graph.nodes}
    rows = in_80_columns(plan_table(long, seconds, seconds))
    assert sum(row[-2:] == ["123457", "123457"] for row in rows) == 2
    assert sum(row[-2:] == ["999.123", "999.123"] for row in rows) == len(nodes) - 2
    assert sum("polynomial" in row for row in rows) == 3


def test_a_comparison_keeps_its_exponents_in_80_columns() -> None:
    name = "features_denseblock4_denselayer12_conv2"
    row = Row(name, "polynomial_product", 38, 1e-10, 1.5e-100, 22.345, 1.25e5, 3e-7, 1048576, 1234.5)
    rows = in_80_columns(debug_table([row]))
    numbers = ["38", "1.5e-100", "1.0e-10", "22.3", "1.2e+05", "3e-07", "1048576", "1234"]
    assert numbers in [one[-8:] for one in rows]
    names = [word for one in rows[5:] for word in one if not word[0].isdigit()]
    assert "".join(names) == f"{row.layer}{row.op}"
