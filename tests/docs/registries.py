"""What olac's registries held is put back after pages that add to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from olac.approximation.tensors import TORCH_OPS
from olac.frontend.lifter import FUNCTIONS, MODULES
from olac.frontend.tracer import LEAVES
from olac.ir.lowerings import LOWERINGS
from olac.ir.ops import OPS
from olac.kernels.execute import KERNELS, LOWERED

REGISTRIES: tuple[dict[Any, Any] | set[Any], ...] = (
    OPS,
    KERNELS,
    MODULES,
    FUNCTIONS,
    TORCH_OPS,
    LEAVES,
    LOWERINGS,
    LOWERED,
)


@contextmanager
def registries_kept() -> Iterator[None]:
    """Put back afterwards what the registries held before."""
    kept = [registry.copy() for registry in REGISTRIES]
    try:
        yield
    finally:
        for registry, before in zip(REGISTRIES, kept, strict=True):
            registry.clear()
            registry.update(before)
