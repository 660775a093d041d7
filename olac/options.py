"""What a caller of the compiler may choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from olac.analysis.noise import MAX_SCALE_BITS
from olac.approximation.criterion import TASKS, Criterion
from olac.ckks.parameters import Parameters
from olac.ckks.primes import FIXED, TECHNIQUES
from olac.ckks.security import SECURITY_BOUNDS
from olac.costs.table import CostTable
from olac.ir.ops import Array
from olac.passes.choose_lowerings import check_kind
from olac.polynomials.fit import FitOptions
from olac.system.internal import callers_own
from olac.system.memory import bytes_of

Stages = Callable[[str], None]


def telling(progress: Stages | None) -> Stages:
    """Progress of a caller who may not want any; what it raises is the caller's own."""
    return (lambda line: None) if progress is None else callers_own(progress)


@dataclass(frozen=True)
class CompileOptions:
    """Everything that a caller may choose; the defaults choose for them.

    Attributes:
        fit: how activations become polynomials.
        precision: largest error of the outputs by the noise of encryption, relative to their calibrated range, as it
            is simulated; before and after what the client computes. None for 1e-3, and for what the usual scale gives
            where programs have bootstraps.
        security: 128, 192 or 256 bits.
        insecure: waive the check of security, for tests at small rings; every output says so.
        technique: OpenFHE's scaling technique.
        log_ring: pin log2 of the ring dimension; None takes the smallest that fits.
        scale_bits: pin the bits of the scale; None takes the fewest that meet `precision`.
        parameters: pin all of them; those without security need `insecure` as well.
        max_memory: bytes that the server process may take, or text such as "8GB" or "1.5GiB"; None for no limit. The
            program carries it: servers keep to it if they are told nothing else.
        batch: images in one set of ciphertexts.
        convolutions: a registered kind of lowering, which computes what it can (see `olac.ir.lowerings`): "diagonals",
            or "multiplexed" for convolutions as MPCNN does them, for comparison. "auto" takes diagonals, and a
            kind of the caller's own if it is predicted to be faster. Plans of degrees within levels, bootstraps or
            seconds don't know of it. Passes that are given as `lowering` decide for themselves.
        threads: that the server will use; None for all cores.
        costs: prices of OpenFHE's primitives (`CostTable.load` reads what `olac calibrate-costs` wrote); None for the
            shipped table.
        activations: own modules and functions that work elementwise and are to become polynomials, by module class, by
            a module's qualified name or by the function itself; as a function over numpy arrays or torch tensors, or
            None for what the model computes there.
        dump_after, dump: passes after which `dump(name, text)` gets the graph.
        task: what the outputs are for, which decides what agreement means: "classification", "binary", "multilabel",
            "regression", "embedding" or "map"; "auto" tells it from the outputs and the last function, and the report
            says which it took. Or an `olac.approximation.criterion.Criterion`, or a function `(ours, theirs)` of two
            arrays (n, *output shape) that gives a score of 0 to 1 for each image, shape (n,).
        strict: refuse what else makes a note: a calibration of fewer than 256 images or with channels that hardly ever
            vary (CalibrationError), an agreement below the one asked for (InfeasibleError).
        client_head: the client computes a model's last softmax, argmax, scales and functions that never fall, such as
            sigmoid, exactly, on decrypted outputs (see `olac.ir.split`); so it sees what goes into them. Without it
            such functions become polynomials as all others, and softmax and argmax are refused.
    """

    fit: FitOptions = field(default_factory=FitOptions)
    precision: float | None = None
    security: int = 128
    insecure: bool = False
    technique: str = FIXED
    log_ring: int | None = None
    scale_bits: int | None = None
    parameters: Parameters | None = None
    max_memory: float | str | None = None
    batch: int = 1
    convolutions: str = "auto"
    threads: int | None = None
    costs: CostTable | None = None
    activations: Mapping[Any, Callable[[Any], Any] | None] = field(default_factory=dict)
    dump_after: Sequence[str] = ()
    dump: Callable[[str, str], None] | None = None
    task: str | Criterion | Callable[[Array, Array], Array] = "auto"
    strict: bool = False
    client_head: bool = True

    def __post_init__(self) -> None:
        if self.precision is not None and not 0 < self.precision < 1:
            raise ValueError(f"precision {self.precision} is outside 0 ... 1")
        if isinstance(self.task, str) and self.task not in TASKS:
            raise ValueError(f"task {self.task!r} is not one of {', '.join(TASKS)}")
        if self.max_memory is not None:
            bytes_of(self.max_memory, "max_memory")
        if self.batch < 1:
            raise ValueError(f"batch {self.batch} is below 1")
        check_kind(self.convolutions)
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads {self.threads} is below 1")
        if self.security not in SECURITY_BOUNDS:
            raise ValueError(f"security {self.security} is not one of {', '.join(map(str, SECURITY_BOUNDS))}")
        if self.parameters is not None and self.parameters.security == 0 and not self.insecure:
            raise ValueError("the pinned parameters have no security: pass insecure=True for experiments")
        if self.parameters is not None and self.parameters.security < self.security and not self.insecure:
            raise ValueError(
                f"the pinned parameters are for {self.parameters.security}-bit security, {self.security} bits are "
                "asked for. Pin others, or ask for less."
            )
        if self.technique not in TECHNIQUES:
            raise ValueError(f"scaling technique {self.technique!r} is not one of {', '.join(TECHNIQUES)}")
        if self.log_ring is not None and not 10 <= self.log_ring <= 17:
            raise ValueError(f"log2 of the ring dimension {self.log_ring} is outside 10 ... 17")
        least = (self.log_ring or 12) + 4
        if self.scale_bits is not None and not least <= self.scale_bits <= MAX_SCALE_BITS:
            raise ValueError(f"a scale of {self.scale_bits} bits is outside {least} ... {MAX_SCALE_BITS}")

    @property
    def memory_limit(self) -> float | None:
        """`max_memory` in bytes."""
        return None if self.max_memory is None else bytes_of(self.max_memory, "max_memory")


def with_choices(options: CompileOptions, choices: dict[str, Any]) -> CompileOptions:
    fit = {k: v for k, v in choices.items() if k in FitOptions.__dataclass_fields__}
    rest = {k: v for k, v in choices.items() if k not in fit}
    unknown = sorted(set(rest) - set(CompileOptions.__dataclass_fields__))
    if unknown:
        raise TypeError(f"there is no option {', '.join(unknown)}")
    return replace(options, fit=replace(options.fit, **fit), **rest)
