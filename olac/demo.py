"""`olac demo`: train a small CNN on real digits, compile it, run it encrypted, and write down what was measured."""

from __future__ import annotations

import functools
import io
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from olac.backends.session import check_engines
from olac.compiler import compile as compile_model
from olac.errors import ArtifactError, plain
from olac.ir.ops import Array
from olac.pages.record import Accuracy, RunRecord, timing_of
from olac.polynomials.modes import FitOptions
from olac.program.curves import beside
from olac.program.program import CompiledProgram
from olac.progress import Event, Reporter, showing
from olac.report import parameter_lines, plan_table
from olac.runtime import Client, Progress, Server, forecast
from olac.system.files import Output, check_apart, check_folder, check_writable, make_folder, write_files
from olac.system.memory import GB, peak_rss_bytes
from olac.system.threads import usable_threads

log = logging.getLogger(__name__)

SEED = 0
HELD_OUT = 360
CALIBRATION_IMAGES = 512
REQUIRED_ACCURACY = 0.97


class DigitsNet(nn.Module):
    """Two convolutions with batch norm and ReLU, a residual add, pooling and a linear layer, for 8x8 images."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.pool = nn.AvgPool2d(2)
        self.linear = nn.Linear(channels * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)) + y)
        return self.linear(self.pool(y).flatten(1))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 8x8 digits, scaled to [0, 1] and split by a seeded permutation."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def load_digits() -> Digits:
    """1,437 training and 360 held-out images of shape (1, 8, 8), the held-out ones in the order of their index."""
    from sklearn.datasets import load_digits as load

    data = load()
    images = torch.tensor(data.images[:, None] / 16.0, dtype=torch.float32)
    labels = torch.tensor(data.target)
    order = np.random.default_rng(SEED).permutation(len(images))
    test, train = np.sort(order[:HELD_OUT]), order[HELD_OUT:]
    return Digits(images[train], labels[train], images[test], labels[test])


def train(
    digits: Digits, epochs: int = 25, say: Callable[[str], None] = lambda line: None, *, seed: int = SEED
) -> DigitsNet:
    """A trained network, the same every time on one machine, another one for another seed; `say` is told of epochs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Such small batches gain nothing from a second thread, and lose much on a busy machine.
    try:
        return _train(digits, epochs, say, seed)
    finally:
        torch.set_num_threads(threads)


def _train(digits: Digits, epochs: int, say: Callable[[str], None], seed: int) -> DigitsNet:
    torch.manual_seed(seed)
    net = DigitsNet()
    batches, size = len(digits.train_images) // 64, 64
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * batches)
    for epoch in range(epochs):
        say(Event(f"training: epoch {epoch + 1} of {epochs}", "training", epoch, epochs, epoch / epochs))
        order = torch.randperm(len(digits.train_images))
        for b in range(batches):
            index = order[b * size : (b + 1) * size]
            loss = nn.functional.cross_entropy(
                net(digits.train_images[index]), digits.train_labels[index], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


@dataclass(frozen=True)
class ImageResult:
    """One image: classes and errors of the encrypted run."""

    label: int
    plain_class: int
    encrypted_class: int
    error: float
    model_error: float
    seconds: float


def run_demo(output: Path, images: int = 10, console: Console | None = None, **choices: Any) -> dict[str, Any]:
    """The whole demo; returns what it wrote to `output`.

    Args:
        output: the JSON file.
        images: held-out images to encrypt, from the first.
        choices: options for `olac.compile`.
    """
    begin = time.perf_counter()
    out = console or Console()
    # Report at once what can't be chosen or written.
    if choices.get("degree") is not None:
        FitOptions(degree=choices["degree"])
    outputs = _outputs(output)
    check_engines()  # Fail at once if none can be used, not after training.
    with _showing("training a CNN on 8x8 digits") as say:
        digits = load_digits()
        net = train(digits, say=say)
        with torch.no_grad():
            logits = net(digits.test_images).double().numpy()
    accuracy = float(np.mean(logits.argmax(1) == digits.test_labels.numpy()))
    out.print(f"trained in {time.perf_counter() - begin:.1f} s: {accuracy:.2%} on {HELD_OUT} held-out images")
    if accuracy < REQUIRED_ACCURACY:
        out.print(f"[yellow]that is below {REQUIRED_ACCURACY:.0%}")

    compile_begin = time.perf_counter()
    with _showing("compiling") as show:
        images_only = torch.utils.data.TensorDataset(digits.train_images[:CALIBRATION_IMAGES])
        calibration: Any = torch.utils.data.DataLoader(images_only, batch_size=128)

        def told(event: Event) -> None:
            if event.stays and not show.heard:  # it tells more than what is done now
                out.print(event.text, markup=False)
            show(event)

        program = compile_model(net, calibration, progress=told, **choices)
    compile_seconds = time.perf_counter() - compile_begin
    for line in parameter_lines(program):
        out.print(line, markup=False)
    found = forecast(program)
    estimate, factor = found.estimate, found.slowdown
    threads = f"{usable_threads()} thread{'s' if usable_threads() != 1 else ''}"
    table = f" ({factor.heavy:.2f} times the table's seconds, {factor.light:.2f} for sums)" if factor else ""
    out.print(
        f"predicted {found.where}: {estimate.seconds_per_image:.2f} s an image on {threads}{table}, "
        f"{estimate.process_gb:.2f} GB, keys of {estimate.key_file_bytes / GB:.3f} GB"
    )

    client = Client(program)
    keygen_begin = time.perf_counter()
    with _showing("making keys") as say:
        keys = client.generate_keys(say)
    keygen_seconds = time.perf_counter() - keygen_begin
    with _showing("encoding weights"):
        server = Server(program, keys)
        server.prepare()
    out.print(f"keys in {keygen_seconds:.1f} s")

    test = digits.test_images[:images].double().numpy()
    results, node_seconds = _encrypted(program, client, server, test, logits, digits)
    out.print(_image_table(results))
    out.print(plan_table(program, estimate.node_seconds, node_seconds))

    log_qp = program.planned_for.log_qp(program.parameters)
    encrypted = np.array([r.encrypted_class for r in results])
    expected = np.array([r.plain_class for r in results])
    labels = digits.test_labels[: len(results)].numpy()
    simulated = program.simulate(test).argmax(1)
    report = {
        "images": len(results),
        "plain_accuracy": accuracy,
        "encrypted_accuracy": float(np.mean(encrypted == labels)),
        "agreement": float(np.mean(encrypted == expected)),
        "max_abs_error": max(r.error for r in results),
        "max_model_error": max(r.model_error for r in results),
        "seconds_per_image": float(np.mean([r.seconds for r in results])),
        "keygen_seconds": keygen_seconds,
        "compile_seconds": compile_seconds,
        "total_seconds": time.perf_counter() - begin,
        "predicted_seconds": estimate.seconds_per_image,
        "predicted_gb": estimate.process_gb,
        "peak_rss_gb": peak_rss_bytes() / GB,
        "key_bytes": keys.payload_bytes,
        "security_bits": program.parameters.security_bits_of(log_qp),
        "ring_dimension": program.parameters.ring_dimension,
        "log_qp": log_qp,
    }
    make_folder(output.parent)
    array = io.BytesIO()
    np.save(array, test)
    timing = timing_of(
        node_seconds, {}, engine=server.engine_title, threads=usable_threads(), images=1, peak_gb=peak_rss_bytes() / GB
    )
    shares = Accuracy(len(results), *(float(np.mean(one == labels)) for one in (expected, simulated, encrypted)))
    page = program.html(run=RunRecord(program.fingerprint, timing, accuracy=shares)).html().encode()
    contents = (json.dumps(report, indent=2).encode() + b"\n", program.to_bytes(), array.getvalue())
    written = [Output(path, [data], size=len(data)) for path, data in zip(outputs.values(), contents, strict=False)]
    written.append(Output(outputs["page"], [page], private=True, size=len(page)))
    if program.curves is not None:
        written.append(program.curves.output(beside(outputs["program"]), program.fingerprint))
    write_files(written)
    out.print(
        f"{report['agreement']:.0%} of {len(results)} encrypted images agree with PyTorch; "
        f"{report['seconds_per_image']:.2f} s an image, {report['peak_rss_gb']:.2f} GB at the peak, "
        f"{report['total_seconds']:.0f} s in all; written to {plain(output)}, "
        f"with the program (.olac) and the images (.npy) for `olac keygen`, `encrypt`, `run` and `decrypt` beside it; "
        f"{plain(outputs['page'])} shows the program in a browser",
        markup=False,
    )
    return report


def _outputs(output: Path) -> dict[str, Path]:
    """The files of a demo by their roles; ArtifactError if one can't be written."""
    if not output.name:
        raise ArtifactError(f"{plain(output)}: names no file. Name the JSON file that the demo should write.")
    outputs = {"report": output, "program": output.with_suffix(".olac"), "images": output.with_suffix(".npy")}
    outputs["page"] = output.with_suffix(".html")
    check_apart(outputs, {})
    if output.parent.exists():
        for path in outputs.values():
            check_writable(path)
    else:
        check_folder(output.parent)
    return outputs


def _encrypted(
    program: CompiledProgram,
    client: Client,
    server: Server,
    test: Array,
    logits: Array,
    digits: Digits,
) -> tuple[list[ImageResult], dict[str, float]]:
    simulated = program.simulate(test)
    results: list[ImageResult] = []
    node_seconds: dict[str, float] = {}
    with _showing("running encrypted") as say:
        for i, image in enumerate(test):
            encrypted = client.encrypt(image)
            start = time.perf_counter()
            result = server.run(encrypted, functools.partial(_show, say, i, len(test)))
            seconds = time.perf_counter() - start
            answer = client.decrypt(result)[0]
            for node, spent in server.last_run.items():
                node_seconds[node] = node_seconds.get(node, 0.0) + spent / len(test)
            results.append(
                ImageResult(
                    int(digits.test_labels[i]),
                    int(logits[i].argmax()),
                    int(answer.argmax()),
                    float(np.max(np.abs(answer - simulated[i]))),
                    float(np.max(np.abs(answer - logits[i]))),
                    seconds,
                )
            )
    return results, node_seconds


def _show(say: Reporter, image: int, images: int, progress: Progress) -> None:
    line = f"image {image + 1} of {images}: {plain(progress.node)} at level {progress.level}"
    say(Event(line, f"image {image + 1} of {images}", share=(image + progress.share) / images))


@contextmanager
def _showing(doing: str) -> Iterator[Reporter]:
    """A bar for a part of the demo, which says itself what came of it."""
    with showing(None, doing, doing, log, closing=False) as say:
        say(Event(doing, doing))
        yield say


def _image_table(results: list[ImageResult]) -> Table:
    table = Table(title="encrypted images", box=box.SIMPLE, pad_edge=False)
    for name in (
        "image",
        "label",
        "PyTorch",
        "encrypted",
        "error vs simulate()",
        "error vs PyTorch",
        "seconds",
    ):
        table.add_column(name, justify="right")
    for i, r in enumerate(results):
        table.add_row(
            str(i),
            str(r.label),
            str(r.plain_class),
            str(r.encrypted_class),
            f"{r.error:.2e}",
            f"{r.model_error:.2e}",
            f"{r.seconds:.2f}",
        )
    return table
