"""One small handler for each torch operation; importing this package registers them all."""

from olac.frontend.handlers import activations, arithmetic, linear, pooling, shapes

__all__ = ["activations", "arithmetic", "linear", "pooling", "shapes"]
