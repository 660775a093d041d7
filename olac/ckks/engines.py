"""What planners have to know of an engine: which parameters it takes, what its objects weigh, what bootstraps ask for.

`ENGINES` holds a model of every engine that programs can be planned for, by the name of its folder in `olac/backends`.
Analyses and the search ask a model and know no engine by name; a table of costs says whose prices it holds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar

from olac.ckks.bootstrapping import BOOTSTRAP_NOISE, BootstrapModel, bootstrap_model
from olac.ckks.parameters import OPENFHE_RECIPE, VECTOR_RECIPE, Parameters
from olac.ckks.sizes import (
    FREE_CIPHERTEXTS,
    MOST_PRODUCTS,
    WORD_BYTES,
    ciphertext_bytes,
    kept_plaintext_bytes,
    plaintext_bytes,
    rotation_key_bytes,
)
from olac.ckks.special import file_key_bytes, held_key_bytes, key_shape, vector_special_primes
from olac.ckks.vector_bootstrapping import VECTOR_BOOTSTRAP_NOISE, vector_bootstrap_model
from olac.system.choices import require_one_of

OPENFHE_BYTES = 60e6
"""OpenFHE's code and the precomputed tables of a context."""
VECTOR_BYTES = 120e6
"""numba and the compiled kernels."""
VECTOR_PRIME_BITS = 50
"""Products of residues are exact for primes below 2^50 (`olac.backends.vector.arithmetic`)."""


class EngineModel(ABC):
    """One engine, as planners see it. Sizes are in bytes, in the memory of a process.

    Attributes:
        name: of its folder in `olac/backends`.
        title: what messages call it.
        costs: the file in `olac/data` that has its prices.
        also: primitives that its evaluator runs after another, which a table of costs does not count in.
        unpriced: primitives that a table of costs may lack, because the engine does not run them.
        fused: whether the division by P after a key switch waits for the rescale that follows, if one does.
        recipe: of the bootstraps that programs are planned with for it; it may take others.
        bootstrap_noise: of these bootstraps, by the bits of scale and of q_0 at which it was measured.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    costs: ClassVar[str]
    also: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    unpriced: ClassVar[frozenset[str]] = frozenset()
    fused: ClassVar[bool] = False
    recipe: ClassVar[str] = OPENFHE_RECIPE
    bootstrap_noise: ClassVar[Mapping[tuple[int, int], float]] = BOOTSTRAP_NOISE

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
    def library_bytes(self, parameters: Parameters) -> float:
        """Its code, its tables for the parameters and memory that it keeps for later use, without keys."""

    def client_library_bytes(self, parameters: Parameters) -> float:
        """The same in a client, which makes secret keys and encrypts with OpenFHE."""
        return OPENFHE_BYTES + self.library_bytes(parameters)

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
    def key_file_bytes(self, parameters: Parameters, level: int) -> int:
        """The same key in a file."""

    @abstractmethod
    def digits_bytes(self, parameters: Parameters, level: int) -> int:
        """A ciphertext of a level that is decomposed for key switching."""

    def waiting_bytes(self, parameters: Parameters, level: int) -> int:
        """Operands at a level that wait for their products to be summed."""
        return 0

    def ciphertext_bytes(self, parameters: Parameters, level: int) -> int:
        """A ciphertext of two polynomials."""
        return ciphertext_bytes(parameters.log_ring, level + 1)

    def plaintext_bytes(self, parameters: Parameters, level: int) -> int:
        """The encoding of a plaintext."""
        return plaintext_bytes(parameters.log_ring, level + 1)

    def log_qp(self, parameters: Parameters) -> float:
        """log2(Q P), which decides the security of its keys."""
        return math.log2(math.prod(parameters.primes) * math.prod(self.special_primes(parameters)))

    def __reduce__(self) -> tuple[Callable[[str], EngineModel], tuple[str]]:
        """Copies are the model itself."""
        return engine_model, (self.name,)

    def keys_bytes(self, parameters: Parameters, levels: Mapping[int, int]) -> int:
        """The keys of a program, from how many of them are used up to each level (`KeyLevels.of`)."""
        other = self.bootstraps(parameters).from_sparse_bytes
        return other + sum(count * self.key_bytes(parameters, level) for level, count in levels.items())

    def keys_file_bytes(self, parameters: Parameters, levels: Mapping[int, int]) -> int:
        """The same keys in a file."""
        other = self.bootstraps(parameters).from_sparse_file_bytes
        return other + sum(count * self.key_file_bytes(parameters, level) for level, count in levels.items())


class _OpenFHE(EngineModel):
    """OpenFHE 1.6: every key is for the whole chain, and a rounding error is added back after a rotation."""

    name = "openfhe"
    title = "OpenFHE"
    costs = "costs.json"
    also = MappingProxyType({"rotate": ("add",), "hoisted_rotate": ("add",)})

    def refuses(self, parameters: Parameters) -> str | None:
        setup = parameters.bootstrapping
        if setup is not None and setup.recipe != self.recipe:
            return f"its bootstraps do not follow the {setup.recipe} engine's recipe"
        return None

    def special_primes(self, parameters: Parameters) -> tuple[int, ...]:
        return parameters.special_primes

    def library_bytes(self, parameters: Parameters) -> float:
        return OPENFHE_BYTES

    def client_library_bytes(self, parameters: Parameters) -> float:
        return OPENFHE_BYTES

    def bootstraps(self, parameters: Parameters) -> BootstrapModel:
        return bootstrap_model(parameters)

    def kept_plaintext_bytes(self, parameters: Parameters, level: int) -> int:
        return kept_plaintext_bytes(parameters.log_ring, level + 1)

    def key_level(self, parameters: Parameters, level: int) -> int:
        return parameters.depth

    def key_bytes(self, parameters: Parameters, level: int) -> int:
        special = len(parameters.special_primes)
        return rotation_key_bytes(parameters.log_ring, parameters.limbs, parameters.digits, special)

    def key_file_bytes(self, parameters: Parameters, level: int) -> int:
        return self.key_bytes(parameters, level)

    def digits_bytes(self, parameters: Parameters, level: int) -> int:
        limbs = level + 1 + len(parameters.special_primes)
        return parameters.digits * limbs * WORD_BYTES * parameters.ring_dimension


class _Vector(EngineModel):
    """Residues are doubles. A key holds the limbs and the digits that its highest level needs, packed."""

    name = "vector"
    title = "the vector engine"
    costs = "costs_vector.json"
    fused = True
    recipe = VECTOR_RECIPE
    bootstrap_noise = VECTOR_BOOTSTRAP_NOISE
    unpriced = frozenset(
        {
            "encrypt",
            "encrypt_public",
            "decrypt",
            "multiply_scalar",
            "square",
            "ext_lift",
            "setup",
            "serialize_key",
            "serialize_ciphertext",
            "deserialize_ciphertext",
        }
    )

    def refuses(self, parameters: Parameters) -> str | None:
        for index, prime in enumerate(parameters.primes):
            if prime >= 1 << VECTOR_PRIME_BITS:
                return f"q_{index} = {prime} is not below 2^{VECTOR_PRIME_BITS}"
        # Keys of OpenFHE have another P, for which security was checked.
        used, most = self.log_qp(parameters), max(parameters.log_qp, float(parameters.security_bound))
        if parameters.security and round(used, 2) > round(most, 2):
            return (
                f"its keys have a modulus of {used:.2f} bits, and {parameters.security}-bit security allows {most:.2f}"
            )
        return None

    def special_primes(self, parameters: Parameters) -> tuple[int, ...]:
        return vector_special_primes(parameters)

    def library_bytes(self, parameters: Parameters) -> float:
        kept = FREE_CIPHERTEXTS * ciphertext_bytes(parameters.log_ring, parameters.limbs)
        return self._code_and_tables(parameters) + kept

    def client_library_bytes(self, parameters: Parameters) -> float:
        return OPENFHE_BYTES + self._code_and_tables(parameters)

    def _code_and_tables(self, parameters: Parameters) -> float:
        primes = parameters.limbs + len(vector_special_primes(parameters))
        return VECTOR_BYTES + 2 * plaintext_bytes(parameters.log_ring, primes)  # roots of unity, and their inverses

    def waiting_bytes(self, parameters: Parameters, level: int) -> int:
        return MOST_PRODUCTS * (self.ciphertext_bytes(parameters, level) + self.plaintext_bytes(parameters, level))

    def bootstraps(self, parameters: Parameters) -> BootstrapModel:
        return vector_bootstrap_model(parameters)

    def kept_plaintext_bytes(self, parameters: Parameters, level: int) -> int:
        return self.plaintext_bytes(parameters, level)

    def key_level(self, parameters: Parameters, level: int) -> int:
        return level

    def key_bytes(self, parameters: Parameters, level: int) -> int:
        return held_key_bytes(parameters, key_shape(parameters, level))

    def key_file_bytes(self, parameters: Parameters, level: int) -> int:
        return file_key_bytes(parameters, key_shape(parameters, level))

    def digits_bytes(self, parameters: Parameters, level: int) -> int:
        shape = key_shape(parameters, level)
        return shape.digits * plaintext_bytes(parameters.log_ring, shape.limbs + shape.specials)


OPENFHE: EngineModel = _OpenFHE()
VECTOR: EngineModel = _Vector()
ENGINES: dict[str, EngineModel] = {one.name: one for one in (OPENFHE, VECTOR)}

AUTO: EngineModel = VECTOR
"""The engine that engine="auto" plans for, on machines that can use it."""
FALLBACK: EngineModel = OPENFHE
"""The engine that is planned for in its place, on other machines and for programs that it refuses.

It takes all parameters with bootstraps by its own recipe.
"""


def engine_model(name: str) -> EngineModel:
    """The model of an engine; ValueError for a name that has none."""
    require_one_of("engine", name, ENGINES)
    return ENGINES[name]
