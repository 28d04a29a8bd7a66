"""Rows of data files, and what is wrong with them: collected, so that all of it is told at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tamis.errors import InvalidData, InvalidInput


@dataclass(slots=True)
class Problems:
    """What is wrong, in the order in which it was found."""

    found: list[str] = field(default_factory=list)

    def add(self, path: Path, line: int, what: str) -> None:
        """Notes one bad row."""
        self.found.append(f"{path}:{line}: {what}")

    def check(self) -> None:
        """Raises InvalidData if anything was noted."""
        if self.found:
            raise InvalidData(self.found)


def read_lines(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, with their numbers from 1.

    Raises:
        InvalidInput: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    problems.add(path, number, f"is not UTF-8 from byte {error.start} of the line on.")
                    continue
                if text.strip():
                    yield number, text
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror or error}.") from error


def read_jsonl(path: Path, problems: Problems) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The JSON objects of a file, one a line, with their line numbers."""
    for number, text in read_lines(path, problems):
        try:
            row = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            problems.add(path, number, f"is not JSON: {error}.")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            problems.add(path, number, f"is a JSON {type(row).__name__}; it should be an object.")
