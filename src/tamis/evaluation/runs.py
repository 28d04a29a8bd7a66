"""Runs: what a retriever found for each query. Files are in TREC's format: `query Q0 passage rank score name`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from tamis.errors import InvalidInput
from tamis.evaluation.collection import Collection
from tamis.evaluation.rows import Problems, read_lines

Run: TypeAlias = dict[str, dict[str, float]]
"""By query id, the score of each passage id that was found, best first."""


def read_run(path: str | Path, collection: Collection | None = None) -> Run:
    """Reads a run; the scores give the order, and of equal ones the ranks, as written.

    Args:
        path: A file in TREC's format, cells apart by white space.
        collection: What the run is of. Its other splits' queries are left out, and a passage that it does not have is
            a bad row. Without it nothing is checked against a corpus.

    Raises:
        InvalidInput: The file cannot be read, or has no query of the collection.
        InvalidData: Rows are wrong: all of them are named.
    """
    path, problems = Path(path), Problems()
    found: dict[str, list[tuple[float, int, str]]] = {}
    seen: set[tuple[str, str]] = set()
    for number, line in read_lines(path, problems):
        cells = line.split()
        if len(cells) != 6:
            what = f"has {len(cells)} cells; it should have six, query Q0 passage rank score name."
            problems.add(path, number, what)
            continue
        query, _, passage, rank, score, _ = cells
        if collection is not None and query not in collection.queries:
            continue
        try:
            place, value = int(rank), float(score)
        except ValueError:
            problems.add(path, number, f"rank and score are {rank!r} and {score!r}; they should be numbers.")
            continue
        if not math.isfinite(value):
            problems.add(path, number, f"the score is {score}, which cannot be ranked.")
        elif collection is not None and passage not in collection.corpus:
            problems.add(path, number, f"there is no passage {passage!r} in {collection.name}.")
        elif (query, passage) in seen:
            problems.add(path, number, f"query {query!r} and passage {passage!r} stand in a row above.")
        else:
            seen.add((query, passage))
            found.setdefault(query, []).append((-value, place, passage))
    problems.check()
    if collection is not None and not found:
        raise InvalidInput(f"{path} has nothing for the {len(collection.queries)} queries of {collection.name}.")
    return {query: {passage: -value for value, _, passage in sorted(rows)} for query, rows in found.items()}


def write_run(path: str | Path, run: Mapping[str, Mapping[str, float]], name: str = "tamis") -> None:
    """Writes a run; ranks count from 1 in the order that the run has.

    Raises:
        InvalidInput: An id, or the name, has white space in it, which the format cannot hold.
    """
    with Path(path).open("w", encoding="utf-8") as file:
        for query, passages in run.items():
            for rank, (passage, score) in enumerate(passages.items(), 1):
                if any(len(cell.split()) != 1 for cell in (query, passage, name)):
                    raise InvalidInput(
                        f"Query {query!r}, passage {passage!r}, run {name!r}: an id with white space in it, or none at "
                        "all, cannot be written to a TREC file."
                    )
                file.write(f"{query} Q0 {passage} {rank} {score!r} {name}\n")
