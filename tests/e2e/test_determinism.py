"""The same model, images, options and machine give the same file, byte for byte."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import olac
from tests.e2e.test_strategies import Residual

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")

SMALL: dict[str, Any] = {"log_ring": 11, "insecure": True, "precision": 1e-2, "threads": 2}


def pooled() -> nn.Module:
    parts = [nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3), nn.Sigmoid()]
    return nn.Sequential(*parts)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "defaults": (pooled, {}),
    "plan within levels": (Residual, {**SMALL, "max_depth": 4, "reconstruct": 3}),
    "OLA's degrees": (Residual, {**SMALL, "method": "normal", "degrees": "ola", "max_depth": 9}),
    "OLA's degrees of numbers": (pooled, {**SMALL, "degrees": "ola", "max_depth": 9, "reconstruct": 0}),
    "vector engine": (pooled, {**SMALL, "engine": "vector"}),
    "bootstraps": (Residual, {"degree": 7, "method": "channel", "max_bootstraps": 2, "threads": 2}),
}


def images() -> Tensor:
    return torch.randn(96, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def compiled(case: str, **more: Any) -> olac.CompiledProgram:
    make, options = CASES[case]
    torch.manual_seed(0)
    model = make().eval()
    torch.manual_seed(1 + len(os.environ.get("PYTHONHASHSEED", "")))  # results must not depend on the global seed
    return olac.compile(model, [images()], **{**options, **more})


def write(path: str) -> None:
    """All cases, one after the other, into files of one folder."""
    for number, case in enumerate(CASES):
        compiled(case).save(Path(path) / str(number))


def test_files_are_the_same_in_any_process(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("here", "again", "4711")]
    for folder in folders:
        folder.mkdir()
        if folder.name.isdigit():
            command = [sys.executable, "-W", "ignore", "-c", f"from {__name__} import write; write({str(folder)!r})"]
            subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": folder.name})
        else:
            write(str(folder))
    for number, case in enumerate(CASES):
        first, *others = ((folder / str(number)).read_bytes() for folder in folders)
        assert all(other == first for other in others), case


def test_another_seed_gives_another_program() -> None:
    first, other = (compiled("plan within levels", seed=seed) for seed in (0, 1))
    assert first.fingerprint != other.fingerprint
    for seed in (-1, 1.5):
        with pytest.raises(ValueError, match=f"seed {seed} is not a whole number"):
            compiled("plan within levels", seed=seed)


def test_nobody_elses_random_numbers_are_touched() -> None:
    def states() -> tuple[bytes, bytes, object]:
        return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), random.getstate()  # type: ignore[index]

    make, options = CASES["plan within levels"]
    model = make().eval()
    before = states()
    olac.compile(model, [images()], **options)
    assert states() == before
