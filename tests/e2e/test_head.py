"""Last steps at the client, from the model to decrypted outputs: at default options but for the ring, and encrypted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.cli import main
from olac.errors import CalibrationError, UnsupportedModelError
from olac.report import parameter_lines

FEATURES = 6
IMAGES = torch.randn(64, FEATURES, generator=torch.Generator().manual_seed(1))


class Ends(nn.Module):
    """A linear layer, a ReLU, a linear layer and a last function."""

    def __init__(self, end: Callable[[Any], Any], outputs: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.end = nn.Linear(FEATURES, 8), nn.Linear(8, outputs), end

    def forward(self, x: Any) -> Any:
        return self.end(self.second(torch.relu(self.first(x))))


def compiled(model: nn.Module, calibration: Any = IMAGES, **choices: Any) -> olac.CompiledProgram:
    return olac.compile(model.eval(), calibration, log_ring=11, insecure=True, **choices)


def outputs(model: nn.Module, images: torch.Tensor = IMAGES) -> Any:
    with torch.no_grad():
        return model.eval()(images).numpy()


ENDS: dict[str, tuple[Callable[[Any], Any], int]] = {
    "sigmoid": (nn.Sigmoid(), 1),
    "softmax": (lambda x: (x / 2).softmax(1), 3),
    "argmax": (lambda x: x.argmax(1), 3),
    "one number": (lambda x: x.squeeze(1), 1),
    "probability": (lambda x: x.softmax(1)[:, 1], 2),
    "denormalised": (lambda x: x * torch.tensor([1.0, 20.0]) + torch.tensor([500.0, -3.0]), 2),
}


@pytest.mark.encrypted
@pytest.mark.parametrize("name", ENDS)
def test_encrypted(name: str) -> None:
    end, count = ENDS[name]
    model = Ends(end, count)
    calibration = olac.calibrate(model.eval(), IMAGES)
    program = compiled(model, calibration, batch=2)
    expected = outputs(model)
    assert program.head and program.output_shape == expected.shape[1:]
    given = IMAGES[:2].double().numpy()
    client = olac.Client(program)
    result = olac.Server(program, client.generate_keys()).run(client.encrypt(given))
    raw, simulated = client.decrypt(result, raw=True), program.simulate(given, raw=True)
    assert raw.shape == simulated.shape == (2, *program.output.type.shape)
    np.testing.assert_allclose(raw, simulated, atol=2e-3 * np.abs(simulated).max() + 1e-9)
    ours = client.decrypt(result)
    assert ours.shape == (2, *expected.shape[1:]) and ours.dtype.kind == expected.dtype.kind
    of_raw = program.head.apply(raw)  # decrypting twice gives two roundings
    np.testing.assert_allclose(ours, of_raw, atol=2e-3 * np.abs(of_raw).max())
    np.testing.assert_array_equal(program.simulate(given), program.head.apply(simulated))
    check = program.report.check
    assert check is not None
    error = np.abs(program.simulate(calibration.judged) - calibration.judged_outputs)
    if expected.dtype.kind == "i":  # the scores by which classes are chosen have errors, not the classes
        assert check.agreement == np.mean(error == 0)
    else:
        assert check.max_error == pytest.approx(error.max(), rel=1e-6)


@pytest.mark.parametrize(
    ("end", "count"),
    [
        (lambda x: x.squeeze(1), 1),
        (lambda x: x.view(-1), 1),
        (lambda x: x[:, 0], 1),
        (lambda x: (x**2).sum(1), 1),
        (lambda x: x.squeeze(1).unsqueeze(1), 1),
        (lambda x: torch.sigmoid(x.squeeze(1)), 1),
        (lambda x: x.mean(1) * 2 + 1, 3),
    ],
)
@pytest.mark.parametrize("client_head", [True, False])
def test_one_number_an_image(end: Callable[[Any], Any], count: int, client_head: bool) -> None:
    model = Ends(end, count)
    approximated = olac.approximate(model.eval(), IMAGES, client_head=client_head, degree=7)
    expected = outputs(model)
    ours = approximated.simulate(IMAGES.numpy())
    assert ours.shape == expected.shape == (64, *approximated.output_shape)
    assert np.abs(ours - expected).max() < 0.25 * np.abs(expected).max()


def test_a_last_sigmoid_takes_no_polynomial_unless_it_is_to_be_hidden() -> None:
    model = Ends(nn.Sigmoid(), 1)
    program, hidden = compiled(model), compiled(model, client_head=False)
    assert [fit.function for fit in program.report.fits] == ["relu"]
    assert [fit.function for fit in hidden.report.fits] == ["relu", "sigmoid"]
    assert program.head.names == ("sigmoid",) and not hidden.head
    np.testing.assert_array_equal(hidden.simulate(IMAGES.numpy()), hidden.simulate(IMAGES.numpy(), raw=True))
    raw = program.simulate(IMAGES.numpy(), raw=True)
    np.testing.assert_allclose(program.simulate(IMAGES.numpy()), 1 / (1 + np.exp(-raw)), rtol=1e-12)


def test_a_model_of_one_linear_layer_is_exact() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 1), nn.Sigmoid())
    program = compiled(model)
    assert not program.report.fits
    np.testing.assert_allclose(program.simulate(IMAGES.numpy()), outputs(model), atol=1e-6)


def test_one_calibration_serves_with_and_without_a_head(tmp_path: Path) -> None:
    model = Ends(nn.Sigmoid(), 2)
    calibration = olac.calibrate(model.eval(), IMAGES)
    calibration.save(tmp_path / "c.olac")
    loaded = olac.Calibration.load(tmp_path / "c.olac")
    np.testing.assert_allclose(loaded.held_out_outputs, outputs(model)[::8], atol=1e-6)
    for client_head in (True, False):
        made = olac.approximate(model, loaded, client_head=client_head)
        assert bool(made.head) == client_head
        assert made.graph == olac.approximate(model, IMAGES, client_head=client_head).graph
    scalar = Ends(lambda x: torch.sigmoid(x).argmax(1), 2)
    olac.calibrate(scalar.eval(), IMAGES).save(tmp_path / "s.olac")
    again = olac.Calibration.load(tmp_path / "s.olac")
    assert olac.approximate(scalar, again).head.names == ("sigmoid", "argmax", "reshape")
    with pytest.raises(UnsupportedModelError, match="argmax is not supported"):
        olac.approximate(scalar, again, client_head=False)


@pytest.mark.parametrize("end", [lambda x: x.argmax(1), lambda x: x.softmax(1), lambda x: x.mean(1)])
def test_a_calibration_of_other_weights_is_refused(end: Callable[[Any], Any]) -> None:
    one, other = Ends(end), Ends(end, seed=1)
    calibration = olac.calibrate(one.eval(), IMAGES)
    object.__setattr__(calibration, "fingerprint", "")
    with pytest.raises(CalibrationError, match="of another model"):
        olac.approximate(other.eval(), calibration)
    assert olac.approximate(one, calibration).head


def test_nearly_equal_scores_are_no_fault_of_the_frontend() -> None:
    class Ties(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(FEATURES, 2)
            with torch.no_grad():
                self.linear.weight[1] = self.linear.weight[0]
                self.linear.bias[1] = self.linear.bias[0] + 1e-9

        def forward(self, x: Any) -> Any:
            return (self.linear(x) * 1.1).argmax(1)

    assert olac.approximate(Ties(), IMAGES).head.decides


def test_people_are_told() -> None:
    lines = parameter_lines(compiled(Ends(lambda x: (x / 2).softmax(1))))
    (line,) = (line for line in lines if "client" in line)
    assert "times 0.5, softmax along axis 0" in line and "sees what goes into them" in line and "(3,)" in line
    assert not [line for line in parameter_lines(compiled(Ends(nn.Identity()))) if "client" in line]


@pytest.mark.encrypted
@pytest.mark.filterwarnings("ignore:.*compiled without security")
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = {n: str(tmp_path / n) for n in ("p.olac", "keys", "in.npy", "in.enc", "out.enc", "out.npy", "raw.npy")}
    secret, evaluation = (str(tmp_path / "keys" / name) for name in ("secret.key", "evaluation.keys"))
    program = compiled(Ends(lambda x: x.argmax(1)), batch=2)
    program.save(paths["p.olac"])
    given = IMAGES[:2].numpy()
    np.save(paths["in.npy"], given)
    for arguments in (
        ["info", paths["p.olac"]],
        ["keygen", paths["p.olac"], paths["keys"]],
        ["encrypt", paths["p.olac"], secret, paths["in.npy"], paths["in.enc"]],
        ["run", paths["p.olac"], evaluation, paths["in.enc"], paths["out.enc"]],
    ):
        assert main(arguments) == 0
    assert "the client computes the model's last steps" in " ".join(capsys.readouterr().out.split())
    assert main(["decrypt", paths["p.olac"], secret, paths["out.enc"], paths["out.npy"]]) == 0
    classes = np.load(paths["out.npy"])
    assert classes.dtype == np.int64
    np.testing.assert_array_equal(classes, program.simulate(given))
    *shown, last = capsys.readouterr().out.splitlines()
    assert shown == [f"class {value}" for value in classes] and last == f"written to {paths['out.npy']}, shape (2,)"
    assert main(["decrypt", "--raw", paths["p.olac"], secret, paths["out.enc"], paths["raw.npy"]]) == 0
    np.testing.assert_allclose(np.load(paths["raw.npy"]), program.simulate(given, raw=True), atol=1e-2)
    assert capsys.readouterr().out.startswith(f"class {classes[0]}: ")
    assert main(["debug", paths["p.olac"], secret, evaluation, paths["in.npy"]]) == 0
    assert "every layer is right" in capsys.readouterr().out
