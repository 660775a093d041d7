"""The site builds without a warning, loads nothing from elsewhere, and links of all documents lead somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urldefrag

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HOOKS = DOCS / "_hooks"
LOADING = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
}
"""Where a browser loads something by itself. Links of <a> load nothing until they are followed."""
NOT_LOADED = {"canonical", "next", "prev", "alternate"}
"""Links of the head that name a page."""


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_hooks_{name}", HOOKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Page(HTMLParser):
    """What a page of HTML loads, where it links to, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADING and LOADING[tag] in given and not NOT_LOADED & set(given.get("rel", "").split()):
            self.loads.append(given[LOADING[tag]])


def is_outside(address: str) -> bool:
    return bool(re.match(r"(?:[a-z][a-z0-9+.-]*:)?//", address, re.IGNORECASE))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")):
        pytest.skip("the site needs mkdocs-material and mkdocstrings: pip install 'olac[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_pages_load_nothing_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    assert len(pages) > 30
    outside = {(path.name, address) for path, page in pages.items() for address in page.loads if is_outside(address)}
    assert outside == set()
    styles = {path.name: path.read_text(encoding="utf-8") for path in site.rglob("*.css")}
    assert styles
    assert [name for name, text in styles.items() if re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", text)] == []


def test_links_between_pages_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    lost = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links begin at the root of a server
            continue
        for link in page.links:
            place, anchor = urldefrag(link)
            if is_outside(link) or ":" in place:
                continue
            target = (path.parent / unquote(place)).resolve() if place else path
            if target.is_dir():
                target /= "index.html"
            if not target.exists() or (anchor and target in pages and unquote(anchor) not in pages[target].anchors):
                lost.append(f"{path.relative_to(site)}: {link}")
    assert lost == []


def test_lists_and_tables_are_shown_as_such(pages: dict[Path, Page], site: Path) -> None:
    """mkdocs needs an empty line before a list or a table; without it, GitHub shows one and the site a text."""
    broken = []
    for path in pages:
        text = re.sub(r"<pre.*?</pre>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for paragraph in re.findall(r"<p>(.*?)</p>", text, re.DOTALL):
            if re.search(r"^\s*(?:[-*] |\d+\. |\|)", paragraph, re.MULTILINE):
                broken.append(f"{path.relative_to(site)}: {paragraph[:80]}")
    assert broken == []


def documents() -> Iterator[Path]:
    yield from sorted(ROOT.glob("*.md"))
    yield from sorted(path for path in DOCS.rglob("*.md") if HOOKS not in path.parents)


def slugs(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    found: dict[str, int] = {}
    result = set()
    for heading in re.findall(r"^#+ +(.*?)#* *$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        result.add(f"{slug}-{count}" if count else slug)
    return result


def lost_links(document: Path, text: str) -> list[str]:
    """Links of a document, as it lies in the tree, that lead to no file or to no heading."""
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.M | re.S)):
        place, anchor = urldefrag(target)
        if is_outside(target) or place.startswith("mailto:"):
            continue
        path = (document.parent / place).resolve() if place else document
        if not path.exists():
            lost.append(f"{document.name}: {target}")
        elif anchor and path.suffix == ".md":
            source = text if path == document else path.read_text(encoding="utf-8")
            if anchor not in slugs(source):
                lost.append(f"{document.name}: {target}")
    return lost


@pytest.mark.parametrize("document", list(documents()), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_of_documents_lead_somewhere_in_the_tree(document: Path) -> None:
    assert lost_links(document, document.read_text(encoding="utf-8")) == []


def test_lost_links_are_found() -> None:
    text = "# A heading\n[a](#a-heading) [b](#no-heading) [c](absent.md) [d](docs/faq.md#nowhere) [e](https://x.org)\n"
    found = lost_links(ROOT / "README.md", text)
    assert found == ["README.md: #no-heading", "README.md: absent.md", "README.md: docs/faq.md#nowhere"]


def test_what_a_page_loads_is_found() -> None:
    page = Page('<script src="https://a.b/c.js"></script><link rel="canonical" href="//d"><a href="//e" id="f">g</a>')
    assert (page.loads, page.links, page.anchors) == (["https://a.b/c.js"], ["//e"], {"f"})
    assert is_outside("//fonts.example") and is_outside("HTTPS://a") and not is_outside("a/b.css")


def test_links_are_turned_for_the_site() -> None:
    pages = hook("pages")
    assert pages.turned("[a](../SECURITY.md#b)", "docs/serving.md", "serving.md") == "[a](project/security.md#b)"
    assert pages.turned("[a](docs/design)", "CONTRIBUTING.md", "project/contributing.md") == "[a](../design/index.md)"
    assert pages.turned("[faq.md](faq.md#x) [../SECURITY.md](../SECURITY.md)", "docs/serving.md", "serving.md") == (
        "[Questions](faq.md#x) [Security](project/security.md)"
    )
    for same in ("[a](faq.md)", "[a](https://b.org/README.md)", "[a](#b)", "```\n[a](../SECURITY.md)\n```"):
        assert pages.turned(same, "docs/serving.md", "serving.md") == same


def test_the_nav_takes_whole_folders(tmp_path: Path) -> None:
    (tmp_path / "tutorials").mkdir()
    for name in ("memory", "zebra", "digits", "named"):
        (tmp_path / "tutorials" / f"{name}.md").write_text("# Title\n")
    nav = ["a.md", {"Start": ["tutorials/*"]}, {"Empty": ["absent/*"]}, {"B": "b.md"}]
    whole = hook("pages").expanded(nav, tmp_path, {"tutorials/named.md"})
    in_order = [f"tutorials/{name}.md" for name in ("digits", "memory", "zebra")]
    assert whole == ["a.md", {"Start": in_order}, {"B": "b.md"}]


def test_the_page_of_the_command_line_is_that_of_the_parser() -> None:
    made, text = hook("command_line"), (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    assert text == made.page(), "the command has changed: run python docs/_hooks/command_line.py (or make docs)"
    assert "## olac remote run" in text and "`-o, --output`" in text


def test_each_environment_variable_is_on_its_page() -> None:
    page = (DOCS / "reference" / "environment.md").read_text(encoding="utf-8")
    names = set()
    for folder in ("olac", "passes", "backends"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            names |= set(re.findall(r"environ(?:\.\w+\(|\[)\s*\"([A-Z_]+)\"", text))
            names |= set(re.findall(r"^VARIABLE = \"([A-Z_]+)\"", text, re.MULTILINE))
    assert {"OLAC_TOKEN", "OLAC_CACHE_DIR", "OMP_NUM_THREADS"} <= names
    assert sorted(name for name in names if f"`{name}`" not in page) == []
