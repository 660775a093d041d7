"""Runs and calibrations on many processes and machines, by Ray (`pip install olac[ray]`), or one after the other here.

See docs/scaling.md. `olac.scaling.serving` serves many clients; it needs Ray Serve (`pip install "ray[serve]"`).
"""

from olac.scaling.batches import run_batches
from olac.scaling.calibrations import calibrate_parts

__all__ = ["calibrate_parts", "run_batches"]
