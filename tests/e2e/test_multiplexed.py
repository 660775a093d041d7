"""A network with MPCNN's convolutions from the model to ciphertexts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import olac
from olac.ckks.primes import FIXED, FLEXIBLE, Technique
from olac.ir.lowerings import Diagonals, Multiplexed
from olac.ir.ops import Conv2d, LinearOp
from olac.passes.choose_lowerings import Convolutions
from tests.e2e.test_networks import SLOTS, in_slots, relative
from tests.e2e.test_shifted_copies import Skip

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")


def compiled(convolutions: Convolutions, technique: Technique = FIXED) -> tuple[olac.CompiledProgram, torch.Tensor]:
    torch.manual_seed(1)
    model, images = Skip().eval(), torch.rand(32, 2, 6, 6) * 2 - 1
    program = olac.compile(
        model,
        [images],
        method="channel",
        degree=3,
        log_ring=12,
        insecure=True,
        technique=technique,
        convolutions=convolutions,
    )
    return program, images


@pytest.mark.encrypted
@pytest.mark.parametrize("technique", [FIXED, FLEXIBLE])
def test_an_encrypted_residual_network(technique: Technique) -> None:
    program, images = compiled("multiplexed", technique)
    convolutions = [node for node in program.graph.nodes if isinstance(node.op, Conv2d)]
    assert len(convolutions) == 3
    assert all(node.lowering == Multiplexed() for node in convolutions)
    assert isinstance(program.graph.nodes[-1].lowering, Diagonals)

    client = olac.Client(program)
    server = olac.Server(program, client.generate_keys())
    given = images[:1].double().numpy()
    error = np.abs(client.decrypt(server.run(client.encrypt(given))) - program.simulate(given))
    assert error.max() < 1e-3 * np.abs(program.simulate(images.double().numpy())).max()


def test_each_convolution_takes_a_level_more() -> None:
    multiplexed, diagonals = (compiled(convolutions)[0] for convolutions in ("multiplexed", "diagonals"))
    assert multiplexed.parameters.depth == diagonals.parameters.depth + 3
    last = multiplexed.output.type.state
    assert last is not None and last.level == 0
    assert compiled("auto")[0].fingerprint == diagonals.fingerprint
    linear = [node for node in diagonals.graph.nodes if isinstance(node.op, LinearOp)]
    assert all(isinstance(node.lowering, Diagonals) for node in linear)


def test_batches_are_multiplexed_as_well() -> None:
    torch.manual_seed(1)
    model, images = Skip().eval(), torch.rand(32, 2, 6, 6) * 2 - 1
    program = olac.compile(
        model, [images], method="channel", degree=3, log_ring=12, insecure=True, batch=4, convolutions="multiplexed"
    )
    assert program.batch == 4
    alone = compiled("multiplexed")[0]
    kinds = [[type(node.lowering) for node in one.graph.nodes] for one in (program, alone)]
    assert kinds[0] == kinds[1] and program.parameters.depth == alone.parameters.depth
    given = images[:4].double().numpy()
    assert relative(in_slots(program, given), program.simulate(given)) < SLOTS


def test_the_option_is_checked() -> None:
    with pytest.raises(ValueError, match="'fastest' is not one of auto, diagonals, multiplexed"):
        olac.CompileOptions(convolutions="fastest")
