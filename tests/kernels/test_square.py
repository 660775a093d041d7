from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from olac.backends.recorder import RecorderEvaluator
from olac.backends.simulator import SimulatorEvaluator
from olac.ckks.parameters import Parameters
from olac.ckks.primes import FIXED, FLEXIBLE
from olac.ir.layout import TensorLayout
from olac.ir.ops import ShapeError, Square
from olac.kernels.elementwise import SquareKernel
from olac.kernels.lanes import in_lanes


@settings(max_examples=40, deadline=None)
@given(st.booleans(), st.sampled_from([FIXED, FLEXIBLE]), st.integers(0, 2), st.booleans(), st.integers(0, 2**31))
def test_a_square_takes_one_level(per_channel: bool, technique: str, spare: int, pages: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    parameters = Parameters(10, 1 + spare, 35, 41, 1, technique, security=0)
    layout = (
        TensorLayout.dense((3, 11, 23), 512) if pages else TensorLayout.multiplexed((3, 2, 5), (4, 10), 2, 256, batch=2)
    )
    shift = random.normal(size=3 if per_channel else 1)
    x = random.uniform(-1, 1, size=(layout.batch, *layout.shape))
    evaluator = SimulatorEvaluator(parameters)
    kernel = SquareKernel(shift, layout)
    operand = tuple(evaluator.encrypt(page, 1 + spare) for page in layout.pack(x))
    result = kernel.run(in_lanes(evaluator, layout.batch), [operand])
    assert kernel.depth == 1
    expected = Square("shift").evaluate([x], {"shift": shift})
    assert np.allclose(expected, x**2 + np.broadcast_to(shift, 3)[:, None, None])
    scale = parameters.scale(1 + spare) ** 2 / parameters.primes[1 + spare]
    # All slots: those that hold no element stay zero although the shift is not.
    for part, page in zip(result, layout.pack(expected), strict=True):
        assert part.state.level == spare
        assert part.state.noise_degree == 1
        assert math.isclose(part.state.scale, scale, rel_tol=1e-12)
        assert np.allclose(evaluator.decrypt(part), page, atol=1e-9)


@pytest.mark.parametrize(("shift", "sums"), [(0.0, 0), (0.5, 1)])
def test_the_primitives_of_a_square(shift: float, sums: int) -> None:
    recorder = RecorderEvaluator(Parameters(10, 2, 35, 41, 1, security=0))
    layout = TensorLayout.dense((512,), 512)
    SquareKernel(np.array([shift]), layout).run(recorder, [(recorder.fresh(2),)])
    expected = ["multiply", "normalize", *["encode", "add_plain"] * sums]
    assert [event.primitive for event in recorder.events] == expected


def test_shapes_of_a_shift() -> None:
    op = Square("shift")
    assert op.infer([(3, 2, 2)], {"shift": np.zeros(3)}) == (3, 2, 2)
    assert op.infer([(3,)], {"shift": np.zeros(1)}) == (3,)
    with pytest.raises(ShapeError, match="shifts for 2 channels"):
        op.infer([(3, 2, 2)], {"shift": np.zeros(2)})
