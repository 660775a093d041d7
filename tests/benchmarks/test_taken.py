"""Which models olac takes: the cases themselves, what their rows say, and docs/models.md, which holds the rows."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import olac
from benchmarks.__main__ import main
from benchmarks.results import Row
from benchmarks.zoo import nets_images, nets_sequences, nets_tables, networks, ops, polynomials
from benchmarks.zoo import subject as subjects
from benchmarks.zoo.cases import Case, normal
from benchmarks.zoo.catalogue import CASES
from benchmarks.zoo.document import counts, document, line, reasons, result
from benchmarks.zoo.levels import structural_levels
from benchmarks.zoo.measure import measure, relative
from benchmarks.zoo.outcomes import AS_GIVEN, KINDS, NETS, OPS, OUTCOMES, ZOO
from benchmarks.zoo.subject import flat, subject_of
from olac.compiler import approximate
from olac.errors import UnsupportedModelError, UnsupportedNode
from olac.frontend import check, lift
from olac.ir.graph import Graph
from olac.ir.ops import LinearOp
from olac.program.program import ApproximatedModel

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
PART = {
    OPS: ("add", "mul", "exp", "relu", "softmax", "conv2d", "batchnorm2d", "cat", "permute", "squeeze"),
    NETS: ("autoencoder", "squeeze_excitation", "unet"),
}
"""What is measured here and compared with the page."""
WITHOUT_EFFECT = {"mlp_mixer": ("blocks.0.patches.2.bias", "blocks.1.patches.2.bias")}
"""They add the same to all channels of a patch, and the layer norms after them take that away."""
HEIR = """add sub mul div neg exp log sqrt sum mean prod eq gt lt matmul mm bmm linear conv1d conv2d conv3d avgpool1d
avgpool2d avgpool3d maxpool1d maxpool2d maxpool3d batchnorm1d batchnorm2d batchnorm3d relu leakyrelu prelu elu gelu silu
sigmoid tanh softmax cat flatten permute transpose squeeze chunk select"""
SMALL = (*nets_tables.CASES, *nets_sequences.CASES, *nets_images.CASES)


def test_how_many_cases_there_are() -> None:
    assert sorted(ops.NAMES) == sorted(HEIR.split())
    assert len(ops.NAMES) == 46
    assert len({case.name for case in SMALL}) == len(SMALL) == 30
    assert len({case.name for case in networks.CASES}) == len(networks.CASES) == 26
    assert len({(case.kind, case.title) for case in CASES}) == len(CASES)
    assert {case.kind for case in CASES} == set(KINDS)
    assert {case.name for case in ops.CASES if case.variant == AS_GIVEN} == set(ops.NAMES)


@pytest.mark.parametrize("case", [*ops.CASES, *SMALL], ids=lambda case: case.title)
def test_each_definition_runs_in_torch(case: Case) -> None:
    """The same outputs each time, finite, one row for each image, and not the same for all."""
    inputs = case.inputs(3)
    with torch.no_grad():
        first, again = flat(case.model()(*inputs)), flat(case.model()(*inputs))
    assert first
    for output, same in zip(first, again, strict=True):
        assert torch.equal(output, same)
        assert output.shape[0] == 3
        values = output.double()
        assert bool(torch.isfinite(values).all())
        assert float(values.std(0).max()) > 1e-2 * float(values.abs().max())


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_each_weight_of_a_net_matters(case: Case) -> None:
    """A lifted net that is right in spite of a wrong weight would show nothing."""
    model = case.model()
    outputs = model(*case.inputs(4))
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))
    (outputs * weights).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        matters = float(parameter.grad.abs().max()) > 1e-4
        assert matters is not (name in WITHOUT_EFFECT.get(case.name, ())), name


@pytest.mark.parametrize("case", networks.CASES, ids=lambda case: case.name)
def test_each_network_runs_in_torch(case: Case) -> None:
    pytest.importorskip(case.package)
    with torch.no_grad():
        outputs = case.model()(*case.inputs(2))
    assert outputs.shape == (2, networks.CLASSES)
    assert float((outputs[0] - outputs[1]).abs().max()) > 1e-3 * float(outputs.abs().max())


def test_weights_that_would_hide_errors_are_replaced() -> None:
    block = next(case for case in SMALL if case.name == "convnext_block")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    model = block.model()
    assert torch.equal(torch.rand(1), expected), "torch's own random numbers are left alone"
    names = dict(model.named_parameters())
    assert float(names["block.gamma"].detach().min()) > 0.4
    assert len(names["block.norm.weight"].unique()) > 1
    norm = next(case for case in CASES if case.name == "batchnorm2d").model()
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    assert norm.momentum == nn.BatchNorm2d(1).momentum
    assert not norm.training
    assert not torch.equal(norm.running_var, torch.ones(3))


class Sorted(nn.Module):
    """What no polynomial gives, and no step of a client."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(x, 1)[0]


def case_of(make: Callable[[], nn.Module], **more: Any) -> Case:
    return Case("own", NETS, make, ((4,),), (normal,), **more)


def fails(error: BaseException) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        raise error

    return call


def test_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One case for each outcome."""
    right = measure(case_of(lambda: nn.Linear(4, 2)))
    assert right["outcome"] == "right"
    assert right["error_of_lifting"] < 1e-5
    assert right["seconds"] >= 0
    refused = measure(case_of(Sorted))
    assert (refused["outcome"], refused["places"]) == ("refused", 1)
    assert measure(case_of(fails(ImportError("no module named 'timm'"))))["outcome"] == "package missing"
    assert measure(case_of(fails(MemoryError())))["outcome"] == "out of memory"

    def slow() -> nn.Module:
        time.sleep(5)
        return nn.Linear(4, 2)

    before = time.monotonic()
    assert measure(case_of(slow), seconds=0.2)["outcome"] == "out of time"
    assert time.monotonic() - before < 4

    monkeypatch.setattr(subjects, "check", fails(ValueError("a bug")))
    crashed = measure(case_of(lambda: nn.Linear(4, 2)))
    assert (crashed["outcome"], crashed["error"]) == ("crash", "ValueError: a bug")
    foreign = UnsupportedNode("", "", "can't be traced (TypeError: len() of a 0-d tensor)", "Do something")
    monkeypatch.setattr(subjects, "check", lambda *arguments, **options: [foreign])
    assert measure(case_of(lambda: nn.Linear(4, 2)))["outcome"] == "refused unclearly"
    monkeypatch.setattr(subjects, "check", lambda *arguments, **options: [])
    assert measure(case_of(Sorted))["outcome"] == "crash", "refused although check finds nothing"
    found = {"right", "refused", "refused unclearly", "crash", "package missing", "out of memory", "out of time"}
    assert found | {"wrong"} == set(OUTCOMES)


def test_memory_has_a_limit() -> None:
    """A case that takes too much ends as such, and leaves the limits of the process as they were."""
    before = resource.getrlimit(resource.RLIMIT_DATA)

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.zeros(750_000_000)  # 3 GB, never touched
            self.linear = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.linear(x)
            return result

    assert measure(case_of(Large), gigabytes=1)["outcome"] == "out of memory"
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert measure(case_of(lambda: nn.Linear(4, 2)), gigabytes=1)["outcome"] == "right"


def changed(graph: Graph, factor: float) -> Graph:
    """A graph with the constants of its first linear op scaled."""
    node = next(node for node in graph.nodes if isinstance(node.op, LinearOp) and node.op.constant_names())
    constants = {**graph.constants, **{n: factor * graph.constants[n] for n in node.op.constant_names()}}
    return Graph(graph.nodes, graph.outputs, constants, graph.stage)


def test_a_lifted_graph_that_differs_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects, "lift", lambda *arguments: changed(lift(*arguments), 1.001))
    row = measure(case_of(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))), approximate=True)
    assert row["outcome"] == "wrong"
    assert 1e-4 < row["error_of_lifting"] < 1e-2
    assert "levels" not in row


def test_what_an_operation_gives_as_the_last_step() -> None:
    """Operations are to be computed on encrypted values; that a client can compute them is noted."""
    softmax = next(case for case in CASES if case.name == "softmax")
    row = measure(softmax)
    if row["outcome"] == "refused":
        assert row["last_step"]
    assert "last_step" not in measure(replace(softmax, client_head=True))
    assert measure(replace(softmax, client_head=True))["steps_of_client"] == 1


def test_differences_are_relative_to_the_largest_output() -> None:
    theirs = torch.tensor([[10.0, 1.0]])
    assert relative(np.array([[10.0, 1.5]]), theirs) == pytest.approx(0.05)
    assert relative(np.array([10.0, 1.0]), theirs) == 0
    assert relative(np.array([[10.0, 1.0, 0.0]]), theirs) == np.inf
    assert relative(np.array([[10.0, np.nan]]), theirs) == np.inf


def test_polynomials_are_held_against_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What simulate() gives differs from torch with the same polynomials if a linear part is wrong."""
    case = next(case for case in SMALL if case.name == "squeeze_excitation")
    right = measure(case, approximate=True)
    assert right["error_of_polynomials"] < 1e-5

    def wrong(*arguments: Any, **options: Any) -> ApproximatedModel:
        made = approximate(*arguments, **options)
        return replace(made, graph=changed(made.graph, 1.01))

    monkeypatch.setattr(polynomials, "approximate", wrong)
    row = measure(case, approximate=True)
    assert row["outcome"] == "right"
    assert row["error_of_polynomials"] > 1e-4
    assert "differ by" in line(row)
    monkeypatch.setattr(polynomials, "approximate", fails(ValueError("a bug")))
    assert measure(case, approximate=True)["approximation"] == "ValueError: a bug"


def test_networks_are_approximated_for_their_smallest_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels are those of the inputs as given; simulate() is held against torch for the smallest ones."""
    small = next(case for case in SMALL if case.name == "squeeze_excitation")
    small = replace(small, shapes=((3, 8, 8),))
    case = replace(small, kind=ZOO, shapes=((3, 16, 16),), approximates=False, smallest=small)
    row = measure(case, approximate=True)
    assert row["levels"] == structural_levels(subject_of(case), subject_of(case).lifted())
    assert "error_of_polynomials" not in row
    assert row["smallest"]["inputs"] == [[3, 8, 8]]
    assert row["smallest"]["error_of_polynomials"] < 1e-5
    assert "smallest" not in measure(case), "it takes fits"
    assert "smallest" not in measure(replace(case, smallest=None), approximate=True)

    def wrong(*arguments: Any, **options: Any) -> ApproximatedModel:
        made = approximate(*arguments, **options)
        return replace(made, graph=changed(made.graph, 1.01))

    monkeypatch.setattr(polynomials, "approximate", wrong)
    assert "differ by" in line(measure(case, approximate=True))
    monkeypatch.setattr(polynomials, "approximate", fails(ValueError("a bug")))
    row = measure(case, approximate=True)
    assert row["smallest"]["approximation"] == "ValueError: a bug"
    assert row["levels"] > 0


def test_the_degree_rises_if_polynomials_diverge(monkeypatch: pytest.MonkeyPatch) -> None:
    degrees: list[int] = []

    def diverging(*arguments: Any, degree: int, **options: Any) -> ApproximatedModel:
        degrees.append(degree)
        made = approximate(*arguments, degree=degree, **options)
        return replace(made, graph=changed(made.graph, 1e4)) if degree == 3 or everywhere else made

    everywhere = False
    monkeypatch.setattr(polynomials, "approximate", diverging)
    case = case_of(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    row = measure(case, approximate=True)
    assert degrees == [3, 7]
    assert (row["degree"], row["levels"]) == (7, 5)
    assert row["error_of_polynomials"] < 1e-4
    assert "| 5 (degree 7) | within 1e-4 |" in line(row)
    everywhere = True
    row = measure(case, approximate=True)
    assert row["approximation"] == "polynomials of degree 15 diverge"
    assert "error_of_polynomials" not in row


def test_an_operation_that_the_approximated_graph_lacks() -> None:
    """Nothing is compared then, and the row says so."""
    case = case_of(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    exact = subject_of(case).lifted().graph
    other = subject_of(case_of(lambda: nn.Sequential(nn.Linear(4, 3)))).lifted().graph
    with pytest.raises(polynomials.NoReferenceError, match="activation m1"):
        polynomials.with_polynomials(exact, other, case.inputs(2)[0])


@pytest.mark.parametrize("name", ["keyword_spotting", "squeeze_excitation", "maxpool2d"])
def test_levels_by_structure_are_those_of_fitted_polynomials(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    row = measure(case, approximate=True)
    assert row["levels"] == structural_levels(subject_of(case), subject_of(case).lifted())


def test_the_page_says_what_is_measured() -> None:
    """A part of docs/models.md is measured again. If it differs, make the page anew: it says how."""
    page = PAGE.read_text(encoding="utf-8").splitlines()
    for case in CASES:
        if case.name in PART.get(case.kind, ()):
            assert line(measure(case, approximate=True)) in page, case.title


def test_the_page_lists_every_case() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for case in CASES:
        start = f"| `{case.name}` | {case.variant} |" if case.kind == OPS else f"| `{case.name}` |"
        assert page.count(f"\n{start}") == 1, case.title
    assert "package missing" not in page.partition("## Single operations")[2], "made without torchvision or timm"


def row_of(kind: str, outcome: str, **more: Any) -> Row:
    return {"kind": "model", "family": kind, "model": "m", "variant": AS_GIVEN, "inputs": [[3, 4, 4]], **more} | {
        "outcome": outcome,
        "seconds": 0.1,
        "peak_gb": None,
    }


def test_lines_of_the_page() -> None:
    refused = row_of(NETS, "refused", places=8, problems={"a|b": 4, "c": 1, "d": 1, "e": 1, "f": 1})
    assert line(refused) == "| `m` | 3x4x4 | refused: a\\|b (4); c; d; e; and 1 more |  |  |"
    right = row_of(ZOO, "right", parameters=11_170_000, levels=84)
    assert line(right) == "| `m` | 3x4x4 | 11.2 M | works | 84 |  |"
    assert line(row_of(ZOO, "right", approximation="out of memory")).endswith("| works | out of memory |  |")
    small = {"inputs": [[3, 2, 2]], "degree": 7, "error_of_polynomials": 3e-7}
    assert line({**right, "smallest": small}).endswith("| 84 | within 1e-4 (3x2x2, degree 7) |")
    assert line({**right, "smallest": {**small, "error_of_polynomials": 0.02}}).endswith("(3x2x2, degree 7) |")
    assert "**differ by 0.02** (3x2x2" in line({**right, "smallest": {**small, "error_of_polynomials": 0.02}})
    slow = {"inputs": [[3, 2, 2]], "approximation": "out of time"}
    assert line({**right, "smallest": slow}).endswith("| 84 | out of time (3x2x2) |")
    both = row_of(OPS, "right", levels=2, error_of_polynomials=3e-7)
    assert line(both) == "| `m` | as given | works | 2 | within 1e-4 |"
    assert result(row_of(OPS, "crash", error="ValueError: a bug")) == "crash: ValueError: a bug"
    assert reasons({"x": 1}) == "x"
    shapes = {"no (4, 5)": 1, "linear on (3,), last": 2, "linear on (4, 8), last": 2}
    assert reasons(shapes) == "linear on (...), last (4); no (4, 5)"


class Parts(nn.Module):
    """Two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": self.linear(x) + y, "other": self.linear(x[:, :4]) * 2}


class Vector(nn.Module):
    """`Parts` of one vector, as `olac.Joined` makes it."""

    factor = 1.0

    def __init__(self, model: nn.Module, example: Any) -> None:
        super().__init__()
        self.model = model

    def join(self, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat(inputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.model(x[:, :4], x[:, 4:])
        joined: torch.Tensor = F.pad(parts["sum"], (0, 3)) + self.factor * F.pad(parts["other"], (3, 0))
        return joined


def test_several_inputs_and_outputs_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("own", NETS, Parts, ((4,), (3,)))
    assert torch.equal(subject_of(case).expected(5)[:, :3], case.model()(*case.inputs(5))["sum"])
    monkeypatch.setattr(olac, "Joined", Vector, raising=False)
    row = measure(case, approximate=True)
    assert (row["outcome"], row["joined"]) == ("right", True)
    assert row["error_of_polynomials"] < 1e-5
    assert result(row) == "works, by `olac.Joined`"
    monkeypatch.setattr(Vector, "factor", 1.01)
    assert measure(case)["outcome"] == "wrong", "compared with the module as given"
    assert "joined" not in measure(case_of(Sorted)), "one input and one output"
    monkeypatch.setattr(olac, "Joined", fails(TypeError("no real tensors")))
    assert measure(case)["outcome"] == "refused"


def test_summary_counts_what_is_as_given() -> None:
    outcomes = ("right", "refused", "refused unclearly", "crash", "wrong", "out of time")
    rows = [row_of(NETS, outcome) for outcome in outcomes]
    assert counts(rows) == (1, 0, 1, 2, 1, 1)
    assert counts([*rows, row_of(NETS, "right", joined=True)]) == (2, 1, 1, 2, 1, 1)
    page = document([*rows, {**row_of(NETS, "right"), "variant": "other"}, {"kind": None}])
    assert "| small nets | 6 | 1 | 0 | 1 | 2 | 1 | 1 |" in page


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, page = tmp_path / "rows.json", tmp_path / "page.md"
    arguments = ["models", "--kind", "ops", "--json", str(rows), "--markdown", str(page)]
    assert main([*arguments, "--only", "relu"]) == 0
    assert "ops relu: right" in capsys.readouterr().err
    assert main([*arguments, "--append", "--only", "conv2d", "relu"]) == 0
    found = json.loads(rows.read_text())["rows"]
    assert sorted(row["model"] for row in found) == ["conv2d", "relu"]
    text = page.read_text()
    assert text.index("| `conv2d` | as given | works |") < text.index("| `relu` | as given | works |")
    assert main([*arguments, "--append", "--only", "conv2d"]) == 0
    assert page.read_text() == text, "rows that are measured again keep their places"
    capsys.readouterr()
    assert main([*arguments, "--only", "unet"]) == 2
    assert "there is no case unet" in capsys.readouterr().err


def test_check_refuses_what_lift_refuses() -> None:
    """What these rows take from `olac.check` is all that lifting reports."""
    subject = subject_of(case_of(Sorted))
    with pytest.raises(UnsupportedModelError) as raised:
        subject.lifted()
    assert list(raised.value.nodes) == subject.problems(True) == check(Sorted(), subject.images(2))
