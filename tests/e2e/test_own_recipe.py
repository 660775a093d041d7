"""Programs with the vector engine's own recipe of bootstraps: fewer bootstraps, files, and answers in ciphertexts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import olac
from olac.analysis.degree_bootstraps import least_bootstraps, usual_bootstrapping
from olac.analysis.noise import OutputNoise
from olac.backends.vector import available
from olac.ckks.engines import OPENFHE, VECTOR
from olac.ckks.parameters import OPENFHE_RECIPE, VECTOR_RECIPE, Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.costs.table import CostTable
from olac.errors import InfeasibleError
from olac.ir.ops import Bootstrap
from olac.options import CompileOptions
from olac.program.program import ApproximatedModel, CompiledProgram
from olac.runtime.envelope import parameter_fingerprint
from olac.selection import generate
from olac.selection.lower import lower
from tests.networks import cubic_blocks
from tests.selection.jobs import job_of

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")

BUDGET = (3, 3)
BITS = 40, 44
BLOCKS = 7


def parameters(recipe: str, rest: int) -> Parameters:
    setup = Bootstrapping(rest, BUDGET, BITS[1] - BITS[0], recipe=recipe)
    return Parameters(11, setup.depth, *BITS, 3, FLEXIBLE, 0, setup)


USUAL, OWN = parameters(OPENFHE_RECIPE, 5), parameters(VECTOR_RECIPE, 7)
"""Of the same chain."""


def made(pinned: Parameters, engine: str = "vector") -> CompiledProgram:
    graph, calibration, _ = cubic_blocks(BLOCKS)
    options = CompileOptions(threads=1, engine=engine, parameters=pinned, insecure=True)
    return lower(ApproximatedModel(graph), calibration, options)


def bootstraps(program: CompiledProgram) -> int:
    return sum(isinstance(node.op, Bootstrap) for node in program.graph.nodes)


def test_the_same_chain_takes_fewer_bootstraps() -> None:
    assert USUAL.primes == OWN.primes
    usual, own = made(USUAL), made(OWN)
    assert 0 < bootstraps(own) < bootstraps(usual)
    assert own.engine == "vector" and own.fingerprint != usual.fingerprint
    assert own.report.noise is not None and usual.report.noise is not None and own.report.noise < usual.report.noise


def test_programs_for_the_engine_are_planned_by_its_recipe_and_others_are_not() -> None:
    graph, calibration, _ = cubic_blocks(12)
    recipes = {}
    for engine in (OPENFHE, VECTOR):
        job = job_of(graph, calibration, costs=CostTable.default(engine), engine=engine.name)
        chains = [one for same in generate.chains_with_bootstraps(job, ()) for one in same]
        recipes[engine.name] = {one.bootstrapping.recipe for one in chains if one.bootstrapping}
        used = usual_bootstrapping(engine)
        assert used.bootstrapping is not None and used.bootstrapping.recipe == engine.recipe
        assert all(engine.takes(one) for one in chains)
    assert recipes == {"openfhe": {OPENFHE_RECIPE}, "vector": {VECTOR_RECIPE}}
    fewest = [least_bootstraps(graph, engine=engine).bootstraps for engine in (OPENFHE, VECTOR)]
    assert fewest[0] > fewest[1]


def test_every_measured_scale_is_tried_for_the_engine() -> None:
    graph, calibration, _ = cubic_blocks(3)
    job = job_of(graph, calibration, costs=CostTable.default(VECTOR), engine="vector", precision=1e-2)
    chains = [one for same in generate.chains_with_bootstraps(job, ()) for one in same]
    assert {(one.scale_bits, one.first_bits) for one in chains} == set(VECTOR.bootstrap_noise)


def test_other_engines_refuse_such_programs_and_name_the_one_that_runs_them() -> None:
    with pytest.raises(InfeasibleError, match="vector engine's recipe") as caught:
        made(OWN, "openfhe")
    assert str(caught.value).endswith('the vector engine takes them: engine="vector".')
    assert made(OWN, "auto").engine == "vector"
    with pytest.raises(InfeasibleError, match="OpenFHE does not take the program: its bootstraps do not follow"):
        olac.Client(made(OWN), engine="openfhe")


def test_files_say_the_recipe_only_if_it_is_not_openfhes(tmp_path: Path) -> None:
    for program, said in ((made(USUAL), False), (made(OWN), True)):
        path = tmp_path / f"{said}.olac"
        program.save(path)
        loaded = CompiledProgram.load(path)
        assert loaded.parameters == program.parameters and loaded.fingerprint == program.fingerprint
        assert (b"recipe" in path.read_bytes()) == said


def test_fingerprints_of_parameters_are_what_they_were() -> None:
    setup = Bootstrapping(9, (4, 3), 4, 14)
    deep = Parameters(16, setup.depth, 37, 41, 2, FLEXIBLE, 128, setup)
    assert parameter_fingerprint(deep) == "d32c4cbd03ce9ee348ec3d8413699b18c3b0e639c7bf299389c423ef43aaf633"
    assert (
        parameter_fingerprint(Parameters(13, 7, 37, 41, 2))
        == "e7a56ef7a8b4d15511211eab8a628525e6e0dcf49c9ddfe5ecd8887d41f974e0"
    )
    other = replace(setup, rest=11, recipe=VECTOR_RECIPE)
    assert parameter_fingerprint(replace(deep, bootstrapping=other)) != parameter_fingerprint(deep)
    assert other.depth == setup.depth


@pytest.mark.parametrize("recipe", ["", "seal", 7])
def test_recipes_that_there_are_not(recipe: object) -> None:
    with pytest.raises(ValueError, match=r"by the recipe .*: it is one of openfhe, vector"):
        Bootstrapping(4, recipe=recipe)  # type: ignore[arg-type]


@pytest.mark.encrypted
@pytest.mark.skipif(available.obstacle() != "", reason="the vector engine is not available here")
def test_encrypted_answers_are_those_of_the_simulation() -> None:
    graph, calibration, given = cubic_blocks(BLOCKS)
    program = made(OWN)
    assert bootstraps(program) > 1
    client = olac.Client(program)
    server = olac.Server(program, client.generate_keys())
    ours, expected = client.decrypt(server.run(client.encrypt(given[:1]))), program.simulate(given)
    error = np.abs(ours - expected[:1]).max() / np.abs(expected).max()
    noise = OutputNoise(graph, calibration).of_program(program.graph, program.parameters, VECTOR)
    assert 0 < error < noise < 0.01
