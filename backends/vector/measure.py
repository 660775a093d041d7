"""Measures the vector engine's primitives on this machine, see `olac.backends.measure`.

Work that the engine puts off is counted where other engines do it:

- Digits are lifted when the first key asks for that, and it counts as hoisting.
- A product and a sum of rotations are divided by P in the rescale after them. Their time is that of both, less that of
  a rescale of its own.
- Products with plaintexts are computed when their sum is needed.

python -m olac.backends.vector.measure REQUEST
"""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import numpy as np

from olac.backends.base import Ciphertext
from olac.backends.measure import CALL_BUDGET, POOL_BYTES, Measurer, Setting, median_ratio, time_call
from olac.backends.session import PlaintextCache
from olac.backends.vector import available
from olac.backends.vector.buffers import buffers_for
from olac.backends.vector.ciphertext import Residues
from olac.backends.vector.evaluator import VectorEvaluator
from olac.backends.vector.key_making import KeyMaker, NewKey
from olac.backends.vector.keys import read_limbs, switching_form
from olac.backends.vector.keyset import VectorKeys, packed_key
from olac.backends.vector.packed import PackedKey
from olac.backends.vector.randomness import sparse_ternary
from olac.backends.vector.ring import ring
from olac.backends.vector.session import ENGINE, SUMMED, uniform_residues
from olac.backends.vector.team import Team
from olac.ckks.engines import VECTOR
from olac.ckks.parameters import SPARSE_WEIGHT, Bootstrapping, Parameters
from olac.ckks.primes import FIXED, FLEXIBLE
from olac.ckks.sizes import plaintext_bytes
from olac.costs.table import MeasuredRow
from olac.costs.work import CiphertextShape
from olac.ir.types import CipherState

MOST_SCALE_BITS, FIRST_BITS = 40, 4
"""Settings with larger scales are measured at this one; the first prime has so many bits more."""
OPERANDS = 6
LEAST_SHARE = 0.2
"""Of the time of two primitives, the least that is given to the one whose time is a difference."""


class Bench:
    """One chain with a relinearisation and a rotation key, for the whole chain."""

    def __init__(self, setting: Setting, technique: str, threads: int, budget: float = CALL_BUDGET) -> None:
        bits = min(MOST_SCALE_BITS, setting.scale_bits)
        self.parameters = Parameters(
            setting.log_ring, setting.limbs - 1, bits, bits + FIRST_BITS, setting.digits, technique, security=0
        )
        self.budget = budget
        self.ring, self.buffers = ring(self.parameters), buffers_for(self.parameters)
        self.maker = KeyMaker(self.ring, self.parameters, sparse_ternary(self.ring.N, SPARSE_WEIGHT))
        keys, depth = VectorKeys(self.parameters), self.parameters.depth
        form = switching_form(self.parameters, depth)
        keys.add("relinearise", form, self.held(self.maker.relinearisation(depth)))
        keys.add(1, form, self.held(self.maker.rotation(1, depth)))
        self.evaluator = VectorEvaluator(self.parameters, keys, (1,), team=Team(threads))
        self.specials = len(self.ring.primes) - self.ring.limbs
        self.random = np.random.default_rng(0)
        self.values = self.random.uniform(-1, 1, self.parameters.slots)

    def time(self, call: Callable[[], object]) -> float:
        return time_call(call, self.budget)

    def held(self, key: NewKey) -> PackedKey:
        """A new key as clients and servers hold it."""
        return packed_key(self.ring, key.form, key.limbs, key.seed)

    def ciphertext(self, level: int) -> Residues:
        return uniform_residues(self.ring, self.buffers, level, self.random)

    def plaintext(self, level: int) -> Any:
        return self.evaluator._encode(lambda: self.values, level, self.parameters.scale(level))

    def key_costs(self, level: int) -> dict[str, float]:
        """Keys that are used up to a level, made and read from bytes."""
        form, made = switching_form(self.parameters, level), VectorKeys(self.parameters)
        made.add(1, form, self.held(self.maker.rotation(1, level)))
        data = [np.frombuffer(piece, dtype=np.uint8).copy() for piece in made.blocks()]
        return {
            "relin_keygen": self.time(lambda: self.held(self.maker.relinearisation(level))),
            "rotation_keygen": self.time(lambda: self.held(self.maker.rotation(1, level))),
            "deserialize_key": self.time(lambda: packed_key(self.ring, form, read_limbs(form, data))),
        }

    def level_costs(self, limbs: int) -> dict[str, float]:
        """Every other primitive, on operands with `limbs` limbs."""
        own, level = self.evaluator, limbs - 1
        state = CipherState(level, 1, self.parameters.scale(level))
        doubled = CipherState(level, 2, state.scale**2)
        pool = max(2, min(32, POOL_BYTES // plaintext_bytes(self.parameters.log_ring, limbs)))
        plaintexts = itertools.cycle([self.plaintext(level) for _ in range(pool)])
        pairs = itertools.cycle([self.ciphertext(level) for _ in range(OPERANDS)])
        ct, other = next(pairs), next(pairs)
        product = own._multiply_no_relin(ct, other, state)
        digits = own.decompose(ct, 1)
        own.lift(digits, self.specials)
        extended = [own._extended_rotate(ct, digits, 1, doubled) for _ in range(2)]
        calls: dict[str, Callable[[], object]] = {
            "encode": lambda: self.plaintext(level),
            "add_plain": lambda: own._add_plain(next(pairs), next(plaintexts), state),
            "add_scalar": lambda: own._add_scalar(next(pairs), 0.7, state),
            "multiply_no_relin": lambda: own._multiply_no_relin(next(pairs), other, state),
            "rotate": lambda: own._rotate(next(pairs), 1, state),
            "hoist": lambda: own.lift(own.decompose(next(pairs), 1), self.specials),
            "hoisted_rotate": lambda: own._hoisted_rotate(ct, digits, 1, state),
            "ext_rotate": lambda: own._extended_rotate(ct, digits, 1, state),
            "ext_add": lambda: own._extended_add(extended[0], extended[1], state),
        }
        seconds = {name: self.time(call) for name, call in calls.items()} | self.sum_costs(pairs, plaintexts, state)
        scaled = self.scaling_costs(limbs)
        waiting: dict[str, Callable[[], Residues]] = {
            "multiply": lambda: own._multiply(next(pairs), other, state),
            "relinearize": lambda: own._relinearize(product, state),
            "key_switch_down": lambda: own._key_switch_down(extended[0], doubled),
        }
        for name, call in waiting.items() if limbs > 1 else ():  # nothing is rescaled at the bottom
            whole = self.time(lambda call=call: own._rescale(call(), doubled))  # type: ignore[misc]
            seconds[name] = max(whole - scaled["normalize"], LEAST_SHARE * whole)
        return seconds | scaled

    def sum_costs(
        self, ciphertexts: Iterator[Residues], plaintexts: Iterator[Any], state: CipherState
    ) -> dict[str, float]:
        """Products with plaintexts and sums. What one of each takes in a sum of products is shared by the two."""
        own = self.evaluator
        doubled = CipherState(state.level, 2, state.scale**2)

        def product() -> Any:
            return own._multiply_plain(next(ciphertexts), next(plaintexts), state)

        alone = {
            "multiply_plain": self.time(lambda: own.settled(product())),
            "add": self.time(lambda: own._add(next(ciphertexts), next(ciphertexts), state)),
        }
        whole = self.time(
            lambda: own.settled(reduce(lambda a, b: own._add(a, b, doubled), [product() for _ in range(SUMMED)]))
        )
        together = sum(alone.values())
        return {name: whole / SUMMED * seconds / together for name, seconds in alone.items()}

    def scaling_costs(self, limbs: int) -> dict[str, float]:
        """The primitives that differ between the scaling techniques; both need more than one limb."""
        if limbs < 2:
            return {}
        own, level = self.evaluator, limbs - 1
        state = CipherState(level, 1, self.parameters.scale(level))
        doubled = CipherState(level, 2, state.scale**2)
        cts = itertools.cycle([self.ciphertext(level) for _ in range(OPERANDS)])
        plaintext = self.plaintext(level)
        products = itertools.cycle(
            [own.settled(own._multiply_plain(next(cts), plaintext, state)) for _ in range(OPERANDS)]
        )
        return {
            "normalize": self.time(lambda: own._rescale(next(products), doubled)),
            "drop": self.time(lambda: own._level_reduce(next(cts), state, level - 1)),
        }


class VectorMeasurer(Measurer):
    model = VECTOR
    module = "olac.backends.vector.measure"
    bootstrapped = Parameters(14, 26, 37, 41, 2, FLEXIBLE, 0, Bootstrapping(9, (4, 3), 4, 10))

    def load(self) -> str:
        available.prepare()
        return f"numba {importlib.metadata.version('numba')}"

    def setting(self, setting: Setting, threads: int, budget: float) -> list[MeasuredRow]:
        bench = Bench(setting, FIXED, threads, budget)

        def rows(limbs: int, technique: str, seconds: dict[str, float]) -> list[MeasuredRow]:
            shape = CiphertextShape(setting.log_ring, limbs, setting.digit_limbs, bench.specials, technique)
            return [MeasuredRow(name, shape, threads, value) for name, value in seconds.items()]

        result = []
        for limbs in setting.levels:
            if limbs in (setting.levels[-1], setting.levels[len(setting.levels) // 2]):
                result += rows(limbs, FIXED, bench.key_costs(limbs - 1))
            result += rows(limbs, FIXED, bench.level_costs(limbs))
        flexible = Bench(setting, FLEXIBLE, threads, budget)
        for limbs in setting.levels:
            result += rows(limbs, FLEXIBLE, flexible.scaling_costs(limbs))
        return result

    def bootstrap(self, parameters: Parameters, quick: bool) -> float:
        model = VECTOR.bootstraps(parameters)
        client = ENGINE.client(parameters, "")
        steps = {**dict.fromkeys(sorted(model.steps), 0), 1: parameters.depth}
        keys = client.make_keys(steps, 0)
        server = ENGINE.server(parameters, keys, steps, PlaintextCache(0))
        slots = np.random.default_rng(0).uniform(-1, 1, parameters.slots)
        low, high = (
            Ciphertext(client.encrypt(slots, level), CipherState(level, 1, parameters.scale(level)))
            for level in (model.input_level, parameters.depth)
        )
        return median_ratio(lambda: server.evaluator.bootstrap(low), lambda: server.evaluator.rotate(high, 1), quick)


MEASURER = VectorMeasurer()

if __name__ == "__main__":
    MEASURER.main()
