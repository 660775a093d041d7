"""Small torch networks over every op that the frontend takes, from the model to slots and to ciphertexts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import olac
from olac.backends.simulator import SimulatorEvaluator
from olac.ckks.primes import FIXED, FLEXIBLE, Technique
from olac.frontend import lift, trace
from olac.ir.graph import Graph
from olac.ir.ops import Array
from olac.kernels.execute import build_kernels, execute
from olac.polynomials.modes import FitOptions
from olac.program.program import CompiledProgram
from olac.selection.job import DEFAULT_PRECISION

STRUCTURE = 1e-4
SLOTS = 1e-6
IMAGES = 9


class Lambda(nn.Module):
    """A model whose forward is a function of its parts and the input."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **self.parts)


class Constants(nn.Module):
    """Sums and products with numbers, buffers and parameters of several shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3, 1, 1))
        self.shift = nn.Parameter(torch.randn(5, 7))
        self.row: Tensor
        self.register_buffer("row", torch.randn(1, 3, 1, 7))
        self.mean = nn.Parameter(torch.randn(2, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = (1 - (x - 0.5) / 2 + self.mean) * 3 - self.mean
        y = torch.tanh(F.pad(y, (0, 0, 0, 0, 0, 1))) * self.scale + self.shift
        return -(y * self.row - 0.25)


class OptionA(nn.Module):
    """Residual blocks of a CIFAR ResNet with parameter-free shortcuts."""

    def __init__(self, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, width, 3, padding=1, bias=False), batch_norm(width)
        self.first = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.first_norm = batch_norm(2 * width)
        self.second = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.second_norm = batch_norm(2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        y = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        quarter = self.first.out_channels // 4
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter)))
        result: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return result


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """With statistics as after training."""
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for tensor, low in ((norm.running_mean, -0.5), (norm.running_var, 0.5), (norm.weight, 0.5), (norm.bias, -0.5)):
            assert tensor is not None
            tensor.copy_(torch.rand(channels) + low)
    return norm


def batch_norm_1d(features: int) -> nn.BatchNorm1d:
    """With statistics as after training."""
    norm = nn.BatchNorm1d(features)
    norm.load_state_dict(batch_norm(features).state_dict())
    return norm


@dataclass(frozen=True)
class Case:
    """A model, the shape of its input, and log2 of the ring to pack it for."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    log_ring: int = 12
    batch: int = 1


def fork(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
    """One linear op feeds two others, their sum is read three times."""
    y: Tensor = a(x)
    z = F.gelu(b(y) + c(y))
    return z * z + z


def joins(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    """Two residual joins share a value."""
    y = F.silu(a(x))
    z: Tensor = y + b(y)
    return y + F.silu(z) + z


def broadcasts(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    """Squeeze and excitation: values of shape (c, 1, 1) and (1, h, w) on (c, h, w)."""
    y: Tensor = a(x)
    gate = torch.sigmoid(b(y.mean((2, 3), keepdim=True)))
    return y * gate + y.mean(1, keepdim=True)


def dense(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
    """Layers that read the concatenation of all results before."""
    y = torch.cat([x, F.relu(a(x))], 1)
    z = torch.cat([y, F.relu(b(y))], 1)
    found: Tensor = c(z)
    return found


def u_net(x: Tensor, down: nn.Module, up: nn.Module, last: nn.Module) -> Tensor:
    """A transposed convolution, and a skip that is concatenated."""
    found: Tensor = last(torch.cat([x, up(F.relu(down(x)))], 1))
    return found


def shuffled(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    """Halves of the channels, which take turns after one of them was changed."""
    left, right = x.chunk(2, 1)
    joined = F.channel_shuffle(torch.cat([left, F.silu(a(right))], 1), 2)
    found: Tensor = b(joined)
    return found


def mixed(x: Tensor, tokens: nn.Module, features: nn.Module, norm: nn.Module) -> Tensor:
    """A block of an MLP-Mixer."""
    x = x + tokens(F.gelu(x).transpose(1, 2)).transpose(1, 2)
    found: Tensor = features(norm(x)).mean(1)
    return found


def attended(x: Tensor, qkv: nn.Module, out: nn.Module) -> Tensor:
    """Attention of two heads, as it is usually written."""
    n, d = x.shape[1:]
    q, k, v = qkv(x).reshape(-1, n, 3, 2, d // 2).permute(2, 0, 3, 1, 4).unbind(0)
    y = F.scaled_dot_product_attention(q, k, v)
    found: Tensor = out(y.transpose(1, 2).reshape(-1, n, d))
    return found


def last_step(x: Tensor, cells: nn.Module, out: nn.Module) -> Tensor:
    """The classes by the last step of a recurrent layer."""
    found: Tensor = out(cells(x)[0][:, -1])
    return found


MOVING = [
    Case(
        "concatenated",
        lambda: Lambda(dense, a=nn.Conv2d(2, 3, 1), b=nn.Conv2d(5, 2, 1), c=nn.Conv2d(7, 2, 3)),
        (2, 5, 7),
    ),
    Case(
        "u-net",
        lambda: Lambda(
            u_net, down=nn.Conv2d(2, 3, 2, 2), up=nn.ConvTranspose2d(3, 2, 2, 2), last=nn.Conv2d(4, 2, 3, padding=1)
        ),
        (2, 4, 6),
        batch=2,
    ),
    Case("shuffled", lambda: Lambda(shuffled, a=nn.Conv2d(2, 2, 3, padding=1), b=nn.Conv2d(4, 3, 1)), (4, 5, 4)),
    Case(
        "signals",
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, padding=1),
            nn.BatchNorm1d(4),
            nn.ReLU(),
            nn.AvgPool1d(2),
            nn.Conv1d(4, 3, 3, dilation=2),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(21, 3),
        ),
        (2, 22),
    ),
    Case("volumes", lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.AvgPool3d(2), nn.Flatten()), (1, 5, 5, 3)),
    Case(
        "upsampled", lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(2, 2, 3)), (2, 3, 5)
    ),
    Case(
        "mixer",
        lambda: Lambda(mixed, tokens=nn.Linear(5, 5), features=nn.Linear(6, 3), norm=nn.LayerNorm(6)),
        (5, 6),
    ),
    Case("attention", lambda: Lambda(attended, qkv=nn.Linear(4, 12), out=nn.Linear(4, 3)), (3, 4)),
    Case("LSTM", lambda: Lambda(last_step, cells=nn.LSTM(3, 2, batch_first=True), out=nn.Linear(2, 2)), (2, 3)),
    Case("moves", lambda: Lambda(lambda x: torch.sigmoid(x.flip(2).roll(1, 3)).permute(0, 3, 1, 2)), (2, 5, 7)),
    Case(
        "products of the encrypted",
        lambda: Lambda(lambda x, a: torch.tanh(a(x) @ x.transpose(1, 2)), a=nn.Linear(5, 5)),
        (3, 5),
        batch=2,
    ),
]

CASES = [
    Case("conv strides", lambda: nn.Conv2d(2, 3, (3, 2), (2, 3), (1, 0)), (2, 5, 7)),
    Case("conv dilated", lambda: nn.Conv2d(1, 4, (2, 3), dilation=(3, 2), padding=(2, 3)), (1, 8, 8)),
    Case("conv same", lambda: nn.Conv2d(2, 2, (2, 4), padding="same", bias=False), (2, 9, 9)),
    Case("conv groups", lambda: nn.Conv2d(6, 4, 3, groups=2, padding=1), (6, 5, 7)),
    Case("depthwise", lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(), nn.Conv2d(6, 2, 1)), (3, 5, 7)),
    Case(
        "asymmetric padding",
        lambda: Lambda(lambda x, conv: conv(F.pad(x, (0, 2, 1, 0))), conv=nn.Conv2d(2, 3, 3, 2)),
        (2, 5, 7),
    ),
    Case(
        "padding by a constant, cropping",
        lambda: Lambda(lambda x, conv: conv(F.pad(x, (2, -1, -1, 1), value=0.7)), conv=nn.Conv2d(2, 3, 3, padding=1)),
        (2, 9, 5),
    ),
    Case(
        "padding, a view, convolution",
        lambda: Lambda(lambda x, conv: conv(F.pad(x, (1, 1, 1, 1)).view(-1, 1, 12, 6)), conv=nn.Conv2d(1, 2, 3)),
        (2, 4, 4),
    ),
    Case("perceptron", lambda: nn.Sequential(nn.Linear(11, 13), nn.ReLU(), nn.Linear(13, 3)), (11,)),
    Case(
        "batch norm of features",
        lambda: nn.Sequential(
            batch_norm_1d(11), nn.Linear(11, 6), batch_norm_1d(6), nn.Tanh(), batch_norm_1d(6), nn.Linear(6, 2)
        ),
        (11,),
        batch=4,
    ),
    Case(
        "dropout and identity",
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3),
            batch_norm(3),
            nn.Identity(),
            nn.LeakyReLU(0.2),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(108, 5),
        ),
        (1, 8, 8),
        batch=2,
    ),
    Case(
        "sigmoid and pooling",
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1),
            nn.Sigmoid(),
            nn.AvgPool2d(3, 2, 1),
            nn.Conv2d(3, 2, 2),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d((2, 1)),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        (2, 9, 9),
    ),
    Case("pooling with ceil", lambda: nn.AvgPool2d((2, 3), 2, (1, 1), True, False), (3, 5, 7), batch=2),
    Case("odd adaptive pooling", lambda: nn.Sequential(nn.AdaptiveAvgPool2d((3, 4)), nn.GELU()), (2, 5, 7)),
    Case("max-pooling 2x2", lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(2, 3, 2), nn.SiLU()), (2, 6, 5), 11),
    Case(
        "max-pooling 3x3, padded, several images",
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(18, 2)),
        (1, 6, 5),
        11,
        batch=2,
    ),
    Case("mean over space", lambda: Lambda(lambda x, fc: fc(x.mean((2, 3))), fc=nn.Linear(5, 3)), (5, 5, 7)),
    Case(
        "square, view and reshape",
        lambda: Lambda(
            lambda x, conv, fc: fc((conv(x) * conv(x)).view(-1, 4, 15).reshape(-1, 60)),
            conv=nn.Conv2d(2, 4, 3),
            fc=nn.Linear(60, 4),
        ),
        (2, 5, 7),
    ),
    Case("slices", lambda: Lambda(lambda x: torch.sigmoid(x[:, 1:, ::2, 1:6:3]) + x[:, :2, :3, :2]), (3, 5, 7)),
    Case("option A", OptionA, (3, 9, 9)),
    Case("option A, several images", lambda: OptionA(2), (3, 8, 8), batch=4),
    Case("option A, several ciphertexts", lambda: OptionA(16), (3, 16, 16), 11),
    Case("constants", Constants, (2, 5, 7)),
    Case(
        "broadcasting",
        lambda: Lambda(broadcasts, a=nn.Conv2d(2, 3, 3), b=nn.Conv2d(3, 3, 1)),
        (2, 5, 7),
        batch=2,
    ),
    Case(
        "fork",
        lambda: Lambda(fork, a=nn.Linear(11, 7), b=nn.Linear(7, 5), c=nn.Linear(7, 5, bias=False)),
        (11,),
    ),
    Case("joins", lambda: Lambda(joins, a=nn.Conv2d(2, 3, 1), b=nn.Conv2d(3, 3, 3, padding=1)), (2, 5, 7)),
    Case("wide input", lambda: nn.Sequential(nn.Linear(1100, 9), nn.ReLU(), nn.Linear(9, 1100)), (1100,), 11),
    Case(
        "several ciphertexts, strided",
        lambda: nn.Sequential(
            nn.Conv2d(3, 5, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(5, 8, 3, 2, 1),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 5),
        ),
        (3, 31, 32),
        11,
    ),
    Case(
        "several ciphertexts, residual",
        lambda: Lambda(lambda x, a, b: b(x + F.relu(a(x))), a=nn.Conv2d(5, 5, 3, padding=1), b=nn.Conv2d(5, 2, 5, 3)),
        (5, 19, 18),
        11,
    ),
]

ODD = [
    Case("activation of the input", lambda: nn.ReLU(), (2, 5, 7)),
    Case("activation of features", lambda: nn.Sequential(nn.Tanh(), nn.Linear(11, 2), nn.Sigmoid()), (11,), batch=3),
    Case("nothing but flatten", lambda: nn.Flatten(), (2, 3, 3)),
    Case("nothing but flatten, several images", lambda: nn.Flatten(), (2, 3, 3), batch=3),
    Case("nothing but identity", lambda: nn.Identity(), (1100,), 11),
    Case("x + x", lambda: Lambda(lambda x: x + x), (11,)),
    Case("x + x + x * x", lambda: Lambda(lambda x: x + x + x * x), (11,)),
    Case("product of sums", lambda: Lambda(lambda x: (x + x) * (x * x + x)), (3, 1, 1)),
    Case("powers", lambda: Lambda(lambda x: x**5 - x.square() ** 2), (7,)),
    Case("a square's square is read", lambda: Lambda(lambda x: torch.tanh((x * x).view(-1, 1, 2, 4) ** 2)), (8,)),
    Case("input in a residual", lambda: Lambda(lambda x, a: x + F.relu(a(x)), a=nn.Linear(11, 11)), (11,)),
    Case("one pixel", lambda: nn.Sequential(nn.Conv2d(7, 5, 1), nn.ReLU(), nn.Conv2d(5, 3, 1)), (7, 1, 1)),
    Case("one feature", lambda: nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1)), (1,), batch=4),
    Case("one element", lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()), (1, 1, 1)),
    Case("enlarging", lambda: nn.AdaptiveAvgPool2d((7, 9)), (2, 3, 4)),
    Case("expanding", lambda: Lambda(lambda x: torch.sigmoid(x.expand(-1, 3, 4, 5))), (1, 4, 1)),
    Case("repeated feature", lambda: Lambda(lambda x, a: a(x) + x, a=nn.Linear(5, 1)), (5,)),
    Case(
        "many channels",
        lambda: nn.Sequential(nn.Conv2d(300, 40, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        (300, 3, 3),
        11,
    ),
    Case(
        "a reshape adds a linear op's output to a convolution's",
        lambda: Lambda(
            lambda x, a, b: a(x) + b(x.flatten(1)).view(-1, 2, 3, 3), a=nn.Conv2d(2, 2, 2, 2, 1), b=nn.Linear(32, 18)
        ),
        (2, 4, 4),
    ),
    Case(
        "strides of both kinds",
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, (2, 1), 1), nn.ReLU(), nn.Conv2d(4, 8, 3, (1, 2), 1), nn.ReLU(), nn.Conv2d(8, 3, 2, 2)
        ),
        (2, 8, 8),
    ),
]


def made(case: Case) -> tuple[nn.Module, Tensor]:
    """The model in evaluation mode and calibration images."""
    torch.manual_seed(0)
    return case.make().eval(), torch.rand(IMAGES, *case.shape) * 2 - 1


def least_level(program: CompiledProgram) -> int:
    """The least level of outputs: 0, or 1 for programs that take no level: a single prime leaves slots no room."""
    source, target = program.input.type.state, program.output.type.state
    assert source is not None and target is not None
    return 1 if source.level == target.level else 0


def in_slots(program: CompiledProgram, images: Array) -> Array:
    """The model's outputs in true units, by the program's kernels on plain slots and its head; at most a batch."""
    evaluator = SimulatorEvaluator(program.parameters, program.rotations)
    source, target = program.input.type, program.output.type
    assert source.layout is not None and source.state is not None and target.layout is not None
    batch = np.zeros((program.batch, *source.shape))
    batch[: len(images)] = images / source.unit
    value = tuple(evaluator.encrypt(part, source.state.level) for part in source.layout.pack(batch))
    (out,) = execute(program.graph, build_kernels(program.graph), evaluator, {program.input.id: value})
    raw: Array = target.layout.unpack(np.stack([evaluator.decrypt(part) for part in out])) * target.unit
    return program.head.apply(raw[: len(images)])


def relative(ours: Array, theirs: Array) -> float:
    """The largest difference, of the largest value."""
    assert ours.shape == theirs.shape
    return float(np.max(np.abs(ours - theirs)) / max(1e-9, np.max(np.abs(theirs))))


def traced(model: nn.Module, images: Tensor) -> Graph:
    """The graph at stage TRACED."""
    return lift(trace(model, images))


@pytest.mark.parametrize("case", CASES + MOVING + ODD, ids=lambda case: case.name)
def test_traced_and_packed(case: Case) -> None:
    model, images = made(case)
    with torch.no_grad():
        theirs = model(images).double().numpy()
    given = images.double().numpy()
    assert relative(traced(model, images).evaluate(given), theirs) < STRUCTURE
    for technique in (FIXED, FLEXIBLE):
        program = olac.compile(
            model,
            [images],
            degree=3,
            log_ring=case.log_ring,
            insecure=True,
            technique=technique,
            batch=case.batch,
            client_head=False,
        )
        batch = given[: program.batch]
        assert case.log_ring < 12 or program.batch >= case.batch
        assert relative(in_slots(program, batch), program.simulate(batch)) < SLOTS
        assert program.output.type.state is not None
        assert program.output.type.state.level == least_level(program), "levels to spare"


@pytest.mark.encrypted
@pytest.mark.parametrize(
    ("name", "technique"),
    [
        ("conv groups", FLEXIBLE),
        ("batch norm of features", FIXED),
        ("sigmoid and pooling", FLEXIBLE),
        ("max-pooling 2x2", FIXED),
        ("max-pooling 3x3, padded, several images", FLEXIBLE),
        ("square, view and reshape", FIXED),
        ("option A", FIXED),
        ("option A, several images", FLEXIBLE),
        ("option A, several ciphertexts", FIXED),
        ("constants", FLEXIBLE),
        ("broadcasting", FLEXIBLE),
        ("fork", FIXED),
        ("joins", FIXED),
        ("several ciphertexts, strided", FLEXIBLE),
        ("nothing but flatten, several images", FIXED),
        ("nothing but identity", FLEXIBLE),
        ("input in a residual", FIXED),
        ("product of sums", FIXED),
        ("concatenated", FIXED),
        ("u-net", FLEXIBLE),
        ("shuffled", FIXED),
        ("signals", FLEXIBLE),
        ("attention", FIXED),
        ("LSTM", FLEXIBLE),
    ],
)
def test_encrypted(name: str, technique: Technique) -> None:
    """The noise of the outputs is within what compile() promises, of the calibrated outputs."""
    case = next(case for case in CASES + MOVING + ODD if case.name == name)
    model, images = made(case)
    options = olac.CompileOptions(
        fit=FitOptions(degree=3), log_ring=case.log_ring, insecure=True, technique=technique, batch=case.batch
    )
    program = olac.compile(model, [images], options)
    client = olac.Client(program)
    server = olac.Server(program, client.generate_keys())
    given = images[-case.batch :].double().numpy()
    ours = client.decrypt(server.run(client.encrypt(given)))
    with torch.no_grad():
        size = float(model(images).abs().max())
    error = np.abs(ours - program.simulate(given)) / size
    assert np.max(error) < DEFAULT_PRECISION
