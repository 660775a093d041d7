"""Random small networks of everything that olac supports, and random images for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 24
"""Approximately the most levels of activations, products and poolings that a network has."""

Step = Callable[[dict[str, Tensor]], Tensor]

ACTIVATIONS: tuple[tuple[Callable[[int], nn.Module], ...], ...] = (
    (lambda c: nn.ReLU(),),
    (lambda c: nn.ReLU(inplace=True),),
    (lambda c: nn.ReLU6(),),
    (lambda c: nn.LeakyReLU(0.2),),
    (lambda c: nn.PReLU(), lambda c: nn.PReLU(c)),
    (lambda c: nn.RReLU(),),
    (lambda c: nn.GELU(), lambda c: nn.GELU(approximate="tanh")),
    (lambda c: nn.SiLU(),),
    (lambda c: nn.Sigmoid(),),
    (lambda c: nn.Tanh(),),
    (lambda c: nn.Softplus(), lambda c: nn.Softplus(2.0, 5.0)),
    (lambda c: nn.ELU(), lambda c: nn.CELU(1.5), lambda c: nn.SELU()),
    (lambda c: nn.Mish(),),
    (lambda c: nn.Hardswish(), lambda c: nn.Hardsigmoid(), lambda c: nn.Hardtanh(-0.5, 2.0)),
    (lambda c: nn.LogSigmoid(), lambda c: nn.Softsign(), lambda c: nn.Tanhshrink()),
    (lambda c: nn.Softshrink(0.3), lambda c: nn.Hardshrink(0.3), lambda c: nn.Threshold(0.1, -0.2)),
)
FUNCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.relu,
    F.silu,
    torch.sigmoid,
    lambda x: x.tanh(),
    lambda x: x.clamp(-1.0, 1.5),
    lambda x: torch.clamp(x, min=0.1),
    F.gelu,
)


class RandomNetwork(nn.Module):
    """A network whose `forward` runs a list of steps, each on values of earlier steps."""

    def __init__(self, steps: list[tuple[str, Step]], parts: list[nn.Module], output: str) -> None:
        super().__init__()
        self.steps, self.parts, self.output = steps, nn.ModuleList(parts), output

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (n, *output shape) for images (n, *input shape)."""
        values = {"x": x}
        for name, step in self.steps:
            values[name] = step(values)
        return values[self.output]


@dataclass
class Maker:
    """Grows a network step by step, with an example that gives the shapes."""

    random: np.random.Generator
    example: Tensor
    steps: list[tuple[str, Step]] = field(default_factory=list)
    parts: list[nn.Module] = field(default_factory=list)
    values: dict[str, Tensor] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    levels: int = 0

    def __post_init__(self) -> None:
        self.values["x"] = self.example

    def integer(self, low: int, high: int) -> int:
        """A random integer in [low, high]."""
        return int(self.random.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.random.random() < probability)

    def step(self, called: str, function: Callable[..., Tensor], *operands: str) -> str:
        """Add a step; returns the name of its value."""
        name = f"v{len(self.steps)}"

        def do(values: dict[str, Tensor]) -> Tensor:
            return function(*(values[one] for one in operands))

        with torch.no_grad():
            self.values[name] = do({key: value.clone() for key, value in self.values.items()})
        self.steps.append((name, do))
        self.names.append(called)
        return name

    def module(self, module: nn.Module, operand: str) -> str:
        """A module in evaluation mode, with weights that keep values about as large as they are."""
        module.eval()
        if isinstance(module, nn.Linear | nn.Conv2d) and self.chance(0.12):  # pruned, or dead
            with torch.no_grad():
                kept = torch.from_numpy(self.random.random(module.weight.shape)) < 0.3
                module.weight.copy_(module.weight * kept if self.chance(0.6) else module.weight * 1e-12)
        self.parts.append(module)
        return self.step(repr(module), module, operand)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value without the batch axis."""
        return tuple(self.values[name].shape[1:])

    # Linear ---------------------------------------------------------------------------------------------------------

    def conv(self, x: str, out: int | None = None, same: bool = False) -> str:
        """A convolution with random options; `same` keeps height and width."""
        c, h, w = self.shape(x)
        groups = [g for g in range(1, c + 1) if c % g == 0]
        group = int(self.random.choice(groups)) if self.chance(0.35) else 1
        channels = out or group * self.integer(1, max(1, 6 // group))
        if channels % group:
            group = 1
        dilation = (self.integer(1, 2), self.integer(1, 2)) if self.chance(0.25) else (1, 1)
        bias = self.chance(0.7)
        if same:
            odd = [int(self.random.choice([1, 3])) for _ in range(2)]
            sides = (odd[0] // 2 * dilation[0], odd[1] // 2 * dilation[1])
            given: Any = "same" if self.chance(0.3) else sides
            made = nn.Conv2d(c, channels, (odd[0], odd[1]), 1, given, dilation, group, bias)
            return self.module(made, x)
        padding = (self.integer(0, 2), self.integer(0, 2))
        room = (h + 2 * padding[0] - 1, w + 2 * padding[1] - 1)
        kernel = [self.integer(1, max(1, min(4, 1 + r // d))) for r, d in zip(room, dilation, strict=True)]
        stride = (self.integer(1, 3), self.integer(1, 3)) if self.chance(0.4) else (1, 1)
        return self.module(nn.Conv2d(c, channels, (kernel[0], kernel[1]), stride, padding, dilation, group, bias), x)

    def linear(self, x: str, out: int | None = None) -> str:
        """A linear layer of a flat value."""
        return self.module(nn.Linear(self.shape(x)[0], out or self.integer(1, 9), bias=self.chance(0.8)), x)

    def norm(self, x: str) -> str:
        """A batch norm with statistics as after training."""
        shape = self.shape(x)
        made: nn.BatchNorm1d | nn.BatchNorm2d
        made = nn.BatchNorm2d(shape[0]) if len(shape) == 3 else nn.BatchNorm1d(shape[0])
        with torch.no_grad():
            assert made.running_mean is not None and made.running_var is not None
            made.running_mean.copy_(self._tensor(shape[0]))
            made.running_var.copy_(self._tensor(shape[0]).abs() + 0.3)
            made.weight.copy_(self._tensor(shape[0]))
            made.bias.copy_(self._tensor(shape[0]))
        return self.module(made, x)

    def _tensor(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.random.normal(size=shape)).float()

    def constants(self, x: str) -> str:
        """Arithmetic with a number, one number per channel, or an array."""
        shape = self.shape(x)
        channel = (shape[0], *(1,) * (len(shape) - 1))
        constant: Any = [
            float(self.random.normal()),
            self._tensor(*channel),
            self._tensor(*shape),
            self._tensor(1, *shape),
        ][self.integer(0, 3)]
        made: list[Callable[[Tensor], Tensor]] = [
            lambda v: v * constant,
            lambda v: constant + v,
            lambda v: constant - v,
            lambda v: v / 3 - constant,
            lambda v: -v,
        ]
        return self.step("constants", made[self.integer(0, len(made) - 1)], x)

    def pad(self, x: str) -> str:
        """Padding by a constant, or cropping, of space and sometimes of channels."""
        shape = self.shape(x)
        if len(shape) != 3:
            amount = [self.integer(0, 2), self.integer(0, 2)]
        else:
            amount = [self.integer(-1, 2) if shape[2 - i // 2] > 2 else self.integer(0, 2) for i in range(4)]
            amount += [self.integer(0, 2), self.integer(0, 1)] if self.chance(0.3) else []
        value = float(self.random.normal()) if self.chance(0.4) else 0.0
        return self.step(f"pad {amount} {value:.2g}", lambda v: F.pad(v, amount, value=value), x)

    def slices(self, x: str) -> str:
        """A strided window of any axes."""
        window: list[slice] = [slice(None)]
        for size in self.shape(x):
            start = self.integer(0, max(0, size // 2 - 1)) if self.chance(0.5) else 0
            stop = self.integer(start + 1, size) if self.chance(0.4) else size
            window.append(slice(start, stop, self.integer(1, 2)))
        chosen = tuple(window)
        return self.step(f"slice {chosen}", lambda v: v[chosen], x)

    def pool(self, x: str) -> str:
        """A mean over windows or over all of space."""
        _, h, w = self.shape(x)
        which = self.integer(0, 3)
        if which == 0:
            return self.module(nn.AdaptiveAvgPool2d((self.integer(1, min(3, h)), self.integer(1, min(3, w)))), x)
        if which == 1:
            return self.step("mean over space", lambda v: v.mean((2, 3), keepdim=True), x)
        kernel = (self.integer(1, min(3, h)), self.integer(1, min(3, w)))
        padding = (self.integer(0, kernel[0] // 2), self.integer(0, kernel[1] // 2))
        stride = (self.integer(1, 3), self.integer(1, 3)) if self.chance(0.6) else None
        made = nn.AvgPool2d(kernel, stride, padding, ceil_mode=self.chance(0.3), count_include_pad=self.chance(0.5))
        return self.module(made, x)

    def reshape(self, x: str) -> str:
        """A view of another shape."""
        shape = self.shape(x)
        size = math.prod(shape)
        if len(shape) == 3 and self.chance(0.6):
            return self.step("flatten", lambda v: v.flatten(1), x)
        channels = int(self.random.choice([d for d in range(1, size + 1) if size % d == 0]))
        height = int(self.random.choice([d for d in range(1, size // channels + 1) if size // channels % d == 0]))
        wanted = (-1, channels, height, size // channels // height)
        return self.step(f"view {wanted}", lambda v: v.reshape(wanted), x)

    # What takes levels ----------------------------------------------------------------------------------------------

    def activation(self, x: str) -> str:
        """A random activation, as a module or as a function."""
        self.levels += 4
        if self.chance(0.25):
            function = FUNCTIONS[self.integer(0, len(FUNCTIONS) - 1)]
            return self.step(f"function {getattr(function, '__name__', '')}", function, x)
        group = ACTIVATIONS[self.integer(0, len(ACTIVATIONS) - 1)]
        return self.module(group[self.integer(0, len(group) - 1)](self.shape(x)[0]), x)

    def product(self, x: str) -> str:
        """A square, a cube, or a product with another value of the same shape."""
        self.levels += 2
        others = [name for name in self.values if self.shape(name) == self.shape(x) and name != x]
        if others and self.chance(0.5):
            return self.step("product", lambda a, b: a * b, x, str(self.random.choice(others)))
        return self.step("square", lambda v: v * v, x) if self.chance(0.7) else self.step("cube", lambda v: v**3, x)

    def max_pool(self, x: str) -> str:
        """The largest value of each window; deep."""
        self.levels += 16
        _, h, w = self.shape(x)
        if self.chance(0.2):
            # Windows of several sizes are refused.
            return self.module(nn.AdaptiveMaxPool2d((h // 2 if h % 2 == 0 else 1, w // 2 if w % 2 == 0 else w)), x)
        kernel = (self.integer(1, min(2, h)), self.integer(1, min(2, w)))
        padding = (self.integer(0, kernel[0] // 2), self.integer(0, kernel[1] // 2))
        return self.module(nn.MaxPool2d(kernel, padding=padding), x)

    # What joins -----------------------------------------------------------------------------------------------------

    def residual(self, x: str) -> str:
        """The sum of a value and a branch on it."""
        shape = self.shape(x)
        if len(shape) == 3:
            y = self.conv(x, shape[0], same=True)
            if self.chance(0.5):
                y = self.conv(self.activation(y), shape[0], same=True)
        else:
            y = self.linear(x, shape[0])
        return self.step("sum", lambda a, b: a + b if self is not None else b, x, y)

    def gate(self, x: str) -> str:
        """Squeeze and excitation."""
        self.levels += 1
        c = self.shape(x)[0]
        mean = self.step("mean", lambda v: v.mean((2, 3), keepdim=True), x)
        return self.step("gated", lambda a, b: a * b, x, self.activation(self.module(nn.Conv2d(c, c, 1), mean)))

    def centre(self, x: str) -> str:
        """A value minus its mean, which may be nothing."""
        y = self.step("minus the mean", lambda v: v - v.mean(1, keepdim=True), x)
        if self.chance(0.3):
            return self.step("mean, expanded", lambda v: v.mean(1, keepdim=True).expand_as(v), y)
        return y

    def join(self, x: str) -> str:
        """The sum or the difference with an earlier value of the same shape."""
        others = [name for name in self.values if self.shape(name) == self.shape(x)]
        return self.step("join", lambda a, b: a - 0.5 * b, x, str(self.random.choice(others)))


def random_network(seed: int) -> tuple[RandomNetwork, Tensor, list[str], int]:
    """A network, its images (for calibration and unseen), what it does, and its levels without linear steps."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    spatial = random.random() < 0.75
    shape: tuple[int, ...] = (
        (int(random.integers(1, 4)), int(random.integers(2, 8)), int(random.integers(2, 8)))
        if spatial
        else (int(random.integers(1, 13)),)
    )
    images = random_images(random, 2 * int(random.integers(48, 160)), shape)
    made = Maker(random, images[:2])
    x = "x"
    moves = int(random.integers(2, 9))
    flat_moves: list[Callable[[str], str]] = [made.linear] * 3 + [
        made.norm, made.activation, made.activation, made.constants, made.product, made.residual, made.join,
        made.slices, made.pad, made.reshape, made.centre,
    ]  # fmt: skip
    deep_moves: list[Callable[[str], str]] = [made.conv] * 4 + [
        made.norm, made.activation, made.activation, made.pool, made.constants, made.product, made.residual,
        made.gate, made.join, made.slices, made.pad, made.reshape, made.max_pool, made.centre,
    ]  # fmt: skip
    if random.random() < 0.8:
        x = (made.conv if spatial else made.linear)(x)
    for _ in range(moves):
        options = deep_moves if len(made.shape(x)) == 3 else flat_moves
        move = options[int(random.integers(len(options)))]
        heavy = move in (made.activation, made.product, made.max_pool, made.gate)
        if heavy and made.levels + (16 if move == made.max_pool else 4) > LEVELS:
            continue
        if math.prod(made.shape(x)) > 256 and move in (made.pad, made.constants):
            continue
        x = move(x)
    if random.random() < 0.7:
        if len(made.shape(x)) == 3:
            x = made.step("flatten", lambda v: v.flatten(1), x)
        x = made.linear(x)
    if x == "x":
        x = made.constants(x)
    return RandomNetwork(made.steps, made.parts, x).eval(), images, made.names, made.levels


def random_images(random: np.random.Generator, count: int, shape: tuple[int, ...]) -> Tensor:
    """Images of one random distribution, with random range, centre and tails."""
    size, centre = 10.0 ** random.uniform(-2, 2), random.normal() * (random.random() < 0.5)
    which = int(random.integers(5))
    values = random.normal(size=(count, *shape)) if which != 1 else random.uniform(-1, 1, size=(count, *shape))
    if which == 2:
        values = np.maximum(values, 0.0)
    if which == 3:  # columns or channels with scales of their own
        values *= 10.0 ** random.uniform(-1, 1, size=(shape[0], *(1,) * (len(shape) - 1)))
    if which == 4 and shape[0] > 1:
        values[:, 0] = 0.5
    return torch.from_numpy((values + centre) * size).float()
