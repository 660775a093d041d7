"""Hooks of mkdocs: documents from the top of the tree become pages, and the nav takes whole folders.

Pages link to ../SECURITY.md and README.md links to docs/models.md, as they lie in the tree, so that links work where
the tree is read. On the site each is a page, and this module turns the links.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

TOP = {
    "README.md": "project/readme.md",
    "SECURITY.md": "project/security.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "LICENSE": "project/licence.md",
}
"""Documents at the top of the tree, and the pages that they become."""
TUTORIALS = (
    "digits",
    "tabular",
    "ecg",
    "resnet18",
    "own-activation",
    "fine-tuning",
    "two-machines",
    "reading-the-report",
    "accuracy",
    "memory",
)
"""The order of the tutorials; others come after them."""
FIRST = ("index", "first", *TUTORIALS, "compile", "options", "degrees", "programs", "client-and-server")
"""Pages that come before the others of their folder, in this order; the others are sorted by name."""
LINK = re.compile(r"\[([^\[\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
"""Text, target and anchor of a link."""
FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"(?:[\w.-]+/)*[\w.-]+\.md")
"""A text of a link that is only the name of a file; the site shows the title of the page in its place."""
OBJECT = re.compile(r"^::: (\S+)$", re.MULTILINE)
"""A name of the interface, as a page of docs/api/ names it."""
NAMED = re.compile(r"(?<!<b>)<code>((?:olac\.)?\w+(?:\.\w+)*)(\(\))?</code>(?!</a>)")
"""Code in the text of a page that may be such a name; names of parameters are bold and no links."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Entries of the nav that end with /* become the pages of a folder."""
    if config.nav is not None:
        named = {entry for entry in leaves(config.nav) if not entry.endswith("/*")}
        config.nav = expanded(config.nav, Path(config.docs_dir), named)
    return config


def leaves(nav: Any) -> list[str]:
    """All paths in a nav."""
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav
    return [leaf for value in values for leaf in leaves(value)]


def expanded(entries: list[Any], docs: Path, named: set[str]) -> list[Any]:
    """A nav with the pages of folders in it; a section without a page is left out."""
    result: list[Any] = []
    for entry in entries:
        if isinstance(entry, str) and entry.endswith("/*"):
            result += pages_of(entry[:-2], docs, named)
        elif isinstance(entry, dict) and isinstance(inside := next(iter(entry.values())), list):
            if pages := expanded(inside, docs, named):
                result.append({next(iter(entry)): pages})
        else:
            result.append(entry)
    return result


def pages_of(folder: str, docs: Path, named: set[str]) -> list[str]:
    """The pages of a folder that no other entry names."""
    found = {path.relative_to(docs).as_posix() for path in (docs / folder).glob("*.md")}
    found |= {page for page in TOP.values() if posixpath.dirname(page) == folder}

    def place(page: str) -> tuple[int, str]:
        name = Path(page).stem
        return (FIRST.index(name) if name in FIRST else len(FIRST), name)

    return sorted(found - named, key=place)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The documents at the top of the tree become files of the site."""
    top = Path(config.config_file_path).parent
    for name, page in TOP.items():
        text = (top / name).read_text(encoding="utf-8")
        if name == "LICENSE":
            text = f"# Licence\n\n```text\n{text}```\n"
        files.append(File.generated(config, page, content=turned(text, name, page)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of a page to documents at the top of the tree lead to their pages."""
    uri = page.file.src_uri
    return markdown if uri in TOP.values() else turned(markdown, f"docs/{uri}", uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """On pages of the interface, names of other parts of the interface lead to them."""
    folder = posixpath.dirname(page.file.src_uri)
    if folder != "api":
        return html
    places = {
        name: f"{path.stem}.html#{name}"
        for path in (Path(config.docs_dir) / folder).glob("*.md")
        for name in OBJECT.findall(path.read_text(encoding="utf-8"))
    }
    # A bare `check` is a method of KeyFolder.
    short = {name.rpartition(".")[2]: place for name, place in places.items() if name != "olac.check"}

    def link(match: re.Match[str]) -> str:
        name = match[1]
        place = places.get(name) or short.get(name.split(".")[0])
        return match[0] if place is None else f'<a href="{place}">{match[0]}</a>'

    return NAMED.sub(link, html)


def turned(text: str, source: str, page: str) -> str:
    """A text with links as the site needs them.

    Args:
        text: of a document.
        source: where it lies in the tree, from the top.
        page: where its page lies below docs/.
    """

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match.groups()
        if ":" in target:
            return match[0]
        whole = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place = TOP.get(whole)
        if place is None and whole.startswith("docs/"):
            place = whole.removeprefix("docs/")
            if not posixpath.splitext(place)[1]:  # a folder
                place += "/index.md"
        if place is None:
            return match[0]
        shown = title(whole) if FILE.fullmatch(words) else None
        return f"[{shown or words}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor or ''})"

    pieces, done = [], 0
    for fence in FENCE.finditer(text):
        pieces += [LINK.sub(link, text[done : fence.start()]), fence[0]]
        done = fence.end()
    return "".join([*pieces, LINK.sub(link, text[done:])])


def title(document: str) -> str | None:
    """The first heading of a document, which lies so far below the top of the tree; None if there is none."""
    path = Path(__file__).resolve().parents[2] / document
    found = re.search(r"^# +(.+?) *$", path.read_text(encoding="utf-8"), re.MULTILINE) if path.is_file() else None
    return None if found is None else found[1]
