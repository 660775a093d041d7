"""Wrappers, wrapped outputs, batches of one size, and forms that are refused as a whole."""

from __future__ import annotations

import collections
import copy
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper, offload_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_module
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import olac
from olac.errors import CalibrationError, UnsupportedModelError
from olac.frontend import check, lift, trace
from olac.frontend.unwrap import one_output, unwrapped, unwrapped_path

Make = Callable[[nn.Module], nn.Module]


def images(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).eval()


class Body(nn.Module):
    """A function of a network and the input."""

    def __init__(self, function: Callable[[Any, Any], Any], net: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.net = function, net or network()

    def forward(self, x: Any) -> Any:
        return self.function(self.net, x)


def agrees(model: nn.Module, plain: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Any:
    """Lift a model and compare it with the network inside, on more images than tracing saw; the traced model."""
    traced = trace(model, images())
    graph = lift(traced)
    x = images(7)
    with torch.no_grad():
        expected = (plain or network())(x).double().numpy()
    assert np.abs(graph.evaluate(x.double().numpy()) - expected).max() < 1e-5
    return traced


# Wrappers ------------------------------------------------------------------------------------------------------------


def compiled(net: nn.Module) -> nn.Module:
    made: Any = torch.compile(net)
    assert isinstance(made, nn.Module)
    return made


def compiled_parts(net: nn.Module) -> nn.Module:
    assert isinstance(net, nn.Sequential)
    net[0], net[3], net[4] = compiled(net[0]), checkpoint_wrapper(net[3]), nn.DataParallel(net[4])
    return net


def compiled_forward(net: nn.Module) -> nn.Module:
    net.forward = torch.compile(net.forward)
    return net


def compiled_in_place(net: nn.Module) -> nn.Module:
    net.compile()
    return net


WRAPPERS: dict[str, Make] = {
    "DataParallel": nn.DataParallel,
    "torch.compile": compiled,
    "parts": compiled_parts,
    "compiled forward": compiled_forward,
    "compiled in place": compiled_in_place,
    "checkpoint_wrapper": checkpoint_wrapper,
    "offload_wrapper": offload_wrapper,
    "all at once": lambda net: nn.DataParallel(compiled(checkpoint_wrapper(net))),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers(name: str) -> None:
    wrapped = WRAPPERS[name](network())
    kept = [type(module) for module in wrapped.modules()]
    traced = agrees(wrapped)
    assert [node.meta["path"] for node in traced.module.graph.nodes][1:-1] == ["0", "1", "2", "3", "4"]
    assert [type(module) for module in wrapped.modules()] == kept, "the caller's model keeps its wrappers"


def test_distributed(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        agrees(nn.parallel.DistributedDataParallel(network()))
        sharded = network()
        distribute_module(sharded[4], init_device_mesh("cpu", (1,)))
        (node,) = check(sharded, images())
        assert node.path == "4" and "sharded over processes" in node.problem and "Gather the weights" in node.advice
    finally:
        torch.distributed.destroy_process_group()


def test_names_of_activations_are_those_without_or_with_wrappers() -> None:
    class Wave(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.special.bessel_j0(x)

    net = network()
    net[1] = Wave()
    wrapped = nn.DataParallel(net)
    assert [node.path for node in check(wrapped, images())] == ["1"]
    for name in ("module.1", "1"):
        assert not check(wrapped, images(), {name: None})
    with pytest.raises(ValueError, match=r"names module\.7"):
        check(wrapped, images(), {"module.7": None})


def test_problems_in_wrapped_modules_have_the_plain_path() -> None:
    net = network()
    net[1] = nn.LocalResponseNorm(2)
    (node,) = check(nn.DataParallel(compiled(net)), images())
    assert node.path == "1"
    net[1] = nn.LazyLinear(3)
    (node,) = check(nn.DataParallel(net), images())
    assert node.path == "1" and "lazy" in node.problem


def test_hooks_of_wrappers_are_noticed() -> None:
    wrapped = nn.DataParallel(network())
    wrapped.register_forward_hook(lambda module, args, output: output + 1)
    assert "a forward hook" in str(check(wrapped, images())[0])


def test_paths() -> None:
    model = nn.DataParallel(nn.Sequential(compiled(nn.Sequential(nn.ReLU()))))
    assert unwrapped_path(model, "module.0._orig_mod.0") == "0.0"
    assert unwrapped_path(model, "0.0") == "0.0" and unwrapped_path(model, "module.nothing.module") == "nothing.module"
    assert unwrapped(model) is model.module


@torch.compile
def doubled(x: Any) -> Any:
    return x * 2 + 1


CALLS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]] = {
    "reentrant": (lambda n, x: checkpoint(n, x, use_reentrant=True), lambda n, x: n(x)),
    "not reentrant": (lambda n, x: checkpoint(n, x, use_reentrant=False), lambda n, x: n(x)),
    "by attribute": (
        lambda n, x: torch.utils.checkpoint.checkpoint(lambda a, b: n(a) + b, x, b=1, use_reentrant=False),
        lambda n, x: n(x) + 1,
    ),
    "sequential": (lambda n, x: checkpoint_sequential(n, 2, x, use_reentrant=True), lambda n, x: n(x)),
    "compiled function": (lambda n, x: doubled(n(x)), lambda n, x: n(x) * 2 + 1),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name: str) -> None:
    written, plain = CALLS[name]
    before = torch.utils.checkpoint.checkpoint
    net = network()
    agrees(Body(written), lambda x: plain(net, x))
    assert torch.utils.checkpoint.checkpoint is before is checkpoint, "torch's own function is back"


# Outputs -------------------------------------------------------------------------------------------------------------

Pair = collections.namedtuple("Pair", ["scores", "features"])


@dataclasses.dataclass
class Result:
    loss: Any = None
    scores: Any = None


class LikeHuggingFace(collections.OrderedDict[str, Any]):
    """A dict whose entries are attributes, too, as the outputs of transformers."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


OUTPUTS: dict[str, Callable[[Any], Any]] = {
    "tuple": lambda y: (y,),
    "list": lambda y: [y],
    "namedtuple": lambda y: Pair(y, None),
    "dict": lambda y: {"scores": y},
    "dataclass": lambda y: Result(scores=y),
    "nested": lambda y: ({"scores": [y]}, None),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_one_tensor(name: str) -> None:
    traced = agrees(Body(lambda net, x: OUTPUTS[name](net(x))))
    assert not traced.notes


def test_logits_are_taken_and_noted() -> None:
    model = Body(lambda net, x: LikeHuggingFace(logits=net(x), hidden_states=(x, x * 2)))
    assert agrees(model).notes == ("of the outputs of the model, logits are computed, and hidden_states left out",)
    approximated = olac.approximate(model, images(40))
    assert any("logits are computed, and hidden_states" in note for note in approximated.report.notes)


@pytest.mark.parametrize("output", [lambda y: (y, 2 * y), lambda y: {"a": y, "b": 2 * y}, lambda y: Pair(y, y)])
def test_several_outputs_are_refused(output: Callable[[Any], Any]) -> None:
    (node,) = check(Body(lambda net, x: output(net(x))), images())
    assert "of 2 values" in node.problem


def test_one_output_keeps_what_it_cannot_choose() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    assert one_output(a) == (a, "") and one_output([a, b]) == ([a, b], "")
    assert one_output({"logits": [a], "b": b}) == ({"logits": [a], "b": b}, "")


# Batches of one size -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5])
def test_a_batch_of_one_size(size: int) -> None:
    model = Body(lambda net, x: net[4](net[:3](x).reshape(size, 16)))
    traced = agrees(model)
    assert len(traced.example) == size
    program = olac.compile(model, [images(40)], insecure=True, log_ring=11, degree=3)
    assert program.report.check is not None and program.report.check.structure_error < 1e-5


def test_single_images_that_two_would_be_merged_into_one() -> None:
    agrees(Body(lambda net, x: x.reshape(1, -1) * 2), lambda x: x.flatten(1) * 2)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda net, x: net[4](net[:3](x).squeeze(0).reshape(-1)), "(splits|works along) the batch axis"),
        (lambda net, x: net(x).sum(0, keepdim=True), "works along the batch axis"),
        (lambda net, x: net(x)[:1], "takes single inputs"),
        (lambda net, x: net[4](net[:3](x).reshape(1, -1)).T, "its batch axis elsewhere|T is not supported"),
    ],
)
def test_a_batch_axis_that_cannot_be_told_apart(function: Callable[[Any, Any], Any], problem: str) -> None:
    with pytest.raises(UnsupportedModelError, match=problem):
        lift(trace(Body(function), images()))


def test_a_model_that_fails_on_all_sizes() -> None:
    with pytest.raises(CalibrationError, match=r"fails on a batch of shape \(2, 1, 6, 6\)"):
        check(Body(lambda net, x: net(x).reshape(7, 7, 7)), images())


# Forms that are refused ----------------------------------------------------------------------------------------------


class Quantisable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.net = torch.ao.quantization.QuantStub(), network()
        self.dequant = torch.ao.quantization.DeQuantStub()

    def forward(self, x: Any) -> Any:
        return self.dequant(self.net(self.quant(x)))


def prepared(train: bool) -> nn.Module:
    ao = torch.ao.quantization
    model = Quantisable().train(train)
    model.qconfig = ao.get_default_qat_qconfig("x86") if train else ao.get_default_qconfig("x86")
    made: nn.Module = ao.prepare_qat(model) if train else ao.prepare(model)
    made(images())
    return made.eval()


def dynamic() -> nn.Module:
    made: nn.Module = torch.ao.quantization.quantize_dynamic(network(), {nn.Linear})
    return made


def static() -> nn.Module:
    made: nn.Module = torch.ao.quantization.convert(prepared(False))
    return made


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "dynamic": (dynamic, {"4": "Linear is quantised"}),
    "static": (
        static,
        {
            "quant": "Quantize is quantised",
            "net.0": "Conv2d is quantised",
            "net.4": "Linear is quantised",
            "dequant": "DeQuantize is quantised",
        },
    ),
    "QAT": (
        lambda: prepared(True),
        {
            "quant.activation_post_process": "rounds values as a quantised model does",
            "net.0": "Conv2d is trained for quantisation",
            "net.1.activation_post_process": "rounds values",
            "net.2.activation_post_process": "rounds values",
            "net.4": "Linear is trained for quantisation",
        },
    ),
    "scripted": (lambda: torch.jit.script(network()), {"": "Sequential is a TorchScript module (scripted)"}),
    "traced": (lambda: torch.jit.trace(network(), images()), {"": "Sequential is a TorchScript module (traced)"}),
    "scripted parts": (
        lambda: nn.DataParallel(nn.Sequential(torch.jit.script(nn.ReLU()), nn.ReLU(), torch.jit.script(nn.Tanh()))),
        {"0": "ReLU is a TorchScript module", "2": "Tanh is a TorchScript module"},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_forms_that_are_refused(name: str) -> None:
    make, expected = REFUSED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao and TorchScript are to be replaced
        model = make()
    found = check(model, images())
    for node in found:
        assert expected.get(node.path, "-") in node.problem
        assert node.advice.startswith("Compile the ")
    if name != "QAT":
        assert [node.path for node in found] == list(expected)
    else:
        assert set(expected) >= {node.path for node in found} >= {"net.0", "net.4"}


@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_scripted_functions_are_refused_by_name() -> None:
    (node,) = check(Body(lambda net, x: net(scripted(x))), images())
    assert node.problem == "TorchScript function scripted is not supported" and "Call the Python" in node.advice
    assert node.source.startswith("test_unwrap.py:") and scripted(torch.ones(1)) == 2


def test_observers_change_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = prepared(False)
    statistics = copy.deepcopy(model.state_dict())
    agrees(model)
    assert all(torch.equal(one, statistics[name]) for name, one in model.state_dict().items())
