"""What the commands share: tables and JSON on standard output, messages on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


def show(*parts: RenderableType) -> None:
    """Writes rich's rendering by way of `sys.stdout`: rich itself would end the process where a pipe is closed."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    lines = captured.get().split("\n")
    sys.stdout.write("\n".join(line.rstrip(" ") for line in lines))  # cells are filled up with spaces


def write_json(value: Any) -> None:
    """One JSON object, in ASCII where standard output is not Unicode."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    json.dump(value, sys.stdout, ensure_ascii=not unicode, indent=2)
    sys.stdout.write("\n")


def say(message: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"tamis: {' '.join(message.split())}\n")


@contextmanager
def status(first: str) -> Iterator[Callable[[str], None]]:
    """A line that says what is being waited for, where standard error is a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status(first) as line:
        yield line.update


def printable(text: str) -> str:
    r"""Without what could steer the terminal; line breaks and tabs stay.

    >>> printable("a\n\tb \x1b[31m")
    'a\n\tb ?[31m'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def one_line(text: str) -> str:
    r"""Without line breaks, and without what could steer the terminal.

    >>> one_line("a\n  b \x1b[31m")
    'a b ?[31m'
    """
    return printable(" ".join(text.split()))
