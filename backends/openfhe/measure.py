"""Measures OpenFHE's primitives on this machine, for the table by which `olac.costs.table` prices programs.

Each setting runs in a process of its own, because OpenFHE reads OMP_NUM_THREADS when it is imported and keeps its
tables of transforms for the life of a process. The whole grid is measured `passes` times, and the fastest pass of each
primitive counts.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from olac.backends.cost import CostEvaluator
from olac.backends.openfhe.evaluator import OpenFHEEvaluator
from olac.backends.openfhe.keys import make_keys, new_secret_key
from olac.backends.openfhe.library import load
from olac.backends.openfhe.wire import wire
from olac.ckks.bootstrapping import bootstrap_model
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.ckks.sizes import WORD_BYTES, plaintext_bytes
from olac.costs.fit import fastest, fit
from olac.costs.table import CostTable, MeasuredRow
from olac.costs.work import CiphertextShape
from olac.errors import BackendError

CALL_BUDGET = 0.03  # seconds spent on one primitive in one pass, if a call is short
POOL_BYTES = 16 << 20  # weights are read once, so products cycle through plaintexts that don't stay in the cache
QUICK_BUDGET = 0.003
BOOTSTRAP_ROUNDS = 3
WORKER_TIMEOUT = 900


@dataclass(frozen=True)
class Setting:
    """One chain of primes: `limbs` primes of `scale_bits` bits, cut into `digits` digits."""

    log_ring: int
    limbs: int
    digits: int
    scale_bits: int

    @property
    def digit_limbs(self) -> int:
        return -(-self.limbs // self.digits)

    def describe(self) -> str:
        """For people."""
        return f"ring 2^{self.log_ring}, {self.limbs} limbs of {self.scale_bits} bits, {self.digits} digits"

    @property
    def levels(self) -> list[int]:
        """Numbers of limbs at which the primitives are measured."""
        return sorted({self.limbs, *(max(1, round(self.limbs * part)) for part in (0.65, 0.35)), 2, 1})


GRID = (
    Setting(12, 2, 1, 36),
    Setting(12, 4, 2, 30),
    Setting(12, 8, 3, 30),
    Setting(13, 3, 1, 32),
    Setting(13, 4, 2, 40),
    Setting(13, 6, 6, 33),
    Setting(13, 8, 3, 30),
    Setting(13, 12, 3, 45),
    Setting(14, 4, 1, 40),
    Setting(14, 6, 2, 40),
    Setting(14, 8, 8, 33),
    Setting(14, 8, 3, 30),
    Setting(14, 12, 3, 45),
    Setting(15, 6, 1, 50),
    Setting(15, 12, 3, 40),
    Setting(15, 16, 8, 33),
    Setting(15, 21, 3, 30),
    Setting(16, 10, 2, 50),
    Setting(16, 20, 3, 40),
    Setting(16, 27, 3, 40),
    Setting(16, 28, 4, 40),
)
RINGS = tuple(sorted({setting.log_ring for setting in GRID}))
BOOTSTRAPPED = Parameters(13, 20, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(4))
"""The chain of the one bootstrap that is measured; at ring 2^12 if it has to be quick."""


def grid(rings: Sequence[int] = RINGS, quick: bool = False) -> tuple[Setting, ...]:
    """The settings of some rings; with `quick` the first and the last of each ring.

    Raises ValueError for a ring that has none.
    """
    unknown = sorted(set(rings) - set(RINGS))
    if unknown or not rings:
        raise ValueError(f"rings to measure are {', '.join(map(str, RINGS))} (log2), not {unknown or 'none'}")
    chosen = []
    for log_ring in sorted(set(rings)):
        same = [setting for setting in GRID if setting.log_ring == log_ring]
        chosen += [same[0], same[-1]] if quick else same
    return tuple(chosen)


def time_call(call: Callable[[], object], budget: float = CALL_BUDGET) -> float:
    """Seconds of one call: the lower quartile, which other work on the machine hardly changes."""
    call()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget and len(times) < 300):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.quantiles(times, n=4)[0]


class Bench:
    """One OpenFHE context with its keys. Only a worker process makes one."""

    def __init__(self, setting: Setting, technique: str, budget: float = CALL_BUDGET) -> None:
        self.openfhe: Any = load()
        self.budget = budget
        self.setting = setting
        self.technique = technique
        start = time.perf_counter()
        self.context = self._make_context()
        self.setup_seconds = time.perf_counter() - start
        keys = self.context.KeyGen()
        self.secret, self.public = keys.secretKey, keys.publicKey
        self.tag = self.secret.GetKeyTag()
        self.slots = 1 << (setting.log_ring - 1)
        self.values = np.random.default_rng(0).uniform(-1, 1, self.slots)
        self.next_rotation = 2

    def _make_context(self) -> Any:
        openfhe, setting = self.openfhe, self.setting
        parameters = openfhe.CCParamsCKKSRNS()
        parameters.SetSecurityLevel(openfhe.SecurityLevel.HEStd_NotSet)
        parameters.SetSecretKeyDist(openfhe.SecretKeyDist.UNIFORM_TERNARY)
        parameters.SetRingDim(1 << setting.log_ring)
        parameters.SetMultiplicativeDepth(setting.limbs - 1)
        parameters.SetScalingModSize(setting.scale_bits)
        parameters.SetFirstModSize(min(60, setting.scale_bits + 8))
        parameters.SetNumLargeDigits(setting.digits)
        parameters.SetKeySwitchTechnique(openfhe.KeySwitchTechnique.HYBRID)
        parameters.SetScalingTechnique(getattr(openfhe.ScalingTechnique, self.technique))
        context = openfhe.GenCryptoContext(parameters)
        for feature in ("PKE", "KEYSWITCH", "LEVELEDSHE", "ADVANCEDSHE"):
            context.Enable(getattr(openfhe.PKESchemeFeature, feature))
        return context

    def _time(self, call: Callable[[], object]) -> float:
        return time_call(call, self.budget)

    def plaintext(self, level: int) -> Any:
        return self.context.MakeCKKSPackedPlaintext(self.values, 1, level)

    def key_costs(self) -> dict[str, float]:
        """Key generation and keys as bytes; leaves the context with a relinearisation and a rotation key."""
        openfhe, context = self.openfhe, self.context
        binary = openfhe.BINARY

        def relin_keygen() -> None:
            openfhe.ClearEvalMultKeys()
            context.EvalMultKeyGen(self.secret)

        def rotation_keygen() -> None:
            self.next_rotation += 1
            context.EvalRotateKeyGen(self.secret, [self.next_rotation])

        seconds = {"setup": self.setup_seconds}
        seconds["relin_keygen"] = self._time(relin_keygen)
        seconds["rotation_keygen"] = self._time(rotation_keygen)
        openfhe.CryptoContext.ClearEvalAutomorphismKeys()
        context.EvalRotateKeyGen(self.secret, [1])
        seconds["serialize_key"] = self._time(lambda: openfhe.SerializeEvalAutomorphismKeyString(binary, self.tag))
        data = openfhe.SerializeEvalAutomorphismKeyString(binary, self.tag)
        seconds["deserialize_key"] = self._time(lambda: openfhe.DeserializeEvalAutomorphismKeyString(data, binary))
        return seconds

    def special_limbs(self) -> int:
        """The number of special primes that OpenFHE chose, by the size of a key."""
        setting = self.setting
        data = self.openfhe.SerializeEvalAutomorphismKeyString(self.openfhe.BINARY, self.tag)
        limb_bytes = 2 * setting.digits * WORD_BYTES << setting.log_ring
        return len(data) // limb_bytes - setting.limbs

    def level_costs(self, limbs: int) -> dict[str, float]:
        """Every other primitive, on operands with `limbs` limbs."""
        openfhe, context = self.openfhe, self.context
        binary = openfhe.BINARY
        level = self.setting.limbs - limbs
        pool = max(2, min(32, POOL_BYTES // plaintext_bytes(self.setting.log_ring, limbs)))
        plaintexts = itertools.cycle([self.plaintext(level) for _ in range(pool)])
        pairs = itertools.cycle([context.Encrypt(self.secret, next(plaintexts)) for _ in range(6)])
        ct, other = next(pairs), next(pairs)
        product = context.EvalMultNoRelin(ct, other)
        digits = context.EvalFastRotationPrecompute(ct)
        extended = context.EvalFastRotationExt(ct, 1, digits, True)
        addends = itertools.cycle([context.KeySwitchExt(next(pairs), True) for _ in range(4)])
        data = openfhe.Serialize(ct, binary)
        calls: dict[str, Callable[[], object]] = {
            "encode": lambda: self.plaintext(level),
            "encrypt": lambda: context.Encrypt(self.secret, next(plaintexts)),
            "encrypt_public": lambda: context.Encrypt(self.public, next(plaintexts)),
            "decrypt": lambda: context.Decrypt(self.secret, ct).GetRealPackedValueArray(),
            "add": lambda: context.EvalAdd(next(pairs), other),
            "add_plain": lambda: context.EvalAdd(next(pairs), next(plaintexts)),
            "add_scalar": lambda: context.EvalAdd(next(pairs), 0.7),
            "multiply_plain": lambda: context.EvalMult(next(pairs), next(plaintexts)),
            "multiply_scalar": lambda: context.EvalMult(next(pairs), 0.7),
            "multiply": lambda: context.EvalMult(next(pairs), other),
            "square": lambda: context.EvalSquare(next(pairs)),
            "multiply_no_relin": lambda: context.EvalMultNoRelin(next(pairs), other),
            "relinearize": lambda: context.Relinearize(product),
            "rotate": lambda: context.EvalRotate(next(pairs), 1),
            "hoist": lambda: context.EvalFastRotationPrecompute(next(pairs)),
            "hoisted_rotate": lambda: context.EvalFastRotation(ct, 1, digits),
            "ext_rotate": lambda: context.EvalFastRotationExt(ct, 1, digits, True),
            "ext_lift": lambda: context.KeySwitchExt(next(pairs), True),
            "ext_add": lambda: context.EvalAddInPlaceNoCheck(extended, next(addends)),
            "key_switch_down": lambda: context.KeySwitchDown(extended),
            "serialize_ciphertext": lambda: openfhe.Serialize(ct, binary),
            "deserialize_ciphertext": lambda: openfhe.DeserializeCiphertextString(data, binary),
        }
        return {name: self._time(call) for name, call in calls.items()} | self.scaling_costs(limbs)

    def scaling_costs(self, limbs: int) -> dict[str, float]:
        """The primitives that differ between the scaling techniques; both need more than one limb."""
        if limbs < 2:
            return {}
        context = self.context
        level = self.setting.limbs - limbs
        plaintext = self.plaintext(level)
        cts = itertools.cycle([context.Encrypt(self.secret, plaintext) for _ in range(4)])
        products = itertools.cycle([context.EvalMult(next(cts), plaintext) for _ in range(4)])
        if self.technique == "FIXEDMANUAL":
            return {
                "normalize": self._time(lambda: context.Rescale(next(products))),
                "drop": self._time(lambda: context.LevelReduce(next(cts), None, 1)),
            }
        return {
            "normalize": self._time(lambda: context.Compress(next(products), limbs - 1)),
            "drop": self._time(lambda: context.Compress(context.EvalMult(next(cts), 1.0), limbs - 1)),
        }


def measure_setting(setting: Setting, threads: int, budget: float) -> list[MeasuredRow]:
    """Measures one setting in this process."""
    bench = Bench(setting, "FIXEDMANUAL", budget)
    key_costs = bench.key_costs()
    special_limbs = bench.special_limbs()

    def rows(limbs: int, technique: str, seconds: dict[str, float]) -> list[MeasuredRow]:
        shape = CiphertextShape(setting.log_ring, limbs, setting.digit_limbs, special_limbs, technique)
        return [MeasuredRow(name, shape, threads, value) for name, value in seconds.items()]

    result = rows(setting.limbs, "FIXEDMANUAL", key_costs)
    for limbs in setting.levels:
        result += rows(limbs, "FIXEDMANUAL", bench.level_costs(limbs))
    flexible = Bench(setting, "FLEXIBLEAUTO", budget)
    for limbs in setting.levels:
        result += rows(limbs, "FLEXIBLEAUTO", flexible.scaling_costs(limbs))
    return result


def measure_bootstrap(parameters: Parameters, quick: bool) -> float:
    """Seconds of a bootstrap over those of a rotation of the whole chain, in this process."""
    model = bootstrap_model(parameters)
    ready = wire(parameters)
    prepared = ready.prepare_bootstraps()
    secret = new_secret_key(parameters)
    steps = tuple(sorted({1, *bootstrap_model(parameters).steps}))
    keys = make_keys(parameters, secret, steps, True)
    evaluator = OpenFHEEvaluator(ready.context, parameters, keys.steps)
    slots = np.random.default_rng(0).uniform(-1, 1, parameters.slots)
    low, high = (evaluator.encrypt(secret, slots, level) for level in (model.input_level, parameters.depth))
    ratios = []
    for _ in range(1 if quick else BOOTSTRAP_ROUNDS):  # by turns, so that other work on the machine disturbs both
        seconds = time_call(lambda: evaluator.bootstrap(low))
        ratios.append(seconds / time_call(lambda: evaluator.rotate(high, 1), seconds))
    del prepared  # bootstraps needed it until here
    return statistics.median(ratios)


def bootstrap_factor(rotations: float, parameters: Parameters, table: CostTable, threads: int) -> float:
    """The `CostTable.bootstrap_factor` of a bootstrap that takes as long as some rotations of the whole chain."""
    pricer = CostEvaluator(parameters, replace(table, bootstrap_factor=1.0), threads)
    return rotations * pricer.price("rotate", parameters.depth) / pricer.price("bootstrap", parameters.depth)


def measure_costs(
    threads: Sequence[int] = (1, 2),
    rings: Sequence[int] = RINGS,
    quick: bool = False,
    passes: int = 1,
    progress: Callable[[str], None] | None = None,
) -> CostTable:
    """The cost table of this machine.

    Args:
        threads: numbers of threads to measure.
        rings: log2 of the ring dimensions to measure; programs at other rings are priced by the nearest of these.
        quick: measure few settings and calls, for a rough table.
        passes: how often the whole grid is measured.
        progress: called with a line of text after each step.

    Raises:
        ValueError: no threads or passes, or a ring that isn't in `RINGS`.
        BackendError: OpenFHE can't be loaded, or fails.
    """
    settings = grid(rings, quick)
    counts = sorted(set(threads))
    if not counts or counts[0] < 1 or passes < 1:
        raise ValueError(f"measuring needs threads and passes of at least 1, not {counts} and {passes}")
    load()
    say = progress or (lambda line: None)

    def timed(what: str, request: dict[str, object], count: int) -> Any:
        start = time.perf_counter()
        answer = _ask_worker({**request, "quick": quick}, count)
        say(f"{what}, {count} thread{'s' if count > 1 else ''}: {time.perf_counter() - start:.1f} s")
        return answer

    rows: list[MeasuredRow] = []
    for _ in range(passes):
        for setting in settings:
            for count in counts:
                rows += [
                    MeasuredRow(row["primitive"], CiphertextShape(**row["shape"]), row["threads"], row["seconds"])
                    for row in timed(setting.describe(), {"setting": asdict(setting)}, count)
                ]
    bootstrapped = replace(BOOTSTRAPPED, log_ring=12) if quick else BOOTSTRAPPED
    log_ring = bootstrapped.log_ring
    rotations = timed(f"bootstrap at ring 2^{log_ring}", {"bootstrap": log_ring}, counts[-1])
    measured = fastest(rows)
    table = CostTable(
        machine=machine_name(),
        version=importlib.metadata.version("openfhe"),
        rows=measured,
        factors=fit(measured),
    )
    return replace(table, bootstrap_factor=bootstrap_factor(rotations, bootstrapped, table, counts[-1]))


def _ask_worker(request: dict[str, object], threads: int) -> Any:
    """The answer of a new process."""
    try:
        process = subprocess.run(
            [sys.executable, "-m", __name__, json.dumps({**request, "threads": threads})],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            timeout=WORKER_TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"measuring {request} took more than {WORKER_TIMEOUT} s") from error
    if process.returncode:
        raise BackendError(f"measuring {request} failed: {process.stderr.strip()[-500:] or process.returncode}")
    return json.loads(process.stdout)


def machine_name() -> str:
    """The processor and how many of its cores this system has."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores"


def _answer(request: Any) -> object:
    """A worker's answer: one setting, or the bootstrap."""
    if "bootstrap" in request:
        return measure_bootstrap(replace(BOOTSTRAPPED, log_ring=request["bootstrap"]), request["quick"])
    budget = QUICK_BUDGET if request["quick"] else CALL_BUDGET
    rows = measure_setting(Setting(**request["setting"]), request["threads"], budget)
    return [asdict(row) for row in rows]


if __name__ == "__main__":
    json.dump(_answer(json.loads(sys.argv[1])), sys.stdout)
