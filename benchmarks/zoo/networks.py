"""Networks of torchvision and timm, as their packages make them, with random weights and ten classes.

The packages are no part of olac's requirements: without one, its rows say so. Nothing is downloaded.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from benchmarks.zoo.cases import Case
from benchmarks.zoo.outcomes import ZOO

TORCHVISION, TIMM = "torchvision", "timm"
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


def _torchvision(name: str, options: dict[str, Any]) -> nn.Module:
    models = importlib.import_module("torchvision.models")
    made: nn.Module = getattr(models, name)(weights=None, num_classes=CLASSES, **options)
    return made


def _timm(name: str) -> nn.Module:
    made: nn.Module = importlib.import_module("timm").create_model(name, pretrained=False, num_classes=CLASSES)
    return made


def _cases() -> list[Case]:
    cases = []
    for name, (size, options) in OF_TORCHVISION.items():

        def make(name: str = name, options: dict[str, Any] = options) -> nn.Module:
            return _torchvision(name, options)

        cases.append(Case(name, ZOO, make, ((3, size, size),), package=TORCHVISION, approximates=False))
    for name, size in OF_TIMM.items():

        def make_timm(name: str = name) -> nn.Module:
            return _timm(name)

        cases.append(Case(name, ZOO, make_timm, ((3, size, size),), package=TIMM, approximates=False))
    return cases


CASES = tuple(_cases())
