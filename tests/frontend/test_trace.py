"""Tracing: the model stays unchanged, shapes are concrete, and the result runs on batches of any size."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from olac.errors import CalibrationError, UnsupportedModelError
from olac.frontend import check, lift, trace


class Net(nn.Module):
    offset: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.fc = nn.Linear(3, 2)
        self.register_buffer("offset", torch.tensor([0.5]))
        self.plain = torch.tensor([2.0], dtype=torch.float64)

    def forward(self, x: Any, scale: float = 1.0) -> Any:
        x = self.body(x) * scale
        n, c = x.shape[:2]
        if x.shape[-1] != 1:
            x = F.adaptive_avg_pool2d(x, 1)
        return self.fc(x.view(n, c)) + self.offset * self.plain


def images(count: int = 5, *shape: int) -> torch.Tensor:
    return torch.randn(count, *(shape or (1, 6, 7)), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_model_is_left_as_it_is(dtype: torch.dtype) -> None:
    model = Net().to(dtype).train()
    calls: list[int] = []
    model.fc.register_forward_hook(lambda *_: calls.append(1))
    before = {k: (v.dtype, v.clone(), v.data_ptr()) for k, v in model.state_dict().items()}
    flags = {n: (m.training, getattr(m, "inplace", None)) for n, m in model.named_modules()}
    traced = trace(model, images().to(dtype))
    lift(traced)
    assert flags == {n: (m.training, getattr(m, "inplace", None)) for n, m in model.named_modules()}
    for k, v in model.state_dict().items():
        assert (v.dtype, v.data_ptr()) == (before[k][0], before[k][2])
        assert torch.equal(v, before[k][1])
    assert model.plain.dtype == torch.float64
    assert len(model.fc._forward_hooks) == 1
    assert all(p.dtype == torch.float32 for p in traced.module.parameters())
    expected = copy.deepcopy(model).float().eval()(images())
    assert torch.allclose(traced.module(images()), expected.float(), atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_batches_of_other_sizes(count: int) -> None:
    model = Net().eval()
    module = trace(model, images(1)).module
    assert torch.allclose(module(images(count)), model(images(count)).float(), atol=1e-6)


def test_nodes_know_where_they_come_from() -> None:
    traced = trace(Net(), images())
    nodes = {n.name: n.meta for n in traced.module.graph.nodes}
    line = Net.forward.__code__.co_firstlineno
    assert (nodes["body_0"]["path"], nodes["body_0"]["source"]) == ("body.0", f"test_trace.py:{line + 1}")
    assert (nodes["mul"]["path"], nodes["mul"]["source"]) == ("", f"test_trace.py:{line + 1}")
    assert (nodes["fc"]["path"], nodes["fc"]["source"]) == ("fc", f"test_trace.py:{line + 5}")
    assert nodes["body_0"]["shape"] == (2, 3, 4, 5)
    assert not any(isinstance(v, torch.Tensor) for meta in nodes.values() for v in meta.values())


def test_changes_in_place_are_recorded_as_new_values() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Any) -> Any:
            y = x + 1
            z = y
            z += 2
            F.relu(y, inplace=True)
            w = y.mul_(3)
            return w + z + y

    x = images(3, 4)
    traced = trace(InPlace(), x)
    assert torch.equal(traced.module(x), InPlace()(x))
    # The graph itself changes nothing in place, so values can be observed in any order.
    for node in traced.module.graph.nodes:
        assert not node.kwargs.get("inplace") and not str(node.target).endswith("_")


def test_branches_on_data_name_their_line() -> None:
    class Branch(nn.Module):
        def forward(self, x: Any) -> Any:
            if x.sum() > 0:
                return x * 2
            return x

    with pytest.raises(UnsupportedModelError) as caught:
        lift(trace(Branch(), images()))
    (node,) = caught.value.nodes
    assert node.source == f"test_trace.py:{Branch.forward.__code__.co_firstlineno + 1}"
    assert "branch" in node.problem


def test_what_cannot_be_traced_names_its_line() -> None:
    class Odd(nn.Module):
        def forward(self, x: Any) -> Any:
            if isinstance(x, torch.Tensor):
                return x * 2
            raise ValueError("not a tensor")

    with pytest.raises(UnsupportedModelError) as caught:
        trace(Odd(), images())
    (node,) = caught.value.nodes
    assert node.source == f"test_trace.py:{Odd.forward.__code__.co_firstlineno + 3}"
    assert "not a tensor" in node.problem


def test_a_hook_that_changes_the_output_is_found() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].register_forward_hook(lambda module, inputs, output: output + 1)
    (node,) = check(model, images(4, 3))
    assert "hook" in node.problem


def test_a_model_that_fails_on_the_example() -> None:
    with pytest.raises(CalibrationError, match=r"\(3, 2, 6, 7\)"):
        trace(Net(), images(3, 2, 6, 7))


@pytest.mark.parametrize("shape", [(0, 3), (4,)])
def test_examples_without_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(CalibrationError):
        trace(nn.ReLU(), torch.zeros(shape))


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match=r"nn\.Module"):
        trace(lambda x: x, images())
    with pytest.raises(TypeError, match=r"torch\.Tensor"):
        trace(Net(), images().numpy())  # type: ignore[arg-type]


def test_wrapped_and_scripted_models() -> None:
    assert not check(nn.DataParallel(Net()), images())
    scripted = torch.jit.script(nn.Sequential(nn.ReLU()))
    assert "TorchScript" in check(scripted, images())[0].problem


def test_uint8_images() -> None:
    traced = trace(Net(), (images() * 50).abs().to(torch.uint8))
    assert traced.example.dtype == torch.float32 and traced.input_shape == (1, 6, 7)
