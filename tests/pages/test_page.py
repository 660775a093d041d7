"""Pages: nothing from outside runs, nothing is loaded, all parts are there; and programs as text."""

from __future__ import annotations

import builtins
import re
import stat
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from olac.errors import ArtifactError, OlacError
from olac.program.program import ApproximatedModel, CompiledProgram
from tests.pages.examples import HOSTILE, hostile_program, record_of, shown_program
from tests.runtime.small_program import deep_program

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")
EMPTY = {"meta", "link", "br", "circle", "rect", "line", "path"}


class _Reader(HTMLParser):
    """Checks that elements are closed in order, and keeps elements, references and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _page(program: CompiledProgram, **more: Any) -> str:
    return program.html(**more).html()


def test_text_from_outside_does_not_run() -> None:
    program = hostile_program()
    assert program.curves is not None
    for text in (_page(program, run=record_of(program)), program._repr_html_(), program.estimate()._repr_html_()):
        found = _Reader(text)
        tags = {tag for tag, _ in found.elements}
        assert not tags & {"script", "iframe", "object", "embed", "form", "img", "base"}
        assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
        assert "<script" not in text and "\x1b" not in text
    assert HOSTILE in _Reader(_page(program)).text  # it is shown as it is


def test_nothing_is_loaded_from_elsewhere() -> None:
    program = hostile_program()
    text = _page(program, run=record_of(program))
    for _, attributes in _Reader(text).elements:
        for name in ("src", "href", "xlink:href", "action", "poster", "srcset", "data"):
            assert str(attributes.get(name) or "#").startswith(("#", "data:"))
    assert not re.search(r"url\(|@import|https?://|//[a-z]", text)
    assert "default-src 'none'" in text


def test_all_parts_are_there() -> None:
    program = shown_program()
    text = _Reader(_page(program, run=record_of(program))).text
    for part in (
        "SmallNet",
        program.fingerprint,
        "97.0%",
        "NOT SECURE",
        "a note",
        "Activations",
        "inputs outside the range",
        "2%",
        "effect on the outputs",
        "0.125",
        "plan=(7,)",
        "Levels along the network",
        "The nodes that take longest",
        "evaluation keys",
        "composed steps",
        "Bits of precision",
        "The errors of all layers",
        "All nodes",
        "of values of inputs",
    ):
        assert part in text, part


def test_what_is_not_known_is_said_with_the_way_to_it() -> None:
    text = " ".join(_Reader(_page(deep_program())).text.split())
    assert "Measured seconds are not known: give the file of olac run --record FILE" in text
    assert "Not measured. olac debug" in text and "measured on" not in text
    without = replace(shown_program(), curves=None)
    assert "This report has no curves" in " ".join(_Reader(_page(without)).text.split())


def test_pages_are_private_and_complete(tmp_path: Path) -> None:
    program, path = shown_program(), tmp_path / "report.html"
    program.save(tmp_path / "m.olac")
    page = program.html(path)
    assert path.read_text(encoding="utf-8") == page.html() and stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = CompiledProgram.load(tmp_path / "m.olac")
    assert "SmallNet" not in loaded.html().html()
    assert loaded.html(curves=tmp_path / "m.olac.report").html() == page.html()
    with pytest.raises(ArtifactError, match="belongs to the program"):
        deep_program().html(curves=tmp_path / "m.olac.report")


def test_notebooks_get_head_and_timeline() -> None:
    text = shown_program()._repr_html_()
    found = _Reader(text)
    assert "SmallNet" in found.text and "Levels along the network" in found.text
    assert "Memory and keys" not in found.text and "<html" not in text
    estimate = _Reader(shown_program().estimate()._repr_html_())
    assert "memory of a server" in estimate.text and any(tag == "svg" for tag, _ in estimate.elements)


def test_without_jinja2_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide("jinja2", monkeypatch)
    with pytest.raises(OlacError, match=r"jinja2.*pip install"):
        shown_program().html().html()


# Figures -------------------------------------------------------------------------------------------------------------


def test_figures_for_trackers() -> None:
    pytest.importorskip("matplotlib")
    program = shown_program()
    found = program.html(run=record_of(program)).figures()
    assert list(found) == ["levels", "seconds", "memory", "precision", "plans", "activation/act"]
    axes = found["seconds"].axes[0]
    assert len(axes.patches) == 2 * len(program.graph.nodes)
    for figure in found.values():
        figure.canvas.draw()
    assert list(deep_program().html().figures()) == ["levels", "seconds", "memory"]


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide("matplotlib", monkeypatch)
    with pytest.raises(OlacError, match=r"olac\[benchmarks\]"):
        shown_program().html().figures()


def _hide(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.split(".")[0] == library:
            raise ModuleNotFoundError(f"No module named {library!r}")
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)


# Text ----------------------------------------------------------------------------------------------------------------


def test_programs_and_estimates_are_one_line() -> None:
    program = shown_program()
    assert repr(program) == "<CompiledProgram SmallNet for OpenFHE: ring 2^12, 5 levels, 6 nodes>"
    assert program.fingerprint[:12] in repr(replace(program, curves=None))
    assert repr(hostile_program()).isprintable()
    made = ApproximatedModel(program.graph, program.report)
    assert repr(made) == "<ApproximatedModel of a model: 6 nodes, 1 activation>"
    line = repr(program.estimate())
    assert line.startswith("<Estimate: ") and "keys of" in line and len(line) < 120


def test_programs_as_text_are_the_table_of_info_within_80_columns() -> None:
    for program in (shown_program(), deep_program()):
        lines = str(program).splitlines()
        assert max(map(len, lines)) <= 80
        rows = {line.split()[0] for line in lines if line.split()}
        assert {node.id for node in program.graph.nodes} <= rows
        assert any(line.startswith("ring dimension") for line in lines)
        assert any(line.startswith("memory of a server") for line in lines)
    assert "<script>" in str(hostile_program())  # terminals do not run it
    assert "\x1b" not in str(hostile_program())
