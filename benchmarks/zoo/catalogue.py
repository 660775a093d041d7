"""All cases of `python -m benchmarks models`."""

from __future__ import annotations

from benchmarks.zoo import nets_images, nets_sequences, nets_tables, networks, ops

CASES = (*ops.CASES, *nets_tables.CASES, *nets_sequences.CASES, *nets_images.CASES, *networks.CASES)
"""Single operations, small nets, networks, in the order of the document."""
