"""Golden files: texts that a person can read, compared as a whole.

OLAC_UPDATE_GOLDEN=1 writes them anew; read the difference before you commit it.
"""

from __future__ import annotations

import os
from pathlib import Path


def check_golden(name: str, text: str) -> None:
    """Compare a text with tests/golden/NAME."""
    path = Path(__file__).parent / name
    if os.environ.get("OLAC_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"differs from {path}; OLAC_UPDATE_GOLDEN=1 writes it anew"
