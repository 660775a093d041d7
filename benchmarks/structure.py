"""`python -m benchmarks structure`: levels of networks with quadratics, and what each rule of the circuit saves.

Weights are random: levels depend on the structure alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.data import DataError
from benchmarks.models import MODELS
from olac.analysis.levels import required_levels
from olac.frontend import lift, trace
from olac.ir.graph import Graph
from olac.ir.ops import Activation
from olac.passes.base import Pass, PassContext, PassManager
from olac.passes.compose_linear import ComposeLinear
from olac.passes.fold_affine import FoldAffine
from olac.passes.fold_squares import FoldSquares
from olac.passes.insert_placeholders import circuit_pipeline

DEFAULT = ("resnet18", "resnet20", "resnet32", "vgg16")
RULES: dict[str, tuple[type[Pass], ...]] = {
    "squares folded": (FoldSquares,),
    "pooling composed": (ComposeLinear,),
    "norms folded, pooling composed": (FoldAffine, ComposeLinear),
}
"""By name: the passes that are left out to see what they save. Composing linear ops folds norms as well."""


def levels(graph: Graph, without: tuple[type[Pass], ...] = ()) -> int:
    """The levels that a fresh input of a traced graph needs with a quadratic for each activation."""
    degrees = {node.id: 2 for node in graph.nodes if isinstance(node.op, Activation)}
    passes = [one for one in (FoldAffine(), *circuit_pipeline(degrees)) if not isinstance(one, without)]
    made = PassManager(passes).run(graph, PassContext())
    return required_levels(made)[made.inputs[0].id]


def run(names: Sequence[str], console: Console) -> None:
    """Print a table with a row for each network."""
    table = Table("network", "activations", "levels", *(f"without {rule}" for rule in RULES))
    for name in names:
        if name not in MODELS:
            raise DataError(f"model {name!r} is unknown; there are {', '.join(MODELS)}")
        torch.manual_seed(0)
        graph = lift(trace(MODELS[name].make().eval(), torch.randn(2, 3, 32, 32)))
        count = sum(isinstance(node.op, Activation) for node in graph.nodes)
        found = [levels(graph), *(levels(graph, rule) for rule in RULES.values())]
        table.add_row(name, str(count), *map(str, found))
    console.print(table)
