"""The effect of encryption noise on a program's outputs, by simulation on images that no fit has seen."""

from __future__ import annotations

import math

import numpy as np

from olac.calibration.statistics import Calibration
from olac.ckks.engines import OPENFHE, EngineModel
from olac.ckks.parameters import Parameters
from olac.errors import InfeasibleError
from olac.ir.graph import Graph, Node
from olac.ir.head import OutputHead
from olac.ir.ops import Array, Bootstrap, Input, Polynomial, PolynomialProduct

MAX_SCALE_BITS = 50
CHECK_IMAGES = 64
"""Held-out images on which noise is simulated."""
FEWEST_IMAGES = 8
MOST_VALUES = 1 << 28
"""Most elements of all values of these images; of large networks fewer images are taken."""
VALUES_TOGETHER = 1 << 23
"""Most elements of one value that are computed together."""
PROBE_SCALE_BITS, PROBE_STEP_BITS = 30, 10
PROBE_LOG_RING = 14
TINY_OUTPUT = 1e-9
LARGE_NOISE = 0.1
"""Of the outputs' range."""
NOISE_MARGIN_BITS = 2.0
PUBLIC_NOISE = 16.0
"""Of an encryption with a public key, in that of a rescale: 3.24 sqrt(4 N / 3) over sqrt(N / 18), for a uniform ternary
secret; it is less for sparse ones."""


class OutputNoise:
    """The outputs of a graph at stage POLYNOMIAL on held-out images, and their changes by noise.

    The outputs after the client's part count as well, up to a choice of classes: errors are the larger of both, each
    relative to its own range. So the client's part can neither hide an error by a shift nor magnify one unnoticed.

    Args:
        public_key: whether inputs may be encrypted with a public key, which makes more noise.

    Raises:
        InfeasibleError: no image has finite outputs.
    """

    def __init__(
        self,
        graph: Graph,
        calibration: Calibration,
        head: OutputHead | None = None,
        seed: int = 0,
        public_key: bool = False,
    ) -> None:
        self._graph, self._seed = graph, seed
        self._input = PUBLIC_NOISE if public_key else 1.0
        sizes = [math.prod(node.type.shape) for node in graph.nodes]
        count = min(CHECK_IMAGES, max(FEWEST_IMAGES, MOST_VALUES // sum(sizes)))
        self._together = max(1, VALUES_TOGETHER // max(sizes))
        """Images that are evaluated at once."""
        images = calibration.held_out[:count]
        clean = np.concatenate([graph.evaluate(part) for part in self._parts(images)])
        sound = np.isfinite(clean.reshape(len(clean), -1)).all(1)  # the agreement counts the others
        if not sound.any():
            raise InfeasibleError("all held-out calibration inputs diverge. Raise the degrees of the activations.")
        # The largest of a few draws would be a matter of luck, so few images are taken several times.
        taken = np.arange(max(len(images), count)) % int(sound.sum())
        self._images, self._clean = images[sound][taken], clean[sound][taken]
        size = float(np.max(np.abs(self._clean)))
        unit = graph[graph.outputs[0]].type.unit
        if size < TINY_OUTPUT * unit:
            size = unit  # outputs that are always zero have no precision of their own
        self._views = [(OutputHead(), size)]
        if head:
            seen = head.scores
            size = float(np.max(np.abs(seen.apply(self._clean))))
            if size >= TINY_OUTPUT:
                self._views.append((seen, size))
        self._probe: tuple[float, int] | None = None

    def _parts(self, images: Array) -> list[Array]:
        """Images in parts of which the values of all nodes fit in memory."""
        return [images[first : first + self._together] for first in range(0, len(images), self._together)]

    def scale_bits(self, log_ring: int, precision: float) -> int:
        """Fewest bits of scale that keep the change of the outputs below `precision`, relative to their range.

        Noise is proportional to 2^-bits, and so is its effect if it is small. So one simulation suffices for all scales
        and rings. The result is MAX_SCALE_BITS + 1 if outputs diverge at every scale.
        """
        if self._probe is None:
            bits = PROBE_SCALE_BITS
            sigma = _rescale_noise(PROBE_LOG_RING)
            # The effect of noise that is not small grows faster than the noise.
            while not (error := self._error(self._graph, self._clean, sigma * 2.0**-bits)) <= LARGE_NOISE:
                if bits > MAX_SCALE_BITS:
                    break
                bits += PROBE_STEP_BITS
            self._probe = error, bits
        error, bits = self._probe
        if math.isinf(error):
            return MAX_SCALE_BITS + 1
        error *= _rescale_noise(log_ring) / _rescale_noise(PROBE_LOG_RING)
        needed = bits + math.ceil(math.log2(max(error, 1e-30) / precision))
        if bits > PROBE_SCALE_BITS:  # at smaller scales the effect may be larger than in proportion
            sigma = _rescale_noise(log_ring)
            while needed <= MAX_SCALE_BITS:
                if self._error(self._graph, self._clean, sigma * 2.0**-needed) <= precision:
                    break
                needed += 1
        return needed

    def loudest(self) -> Node:
        """The node whose noise changes the outputs most."""
        sigma = _rescale_noise(PROBE_LOG_RING) * 2.0**-MAX_SCALE_BITS
        noisy = [node for node in self._graph.nodes if _adds_noise(self._graph, node)]
        return max(noisy, key=lambda node: self._error(self._graph, self._clean, sigma, only=node.id))

    def of_program(self, graph: Graph, parameters: Parameters, engine: EngineModel = OPENFHE) -> float:
        """Largest change of an output by the noise of rescales and bootstraps, relative to the outputs' range.

        Args:
            graph: at stage POLYNOMIAL or later, with its bootstraps; apart from their sine it computes the same.
            parameters: of the program.
            engine: that runs it.
        """
        rescale = _rescale_noise(parameters.log_ring) * 2.0**-parameters.scale_bits
        clean = np.concatenate([graph.evaluate(part) for part in self._parts(self._images)])
        return self._error(graph, clean, rescale, engine.bootstraps(parameters).noise)

    def _error(self, graph: Graph, clean: Array, sigma: float, bootstrap: float = 0.0, only: str = "") -> float:
        """Largest change of the outputs, relative to their range; infinite if values diverge.

        Every linear op and polynomial adds the noise of a rescale to every slot, and a bootstrap its own. With `only`,
        one node alone does.
        """
        random = np.random.default_rng(self._seed)

        def disturb(node: Node, value: Array) -> Array | None:
            if only and node.id != only:
                return None
            if isinstance(node.op, Bootstrap):
                return value + random.normal(0.0, bootstrap, value.shape)
            if isinstance(node.op, Polynomial | PolynomialProduct):
                # Every term adds the noise of its power, times its coefficient.
                largest = float(np.abs(graph.constants[node.op.coefficients]).sum(axis=1).max())
                return value + random.normal(0.0, sigma * max(1.0, largest), value.shape)
            if isinstance(node.op, Input):
                return value + random.normal(0.0, self._input * sigma, value.shape)
            if _adds_noise(graph, node):
                return value + random.normal(0.0, sigma, value.shape)
            return None

        with np.errstate(over="ignore", invalid="ignore"):
            made = np.concatenate([graph.evaluate(part, disturb) for part in self._parts(self._images)])
            noisy = decoded(made, clean)
            error = max(
                float(np.max(np.abs(head.apply(noisy) - head.apply(clean)))) / size for head, size in self._views
            )
        return error if math.isfinite(error) else math.inf


def decoded(noisy: Array, clean: Array) -> Array:
    """Outputs (images, *output shape) as decryption returns them.

    OpenFHE adds noise to all slots, of the mean size of the noise in them. So errors below the root mean square of an
    image's errors are raised to it; the largest error does not change.
    """
    change = noisy - clean
    usual = np.sqrt(np.mean(change**2, axis=tuple(range(1, change.ndim)), keepdims=True))
    return np.asarray(clean + np.where(np.abs(change) < usual, np.copysign(usual, change), change))


def _adds_noise(graph: Graph, node: Node) -> bool:
    return isinstance(node.op, Input) or node.op.levels(graph.constants) > 0


def _rescale_noise(log_ring: int) -> float:
    """Standard deviation in the slots of a rescale's rounding, in units of 2^-bits, with a margin."""
    ring = 2.0**log_ring
    noise: float = math.sqrt((1 + 2 * ring / 3) / 12 * ring / 2) * 2.0**NOISE_MARGIN_BITS
    return noise
