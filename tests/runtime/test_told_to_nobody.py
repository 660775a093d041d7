"""What is shared of results is rounded if asked, and no error or warning holds a value of an input, output or key."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olac.cli import main
from olac.errors import InputError, OlacError
from olac.runtime import Client, EncryptedResult, Server
from tests.runtime.engines import engine as engine
from tests.runtime.small_program import SHAPE, images, small_program

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]

MARK = 7.390625
"""What must not be told; no message has its digits, or those of its multiples, for another reason."""


class Parties:
    """A client and a server of a small program."""

    def __init__(self) -> None:
        self.program = small_program()
        self.client = Client(self.program)
        self.server = Server(self.program, self.client.generate_keys())
        self.result = self.server.run(self.client.encrypt(images()))


@pytest.fixture(scope="module")
def parties(engine: str) -> Parties:
    return Parties()


def test_shared_outputs_are_rounded(parties: Parties) -> None:
    exact = parties.client.decrypt(parties.result)
    np.testing.assert_array_equal(parties.client.decrypt(parties.result, decimals=1), np.round(exact, 1))
    coarse = parties.client.decrypt(parties.result, decimals=-2)
    assert not coarse.any() and not np.signbit(coarse).any()
    assert np.abs(exact - np.round(exact, 1)).max() > 1e-3


@pytest.mark.parametrize("decimals", [16, -16, 1.0, True, "1"])
def test_decimals_that_make_no_sense_are_refused(parties: Parties, decimals: Any) -> None:
    with pytest.raises(InputError, match="give a whole number from -15 to 15"):
        parties.client.decrypt(parties.result, decimals=decimals)


def test_the_command_writes_and_prints_rounded_outputs(
    parties: Parties, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(tmp_path / name) for name in ("p.olac", "secret.key", "result.enc", "out.npy")]
    parties.program.save(names[0])
    parties.client.save_secret_key(names[1])
    parties.result.save(names[2])
    assert main(["decrypt", *names, "--decimals", "1"]) == 0
    wanted = parties.client.decrypt(parties.result, decimals=1)
    np.testing.assert_array_equal(np.load(names[3]), wanted)
    printed = capsys.readouterr().out.splitlines()[0].split(":")[1].split()
    assert printed == [f"{value:.1f}" for value in wanted[0]]


def told(action: Callable[[], object]) -> str:
    """All that an action says in warnings and in its error, with the errors that it says it came from."""
    text = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            action()
        except OlacError as error:
            chain: BaseException | None = error
            while chain is not None:
                text += traceback.format_exception_only(type(chain), chain)
                chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    return "\n".join(text + [str(one.message) for one in seen])


def test_messages_hold_no_values(parties: Parties) -> None:
    client, inside = parties.client, np.clip(images(), -1, 1)
    given: dict[str, Any] = {
        "outside": inside + 0.2 * MARK,
        "far outside": inside * MARK * 100,
        "too large": np.full((1, *SHAPE), MARK * 1e300),
        "another shape": np.full((3, 3), MARK),
        "not finite": np.where(np.arange(SHAPE[-1]) == 0, np.nan, np.full((1, *SHAPE), MARK / 10)),
        "strings": [[str(MARK)]],
        "mixed": [[MARK, "x"], None],
        "complex": np.full((1, *SHAPE), MARK * 1j),
        "ragged": [[MARK], [MARK, MARK]],
    }
    digits = [f"{MARK * factor:.4g}".rstrip("0").replace(".", "")[:4] for factor in (1, 0.2, 2, 0.1, 0.5)]
    for name, value in given.items():
        for call in (client.encrypt, parties.program.simulate):
            text = told(lambda call=call, value=value: call(value))  # type: ignore[misc]
            if call == client.encrypt:
                assert text, f"{name}: nothing was said"
            bare = text.replace(".", "")
            assert not any(one in bare for one in digits), f"{name}: {text}"


def test_messages_about_results_and_keys_hold_no_values(parties: Parties, tmp_path: Path) -> None:
    outputs = [f"{abs(value):.3f}" for value in parties.client.decrypt(parties.result)[0]]
    other = Client(parties.program)
    other.generate_keys()
    frame = bytearray(parties.result.to_bytes())
    frame[-40] ^= 1
    key = tmp_path / "secret.key"
    other.save_secret_key(key)
    held = key.read_bytes()
    key.write_bytes(held[:-100])
    actions: list[Callable[[], object]] = [
        lambda: other.decrypt(parties.result),
        lambda: EncryptedResult.from_bytes(parties.program, bytes(frame)),
        lambda: Client.load(parties.program, key),
    ]
    for action in actions:
        text = told(action)
        assert text and not any(value in text for value in outputs)
        assert not any(str(word) in text for word in np.frombuffer(held[-8000:-32], "<u8") if word > 9999)
