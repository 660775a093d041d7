"""The order of the passes, in one place."""

from __future__ import annotations

from olac.passes.assign_layouts import AssignLayouts
from olac.passes.assign_levels import AssignLevels
from olac.passes.base import Pass
from olac.passes.choose_lowerings import ChooseLowerings
from olac.passes.compose_linear import ComposeLinear
from olac.passes.expand_max_pool import ExpandMaxPool
from olac.passes.fit_activations import FitActivations
from olac.passes.fold_affine import FoldAffine
from olac.passes.normalize_units import NormalizeUnits
from olac.passes.replace_by_minimax import ReplaceByMinimax
from olac.polynomials.fit import FitOptions


def approximation_pipeline(options: FitOptions | None = None) -> tuple[Pass, ...]:
    """TRACED to POLYNOMIAL: what the program computes."""
    chosen = options or FitOptions()
    return (
        ExpandMaxPool(padding=chosen.padding),
        FoldAffine(),
        ComposeLinear(),
        FitActivations(chosen),
        NormalizeUnits(),
    )


def minimax_pipeline(alpha: int = 8, padding: float = 1.3) -> tuple[Pass, ...]:
    """TRACED to POLYNOMIAL with ReLU and max-pooling to a precision of alpha bits; see `ReplaceByMinimax`."""
    return (
        ExpandMaxPool(alpha, padding),
        FoldAffine(),
        ComposeLinear(),
        ReplaceByMinimax(alpha, padding),
        NormalizeUnits(),
    )


def lowering_pipeline() -> tuple[Pass, ...]:
    """POLYNOMIAL to LEVELLED: how it is computed on ciphertexts of given parameters."""
    return (AssignLayouts(), ChooseLowerings(), AssignLevels())
