from __future__ import annotations

from pathlib import Path

import pytest

from tests.backends.vector.example import Example


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Example:
    return Example(tmp_path, monkeypatch)
