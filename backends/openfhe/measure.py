"""Measures OpenFHE's primitives on this machine, see `olac.backends.measure`.

python -m olac.backends.openfhe.measure REQUEST
"""

from __future__ import annotations

import importlib.metadata
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from olac.backends.measure import CALL_BUDGET, POOL_BYTES, Measurer, Setting, median_ratio, time_call
from olac.backends.openfhe.evaluator import OpenFHEEvaluator
from olac.backends.openfhe.keys import make_keys, new_secret_key
from olac.backends.openfhe.library import load
from olac.backends.openfhe.wire import wire
from olac.ckks.bootstrapping import bootstrap_model
from olac.ckks.engines import OPENFHE
from olac.ckks.parameters import Parameters
from olac.ckks.sizes import WORD_BYTES, plaintext_bytes
from olac.costs.table import MeasuredRow
from olac.costs.work import CiphertextShape


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


class OpenFHEMeasurer(Measurer):
    model = OPENFHE
    module = "olac.backends.openfhe.measure"

    def load(self) -> str:
        load()
        return importlib.metadata.version("openfhe")

    def setting(self, setting: Setting, threads: int, budget: float) -> list[MeasuredRow]:
        return measure_setting(setting, threads, budget)

    def bootstrap(self, parameters: Parameters, quick: bool) -> float:
        return measure_bootstrap(parameters, quick)


MEASURER = OpenFHEMeasurer()


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
    ratio = median_ratio(lambda: evaluator.bootstrap(low), lambda: evaluator.rotate(high, 1), quick)
    del prepared  # bootstraps needed it until here
    return ratio


if __name__ == "__main__":
    MEASURER.main()
