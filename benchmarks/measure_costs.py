"""Measures OpenFHE's primitives on this machine and writes the table that `olac.costs` prices programs with.

    python -m benchmarks.measure_costs --output FILE

Each setting runs in a process of its own, because OpenFHE reads OMP_NUM_THREADS when it is imported and keeps its
tables of transforms for the life of a process. The whole grid is measured `--passes` times, apart in time, and the
fastest pass of each primitive counts. At the end the script prints how well the fitted prices agree with what was
measured; other work on the machine shows there first.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from olac.costs import (
    PRIMITIVES,
    WORD_BYTES,
    CiphertextShape,
    CostTable,
    MeasuredRow,
    ModelKey,
    model_key,
    plaintext_bytes,
    read_rows,
    work,
)

CALL_BUDGET = 0.03  # seconds spent on one primitive in one pass, where a call is short
POOL_BYTES = 16 << 20  # weights are read once, so products cycle through plaintexts that don't stay in the cache
FIT_ROUNDS = 20
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


def time_call(call: Callable[[], object], budget: float = CALL_BUDGET) -> float:
    """Seconds of one call: the lower quartile, which other work on the machine disturbs little."""
    call()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget and len(times) < 300):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.quantiles(times, n=4)[0]


class Bench:
    """One OpenFHE context with its keys. Only a worker process makes one."""

    def __init__(self, setting: Setting, technique: str) -> None:
        import openfhe

        self.openfhe: Any = openfhe
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
        seconds["relin_keygen"] = time_call(relin_keygen)
        seconds["rotation_keygen"] = time_call(rotation_keygen)
        openfhe.CryptoContext.ClearEvalAutomorphismKeys()
        context.EvalRotateKeyGen(self.secret, [1])
        seconds["serialize_key"] = time_call(lambda: openfhe.SerializeEvalAutomorphismKeyString(binary, self.tag))
        data = openfhe.SerializeEvalAutomorphismKeyString(binary, self.tag)
        seconds["deserialize_key"] = time_call(lambda: openfhe.DeserializeEvalAutomorphismKeyString(data, binary))
        return seconds

    def special_limbs(self) -> int:
        """How many special primes OpenFHE took, read off the size of a key."""
        setting = self.setting
        data = self.openfhe.SerializeEvalAutomorphismKeyString(self.openfhe.BINARY, self.tag)
        limb_bytes = 2 * setting.digits * WORD_BYTES << setting.log_ring
        return len(data) // limb_bytes - setting.limbs

    def level_costs(self, limbs: int) -> dict[str, float]:
        """Every other primitive, on operands with so many limbs."""
        openfhe, context = self.openfhe, self.context
        binary = openfhe.BINARY
        level = self.setting.limbs - limbs
        pool = max(2, min(32, POOL_BYTES // plaintext_bytes(self.setting.log_ring, limbs)))
        plaintexts = cycle([self.plaintext(level) for _ in range(pool)])
        pairs = cycle([context.Encrypt(self.secret, next(plaintexts)) for _ in range(6)])
        ct, other = next(pairs), next(pairs)
        product = context.EvalMultNoRelin(ct, other)
        digits = context.EvalFastRotationPrecompute(ct)
        extended = context.EvalFastRotationExt(ct, 1, digits, True)
        addends = cycle([context.KeySwitchExt(next(pairs), True) for _ in range(4)])
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
        return {name: time_call(call) for name, call in calls.items()} | self.scaling_costs(limbs)

    def scaling_costs(self, limbs: int) -> dict[str, float]:
        """The primitives that differ between the scaling techniques; both need a limb to give away."""
        if limbs < 2:
            return {}
        context = self.context
        level = self.setting.limbs - limbs
        plaintext = self.plaintext(level)
        cts = cycle([context.Encrypt(self.secret, plaintext) for _ in range(4)])
        products = cycle([context.EvalMult(next(cts), plaintext) for _ in range(4)])
        if self.technique == "FIXEDMANUAL":
            return {
                "normalize": time_call(lambda: context.Rescale(next(products))),
                "drop": time_call(lambda: context.LevelReduce(next(cts), None, 1)),
            }
        return {
            "normalize": time_call(lambda: context.Compress(next(products), limbs - 1)),
            "drop": time_call(lambda: context.Compress(context.EvalMult(next(cts), 1.0), limbs - 1)),
        }


def cycle(items: list[Any]) -> Iterator[Any]:
    """Endless round over the items."""
    while True:
        yield from items


def run_worker(setting: Setting, threads: int) -> list[MeasuredRow]:
    """Measures one setting in this process."""
    bench = Bench(setting, "FIXEDMANUAL")
    key_costs = bench.key_costs()
    special_limbs = bench.special_limbs()

    def rows(limbs: int, technique: str, seconds: dict[str, float]) -> list[MeasuredRow]:
        shape = CiphertextShape(setting.log_ring, limbs, setting.digit_limbs, special_limbs, technique)
        return [MeasuredRow(name, shape, threads, value) for name, value in seconds.items()]

    result = rows(setting.limbs, "FIXEDMANUAL", key_costs)
    for limbs in setting.levels:
        result += rows(limbs, "FIXEDMANUAL", bench.level_costs(limbs))
    flexible = Bench(setting, "FLEXIBLEAUTO")
    for limbs in setting.levels:
        result += rows(limbs, "FLEXIBLEAUTO", flexible.scaling_costs(limbs))
    return result


def measure(setting: Setting, threads: int) -> list[MeasuredRow]:
    """Measures one setting in a process of its own."""
    request = json.dumps({**dataclasses.asdict(setting), "threads": threads})
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.measure_costs", "--worker", request],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=WORKER_TIMEOUT,
        check=True,
    )
    return [
        MeasuredRow(row["primitive"], CiphertextShape(**row["shape"]), row["threads"], row["seconds"])
        for row in json.loads(process.stdout)
    ]


def fastest(rows: Iterable[MeasuredRow]) -> tuple[MeasuredRow, ...]:
    """One row for each primitive, shape and number of threads."""
    best: dict[tuple[str, CiphertextShape, int], MeasuredRow] = {}
    for row in rows:
        key = (row.primitive, row.shape, row.threads)
        if key not in best or row.seconds < best[key].seconds:
            best[key] = row
    return tuple(best.values())


def fit(rows: Iterable[MeasuredRow]) -> dict[ModelKey, tuple[float, ...]]:
    """Nonnegative factors for each primitive that make the squared logarithms of predicted / measured least."""
    groups: dict[ModelKey, list[MeasuredRow]] = {}
    for row in rows:
        groups.setdefault(model_key(row.primitive, row.shape, row.threads), []).append(row)
    factors = {}
    for key, group in groups.items():
        amounts = np.array([work(row.primitive, row.shape, row.threads) for row in group])
        seconds = np.array([row.seconds for row in group])
        weights = 1 / seconds
        for _ in range(FIT_ROUNDS):
            solution = nnls(amounts * weights[:, None], seconds * weights)[0]
            ratios = amounts @ solution / seconds
            # log(ratio) = weight * (predicted - measured): the next least squares are those of the logarithms
            weights = np.where(np.isclose(ratios, 1), 1, np.log(ratios) / (ratios - 1 + 1e-12)) / seconds
        factors[key] = tuple(float(factor) for factor in solution)
    return factors


def report(table: CostTable) -> str:
    """Predicted over measured, for each primitive."""
    lines = [f"{'primitive':24s} rows  median  lowest highest   (predicted / measured)"]
    for primitive in PRIMITIVES:
        ratios = [
            table.seconds(primitive, row.shape, row.threads) / row.seconds
            for row in table.rows
            if row.primitive == primitive
        ]
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        lines.append(f"{primitive:24s} {len(ratios):4d}  {middle:6.2f}  {low:6.2f}  {high:6.2f}")
    return "\n".join(lines)


def machine_name() -> str:
    """The processor and how many of its cores this system has."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure OpenFHE's primitives and fit olac's cost table.")
    parser.add_argument("--output", type=Path, help="where to write the table (JSON)")
    parser.add_argument("--passes", type=int, default=1, help="times that the whole grid is measured")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to measure")
    parser.add_argument("--refit", type=Path, help="fit the rows of this table anew and measure nothing")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    if arguments.worker:
        request = json.loads(arguments.worker)
        threads = request.pop("threads")
        rows = run_worker(Setting(**request), threads)
        json.dump([dataclasses.asdict(row) for row in rows], sys.stdout)
        return
    if arguments.output is None:
        parser.error("--output is needed")

    if arguments.refit:
        old = json.loads(arguments.refit.read_text(encoding="utf-8"))
        machine, version, measured = old["machine"], old["openfhe"], tuple(read_rows(old["rows"]))
    else:
        machine, version = machine_name(), importlib.metadata.version("openfhe")
        every_row: list[MeasuredRow] = []
        for _ in range(arguments.passes):
            for setting in GRID:
                for threads in arguments.threads:
                    start = time.perf_counter()
                    every_row += measure(setting, threads)
                    print(f"{setting}, {threads} threads: {time.perf_counter() - start:.1f} s", flush=True)
        measured = fastest(every_row)
    table = CostTable(machine=machine, openfhe=version, rows=measured, factors=fit(measured))
    arguments.output.write_text(table.to_json(), encoding="utf-8")
    print(report(table))


if __name__ == "__main__":
    main()
