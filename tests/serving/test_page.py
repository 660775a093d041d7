"""The operator's page as a browser shows it: narrow and wide, light and dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.served import TOKENS, bearer, data_folder, new_side, send_job, send_keys, served, service_of

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

CLIPPED = """() => [...document.querySelectorAll("h1, h2, li, label, p, td, th")]
  .filter(one => one.checkVisibility() && !one.closest("thead") || innerWidth > 800)
  .filter(one => one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).display !== "inline"
    || one.getBoundingClientRect().right > document.documentElement.clientWidth)
  .map(one => one.textContent)"""
"""The texts of elements that are wider than their place, or that reach beyond the page."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        installed = next((found for name in BROWSERS if (found := shutil.which(name))), None)
        own = started.chromium.executable_path
        if installed is None and not Path(own).exists():
            pytest.skip("there is no Chromium on this machine")
        opened = started.chromium.launch(executable_path=installed or own, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with a job that was done and one that failed."""
    folder = tmp_path_factory.mktemp("page")
    with served(service_of(data_folder(folder))) as http:
        alice = new_side(folder / "alice")
        send_keys(http, alice, "alice")
        right = send_job(http, alice, "alice").json()["id"]
        damaged = bytearray(alice.input().to_bytes())
        damaged[-1] ^= 1
        place, keys = "/v1/programs/small/jobs", {"keys": alice.parts.identity}
        wrong = http.post(place, params=keys, content=bytes(damaged), headers=bearer("alice")).json()["id"]
        for job, state in ((right, "done"), (wrong, "failed")):
            told = http.get(f"/v1/jobs/{job}", params={"wait": 60}, headers=bearer("alice")).json()
            assert told["state"] == state, told
        yield http


class Seen:
    """The page in a browser, and what the browser complained about."""

    def __init__(self, browser: Any, site: httpx.Client, width: int, scheme: str) -> None:
        login = {"username": "operator", "password": TOKENS["operator"]}
        self.page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme, http_credentials=login
        )
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(str(site.base_url))
        self.page.wait_for_selector("#jobs td")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_it_shows_programs_workers_and_jobs(browser: Any, site: httpx.Client, width: int, scheme: str) -> None:
    seen = Seen(browser, site, width, scheme)
    page = seen.page
    assert seen.complaints == []
    assert page.evaluate(CLIPPED) == []
    assert "2 x 4 x 4" in page.inner_text("#programs") and "alice" in page.inner_text("#workers")
    jobs = [line.inner_text() for line in page.query_selector_all("#jobs tbody tr")]
    assert len(jobs) == 2 and any("done" in job for job in jobs)
    assert any("failed" in job and "SHA-256" in job for job in jobs)
    assert "1 done" in page.inner_text("#counts") and "of 1.00 GB" in page.inner_text("#memory-text")
    text = page.evaluate("getComputedStyle(document.body).color")
    assert text == ("rgb(255, 255, 255)" if scheme == "dark" else "rgb(0, 0, 0)")
    page.close()


def test_clipped_text_is_noticed(browser: Any, site: httpx.Client) -> None:
    page = Seen(browser, site, 400, "light").page
    page.evaluate("for (const one of document.querySelectorAll('td')) one.style.whiteSpace = 'nowrap'")
    assert any("SHA-256" in text for text in page.evaluate(CLIPPED))
    page.close()


def test_a_server_that_does_not_answer_is_told(browser: Any, site: httpx.Client) -> None:
    seen = Seen(browser, site, 400, "light")
    assert seen.page.inner_text("#state") == ""
    seen.page.route("**/v1/load", lambda route: route.abort())
    seen.page.wait_for_selector("#state:not(:empty)")
    assert seen.page.inner_text("#state").startswith("not up to date")
    assert seen.page.query_selector_all("#jobs td"), "what was known stays"
    assert seen.page.evaluate(CLIPPED) == []
    seen.page.close()


def test_no_page_without_the_operators_token(browser: Any, site: httpx.Client) -> None:
    page = browser.new_page(http_credentials={"username": "alice", "password": TOKENS["alice"]})
    assert page.goto(str(site.base_url)).status == 404
    assert "small" not in page.content()
    page.close()
