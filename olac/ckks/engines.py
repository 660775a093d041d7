"""What planners have to know of an engine: which parameters it takes, what its objects weigh, what bootstraps ask for.

`ENGINES` holds a model of every engine that programs can be planned for, by the name of its folder in `olac/backends`.
Analyses and the search ask a model and know no engine by name; a table of costs says whose prices it holds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar

from olac.ckks.bootstrapping import BootstrapModel, bootstrap_model
from olac.ckks.parameters import Parameters
from olac.ckks.sizes import WORD_BYTES, ciphertext_bytes, kept_plaintext_bytes, plaintext_bytes, rotation_key_bytes
from olac.system.choices import require_one_of


class EngineModel(ABC):
    """One engine, as planners see it. Sizes are in bytes, in the memory of a process.

    Attributes:
        name: of its folder in `olac/backends`.
        title: what messages call it.
        costs: the file in `olac/data` that has its prices.
        library_bytes: of its code and of the tables of one set of parameters, without keys.
        also: primitives that its evaluator runs after another, which a table of costs does not count in.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    costs: ClassVar[str]
    library_bytes: ClassVar[float]
    also: ClassVar[MappingProxyType[str, tuple[str, ...]]] = MappingProxyType({})

    @abstractmethod
    def refuses(self, parameters: Parameters) -> str | None:
        """Why it can't run programs with these parameters; None if it can."""

    def takes(self, parameters: Parameters) -> bool:
        """Whether it can run programs with these parameters."""
        return self.refuses(parameters) is None

    @abstractmethod
    def special_primes(self, parameters: Parameters) -> tuple[int, ...]:
        """The primes of P, into which key switching lifts a digit."""

    @abstractmethod
    def bootstraps(self, parameters: Parameters) -> BootstrapModel:
        """What bootstraps ask for; an empty model if the parameters have none."""

    @abstractmethod
    def kept_plaintext_bytes(self, parameters: Parameters, level: int) -> int:
        """An encoded plaintext for ciphertexts of a level that is kept between runs."""

    @abstractmethod
    def key_level(self, parameters: Parameters, level: int) -> int:
        """The level up to which a key reaches that is used up to `level`; it decides the key's size and price."""

    @abstractmethod
    def key_bytes(self, parameters: Parameters, level: int) -> int:
        """One key for relinearisation, a rotation step or conjugation that is used up to a level."""

    @abstractmethod
    def digits_bytes(self, parameters: Parameters, level: int) -> int:
        """A ciphertext of a level that is decomposed for key switching."""

    def ciphertext_bytes(self, parameters: Parameters, level: int) -> int:
        """A ciphertext of two polynomials."""
        return ciphertext_bytes(parameters.log_ring, level + 1)

    def plaintext_bytes(self, parameters: Parameters, level: int) -> int:
        """The encoding of a plaintext."""
        return plaintext_bytes(parameters.log_ring, level + 1)

    def __reduce__(self) -> tuple[Callable[[str], EngineModel], tuple[str]]:
        """Copies are the model itself."""
        return engine_model, (self.name,)

    def keys_bytes(self, parameters: Parameters, levels: Mapping[int, int]) -> int:
        """Several keys, from how many of them are used up to each level."""
        return sum(count * self.key_bytes(parameters, level) for level, count in levels.items())


class _OpenFHE(EngineModel):
    """OpenFHE 1.6: every key is for the whole chain, and a rounding error is added back after a rotation."""

    name = "openfhe"
    title = "OpenFHE"
    costs = "costs.json"
    library_bytes = 60e6
    also = MappingProxyType({"rotate": ("add",), "hoisted_rotate": ("add",)})

    def refuses(self, parameters: Parameters) -> None:
        return None

    def special_primes(self, parameters: Parameters) -> tuple[int, ...]:
        return parameters.special_primes

    def bootstraps(self, parameters: Parameters) -> BootstrapModel:
        return bootstrap_model(parameters)

    def kept_plaintext_bytes(self, parameters: Parameters, level: int) -> int:
        return kept_plaintext_bytes(parameters.log_ring, level + 1)

    def key_level(self, parameters: Parameters, level: int) -> int:
        return parameters.depth

    def key_bytes(self, parameters: Parameters, level: int) -> int:
        special = len(parameters.special_primes)
        return rotation_key_bytes(parameters.log_ring, parameters.limbs, parameters.digits, special)

    def digits_bytes(self, parameters: Parameters, level: int) -> int:
        limbs = level + 1 + len(parameters.special_primes)
        return parameters.digits * limbs * WORD_BYTES * parameters.ring_dimension


OPENFHE: EngineModel = _OpenFHE()
ENGINES: dict[str, EngineModel] = {OPENFHE.name: OPENFHE}

AUTO: EngineModel = OPENFHE
"""The engine that engine="auto" plans for."""
FALLBACK: EngineModel = OPENFHE
"""It takes all parameters, so it is taken for programs that `AUTO` refuses."""


def engine_model(name: str) -> EngineModel:
    """The model of an engine; ValueError for a name that has none."""
    require_one_of("engine", name, ENGINES)
    return ENGINES[name]
