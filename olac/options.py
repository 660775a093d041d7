"""The options of the compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict, get_args

from olac.analysis.noise import MAX_SCALE_BITS
from olac.approximation.criterion import TASKS, Criterion, Task
from olac.ckks.engines import AUTO, ENGINES, EngineModel, engine_model
from olac.ckks.parameters import Parameters
from olac.ckks.primes import FIXED, TECHNIQUES, Technique
from olac.ckks.security import SECURITY_BOUNDS
from olac.costs.table import CostTable
from olac.frontend.custom import Activations
from olac.ir.ops import Array
from olac.passes.choose_lowerings import Convolutions, kinds
from olac.polynomials.modes import KEYWORDS, Degrees, Effects, EffortName, FitOptions, Method, MethodName, spelled_out
from olac.program.program import AnyProgram
from olac.progress import Reporter
from olac.system.choices import require_known, require_one_of
from olac.system.internal import callers_own
from olac.system.memory import bytes_of
from olac.system.shapes import described

AUTO_ENGINE = "auto"
Objective: TypeAlias = Literal["latency", "throughput"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
Stages = Callable[[str], None]
Asked: TypeAlias = Task | Criterion | Callable[[Array, Array], Array]


def telling(progress: Stages | None) -> Stages:
    """A caller's progress, or one that does nothing; errors in it pass through as the caller's own."""
    if progress is None:
        return lambda line: None
    return progress if isinstance(progress, Reporter) else callers_own(progress)


@dataclass(frozen=True)
class CompileOptions:
    """Everything that a caller may choose; each field is also a keyword of `compile` and `approximate`.

    Attributes:
        fit: how activations become polynomials.
        precision: largest error of the outputs by the noise of encryption, relative to their calibrated range, as it
            is simulated; before and after the client's part. None for 1e-3 or, if only bootstraps hold the program, for
            what the usual scale gives.
        security: 128, 192 or 256 bits.
        insecure: do without the check of security, for tests at small rings; every output says so.
        technique: OpenFHE's scaling technique.
        log_ring: log2 of the ring dimension; None for the smallest that fits.
        scale_bits: bits of the scale; None for the fewest that meet `precision`.
        parameters: all parameters; without security they need `insecure` as well.
        public_key: whether inputs may be encrypted with a public key (`olac.runtime.Encryptor`), which makes 16 times
            the noise of a rescale; the scale is then chosen for that.
        like: an earlier program, or what clients know of it. Its parameters and engine are kept, and its keys as far as
            possible: rotations by other steps are composed of its steps. If nothing is said of degrees, those of the
            earlier program are kept as well. So clients need no new keys for new weights. A note of the report says
            which keys are new if some are.
        max_memory: bytes that the server process may take, or text such as "8GB" or "1.5GiB"; None for no limit. It is
            also the default limit of servers that run the program.
        max_compile_memory: bytes that this process may take while it compiles, in the same form; None for what the
            machine has available. If more is needed, the model is refused before it is calibrated; fits hold fewer
            images at a time to keep to it (see `olac.approximation.own_needs`).
        batch: images in a run, for which the program is planned. As many as there is room for share a ciphertext; the
            others are computed beside it, with the same encoded weights. A run may have fewer images or more.
        objective: "latency" for the least time of a run of `batch` images, or "throughput" for the least time an image
            with as many images in a run as a ciphertext has room for, at least `batch`.
        convolutions: a registered kind of lowering, which computes what it can (see `olac.ir.lowerings`): "diagonals",
            or "multiplexed" for convolutions as MPCNN does them (Lee et al., ICML 2022), for comparison. "auto" takes
            diagonals, and a kind of the caller's own if it is predicted to be faster. Plans of degrees within levels,
            bootstraps or seconds don't know of it. Passes that are given as `lowering` decide for themselves.
        threads: that the server will use; None for all cores.
        engine: the engine that the program is planned for, which then runs it by default: "openfhe", "vector", or
            "auto" for the engine of `costs` or else for the vector engine. If this machine can't use the vector engine,
            or it refuses the program, the program is planned for OpenFHE, and a note says why.
        costs: prices of the engine's primitives (`CostTable.load` reads what `olac calibrate-costs` wrote); None for
            the shipped table.
        activations: own elementwise modules and functions that are to become polynomials, by module class, by a
            module's qualified name or by the function itself; as a function over numpy arrays or torch tensors, or None
            for what the model computes there.
        constants: values of arguments of the model's forward that are no encrypted input, by name, e.g.
            {"mask": mask}; tensors, arrays or anything else that forward takes. They become part of the program.
        dump_after, dump: passes after which `dump(name, text)` is called with the graph.
        task: what the outputs are for, which decides what agreement means: "classification", "binary", "multilabel",
            "regression", "embedding" or "map"; "auto" chooses by the outputs and the last function, and the report
            names the choice. Or an `olac.approximation.criterion.Criterion`, or a function `(ours, theirs)` of two
            arrays (n, *output shape) that returns a score of 0 to 1 for each image, shape (n,).
        strict: refuse what otherwise makes a note: a calibration of fewer than 256 images or with channels that hardly
            ever vary (CalibrationError), an agreement below the one asked for (InfeasibleError).
        client_head: whether the client computes a model's last softmax, argmax, scales and functions that never fall,
            such as sigmoid, exactly, on decrypted outputs (see `olac.ir.split`); it then sees their operands. If not,
            such functions become polynomials, and softmax and argmax are refused.
        augment: alters a batch of calibration images, a float tensor (n, *input shape), and returns one of the same
            shape, of images such as the model may get. Fits see these, and altered copies are tried in the end. With
            None, pictures are mirrored and shifted. What it draws from torch's random numbers depends on `seed`.
        checkpoint: a folder for the state of reconstruction, which is made if it does not exist. If a compilation is
            killed, the next one with the same model, images and options goes on from there. Files hold weights of the
            model. The functions of `augment` and `task` are not compared.
        class_names: names of the outputs, one for each class or number, in order. They are kept in the program and in
            what clients get; `olac decrypt` and `CompiledProgram.named` show them. Outputs of an `olac.Joined` have
            names of their own.
        seed: of all that is random: the order of images in fits, what is done to them, and simulated noise.
    """

    fit: FitOptions = field(default_factory=FitOptions)
    precision: float | None = None
    security: int = 128
    insecure: bool = False
    technique: Technique = FIXED
    log_ring: int | None = None
    scale_bits: int | None = None
    parameters: Parameters | None = None
    public_key: bool = False
    like: AnyProgram | None = None
    max_memory: float | str | None = None
    max_compile_memory: float | str | None = None
    batch: int = 1
    objective: Objective = "latency"
    convolutions: Convolutions = "auto"
    threads: int | None = None
    engine: str = AUTO_ENGINE
    costs: CostTable | None = None
    activations: Activations | None = None
    constants: Mapping[str, Any] | None = None
    dump_after: Sequence[str] = ()
    dump: Callable[[str, str], None] | None = None
    task: Asked = "auto"
    strict: bool = False
    client_head: bool = True
    augment: Callable[[Any], Any] | None = None
    checkpoint: str | Path | None = None
    class_names: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision is not None and not 0 < self.precision < 1:
            raise ValueError(f"precision {self.precision} is outside 0 ... 1")
        if isinstance(self.task, str):
            require_one_of("task", self.task, TASKS)
        for name in ("max_memory", "max_compile_memory"):
            if getattr(self, name) is not None:
                bytes_of(getattr(self, name), name)
        if self.batch < 1:
            raise ValueError(f"batch {self.batch} is below 1")
        require_one_of("objective", self.objective, OBJECTIVES)
        require_one_of("convolutions", self.convolutions, kinds())
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads {self.threads} is below 1")
        require_one_of("engine", self.engine, (AUTO_ENGINE, *ENGINES))
        if self.costs is not None and self.engine not in (AUTO_ENGINE, self.costs.engine.name):
            raise ValueError(f"the costs are those of {self.costs.engine.title}, not of engine {self.engine!r}")
        if self.security not in SECURITY_BOUNDS:
            raise ValueError(f"security {self.security} is not one of {', '.join(map(str, SECURITY_BOUNDS))}")
        if self.parameters is not None and self.parameters.security == 0 and not self.insecure:
            raise ValueError("the pinned parameters have no security: pass insecure=True for experiments")
        if self.parameters is not None and self.parameters.security < self.security and not self.insecure:
            raise ValueError(
                f"the pinned parameters are for {self.parameters.security}-bit security, {self.security} bits are "
                "asked for. Pin others, or ask for less."
            )
        require_one_of("scaling technique", self.technique, TECHNIQUES)
        if self.log_ring is not None and not 10 <= self.log_ring <= 17:
            raise ValueError(f"log2 of the ring dimension {self.log_ring} is outside 10 ... 17")
        least = (self.log_ring or 12) + 4
        if self.scale_bits is not None and not least <= self.scale_bits <= MAX_SCALE_BITS:
            raise ValueError(f"a scale of {self.scale_bits} bits is outside {least} ... {MAX_SCALE_BITS}")
        if self.augment is not None and not callable(self.augment):
            raise ValueError(f"augment is {self.augment!r}, which can't be called")
        if not isinstance(self.seed, Integral) or not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed {self.seed} is not a whole number in 0 ... 2^63 - 1")

    @property
    def memory_limit(self) -> float | None:
        """`max_memory` in bytes."""
        return None if self.max_memory is None else bytes_of(self.max_memory, "max_memory")

    @property
    def compile_memory_limit(self) -> float | None:
        """`max_compile_memory` in bytes."""
        asked = self.max_compile_memory
        return None if asked is None else bytes_of(asked, "max_compile_memory")

    @property
    def planned_for(self) -> EngineModel:
        """The engine that is planned for first, if this machine can use it."""
        if self.engine != AUTO_ENGINE:
            return engine_model(self.engine)
        return AUTO if self.costs is None else self.costs.engine

    @property
    def table(self) -> CostTable:
        """Prices of this engine."""
        return self.costs or CostTable.default(self.planned_for)


class FitKeywords(TypedDict, total=False):
    """The fields of `FitOptions`."""

    method: MethodName | Method
    degree: int | None
    plan: tuple[int, ...] | None
    degrees: Effects | Degrees
    max_depth: int | None
    max_bootstraps: int | None
    min_agreement: float | None
    max_latency: float | None
    tolerance: float | None
    max_degree: int | None
    r: float
    floor: float | None
    padding: float | None
    ridge: float | None
    alpha: int
    refit: bool
    effort: EffortName
    reconstruct: int | None
    fit_seconds: float | None


class Keywords(FitKeywords, total=False):
    """What `compile` and `approximate` take as keywords: the fields of `CompileOptions` and of `FitOptions`."""

    fit: FitOptions
    precision: float | None
    security: int
    insecure: bool
    technique: Technique
    log_ring: int | None
    scale_bits: int | None
    parameters: Parameters | None
    public_key: bool
    like: AnyProgram | None
    max_memory: float | str | None
    max_compile_memory: float | str | None
    batch: int
    objective: Objective
    convolutions: Convolutions
    threads: int | None
    engine: str
    costs: CostTable | None
    activations: Activations | None
    constants: Mapping[str, Any] | None
    dump_after: Sequence[str]
    dump: Callable[[str, str], None] | None
    task: Asked
    strict: bool
    client_head: bool
    augment: Callable[[Any], Any] | None
    checkpoint: str | Path | None
    class_names: Sequence[str]
    seed: int


ARGUMENTS = ("pipeline", "lowering", "progress")
"""What `compile` takes beside its options, for the answer to a misspelt name."""


def with_choices(options: CompileOptions | None, choices: Keywords) -> CompileOptions:
    """The options, or the defaults, with single fields replaced by keywords.

    Raises:
        TypeError: there is no such keyword; names the nearest.
        ValueError: a value or a combination of values is not allowed.
    """
    if options is not None and not isinstance(options, CompileOptions):
        raise TypeError(
            f"{described(options)} was given for options, a CompileOptions or keywords such as degree=3 are expected. "
            "Labels are not needed: give the model and the inputs"
        )
    require_known(choices, Keywords.__annotations__, ARGUMENTS)
    fitting = spelled_out({name: value for name, value in choices.items() if name in KEYWORDS})
    others: dict[str, Any] = {name: value for name, value in choices.items() if name not in KEYWORDS}
    for name in ("activations", "constants"):
        if others.get(name) is None:  # those of the options stay
            others.pop(name, None)
    made = replace(options or CompileOptions(), **others)
    return replace(made, fit=replace(made.fit, **fitting))
