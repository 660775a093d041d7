"""One small handler for each torch operation; importing this package registers them all."""

from olac.frontend.handlers import (
    activations,
    arithmetic,
    attention,
    comparisons,
    convolutions,
    moves,
    norms,
    pooling,
    products,
    recurrent,
    resampling,
    shapes,
)

__all__ = [
    "activations",
    "arithmetic",
    "attention",
    "comparisons",
    "convolutions",
    "moves",
    "norms",
    "pooling",
    "products",
    "recurrent",
    "resampling",
    "shapes",
]
