"""What is drawn for a query: the guards and draws of `tamis.training.mining`, a row at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.errors import InvalidData, InvalidInput
from tamis_ray.bulk_columns import Row, check_columns, check_schema, wrong_text, wrong_texts
from tamis_ray.bulk_scoring import check_rows, score_rows

if TYPE_CHECKING:
    import pyarrow as pa

    from tamis import Hit, Reranker

SIMILARITIES = ("bi-encoder", "late-interaction")  # modes whose logit is a similarity, which the guard's margin is of


@dataclass(frozen=True, slots=True)
class Mining:
    """What an actor has to know. The fields are arguments of `mine_negatives`.

    Attributes:
        columns: Of the query, its positives and its candidates.
        answers: The column of answers.
        negatives: See there, as of the rest.
    """

    columns: tuple[str, str, str]
    answers: str | None
    negatives: int
    top: int
    guard: float | None
    form: str
    seed: int
    skip: bool

    def __post_init__(self) -> None:
        check_columns(*self.columns, *([] if self.answers is None else [self.answers]))
        for name in ("negatives", "top"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInput(f"{name}={value!r}; pass an int of at least 1.")
        number = isinstance(self.guard, int | float) and not isinstance(self.guard, bool) and self.guard > 0
        if self.guard is not None and not number:
            raise InvalidInput(f"guard={self.guard!r}; pass a number above 0, or None.")
        if self.form not in ("labels", "scores"):
            raise InvalidInput(f'form={self.form!r}; pass "labels" or "scores".')

    def identity(self) -> dict[str, Any]:
        """What tells the job from others, besides its model and its input."""
        names = ("answers", "negatives", "top", "guard", "form", "seed")
        return {"task": "mine", "columns": list(self.columns), **{name: getattr(self, name) for name in names}}

    def needed(self) -> list[str]:
        """The columns that are read."""
        return [*self.columns, *([] if self.answers is None else [self.answers])]

    def check(self, schema: pa.Schema, where: str) -> None:
        """Raises InvalidInput if columns are missing or hold something else."""
        check_schema(schema, {name: name != self.columns[0] for name in self.needed()}, (), where)

    def part(self, reranker: Reranker, table: pa.Table, where: str, first: int) -> tuple[bytes, int]:
        """Lines of JSON for the rows, and how many rows are not among them."""
        asked = [self._asked(row) for row in table.to_pylist()]
        if not self.skip:
            check_rows(table, asked, (), where, first)
        found = score_rows(
            reranker,
            [one if isinstance(one, str) else one.row for one in asked],
            None if self.skip else InvalidData.SHOWN,
        )
        if not self.skip:
            check_rows(table, found, (), where, first)
        lines = [
            self._line(one, hits, reranker.mode in SIMILARITIES)
            for one, hits in zip(asked, found, strict=True)
            if not isinstance(one, str) and not isinstance(hits, str)
        ]
        return "".join(lines).encode(), len(asked) - sum(map(bool, lines))

    def _asked(self, row: dict[str, Any]) -> Asked | str:
        query, positives, candidates = (row[name] for name in self.columns)
        answers = row[self.answers] if self.answers else None
        wrong = (
            wrong_text(self.columns[0], query)
            or wrong_texts(self.columns[1], positives)
            or wrong_texts(self.columns[2], candidates)
            or (wrong_texts(self.answers, answers) if self.answers and answers is not None else "")
        )
        if not wrong and not positives:
            wrong = f"{self.columns[1]} is empty"
        return wrong or Asked(query, tuple(positives), tuple(candidates[: self.top]), tuple(answers or ()))

    def _line(self, asked: Asked, hits: Sequence[Hit], similar: bool) -> str:
        """The row's line; empty if it has no negative."""
        import numpy as np

        from tamis.evaluation.collection import Collection, Query
        from tamis.training.mining import mine
        from tamis.types import Passage

        logits = {hit.passage.text: hit.logit for hit in hits}
        query = Query(asked.query, asked.query, asked.answers or None)
        collection = Collection(
            "mined",
            "train",
            {text: Passage(text) for text in logits},
            {query.id: query},
            {query.id: dict.fromkeys(asked.positives, 1)},
        )
        found = mine(
            collection,
            [{query.id: dict.fromkeys(asked.candidates, 0.0)}],
            negatives=self.negatives,
            top=self.top,
            rng=np.random.default_rng([self.seed, int(sha256(asked.query.encode()).hexdigest()[:16], 16)]),
            similarities={query.id: logits if similar else {hit.passage.text: hit.score for hit in hits}},
            guard=self.guard,
        )[query.id]
        positives = list(dict.fromkeys(asked.positives))
        if not found:
            return ""
        made: dict[str, Any] = {"query": asked.query, "pos": positives, "neg": list(found)}
        if self.form == "scores":
            passages = [*positives, *found]
            made = {"query": asked.query, "pos": passages, "scores": [logits[text] for text in passages]}
        return json.dumps(made, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class Asked:
    """A query with what may be drawn for it."""

    query: str
    positives: tuple[str, ...]
    candidates: tuple[str, ...]
    answers: tuple[str, ...]

    @property
    def row(self) -> Row:
        """Its passages, each once."""
        return Row(self.query, tuple(dict.fromkeys((*self.positives, *self.candidates))), listed=True)


def searched(folder: Path, split: str, mining: Mining) -> pa.Table:
    """Rows for a collection in BEIR's layout: BM25's best of each query that has a positive."""
    import pyarrow as pa

    from tamis.evaluation.collection import read_collection
    from tamis.evaluation.first_stage import bm25_run

    collection = read_collection(folder, split)
    asked = collection.answerable()
    run = bm25_run(collection, mining.top, queries=asked)
    query, positives, candidates = mining.columns
    rows = []
    for name in asked:
        relevant = [passage for passage, grade in collection.qrels[name].items() if grade > 0]
        row = {
            query: collection.queries[name].text,
            positives: [collection.corpus[passage].text for passage in relevant],
            candidates: [collection.corpus[passage].text for passage in run[name]],
        }
        if mining.answers:
            row[mining.answers] = list(collection.queries[name].answers or ())
        rows.append(row)
    if not rows:
        raise InvalidInput(f"{folder} has no query with a relevant passage in its split {split!r}.")
    texts = pa.list_(pa.string())
    lists = [positives, candidates, *([mining.answers] if mining.answers else [])]
    return pa.Table.from_pylist(rows, pa.schema([(query, pa.string()), *((name, texts) for name in lists)]))
