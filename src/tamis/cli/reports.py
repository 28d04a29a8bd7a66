"""What commands that measure share: where a report goes, on the terminal and into files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tamis.cli.output import say, show, write_json
from tamis.errors import InvalidInput
from tamis.extras import need


def add_report_options(add: Any) -> None:
    """Adds where the report goes; `add` is argparse's `add_argument`."""
    add("--json", metavar="FILE", help="write everything there; - is standard output, instead of tables")
    add("--plots", metavar="DIR", help="write PNG files there")


def check_report_options(json_file: str | None, plots: str | None) -> None:
    """Raises what writing a report would raise, as far as that can be known before there is one.

    Raises:
        InvalidInput: The file is a folder, or its folder is not there.
        MissingExtra: Plots are wanted, and what draws is not installed.
    """
    if json_file not in (None, "-"):
        check_file(json_file)
    if plots is not None:
        need("matplotlib", "eval", "A plot")


def check_file(path: str) -> None:
    """Raises InvalidInput where no file can be written for a reason that shows already."""
    if Path(path).is_dir():
        raise InvalidInput(f"{path} cannot be written: it is a folder. Name a file.")
    if not Path(path).absolute().parent.is_dir():
        raise InvalidInput(f"{path} cannot be written: there is no folder {Path(path).absolute().parent}.")


def write_report(report: Any, json_file: str | None) -> None:
    """Shows a report's tables, or its JSON in their place, and writes that if asked for.

    Raises:
        InvalidInput: The file cannot be written.
    """
    if json_file == "-":
        write_json(report.to_json())
    else:
        show(report.table())
    if json_file not in (None, "-"):
        text = json.dumps(report.to_json(), ensure_ascii=False, indent=2)
        with writing(json_file):
            Path(json_file).write_text(f"{text}\n", encoding="utf-8")


def write_plots(report: Any, plots: str | None) -> None:
    """Draws a report if asked for.

    Raises:
        InvalidInput: A file cannot be written.
    """
    if plots is not None:
        for path in report.save_plots(plots):
            say(f"wrote {path}")


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Within it, an OSError becomes InvalidInput."""
    try:
        yield
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror or error}.") from error
