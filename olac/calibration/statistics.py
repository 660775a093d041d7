"""The statistics of calibration: the distribution of each activation's input, and the range of every value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from olac.calibration import files
from olac.calibration.held_out import fair_sample
from olac.calibration.histogram import Histogram
from olac.errors import CalibrationError
from olac.ir.types import Range
from olac.system.arrays import Array

SingleArray = npt.NDArray[np.float32]

HELD_OUT_MOST, HELD_OUT_BYTES = 2048, 512 << 20
"""Most images that are held out of the statistics: this number, or fewer if they take more than this many bytes."""
HELD_OUT_EVERY = 8
"""The first of this many images in a row is held out."""
CHOOSING_MOST = 256
"""Choices are made by half of the held-out images, and by at most this many."""
SAMPLE_IMAGES = 1024
SAMPLE_BYTES, LARGE_SAMPLE_BYTES = 512 << 20, 2 << 30
"""The sample of images for fits has at most this many images and bytes; the second if more images are asked for."""


def _no_images() -> SingleArray:
    return np.zeros((0,), dtype=np.float32)


@dataclass(frozen=True)
class Calibration:
    """The statistics of a model's values, from one pass over images.

    Attributes:
        images: number of images that the statistics cover.
        histograms: for each Activation's node id the distribution of its input.
        ranges: for each node id the range of its value.
        held_out: (n, *input shape), images that no statistic covers, unless there was one image only.
        held_out_outputs: (n, *output shape), the original model's outputs for them.
        sample: (m, *input shape), every `sample_every`-th of the images that were never held out.
        sample_every: a power of two, which doubles when the sample is full.
        fingerprint: SHA-256 of the model's graph and weights (`olac.calibration.collect.fingerprint`), or "" if
            unknown.
        channels: for each node id the range of each channel, (channels, 2); no entry if it is unknown.
    """

    images: int
    histograms: Mapping[str, Histogram]
    ranges: Mapping[str, Range]
    held_out: Array
    held_out_outputs: Array
    sample: SingleArray = field(default_factory=_no_images)
    sample_every: int = 1
    fingerprint: str = ""
    channels: Mapping[str, Array] = field(default_factory=dict)

    @property
    def choosing(self) -> Array:
        """The held-out images by which degrees, tails and weights may be chosen: every second one, 256 at most."""
        return self.held_out[: 2 * CHOOSING_MOST : 2]

    @property
    def judged(self) -> Array:
        """The held-out images that decide nothing: all others, or if there is only one image, that one."""
        return self.held_out[self._judged]

    @property
    def judged_outputs(self) -> Array:
        """The model's outputs for `judged`."""
        return self.held_out_outputs[self._judged]

    @property
    def _judged(self) -> npt.NDArray[np.intp]:
        every = np.arange(len(self.held_out))
        rest = every[(every % 2 == 1) | (every >= 2 * CHOOSING_MOST)]
        return rest if len(rest) else every

    def merge(
        self, other: Calibration, *, sample_images: int = SAMPLE_IMAGES, sample_bytes: int = SAMPLE_BYTES
    ) -> Calibration:
        """The calibration that one pass over the images of both would give, except which images are held out or
        sampled.

        Images held out by either stay held out. If they are more than `held_out_limit`, a fair sample of them stays,
        which does not depend on the order of merging, and the others are in no statistic.

        Args:
            other: a calibration of the same model with the same weights.
            sample_images, sample_bytes: limits of the sample of images that the result keeps, as of `olac.calibrate`.

        Raises:
            CalibrationError: the calibrations are of different models.
        """
        if (
            self.fingerprint != other.fingerprint
            or self.ranges.keys() != other.ranges.keys()
            or self.histograms.keys() != other.histograms.keys()
            or any(
                getattr(self, name).shape[1:] != getattr(other, name).shape[1:]
                for name in ("held_out", "held_out_outputs", "sample")
            )
            or any(h.channels != other.histograms[i].channels for i, h in self.histograms.items())
            or any(seen.shape != other.channels[i].shape for i, seen in self.channels.items() if i in other.channels)
        ):
            raise CalibrationError("calibrations of different models can't be merged. Calibrate both with one model.")
        every = max(self.sample_every, other.sample_every)
        sample = np.concatenate(
            [self.sample[:: every // self.sample_every], other.sample[:: every // other.sample_every]]
        )
        most = sample_limit(sample[:1].nbytes, sample_images, sample_bytes)
        while len(sample) > most:
            sample, every = sample[::2], 2 * every
        held_out = np.concatenate([self.held_out, other.held_out])
        kept = fair_sample(held_out, held_out_limit(held_out[:1].nbytes))
        return Calibration(
            images=self.images + other.images,
            histograms={i: h.copy().merge(other.histograms[i]) for i, h in self.histograms.items()},
            ranges={i: seen.union(other.ranges[i]) for i, seen in self.ranges.items()},
            held_out=held_out[kept],
            held_out_outputs=np.concatenate([self.held_out_outputs, other.held_out_outputs])[kept],
            sample=sample,
            sample_every=every,
            fingerprint=self.fingerprint,
            channels={
                i: np.stack([np.minimum(seen, theirs)[:, 0], np.maximum(seen, theirs)[:, 1]], axis=1)
                for i, seen in self.channels.items()
                if (theirs := other.channels.get(i)) is not None
            },
        )

    def save(self, path: str | Path) -> None:
        """Write the calibration to one file (see `olac.calibration.files`).

        Args:
            path: the file to write, which is complete or absent.

        Raises:
            ArtifactError: the file can't be written.
        """
        files.save_fields({each.name: getattr(self, each.name) for each in fields(self)}, Path(path))

    @staticmethod
    def load(path: str | Path) -> Calibration:
        """Read a calibration and check all of it.

        Args:
            path: a file that `save` wrote, of this or an earlier version.

        Raises:
            ArtifactError: the file is missing, damaged, of another kind or a newer version.
        """
        return Calibration(**files.load_fields(Path(path)))


def held_out_limit(image_bytes: int) -> int:
    """Most images that are held out, given the bytes of one image in double precision; at least 2 x CHOOSING_MOST."""
    return max(2 * CHOOSING_MOST, min(HELD_OUT_MOST, HELD_OUT_BYTES // max(1, image_bytes)))


def calibration_images(judged: int) -> int | None:
    """Images of a calibration of which `judged` images decide nothing; None if none can hold out that many."""
    held = 2 * judged if judged <= CHOOSING_MOST else judged + CHOOSING_MOST
    return None if held > HELD_OUT_MOST else held * HELD_OUT_EVERY


def sample_bytes(images: int) -> int:
    """Most bytes of a sample of this many images."""
    return LARGE_SAMPLE_BYTES if images > SAMPLE_IMAGES else SAMPLE_BYTES


def sample_limit(image_bytes: int, images: int = SAMPLE_IMAGES, total_bytes: int = SAMPLE_BYTES) -> int:
    """Most images of a sample; at least one."""
    return max(1, min(images, total_bytes // max(1, image_bytes)))
