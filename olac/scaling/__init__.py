"""Runs and calibrations on many processes and machines, by Ray (`pip install olac[ray]`), or one after the other here.

See docs/scaling.md. `olac.scaling.serving` serves many clients; it needs Ray Serve (`pip install "ray[serve]"`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from olac.scaling.batches import run_batches

if TYPE_CHECKING:
    from olac.scaling.calibrations import calibrate_parts

__all__ = ["calibrate_parts", "run_batches"]


def __getattr__(name: str) -> Any:
    """`calibrate_parts` takes torch, which machines that run programs need not have."""
    if name != "calibrate_parts":
        raise AttributeError(f"module 'olac.scaling' has no attribute {name!r}")
    from olac.scaling.calibrations import calibrate_parts

    return calibrate_parts
