"""What a CKKS primitive costs: seconds from a measured table.

`CostTable` prices one call of an engine's primitive on one machine. A price is a nonnegative combination of amounts of
physical work (number-theoretic transforms, products of residues, a constant), which `work` counts from the shape of the
ciphertext; `olac calibrate-costs` measures a grid of shapes and fits the factors. So shapes between the measured ones
have a price, too, and a ciphertext with more limbs never costs less.

Limbs are the primes that an operand holds now; a fresh ciphertext has depth + 1 of them. Key switching is hybrid (Han
and Ki, "Better bootstrapping for approximate homomorphic encryption", 2019): the limbs are cut into digits of
`digit_limbs` primes each, and each digit is lifted to all limbs and to `special_limbs` further primes.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from olac.ckks.engines import OPENFHE, EngineModel, engine_model
from olac.costs.work import BY_TECHNIQUE, PRIMITIVES, TECHNIQUES, CiphertextShape, work
from olac.errors import ArtifactError
from olac.system.files import Source

FORMAT = 1
MAX_TABLE_BYTES = 10_000_000
LARGEST = 1 << 16
"""Largest number of threads in tables."""
MAX_LOG_RING = 20


@dataclass(frozen=True)
class MeasuredRow:
    """One measurement: wall seconds of one call."""

    primitive: str
    shape: CiphertextShape
    threads: int
    seconds: float


@dataclass(frozen=True)
class ModelKey:
    """Which factors price a call; `technique` is empty if both techniques cost the same."""

    primitive: str
    technique: str
    log_ring: int
    threads: int


def model_key(primitive: str, shape: CiphertextShape, threads: int) -> ModelKey:
    technique = shape.technique if primitive in BY_TECHNIQUE else ""
    return ModelKey(primitive, technique, shape.log_ring, threads)


BOOTSTRAP_FACTOR = 1.0
"""Used for a table without a value of its own; ten set-ups measured at ring 2^16 have 0.96 to 1.13."""


@dataclass(frozen=True)
class CostTable:
    """Measured prices of an engine's primitives on one machine.

    Attributes:
        machine, version: what was measured; the version is that of the engine's library.
        rows: the measurements.
        factors: fitted to the measurements.
        bootstrap_factor: measured seconds of a bootstrap, divided by those of the primitives that it is counted to take
            (`olac.ckks.bootstrapping.BootstrapModel.work`).
        engine: whose prices they are.
    """

    machine: str
    version: str
    rows: tuple[MeasuredRow, ...]
    factors: Mapping[ModelKey, tuple[float, ...]]
    bootstrap_factor: float = BOOTSTRAP_FACTOR
    engine: EngineModel = OPENFHE

    @classmethod
    def default(cls, engine: EngineModel = OPENFHE) -> CostTable:
        """The table of an engine that is installed with olac.

        Args:
            engine: which engine's.
        """
        return _default_table(engine)

    @classmethod
    def load(cls, path: str | Path) -> CostTable:
        """Read what `olac calibrate-costs` wrote.

        Args:
            path: a JSON file.

        Raises:
            ArtifactError: the file is missing, or is no table.
        """
        source = Source.of_file(path)
        try:
            if source.size > MAX_TABLE_BYTES:
                raise ValueError(f"{source.size} bytes are too many for a cost table")
            with source.open() as stream:
                return cls.from_json(stream.read(MAX_TABLE_BYTES).decode("utf-8"))
        except ValueError as error:
            raise ArtifactError(f"{source.name}: {error}. Make a table with olac calibrate-costs.") from error

    @classmethod
    def from_json(cls, text: str) -> CostTable:
        """The inverse of `to_json`.

        Args:
            text: what `to_json` gave.

        Raises:
            ValueError: it is no table.
        """
        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise ValueError(f"cost table of format {document['format']}, not {FORMAT}")
            engine = engine_model(document.get("engine", OPENFHE.name))
            table = cls(
                machine=document["machine"],
                version=document[_version_key(engine)],
                rows=tuple(read_rows(document["rows"])),
                factors=dict(_read_factors(document["factors"])),
                bootstrap_factor=_number(document.get("bootstrap_factor", BOOTSTRAP_FACTOR)),
                engine=engine,
            )
            table._check()
        except ValueError:
            raise
        except (KeyError, TypeError, AttributeError, ArithmeticError, RecursionError, MemoryError) as error:
            raise ValueError(f"this isn't a cost table: {type(error).__name__}: {error}") from error
        return table

    def to_json(self) -> str:
        """One line per shape and one line per model, so that a new measurement gives a readable diff."""
        by_shape: dict[tuple[CiphertextShape, int], dict[str, float]] = {}
        for row in self.rows:
            by_shape.setdefault((row.shape, row.threads), {})[row.primitive] = float(f"{row.seconds:.4g}")
        rows = [
            json.dumps({**vars(shape), "threads": threads, "seconds": seconds})
            for (shape, threads), seconds in by_shape.items()
        ]
        factors = [
            json.dumps({**vars(key), "factors": [float(f"{factor:.5g}") for factor in factors]})
            for key, factors in self.factors.items()
        ]
        head: dict[str, object] = {"format": FORMAT, "machine": self.machine}
        if self.engine is not OPENFHE:  # as tables were before there were other engines
            head["engine"] = self.engine.name
        head[_version_key(self.engine)] = self.version
        head["bootstrap_factor"] = float(f"{self.bootstrap_factor:.4g}")
        lines = [f'"{name}": {json.dumps(value)}' for name, value in head.items()]
        lines += [_block("rows", rows), _block("factors", factors)]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @functools.cached_property
    def log_rings(self) -> tuple[int, ...]:
        """The measured rings, each as the logarithm of its dimension."""
        return tuple(sorted({key.log_ring for key in self.factors}))

    @functools.cached_property
    def threads(self) -> tuple[int, ...]:
        """The measured numbers of threads."""
        return tuple(sorted({key.threads for key in self.factors}))

    def seconds(self, primitive: str, shape: CiphertextShape, threads: int = 2) -> float:
        """Wall seconds of one call that may use `threads` threads.

        Args:
            primitive: the name of a method of `olac.backends.base.Evaluator`, such as "rotate".
            shape: ring, limbs and digits of the ciphertexts (`olac.costs.work.CiphertextShape`).
            threads: that the call may use.

        Raises:
            ValueError: an unknown primitive, or a ring or a number of threads that wasn't measured.
        """
        call = primitive, shape, threads
        if call not in self._known:
            self._known[call] = self._seconds(*call)
        return self._known[call]

    @functools.cached_property
    def _known(self) -> dict[tuple[str, CiphertextShape, int], float]:
        """Prices by call: searches over parameters ask for the same ones many times."""
        return {}

    @functools.cached_property
    def bootstraps(self) -> dict[Hashable, float]:
        """Prices of bootstraps by what they depend on: each search prices those of the same parameters again."""
        return {}

    @functools.cached_property
    def by_level(self) -> dict[Hashable, npt.NDArray[np.float64]]:
        """Prices of primitives at all levels of a chain, by what they depend on: chains of many budgets share them."""
        return {}

    def _seconds(self, primitive: str, shape: CiphertextShape, threads: int) -> float:
        amounts = work(primitive, shape, threads, self.engine.fused)
        factors = self.factors.get(model_key(primitive, shape, threads))
        if factors is None:
            rings = ", ".join(f"2^{log_ring}" for log_ring in self.log_rings)
            counts = ", ".join(str(count) for count in sorted({key.threads for key in self.factors}))
            raise ValueError(
                f"no measured price of {primitive} for ring 2^{shape.log_ring} with {threads} threads; "
                f"measured: rings {rings} with {counts} threads"
            )
        return sum(factor * amount for factor, amount in zip(factors, amounts, strict=True))

    def _check(self) -> None:
        """Raise ValueError unless every primitive has nonnegative factors for every ring and number of threads.

        Primitives that the engine does not run may be left out.
        """
        if not self.factors:
            raise ValueError("the cost table is empty")
        for key in self.factors:
            if not 1 <= key.log_ring <= MAX_LOG_RING or not 1 <= key.threads <= LARGEST:
                raise ValueError(f"the cost table has factors for a ring or number of threads that can't be: {key}")
        if not 0 < self.bootstrap_factor < math.inf:
            raise ValueError(f"the cost table's bootstrap takes {self.bootstrap_factor} times its primitives")
        for log_ring in self.log_rings:
            for threads in {key.threads for key in self.factors}:
                for primitive in PRIMITIVES:
                    for technique in TECHNIQUES:
                        shape = CiphertextShape(log_ring, 2, 1, 1, technique)
                        key = model_key(primitive, shape, threads)
                        factors = self.factors.get(key)
                        if factors is None and primitive in self.engine.unpriced:
                            continue
                        if factors is None:
                            raise ValueError(f"the cost table has no factors for {key}")
                        right = all(0 <= factor < math.inf for factor in factors)
                        if len(factors) != len(work(primitive, shape, threads, self.engine.fused)) or not right:
                            raise ValueError(f"the cost table's factors for {key} don't fit the model")


@functools.cache
def _default_table(engine: EngineModel) -> CostTable:
    return CostTable.from_json(resources.files("olac").joinpath(f"data/{engine.costs}").read_text(encoding="utf-8"))


def _version_key(engine: EngineModel) -> str:
    """What files call the version of the engine's library: tables of OpenFHE name the library."""
    return "openfhe" if engine is OPENFHE else "version"


def _block(name: str, lines: list[str]) -> str:
    return f'"{name}": [\n' + ",\n".join(lines) + "\n]"


def _read_shape(document: Mapping[str, object]) -> CiphertextShape:
    numbers = {name: document[name] for name in ("log_ring", "limbs", "digit_limbs", "special_limbs")}
    technique = document["technique"]
    if not isinstance(technique, str):
        raise TypeError("a technique must be a string")
    return CiphertextShape(**{name: _integer(value) for name, value in numbers.items()}, technique=technique)


def read_rows(documents: list[Mapping[str, object]]) -> list[MeasuredRow]:
    """The measurements of a table as read from JSON, whichever models its factors belong to."""
    rows = []
    for document in documents:
        shape, threads = _read_shape(document), _integer(document["threads"])
        seconds = document["seconds"]
        if not isinstance(seconds, dict):
            raise TypeError("a row's seconds must be an object")
        rows += [MeasuredRow(primitive, shape, threads, float(value)) for primitive, value in seconds.items()]
    return rows


def _read_factors(documents: list[Mapping[str, object]]) -> list[tuple[ModelKey, tuple[float, ...]]]:
    models = []
    for document in documents:
        factors = document["factors"]
        if not isinstance(factors, list):
            raise TypeError("factors must be a list")
        key = ModelKey(
            primitive=str(document["primitive"]),
            technique=str(document["technique"]),
            log_ring=_integer(document["log_ring"]),
            threads=_integer(document["threads"]),
        )
        models.append((key, tuple(float(factor) for factor in factors)))
    return models


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not an integer")
    return value
