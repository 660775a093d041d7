"""A model of an engine that takes small primes only, and whose keys shrink with the level; nothing runs on it."""

from __future__ import annotations

from olac.ckks.bootstrapping import BootstrapModel
from olac.ckks.engines import OPENFHE, EngineModel
from olac.ckks.parameters import Parameters

MOST_BITS = 36


class PickyModel(EngineModel):
    name = "picky"
    title = "the picky engine"
    costs = OPENFHE.costs

    def library_bytes(self, parameters: Parameters) -> float:
        return 1e6

    def refuses(self, parameters: Parameters) -> str | None:
        largest = max(parameters.primes)
        if largest.bit_length() <= MOST_BITS:
            return None
        return f"{largest} has more than {MOST_BITS} bits"

    def special_primes(self, parameters: Parameters) -> tuple[int, ...]:
        return parameters.special_primes

    def bootstraps(self, parameters: Parameters) -> BootstrapModel:
        return OPENFHE.bootstraps(parameters)

    def kept_plaintext_bytes(self, parameters: Parameters, level: int) -> int:
        return self.plaintext_bytes(parameters, level)

    def key_level(self, parameters: Parameters, level: int) -> int:
        return level

    def key_bytes(self, parameters: Parameters, level: int) -> int:
        return 1000 * (level + 1)

    def key_file_bytes(self, parameters: Parameters, level: int) -> int:
        return self.key_bytes(parameters, level) // 2

    def digits_bytes(self, parameters: Parameters, level: int) -> int:
        return 0


PICKY = PickyModel()
