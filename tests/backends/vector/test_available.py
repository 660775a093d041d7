from __future__ import annotations

import pkgutil
from typing import Any

import pytest

from olac.backends.session import PlaintextCache, available_engine, find_engine
from olac.backends.vector import available, compiled
from olac.backends.vector.keyset import VectorKeys
from olac.ckks.parameters import Parameters
from olac.ckks.primes import FIXED
from olac.cli import main
from olac.errors import BackendError
from tests.backends.vector.example import NAME, Example

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def only_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pkgutil, "walk_packages", lambda path, prefix: [])


def counted(example: Example, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A new process; the list gets the name of each known answer that is computed there."""
    example.fresh()
    ran: list[str] = []

    def counting(answer: compiled.Answer) -> compiled.Answer:
        def right() -> bool:
            ran.append(answer.right.__name__)
            return answer.right()

        return compiled.Answer(answer.kernels, right)

    monkeypatch.setattr(compiled, "ANSWERS", [counting(answer) for answer in compiled.ANSWERS])
    return ran


BOTH = ["sums_are_right", "products_are_right"]


def quiet(what: str, done: int, total: int) -> None:
    pass


def test_answers_are_checked_once_for_what_is_compiled(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = counted(example, monkeypatch)
    assert available.why_unavailable(quiet) == ""
    assert ran == BOTH and compiled.store().compiled == 5
    assert available.why_unavailable(quiet) == "" and ran == BOTH  # once in a process
    ran = counted(example, monkeypatch)
    assert available.why_unavailable(quiet) == ""
    assert ran == [] and compiled.store().compiled == 0  # and once for what is on disk


def test_answers_are_checked_again_for_a_kernel_that_is_compiled_again(
    example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    available_here = counted(example, monkeypatch)
    available.prepare(quiet)
    example.files()[0].unlink()
    for made in compiled.KERNELS.values():
        assert made is not None
    # Another process compiles it, and ends before it has checked any answer.
    counted(example, monkeypatch)
    for made in compiled.KERNELS.values():
        made.ready()
    example.files()[1].unlink()
    ran = counted(example, monkeypatch)
    available.prepare(quiet)
    assert ran == BOTH and available_here == BOTH
    ran = counted(example, monkeypatch)
    available.prepare(quiet)
    assert ran == []


def test_a_damaged_record_of_answers(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    counted(example, monkeypatch)
    available.prepare(quiet)
    compiled.store().files.path(available.ANSWERS).write_bytes(b"?")
    ran = counted(example, monkeypatch)
    available.prepare(quiet)
    assert ran == BOTH


def test_a_wrong_answer(example: Example) -> None:
    example.edit("a == 13.0", "a == 14.0")
    example.fresh()
    reason = available.why_unavailable(quiet)
    assert reason == f"its kernels {NAME}.total, {NAME}.scale, {NAME}.twice give wrong results on this machine"
    with pytest.raises(BackendError, match="vector engine is not available: its kernels"):
        available.prepare(quiet)
    example.fresh()
    assert available.why_unavailable(quiet) == reason  # it is not remembered as right


def test_an_answer_that_fails(example: Example) -> None:
    example.edit("return bool(np.all(out", "raise ValueError('no')\n    return bool(np.all(out")
    example.fresh()
    assert available.why_unavailable(quiet).endswith("give wrong results on this machine (ValueError: no)")


def test_a_kernel_that_cannot_be_compiled(example: Example) -> None:
    example.edit("    s = 0.0\n", "    s = a.no_such_thing\n")
    example.fresh()
    assert "its kernels can't be compiled: TypingError" in available.why_unavailable(quiet)


def test_progress(example: Example) -> None:
    example.fresh()
    told: list[tuple[str, int, int]] = []
    available.prepare(lambda *what: told.append(what))
    assert [what for what, _, _ in told if what.startswith("compiling kernel ")] == [
        f"compiling kernel example.{name}" for name in ("products", "products", "total", "scale", "twice")
    ]
    assert told[0] == ("loading kernels", 0, 4) and told[-1] == ("checking known answers", 4, 4)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[1] == (f"compiling kernels for {compiled.store().purpose()}", 0, 4)
    example.fresh()
    told.clear()
    available.prepare(lambda *what: told.append(what))
    assert told == [("loading kernels", done, 4) for done in range(4)]


def test_the_command_line(example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    example.fresh()
    assert main(["warm-up"]) == 0
    shown = capsys.readouterr()
    assert "compiling kernels for numba" in shown.err and "compiling kernel example.total\n" in shown.err
    assert "the vector engine is ready (" in shown.out
    example.fresh()
    assert main(["warm-up"]) == 0
    assert capsys.readouterr().err == "loading kernels\n"
    example.edit("a == 13.0", "a == 14.0")
    example.fresh()
    assert main(["warm-up"]) == 1
    assert "give wrong results on this machine" in capsys.readouterr().err


def test_the_engine_that_is_not_available(example: Example) -> None:
    example.edit("a == 13.0", "a == 14.0")
    example.fresh()
    parameters = Parameters(10, 2, 37, 50, 2, FIXED, security=0)
    with pytest.warns(UserWarning, match="OpenFHE is used, as the vector engine can't be: its kernels .* wrong"):
        assert available_engine("vector", parameters, quiet) is find_engine("openfhe")
    engine, nothing = find_engine("vector"), PlaintextCache(0)
    keys = VectorKeys(parameters, "")
    for use in (
        lambda: engine.client(parameters, "id"),
        lambda: engine.install_keys(parameters, {}, None, lambda place: iter(())),
        lambda: engine.server(parameters, keys, {}, nothing),
    ):
        with pytest.raises(BackendError, match="vector engine is not available: its kernels"):
            use()
    example.edit("a == 14.0", "a == 13.0")
    example.fresh()
    assert available_engine("vector", parameters, quiet) is engine
    openfhe = find_engine("openfhe")
    assert available_engine("openfhe", parameters) is openfhe and not openfhe.unavailable()


def test_without_progress_a_line_says_what_takes_so_long(example: Example) -> None:
    example.fresh()
    with pytest.warns(UserWarning, match=r"compiled for numba .* once for each user.*olac warm-up") as caught:
        available.prepare()
    assert len(caught) == 1
    example.fresh()
    available.prepare()  # nothing to say


@pytest.mark.parametrize(
    ("triple", "features", "reason"),
    [
        ("x86_64-unknown-linux-gnu", "+avx2,+fma,+sse2", ""),
        ("x86_64-unknown-linux-gnu", "+avx,-fma,+sse2", "no fused multiply-add"),
        ("x86_64-unknown-linux-gnu", "+fma4", "no fused multiply-add"),
        ("x86_64-apple-darwin", "", "no fused multiply-add"),
        ("aarch64-unknown-linux-gnu", "", ""),
        ("arm64-apple-darwin", "", ""),
        ("powerpc64le-unknown-linux-gnu", "+vsx", "never tried"),
    ],
)
def test_cpus(example: Example, monkeypatch: pytest.MonkeyPatch, triple: str, features: str, reason: str) -> None:
    example.fresh()
    changed: dict[str, Any] = {"triple": triple, "features": features}
    monkeypatch.setattr(compiled.store(), "environment", {**compiled.store().environment, **changed})
    found = available.obstacle()
    assert reason in found if reason else found == ""
    if reason:
        assert available.why_unavailable() == found and not compiled.store().compiled
