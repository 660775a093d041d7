"""A Ray cluster of two raylets on this machine, as two machines of one core each."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.scaling.two_raylets import NODE, ROOT


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """The cluster, which Ray is connected to."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install olac[ray]")
    utilities = pytest.importorskip("ray.cluster_utils")
    paths = [str(ROOT), *sys.path]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(dict.fromkeys(path for path in paths if path)))
        patch.setenv("PYTHONWARNINGS", "ignore")
        made = utilities.Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        try:
            made.add_node(**NODE)
            ray.init(address=made.address, log_to_driver=False)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()
