"""The order of the passes, in one place."""

from __future__ import annotations

from olac.passes.assign_layouts import AssignLayouts
from olac.passes.assign_levels import AssignLevels
from olac.passes.base import Pass
from olac.passes.choose_lowerings import AUTO, ChooseLowerings, Convolutions, Copies, Halving
from olac.passes.compose_linear import ComposeLinear
from olac.passes.expand_max_pool import ExpandMaxPool, WidenMaxPool
from olac.passes.fit_activations import FitActivations
from olac.passes.fold_affine import FoldAffine
from olac.passes.fold_squares import FoldSquares
from olac.passes.join_models import JoinModels
from olac.passes.normalize_units import NormalizeUnits
from olac.passes.place_bootstraps import PlaceBootstraps
from olac.passes.scale_inputs import ScaleInputs
from olac.passes.split_concatenations import SplitConcatenations
from olac.passes.trim_kernels import TrimKernels
from olac.polynomials.modes import FitOptions, Minimax


def approximation_pipeline(options: FitOptions | None = None, ensemble: bool = False) -> tuple[Pass, ...]:
    """TRACED to POLYNOMIAL: from a lifted model, or an ensemble of models, to the polynomials of its program."""
    chosen = options or FitOptions()
    method = chosen.fitting
    return (
        ExpandMaxPool(method.alpha) if isinstance(method, Minimax) else ExpandMaxPool(),
        TrimKernels(),
        FoldAffine(),
        FitActivations(method, chosen.choice),
        WidenMaxPool(),
        FoldSquares(),
        *((JoinModels(),) if ensemble else ()),
        SplitConcatenations(),
        ComposeLinear(),
        ScaleInputs(),
        NormalizeUnits(),
    )


def lowering_pipeline(
    copies: Copies = "auto", halving: Halving = "auto", convolutions: Convolutions = "auto"
) -> tuple[Pass, ...]:
    """POLYNOMIAL to LEVELLED: how ciphertexts of given parameters compute it; see `ChooseLowerings` for arguments."""
    return (
        AssignLayouts() if convolutions == AUTO else AssignLayouts(convolutions),
        ChooseLowerings(copies, halving, convolutions),
        PlaceBootstraps(),
        AssignLevels(),
    )
