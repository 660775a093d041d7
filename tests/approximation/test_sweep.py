"""The sweep compared with brute force: its regressions, its re-fitted weights, and what they improve."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev
from torch import Tensor, nn

from olac.approximation.common import MOST_CONTRAST, WORST, mirrored, output_error, stressed
from olac.approximation.sweep import MOST_UNKNOWNS, sweep
from olac.ir.functions import activation
from olac.ir.graph import Graph
from olac.ir.ops import Activation, Add, Array, Conv2d, Linear, Polynomial
from olac.ir.types import Stage
from olac.polynomials.fit import CHANNEL_RIDGE, FLOOR_POINTS, centred
from olac.polynomials.modes import Compensated
from tests.approximation.nets import activations, error, folded, from_histograms, images, residual, values

TRAIN, HELD, UNSEEN = images(200, 1), images(60, 2), images(120, 3)
PLAIN = Compensated(refit=False)


def uniform(graph: Graph, degree: int) -> dict[str, int]:
    return dict.fromkeys(activations(graph), degree)


def test_a_high_degree_leaves_a_small_error() -> None:
    graph = residual(act=nn.functional.gelu)
    made = {d: sweep(graph, TRAIN, HELD, uniform(graph, d), PLAIN) for d in (3, 7, 15, 23)}
    errors = [one.error for one in made.values()]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 < 2e-2 < errors[0]
    swept = made[7]
    assert swept.graph.stage == Stage.POLYNOMIAL and not activations(swept.graph)
    given = HELD.double().numpy()
    assert np.allclose(swept.outputs.numpy(), swept.graph.evaluate(given), atol=1e-4)
    assert np.allclose(swept.clean.numpy(), graph.evaluate(given), atol=1e-4)
    change = (swept.graph.evaluate(given) - graph.evaluate(given)) ** 2
    each = np.minimum(change.mean(1) / graph.evaluate(given).var(), WORST)
    assert swept.error == pytest.approx(each.mean(), rel=1e-3)


def test_activations_without_a_degree_are_left() -> None:
    graph = residual(1)
    first, *others = activations(graph)
    made = sweep(graph, TRAIN, HELD, {first: 3}, Compensated()).graph
    assert made.stage == Stage.TRACED
    assert activations(made) == others
    assert isinstance(made[first].op, Polynomial)
    assert [n.id for n in made.nodes] == [n.id for n in graph.nodes]


def test_two_sweeps_are_the_same() -> None:
    graph = residual(1)
    first, second = (sweep(graph, TRAIN[:80], HELD, uniform(graph, 3), Compensated()) for _ in range(2))
    assert first.graph == second.graph and first.error == second.error


def test_progress_and_probes() -> None:
    graph = residual(1)
    lines: list[str] = []
    made = sweep(graph, TRAIN[:64], HELD, uniform(graph, 3), PLAIN, probes=(2, 7), progress=lines.append)
    assert lines[-1] == "fitting polynomials: 3 of 3" and len(lines) == 3
    for row in made.effects.values():
        assert list(row) == [2, 3, 7]
        assert row[7] < row[2]
    bare = sweep(graph, TRAIN[:64], HELD, uniform(graph, 3), PLAIN)
    assert bare.graph == made.graph, "probes change nothing"
    first = activations(graph)[0]
    alone = sweep(graph, TRAIN[:64], HELD, {first: 3}, PLAIN)
    # The rest is clean. The error is the least one, even if safer tails within 3 % of it were chosen.
    assert alone.error / 1.031 <= made.effects[first][3] <= alone.error * 1.001


# Activations ----------------------------------------------------------------------------------------------------------


def regression(x: Array, y: Array, name: str, half_width: float, degree: int, floor: float, padding: float) -> Array:
    """Coefficients by channel of the clean y on the disturbed x, with a floor of the function, by dense systems."""
    low, high = x.min(axis=(0, 2, 3)), x.max(axis=(0, 2, 3))
    middle, half = centred(low, high, degree)
    rows = []
    for c in range(x.shape[1]):
        spread = np.linspace(middle[c] - padding * half[c], middle[c] + padding * half[c], FLOOR_POINTS)
        points = np.append(x[:, c].ravel(), spread)
        target = np.append(y[:, c].ravel(), activation(name)(spread))
        weights = np.append(
            np.full(x[:, c].size, (1 - floor) / x[:, c].size), np.full(FLOOR_POINTS, floor / FLOOR_POINTS)
        )
        basis = chebyshev.chebvander(points / half_width, degree) * np.sqrt(weights)[:, None]
        basis = np.vstack([basis, np.sqrt(CHANNEL_RIDGE) * np.eye(degree + 1)])
        right = np.append(target * np.sqrt(weights), np.zeros(degree + 1))
        rows.append(np.linalg.lstsq(basis, right, rcond=None)[0])
    return np.array(rows)


@pytest.mark.parametrize("degree", [1, 3, 5, 7])
@pytest.mark.parametrize("act", [torch.relu, torch.tanh])
def test_polynomials_regress_the_clean_output_on_the_disturbed_input(degree: int, act: object) -> None:
    name = "relu" if act is torch.relu else "tanh"
    module = nn.ReLU() if name == "relu" else nn.Tanh()
    torch.manual_seed(2)
    parts = (nn.Conv2d(3, 4, 3), module, nn.Conv2d(4, 4, 3, groups=2), module, nn.Flatten(), nn.Linear(64, 3))
    graph = folded(nn.Sequential(*parts), TRAIN[:2])
    first, second = activations(graph)
    options = Compensated(refit=False, floor=1e-3, padding=1.3)
    made = sweep(graph, TRAIN, HELD, {first: 2, second: degree}, options).graph
    clean, disturbed = values(graph, TRAIN), values(made, TRAIN)
    assert not np.allclose(clean[graph[second].inputs[0]], disturbed[graph[second].inputs[0]], atol=0.01)
    op = made[second].op
    assert isinstance(op, Polynomial)
    x, y = disturbed[graph[second].inputs[0]], clean[second]
    wanted = regression(x, y, name, op.half_width, degree, 1e-3, 1.3)
    found = made.constants[op.coefficients]
    for c in range(4):
        ours, theirs = (chebyshev.chebval(x[:, c] / op.half_width, row[c]) for row in (found, wanted))
        assert np.abs(ours - theirs).max() < 2e-3 * np.abs(y).max()
        # No other polynomial is closer, the function's own fit to the clean input included.
        own = regression(clean[graph[second].inputs[0]], y, name, op.half_width, degree, 1e-3, 1.3)[c]
        other = chebyshev.chebval(x[:, c] / op.half_width, own)
        assert np.mean((ours - y[:, c]) ** 2) < 1.05 * np.mean((other - y[:, c]) ** 2)


def test_making_up_for_errors_beats_fits_from_histograms() -> None:
    for seed in (0, 1):
        graph = residual(seed=seed)
        for degree in (2, 3):
            apart = error(graph, from_histograms(graph, TRAIN, uniform(graph, degree)), UNSEEN)
            swept = sweep(graph, TRAIN, HELD, uniform(graph, degree), Compensated()).graph
            assert error(graph, swept, UNSEEN) < 0.8 * apart


def test_tails_are_chosen_by_the_held_out_images() -> None:
    graph = residual(1)
    chosen = sweep(graph, TRAIN, HELD, uniform(graph, 5), PLAIN)
    fixed = sweep(graph, TRAIN, HELD, uniform(graph, 5), PLAIN, choose=False)
    wide = sweep(graph, TRAIN, HELD, uniform(graph, 5), Compensated(refit=False, floor=0.3, padding=3.0))
    assert chosen.error < wide.error and chosen.error < 1.1 * fixed.error
    ops = [one.graph[activations(graph)[0]].op for one in (chosen, wide)]
    assert isinstance(ops[0], Polynomial) and isinstance(ops[1], Polynomial)
    assert ops[1].half_width > 1.15 * ops[0].half_width


# Linear layers --------------------------------------------------------------------------------------------------------


def unfolded(x: Array, op: Conv2d, kernel: tuple[int, int]) -> Array:
    """(groups, positions, columns) of a convolution, by loops."""
    top, bottom, left, right = op.padding
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    height = (x.shape[2] - op.dilation[0] * (kernel[0] - 1) - 1) // op.stride[0] + 1
    width = (x.shape[3] - op.dilation[1] * (kernel[1] - 1) - 1) // op.stride[1] + 1
    rows: list[list[Array]] = [[] for _ in range(op.groups)]
    per = x.shape[1] // op.groups
    for image in x:
        for i in range(height):
            for j in range(width):
                top, left = i * op.stride[0], j * op.stride[1]
                window = image[
                    :,
                    top : top + op.dilation[0] * kernel[0] : op.dilation[0],
                    left : left + op.dilation[1] * kernel[1] : op.dilation[1],
                ]
                for g in range(op.groups):
                    rows[g].append(window[g * per : (g + 1) * per].ravel())
    return np.array(rows)


def ridge_regression(u: Array, y: Array, trained: Array, ridge: float) -> tuple[Array, Array]:
    """Weights and bias of least mean square error plus ridge x mean variance x |change of weights|^2, densely."""
    u_mean, y_mean = u.mean(0), y.mean(0)
    centred_u = u - u_mean
    size = float((centred_u**2).mean())
    rows = np.vstack([centred_u / np.sqrt(len(u)), np.sqrt(ridge * size) * np.eye(u.shape[1])])
    residual_y = (y - y_mean - centred_u @ trained.T) / np.sqrt(len(u))
    step = np.linalg.lstsq(rows, np.vstack([residual_y, np.zeros((u.shape[1], y.shape[1]))]), rcond=None)[0].T
    return trained + step, y_mean - (trained + step) @ u_mean


@pytest.mark.parametrize("ridge", [1e-3, 0.3])
@pytest.mark.parametrize(
    "conv",
    [
        lambda: nn.Conv2d(4, 6, 3, padding=1),
        lambda: nn.Conv2d(4, 6, 3, stride=2, bias=False),
        lambda: nn.Conv2d(4, 6, (2, 3), stride=(1, 2), padding=(1, 0), groups=2),
        lambda: nn.Conv2d(4, 8, 3, groups=4, padding=2, dilation=2),
    ],
)
def test_convolutions_are_refitted_by_ridge_regression(conv: object, ridge: float) -> None:
    torch.manual_seed(4)
    layer: nn.Module = conv()  # type: ignore[operator]
    x = TRAIN[:60]
    graph = folded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), layer, nn.ReLU()), x[:2])
    first, second = activations(graph)
    node = graph[graph[second].inputs[0]]
    made = sweep(graph, x, HELD, {first: 2, second: 7}, Compensated(ridge=ridge), choose=False).graph
    before, after = node.op, made[node.id].op
    assert isinstance(before, Conv2d) and isinstance(after, Conv2d) and after.bias is not None
    weight, bias = made.constants[after.weight], made.constants[after.bias]
    trained = graph.constants[before.weight]
    assert not np.allclose(weight, trained, atol=1e-3)
    untouched = graph["m0"].op
    assert isinstance(untouched, Conv2d) and made["m0"].op == untouched, "nothing is off before"
    u = unfolded(values(made, x)[first], before, (trained.shape[2], trained.shape[3]))
    y = values(graph, x)[node.id]
    per = len(trained) // before.groups
    for g in range(before.groups):
        rows = slice(g * per, (g + 1) * per)
        target = y[:, rows].transpose(0, 2, 3, 1).reshape(-1, per)
        w, b = ridge_regression(u[g], target, trained[rows].reshape(per, -1), ridge)
        assert np.allclose(weight[rows].reshape(per, -1), w, atol=2e-4 * np.abs(w).max())
        assert np.allclose(bias[rows], b, atol=2e-4 * max(1.0, np.abs(b).max()))


def test_linear_layers_are_refitted_by_ridge_regression() -> None:
    torch.manual_seed(5)
    graph = folded(nn.Sequential(nn.Flatten(), nn.Linear(27, 9), nn.ReLU(), nn.Linear(9, 4)), images(2, 1, (3, 3, 3)))
    (name,) = activations(graph)
    x = images(150, 6, (3, 3, 3))
    made = sweep(graph, x, images(40, 7, (3, 3, 3)), {name: 3}, Compensated(ridge=0.05), choose=False).graph
    (node,) = [n for n in made.nodes if isinstance(n.op, Linear) and n.inputs == (name,)]
    before, after = graph[node.id].op, node.op
    assert isinstance(before, Linear) and isinstance(after, Linear) and after.bias is not None
    w, b = ridge_regression(values(made, x)[name], values(graph, x)[node.id], graph.constants[before.weight], 0.05)
    assert np.allclose(made.constants[after.weight], w, atol=1e-4)
    assert np.allclose(made.constants[after.bias], b, atol=1e-4)


def test_what_the_shortcut_is_off_is_made_up_for() -> None:
    graph = residual(1)
    first, inner, last = activations(graph)
    total = graph[graph[last].inputs[0]]
    assert isinstance(total.op, Add)
    (conv,) = [i for i in total.inputs if isinstance(graph[i].op, Conv2d)]
    x = TRAIN[:50]
    made = sweep(graph, x, HELD, {first: 2, inner: 2, last: 7}, Compensated(ridge=1e-3), choose=False).graph
    clean, ours = values(graph, x), values(made, x)
    before, after = graph[conv].op, made[conv].op
    assert isinstance(before, Conv2d) and isinstance(after, Conv2d) and after.bias is not None
    trained = graph.constants[before.weight]
    u = unfolded(ours[inner], before, (3, 3))[0]
    size = {}
    for name, target in (("whole", clean[total.id] - ours[first]), ("branch", clean[conv])):
        w, b = ridge_regression(u, target.transpose(0, 2, 3, 1).reshape(-1, 8), trained.reshape(8, -1), 1e-3)
        if name == "whole":
            assert np.allclose(made.constants[after.weight].reshape(8, -1), w, atol=1e-3 * np.abs(w).max())
            assert np.allclose(made.constants[after.bias], b, atol=1e-3 * np.abs(b).max())
        else:
            assert not np.allclose(made.constants[after.weight].reshape(8, -1), w, atol=0.01 * np.abs(w).max())
        given = (u @ w.T + b).reshape(len(x), 8, 8, 8).transpose(0, 3, 1, 2) + ours[first]
        size[name] = float(np.mean((given - clean[total.id]) ** 2))
    assert size["whole"] < size["branch"]
    assert np.mean((ours[total.id] - clean[total.id]) ** 2) == pytest.approx(size["whole"], rel=1e-2)


def test_re_fitted_weights_gain_on_images_not_seen() -> None:
    graph = residual()
    with_weights, without = (
        error(graph, sweep(graph, TRAIN, HELD, uniform(graph, 3), options).graph, UNSEEN)
        for options in (Compensated(), PLAIN)
    )
    assert with_weights < 0.8 * without


def test_without_refit_the_weights_stay() -> None:
    graph = residual(1)
    made = sweep(graph, TRAIN[:64], HELD, uniform(graph, 3), PLAIN).graph
    for node in graph.nodes:
        if not isinstance(node.op, Activation):
            assert made[node.id].op == node.op
            assert all(np.array_equal(made.constants[n], graph.constants[n]) for n in node.op.constant_names())


def test_large_layers_keep_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = residual(1)
    assert MOST_UNKNOWNS > 4608, "3 x 3 convolutions of 512 channels are re-fitted"
    monkeypatch.setattr("olac.approximation.sweep.MOST_UNKNOWNS", 71)
    made = sweep(graph, TRAIN[:64], HELD, uniform(graph, 3), Compensated(ridge=1e-3), choose=False).graph
    convs = [n.id for n in graph.nodes if isinstance(n.op, Conv2d)]
    assert all(made[i].op == graph[i].op for i in convs)
    monkeypatch.setattr("olac.approximation.sweep.MOST_UNKNOWNS", 72)
    made = sweep(graph, TRAIN[:64], HELD, uniform(graph, 3), Compensated(ridge=1e-3), choose=False).graph
    assert [made[i].op == graph[i].op for i in convs] == [True, False, False]


# Measurements --------------------------------------------------------------------------------------------------------


def test_errors_of_outputs_by_hand() -> None:
    clean = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    assert output_error(clean, clean) == 0
    off = clean + torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    assert output_error(off, clean) == pytest.approx((1.0 + 2.0) / 2 / 5)
    off[1] = float("inf")
    assert output_error(off, clean) == pytest.approx((1 / 5 + WORST) / 2)
    off[0] = float("nan")
    assert output_error(off, clean) == WORST


def test_every_second_picture_is_mirrored() -> None:
    pictures = torch.arange(2.0 * 3 * 4 * 200).reshape(200, 2, 3, 4)
    made = mirrored(pictures, torch.Generator().manual_seed(0))
    turned = [torch.equal(a, b.flip(2)) for a, b in zip(made, pictures, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(made, pictures, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True)) and 70 < sum(turned) < 130
    rows = torch.rand(5, 7)
    assert mirrored(rows, torch.Generator().manual_seed(0)) is rows


def test_stressed_images_have_more_contrast() -> None:
    def contrast(x: Tensor) -> Tensor:
        return (x - x.mean((1, 2, 3), keepdim=True)).square().mean((1, 2, 3)).sqrt()

    ratio = contrast(stressed(TRAIN, torch.Generator().manual_seed(0))) / contrast(TRAIN)
    assert float(ratio.mean()) > 1.2 and float(ratio.max()) < 1 + 2 * (MOST_CONTRAST - 1)
    few = stressed(TRAIN, torch.Generator().manual_seed(0), 0.25)
    same = (few - TRAIN).flatten(1).abs().amax(1) < 1e-5
    assert 0.6 < float(same.double().mean()) < 0.9
    assert torch.equal(few, stressed(TRAIN, torch.Generator().manual_seed(0), 0.25))
