"""`olac run --record`, `olac debug --json` and `olac report`, from files to a page."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from olac.cli import main
from olac.pages.record import RunRecord
from olac.runtime import Client, EncryptedInput
from tests.pages.examples import record_of, shown_program
from tests.runtime.small_pair import pair
from tests.runtime.small_program import deep_program, images

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")


@pytest.mark.encrypted
def test_from_a_run_to_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client, keys = pair()
    program = shown_program()  # the same program, with curves
    names = ("p.olac", "secret.key", "evaluation.keys", "in.npy", "in.enc", "out.enc", "run.json", "debug.json")
    files = {name: str(tmp_path / name) for name in names}
    program.save(files["p.olac"])
    client.save_secret_key(files["secret.key"])
    keys.save(files["evaluation.keys"])
    given = images(2)
    np.save(files["in.npy"], given)
    encrypted = client.encrypt(given)
    assert isinstance(encrypted, EncryptedInput)
    encrypted.save(files["in.enc"])
    run = ["run", files["p.olac"], files["evaluation.keys"], files["in.enc"], files["out.enc"]]
    assert main([*run, "--record", files["run.json"]]) == 0
    debug = ["debug", files["p.olac"], files["secret.key"], files["evaluation.keys"], files["in.npy"]]
    assert main([*debug, "--json", files["debug.json"]]) == 0

    record = RunRecord.load(files["run.json"], program.fingerprint)
    timing = record.timing
    assert timing is not None and timing.images == 2 and timing.peak_gb > 0.05 and timing.keys_held is None
    assert [one.node for one in timing.nodes] == [node.id for node in program.graph.nodes]
    assert all(one.seconds >= 0 and one.memory_gb is not None for one in timing.nodes) and not record.layers
    compared = RunRecord.load(files["debug.json"], program.fingerprint)
    assert compared.outputs is not None and compared.outputs.same == compared.outputs.images == 1
    assert compared.outputs.max_error is not None and compared.outputs.max_error < 1e-2
    assert len(compared.layers) == len(program.graph.nodes)
    assert stat.S_IMODE(Path(files["debug.json"]).stat().st_mode) == 0o600

    page = tmp_path / "page.html"
    records = ["--run", files["run.json"], "--run", files["debug.json"]]
    capsys.readouterr()
    assert main(["report", files["p.olac"], *records, "-o", str(page)]) == 0
    assert str(page) in capsys.readouterr().out.replace("\n", "")
    text = page.read_text(encoding="utf-8")
    assert "SmallNet" in text and "1 of 1" in text and "The errors of all layers" in text

    wrong = [
        ("would be written over it", [*run, "--record", files["in.enc"]]),
        ("would be written over it", [*debug, "--json", files["in.npy"]]),
        ("name two files", [*run, "--record", files["out.enc"]]),
        ("would be written over it", ["report", files["p.olac"], *records, "-o", files["run.json"]]),
        ("not the record of a run", ["report", files["p.olac"], "--run", files["p.olac"], "-o", str(page)]),
    ]
    for message, arguments in wrong:
        assert main(arguments) == 1
        assert message in " ".join(capsys.readouterr().err.lower().split())
    assert isinstance(client, Client) and page.read_text(encoding="utf-8") == text


def test_a_program_without_curves_and_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, page = tmp_path / "p.olac", tmp_path / "page.html"
    deep_program().save(path)
    assert main(["report", str(path), "-o", str(page)]) == 0
    assert "no PROGRAM.report is beside the program" in capsys.readouterr().out
    assert "Not measured." in page.read_text(encoding="utf-8")


def test_files_of_another_program_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, page = tmp_path / "p.olac", tmp_path / "page.html"
    deep_program().save(path)
    record_of(shown_program()).save(tmp_path / "r.json")
    assert main(["report", str(path), "--run", str(tmp_path / "r.json"), "-o", str(page)]) == 1
    assert "olac run --record" in " ".join(capsys.readouterr().err.split())
    shown_program().save(tmp_path / "other.olac")
    (tmp_path / "other.olac.report").rename(tmp_path / "p.olac.report")
    assert main(["report", str(path), "-o", str(page)]) == 1
    assert "PROGRAM.report" in capsys.readouterr().err and not page.exists()
