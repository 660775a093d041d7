"""Several images in one ciphertext: kernels compute with the slots of one image, and every image has a lane.

Slot s of image b is slot s * images + b of the ciphertext. A rotation of the ciphertext by k * images rotates each
image by k within its own slots, so kernels run as for one image: their steps are multiplied by the number of images,
and every value that they encode is repeated for each image. Nothing else changes: a batch takes as many products and
rotations as one image with that many slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from olac.backends.base import Ciphertext, Evaluator, Plaintext, R, Slots, T


def in_lanes(evaluator: Evaluator[Any, Any], images: int) -> Evaluator[Any, Any]:
    """The evaluator as kernels see it if `images` images, a power of two, share its ciphertexts."""
    return evaluator if images == 1 else LaneEvaluator(evaluator, images)


class LaneEvaluator(Evaluator[Any, Any]):
    """Another evaluator's primitives on the slots of one image, of which a ciphertext holds several.

    Ciphertexts and plaintexts are those of the other evaluator, so values go in and out as they are.

    Args:
        inner: computes. Its rotation steps are those of ciphertexts.
        images: that share a ciphertext, a power of two.

    Attributes:
        slots: of one image.
    """

    def __init__(self, inner: Evaluator[Any, Any], images: int) -> None:
        super().__init__(inner.parameters, None)
        self._inner, self._images = inner, images
        self.slots = inner.slots // images

    def restart(self) -> None:
        """As of the other evaluator."""
        self._inner.restart()

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """As of the other evaluator."""
        return self._inner.each(function, items)

    def encode(self, values: Callable[[], Slots], level: int, scale: float) -> Plaintext[Any]:
        """Encode an image's slots, shape (slots,), for all images."""
        return self._inner.encode(lambda: np.repeat(values(), self._images), level, scale)

    def encode_unit(self, level: int) -> Plaintext[Any]:
        """As of the other evaluator, and so are all primitives that act on every slot alike."""
        return self._inner.encode_unit(level)

    def add(self, a: Ciphertext[Any], b: Ciphertext[Any]) -> Ciphertext[Any]:
        return self._inner.add(a, b)

    def add_plain(self, a: Ciphertext[Any], p: Plaintext[Any]) -> Ciphertext[Any]:
        return self._inner.add_plain(a, p)

    def add_scalar(self, a: Ciphertext[Any], value: float) -> Ciphertext[Any]:
        return self._inner.add_scalar(a, value)

    def multiply_plain(self, a: Ciphertext[Any], p: Plaintext[Any]) -> Ciphertext[Any]:
        return self._inner.multiply_plain(a, p)

    def multiply_i(self, a: Ciphertext[Any]) -> Ciphertext[Any]:
        return self._inner.multiply_i(a)

    def multiply(self, a: Ciphertext[Any], b: Ciphertext[Any]) -> Ciphertext[Any]:
        return self._inner.multiply(a, b)

    def multiply_sum(self, pairs: Sequence[tuple[Ciphertext[Any], Ciphertext[Any]]]) -> Ciphertext[Any]:
        return self._inner.multiply_sum(pairs)

    def rescale(self, a: Ciphertext[Any]) -> Ciphertext[Any]:
        return self._inner.rescale(a)

    def level_reduce(self, a: Ciphertext[Any], level: int) -> Ciphertext[Any]:
        return self._inner.level_reduce(a, level)

    def bootstrap(self, a: Ciphertext[Any]) -> Ciphertext[Any]:
        return self._inner.bootstrap(a)

    def bootstrap_all(self, values: Sequence[Ciphertext[Any]]) -> list[Ciphertext[Any]]:
        return self._inner.bootstrap_all(values)

    def add_conjugate(self, a: Ciphertext[Any]) -> Ciphertext[Any]:
        return self._inner.add_conjugate(a)

    def rotate(self, a: Ciphertext[Any], step: int) -> Ciphertext[Any]:
        """Slot i of each image of the result is slot i + step of that image of a."""
        return self._inner.rotate(a, self._apart(step))

    def rotate_hoisted(self, a: Ciphertext[Any], steps: Sequence[int]) -> Mapping[int, Ciphertext[Any]]:
        """a rotated by each step, as of the other evaluator."""
        moved = self._inner.rotate_hoisted(a, [self._apart(step) for step in steps])
        return {step // self._images: result for step, result in moved.items()}

    def rotate_sum(self, terms: Sequence[tuple[Ciphertext[Any], int]]) -> Ciphertext[Any]:
        """The sum of terms, each rotated by its step, as of the other evaluator."""
        return self._inner.rotate_sum([(a, self._apart(step)) for a, step in terms])

    def _apart(self, step: int) -> int:
        """The step of the ciphertext that moves each image by a step."""
        return step % self.slots * self._images

    # The hooks are those of the other evaluator, which calls them itself.
    _encode = _add = _add_plain = _add_scalar = _multiply_plain = _multiply = cast(Any, None)
    _rescale = _level_reduce = _bootstrap = _rotate = cast(Any, None)
