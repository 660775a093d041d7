"""Models compiled for each engine, and run on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import olac
from olac.ckks.engines import ENGINES
from olac.errors import InfeasibleError
from olac.program.program import CompiledProgram
from olac.runtime import Client, EvaluationKeys, Server, forecast
from tests.e2e.test_determinism import SMALL, images, pooled
from tests.e2e.test_strategies import Residual

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]


def compiled(engine: str, make: Any = pooled, **choices: Any) -> CompiledProgram:
    import torch

    torch.manual_seed(0)
    return olac.compile(make().eval(), [images()], engine=engine, **{**SMALL, "threads": 1, **choices})


@pytest.mark.parametrize("technique", ["FIXEDMANUAL", "FLEXIBLEAUTO"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_program_runs_on_the_engine_that_it_was_planned_for(engine: str, technique: str) -> None:
    program = CompiledProgram.from_bytes(compiled(engine, technique=technique).to_bytes())
    assert program.engine == engine
    client = Client(program)
    keys = client.generate_keys()
    assert keys.for_engine == engine
    server = Server(program, EvaluationKeys.from_bytes(program, keys.to_bytes()))
    given = images()[:1].double().numpy()
    found = client.decrypt(server.run(client.encrypt(given)))
    assert np.max(np.abs(found - program.simulate(given))) < 1e-2
    # What was predicted are the keys that were made.
    estimate = program.estimate(1)
    assert (estimate.key_bytes, estimate.key_file_bytes) == (keys.memory_bytes, keys.payload_bytes)
    assert client.key_file_bytes == keys.payload_bytes
    assert forecast(program, threads=1).slowdown is not None


def test_one_program_is_predicted_for_and_runs_on_another_engine() -> None:
    program = compiled("openfhe")
    own, other = (forecast(program, engine, threads=1).estimate for engine in ("openfhe", "vector"))
    assert other.key_bytes < own.key_bytes and other.key_file_bytes < other.key_bytes
    client = Client(program, engine="vector")
    keys = client.generate_keys()
    assert (other.key_bytes, other.key_file_bytes) == (keys.memory_bytes, keys.payload_bytes)
    given = images()[:1].double().numpy()
    found = client.decrypt(Server(program, keys).run(client.encrypt(given)))
    assert np.max(np.abs(found - program.simulate(given))) < 1e-2


def test_what_the_vector_engine_does_not_take_goes_to_openfhe() -> None:
    fine = {"scale_bits": 48}
    with pytest.raises(InfeasibleError, match=r"the vector engine does not take the program: q_0 = \d+ is not below 2"):
        compiled("vector", **fine)
    program = compiled("auto", **fine)
    assert program.engine == "openfhe" and program.fingerprint == compiled("openfhe", **fine).fingerprint
    (note,) = [note for note in program.report.notes if "the vector engine does not take it: q_0 = " in note]
    assert note.startswith("the program is for OpenFHE")
    assert compiled("auto").engine == "vector"
    with pytest.raises(InfeasibleError, match="the vector engine does not take the program"):
        Client(program, engine="vector")
    with pytest.raises(InfeasibleError, match="the vector engine does not take the program"):
        forecast(program, "vector")


def test_degrees_within_seconds_are_by_the_prices_of_the_engine() -> None:
    """Within two seconds of activations, the faster engine has time for higher degrees."""
    degrees = {
        engine: [fit.degree for fit in compiled(engine, Residual, max_latency=2.0).report.fits] for engine in ENGINES
    }
    assert sum(degrees["vector"]) > sum(degrees["openfhe"])
