"""What one bootstrap takes and loses with one set of parameters: seconds, keys, memory of its plaintexts, noise.

The cost table prices a bootstrap by its primitives, and the simulation of programs uses a measured noise. This measures
both.
"""

from __future__ import annotations

import argparse
import datetime
import time
from typing import Any

import numpy as np

from benchmarks.data import DataError
from benchmarks.results import BOOTSTRAP, ResultsFile, Row, machine
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.errors import OlacError
from olac.system.memory import GB
from olac.system.threads import set_threads, usable_threads

WIDEST = 0.5
"""Values are uniform in this times [-1, 1]; of complex values, both parts are."""


def parameters_of(options: argparse.Namespace) -> Parameters:
    """The parameters that the command line asks for; DataError if they are impossible."""
    try:
        setup = Bootstrapping(options.rest, options.budget, options.first - options.scale)
        security = 0 if options.insecure else 128
        made = Parameters(
            options.ring, setup.depth, options.scale, options.first, options.digits, FLEXIBLE, security, setup
        )
        made.check_security()
    except (ValueError, OlacError) as error:
        raise DataError(str(error)) from error
    return made


def run(options: argparse.Namespace, command: str) -> Row:
    """Measure one set of parameters; returns its row, which has been written to the file."""
    parameters = parameters_of(options)
    log_slots = parameters.log_ring - 1 if options.slots is None else options.slots
    if not 1 <= log_slots < parameters.log_ring:
        raise DataError(
            f"--slots {log_slots}: a ring of 2^{parameters.log_ring} has 2^1 to 2^{parameters.log_ring - 1}"
        )
    results = ResultsFile.open(options.json, command, options.append)
    set_threads(options.threads)
    row: Row = {
        "kind": BOOTSTRAP,
        "parameters": parameters.describe(),
        "log_ring": parameters.log_ring,
        "levels": parameters.depth,
        "bits": [parameters.scale_bits, parameters.first_bits],
        "budget": list(options.budget),
        "digits": parameters.digits,
        "log_slots": log_slots,
        "complex": bool(options.complex),
        "threads": usable_threads(),
        **measure(parameters, log_slots, options.complex, options.rounds),
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
    }
    results.add(row)
    return row


def measure(parameters: Parameters, log_slots: int, complex_slots: bool, rounds: int) -> dict[str, Any]:
    """One bootstrap, the fastest of some rounds.

    Args:
        parameters: with bootstrapping.
        log_slots: log2 of the slots that differ; the ciphertext repeats them.
        complex_slots: bootstrap real and imaginary parts, which takes a context for complex slots.
        rounds: number of bootstraps, each of a new ciphertext.
    """
    from olac.backends.openfhe.context import make_context
    from olac.backends.openfhe.library import load
    from olac.system.memory import current_rss_bytes

    setup = parameters.bootstrapping
    assert setup is not None
    slots, fhe = 1 << log_slots, load()
    context = make_context(parameters, complex_slots=complex_slots)
    before, start = current_rss_bytes(), time.perf_counter()
    context.EvalBootstrapSetup(list(setup.budget), [0, 0], slots, setup.correction, True, BTSlotsEncoding=True)
    setup_seconds, plaintexts = time.perf_counter() - start, current_rss_bytes() - before
    keys, start = context.KeyGen(), time.perf_counter()
    context.EvalMultKeyGen(keys.secretKey)
    context.EvalBootstrapKeyGen(keys.secretKey, slots)
    made = time.perf_counter() - start
    random, level = np.random.default_rng(0), parameters.depth - setup.input_level
    spent, errors = [], []
    for _ in range(rounds):
        values = random.uniform(-WIDEST, WIDEST, slots).astype(complex if complex_slots else float)
        if complex_slots:
            values += 1j * random.uniform(-WIDEST, WIDEST, slots)
        plain = context.MakeCKKSPackedPlaintext(np.tile(values, parameters.slots // slots), 1, level)
        ciphertext = context.Encrypt(keys.secretKey, plain)
        ciphertext.SetSlots(slots)
        wall, cpu = time.perf_counter(), time.process_time()
        result = context.EvalBootstrap(ciphertext)
        spent.append((time.process_time() - cpu, time.perf_counter() - wall))
        result.SetSlots(parameters.slots)
        found = context.Decrypt(keys.secretKey, result)
        found.SetLength(parameters.slots)
        given = np.array(found.GetCKKSPackedValue() if complex_slots else found.GetRealPackedValueArray())
        errors.append(np.abs(given[:slots] - _after_sine(values, setup.correction)))
    error = np.concatenate(errors)
    cpu, wall = min(spent)
    steps = fhe.CryptoContext.GetExistingEvalAutomorphismKeyIndices(keys.secretKey.GetKeyTag())
    return {
        "cpu_seconds": round(cpu, 3),
        "wall_seconds": round(wall, 3),
        "noise": float(np.sqrt(np.mean(error**2))),
        "largest_error": float(error.max()),
        "setup_seconds": round(setup_seconds, 2),
        "setup_gb": round(plaintexts / GB, 3),
        "keygen_seconds": round(made, 2),
        "keys": len(steps) + 1,
        **_predicted(parameters),
    }


def _after_sine(values: np.ndarray[Any, Any], correction: int) -> np.ndarray[Any, Any]:
    """Values after the sine, whose deviation is not noise: programs account for it."""
    from olac.ir.ops import scaled_sine

    if not np.iscomplexobj(values):
        return scaled_sine(values, correction)
    return scaled_sine(values.real, correction) + 1j * scaled_sine(values.imag, correction)


def _predicted(parameters: Parameters) -> dict[str, Any]:
    """Predictions for full and real slots, by the cost table and the measured noises."""
    from olac.backends.cost import CostEvaluator
    from olac.ckks.bootstrapping import bootstrap_model
    from olac.costs.table import CostTable

    setup = parameters.bootstrapping
    assert setup is not None
    price = CostEvaluator(parameters, CostTable.default(), usable_threads()).price("bootstrap", setup.input_level)
    return {
        "predicted_seconds": round(price, 2),
        "predicted_noise": bootstrap_model(parameters).noise,
        "predicted_setup_gb": round(bootstrap_model(parameters).precomputed_bytes / GB, 3),
    }
