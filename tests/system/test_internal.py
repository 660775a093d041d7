"""Unexpected errors: each names the step, the node and what to report, and is one of olac's own."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.errors import CalibrationError, InfeasibleError, VerificationError
from olac.ir.ops import Linear
from olac.passes.pipeline import lowering_pipeline
from olac.system.internal import guard
from olac.system.memory import memory_for

Fault = Callable[..., Any]


def assertion(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError


def singular(*args: Any, **kwargs: Any) -> Any:
    return np.linalg.inv(np.zeros((2, 2)))


def missing(*args: Any, **kwargs: Any) -> Any:
    nothing: dict[str, int] = {}
    return nothing["missing"]


def outside(*args: Any, **kwargs: Any) -> Any:
    return [][3]


def division(*args: Any, **kwargs: Any) -> Any:
    return 1 / 0


def shapes(*args: Any, **kwargs: Any) -> Any:
    return torch.zeros(2) + torch.zeros(3)


def memory(*args: Any, **kwargs: Any) -> Any:
    return bytearray(1 << 60)


FAULTS = [assertion, singular, missing, outside, division, shapes]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.act(self.first(x)))
        return out


def compiled(**choices: Any) -> olac.CompiledProgram:
    torch.manual_seed(0)
    return olac.compile(Net(), [torch.rand(40, 3)], insecure=True, log_ring=11, **choices)


OF = "test_internal.py"
PLACES = [
    ("olac.approximation.sweep", "_fit", f"pass fit_activations failed at node act (activation, from act, {OF}"),
    ("olac.passes.normalize_units", "sharing_units", "pass normalize_units failed"),
    ("olac.passes.assign_layouts", "_best", f"pass assign_layouts failed at node first (linear, from first, {OF}"),
    ("olac.selection.job", "OutputNoise", "lowering the program failed"),
    ("olac.compiler", "_structure_error", "approximating the model failed"),
    ("olac.calibration.collect", "fingerprint", "calibrating failed"),
    ("olac.frontend.trace", "_drop_dead", "tracing the model failed"),
    ("olac.frontend.lift", "_lift_node", f"lifting the model failed at the operation first (from first, {OF}"),
]


@pytest.mark.parametrize(("module", "name", "text"), PLACES, ids=[name for _, name, _ in PLACES])
def test_a_fault_names_step_and_node(module: str, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    __import__(module)
    for fault in (assertion, missing):
        monkeypatch.setattr(sys.modules[module], name, fault)
        with pytest.raises(VerificationError) as error:
            compiled()
        first, *rest = str(error.value).splitlines()
        assert first.startswith(text)
        assert {assertion: "AssertionError (", missing: "KeyError: 'missing' ("}[fault] in first
        assert len(rest) == 1
        assert "report this message" in rest[0]
        assert f"olac {olac.__version__}, torch {torch.__version__}" in rest[0]
        assert error.value.__cause__ is not None


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_simulation_names_the_node(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    program = compiled()
    monkeypatch.setattr(Linear, "evaluate", fault)
    with pytest.raises(VerificationError, match=r"^simulating failed at node first .*\w+Error.*\(.*:\d+: .*\)\n"):
        program.simulate(np.zeros((1, 3)))


def test_a_fault_in_a_lifting_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["olac.frontend.lift"].MODULES, nn.ReLU, outside)
    with pytest.raises(VerificationError, match=r"^lifting the model failed at the operation act .*IndexError"):
        olac.check(Net(), torch.rand(2, 3))


def test_too_little_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("olac.approximation.sweep._fit", memory)
    text = "pass fit_activations takes more memory than this process gets at node act"
    with pytest.raises(InfeasibleError, match=text):
        compiled()
    for error in (RuntimeError("can't start new thread"), OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))):
        for context in (guard("fitting"), memory_for("fitting")):
            with pytest.raises(InfeasibleError, match=r"^fitting"), context:
                raise error
    with pytest.raises(OSError, match="No space"), memory_for("fitting"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("images", [1, 20])  # when it is tried first, and when it is calibrated
def test_too_little_memory_for_the_model_is_no_fault_of_the_model(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = nn.ReLU.forward

    def forward(self: nn.ReLU, x: torch.Tensor) -> torch.Tensor:
        return usual(self, x) if len(x) < images else torch.zeros(1 << 58)

    monkeypatch.setattr(nn.ReLU, "forward", forward)
    with pytest.raises(InfeasibleError, match=r"(tracing the model|calibrating) takes more memory"):
        compiled()


def test_too_little_memory_for_a_copy_of_the_model() -> None:
    class Large(nn.Module):
        def __deepcopy__(self, memo: object) -> nn.Module:
            raise MemoryError

    with pytest.raises(InfeasibleError, match="tracing the model takes more memory"):
        olac.compile(Large(), [torch.rand(40, 3)])


def test_a_broken_invariant_says_what_to_report() -> None:
    assert "an invariant of the compiler is broken\nThis is a bug in olac" in str(VerificationError())
    with pytest.raises(VerificationError, match=r"^somewhere failed: AssertionError"), guard("somewhere"):
        raise AssertionError


def picky(x: torch.Tensor) -> torch.Tensor:
    """Fails far from 0, as functions with lookup tables do."""
    assert x.abs().max() < 1e3
    return torch.div(x, 1 + x * x)


def test_a_function_of_the_caller_that_fails_is_named() -> None:
    class Picky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return picky(999 * x)

    with pytest.raises(CalibrationError, match=r"the function picky fails on values from \S+ to \S+: AssertionError"):
        olac.compile(Picky(), [torch.rand(40, 3)], activations={picky: None})


def test_faults_of_the_caller_pass_as_they_are() -> None:
    def loader() -> Iterator[torch.Tensor]:
        yield torch.rand(40, 3)
        raise KeyError("the caller's own")

    for call in (
        lambda: olac.compile(Net(), loader()),
        lambda: compiled(progress=missing),
        lambda: compiled(dump=missing, dump_after=("all",)),
        lambda: compiled().simulate(np.zeros((1, 3)), missing),
    ):
        with pytest.raises(KeyError):
            call()
    with pytest.raises(TypeError, match=r"a torch\.nn\.Module is compiled"):
        olac.compile(3, [torch.rand(40, 3)])
    with pytest.raises(ValueError, match="does not chain"):
        compiled(lowering=lowering_pipeline()[::-1])
