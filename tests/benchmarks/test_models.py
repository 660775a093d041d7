"""The networks have the state-dict keys and the sizes of the published weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.models import MODELS, ResNet18

BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def batch_norm(name: str) -> set[str]:
    return {f"{name}.{part}" for part in BATCH_NORM}


def block(name: str, bias: bool) -> set[str]:
    """Two convolutions, each with its batch norm."""
    parts = ("weight", "bias") if bias else ("weight",)
    convolutions = {f"{name}.conv{i}.{part}" for i in (1, 2) for part in parts}
    return convolutions | batch_norm(f"{name}.bn1") | batch_norm(f"{name}.bn2")


def keys_of(model: nn.Module) -> set[str]:
    """The names of all tensors but the counters, which weights may leave out."""
    return {key for key in model.state_dict() if not key.endswith(".num_batches_tracked")}


def weight_layers(model: nn.Module) -> int:
    """The number of convolutions and linear layers, without those on shortcuts."""
    return sum(
        isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in name for name, module in model.named_modules()
    )


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (32, 464_154), (56, 853_018)])
def test_resnets(depth: int, parameters: int) -> None:
    model = MODELS[f"resnet{depth}"].make()
    expected = {"conv1.weight", "linear.weight", "linear.bias"} | batch_norm("bn1")
    for stage in (1, 2, 3):
        for i in range((depth - 2) // 6):
            expected |= block(f"layer{stage}.{i}", bias=False)
    assert keys_of(model) == expected
    assert weight_layers(model) == depth
    assert sum(isinstance(module, nn.ReLU) for module in model.modules()) == depth - 1
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_resnet8() -> None:
    model = MODELS["resnet8"].make()
    expected = {f"{name}.{part}" for name in ("conv1", "linear") for part in ("weight", "bias")} | batch_norm("bn1")
    for i in (1, 2, 3):
        expected |= block(f"stack{i}", bias=True)
    expected |= {f"stack{i}.shortcut.{part}" for i in (2, 3) for part in ("weight", "bias")}
    assert keys_of(model) == expected
    assert weight_layers(model) == 8
    assert sum(parameter.numel() for parameter in model.parameters()) == 78_186


@pytest.mark.parametrize("name", ["resnet8", "resnet44", "convnext", "mobilenet"])
def test_images_to_logits(name: str) -> None:
    benchmark = MODELS[name]
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8).numpy()
    images = benchmark.images(pixels)
    assert images.shape == (2, 3, 32, 32)
    with torch.no_grad():
        assert benchmark.make().eval()(images).shape == (2, 10)


def test_resnet8_takes_pixels() -> None:
    pixels = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    ours = MODELS["resnet8"].images(pixels.numpy())
    assert torch.allclose(ours, pixels.permute(0, 3, 1, 2).float(), atol=1e-3)


def test_weights_with_and_without_counters(tmp_path: Path) -> None:
    benchmark = MODELS["resnet8"]
    state = {key: torch.rand_like(value.float()) for key, value in benchmark.make().state_dict().items()}
    for kept in (state, {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}):
        torch.save(kept, tmp_path / "weights.pt")
        model = benchmark.load(tmp_path / "weights.pt")
        assert not model.training
        assert torch.equal(model.state_dict()["conv1.weight"], state["conv1.weight"])


def test_other_weights_are_refused(tmp_path: Path) -> None:
    torch.save(MODELS["resnet8"].make().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="not a state dict of this network"):
        MODELS["resnet20"].load(tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="--weights"):
        MODELS["resnet20"].load(None)


@pytest.mark.parametrize("name", ["convnext", "mobilenet"])
def test_weights_that_come_with_olac_fit_the_network_and_are_small(name: str) -> None:
    benchmark = MODELS[name]
    assert benchmark.weights is not None and benchmark.weights.stat().st_size < 2_000_000
    model = benchmark.load(None)
    state = benchmark.make().state_dict()
    assert any(not torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_resnet18_and_vgg16() -> None:
    """Of width 64 ResNet-18 has as many parameters as usual for 32x32 images."""
    assert weight_layers(MODELS["resnet18"].make()) == 18
    assert sum(parameter.numel() for parameter in ResNet18(64).parameters()) == 11_173_962
    vgg = MODELS["vgg16"].make()
    assert sum(isinstance(module, nn.Conv2d) for module in vgg.modules()) == 13
    assert vgg.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
