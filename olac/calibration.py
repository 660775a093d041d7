"""Calibration: one pass over images gives the range of every value and the distribution of activations' inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from olac.errors import CalibrationError, VerificationError
from olac.frontend.trace import Traced
from olac.ir.graph import Graph, Node
from olac.ir.ops import Activation, Array
from olac.ir.types import Range
from olac.polynomials.statistics import Calibration, Histogram

HELD_OUT_EVERY = 8
HELD_OUT_MOST = 64


def as_images(item: Any, where: str) -> torch.Tensor:
    """A loader's item as images (n, ...) in float32 on the CPU: a tensor or array, or a tuple or dict that holds one.

    Raises CalibrationError, naming `where`, for anything else, and for NaN and infinities.
    """
    if isinstance(item, Mapping):
        keys = [key for key in ("images", "pixel_values") if key in item]
        if not keys:
            raise CalibrationError(f"{where} is a dict without 'images' or 'pixel_values'")
        item = item[keys[0]]
    elif isinstance(item, (tuple, list)):
        if not item:
            raise CalibrationError(f"{where} is empty")
        item = item[0]
    if not isinstance(item, torch.Tensor):
        try:
            item = torch.as_tensor(np.asarray(item))
        except (TypeError, ValueError, RuntimeError) as error:
            raise CalibrationError(f"{where} is a {type(item).__name__}, not images") from error
    if item.dtype != torch.uint8 and not item.is_floating_point():
        raise CalibrationError(f"{where} has type {item.dtype}; give floats (images.float()) or uint8")
    if item.ndim < 2:
        raise CalibrationError(f"{where} has shape {tuple(item.shape)}, without a batch axis before the image's")
    images: torch.Tensor = item.detach().to("cpu", torch.float32)
    if not torch.isfinite(images).all():
        raise CalibrationError(f"{where} holds NaN or infinite values")
    return images


def _batches(loader: Any) -> Iterator[torch.Tensor]:
    if isinstance(loader, (torch.Tensor, np.ndarray)):
        loader = [loader]
    if not isinstance(loader, Iterable):
        raise CalibrationError(f"a loader is an iterable of batches, not {type(loader).__name__}")
    expected: tuple[int, ...] | None = None
    for index, item in enumerate(loader):
        images = as_images(item, f"batch {index}")
        shape = tuple(images.shape[1:])
        if expected is not None and shape != expected:
            raise CalibrationError(f"batch {index} has images of shape {shape}, and the first has {expected}")
        expected = shape
        if len(images):
            yield images


def first_batch(loader: Any) -> tuple[torch.Tensor, Iterator[torch.Tensor]]:
    """The first batch of a loader, and an iterator over all of them, the first included.

    The loader is iterated once, so a generator will do. Raises CalibrationError for an empty loader.
    """
    stream = _batches(loader)
    first = next(stream, None)
    if first is None:
        raise CalibrationError("the calibration data is empty")
    return first, itertools.chain([first], stream)


class _Observer(fx.Interpreter):
    """Runs the traced module and tells the statistics of each IR node's value."""

    def __init__(self, traced: Traced, graph: Graph) -> None:
        super().__init__(traced.module)
        self._traced, self._graph = traced, graph
        self._nodes = {node.id: node for node in graph.nodes}
        self.histograms: dict[str, Histogram] = {}
        self.low: dict[str, float] = {}
        self.high: dict[str, float] = {}
        self.where = ""
        self.observing = True
        known = {i for made in traced.lifted.values() for i in made}
        missing = [node.id for node in graph.nodes if node.id not in known]
        if missing:
            raise VerificationError(f"{', '.join(missing)}: no part of the traced model, so can't be calibrated")

    def run_node(self, n: fx.Node) -> Any:
        """Run one fx node and observe the IR nodes that were made for it."""
        result = super().run_node(n)
        made = [i for i in self._traced.lifted.get(n.name, ()) if i in self._nodes]
        if made and self.observing:
            values: dict[str, torch.Tensor] = {}
            for argument in n.all_input_nodes:
                _collect(self._traced.results.get(argument.name), self.env[argument], values)
            _collect(self._traced.results.get(n.name), result, values)
            for node_id in made:
                self._observe(self._nodes[node_id], values)
        return result

    def _observe(self, node: Node, values: dict[str, torch.Tensor]) -> None:
        if node.id not in values:
            # One of several IR nodes for an fx node: torch has no value for it, so it is computed.
            operands = [values[i].double().numpy() for i in node.inputs]
            values[node.id] = torch.from_numpy(node.op.evaluate(operands, self._graph.constants))
        value = values[node.id]
        low, high = (float(v) for v in torch.aminmax(value))
        if not (np.isfinite(low) and np.isfinite(high)):
            what = f"{node.origin.path or node.id} ({node.origin.source})" if node.origin.source else node.id
            raise CalibrationError(f"{self.where}: the model gives NaN or infinite values at {what}")
        self.low[node.id] = min(low, self.low.get(node.id, low))
        self.high[node.id] = max(high, self.high.get(node.id, high))
        if isinstance(node.op, Activation):
            seen = values[node.inputs[0]]
            if node.id not in self.histograms:
                self.histograms[node.id] = Histogram(seen.shape[1])
            self.histograms[node.id].add(seen.numpy())


def _collect(ids: Any, value: Any, values: dict[str, torch.Tensor]) -> None:
    if isinstance(ids, tuple) and isinstance(value, (tuple, list)):
        for one, part in zip(ids, value, strict=False):
            _collect(one, part, values)
    elif isinstance(ids, str) and isinstance(value, torch.Tensor):
        values[ids] = value


def calibrate(
    traced: Traced, graph: Graph, loader: Any, *, progress: Callable[[int], None] | None = None
) -> Calibration:
    """Run a model over calibration images and collect the statistics of its values.

    Every 8th image, from the first on and 64 at most, is held out of all statistics; a single image is both.

    Args:
        traced: the traced model, already lifted.
        graph: what `lift(traced)` gave.
        loader: batches of images (n, *input shape), or tuples whose first item they are, or one batch.
        progress: called with the number of images so far after each batch.

    Raises:
        CalibrationError: for no images, NaN or infinite values, other shapes, and what can't be images.
    """
    expected = traced.input_shape
    observer = _Observer(traced, graph)
    held: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    kept = seen = fitted = 0
    _, stream = first_batch(loader)
    with torch.no_grad():
        for index, images in enumerate(stream):
            if tuple(images.shape[1:]) != expected:
                raise CalibrationError(
                    f"batch {index} has images of shape {tuple(images.shape[1:])}, and the model takes {expected}"
                )
            observer.where = f"batch {index}"
            out = (torch.arange(seen, seen + len(images)) % HELD_OUT_EVERY) == 0
            # Of what remains to be held out, the first ones are taken.
            out &= torch.cumsum(out, 0) <= HELD_OUT_MOST - kept
            if out.any():
                held.append(images[out])
                outputs.append(_plain(observer, images[out]))
                kept += int(out.sum())
            if not out.all():
                fitted += int((~out).sum())
                observer.run(images[~out])
            seen += len(images)
            if progress is not None:
                progress(seen)
        if fitted == 0:
            observer.run(held[0])
            fitted = 1
    return Calibration(
        images=fitted,
        histograms=observer.histograms,
        ranges={i: Range(low, observer.high[i]) for i, low in observer.low.items()},
        held_out=_array(torch.cat(held)),
        held_out_outputs=_array(torch.cat(outputs)),
    )


def _array(tensor: torch.Tensor) -> Array:
    return np.asarray(tensor.double().numpy())


def _plain(observer: _Observer, images: torch.Tensor) -> torch.Tensor:
    observer.observing = False
    try:
        output: torch.Tensor = observer.run(images)
    finally:
        observer.observing = True
    if not torch.isfinite(output).all():
        raise CalibrationError(f"{observer.where}: the model's outputs are NaN or infinite")
    return output


__all__ = ["Calibration", "as_images", "calibrate", "first_batch"]
