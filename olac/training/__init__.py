"""Training networks of polynomial activations: modules that hold them, and the loop that improves them by labels."""

from __future__ import annotations

from olac.training.activation import PolynomialActivation, RangePenalty
from olac.training.loop import TrainingOptions

__all__ = ["PolynomialActivation", "RangePenalty", "TrainingOptions"]
