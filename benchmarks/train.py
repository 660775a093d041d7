"""Train the small ConvNeXt or the small MobileNet, whose weights are in benchmarks/assets.

    python -m benchmarks.train convnext cifar10_train.npz cifar10_test.npz OUT.safetensors --epochs 24

The .npz files hold `images` (uint8, n x 32 x 32 x 3) and `labels`. The training uses AdamW with a one-cycle schedule,
label smoothing, flips, shifts by up to 4 pixels and a cut-out square, and keeps a moving average of the weights. It
writes this average in half precision after every epoch; an epoch of the ConvNeXt takes about 3 minutes on one core with
bfloat16 instructions.

With `--penalty` the loss also holds the mean squared excess of the inputs of activations over [-R, R], R being
`--range`, so that polynomials of low degree can follow them there; `--start` continues from weights trained before. The
weights of the MobileNet come from `--epochs 16`. Those of the ConvNeXt come from 20 epochs without `--penalty`, 11 more
with `--rate 2e-3 --penalty 5 --seed 1`, and 5 of `--epochs 7 --rate 1.5e-3 --penalty 10 --range 1.25 --seed 2`.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from benchmarks.models import MODELS

RAMP = 0.2
"""The penalty grows to its full weight over this share of the steps."""


class Excess:
    """Collects how far the inputs of a model's activations leave [-bound, bound], with gradients."""

    def __init__(self, model: nn.Module, bound: float) -> None:
        self._bound = bound
        self._parts: list[torch.Tensor] = []
        for module in model.modules():
            if isinstance(module, nn.GELU | nn.ReLU6):
                module.register_forward_pre_hook(self._see)

    def _see(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._parts.append((inputs[0].float().abs() - self._bound).clamp_min(0).square().mean())

    def take(self) -> torch.Tensor:
        """The mean over the activations since the last call."""
        mean = torch.stack(self._parts).mean()
        self._parts.clear()
        return mean


def augment(x: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Flip, shift and cut out, each image at random. (n, c, h, w) to the same shape."""
    n, _, h, w = x.shape
    x = torch.where(torch.rand(n, 1, 1, 1, generator=random) < 0.5, x.flip(3), x)
    padded = F.pad(x, (4, 4, 4, 4))
    dy, dx = torch.randint(0, 9, (2, n, 1), generator=random)
    rows = (torch.arange(h)[None] + dy)[:, None, :, None]
    columns = (torch.arange(w)[None] + dx)[:, None, None, :]
    x = padded[torch.arange(n)[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None], rows, columns]
    cy, cx = torch.randint(0, h, (2, n, 1), generator=random)
    inside_y = (torch.arange(h)[None] - cy).abs() < 4
    inside_x = (torch.arange(w)[None] - cx).abs() < 4
    return x.masked_fill((inside_y[:, None, :, None] & inside_x[:, None, None, :]), 0.0)


@torch.no_grad()
def top1(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images whose largest logit is that of their label."""
    model.eval()
    right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), labels.split(500), strict=True))
    return right / len(x)


def main() -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("convnext", "mobilenet"))
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--penalty", type=float, default=0.0)
    parser.add_argument("--range", type=float, default=2.0)
    parser.add_argument("--start", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    random = torch.Generator().manual_seed(arguments.seed)

    benchmark = MODELS[arguments.model]
    with np.load(arguments.train) as data:
        x, labels = benchmark.images(data["images"]), torch.from_numpy(data["labels"].astype(np.int64))
    with np.load(arguments.test) as data:
        x_test, labels_test = benchmark.images(data["images"]), torch.from_numpy(data["labels"].astype(np.int64))
    model = benchmark.make() if arguments.start is None else benchmark.load(arguments.start)
    model = model.to(memory_format=torch.channels_last)
    average = copy.deepcopy(model)
    excess = Excess(model, arguments.range) if arguments.penalty else None
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate, weight_decay=0.05)
    batch = 128
    steps = arguments.epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.rate, total_steps=steps, pct_start=0.15)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    step = 0
    for epoch in range(arguments.epochs):
        model.train()
        start, total, beyond = time.perf_counter(), 0.0, 0.0
        for chosen in torch.randperm(len(x), generator=random)[: len(x) // batch * batch].split(batch):
            images = augment(x[chosen], random).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model(images), labels[chosen])
            total += loss.item()
            if excess is not None:
                penalty = excess.take()
                loss = loss + arguments.penalty * min(1.0, step / (RAMP * steps)) * penalty
                beyond += penalty.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            decay = min(0.998, 1 - 1 / (1 + step / 10))
            with torch.no_grad():
                for kept, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                    if kept.is_floating_point():
                        kept.lerp_(now, 1 - decay)
                    else:
                        kept.copy_(now)
        accuracy = top1(average, x_test, labels_test)
        seconds, batches = time.perf_counter() - start, len(x) // batch
        print(
            f"epoch {epoch + 1}: loss {total / batches:.3f}, excess {beyond / batches:.4f}, "
            f"test top-1 {accuracy:.4f}, {seconds:.0f} s",
            flush=True,
        )
        state = {k: v.half().contiguous() for k, v in average.state_dict().items() if v.is_floating_point()}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, arguments.output)


if __name__ == "__main__":
    main()
