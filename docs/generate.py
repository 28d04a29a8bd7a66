"""Writes what the pages repeat: the help of every command, the table of families, the list of notebooks.

    python docs/generate.py

A page has a place for it, between `<!-- generated: NAME -->` and `<!-- end -->`. A test fails where a page and the code
differ.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tamis.cli import _parser
from tamis.cli.models import markdown
from tamis.families import families

DOCS = Path(__file__).resolve().parent
COLUMNS = "80"


def commands() -> str:
    """The help of `tamis` and of each of its commands, as a terminal of 80 columns shows it."""
    sections = [_help(_parser())]
    for name, parser in _subparsers(_parser()):
        sections.append(f"## tamis {name}\n\n{_help(parser)}")
    return "\n\n".join(sections)


def notebooks() -> str:
    """A list of the cookbook's notebooks, with their titles and the first paragraphs under them."""
    lines = []
    for path in sorted((DOCS.parent / "cookbook").glob("*.ipynb")):
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        title, _, rest = first.strip().partition("\n")
        title = re.sub(r"^#+\s*(\d+\.\s*)?", "", title)
        paragraph = " ".join(rest.strip().partition("\n\n")[0].split())
        lines.append(f"- **[{title}](../cookbook/{path.name})**: {paragraph}")
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "families": lambda: markdown(families()),
    "notebooks": notebooks,
}


def filled(page: str) -> str:
    """The text of a page with its generated parts as they should be."""
    for name, make in PARTS.items():
        place = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if place.search(page):
            text = make()
            page = place.sub(lambda found, text=text: f"{found[1]}\n{text}\n\n{found[2]}", page)
    return page


def _help(parser: argparse.ArgumentParser) -> str:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COLUMNS  # what argparse asks for the width
    try:
        return f"```text\n{parser.format_help().rstrip()}\n```"
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _subparsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


if __name__ == "__main__":
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        if filled(page) != page:
            path.write_text(filled(page), encoding="utf-8")
