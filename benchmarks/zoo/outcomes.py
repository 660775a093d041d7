"""What a row of `python -m benchmarks models` can say of a model."""

from __future__ import annotations

RIGHT, WRONG, REFUSED, UNCLEAR = "right", "wrong", "refused", "refused unclearly"
CRASH, ABSENT, SLOW, MEMORY = "crash", "package missing", "out of time", "out of memory"
OUTCOMES = (RIGHT, WRONG, REFUSED, UNCLEAR, CRASH, ABSENT, SLOW, MEMORY)
"""Lifted and equal to torch; lifted and different; refused with every place named; refused by a message that passes on
another library's error; an exception that is no refusal; not measured for want of its package, time or memory."""
CLOSE = 1e-4
"""Largest difference from torch, relative to the largest output."""
DEGREE = 3
"""Of the polynomials that replace activations."""
OPS, NETS, ZOO = "ops", "nets", "zoo"
"""The kinds of models: modules of one operation, small nets of our own, networks of torchvision and timm."""
KINDS = (OPS, NETS, ZOO)
AS_GIVEN = "as given"
