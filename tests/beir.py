"""Collections in BEIR's layout: made in code, and the shared ones where they are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

PASSAGES = {
    "zip": "A zip archive is read with the module zipfile.",
    "tar": "A tar archive is read with the module tarfile.",
    "csv": "Rows of a table are read with the module csv.",
    "json": "The module json turns text into objects.",
    "sqlite": "A database in a single file: the module sqlite3.",
    "heap": "The smallest item first: the module heapq keeps a heap.",
}
QUERIES = {
    "q1": ("how do I read a zip archive", {"zip": 1}, ["zipfile", "the module zipfile"]),
    "q2": ("which module reads rows of a table", {"csv": 2, "json": 1}, ["csv"]),
    "q3": ("where is a database kept in a file", {"sqlite": 1, "tar": 0}, ["sqlite3"]),
    "q4": ("who wrote the archive module", {"zip": 0}, []),
}


def save_collection(
    folder: Path,
    *,
    passages: Mapping[str, str] = PASSAGES,
    queries: Mapping[str, tuple[str, Mapping[str, int], Sequence[str] | None]] = QUERIES,
    candidates: Mapping[str, Sequence[str]] | None = None,
    split: str = "dev",
) -> Path:
    """Writes the three files; a query is its text, its qrels and its answers (None: nothing is known)."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    rows = [{"_id": key, "title": "", "text": text} for key, text in passages.items()]
    write_jsonl(folder / "corpus.jsonl", rows)
    asked = []
    for key, (text, _, answers) in queries.items():
        metadata: dict[str, Any] = {} if answers is None else {"answers": list(answers)}
        if candidates and key in candidates:
            metadata["candidates"] = list(candidates[key])
        asked.append({"_id": key, "text": text, "metadata": metadata})
    write_jsonl(folder / "queries.jsonl", asked)
    lines = [
        f"{key}\t{passage}\t{grade}" for key, (_, judged, _) in queries.items() for passage, grade in judged.items()
    ]
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def shared_collection(name: str) -> Path:
    """The folder of a shared data set; skips the test where there is none."""
    places = [os.environ.get("TAMIS_TEST_DATA"), Path(__file__).resolve().parents[2] / "shared" / "data"]
    for place in filter(None, places):
        if (Path(place) / name).is_dir():
            return Path(place) / name
    pytest.skip(f"the data set {name} is not here; TAMIS_TEST_DATA names its parent folder")
