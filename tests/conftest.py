"""Settings of every process that runs tests.

`make test` runs two processes on two cores. torch and OpenFHE would start a thread for each core in both of them, and
the threads would wait for each other at barriers more than they work. So a process has one thread, unless the caller
says otherwise. Tests that are about threads set their number themselves. Both libraries read this when they are
imported, so it is set here, before any test module is.

What tests keep in the caches of functions (keys of many parameters, networks) is dropped when the tests that share it
have ended: when the next test is in another file, that of the file; when it is in another folder, that of the folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.caches import forget

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    yield
    if nextitem is None or nextitem.path != item.path:
        folder = nextitem is None or nextitem.path.parent != item.path.parent
        forget(item.path.parent if folder else item.path)
