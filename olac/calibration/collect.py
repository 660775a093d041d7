"""Calibration: one pass over images gives the range of every value and the distribution of activations' inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from olac.calibration.batches import first_batch
from olac.calibration.held_out import number_of, smallest
from olac.calibration.histogram import Histogram
from olac.calibration.statistics import (
    HELD_OUT_EVERY,
    SAMPLE_BYTES,
    SAMPLE_IMAGES,
    Calibration,
    SingleArray,
    held_out_limit,
    sample_limit,
)
from olac.errors import CalibrationError, VerificationError
from olac.frontend.lifter import Place
from olac.frontend.trace import Traced
from olac.ir.graph import Graph, Node
from olac.ir.ops import Activation, Array
from olac.ir.types import Range
from olac.system.formats import without_unused
from olac.system.memory import ran_out
from olac.system.shapes import PICTURE_CHANNELS

MOST_PIXEL = 255.0
RUN_ELEMENTS = 1 << 18
"""Input elements in one run of the model: the loader's batches are cut and joined to this size."""

OUTLIERS = ((1e-4, 10.0), (2e-2, 100.0))
"""(share, times): a note is made if this share of the values stretches the range to this many times that of the others.

The second pair is for few images, of which a single one has more than the first share of the values.
"""


class _Observer(fx.Interpreter):
    """Runs the traced module and collects the statistics of each IR node's value."""

    def __init__(self, traced: Traced, graph: Graph) -> None:
        super().__init__(traced.module)
        self.extra_traceback = False  # it would be in the messages of our own errors
        self._traced, self._graph = traced, graph
        self._nodes = {node.id: node for node in graph.nodes}
        self.histograms: dict[str, Histogram] = {}
        self.low: dict[str, float] = {}
        self.high: dict[str, float] = {}
        self.channels: dict[str, Array] = {}
        self.where = ""
        self.observing = self.looking = True
        known = {i for made in traced.lifted.values() for i in made}
        missing = [node.id for node in graph.nodes if node.id not in known]
        if missing:
            raise VerificationError(f"{', '.join(missing)}: not in the traced model, so there is no way to calibrate")

    def run_node(self, n: fx.Node) -> Any:
        """Run one fx node and observe the IR nodes that were made for it; if only `looking`, just refuse NaN."""
        try:
            result = super().run_node(n)
        except Exception as error:
            if ran_out(error):
                raise
            where = ", ".join(n.meta[part] for part in ("path", "source") if n.meta.get(part))
            raise CalibrationError(
                f"{self.where}: the model fails at {where or n.name}: {type(error).__name__}: {error}"
            ) from error
        made = [i for i in self._traced.lifted.get(n.name, ()) if i in self._nodes]
        if made and self.looking:
            values: dict[str, torch.Tensor] = {}
            for argument in n.all_input_nodes:
                self._collect(self._traced.results.get(argument.name), self.env[argument], values)
            self._collect(self._traced.results.get(n.name), result, values)
            for node_id in made:
                self._observe(self._nodes[node_id], values)
        return result

    def _collect(self, places: Any, value: Any, values: dict[str, torch.Tensor]) -> None:
        if isinstance(places, tuple) and isinstance(value, (tuple, list)):
            for one, part in zip(places, value, strict=False):
                self._collect(one, part, values)
        elif isinstance(places, Place) and isinstance(value, torch.Tensor):
            values[places.id] = places.laid(value)

    def _observe(self, node: Node, values: dict[str, torch.Tensor]) -> None:
        if node.id not in values:
            # One of several IR nodes for an fx node: torch has no value for it, so it is computed.
            operands = [values[i].double().numpy() for i in node.inputs]
            values[node.id] = torch.from_numpy(node.op.evaluate(operands, self._graph.constants))
        value = values[node.id]
        by_channel = value.reshape(len(value), value.shape[1] if value.ndim > 1 else 1, -1)
        lows, highs = _array(by_channel.amin(0).amin(1)), _array(by_channel.amax(0).amax(1))
        low, high = float(lows.min()), float(highs.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            origin = [part for part in (node.origin.path, node.origin.source) if part]
            what = f"{node.id} ({', '.join(origin)})" if origin else node.id
            if isinstance(node.op, Activation) and values[node.inputs[0]].shape == value.shape:
                given = values[node.inputs[0]][~torch.isfinite(value)]
                first = float(given[0])  # the message gives its sign only, so it shows no value of an image
                what += f", for {'a positive' if first > 0 else 'a negative' if first < 0 else 'a zero'} input"
            raise CalibrationError(f"{self.where}: the model gives NaN or infinite values at {what}")
        if not self.observing:
            return
        self.low[node.id] = min(low, self.low.get(node.id, low))
        self.high[node.id] = max(high, self.high.get(node.id, high))
        before = self.channels.get(node.id)
        self.channels[node.id] = np.stack(
            [lows, highs] if before is None else [np.minimum(lows, before[:, 0]), np.maximum(highs, before[:, 1])], 1
        )
        if isinstance(node.op, Activation):
            seen = values[node.inputs[0]]
            if node.id not in self.histograms:
                self.histograms[node.id] = Histogram(seen.shape[1])
            self.histograms[node.id].add(seen.numpy())


class _Sample:
    """Keeps every k-th image of a stream; k doubles when the sample is full."""

    def __init__(self, most: int) -> None:
        self.every = 1
        self._most, self._seen = most, 0
        self._images: list[torch.Tensor] = []

    def add(self, images: torch.Tensor) -> None:
        """Take the next images of the stream."""
        for image in images:
            if self._seen % self.every == 0:
                if len(self._images) == self._most:
                    self._images, self.every = self._images[::2], 2 * self.every
                if self._seen % self.every == 0:
                    self._images.append(image.clone())
            self._seen += 1

    def array(self) -> SingleArray:
        """The sample, (n, *image shape)."""
        return np.asarray(torch.stack(self._images).numpy(), dtype=np.float32)


class _HeldOut:
    """The images that are held out: all that are given, or a fair sample if they are more than a limit."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._images: list[tuple[int, torch.Tensor]] = []
        self._numbers: list[int] = []

    def add(self, batch: int, images: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        """Take images of the loader's batch with this number; returns those that have no place, with their batches."""
        self._images += [(batch, image.clone()) for image in images]
        if len(self._images) <= self._most:
            return []
        self._numbers += [number_of(image.numpy()) for _, image in self._images[len(self._numbers) :]]
        kept = smallest(self._numbers, self._most)
        gone = [self._images[i] for i in sorted(set(range(len(self._images))) - set(kept))]
        self._images, self._numbers = [self._images[i] for i in kept], [self._numbers[i] for i in kept]
        return gone

    def take(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Give all images away, with their batches."""
        self._images.reverse()
        while self._images:
            yield self._images.pop()


class _Queue:
    """Collects images for runs of one size, whatever the sizes of the loader's batches.

    Equal images then give equal numbers: the rounding of convolutions depends on the size of the batch.
    """

    def __init__(self, size: int, run: Callable[[torch.Tensor, str], None]) -> None:
        self._size, self._run = size, run
        self._waiting: list[tuple[int, torch.Tensor]] = []
        self._count = 0

    def add(self, batch: int, images: torch.Tensor) -> None:
        """Take images of the loader's batch with this number."""
        while len(images):
            part = images[: self._size - self._count]
            self._waiting.append((batch, part))
            self._count += len(part)
            images = images[len(part) :]
            if self._count == self._size:
                self.flush()

    def flush(self) -> None:
        """Run the images that are left."""
        if self._waiting:
            numbers = [batch for batch, _ in self._waiting]
            first, last = min(numbers), max(numbers)
            images = torch.cat([part for _, part in self._waiting])
            self._waiting, self._count = [], 0
            self._run(images, f"batch {first}" if first == last else f"batches {first} to {last}")


def calibrate(
    traced: Traced,
    graph: Graph,
    loader: Any,
    *,
    progress: Callable[[int], None] | None = None,
    sample_images: int = SAMPLE_IMAGES,
    sample_bytes: int = SAMPLE_BYTES,
) -> Calibration:
    """Run a model over calibration images and collect the statistics of its values.

    Every 8th image from the first on is held out of all statistics. If these are more than 2,048 (512 if they are
    large), it is a fair sample of them (`olac.calibration.held_out`), and the statistics cover the others. If there is
    one image only, it is used for both. Memory doesn't grow with the number of images, and the result doesn't depend on
    the size of the batches.

    Args:
        traced: the traced model, already lifted.
        graph: the result of `lift(traced)`.
        loader: batches of images (n, *input shape), or tuples whose first item they are, or one batch.
        progress: called with the number of images so far after each batch.
        sample_images, sample_bytes: bounds of the sample of images for fits.

    Raises:
        CalibrationError: there are no images, or they have other shapes, NaN or infinite values, or are not images.
    """
    expected = traced.input_shape
    elements = max(1, traced.example[0].numel())
    observer = _Observer(traced, graph)
    sample = _Sample(sample_limit(4 * elements, sample_images, sample_bytes))
    held: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    seen = fitted = 0
    waiting = _HeldOut(held_out_limit(8 * elements))

    def observe(images: torch.Tensor, where: str) -> None:
        observer.where = where
        observer.run(images)

    def keep(images: torch.Tensor, where: str) -> None:
        observer.where = where
        held.append(images)
        outputs.append(_plain(observer, images))

    size = max(1, min(64, RUN_ELEMENTS // elements))
    to_fit, to_hold = _Queue(size, observe), _Queue(size, keep)
    _, stream = first_batch(loader)
    with torch.no_grad():
        for index, images in enumerate(stream):
            if tuple(images.shape[1:]) != expected:
                raise CalibrationError(
                    f"batch {index} has inputs of shape {tuple(images.shape[1:])}, and the model takes {expected}"
                )
            out = (torch.arange(seen, seen + len(images)) % HELD_OUT_EVERY) == 0
            fitted += int((~out).sum())
            to_fit.add(index, images[~out])
            sample.add(images[~out])
            for batch, image in waiting.add(index, images[out]):
                # Not sampled: the order in which they come depends on the size of the batches.
                fitted += 1
                to_fit.add(batch, image[None])
            seen += len(images)
            if progress is not None:
                progress(seen)
        for batch, image in waiting.take():
            to_hold.add(batch, image[None])
        to_hold.flush()
        if fitted == 0:
            to_fit.add(0, held[0])
            sample.add(held[0])
            fitted = 1
        to_fit.flush()
    return Calibration(
        images=fitted,
        histograms=observer.histograms,
        ranges={i: Range(low, observer.high[i]) for i, low in observer.low.items()},
        held_out=_array(torch.cat(held)),
        held_out_outputs=_array(torch.cat(outputs)),
        sample=sample.array(),
        sample_every=sample.every,
        fingerprint=fingerprint(graph),
        channels=observer.channels,
    )


def fingerprint(graph: Graph) -> str:
    """SHA-256 of a lifted model: its ops, shapes and weights, and the names of functions that the caller gave."""
    digest = hashlib.sha256()
    for node in graph.nodes:
        attributes = {name: repr(value) for name, value in without_unused(node.op.attributes()).items()}
        if isinstance(node.op, Activation) and node.op.definition is not None:
            attributes["function"] = node.op.definition.label
        digest.update(json.dumps([node.id, node.op.name, attributes, node.inputs, node.type.shape]).encode())
    digest.update(json.dumps(graph.outputs).encode())
    for name in sorted(graph.constants):
        array = graph.constants[name]
        digest.update(f"{name} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
    return digest.hexdigest()


def with_held_out(traced: Traced, calibration: Calibration, images: torch.Tensor) -> Calibration:
    """The calibration with other images held out: these, evenly from all if they are more than the limit.

    Raises:
        CalibrationError: they have another shape than the model takes.
    """
    if tuple(images.shape[1:]) != traced.input_shape:
        shape = tuple(images.shape[1:])
        raise CalibrationError(f"inputs that are held out have shape {shape}, and the model takes {traced.input_shape}")
    most = min(len(images), held_out_limit(8 * max(1, images[0].numel())))
    chosen = images[torch.linspace(0, len(images) - 1, most).round().long()]
    with torch.no_grad():
        outputs = torch.cat([traced.module(part) for part in chosen.split(64)])
    if not torch.isfinite(outputs).all():
        raise CalibrationError("the model's outputs for the inputs that are held out are NaN or infinite")
    return replace(calibration, held_out=_array(chosen), held_out_outputs=_array(outputs))


def check_calibration(calibration: Calibration, graph: Graph) -> None:
    """Raise CalibrationError unless a calibration belongs to the model that a graph was lifted from."""
    advice = "Calibrate this model (olac.calibrate), with these weights."
    if calibration.fingerprint and calibration.fingerprint != fingerprint(graph):
        raise CalibrationError(f"the calibration is of another model, or of other weights. {advice}")
    missing = sorted({node.id for node in graph.nodes} - set(calibration.ranges))
    if missing:
        raise CalibrationError(f"the calibration has no range of {', '.join(missing[:5])}. {advice}")
    for node in graph.nodes:
        if isinstance(node.op, Activation):
            histogram = calibration.histograms.get(node.id)
            if histogram is None or histogram.channels != node.type.shape[0]:
                raise CalibrationError(f"the calibration never saw the activation {node.id}. {advice}")
    shape = graph.inputs[0].type.shape
    if calibration.held_out.shape[1:] != shape or calibration.sample.shape[1:] not in ((), shape):
        raise CalibrationError(f"the calibration has inputs of another shape than the model, {shape}. {advice}")


def outlier_notes(graph: Graph, calibration: Calibration) -> tuple[str, ...]:
    """Notes about activations whose range a few values stretch far beyond all others."""
    notes = []
    known = {node.id for node in graph.nodes}  # an activation that the client computes is in no graph
    for node_id, histogram in calibration.histograms.items():
        if node_id not in known:
            continue
        seen = histogram.range()
        for share, times in OUTLIERS:
            usual = max(abs(histogram.quantile(1 - share)), abs(histogram.quantile(share)))
            if seen.magnitude > times * usual:
                path = graph[node_id].origin.path or "model"
                notes.append(
                    f"{node_id} ({path}): outliers stretch the range of its input to {seen.magnitude:.3g}, but all "
                    f"except {share:.2%} of values are below {usual:.3g}: polynomials on so wide a range are coarse. "
                    "Look for broken calibration inputs"
                )
                break
    return tuple(notes)


def pixel_notes(graph: Graph, calibration: Calibration) -> tuple[str, ...]:
    """A note if inputs are images of whole numbers up to 255: pixels that were not scaled, in most cases by mistake."""
    shape = graph.inputs[0].type.shape
    images = calibration.held_out
    low, high = float(images.min()), float(images.max())
    if len(shape) != 3 or shape[0] not in PICTURE_CHANNELS or low < 0 or not MOST_PIXEL / 2 < high <= MOST_PIXEL:
        return ()
    if np.any(images != np.rint(images)):
        return ()
    return (
        "the calibration images are whole numbers up to 255, as pixels are before they are scaled. If the model was "
        "trained on scaled images, scale these and what is encrypted in the same way, such as images.float() / 255",
    )


def _array(tensor: torch.Tensor) -> Array:
    return np.asarray(tensor.double().numpy())


def _plain(observer: _Observer, images: torch.Tensor) -> torch.Tensor:
    """The outputs for images that the statistics leave out."""
    observer.observing = observer.looking = False
    try:
        output: torch.Tensor = observer.run(images)
        if not torch.isfinite(output).all():
            observer.looking = True
            observer.run(images)  # once more, to find the layer
            raise CalibrationError(f"{observer.where}: the model's outputs are NaN or infinite")
    finally:
        observer.observing = observer.looking = True
    return output
