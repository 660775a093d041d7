"""Several inputs, several outputs, inputs that are constants, and what `check` says of them."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.errors import CalibrationError, UnsupportedModelError
from olac.frontend import Joined, check, lift, trace

Pair = collections.namedtuple("Pair", ["scores", "picture"])


class Net(nn.Module):
    """An image, a row of a table and a mask; scores and a small picture."""

    def __init__(self, output: Callable[[Any, Any], Any] = Pair) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.row = nn.Conv2d(1, 2, 3), nn.Linear(5, 32)
        self.scores, self.picture, self.output = nn.Linear(32, 3), nn.Linear(32, 4), output

    def forward(self, image: Any, row: Any = None, mask: Any = None) -> Any:
        hidden = self.conv(image).flatten(1)
        if row is not None:
            hidden = torch.relu(hidden + self.row(row))
        if mask is not None:
            hidden = hidden * mask
        return self.output(self.scores(hidden), self.picture(hidden).reshape(-1, 1, 2, 2))


def inputs(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 6, 6, generator=random), torch.randn(count, 5, generator=random)


MASK = torch.arange(32) % 3 / 2.0


def close(got: Any, expected: torch.Tensor) -> bool:
    return bool(np.allclose(got, expected.detach().numpy(), atol=1e-5)) and got.shape == tuple(expected.shape)


def test_several_inputs_and_outputs() -> None:
    model, (image, row) = Net(), inputs()
    for example in ((image, row), {"row": row, "image": image}):
        joined = Joined(model, example)
        assert sorted(joined.input_names) == ["image", "row"] and joined.output_names == ("scores", "picture")
        x = joined.join(image=image, row=row)
        assert x.shape == (40, 41)
        outputs = joined.split(lift(trace(joined, x)).evaluate(x.double().numpy()))
        expected = model(image, row)
        assert isinstance(outputs, Pair)
        assert close(outputs.scores, expected.scores) and close(outputs.picture, expected.picture)
        one = joined.split(joined(x)[0])
        assert one.scores.shape == (3,) and one.picture.shape == (1, 2, 2)
    assert torch.equal(Joined(model, (image, row)).join(image, row), Joined(model, (image, row)).join(image, row=row))


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (lambda a, b: (a, b), ("0", "1")),
        (lambda a, b: [b, a], ("0", "1")),
        (lambda a, b: {"a": a, "none": None, "b": b}, ("a", "b")),
    ],
)
def test_structures_of_outputs(output: Callable[[Any, Any], Any], names: tuple[str, ...]) -> None:
    model, (image, _) = Net(output), inputs()
    joined = Joined(model, image)
    assert joined.output_names == names and joined.join(image) is image
    outputs = joined.split(lift(trace(joined, image)).evaluate(image.double().numpy()))
    expected = model(image)
    assert type(outputs) is type(expected)
    places = outputs if isinstance(outputs, dict) else range(2)
    assert all(close(outputs[place], expected[place]) for place in places)


def test_one_output_stays_as_it_is() -> None:
    model, (image, row) = Net(lambda scores, picture: scores), inputs()
    joined = Joined(model, (image, row))
    got = lift(trace(joined, joined.join(image, row))).evaluate(joined.join(image, row).double().numpy())
    assert joined.split(got) is got and close(got, model(image, row))


def test_a_compiled_model_of_several_inputs() -> None:
    model, (image, row) = Net(), inputs(300)
    joined = Joined(model, (image, row), {"mask": MASK})
    x = joined.join(image, row)
    program = olac.compile(joined, x, degree=3, insecure=True, log_ring=12)
    outputs, expected = joined.split(program.simulate(x.numpy())), model(image, row, MASK)
    assert np.corrcoef(outputs.scores.reshape(-1), expected.scores.detach().reshape(-1))[0, 1] > 0.95
    assert program.report.check is not None and program.report.check.structure_error < 1e-5


def test_wrong_inputs() -> None:
    image, row = inputs()
    joined = Joined(Net(), (image, row))
    with pytest.raises(TypeError, match="the inputs are image, row"):
        joined.join(image)
    with pytest.raises(TypeError, match="the inputs are image, row"):
        joined.join(image, row, image=image)
    with pytest.raises(ValueError, match=r"row has shape \(40, 4\), expected \(40, \*\(5,\)\)"):
        joined.join(image, row[:, 1:])
    with pytest.raises(ValueError, match="expected 7 numbers"):
        joined.split(np.zeros((3, 6)))
    with pytest.raises(ValueError, match="batches of 40, 39"):
        Joined(Net(), (image, row[1:]))
    with pytest.raises(TypeError, match="example is a float"):
        Joined(Net(), 3.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the model gives str"):
        Joined(Net(lambda a, b: {"a": "text"}), image)
    with pytest.raises(ValueError, match="output b has shape"):
        Joined(Net(lambda a, b: {"a": a, "b": a.sum(0)}), image)


def test_a_model_in_training_stays_so() -> None:
    model = Net().train()
    Joined(model, inputs())
    assert model.training


# Constants -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [MASK, MASK.double().numpy(), MASK.reshape(1, -1)])
def test_inputs_that_are_constants(mask: Any) -> None:
    model, (image, row) = Net(lambda scores, picture: scores), inputs()
    graph = lift(trace(model, image, constants={"mask": mask}))
    assert close(graph.evaluate(image.double().numpy()), model(image, None, MASK))
    graph = lift(trace(model, row, constants={"image": image[:1], "mask": mask}))
    expected = model(image[:1], row, MASK)
    assert close(graph.evaluate(row.double().numpy()), expected)


def test_constants_of_compile_calibrate_and_check() -> None:
    model, (image, _) = Net(lambda scores, picture: scores), inputs(60)
    constants = {"mask": MASK}
    assert not check(model, image, constants=constants)
    a = olac.approximate(model, image, constants=constants)
    b = olac.approximate(model, olac.calibrate(model, image, constants=constants), constants=constants)
    assert np.allclose(a.simulate(image.numpy()), model(image, None, MASK).detach(), atol=1e-4) and a.graph == b.graph


def test_wrong_constants() -> None:
    model, (image, _) = Net(), inputs()
    with pytest.raises(ValueError, match="names masks; forward takes image, row, mask"):
        check(model, image, constants={"masks": MASK})
    with pytest.raises(ValueError, match="names all arguments"):
        check(model, image, constants={"image": image, "row": None, "mask": MASK})


# check ---------------------------------------------------------------------------------------------------------------


class Bessel(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.special.bessel_j0(x)


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.odd = Bessel()

    def forward(self, a: Any, b: Any) -> Any:
        return torch.nextafter(self.odd(a).flatten(1)[:, :5], b)


def test_check_lists_all_places_of_a_model_of_several_inputs() -> None:
    found = check(Many(), inputs())
    assert "2 inputs" in found[0].problem and "olac.Joined" in found[0].advice
    assert [node.path for node in found] == ["", "odd", ""] and "nextafter" in found[2].problem
    (alone,) = check(Many(), inputs()[0])
    assert "takes 2 inputs (a, b)" in alone.problem and "constants=" in alone.advice


def test_check_of_one_input_by_name_or_in_a_tuple() -> None:
    model, (image, _) = Net(lambda scores, picture: scores), inputs()
    assert not check(model, (image,)) and not check(model, [image]) and not check(model, {"image": image})


def test_check_takes_activations_of_a_model_of_several_inputs() -> None:
    assert [node.path for node in check(Many(), inputs(), {"odd": None})] == ["", ""]
    assert [node.path for node in check(Many(), inputs(), {Bessel: None})] == ["", ""]


def test_check_of_models_that_fail() -> None:
    with pytest.raises(CalibrationError, match="fails on the example"):
        check(Many(), (inputs()[0], inputs()[1][:, :3]))
    found = check(Net(lambda a, b: "text"), inputs())
    assert "the model gives" in found[-1].problem


COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": torch.eq,
    "gt": torch.gt,
    "lt": lambda x, y: x < y,
    "ge": lambda x, y: (x >= y).float(),
    "any": lambda x, y: (x == y).any(1),
    "masked": lambda x, y: x * (x > y),
}


class Compares(nn.Module):
    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any, y: Any) -> Any:
        return self.function(x, y)


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3), (4, 1, 3, 3), (1, 3)])
def test_check_of_comparisons(name: str, shape: tuple[int, ...]) -> None:
    model, x = Compares(COMPARISONS[name]), torch.randn(shape)
    try:
        model(x, x)
    except IndexError:
        return  # there is no axis 1
    integers = check(model, x.int(), constants={"y": 0.5})
    assert ("inputs of type torch.int32" if x.ndim > 1 else "not supported") in integers[0].problem
    for found in (
        check(model, (x, x.flip(0))),
        check(model, x, constants={"y": 0.5}),
        check(model, x, constants={"y": x[:1]}),
        check(model, (x.int(), x.int())),
    ):
        assert all(node.problem and node.advice for node in found)


@pytest.mark.parametrize("make", [lambda x: x.to_sparse(), lambda x: torch.nested.nested_tensor([x[0], x[1]])])
def test_check_of_tensors_that_are_not_dense(make: Callable[[Any], Any]) -> None:
    class Makes(nn.Module):
        def forward(self, x: Any) -> Any:
            return make(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check(Makes(), torch.rand(2, 4))
    assert any("sparse" in node.problem or "can't be traced" in node.problem for node in found)


class Warns(nn.Module):
    def forward(self, x: Any) -> Any:
        warnings.warn("of the model", stacklevel=1)
        return torch.nextafter(x, x)


def test_check_prints_and_warns_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert check(Warns(), inputs()[0])
    assert not caught and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("example", [torch.tensor([0.5, 1.0]), torch.tensor(1.0), torch.zeros(0, 3)])
def test_check_of_examples_that_compile_cannot_take(example: torch.Tensor) -> None:
    (node,) = check(nn.ReLU(), example)
    assert "an example has shape" in node.problem and "(n, features)" in node.advice


def test_several_outputs_are_refused_with_the_way_to_compile_them() -> None:
    with pytest.raises(UnsupportedModelError, match=r"olac\.Joined"):
        olac.approximate(Net(), inputs()[0])


def test_a_comparison_of_two_inputs() -> None:
    """Its results are truth values in torch, and 0 or 1 in a program."""

    class Larger(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a > b

    a, b = torch.randn(8, 3), torch.randn(8, 3)
    joined = olac.Joined(Larger(), (a, b))
    assert olac.check(joined, joined.join(a, b)) == []
    assert torch.equal(joined(joined.join(a, b)), (a > b).float())


def test_several_outputs_are_named_with_what_to_write_instead() -> None:
    layer = nn.Linear(4, 2)

    class Several(nn.Module):
        def __init__(self, kind: type) -> None:
            super().__init__()
            self.layer, self.kind = layer, kind

        def forward(self, x: torch.Tensor) -> Any:
            y = self.layer(x)
            return {"last_hidden_state": y, "pooler_output": 2 * y} if self.kind is dict else (y, 2 * y)

    (node,) = check(Several(dict), torch.rand(3, 4))
    assert node.problem == "forward returns a dict of 2 values (last_hidden_state, pooler_output)"
    assert "model(x)['last_hidden_state'], or olac.Joined(model, example)" in node.advice
    (node,) = check(Several(tuple), torch.rand(3, 4))
    assert node.problem == "forward returns a tuple of 2 values" and "model(x)[0]" in node.advice
