"""Keys and runs: events, lines, what `olac run` says at its end, and log records without values."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olac.cli import main
from olac.program.program import CompiledProgram
from olac.progress import Event
from olac.runtime import Client, Progress, Server, load_keys, save_parts
from olac.serving.logs import JsonFormatter
from olac.system.logs import FIELDS
from tests.runtime.small_program import SHAPE, images, small_program

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore::UserWarning")]

MARK = 7.390625
"""What must not be told; no message has its digits for another reason."""


class Parties:
    """A client and a server of a small program, and the events of its keys."""

    def __init__(self) -> None:
        self.program = small_program()
        self.client = Client(self.program)
        self.events: list[Event] = []
        self.keys = self.client.generate_keys(self.events.append)
        self.server = Server(self.program, self.keys)
        self.given = self.client.encrypt(images())


@pytest.fixture(scope="module")
def parties() -> Parties:
    return Parties()


def test_events_of_keys(parties: Parties) -> None:
    events = parties.events
    assert [event.done for event in events] == list(range(1, events[0].total + 1))
    assert all(event == f"making keys: {event.done} of {event.total}" for event in events)
    assert [event.share for event in events] == sorted(event.share for event in events)
    pairs: list[tuple[int, int]] = []
    more = parties.client.more_keys(parties.keys.listed.parts[0], lambda done, total: pairs.append((done, total)))
    assert more.listed and pairs and pairs[-1][0] == pairs[-1][1]


def test_events_of_a_run(parties: Parties) -> None:
    events: list[Progress] = []
    result = parties.server.run(parties.given, events.append)
    assert [event.node for event in events] == [node.id for node in parties.program.graph.nodes]
    shares = [event.share for event in events]
    assert shares == sorted(shares) and shares[0] < 1 == shares[-1]
    assert all(isinstance(event, Event) and event.memory_gb > 0 for event in events)
    first = events[0]
    assert str(first).startswith(f"1 of {first.total}: {first.node} at level {first.level}, {first.memory_gb:.2f} GB, ")
    assert first.label == f"1 of {first.total}: {first.node}"
    assert result.images == len(images())


def test_a_run_is_silent_without_a_terminal_unless_asked(parties: Parties, capfd: pytest.CaptureFixture[str]) -> None:
    parties.server.run(parties.given)
    parties.server.run(parties.given, False)
    list(parties.server.stream([parties.given]))
    assert capfd.readouterr() == ("", "")
    parties.server.run(parties.given, True)
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 2
    assert re.fullmatch(r"ran in \d+\.\d s: 1 input in 1 set of ciphertexts, \S+ s an input", err.splitlines()[-1])


def test_the_end_of_a_run(parties: Parties, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line: images, sets, seconds, memory, the file, and what became of the checkpoint."""
    names = [str(tmp_path / name) for name in ("p.olac", "evaluation.keys", "in.enc", "out.enc", "state")]
    parties.program.save(names[0])
    parties.keys.save(names[1])
    parties.given.save(names[2])
    line = (
        r"ran in \d+\.\d s: 1 input in 1 set of ciphertexts, \S+ s an input, \d+\.\d\d GB at the peak; "
        rf"written to {re.escape(names[3])}"
    )
    assert main(["run", *names[:4]]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("predicted ") and re.fullmatch(line, last)
    assert main(["run", *names[:4], "--checkpoint", names[4], "--checkpoint-seconds", "0"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(rf"{line}; the checkpoint {re.escape(names[4])} was deleted", last)
    assert not Path(names[4]).exists()
    # A result on standard output is alone there.
    assert main(["run", *names[:3], "/dev/stdout"]) == 0
    assert re.fullmatch(line.replace(re.escape(names[3]), "/dev/stdout"), capsys.readouterr().err.splitlines()[-1])


def test_records_hold_no_values(parties: Parties, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "olac")
    path = tmp_path / "p.olac"
    parties.program.save(path)
    CompiledProgram.load(path)
    client = Client(parties.program)
    keys = client.generate_keys()
    keys.save(tmp_path / "keys")
    load_keys(parties.program, tmp_path / "keys")
    save_parts(keys, tmp_path / "parts")
    load_keys(parties.program, tmp_path / "parts")
    given = client.encrypt(np.full((1, *SHAPE), MARK / 10), allow_out_of_range=True)
    result = Server(parties.program, keys).run(given)
    answer = client.decrypt(result)
    records = [record for record in caplog.records if record.name.startswith("olac")]
    text = [JsonFormatter().format(record) for record in records]
    fields: list[dict[str, Any]] = [getattr(record, FIELDS) for record in records if hasattr(record, FIELDS)]
    for message in (
        "program saved",
        "program loaded",
        "keys made",
        "evaluation-keys saved",
        "running begins",
        "keys: evaluation-keys loaded",
        "parts: evaluation-keys loaded",
    ):
        assert any(message in line for line in text), message
    assert {parties.program.fingerprint} == {one["fingerprint"] for one in fields if "fingerprint" in one}
    assert any(one.get("program") == parties.program.fingerprint and one.get("images") == 1 for one in fields)
    nodes = [one["node"] for one in fields if "node" in one]
    assert nodes == [node.id for node in parties.program.graph.nodes]
    secrets = [f"{MARK / 10:.4g}".split(".")[1], *(f"{abs(value):.5f}"[2:] for value in answer[0])]
    for record, line in zip(records, text, strict=True):
        assert json.loads(line)["logger"] == record.name
        bare = re.sub(r'"(time|seconds|fingerprint|program|file)": ("[^"]*"|[\d.e-]+)', "", line)
        assert not any(secret in bare for secret in secrets), line


def test_nodes_are_logged_at_debug_alone(parties: Parties, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "olac")
    parties.server.run(parties.given)
    assert [record.getMessage().split(" in ")[0] for record in caplog.records] == ["running begins", "ran"]


def test_encrypting_says_what_it_wrote(parties: Parties, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from olac.runtime import commands

    parties.program.save(tmp_path / "p.olac")
    parties.client.save_secret_key(tmp_path / "secret.key")
    np.save(tmp_path / "x.npy", images())
    names = [tmp_path / name for name in ("p.olac", "secret.key", "x.npy", "x.enc")]
    commands.encrypt(*names)
    assert capfd.readouterr() == ("", "")
    commands.encrypt(*names, progress=True)
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.endswith(f": {names[3]}: 1 input in 1 ciphertext, 0.4 MB")
