"""A residual network that runs out of levels: model to answer, with bootstraps, through files and another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.analysis.noise import OutputNoise
from olac.backends.simulator import SimulatorEvaluator
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.ir.ops import Bootstrap
from olac.kernels.execute import execute
from olac.passes.base import PassContext, PassManager
from olac.passes.pipeline import lowering_pipeline
from olac.program.program import CompiledProgram
from olac.runtime import commands
from tests.networks import cubic_blocks, key_steps

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]

ROOT = Path(__file__).resolve().parents[2]
LOG_SLOTS = 8
"""Of the 2^10 slots bootstraps work on those after which the widest values repeat."""
ERROR = 2.0**-8
"""Of the logits, relative to the largest."""
SERVER = """
import json, sys
from olac.runtime import commands

nodes = []
commands.run("program.olac", "evaluation.keys", "x.enc", "y.enc", progress=lambda p: nodes.append((p.node, p.level)))
print(json.dumps({"torch": "torch" in sys.modules, "nodes": nodes}))
"""


class Block(nn.Module):
    """conv-BN-ReLU-conv-BN around a skip connection."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        stride = out // channels
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(channels, out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


def residual_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), Block(4, 4), Block(4, 8), Block(8, 8), nn.AdaptiveAvgPool2d(1)
    )
    return nn.Sequential(net, nn.Flatten(), nn.Linear(8, 5)).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(128, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def program(images: torch.Tensor) -> CompiledProgram:
    setup = Bootstrapping(5, log_slots=LOG_SLOTS)
    parameters = Parameters(11, setup.depth, 42, 49, 3, FLEXIBLE, 0, setup)
    return olac.compile(
        residual_net(), [images], method="channel", degree=3, parameters=parameters, insecure=True, threads=1
    )


def test_files_and_another_process(program: CompiledProgram, images: torch.Tensor, tmp_path: Path) -> None:
    layouts = [node.type.layout for node in program.graph.nodes if isinstance(node.op, Bootstrap)]
    assert layouts and all(layout is not None and layout.repeats_after <= 1 << LOG_SLOTS for layout in layouts)
    program.save(tmp_path / "program.olac")
    x = images[:1].double().numpy()
    np.save(tmp_path / "x.npy", x)
    secret, evaluation = commands.keygen(tmp_path / "program.olac", tmp_path)
    assert evaluation.name == "evaluation.keys"
    commands.encrypt(tmp_path / "program.olac", secret, tmp_path / "x.npy", tmp_path / "x.enc")
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", SERVER],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    levels = [[node.id, node.type.state.level] for node in program.graph.nodes if node.type.state]
    assert json.loads(done.stdout) == {"torch": False, "nodes": levels}
    answer = commands.decrypt(tmp_path / "program.olac", secret, tmp_path / "y.enc", tmp_path / "y.npy")
    expected = program.simulate(x)
    assert np.max(np.abs(answer - expected)) < ERROR * np.max(np.abs(expected))


def test_simulated_slots_with_the_precision_of_bootstraps(program: CompiledProgram, images: torch.Tensor) -> None:
    """Every slot is that of the reference, and close to it with bootstraps of 10 bits."""
    x = images[:1].double().numpy()
    type_, out = program.input.type, program.output.type
    assert type_.layout is not None and type_.state is not None and out.layout is not None
    level, layout = type_.state.level, type_.layout
    expected = program.simulate(x)
    errors = []
    for bits in (None, 10.0):
        simulator = SimulatorEvaluator(program.parameters, program.rotations, bootstrap_bits=bits)
        value = tuple(simulator.encrypt(page, level) for page in layout.pack(x / type_.unit))
        (result,) = execute(program.graph, program.kernels, simulator, {program.input.id: value})
        slots = np.array([simulator.decrypt(part) for part in result])
        answer = out.layout.unpack(slots) * out.unit
        errors.append(float(np.max(np.abs(answer.reshape(expected.shape) - expected))) / np.max(np.abs(expected)))
    assert errors[0] < 1e-9 < errors[1] < 0.1


@pytest.mark.parametrize(("budget", "scale_bits", "first_bits"), [((5, 3), 40, 47), ((4, 4), 45, 53)])
def test_other_budgets_and_scales_keep_the_simulated_precision(
    budget: tuple[int, int], scale_bits: int, first_bits: int
) -> None:
    setup = Bootstrapping(4, budget, first_bits - scale_bits)
    parameters = Parameters(11, setup.depth, scale_bits, first_bits, 3, FLEXIBLE, 0, setup)
    graph, calibration, given = cubic_blocks(7)
    context = PassContext(calibration=calibration, parameters=parameters)
    lowered = PassManager(lowering_pipeline()).run(graph, context)
    program = CompiledProgram(lowered, parameters, key_steps(lowered, parameters))
    assert sum(isinstance(node.op, Bootstrap) for node in lowered.nodes) > 4
    client = olac.Client(program)
    server = olac.Server(program, client.generate_keys())
    ours = client.decrypt(server.run(client.encrypt(given[:1])))
    expected = program.simulate(given)
    error = np.abs(ours - expected[:1]).max() / np.abs(expected).max()
    assert 0 < error < OutputNoise(graph, calibration).of_program(lowered, parameters) < 0.01
