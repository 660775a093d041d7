"""Image sets in .npz files: `images` (uint8, n x height x width x 3) and `labels` (n)."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ENVIRONMENT = "OLAC_DATA"
TEST = "cifar10_test.npz"
TRAIN = ("cifar10_train_first10k.npz", "cifar10_train.npz")
HOW = "docs/benchmarks.md says how to get the data"


class DataError(ValueError):
    """Data that are missing or not what a benchmark needs; the message says what to do."""


@dataclass(frozen=True)
class ImageSet:
    """A file of images; only its header is read before `images` or `labels` is called."""

    path: Path
    count: int

    def images(self, first: int) -> npt.NDArray[np.uint8]:
        """The first images, (first, height, width, 3)."""
        with np.load(self.path, allow_pickle=False) as data:
            return np.asarray(data["images"][:first], dtype=np.uint8)

    def labels(self, first: int) -> npt.NDArray[np.int64]:
        """The labels of the first images, (first,)."""
        with np.load(self.path, allow_pickle=False) as data:
            return np.asarray(data["labels"][:first], dtype=np.int64)


def data_folder(given: Path | None) -> Path:
    """The folder that `--data` names, or else the environment variable."""
    folder = given or (Path(os.environ[ENVIRONMENT]) if os.environ.get(ENVIRONMENT) else None)
    if folder is None:
        raise DataError(f"no data: name a folder with --data or in the environment variable {ENVIRONMENT}; {HOW}")
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; {HOW}")
    return folder


def test_set(folder: Path, needed: int) -> ImageSet:
    """The test images, of which `needed` must be there."""
    path = folder / TEST
    if not path.is_file():
        raise DataError(f"{folder} has no {TEST}; {HOW}")
    return _enough(_opened(path), needed, "--images")


def training_set(folder: Path, needed: int) -> ImageSet:
    """The training images: the smaller file if it has enough. Both files hold the same images in the same order."""
    paths = [folder / name for name in TRAIN if (folder / name).is_file()]
    if not paths:
        raise DataError(f"{folder} has neither {TRAIN[1]} nor {TRAIN[0]}, for calibration; {HOW}")
    found = [_opened(path) for path in paths]
    return next((s for s in found if s.count >= needed), None) or _enough(found[-1], needed, "--calibration")


def _enough(images: ImageSet, needed: int, option: str) -> ImageSet:
    if needed > images.count:
        raise DataError(f"{images.path} has {images.count} images, {option} asks for {needed}")
    return images


def _opened(path: Path) -> ImageSet:
    """The image set of a file, of which only the headers are read."""
    try:
        with zipfile.ZipFile(path) as archive:
            shape, dtype = _header(archive, "images")
            labels, _ = _header(archive, "labels")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not an .npz file with `images` and `labels` ({error}); {HOW}") from error
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or labels != shape[:1]:
        raise DataError(
            f"{path} has images of {dtype} {shape} and labels {labels}, not uint8 (n, height, width, 3) and (n,); {HOW}"
        )
    return ImageSet(path, shape[0])


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    npy: Any = np.lib.format  # has no annotations
    with archive.open(f"{name}.npy") as file:
        version = npy.read_magic(file)
        shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    return shape, dtype
