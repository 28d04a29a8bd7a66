"""A test collection: passages, questions, and which passages answer which question.

Folders are in BEIR's layout (Thakur et al. 2021, arXiv 2104.08663): `corpus.jsonl` with `_id`, `title` and `text`,
`queries.jsonl` with `_id` and `text`, `qrels/SPLIT.tsv` with `query-id`, `corpus-id` and `score` under a header. Two
keys of a query's `metadata` mean something here: `answers`, the texts that answer it, none where nothing does, and
`candidates`, the ids of the passages that it comes with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from tamis.errors import InvalidInput
from tamis.evaluation.rows import Problems, read_jsonl, read_lines
from tamis.types import Passage

HEADER = ("query-id", "corpus-id", "score")


@dataclass(frozen=True, slots=True)
class Query:
    """A question.

    Attributes:
        id: Its key.
        text: What is asked; never empty.
        answers: Texts that answer it; () if it is known that none does, None if nothing is said about answers.
        candidates: Ids of the passages that a first stage may choose from; () for all.
        metadata: Whatever else came with it.
    """

    id: str
    text: str
    answers: tuple[str, ...] | None = None
    candidates: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Collection:
    """One split of a data set. See `read_collection`.

    Attributes:
        name: What it is called in tables; the folder's name.
        split: "dev", "test", ...
        corpus: Passages by id.
        queries: Those of the split, by id: every one that its qrels name.
        qrels: By query, the relevance of each judged passage, an int; 0 is "judged, and not relevant".
    """

    name: str
    split: str
    corpus: Mapping[str, Passage] = field(repr=False)
    queries: Mapping[str, Query] = field(repr=False)
    qrels: Mapping[str, Mapping[str, int]] = field(repr=False)

    def answerable(self) -> list[str]:
        """Ids of the queries for which some passage is relevant: what ranking is measured on."""
        return [query for query, judged in self.qrels.items() if any(grade > 0 for grade in judged.values())]

    def limited(self, count: int | None, seed: int = 0) -> Collection:
        """At most `count` queries, drawn with a seed, in their old order. The corpus stays whole.

        Raises:
            InvalidInput: The count is below 1, or the seed below 0.
        """
        check_seed(seed)
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise InvalidInput(f"The limit of queries is {count!r}; pass an int of at least 1.")
        if count is None or count >= len(self.queries):
            return self
        ids = list(self.queries)
        kept = [ids[i] for i in sorted(np.random.default_rng(seed).permutation(len(ids))[:count])]
        queries, qrels = {query: self.queries[query] for query in kept}, {query: self.qrels[query] for query in kept}
        return replace(self, queries=queries, qrels=qrels)


def check_seed(seed: int) -> None:
    """Raises InvalidInput for what nothing can be drawn with."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InvalidInput(f"The seed is {seed!r}; pass an int of at least 0.")


def read_collection(folder: str | Path, split: str = "dev") -> Collection:
    """Reads a folder in BEIR's layout.

    A passage is its title, a line break and its text; the text alone where it begins with the title, or there is none.

    Args:
        folder: Its name is the collection's.
        split: Which file of `qrels`.

    Raises:
        InvalidInput: A file is missing, or the split.
        InvalidData: Rows are wrong: all of them are named, of all three files.
    """
    folder = Path(folder)
    paths = [folder / "corpus.jsonl", folder / "queries.jsonl", folder / "qrels" / f"{split}.tsv"]
    for path in paths:
        if not path.is_file():
            raise InvalidInput(f"There is no {path}. {_expected(folder, path)}")
    problems = Problems()
    corpus = _corpus(paths[0], problems)
    queries = _queries(paths[1], corpus, problems)
    qrels = _qrels(paths[2], corpus, queries, problems)
    problems.check()
    if not qrels:
        raise InvalidInput(f"{paths[2]} has no rows: there is nothing to evaluate or train on.")
    name = folder.name or folder.resolve().name
    asked = {query: queries[query] for query in qrels}
    return Collection(name, split, corpus, asked, qrels)


def _expected(folder: Path, missing: Path) -> str:
    splits = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
    if missing.suffix == ".tsv" and splits:
        return f"The folder has the split{'s' * (len(splits) > 1)} {', '.join(splits)}."
    return "A collection is a folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, as BEIR's are."


def _corpus(path: Path, problems: Problems) -> dict[str, Passage]:
    corpus: dict[str, Passage] = {}
    for number, row in read_jsonl(path, problems):
        key, text, title = row.get("_id"), row.get("text"), row.get("title") or ""
        if not _text(key):
            problems.add(path, number, f"_id is {key!r}; it should be a string that is not empty.")
        elif key in corpus:
            problems.add(path, number, f"the _id {key!r} has been taken by a row above.")
        elif not isinstance(text, str) or not isinstance(title, str):
            name, value = ("text", text) if not isinstance(text, str) else ("title", title)
            problems.add(path, number, f"{name} is {_kind(value)}; it should be a string.")
            corpus[key] = Passage("")  # so that rows that name it are not called wrong too
        else:
            whole = f"{title}\n{text}" if title and not text.startswith(title) else text
            corpus[key] = Passage(whole, key, {"title": title})
    return corpus


def _queries(path: Path, corpus: Mapping[str, Passage], problems: Problems) -> dict[str, Query]:
    queries: dict[str, Query] = {}
    for number, row in read_jsonl(path, problems):
        key, text, metadata = row.get("_id"), row.get("text"), row.get("metadata") or {}
        if not _text(key):
            problems.add(path, number, f"_id is {key!r}; it should be a string that is not empty.")
            continue
        if key in queries:
            problems.add(path, number, f"the _id {key!r} has been taken by a row above.")
            continue
        queries[key] = Query(key, "")
        wrong = []
        if not _text(text):
            wrong.append("text is empty." if text == "" else f"text is {_kind(text)}; it should say what is asked.")
        if not isinstance(metadata, dict):
            wrong.append(f"metadata is {_kind(metadata)}; it should be an object.")
            metadata = {}
        for name in ("answers", "candidates"):
            values = metadata.get(name)
            if values is not None and not (isinstance(values, list) and all(isinstance(one, str) for one in values)):
                wrong.append(f"metadata.{name} should be a list of strings.")
                metadata = {**metadata, name: None}
        answers, candidates = metadata.get("answers"), metadata.get("candidates") or []
        wrong += [f"the candidate {one!r} is not in the corpus." for one in candidates if one not in corpus]
        for what in wrong:
            problems.add(path, number, what)
        if not wrong and isinstance(text, str):
            found = None if answers is None else tuple(answers)
            queries[key] = Query(key, text, found, tuple(dict.fromkeys(candidates)), metadata)
    return queries


def _qrels(
    path: Path, corpus: Mapping[str, Passage], queries: Mapping[str, Query], problems: Problems
) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for number, line in read_lines(path, problems):
        cells = [cell.strip() for cell in line.split("\t")]
        if number == 1 and tuple(cells) == HEADER:
            continue
        if len(cells) != 3:
            what = f"has {len(cells)} cells between tabs; it should have three, {', '.join(HEADER)}."
            problems.add(path, number, what)
            continue
        query, passage, grade = cells
        wrong = []
        if query not in queries:
            wrong.append(f"there is no query {query!r}.")
        if passage not in corpus:
            wrong.append(f"there is no passage {passage!r}.")
        if passage in qrels.get(query, {}):
            wrong.append(f"query {query!r} and passage {passage!r} stand in a row above.")
        try:
            value = int(grade)
        except ValueError:
            wrong.append(f"the score is {grade!r}; it should be a whole number.")
        for what in wrong:
            problems.add(path, number, what)
        if not wrong:
            qrels.setdefault(query, {})[passage] = value
    return qrels


def _text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())


def _kind(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
