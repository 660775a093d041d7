"""A fair sample of the images that are held out, if there are more of them than the limit.

Each image has a number that depends on nothing but its values, as if it were drawn at random; those with the smallest
numbers stay. So the sample of a set does not depend on the order of the images, nor on the parts in which they come:
the sample of the samples of all parts is the sample of the whole ("bottom-k sampling").
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

NUMBER_BYTES = 8


def number_of(image: npt.NDArray[np.floating]) -> int:
    """The number of an image, in single precision as it was given: uniform in 0 ... 2^64 - 1, the same each time."""
    data = np.ascontiguousarray(image, dtype="<f4")
    return int.from_bytes(
        hashlib.blake2b(data.tobytes(), digest_size=NUMBER_BYTES, person=b"olac held out").digest(), "big"
    )


def smallest(numbers: Sequence[int], most: int) -> list[int]:
    """The places of the `most` smallest numbers, the smallest first."""
    return sorted(range(len(numbers)), key=numbers.__getitem__)[:most]


def fair_sample(images: npt.NDArray[np.floating], most: int) -> list[int]:
    """The places of `most` images, in an order that depends on nothing but the images.

    All, in the order in which they are, if they are no more than that.
    """
    return list(range(len(images))) if len(images) <= most else smallest([number_of(one) for one in images], most)
