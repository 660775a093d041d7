"""The demo at full security: one encrypted network, end to end, and what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from olac.demo import REQUIRED_ACCURACY

KEYS = {
    "images",
    "plain_accuracy",
    "encrypted_accuracy",
    "agreement",
    "max_abs_error",
    "max_model_error",
    "seconds_per_image",
    "keygen_seconds",
    "compile_seconds",
    "total_seconds",
    "predicted_seconds",
    "predicted_gb",
    "peak_rss_gb",
    "key_bytes",
    "security_bits",
    "ring_dimension",
    "log_qp",
}


@pytest.mark.encrypted
def test_demo(tmp_path: Path) -> None:
    # In a process of its own, as the peak of memory is that of a process.
    code = "import pathlib, sys; from olac.demo import run_demo; run_demo(pathlib.Path(sys.argv[1]), images=2)"
    where = str(tmp_path / "new" / "demo.json")
    environment = os.environ | {"COLUMNS": "150"}
    done = subprocess.run([sys.executable, "-c", code, where], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    report = json.loads((tmp_path / "new" / "demo.json").read_text())
    assert set(report) == KEYS
    assert report["images"] == 2
    assert report["plain_accuracy"] >= REQUIRED_ACCURACY
    assert report["agreement"] == 1.0
    assert 0 < report["max_abs_error"] <= 0.05
    assert report["security_bits"] >= 128
    assert report["log_qp"] <= {8192: 214, 16384: 430, 32768: 868}[report["ring_dimension"]]
    assert report["peak_rss_gb"] < 4
    for word in ("relu1", "conv2d", "predicted", "measured", "bit security", "agree with PyTorch"):
        assert word in text
