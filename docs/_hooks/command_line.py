"""Writes docs/reference/cli.md from the parser of the command: python docs/_hooks/command_line.py (or make docs).

A test compares the page with the parser. argparse's own help isn't used, because its form differs between Pythons.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from olac.cli import _parser

PAGE = Path(__file__).resolve().parents[1] / "reference" / "cli.md"
HEAD = """\
# Command line

The package installs the command `olac`. This page is made from the command itself; `olac COMMAND --help` says the same.
Commands of the client and of the server are meant for two machines: the client's has the secret key, the server's has
not.

A command ends with status 0 if it did its work. It ends with 1 and one line of explanation for any of olac's
[errors](errors.md), and with 2 for wrong usage. 70 is a bug of olac, 130 an interruption, and 141 means that nobody
reads the output. With `OLAC_TRACEBACK=1` in the environment a bug shows the whole traceback.

"""


def page() -> str:
    """The page's text."""
    parser = _parser()
    commands = list(subcommands(parser))
    listed = "\n".join(f"| [`{name}`](#{anchor(name)}) | {cell(about)} |" for name, about, _ in commands)
    parts = [f"{HEAD}| command | what it does |\n|---|---|\n{listed}\n"]
    parts += [section(name, about, command) for name, about, command in commands]
    return "\n".join(parts)


def subcommands(
    parser: argparse.ArgumentParser, above: str = "olac"
) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Each command; commands of commands are taken apart."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            about = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                inner = list(subcommands(command, f"{above} {name}"))
                yield from inner or [(f"{above} {name}", about.get(name, ""), command)]


def anchor(name: str) -> str:
    return name.replace(" ", "-")


def cell(text: str) -> str:
    """A text for a table: in one line, and without characters that Markdown takes for its own."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def section(name: str, about: str, command: argparse.ArgumentParser) -> str:
    """What a command does, how it is called, and its arguments."""
    given = [action for action in command._actions if not isinstance(action, argparse._HelpAction)]
    words = [f"[{shown(one)}]" if not one.required and one.option_strings else shown(one) for one in given]
    rows = [f"| `{', '.join(one.option_strings) or placeholder(one)}` | {explained(one)} |" for one in given]
    text = f"## {name}\n\n{sentence(about)}\n\n```text\n{wrapped([name, *words])}\n```\n"
    return text + ("\n| argument | meaning |\n|---|---|\n" + "\n".join(rows) + "\n" if rows else "")


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def placeholder(action: argparse.Action) -> str:
    if action.choices:
        return "{" + ",".join(map(str, action.choices)) + "}"
    name = action.metavar if isinstance(action.metavar, str) else action.dest
    return name.upper() + (" ..." if action.nargs == "+" else "")


def shown(action: argparse.Action) -> str:
    """An argument in a call."""
    if not action.option_strings:
        return placeholder(action)
    flag = action.option_strings[-1]
    return flag if action.nargs == 0 else f"{flag} {placeholder(action)}"


def wrapped(words: list[str], width: int = 100) -> str:
    """Words in lines, the later ones indented."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return "\n".join(lines)


def explained(action: argparse.Action) -> str:
    """What an argument means, with its choices and its default unless the text gives it."""
    text = (action.help or f"the {action.dest.replace('_', ' ')}").replace("%%", "%")
    if action.choices and action.option_strings:
        text += f". One of {', '.join(f'`{choice}`' for choice in action.choices)}"
    usual = action.default not in (None, False, argparse.SUPPRESS) and action.option_strings and not action.required
    if usual and "default:" not in text:
        value = " ".join(map(str, action.default)) if isinstance(action.default, (list, tuple)) else action.default
        text += f" (default: {value})"
    return cell(text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE}: written")
