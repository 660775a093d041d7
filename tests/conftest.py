"""Settings of every process that runs tests.

`make test` runs two processes on two cores. torch and OpenFHE would start a thread for each core in both of them, and
the threads would wait for each other at barriers more than they work. So a process has one thread, unless the caller
says otherwise. Tests that are about threads set their number themselves. Both libraries read this when they are
imported, so it is set here, before any test module is.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
