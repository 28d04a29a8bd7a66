"""`tamis models`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from tamis.checkpoint import EMBEDDED, MINI, SHIPPED, Checkpoint
from tamis.cli.output import show, write_json
from tamis.errors import MissingExtra
from tamis.families import Family, families
from tamis.options import MODES

SUMMARY = "what can be loaded, and which model is embedded"


def add_command(commands: Any) -> None:
    """Adds `models` to argparse's subparsers."""
    parser = commands.add_parser("models", help=SUMMARY, description=f"Tell {SUMMARY}.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    form.add_argument("--markdown", action="store_true", help="a table in Markdown")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Writes the families, the modes and the state of the embedded model."""
    if arguments.markdown:
        sys.stdout.write(markdown(families()) + "\n")
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
        rows = [_as_json(family) for family in families()]
        write_json({"modes": MODES, "families": rows, "shipped": shipped, "embedded": embedded})
    else:
        _show(f"modes: {', '.join(MODES)}", f"shipped cross-encoder: {MINI}", f"embedded: {EMBEDDED}, {state}")


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


def _show(*notes: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 1, 0))
    table.add_column("family, mode", no_wrap=True)
    table.add_column("checkpoints, template, score, window")
    for family in families():
        name = Text.assemble((family.name, "cyan"), f"\n{family.mode}")
        lines = [family.summary, f"reads: {family.template}", f"score: {family.score}", f"tokens: {family.window}"]
        table.add_row(name, Text("\n".join(lines)))
    show(table, "", *(Text(note, overflow="fold") for note in notes))
