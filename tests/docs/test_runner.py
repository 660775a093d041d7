"""The runner of pages finds what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import Block, PageError, blocks_of
from tests.docs.runner import BlockFailed, commands, difference, run_page
from tests.docs.unrun import check_unrun, commands_of


def page(*parts: str) -> str:
    return "\n\n".join(parts) + "\n"


def block(language: str, source: str, mark: str = "") -> str:
    return (f"<!-- {mark} -->\n" if mark else "") + f"```{language}\n{source}\n```"


def run(folder: Path, *parts: str) -> str:
    inner = folder / "page"
    inner.mkdir()
    return run_page("page.md", blocks_of(page(*parts)), inner)


def test_blocks_share_a_folder_and_python_a_namespace(tmp_path: Path) -> None:
    printed = run(
        tmp_path,
        block("python", "x = 3\nopen('x.txt', 'w').write(f'{x}\\n')"),
        block("sh", "cat x.txt"),
        block("text", "17", "output"),
        block("python", "print(x + 1)"),
        block("python", "print('x' in globals())", "run in a new namespace"),
    )
    assert printed == "3\n4\nFalse\n"


@pytest.mark.parametrize(
    ("language", "source"),
    [("sh", "false\ntrue"), ("sh", "false | true"), ("sh", "echo $unset"), ("console", "$ false")],
)
def test_a_command_that_fails_is_found(language: str, source: str, tmp_path: Path) -> None:
    with pytest.raises(BlockFailed, match=r"page\.md:2: exit code"):
        run(tmp_path, block(language, source))


def test_python_that_fails_names_the_line_of_the_page(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run(tmp_path, "text", block("python", "x = 1\n1 / 0"))
    assert caught.traceback[-1].lineno == 5 - 1  # counted from 0
    assert str(caught.traceback[-1].path) == "page.md"


def test_other_output_is_found(tmp_path: Path) -> None:
    with pytest.raises(BlockFailed, match="the page says 'true'"):
        run(tmp_path, block("python", "print('false')"), block("text", "true", "output"))


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("took 0.25 s", "took  12.5 s\n", True),
        ("took 0.25 s", "took 12.5 min", False),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...", "a", True),
        ("a\n...\nd", "a\nb", False),
        ("a", "a\nb", False),
        ("a\nb", "a", False),
        ("error 1.5e-05", "error 0.0021", True),
    ],
)
def test_numbers_may_differ_and_words_may_not(expected: str, printed: str, same: bool) -> None:
    assert (difference(expected, printed) is None) == same


def test_a_server_runs_until_the_end_of_its_page(tmp_path: Path) -> None:
    answers = "http://127.0.0.1:8750/"
    read = f"import urllib.request\nprint(urllib.request.urlopen('{answers}').status)"
    serve = block("sh", "exec python -m http.server 8750 --bind 127.0.0.1", f"run in the background: {answers}")
    assert run(tmp_path, serve, block("python", read)) == "200\n"


def test_a_server_that_ends_at_once_is_found(tmp_path: Path) -> None:
    with pytest.raises(BlockFailed, match="nothing answers at"):
        run(tmp_path, block("sh", "echo 8750", "run in the background: http://127.0.0.1:8750/"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (block("python", "1 / 0", "not run:"), "line 1: say why"),
        (block("python", "1 / 0", "not run because"), "line 1: unknown mark"),
        (page("<!-- not run: it downloads -->", block("python", "1 / 0")), "line 1: the mark stands before no block"),
        (block("ruby", "1 / 0"), "line 1: a block of language 'ruby'"),
        (block("", "1 / 0"), "line 1: a block of language ''"),
        ("```python\nx = 1\n", "line 1: the block has no end"),
        ("    olac info model.olac\n", "line 1: put this command between"),
        (block("sh", "olac serve", "run in the background: http://127.0.0.1:8750/"), "does not name the port"),
        (block("sh", "olac serve", "run in the background"), "say where the server answers"),
    ],
)
def test_pages_that_hide_blocks_are_refused(text: str, message: str) -> None:
    with pytest.raises(PageError, match=message):
        blocks_of(text)


@pytest.mark.parametrize(
    ("language", "source", "wrong"),
    [
        ("sh", "olac info model.olac  # a table\nolac keygen model.olac keys --parts > log 2>&1", None),
        ("sh", "olac info", "required"),
        ("sh", "cd x && olac keygen model.olac keys --part-s", "--part-s"),
        ("console", "$ olac inform model.olac\nmodel", "inform"),
        ("sh", "python -m benchmarks structure --models resnet20", None),
        (
            "sh",
            "python -m benchmarks accuracy \\\n  --model resnet20 --strategies auto --json a.json --images many",
            "many",
        ),
        ("sh", "python -m benchmarks.security --rings 14 --estimater x", "estimater"),
        ("sh", "make demo PYTHON=python3.10", None),
        ("sh", "make demonstration", "demonstration"),
        ("sh", "pip install '.[torch]'", None),
        ("sh", "pip install '.[torch,torches]'", "torches"),
        ("python", "olac.compile(model, images, degree=7, method=olac.Minimax(7))", None),
        ("python", "olac.compile(model, images, degre=7)", "degre"),
        ("python", "olac.Minmax(7)", "olac.Minmax"),
        ("python", "from olac.costs.table import CostTables", "CostTables"),
        ("python", "x = = 1", "invalid syntax"),
    ],
)
def test_what_is_not_run_is_still_read(language: str, source: str, wrong: str | None) -> None:
    found = check_unrun(Block(language, 1, source + "\n", skipped="takes long"))
    assert found is None if wrong is None else wrong in (found or "")


def test_words_of_commands() -> None:
    source = "A=1 olac info x.olac | head -3 >out; echo 'a b' # no\n"
    assert list(commands_of(Block("sh", 1, source))) == [["olac", "info", "x.olac"], ["head", "-3"], ["echo", "a b"]]


def test_commands_of_a_console() -> None:
    assert commands("$ a \\\n  b\noutput\n$ c\n") == "a \\\n  b\nc\n"
