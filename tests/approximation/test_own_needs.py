"""What compiling says it needs beforehand: how it grows, what is refused, and how it compares with what was taken."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

import olac
from olac.approximation import common
from olac.approximation.common import fitting, live_bytes, most_fitting
from olac.approximation.own_needs import (
    UNKNOWN_IMAGES,
    OwnNeeds,
    Term,
    Work,
    Yardstick,
    check_fits,
    images_in,
    measured,
)
from olac.errors import InfeasibleError
from olac.frontend import lift, trace
from olac.ir.graph import Graph
from olac.polynomials.modes import FitOptions

WITHIN_MEMORY = 1.5
"""Factor between what is told and what is taken."""


def net(channels: int = 8, size: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.AvgPool2d(size), nn.Flatten(), nn.Linear(channels, 4)
    ).eval()


def graph(channels: int = 8, size: int = 16) -> Graph:
    return lift(trace(net(channels, size), torch.zeros(2, 3, size, size)))


def total(work: Work) -> float:
    return work.needs(0.0).total


SPEED = Yardstick(1e-3, 1e-10)


def test_it_grows_with_images_and_effort() -> None:
    works = [Work(graph(), FitOptions(), images) for images in (64, 256, 1024)]
    bytes_needed, seconds = [total(w) for w in works], [w.seconds(SPEED) for w in works]
    assert bytes_needed == sorted(bytes_needed) and bytes_needed[0] < bytes_needed[-1]
    assert seconds == sorted(seconds) and seconds[0] < seconds[-1]
    fast, standard, thorough = (
        Work(graph(), FitOptions(effort=effort), 4000) for effort in ("fast", "standard", "thorough")
    )
    assert fast.seconds(SPEED) < standard.seconds(SPEED) < thorough.seconds(SPEED)
    assert total(fast) <= total(standard) < total(thorough), "more images are kept"


def test_it_grows_with_the_input_and_the_width() -> None:
    by_size = [total(Work(graph(size=size), FitOptions(), 512)) for size in (8, 16, 32)]
    by_width = [total(Work(graph(channels), FitOptions(), 512)) for channels in (4, 16, 64)]
    for row in (by_size, by_width):
        assert row == sorted(row) and row[0] < row[1] < row[2]


def test_less_work_takes_less() -> None:
    wide = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 4)).eval()
    whole = Work(lift(trace(wide, torch.zeros(2, 512))), FitOptions(degree=3), 1024)
    for less in (FitOptions(degree=3, reconstruct=0), FitOptions(degree=3, method="channel")):
        assert replace(whole, fit=less).seconds(SPEED) < whole.seconds(SPEED)
        assert total(replace(whole, fit=less)) < total(whole)
    assert replace(whole, calibrated=True).seconds(SPEED) < whole.seconds(SPEED)
    assert replace(whole, lowers=False).seconds(SPEED) < whole.seconds(SPEED)
    assert replace(whole, epochs=5).seconds(SPEED) > whole.seconds(SPEED)
    limited = replace(whole, fit=FitOptions(degree=3, fit_seconds=0.5))
    assert limited.seconds(SPEED) < whole.seconds(SPEED)


def test_the_peak_is_that_of_the_largest_step() -> None:
    needs = OwnNeeds(1e9, (Term("a", 1e8),), (Term("b", 2e8), Term("c", 3e8)))
    assert needs.largest.what == "c"
    assert needs.total == needs.held + needs.more
    fewer = replace(needs, steps=needs.steps[1:])
    assert fewer.total == needs.total, "steps follow each other"
    assert replace(needs, always=()).total < needs.total


def test_a_limit_takes_fewer_images_in_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = graph(64, 32)
    each = 2 * live_bytes(wide)
    free, bound = Work(wide, FitOptions(degree=3), 1024), Work(wide, FitOptions(degree=3), 1024, limit=300.0 * each)
    assert free.swept == free.kept and bound.swept == int(common.SHARE * 300)
    assert total(bound) < total(free)
    images = torch.zeros(1024, 3, 32, 32)
    assert len(fitting(wide, images, 2, 300.0 * each)) == bound.swept, "fits keep to what is told"
    monkeypatch.setattr(common, "MEMORY", 50.0 * each)
    assert most_fitting(wide, 2, 300.0 * each) == 50, "a large limit does not allow more than there is without"


def test_the_yardstick_is_of_the_model() -> None:
    calls: list[int] = []

    def slow(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return torch.stack([(torch.ones(200, 200) @ torch.ones(200, 200)).sum() for _ in range(20 * len(images))])

    small = measured(lambda x: x, torch.zeros(3, 1, 4, 4))
    large = measured(slow, torch.zeros(3, 1, 4, 4))
    assert set(calls) == {32} and len(calls) > 1, "few images are repeated"
    assert large.image > 10 * small.image > 0 and small.flop > 0


def test_images_of_loaders() -> None:
    first = torch.zeros(7, 3, 4, 4)
    assert images_in(first, first) == images_in(first.numpy(), first) == 7
    assert images_in([first] * 5, first) == 35
    assert images_in((one for one in [first]), first) == UNKNOWN_IMAGES
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(21, 3, 4, 4)), batch_size=7)
    assert images_in(data, first) == 21


# Refusals ------------------------------------------------------------------------------------------------------------


def test_a_refusal_names_parts_and_what_to_do() -> None:
    needs = OwnNeeds(
        1e9, (Term("libraries", 3e8), Term("images", 2e9, "fewer images")), (Term("the sweep", 4e9, "less"),)
    )
    check_fits(needs, None, needs.more, "compiling")
    check_fits(needs, needs.total, needs.more, "compiling")
    with pytest.raises(InfeasibleError) as caught:
        check_fits(needs, 5e9, 1e12, "compiling")
    text = str(caught.value)
    assert re.search(r"compiling takes about \d\.\d\d GB of memory, max_compile_memory allows 5\.00 GB", text)
    assert text.index("the sweep") < text.index("images") < text.index("libraries"), "the largest first"
    assert "less; fewer images" in text
    with pytest.raises(InfeasibleError, match=r"this machine leaves 2\.00 GB"):
        check_fits(needs, 9e9, 1e9, "compiling")


class Counted:
    """A loader that counts the batches that were taken."""

    def __init__(self, batches: int) -> None:
        self.batches, self.taken = batches, 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(self.batches):
            self.taken += 1
            yield torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(self.taken))


@pytest.mark.parametrize("run", [olac.compile, olac.approximate, olac.finetune])
def test_a_refusal_comes_after_one_batch(run: object) -> None:
    loader = Counted(20)
    assert callable(run)
    with pytest.raises(InfeasibleError, match=r"max_compile_memory allows 0\.10 GB"):
        run(net(), loader, max_compile_memory="100MB")
    assert loader.taken == 1


def test_the_memory_of_the_machine_is_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Counted(20)
    monkeypatch.setattr("olac.compiler.available_bytes", lambda: 1e8)
    with pytest.raises(InfeasibleError, match="this machine leaves"):
        olac.approximate(net(), loader)
    assert loader.taken == 1
    calibration = olac.calibrate(net(), loader)
    with pytest.raises(InfeasibleError, match="this machine leaves"):
        olac.approximate(net(), calibration)


def test_it_is_said_before_the_calibration() -> None:
    lines: list[str] = []
    loader = Counted(8)
    olac.approximate(net(), loader, degree=2, reconstruct=0, progress=lines.append, max_compile_memory=8e9)
    told = [
        k for k, line in enumerate(lines) if re.fullmatch(r"approximating will take about \d+ s and \d\.\d GB", line)
    ]
    assert len(told) == 1 and told[0] < lines.index("calibrating")


def test_a_limit_that_is_no_amount() -> None:
    with pytest.raises(ValueError, match="max_compile_memory"):
        olac.CompileOptions(max_compile_memory="eight")
    assert olac.CompileOptions(max_compile_memory="2GB").compile_memory_limit == 2e9


# Told against taken --------------------------------------------------------------------------------------------------

CHILD = """
import re, sys, time, types
import torch
import olac
from olac.approximation import own_needs
from torch import nn
from olac.system.memory import peak_rss_bytes

def conv(c, d, stride):
    return [nn.Conv2d(c, d, 3, stride, 1), nn.ReLU()]

own_needs.time = types.SimpleNamespace(perf_counter=time.process_time)  # other processes may disturb the clock
torch.manual_seed(0)
nets = {
    "perceptron": (nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)), (1, 28, 28)),
    "convolutions": (
        nn.Sequential(*conv(3, 32, 1), *conv(32, 32, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        (3, 32, 32),
    ),
}
model, shape = nets[sys.argv[1]]
told = []

def say(line):
    if "will take about" in line:
        told.append(line)

images = torch.randn(512, *shape)
olac.approximate(model.eval(), images.split(64), effort="fast", progress=say)
print(told[0], "|", peak_rss_bytes() / 1e9)
"""


@pytest.mark.parametrize("name", ["perceptron", "convolutions"])
def test_memory_told_against_taken(name: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), name]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    told, taken = done.stdout.split("|")
    found = re.search(r"about (\d+) (s|min) and (\d+\.\d) GB", told)
    assert found is not None, told
    memory, peak = float(found[3]), float(taken)
    assert peak / WITHIN_MEMORY < memory < peak * WITHIN_MEMORY, done.stdout
