"""`tamis models`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from tamis.checkpoint import EMBEDDED, MINI, SHIPPED, Checkpoint
from tamis.cli.output import show, write_json
from tamis.errors import MissingExtra
from tamis.families import Family, families, named
from tamis.options import MODES

SUMMARY = "what can be loaded, and which model is embedded"


def add_command(commands: Any) -> None:
    """Adds `models` to argparse's subparsers."""
    parser = commands.add_parser("models", help=SUMMARY, description=f"Tell {SUMMARY}.")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="all that is known of these (default: list all)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    form.add_argument("--markdown", action="store_true", help="a table in Markdown")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Writes the families, the modes and the state of the embedded model.

    Raises:
        InvalidInput: There is no family of a name.
    """
    rows = [named(name) for name in arguments.families] or families()
    if arguments.markdown:
        sys.stdout.write(markdown(rows) + "\n")
        return
    path: str | None = None
    try:
        path = str(Checkpoint.embedded().root)
        state = f"installed in {path}"
    except MissingExtra as error:
        state = f"not installed. {error}"
    if arguments.json:
        embedded = {"model": EMBEDDED, "installed": path is not None, "path": path}
        shipped = {"model": MINI, "path": str(SHIPPED / MINI)}
        told = [_as_json(family) for family in rows]
        write_json({"modes": MODES, "families": told, "shipped": shipped, "embedded": embedded})
    elif arguments.families:
        for family in rows:
            _show_details(family)
    else:
        _show(
            rows,
            f"embedded: {EMBEDDED}, {state}",
            f"shipped: {MINI}, tamis.load(), which puts the embedded one beside it",
            "`tamis models FAMILY` tells its prompt, score and limit.",
        )


def markdown(rows: Sequence[Family]) -> str:
    """A table of families; docs/families.md holds the built-in ones."""
    lines = ["| family | mode | checkpoints | reads | score | tokens |", "|---|---|---|---|---|---|"]
    for family in rows:
        reads = f"`{family.template}`" if family.template else ""
        cells = (f"`{family.name}`", family.mode, family.summary, reads, family.score, family.window)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _as_json(family: Family) -> dict[str, Any]:
    return {
        "name": family.name,
        "mode": family.mode,
        "checkpoints": family.summary,
        "template": family.template,
        "score": family.score,
        "window": family.window,
        "hub_ids": sorted(family.hub_ids),
    }


def _show(rows: Sequence[Family], *notes: str) -> None:
    """The families by mode, in the order of the modes."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for mode in MODES:
        here = [family for family in rows if family.mode == mode]
        if here:
            table.add_row(Text(mode, style="bold"))
        for family in here:
            table.add_row(Text(f"  {family.name}", style="cyan"), Text(family.summary))
    show(table, "", *(Text(note, overflow="fold") for note in notes))


def _show_details(family: Family) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (
        ("  mode", family.mode),
        ("  checkpoints", family.summary),
        ("  reads", family.template),
        ("  score", family.score),
        ("  tokens", family.window),
        ("  found by", ", ".join(sorted(family.hub_ids)) or "the checkpoint's own files"),
    ):
        if value:
            table.add_row(Text(name), Text(value))
    show(Text(family.name, style="bold cyan"), table)
