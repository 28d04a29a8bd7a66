"""How the benchmarks print: tables, lines, and whether a bound is met."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(width=None if Console().is_terminal else 132)


def table(title: str, columns: Mapping[str, tuple[str, str, float]], rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows by name; a dash where one lacks a figure, and no column of which all do.

    Args:
        title: Above it.
        columns: By heading: which figure of a row, its form, what it is multiplied by.
        rows: Each with a "name".
    """
    columns = {head: what for head, what in columns.items() if any(row.get(what[0]) is not None for row in rows)}
    drawn = Table(title=title)
    drawn.add_column("", no_wrap=True)
    for heading in columns:
        drawn.add_column(heading, justify="right")
    for row in rows:
        figures = [(row.get(name), form, scale) for name, form, scale in columns.values()]
        cells = ("-" if value is None else format(value * scale, form) for value, form, scale in figures)
        drawn.add_row(str(row["name"]), *cells, style="bold" if str(row["name"]).startswith("Tamis") else None)
    console.print(drawn)


def lines(texts: Iterable[str], style: str | None = None) -> None:
    """Prints them as they are."""
    for text in texts:
        console.print(text, highlight=False, soft_wrap=True, style=style, markup=False)


def verdict(bound: str, reached: float, met: bool, form: str = ".2f", unit: str = "x") -> str:
    """One line: what was asked for, what was reached."""
    return f"{bound}: {reached:{form}}{unit}, {'met' if met else 'MISSED'}."


def write(file: Path | None, report: Mapping[str, Any]) -> None:
    """The report as JSON, if asked for; called whenever something was added, so that a run cut short keeps it."""
    if file is not None:
        file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
