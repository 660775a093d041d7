"""Passes and the manager that runs and checks them."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from olac.analysis.degree_choice import Images
from olac.calibration.statistics import Calibration
from olac.ckks.engines import OPENFHE, EngineModel
from olac.ckks.parameters import Parameters
from olac.costs.table import CostTable
from olac.errors import VerificationError
from olac.ir.graph import Graph
from olac.ir.types import Stage
from olac.ir.verify import verify
from olac.polynomials.curves import Curve
from olac.polynomials.degrees import FrontPoint
from olac.system.internal import callers, callers_own, guard


@dataclass(frozen=True)
class FitReport:
    """How one activation became a polynomial.

    Attributes:
        node: id of the activation.
        function: its name.
        degree, depth: of its polynomials, and the levels that they take.
        rmse: root mean square error under the calibrated distribution, relative to the function's root mean square.
        max_error: largest absolute error on the calibrated range.
        low, high: the padded range.
        outer_error: largest absolute error on the padded range outside the calibrated one.
    """

    node: str
    function: str
    degree: int
    depth: int
    rmse: float
    max_error: float
    low: float
    high: float
    outer_error: float = 0.0


@dataclass
class PassContext:
    """The data that passes may read beside the graph, and their reports.

    Attributes:
        calibration: statistics of the layers' values; needed by passes that fit.
        parameters: CKKS parameters; needed from packing on.
        costs: prices of primitives, to choose between lowerings; `engine` is the engine whose prices they are.
        threads: number of threads that the server will use.
        images: fits and measurements on whole images; needed by the methods that use them.
        fits: reports of fitted activations, in order.
        curves: of the same, for drawings.
        front: the plans that were considered, the cheapest first.
        notes: notes about the result, for people.
    """

    calibration: Calibration | None = None
    parameters: Parameters | None = None
    costs: CostTable | None = None
    threads: int = 2
    batch: int = 1
    images: Images | None = None
    fits: list[FitReport] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    front: list[FrontPoint] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def engine(self) -> EngineModel:
        """The engine that the program is for: OpenFHE if there are no prices."""
        return OPENFHE if self.costs is None else self.costs.engine

    def need_calibration(self) -> Calibration:
        """The calibration; VerificationError without one."""
        if self.calibration is None:
            raise VerificationError("this pass needs a calibration")
        return self.calibration

    def need_images(self) -> Images:
        """The images; VerificationError without them."""
        if self.images is None:
            raise VerificationError("this pass needs calibration images")
        return self.images

    def need_parameters(self) -> Parameters:
        """The parameters; VerificationError without them."""
        if self.parameters is None:
            raise VerificationError("this pass needs parameters")
        return self.parameters


@dataclass(frozen=True)
class Pass(ABC):
    """A pure function from graph to graph; its fields are its options.

    `requires` is the stage of the graph that it takes, `ensures` the stage of the graph that it gives.
    """

    name: ClassVar[str] = ""
    requires: ClassVar[Stage] = Stage.TRACED
    ensures: ClassVar[Stage] = Stage.TRACED

    @abstractmethod
    def run(self, graph: Graph, context: PassContext) -> Graph:
        """The new graph."""


@dataclass(frozen=True)
class PassTiming:
    """Seconds that one pass took, with the check after it."""

    name: str
    seconds: float


class PassManager:
    """Runs passes in order and checks the graph after each.

    Args:
        passes: the pipeline; ValueError if a pass requires another stage than the pass before it ensures.
        dump_after: names of passes after which `dump(name, text)` gets the graph as text; "all" for all passes.
        progress: called with a line of text before each pass.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        dump_after: Iterable[str] = (),
        dump: Callable[[str, str], None] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        for before, after in itertools.pairwise(passes):
            if before.ensures != after.requires:
                with callers():
                    raise ValueError(
                        f"the pipeline does not chain: {before.name} ensures {before.ensures.name}, "
                        f"{after.name} requires {after.requires.name}"
                    )
        self.passes = tuple(passes)
        self._dump_after = frozenset(dump_after)
        self._dump = None if dump is None else callers_own(dump)
        self._progress = progress
        self.timings: list[PassTiming] = []

    def run(self, graph: Graph, context: PassContext) -> Graph:
        """The graph after all passes."""
        verify(graph, context.parameters)
        for item in self.passes:
            start = time.perf_counter()
            if graph.stage != item.requires:
                raise VerificationError(f"{item.name} requires {item.requires.name}, the graph is {graph.stage.name}")
            if self._progress is not None:
                self._progress(f"pass {item.name}")
            try:
                with guard(f"pass {item.name}"):
                    result = item.run(graph, context)
                    self._check(item, graph, result, context.parameters)
            except VerificationError as error:
                text = error.args[0]
                named = f"pass {item.name}" in text
                raise VerificationError(text if named else f"in pass {item.name}: {text}") from error
            graph = result
            self.timings.append(PassTiming(item.name, time.perf_counter() - start))
            if self._dump is not None and ({item.name, "all"} & self._dump_after):
                self._dump(item.name, graph.text())
        return graph

    @staticmethod
    def _check(item: Pass, before: Graph, after: Graph, parameters: Parameters | None) -> None:
        if after.stage != item.ensures:
            raise VerificationError(f"it ensures {item.ensures.name} but gave {after.stage.name}")
        if [(n.id, n.type.shape) for n in before.inputs] != [(n.id, n.type.shape) for n in after.inputs]:
            raise VerificationError("it changed the inputs")
        if [before[o].type.shape for o in before.outputs] != [after[o].type.shape for o in after.outputs]:
            raise VerificationError("it changed the outputs")
        verify(after, parameters)
