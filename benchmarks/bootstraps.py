"""What one bootstrap takes and loses on an engine with one set of parameters: seconds, keys, memory, noise.

The cost table prices a bootstrap by its primitives, and the simulation of programs uses a measured noise. This measures
both.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.data import DataError
from benchmarks.named_engines import named
from benchmarks.results import BOOTSTRAP, ResultsFile, Row, machine
from benchmarks.yardstick import Yardstick
from olac.backends.base import Ciphertext
from olac.backends.session import DEFAULT, Engine, PlaintextCache
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.errors import OlacError
from olac.ir.types import CipherState
from olac.program.program import CompiledProgram
from olac.system.memory import GB, current_rss_bytes, peak_rss_bytes
from olac.system.threads import set_threads, usable_threads

Slots = npt.NDArray[Any]

WIDEST = 0.5
"""Values are uniform in this times [-1, 1]; of complex values, both parts are."""


def parameters_of(options: argparse.Namespace) -> Parameters:
    """The parameters that the command line asks for; DataError if they are impossible."""
    log_slots = options.slots
    if log_slots is not None and not 1 <= log_slots < options.ring:
        raise DataError(f"--slots {log_slots}: a ring of 2^{options.ring} has 2^1 to 2^{options.ring - 1}")
    try:
        setup = Bootstrapping(
            options.rest,
            options.budget,
            options.first - options.scale,
            None if log_slots == options.ring - 1 else log_slots,
            options.recipe,
        )
        security = 0 if options.insecure else 128
        made = Parameters(
            options.ring, setup.depth, options.scale, options.first, options.digits, FLEXIBLE, security, setup
        )
        made.check_security()
    except (ValueError, OlacError) as error:
        raise DataError(str(error)) from error
    return made


def run(options: argparse.Namespace, command: str) -> Row:
    """Measure one set of parameters on one engine; returns its row, which has been written to the file."""
    parameters, program = parameters_of(options), None
    if options.program is not None:
        try:
            program = CompiledProgram.load(options.program)
        except OlacError as error:
            raise DataError(str(error)) from error
        parameters = program.parameters
    setup = parameters.bootstrapping
    if setup is None:
        raise DataError(f"{options.program} has no bootstraps")
    if options.complex and options.engine != DEFAULT:
        raise DataError("--complex measures bootstraps of complex slots, which no program uses: OpenFHE's alone")
    results = ResultsFile.open(options.json, command, options.append)
    set_threads(options.threads)
    engine = named(options.engine, parameters)
    row: Row = {
        "kind": BOOTSTRAP,
        "engine": options.engine,
        "parameters": parameters.describe(),
        "log_ring": parameters.log_ring,
        "levels": parameters.depth,
        "bits": [parameters.scale_bits, parameters.first_bits],
        "budget": list(setup.budget),
        "recipe": setup.recipe,
        "digits": parameters.digits,
        "log_slots": parameters.log_bootstrap_slots,
        "complex": bool(options.complex),
        "threads": usable_threads(),
        **({} if program is None else {"fingerprint": program.fingerprint}),
        **measure(engine, parameters, options.complex, options.rounds),
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
    }
    results.add(row)
    return row


@dataclass
class Ready:
    """An engine that is ready for bootstraps.

    Attributes:
        encrypted: makes an operand of slots, shape (slots,).
        bootstrap: bootstraps it.
        decrypted: gives the slots of the result.
        keys: how many were made; key_bytes: of them in a file, if the engine writes them.
        setup_seconds, setup_bytes, keygen_seconds: what was spent on making it ready.
    """

    encrypted: Callable[[Slots], Any]
    bootstrap: Callable[[Any], Any]
    decrypted: Callable[[Any], Slots]
    keys: int
    key_bytes: int | None
    setup_seconds: float
    setup_bytes: int
    keygen_seconds: float


def measure(engine: Engine, parameters: Parameters, complex_slots: bool, rounds: int) -> dict[str, Any]:
    """One bootstrap, the fastest of some rounds.

    Args:
        engine: that bootstraps.
        parameters: with bootstrapping.
        complex_slots: bootstrap real and imaginary parts, which only OpenFHE does.
        rounds: number of bootstraps, each of a new ciphertext.
    """
    setup, model = parameters.bootstrapping, engine.model.bootstraps(parameters)
    assert setup is not None
    ready = _ready_for_complex(parameters) if complex_slots else _ready(engine, parameters)
    period = 1 << parameters.log_bootstrap_slots
    random, yardstick = np.random.default_rng(0), Yardstick()
    spent, errors = [], []
    for _ in range(rounds):
        values: Slots = random.uniform(-WIDEST, WIDEST, period)
        if complex_slots:
            values = values + 1j * random.uniform(-WIDEST, WIDEST, period)
        operand = ready.encrypted(np.tile(values, parameters.slots // period))
        yardstick.sample()
        wall, cpu = time.perf_counter(), time.process_time()
        result = ready.bootstrap(operand)
        spent.append((time.process_time() - cpu, time.perf_counter() - wall))
        yardstick.sample()
        errors.append(np.abs(ready.decrypted(result)[:period] - _after_sine(values, setup.correction)))
    error = np.concatenate(errors)
    cpu, wall = min(spent)
    return {
        "cpu_seconds": round(cpu, 3),
        "wall_seconds": round(wall, 3),
        "noise": float(np.sqrt(np.mean(error**2))),
        "largest_error": float(error.max()),
        "input_level": model.input_level,
        "output_level": model.output_level,
        "setup_seconds": round(ready.setup_seconds, 2),
        "setup_gb": round(ready.setup_bytes / GB, 3),
        "keygen_seconds": round(ready.keygen_seconds, 2),
        "keys": ready.keys,
        **({} if ready.key_bytes is None else {"key_bytes": ready.key_bytes}),
        "peak_rss_gb": round(peak_rss_bytes() / GB, 3),
        "ntt_cpu_seconds": round(yardstick.seconds, 6),
        **_predicted(engine, parameters),
    }


def _ready(engine: Engine, parameters: Parameters) -> Ready:
    """Client and server of an engine, with the keys of bootstraps alone."""
    model = engine.model.bootstraps(parameters)
    level, scale = model.input_level, parameters.scale(model.input_level)
    steps = dict.fromkeys(sorted(model.steps), 0)
    client = engine.client(parameters, "bootstraps")
    start = time.perf_counter()
    keys = client.make_keys(steps, 0)
    made = time.perf_counter() - start
    before, start = current_rss_bytes(), time.perf_counter()
    server = engine.server(parameters, keys, steps, PlaintextCache(0))
    setup_seconds, plaintexts = time.perf_counter() - start, current_rss_bytes() - before
    evaluator = server.uncached()

    def bootstrap(operand: Ciphertext[Any]) -> Ciphertext[Any]:
        with server.running():
            return evaluator.bootstrap(operand)

    sizes = engine.key_sizes(parameters, steps, 0)
    return Ready(
        lambda slots: Ciphertext(server.adopt(client.encrypt(slots, level)), CipherState(level, 1, scale)),
        bootstrap,
        lambda result: client.decrypt(Ciphertext(client.adopt(result.payload), result.state)),
        len(sizes),
        sum(sizes),
        setup_seconds,
        plaintexts,
        made,
    )


def _ready_for_complex(parameters: Parameters) -> Ready:
    """OpenFHE alone, without olac's evaluator, whose bootstraps are of real slots."""
    from olac.backends.openfhe.context import make_context
    from olac.backends.openfhe.library import load

    setup, slots = parameters.bootstrapping, 1 << parameters.log_bootstrap_slots
    assert setup is not None
    fhe, context = load(), make_context(parameters, complex_slots=True)
    before, start = current_rss_bytes(), time.perf_counter()
    context.EvalBootstrapSetup(list(setup.budget), [0, 0], slots, setup.correction, True, BTSlotsEncoding=True)
    setup_seconds, plaintexts = time.perf_counter() - start, current_rss_bytes() - before
    keys, start = context.KeyGen(), time.perf_counter()
    context.EvalMultKeyGen(keys.secretKey)
    context.EvalBootstrapKeyGen(keys.secretKey, slots)
    made = time.perf_counter() - start
    steps = fhe.CryptoContext.GetExistingEvalAutomorphismKeyIndices(keys.secretKey.GetKeyTag())

    def encrypted(values: Slots) -> Any:
        plain = context.MakeCKKSPackedPlaintext(values, 1, parameters.depth - setup.input_level)
        ciphertext = context.Encrypt(keys.secretKey, plain)
        ciphertext.SetSlots(slots)
        return ciphertext

    def decrypted(result: Any) -> Slots:
        result.SetSlots(parameters.slots)
        found = context.Decrypt(keys.secretKey, result)
        found.SetLength(parameters.slots)
        return np.array(found.GetCKKSPackedValue())

    return Ready(encrypted, context.EvalBootstrap, decrypted, len(steps) + 1, None, setup_seconds, plaintexts, made)


def _after_sine(values: np.ndarray[Any, Any], correction: int) -> np.ndarray[Any, Any]:
    """Values after the sine, whose deviation is not noise: programs account for it."""
    from olac.ir.ops import scaled_sine

    if not np.iscomplexobj(values):
        return scaled_sine(values, correction)
    return scaled_sine(values.real, correction) + 1j * scaled_sine(values.imag, correction)


def _predicted(engine: Engine, parameters: Parameters) -> dict[str, Any]:
    """Predictions for real slots, by the engine's table of costs and the measured noises."""
    from olac.backends.cost import CostEvaluator
    from olac.costs.table import CostTable

    found, costs = engine.model.bootstraps(parameters), CostTable.default(engine.model)
    price = CostEvaluator(parameters, costs, usable_threads()).price("bootstrap", found.input_level)
    return {
        "predicted_seconds": round(price, 2),
        "predicted_noise": found.noise,
        "predicted_setup_gb": round(found.precomputed_bytes / GB, 3),
    }
