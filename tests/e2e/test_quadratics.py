"""Models whose activations are quadratics: one level each where they fold, on slots and on ciphertexts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import olac
from benchmarks.depth import activation_depth, circuit_depth
from olac.ckks.primes import FIXED, FLEXIBLE, Technique
from olac.errors import ArtifactError
from olac.ir.graph import Graph
from olac.ir.ops import Polynomial, Square
from olac.ir.types import Stage
from olac.passes.compose_linear import ComposeLinear
from olac.passes.fit_activations import FitActivations
from olac.passes.fold_affine import FoldAffine
from olac.passes.fold_squares import FoldSquares
from olac.passes.normalize_units import NormalizeUnits
from olac.passes.pipeline import approximation_pipeline
from olac.program.artifact import save_program
from olac.program.program import CompiledProgram
from tests.e2e.test_networks import CASES, ODD, SLOTS, Case, OptionA, batch_norm, in_slots, least_level, made, relative

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")

PRECISION = 1e-3


class Residual(nn.Module):
    """A stem, a basic block with the identity as shortcut, a strided one with a convolution, pooling and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), batch_norm(4), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(4, width, 3, width // 4, 1, bias=False),
                batch_norm(width),
                nn.GELU(),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                batch_norm(width),
            )
            for width in (4, 8)
        )
        self.shortcut = nn.Conv2d(4, 8, 1, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.blocks[0](x))
        x = torch.relu(self.shortcut(x) + self.blocks[1](x))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


RESIDUAL = Case("residual", Residual, (2, 8, 8))


def compiled(case: Case, technique: Technique = FIXED, degree: int = 2) -> CompiledProgram:
    model, images = made(case)
    return olac.compile(
        model,
        [images],
        degree=degree,
        log_ring=case.log_ring,
        insecure=True,
        technique=technique,
        batch=case.batch,
        precision=PRECISION,
        client_head=False,
    )


@pytest.mark.parametrize(
    ("case", "linear", "activations"), [(RESIDUAL, 6, 5), (Case("option A", OptionA, (3, 9, 9)), 4, 3)]
)
def test_every_activation_of_a_residual_network_takes_one_level(case: Case, linear: int, activations: int) -> None:
    """The depth is that of the linear ops on the main branch and a level for each activation."""
    model, images = made(case)
    for degree, levels in ((2, 1), (3, 2)):
        graph = olac.approximate(model, [images], olac.CompileOptions(fit=olac.FitOptions(degree=degree))).graph
        assert activation_depth(graph) == levels * activations
        assert circuit_depth(graph) == linear + levels * activations
    program = compiled(case)
    kinds = [type(node.op) for node in program.graph.nodes]
    assert kinds.count(Square) == activations
    assert Polynomial not in kinds
    assert program.parameters.depth == linear + activations
    assert [fit.depth for fit in program.report.fits] == [1] * activations
    state = program.output.type.state
    assert state is not None
    assert state.level == 0
    assert compiled(case, degree=3).parameters.depth == linear + 2 * activations


def test_a_quadratic_of_the_input_takes_two_levels() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    program = compiled(Case("on the input", lambda: model, (2, 5, 5)))
    assert [node.op.name for node in program.graph.nodes] == ["input", "polynomial", "conv2d", "square", "conv2d"]
    assert program.parameters.depth == 2 + 1 + 1 + 1
    assert [fit.depth for fit in program.report.fits] == [2, 1]


@pytest.mark.parametrize("case", [*CASES, *ODD, RESIDUAL], ids=lambda case: case.name)
def test_packed(case: Case) -> None:
    images = made(case)[1].double().numpy()[: case.batch]
    for technique in (FIXED, FLEXIBLE):
        program = compiled(case, technique)
        assert relative(in_slots(program, images), program.simulate(images)) < SLOTS
        state = program.output.type.state
        assert state is not None
        assert state.level == least_level(program), "levels to spare"


def test_a_program_with_squares_comes_back_from_its_file(tmp_path: Path) -> None:
    program = compiled(RESIDUAL)
    program.save(tmp_path / "p.olac")
    loaded = CompiledProgram.load(tmp_path / "p.olac")
    assert loaded.graph == program.graph
    assert loaded.fingerprint == program.fingerprint
    images = made(RESIDUAL)[1].numpy()
    np.testing.assert_array_equal(loaded.simulate(images), program.simulate(images))


@pytest.mark.encrypted
@pytest.mark.parametrize("technique", [FIXED, FLEXIBLE])
def test_encrypted(technique: Technique) -> None:
    model, images = made(RESIDUAL)
    program = compiled(RESIDUAL, technique)
    client = olac.Client(program)
    server = olac.Server(program, client.generate_keys())
    given = images[-1:].double().numpy()
    expected = program.simulate(given)
    # The noise is random, and simulated with a margin: a single run may be beyond it.
    errors = [np.max(np.abs(client.decrypt(server.run(client.encrypt(given))) - expected)) for _ in range(5)]
    with torch.no_grad():
        size = float(model(images).abs().max())
    assert np.median(errors) < PRECISION * size


def test_a_file_with_a_shift_of_another_shape_is_refused(tmp_path: Path) -> None:
    program = compiled(RESIDUAL)
    graph = program.graph
    op = next(node.op for node in graph.nodes if isinstance(node.op, Square))
    constants = {**graph.constants, op.shift: graph.constants[op.shift].reshape(1, -1)}
    other = replace(program, graph=Graph(graph.nodes, graph.outputs, constants, graph.stage))
    save_program(other, tmp_path / "p.olac")
    with pytest.raises(ArtifactError, match="shift of square with 2 axes, expected 1"):
        CompiledProgram.load(tmp_path / "p.olac")


@dataclass(frozen=True)
class ComposeLater(ComposeLinear):
    """Composition after the fits instead of before them."""

    name: ClassVar[str] = "compose_later"
    requires: ClassVar[Stage] = Stage.POLYNOMIAL
    ensures: ClassVar[Stage] = Stage.POLYNOMIAL


@pytest.mark.parametrize("case", [RESIDUAL, Case("option A", OptionA, (3, 9, 9))], ids=lambda case: case.name)
def test_squares_fold_before_linear_ops_are_composed_too(case: Case) -> None:
    model, images = made(case)
    options = olac.FitOptions(degree=2)
    later = (
        FoldAffine(),
        FitActivations(options.fitting, options.choice),
        FoldSquares(),
        ComposeLater(),
        NormalizeUnits(),
    )
    graphs = [olac.approximate(model, [images], pipeline=p).graph for p in (approximation_pipeline(options), later)]
    assert [n.op.name for n in graphs[0].nodes].count("square") == activation_depth(graphs[0])
    assert circuit_depth(graphs[0]) == circuit_depth(graphs[1])
    assert activation_depth(graphs[0]) == activation_depth(graphs[1])
    given = images.double().numpy()
    np.testing.assert_allclose(graphs[0].evaluate(given), graphs[1].evaluate(given), atol=1e-9)
