"""`PolynomialActivation` is its polynomial in torch and in a program; `RangePenalty` keeps inputs within ranges."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev
from torch import Tensor, nn
from torch.nn import functional

import olac
from olac.ir.ops import Array, Polynomial
from olac.polynomials.fit import QUADRATIC, least_curvature
from olac.training.activation import FURTHEST, PolynomialActivation, RangePenalty

COEFFICIENTS = np.array([[0.2, 0.5, 0.3, -0.1], [0.0, 1.0, 0.0, 0.4]])
X = torch.linspace(-3, 3, 60).reshape(5, 2, 2, 3)


def expected(x: Tensor, coefficients: Array, half_width: float) -> Array:
    t = x.double().numpy() / half_width
    return np.stack([chebyshev.chebval(t[:, i], c) for i, c in enumerate(coefficients)], 1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("bound", [np.inf, 1e4])
def test_it_is_the_polynomial(training: bool, bound: float) -> None:
    module = PolynomialActivation(COEFFICIENTS, 2.0, bound=bound).train(training)
    np.testing.assert_allclose(module(X).detach().numpy(), expected(X, COEFFICIENTS, 2.0), rtol=1e-5, atol=1e-5)


def test_large_results_are_compressed_in_training_alone() -> None:
    module = PolynomialActivation(COEFFICIENTS, 2.0, bound=1.0)
    exact = torch.from_numpy(expected(X, COEFFICIENTS, 2.0)).float()
    far = exact.abs() > 1
    assert far.any()
    torch.testing.assert_close(module.train()(X)[far], (exact.sign() * (1 + exact.abs().log()))[far])
    torch.testing.assert_close(module.eval()(X), exact)


def test_one_row_is_for_all_channels() -> None:
    one, both = PolynomialActivation(COEFFICIENTS[:1]), PolynomialActivation(COEFFICIENTS[[0, 0]])
    torch.testing.assert_close(one(X), both(X))


def test_it_has_gradients_of_inputs_and_coefficients() -> None:
    module = PolynomialActivation(COEFFICIENTS, 2.0).double()
    x = X.double().requires_grad_()
    # In single precision, as training is: so with wide tolerances.
    module(x).square().sum().backward()
    coefficients = torch.tensor(COEFFICIENTS, requires_grad=True)
    y = X.double().requires_grad_()
    t = y / 2
    basis = torch.stack([torch.ones_like(t), t, 2 * t**2 - 1, 4 * t**3 - 3 * t], 1)
    torch.einsum("nkchw,ck->nchw", basis, coefficients).square().sum().backward()
    assert x.grad is not None and y.grad is not None and coefficients.grad is not None
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-4)
    assert module.coefficients.grad is not None
    torch.testing.assert_close(module.coefficients.grad, coefficients.grad, rtol=1e-4, atol=1e-4)


def test_copies_and_files_do_not_hold_what_the_last_pass_left() -> None:
    module = PolynomialActivation(COEFFICIENTS, 2.0).train()
    penalty = RangePenalty(module)
    module(X)
    again = copy.deepcopy(module)
    assert again.excess is None and again.watched
    assert penalty().item() > 0


def test_its_state_dict_is_all_of_it() -> None:
    module = PolynomialActivation(COEFFICIENTS, 2.0, -1.0, 3.0, bound=5.0)
    other = PolynomialActivation(np.zeros((2, 4)), 1.0, -2.0, 2.0)
    other.load_state_dict(module.state_dict())
    for training in (False, True):
        torch.testing.assert_close(other.train(training)(X), module.train(training)(X))
    torch.testing.assert_close(other.high, module.high)


def test_values_beyond_the_half_width_get_units_that_hold_them() -> None:
    torch.manual_seed(0)
    quadratic = PolynomialActivation(np.array([[0.2, 0.5, 0.25]]))
    model = nn.Sequential(nn.Linear(4, 6), quadratic, nn.Linear(6, 2))
    x = 8 * torch.randn(512, 4)
    approximated = olac.approximate(model, x.split(64))
    largest: list[float] = []
    approximated.simulate(x, lambda node, slots: largest.append(float(np.abs(slots).max())))
    assert max(largest) <= 1.5


def test_the_quadratic_of_a_rectifier_is_the_papers() -> None:
    module = PolynomialActivation.of(lambda x: np.maximum(x, 0), 2, -2.0, 2.0)
    c0, c1, c2 = QUADRATIC
    x = torch.linspace(-2, 2, 50)[:, None]
    torch.testing.assert_close(module(x), c0 + c1 * x + c2 * x**2, rtol=0, atol=0.01)


def test_a_quadratic_that_must_fold_keeps_its_curvature() -> None:
    module = PolynomialActivation(np.array([[0.0, 1.0, 1e-6], [0.0, 1.0, -1e-6]]), largest=2.0)
    curvature = module.current()[:, 2].tolist()
    assert curvature == pytest.approx([least_curvature(1.0, 2.0), -least_curvature(1.0, 2.0)])
    free = PolynomialActivation(np.array([[0.0, 1.0, 1e-6]]))
    assert free.current()[0, 2].item() == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("coefficients", "half_width", "low", "high", "message"),
    [
        ([1.0, 2.0], 1.0, None, None, "coefficients of shape"),
        ([[]], 1.0, None, None, "coefficients of shape"),
        ([[np.nan, 1.0]], 1.0, None, None, "coefficients of shape"),
        ([[0.0, 1.0]], 0.0, None, None, "half_width"),
        ([[0.0, 1.0]], np.inf, None, None, "half_width"),
        ([[0.0, 1.0]], 1.0, 2.0, 1.0, "range of a channel is empty"),
    ],
)
def test_what_it_refuses(
    coefficients: list[object], half_width: float, low: float | None, high: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PolynomialActivation(np.array(coefficients, dtype=float), half_width, low, high)


# The penalty ---------------------------------------------------------------------------------------------------------


def penalised(values: list[list[float]]) -> tuple[RangePenalty, PolynomialActivation, Tensor]:
    module = PolynomialActivation(np.array([[0.0, 1.0]]), 1.0, -1.0, 3.0)
    penalty = RangePenalty(module)
    x = torch.tensor(values, requires_grad=True)
    module.train()(x)
    return penalty, module, x


def test_nothing_inside_costs_anything() -> None:
    penalty, _, x = penalised([[-1.0, 0.0, 3.0], [2.0, 1.0, -0.5]])
    assert penalty().item() == 0.0
    del x


def test_it_is_the_exponential_of_the_excess_in_half_ranges() -> None:
    penalty, _, _ = penalised([[4.0]])  # half a half range above 3
    assert penalty().item() == pytest.approx(np.expm1(0.5))
    penalty, _, _ = penalised([[-1.5]])
    assert penalty().item() == pytest.approx(np.expm1(0.25))


def test_its_gradient_leads_back_and_grows_slowly_far_away() -> None:
    slopes = []
    for value in (3.5, 4.5, 100.0, -100.0):
        penalty, _, x = penalised([[value]])
        penalty().backward()
        assert x.grad is not None
        slopes.append(float(x.grad[0, 0]))
    near, further, far, below = slopes
    assert 0 < near < further and 0 < far < near and below < 0


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e30])
def test_it_is_finite_for_any_values(value: float) -> None:
    penalty, _, _ = penalised([[value, 0.0]])
    assert 0 < penalty().item() <= np.expm1(1) + np.log1p(FURTHEST)


def test_every_call_begins_anew_and_evaluation_adds_nothing() -> None:
    penalty, module, _ = penalised([[5.0]])
    assert penalty().item() > 0
    assert penalty().item() == 0.0
    module.eval()(torch.full((1, 1), 9.0))
    assert penalty().item() == 0.0


def test_a_model_without_polynomials_has_no_penalty() -> None:
    with pytest.raises(ValueError, match="no PolynomialActivation"):
        RangePenalty(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


# A loop of the caller's own ------------------------------------------------------------------------------------------


def test_a_plain_loop_trains_it_and_olac_takes_the_model() -> None:
    torch.manual_seed(0)
    square = PolynomialActivation.of(lambda x: np.maximum(x, 0), 2, -4.0, 4.0, channels=8)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), square, nn.Linear(8, 2))
    x = torch.randn(512, 4)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    penalty = RangePenalty(model)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        loss = functional.cross_entropy(model(x), labels) + 0.1 * penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    assert float((model(x).argmax(1) == labels).float().mean()) > 0.9

    approximated = olac.approximate(model, x.split(64))
    assert not any(isinstance(node.op, Polynomial) for node in approximated.graph.nodes), "it folds into a square"
    ours, theirs = approximated.simulate(x[:50]), model(x[:50]).detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
