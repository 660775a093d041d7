"""Networks of torchvision and timm, as their packages make them, with random weights and ten classes.

The packages are no part of olac's requirements: without one, its rows say so. Nothing is downloaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from benchmarks.zoo.cases import Case
from benchmarks.zoo.outcomes import ZOO

TORCHVISION, TIMM = "torchvision", "timm"
Maker = Callable[[str, dict[str, Any]], nn.Module]
"""Makes a network of a name with arguments of its constructor."""
CLASSES = 10
OF_TORCHVISION: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet18": (64, {}),
    "resnet50": (64, {}),
    "vgg11_bn": (32, {}),
    "vgg16": (32, {}),
    "mobilenet_v2": (64, {}),
    "mobilenet_v3_small": (64, {}),
    "regnet_x_400mf": (64, {}),
    "squeezenet1_1": (64, {}),
    "densenet121": (64, {}),
    "googlenet": (64, {"aux_logits": False, "init_weights": False}),
    "shufflenet_v2_x0_5": (64, {}),
    "efficientnet_b0": (64, {}),
    "convnext_tiny": (64, {}),
    "vit_b_16": (224, {"image_size": 224}),
    "swin_t": (64, {}),
}
"""By name: rows and columns of the input, and what the constructor takes beside weights=None, num_classes=10."""
OF_TIMM = {
    "resnet10t": 64,
    "efficientnet_lite0": 64,
    "mobilenetv2_050": 64,
    "repvgg_a0": 64,
    "convnext_atto": 64,
    "ghostnet_100": 64,
    "poolformer_s12": 64,
    "mixer_s32_224": 224,
    "resmlp_12_224": 224,
    "vit_tiny_patch16_224": 224,
    "levit_128s": 224,
}
"""By name: rows and columns of the input."""
SMALLEST: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet18": (32, {}),
    "mobilenet_v2": (32, {}),
    "mobilenet_v3_small": (32, {}),
    "regnet_x_400mf": (32, {}),
    "squeezenet1_1": (32, {}),
    "googlenet": (32, {}),
    "shufflenet_v2_x0_5": (32, {}),
    "efficientnet_b0": (32, {}),
    "resnet10t": (32, {}),
    "efficientnet_lite0": (32, {}),
    "mobilenetv2_050": (32, {}),
    "repvgg_a0": (32, {}),
    "convnext_atto": (32, {}),
    "ghostnet_100": (32, {}),
    "mixer_s32_224": (32, {"img_size": 32}),
    "resmlp_12_224": (32, {"img_size": 32}),
    "vit_tiny_patch16_224": (32, {"img_size": 32}),
    "levit_128s": (32, {"img_size": 32}),
}
"""Networks that are approximated, by name: rows and columns of the smallest input, and further arguments for it.

Smaller ones leave maps of one pixel, where batch norms know nothing, or a single token, where attention does nothing.
"""


def _torchvision(name: str, options: dict[str, Any]) -> nn.Module:
    models = importlib.import_module("torchvision.models")
    made: nn.Module = getattr(models, name)(weights=None, num_classes=CLASSES, **options)
    return made


def _timm(name: str, options: dict[str, Any]) -> nn.Module:
    created = importlib.import_module("timm").create_model
    made: nn.Module = created(name, pretrained=False, num_classes=CLASSES, **options)
    return made


def _cases() -> list[Case]:
    of_timm: dict[str, tuple[int, dict[str, Any]]] = {name: (size, {}) for name, size in OF_TIMM.items()}
    packages = ((TORCHVISION, OF_TORCHVISION, _torchvision), (TIMM, of_timm, _timm))
    return [
        _case(name, size, options, package, make)
        for package, networks, make in packages
        for name, (size, options) in networks.items()
    ]


def _case(name: str, size: int, options: dict[str, Any], package: str, make: Maker) -> Case:
    """A network for pictures of a size, with the same network for its smallest pictures if that is approximated."""
    smallest = None
    if name in SMALLEST:
        least, more = SMALLEST[name]
        smallest = Case(name, ZOO, lambda: make(name, {**options, **more}), ((3, least, least),), package=package)
    given = ((3, size, size),)
    return Case(name, ZOO, lambda: make(name, options), given, package=package, approximates=False, smallest=smallest)


CASES = tuple(_cases())
