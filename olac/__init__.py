"""olac compiles trained PyTorch models into CKKS programs that OpenFHE runs on encrypted inputs.

    program = olac.compile(model, calibration_loader)
    program.save("model.olac")

`import olac` loads neither torch nor openfhe: a server needs no torch, a compiler needs no openfhe.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from olac.system import forks as _forks  # before anything can fork  # noqa: F401
from olac.system import threads as _threads  # before OpenMP is loaded  # noqa: F401

__version__ = "0.2.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())

if TYPE_CHECKING:
    from olac.calibration.statistics import Calibration
    from olac.compiler import approximate, compile
    from olac.frontend import check
    from olac.frontend.exported import load_exported
    from olac.frontend.from_sklearn import from_sklearn
    from olac.frontend.joined import Joined
    from olac.options import CompileOptions
    from olac.polynomials.modes import (
        Agreement,
        Channel,
        Compensated,
        Empirical,
        FitOptions,
        Fixed,
        Minimax,
        Normal,
        Plan,
        Quadratic,
        Tolerance,
        Within,
    )
    from olac.program.client_program import ClientProgram
    from olac.program.program import ApproximatedModel, CompiledProgram
    from olac.runtime import Client, Server
    from olac.scaling.calibrations import calibrate
    from olac.serving.remote import RemoteServer
    from olac.training import PolynomialActivation, RangePenalty, TrainingOptions
    from olac.tuning import FineTuned, finetune

_MODES = (
    "Agreement",
    "Channel",
    "Compensated",
    "Empirical",
    "Fixed",
    "FitOptions",
    "Minimax",
    "Normal",
    "Plan",
    "Quadratic",
    "Tolerance",
    "Within",
)
_HOMES = {
    "compile": "olac.compiler",
    "approximate": "olac.compiler",
    "calibrate": "olac.scaling.calibrations",
    "Calibration": "olac.calibration.statistics",
    "CompileOptions": "olac.compiler",
    "check": "olac.frontend",
    "Joined": "olac.frontend.joined",
    "from_sklearn": "olac.frontend.from_sklearn",
    "load_exported": "olac.frontend.exported",
    "ApproximatedModel": "olac.program",
    "ClientProgram": "olac.program",
    "CompiledProgram": "olac.program",
    "Client": "olac.runtime",
    "Server": "olac.runtime",
    "RemoteServer": "olac.serving.remote",
    "PolynomialActivation": "olac.training",
    "RangePenalty": "olac.training",
    "TrainingOptions": "olac.training",
    "FineTuned": "olac.tuning",
    "finetune": "olac.tuning",
    **dict.fromkeys(_MODES, "olac.polynomials.modes"),
}

__all__ = [
    "Agreement",
    "ApproximatedModel",
    "Calibration",
    "Channel",
    "Client",
    "ClientProgram",
    "Compensated",
    "CompileOptions",
    "CompiledProgram",
    "Empirical",
    "FineTuned",
    "FitOptions",
    "Fixed",
    "Joined",
    "Minimax",
    "Normal",
    "Plan",
    "PolynomialActivation",
    "Quadratic",
    "RangePenalty",
    "RemoteServer",
    "Server",
    "Tolerance",
    "TrainingOptions",
    "Within",
    "__version__",
    "approximate",
    "calibrate",
    "check",
    "compile",
    "finetune",
    "from_sklearn",
    "load_exported",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'olac' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            f"olac.{name} needs torch, which is not installed: pip install 'olac[torch]'", name=error.name
        ) from error
