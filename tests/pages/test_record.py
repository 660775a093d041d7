"""Records of runs: files, parts that belong together, and what is refused."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path

import pytest

from olac.errors import ArtifactError
from olac.pages import record
from olac.pages.record import Accuracy, RunRecord, joined, timing_of
from olac.program.rows import Comparison, Outputs, Row
from tests.pages.examples import record_of
from tests.runtime.small_program import small_program

PROGRAM = small_program()


def test_a_record_is_the_same_after_its_file(tmp_path: Path) -> None:
    made = record_of(PROGRAM)
    made.save(tmp_path / "r.json")
    assert RunRecord.load(tmp_path / "r.json") == made
    assert RunRecord.load(tmp_path / "r.json", PROGRAM.fingerprint) == made
    assert stat.S_IMODE((tmp_path / "r.json").stat().st_mode) == 0o600


def test_seconds_and_memory_alone_are_no_secret(tmp_path: Path) -> None:
    timing = timing_of({"x": 1.0, "y": 2.0}, {"x": 0.5}, engine="e", threads=1, images=3, peak_gb=1.0)
    assert timing.seconds == 3.0 and timing.nodes[1].memory_gb is None
    path = tmp_path / "r.json"
    path.touch(0o644)
    RunRecord(PROGRAM.fingerprint, timing).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_rows_that_do_not_decrypt_are_written_as_null() -> None:
    row = Row("y", "linear", 1, math.nan, math.nan, math.nan, 0.5, math.inf, 2, 0.25)
    made = RunRecord.of_comparison(PROGRAM.fingerprint, Comparison((row,), Outputs(1, 0, math.nan, math.nan)))
    assert made.layers[0].error is None and made.layers[0].largest_encrypted is None and made.layers[0].outside == 2
    assert made.outputs is not None and made.outputs.max_error is None
    assert b"NaN" not in made.to_bytes()


def test_several_records_are_joined_and_the_last_counts(tmp_path: Path) -> None:
    whole = record_of(PROGRAM)
    first = RunRecord(whole.fingerprint, timing=whole.timing, accuracy=Accuracy(5))
    first.save(tmp_path / "run.json")
    found = joined([tmp_path / "run.json", RunRecord(whole.fingerprint, layers=whole.layers)], whole.fingerprint)
    assert found == RunRecord(whole.fingerprint, whole.timing, whole.layers, None, Accuracy(5))
    assert joined(None, whole.fingerprint) is None and joined([], whole.fingerprint) is None
    later = joined([first, RunRecord(whole.fingerprint, accuracy=Accuracy(9))], whole.fingerprint)
    assert later is not None and later.accuracy == Accuracy(9)


def test_records_of_other_programs_are_refused(tmp_path: Path) -> None:
    made = record_of(PROGRAM)
    made.save(tmp_path / "r.json")
    for given in (made, tmp_path / "r.json", str(tmp_path / "r.json")):
        with pytest.raises(ArtifactError, match="this program is 1111111111111111"):
            joined(given, "1" * 64)


def test_files_that_are_no_records_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    good = json.loads(record_of(PROGRAM).to_bytes())
    content = good["content"]
    bad_share = content | {"accuracy": content["accuracy"] | {"encrypted": 1.5}}
    bad_number = content | {"timing": content["timing"] | {"seconds": "1"}}
    for change, message in (
        (good | {"content": bad_share}, "an accuracy of 1.5"),
        (good | {"content": bad_number}, "content.timing.seconds is a str"),
        (good | {"content": content | {"more": 1}}, "expected the fields"),
        ([], "not the record of a run"),
    ):
        path.write_text(json.dumps(change))
        with pytest.raises(ArtifactError, match=message):
            RunRecord.load(path)
    path.write_text(json.dumps(good))
    monkeypatch.setattr(record, "MOST_NODES", len(content["layers"]) - 1)
    with pytest.raises(ArtifactError, match="more than 5 nodes"):
        RunRecord.load(path)
