"""Pages in a real browser, where there is one: no error, nothing that is cut off, and colours that can be read."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from olac.program.curves import Curves
from olac.program.program import CompiledProgram
from tests.pages.examples import FRONT, HOSTILE, hostile_program, record_of, relu_curve
from tests.runtime.small_program import deep_program

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

CUT = """() => {
  const found = [], width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) found.push('the page is wider than the screen');
  for (const one of document.querySelectorAll('body *')) {
    const box = one.getBoundingClientRect();
    if (!box.width || one.closest('title')) continue;
    const what = one.tagName + ' ' + (one.getAttribute('class') || '') + ' ' + (one.textContent || '').slice(0, 40);
    if (box.left < -1 || box.right > width + 1) found.push('off the screen: ' + what);
    if (!one.closest('svg') && one.clientWidth && one.scrollWidth > one.clientWidth + 1) found.push('cut: ' + what);
    const svg = one.tagName === 'text' && one.closest('svg').getBoundingClientRect();
    if (svg && (box.left < svg.left - 1 || box.right > svg.right + 1 || box.bottom > svg.bottom + 1 ||
                box.top < svg.top - 1)) found.push('outside of its drawing: ' + what);
  }
  return found;
}"""
"""What is cut off at the sides, or lies outside of its drawing."""

CONTRAST = """() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(c => c / 255)
      .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = one => {
    for (let place = one; place; place = place.parentElement) {
      const colour = getComputedStyle(place).backgroundColor;
      if (colour !== 'rgba(0, 0, 0, 0)' && colour !== 'transparent') return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const found = [];
  for (const one of document.querySelectorAll('body *:not(title)')) {
    const own = [...one.childNodes].some(part => part.nodeType === 3 && part.data.trim());
    if (!own || !one.getBoundingClientRect().width) continue;
    const style = getComputedStyle(one), ink = one.tagName === 'text' ? style.fill : style.color;
    const pair = [light(ink), light(behind(one.closest('svg') || one))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    const what = one.tagName + ' ' + (one.getAttribute('class') || '') + ' ' + one.textContent.slice(0, 30);
    if (ratio < 4.5) found.push(what + ' ' + ratio.toFixed(2));
  }
  return found;
}"""
"""Text whose contrast is below 4.5, which WCAG 2.2 asks for (level AA)."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser is installed here: none of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as running:
        made = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()


def _large() -> CompiledProgram:
    """Many nodes and activations, with long names."""
    program = deep_program(blocks=12)
    nodes = [node.id for node in program.graph.nodes if node.id.startswith("act")]
    curves = tuple(replace(relu_curve(), node=name, outside=0.5) for name in nodes)
    fits = tuple(replace(_FIT, node=name) for name in nodes)
    plan = replace(FRONT[0], agreement=None, degrees=(7,) * 50)
    front = tuple(replace(plan, price=float(i), cost=10.0**-i) for i in range(12))
    report = replace(program.report, fits=fits, front=front, notes=("a long note about " + "x" * 300,))
    return replace(program, report=report, curves=Curves("M" * 100, curves))


_FIT = hostile_program().report.fits[0]


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        *itertools.product(("hostile", "large"), (400, 1400), ("light", "dark")),
        ("large", 800, "light"),
    ],
)
def test_nothing_is_wrong_on_phones_and_screens(
    browser: Any, tmp_path: Path, name: str, width: int, scheme: str
) -> None:
    program = hostile_program() if name == "hostile" else _large()
    path = tmp_path / "page.html"
    program.html(path, run=record_of(program))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, problems, requests = context.new_page(), list[str](), list[str]()
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(f"a script ran: {dialog.message}"))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.evaluate("() => document.querySelectorAll('details').forEach(one => one.open = true)")
    assert not problems and [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    assert page.evaluate(CUT) == []
    assert page.evaluate(CONTRAST) == []
    assert HOSTILE in page.inner_text("body")
    context.close()


def test_the_checks_find_what_is_wrong(browser: Any) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 300})
    page.set_content("<p style='width: 900px; color: #aaa'>text</p><svg width=9 height=9><text x=200>far</text></svg>")
    assert any("wider" in one for one in page.evaluate(CUT)) and any("drawing" in one for one in page.evaluate(CUT))
    assert [one.split()[0] for one in page.evaluate(CONTRAST)] == ["P"]
    page.close()
