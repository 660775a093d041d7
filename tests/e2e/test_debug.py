"""Networks with bootstraps from PyTorch: what compiling says of their ranges, and what `olac debug` finds in a run."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.ir.ops import Bootstrap
from olac.program.program import CompiledProgram
from olac.runtime.debug import debug, first_fault
from olac.selection.lower import lower
from olac.selection.notes import bootstrap_notes
from tests.runtime.small_program import deep_program

REST = 8
OPTIONS = olac.CompileOptions(
    parameters=Parameters(11, 16 + REST, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(REST)), insecure=True, threads=1
)


class Residual(nn.Module):
    """Blocks of x + relu(linear(x)) / 2, so that what is out of range stays so."""

    def __init__(self, blocks: int = 9) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + torch.relu(layer(x)) / 2
        return x


@cache
def compiled() -> tuple[CompiledProgram, CompiledProgram, torch.Tensor]:
    """The program, the same lowered with held-out images three times as large, and the images."""
    torch.manual_seed(0)
    model = Residual().eval()
    images = torch.rand(128, 8) * 2 - 1
    options = replace(OPTIONS, fit=replace(OPTIONS.fit, method="channel", degree=3))
    calibration = olac.calibrate(model, [images])
    approximated = olac.approximate(model, calibration, options)
    wide = replace(calibration, held_out=3 * calibration.held_out)
    return lower(approximated, calibration, options), lower(approximated, wide, options), images


@pytest.mark.filterwarnings("ignore:.*compiled without security")
def test_compiling_notes_what_leaves_the_range_at_bootstraps() -> None:
    program, wide, _ = compiled()
    bootstraps = [node.id for node in program.graph.nodes if isinstance(node.op, Bootstrap)]
    assert bootstraps
    assert not any("bootstraps" in note for note in program.report.notes)
    (note,) = (note for note in wide.report.notes if "bootstraps" in note)
    assert f"leave [-1, 1] at {len(bootstraps)} of {len(bootstraps)} bootstraps" in note
    assert bootstraps[0] in note and note.endswith("calibrate with more inputs")


def test_notes_name_the_furthest_first() -> None:
    graph = deep_program(blocks=6, gain=3.0).graph
    (note,) = bootstrap_notes(graph, np.ones((2, 8)))
    assert note.startswith(
        "on 2 unseen calibration inputs slots leave [-1, 1] at 5 of 5 bootstraps (565 at sum4_boot, 455 at sum3_boot, "
    )
    assert " and 2 more)" in note
    assert bootstrap_notes(deep_program(blocks=1, gain=3.0).graph, np.ones((2, 8))) == ()


@pytest.mark.encrypted
@pytest.mark.filterwarnings("ignore:.*compiled without security", "ignore:the images hold values")
def test_debug_names_a_bootstrap_only_where_the_image_is_to_blame() -> None:
    program, _, images = compiled()
    client = olac.Client(program)
    server = olac.Server(program, client.generate_keys())
    rows = debug(client, server, images[0].numpy())
    assert first_fault(rows) is None
    assert min(row.bits for row in rows) > 5
    fault = first_fault(debug(client, server, 3 * images[0].numpy()))
    assert fault is not None and fault.layer.endswith("_boot")
    assert fault.advice.startswith("The inputs themselves lie outside")
