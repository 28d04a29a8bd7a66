"""Examples for training from what a recipe names: jsonl files as they are, BEIR-shaped folders with mining."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tamis.errors import InvalidData
from tamis.evaluation.collection import Collection, Query, read_collection
from tamis.evaluation.first_stage import bm25_run, dense_run
from tamis.training.mining import mine
from tamis.training.recipe import BM25, EMBEDDED, DataOptions
from tamis.training.rows import Example, read_jsonl, scaled
from tamis.types import Passage

if TYPE_CHECKING:
    from tamis.reranker import Reranker

ASKS = 4  # words of a title that can be taken for a question
T = TypeVar("T")


def read_examples(data: DataOptions, seed: int, progress: bool | None = None) -> list[Example]:
    """Every example that `[data]` asks for, shuffled.

    Args:
        data: The table.
        seed: Of the draws.
        progress: Bars on standard error; None shows them in a terminal.

    Raises:
        InvalidInput: A folder or file is missing.
        InvalidData: Bad rows, all of them, of every file.
    """
    sources = read_sources(data.train)
    rng = np.random.default_rng(seed)
    examples: list[Example] = []
    miner = _Miner(data, rng, progress)
    try:
        for path, source in sources:
            limit = data.limit_of(path)
            if isinstance(source, Collection):
                examples += miner.examples(source, str(path), limit)
            else:
                examples += drawn(source, limit, rng)
    finally:
        miner.close()
    examples = scaled(examples)
    if data.teacher is not None:
        examples = taught(examples, data.teacher, data.teacher_mode, progress)
    return [examples[i] for i in rng.permutation(len(examples))]


def read_sources(names: Sequence[str]) -> list[tuple[Path, Collection | list[Example]]]:
    """What is there to train on, folders and files, as it is: nothing is mined or scored.

    Raises:
        InvalidInput: A folder or file is missing.
        InvalidData: Bad rows, all of them, of every file.
    """
    problems: list[str] = []
    sources: list[tuple[Path, Collection | list[Example]]] = []
    for name in names:
        path = Path(name).expanduser()
        try:
            sources.append((path, read_jsonl(path) if path.suffix == ".jsonl" else read_collection(path, "train")))
        except InvalidData as error:
            problems += error.problems
    if problems:
        raise InvalidData(problems)
    return sources


def drawn(examples: Sequence[T], limit: int | None, rng: np.random.Generator) -> list[T]:
    """At most `limit` of them, in their old order."""
    return [examples[i] for i in sorted(rng.permutation(len(examples))[:limit])]


def taught(
    examples: Sequence[Example], teacher: str, mode: str | None = None, progress: bool | None = None
) -> list[Example]:
    """The examples with a teacher's logits as `scores`, computed by Tamis's own engine; those that have some keep them.

    A file's own scores may be probabilities, so that the teacher's are of a source of their own.

    Args:
        examples: Queries and passages.
        teacher: A reranker: a folder, a hub id or "embedded".
        mode: Its `mode` for `tamis.load`.
        progress: A bar on standard error; None shows it in a terminal.
    """
    todo = [e for e in examples if not e.scores]
    with _opened(teacher, mode) as reranker:
        found = iter(_logits(reranker, [(e.query, e.passages) for e in todo], progress))
    return [e if e.scores else replace(e, scores=tuple(next(found)), source=f"{e.source}, {teacher}") for e in examples]


def _opened(model: str, mode: str | None = None) -> Reranker:
    from tamis import load

    return load(None if model == EMBEDDED else model, mode=mode)


def _logits(
    reranker: Reranker, requests: Iterable[tuple[str, Sequence[str]]], progress: bool | None
) -> list[list[float]]:
    found = []
    shown = sys.stderr.isatty() if progress is None else progress
    for ranking in reranker.rank_many(requests, progress=shown):
        values = [0.0] * len(ranking)
        for hit in ranking:
            values[hit.index] = hit.logit
        found.append(values)
    return found


class _Miner:
    """Makes examples of collections; its bi-encoder, if any, is loaded once for all of them."""

    def __init__(self, data: DataOptions, rng: np.random.Generator, progress: bool | None) -> None:
        self.data = data
        self.rng = rng
        self.progress = progress
        searching = [name for name in data.negatives_from if name != BM25]
        self.searching = [_opened(name, "bi-encoder") for name in searching]
        self.guard = None if data.guard_model is None else _opened(data.guard_model, "bi-encoder")
        self.teaches = data.guard_model is not None and (data.guard_model, "bi-encoder") == (
            data.teacher,
            data.teacher_mode,
        )

    def close(self) -> None:
        for reranker in (*self.searching, self.guard):
            if reranker is not None:
                reranker.close()

    def examples(self, collection: Collection, source: str, limit: int | None) -> list[Example]:
        """One example for each positive of each query, with negatives of its own."""
        asked = list(collection.queries)
        answered = [q for q in asked if any(grade > 0 for grade in collection.qrels.get(q, {}).values())]
        chosen = [answered[i] for i in sorted(self.rng.permutation(len(answered))[:limit])]
        collection = replace(collection, queries={q: collection.queries[q] for q in chosen})
        runs = []
        if BM25 in self.data.negatives_from:
            runs.append(bm25_run(collection, top=self.data.negatives_top))
        similarities = None
        runs += [dense_run(collection, model, top=self.data.negatives_top) for model in self.searching]
        if self.guard is not None:
            similarities = self._similarities(collection, runs)
        found = mine(
            collection,
            runs,
            negatives=self.data.negatives * self.data.positives,
            top=self.data.negatives_top,
            rng=self.rng,
            similarities=similarities,
            guard=self.data.guard,
        )
        made = []
        for name in chosen:
            grades = collection.qrels[name]
            positives = [p for p, grade in grades.items() if grade > 0]
            drawn = [positives[i] for i in self.rng.permutation(len(positives))[: self.data.positives]]
            negatives = found[name]
            share = min(self.data.negatives, max(1, len(negatives) // len(drawn)))
            for k, positive in enumerate(drawn):
                mine_of = negatives[k * share : (k + 1) * share]
                texts = tuple(collection.corpus[p].text for p in (positive, *mine_of))
                labels = (float(grades[positive]), *(0.0,) * len(mine_of))
                near = similarities[name] if self.teaches and similarities else None
                scores = tuple(near[p] for p in (positive, *mine_of)) if near is not None else ()
                made.append(Example(collection.queries[name].text, texts, labels, scores, source=source))
        return made + self._titles(collection, f"{source}, titles")

    def _similarities(
        self, collection: Collection, runs: Sequence[dict[str, dict[str, float]]]
    ) -> dict[str, dict[str, float]]:
        pools = {
            q: list(dict.fromkeys([*(p for run in runs for p in run.get(q, {})), *collection.qrels[q]]))
            for q in collection.queries
        }
        assert self.guard is not None  # noqa: S101 - asked before the call
        requests = [
            (collection.queries[q].text, [collection.corpus[p].text for p in pool]) for q, pool in pools.items()
        ]
        logits = _logits(self.guard, requests, self.progress)
        return {
            q: dict(zip(pool, values, strict=True)) for (q, pool), values in zip(pools.items(), logits, strict=True)
        }

    def _titles(self, collection: Collection, source: str) -> list[Example]:
        """Passages asked for by their title, without which they are then shown, as are the negatives."""
        if not self.data.titles:
            return []
        ids = [p for p in collection.corpus if headless(collection.corpus[p])[0]]
        ids = [ids[i] for i in self.rng.permutation(len(ids))[: self.data.titles]]
        queries = {p: headless(collection.corpus[p])[0] for p in ids}
        asked = replace(
            collection,
            queries={p: Query(p, text) for p, text in queries.items()},
            qrels={p: {p: 1} for p in ids},
        )
        run = bm25_run(asked, top=self.data.negatives_top)
        made = []
        for p in ids:
            own = _title(collection.corpus[p])
            others = [o for o in run.get(p, {}) if _title(collection.corpus[o]) != own]
            drawn = [others[i] for i in self.rng.permutation(len(others))[: self.data.negatives]]
            texts = tuple(headless(collection.corpus[o])[1] for o in (p, *drawn))
            made.append(Example(queries[p], texts, (1.0, *(0.0,) * len(drawn)), source=source))
        return made


def _title(passage: Passage) -> str:
    return str((passage.metadata or {}).get("title") or "")


def headless(passage: Passage) -> tuple[str, str]:
    r"""A passage's title, if it is long enough to ask for it, else ""; and its text without the title.

    >>> headless(Passage("On the age of stars\nThey are old.", metadata={"title": "On the age of stars"}))
    ('On the age of stars', 'They are old.')
    """
    title = _title(passage)
    rest = passage.text[len(title) :].strip() if title and passage.text.startswith(title) else passage.text
    return (title if len(title.split()) >= ASKS and rest else "", rest or passage.text)
