"""What is said of a chosen program: in its report, and while it is compiled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from olac.analysis.estimate import Sizes
from olac.analysis.rotation_keys import KeyChoice, memory_line
from olac.ckks.engines import EngineModel
from olac.ir.graph import Graph, Node
from olac.ir.ops import Array, Bootstrap
from olac.ir.states import WIDEST
from olac.pages.text import duration
from olac.selection.job import Job
from olac.selection.price import Candidate
from olac.system.memory import GB, total_bytes
from olac.system.shapes import one_of

NAMED_BOOTSTRAPS = 3
NOTED_IMAGES = 256
"""Number of images on which the slots that enter bootstraps are looked at."""


def notes(job: Job, chosen: Candidate) -> tuple[str, ...]:
    """Notes of the report."""
    return (
        *(("NOT SECURE: the security check was waived",) if job.options.insecure else ()),
        *bootstrap_notes(chosen.graph, job.calibration.judged[:NOTED_IMAGES]),
        *paging_notes(chosen.keys, job.terms.max_memory),
        *memory_notes(_served(chosen, job.engine), total_bytes()),
    )


def say_memory(job: Job, chosen: Candidate) -> None:
    """Tell what a server will take if there is no limit of memory: the server need not be this machine."""
    if job.terms.max_memory is None:
        memory = _server_memory(_served(chosen, job.engine))
        job.say(f"a server will take {memory} (this machine has {total_bytes() / GB:.1f} GB); max_memory sets a limit")


def summary(job: Job, chosen: Candidate) -> str:
    """What was made, in a few words."""
    return (
        f"{job.engine.title}, ring 2^{chosen.parameters.log_ring}; predicted: {chosen.server_bytes / GB:.1f} GB for a "
        f"server, {duration(chosen.seconds)} {one_of(chosen.graph.inputs[0].type.shape)}"
    )


def _served(chosen: Candidate, engine: EngineModel) -> Sizes:
    """Of a server that keeps encoded weights if such a program ever does, even if this one was chosen without them."""
    return replace(chosen.keys.sizes, keeps_plaintexts=engine.bootstraps(chosen.parameters).keeps_plaintexts)


def _server_memory(size: Sizes) -> str:
    least = size.least_server_bytes
    without = "" if size.server_bytes == least else f", or {least / GB:.2f} GB if it keeps no encoded weights"
    return f"{size.server_bytes / GB:.2f} GB of memory{without}"


def memory_notes(size: Sizes, machine_bytes: float) -> tuple[str, ...]:
    """A note if a server takes more memory than the machine on which the program is compiled has."""
    if size.server_bytes <= machine_bytes:
        return ()
    return (
        f"a server takes {_server_memory(size)}; this machine has {machine_bytes / GB:.1f} GB. A server that has less "
        "keeps fewer encoded weights, and reads keys when they are needed; compile with max_memory to plan for that",
    )


def paging_notes(keys: KeyChoice, max_memory: float | None) -> tuple[str, ...]:
    """What a server has to do to stay within the memory that was asked for."""
    if max_memory is None or keys.held == keys.pool:
        return ()
    return (f"within max_memory = {memory_line(keys, max_memory)}",)


def bootstrap_notes(graph: Graph, images: Array) -> tuple[str, ...]:
    """A note if images that no fit has seen leave [-1, 1] at bootstraps, the furthest first."""
    entering = {node.inputs[0]: node.id for node in graph.nodes if isinstance(node.op, Bootstrap)}
    largest: dict[str, float] = {}

    def observe(node: Node, value: Array) -> None:
        if node.id in entering:
            largest[entering[node.id]] = float(np.max(np.abs(value)))

    if entering:
        graph.evaluate(images, observe)
    beyond = sorted(((size, name) for name, size in largest.items() if size > WIDEST), reverse=True)
    if not beyond:
        return ()
    named = ", ".join(f"{size:.3g} at {name}" for size, name in beyond[:NAMED_BOOTSTRAPS])
    more = f" and {len(beyond) - NAMED_BOOTSTRAPS} more" if len(beyond) > NAMED_BOOTSTRAPS else ""
    return (
        f"on {len(images)} unseen calibration inputs slots leave [-1, 1] at {len(beyond)} of {len(largest)} bootstraps "
        f"({named}{more}), which lose precision there: calibrate with more inputs",
    )
