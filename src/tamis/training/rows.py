"""Training rows: queries with passages, and how good each passage is; from BEIR-shaped folders and from jsonl files.

The jsonl shapes are RAG-Retrieval's and FlagEmbedding's; a file holds rows of one shape or of several:

    {"query": q, "pos": [text, ...], "neg": [text, ...]}          neg: if any
    {"query": q, "pos": [text, ...], "scores": [s, ...]}          a teacher's scores of the passages, of neg's too
    {"query": q, "pos": [text, ...], "neg": [text, ...], "pos_scores": [s, ...], "neg_scores": [s, ...]}   the same
    {"query": q, "content": text, "label": l}                     one passage a row, graded
    {"query": q, "content": text, "score": s}                     one passage a row, by a teacher
    {"query": q, "hits": [{"content": text, "label": l}, ...]}    a graded list

Where a passage has its label or score beside it, it may have both. Any row may have "prompt_for_query", which is put
before the query. FlagEmbedding's "prompt" stands there for its embedders and behind the passage for its rerankers, and
a row does not say for which it was written: it is refused.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tamis.evaluation.rows import Problems
from tamis.evaluation.rows import read_jsonl as read_objects

_PROMPTS = ("prompt", "query_prompt", "passage_prompt")  # FlagEmbedding's: where they stand is not in the row


@dataclass(frozen=True, slots=True)
class Example:
    """A query and passages that were judged for it, or scored by a teacher, or both.

    Attributes:
        query: The question.
        passages: Texts, one or more.
        labels: How relevant each is, as the data say it (usually 0 or 1); empty where only a teacher speaks.
        scores: A teacher's value of each; empty where there is no teacher.
        prompt: What is put before the query, where the row says so.
        source: What the values are from: those of one source are on one scale.
    """

    query: str
    passages: tuple[str, ...]
    labels: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    prompt: str = ""
    source: str = ""

    @property
    def positives(self) -> tuple[str, ...]:
        """The passages with a label above 0."""
        return tuple(p for p, label in zip(self.passages, self.labels, strict=True) if label > 0)

    @property
    def negatives(self) -> tuple[str, ...]:
        """The passages with a label of 0 or less."""
        return tuple(p for p, label in zip(self.passages, self.labels, strict=True) if label <= 0)


def read_jsonl(path: Path) -> list[Example]:
    """The rows of one file, their source; those with one passage a row are gathered by query.

    Raises:
        InvalidInput: The file cannot be read.
        InvalidData: Rows that are no JSON object or of no known shape, every one with its line.
    """
    problems = Problems()
    examples: list[Example] = []
    single: dict[tuple[str, str, bool, bool], list[Example]] = defaultdict(list)
    for number, row in read_objects(path, problems):
        try:
            made = _example(row, str(path))
        except (KeyError, TypeError, ValueError) as error:
            problems.add(path, number, f"{_why(error)}.")
            continue
        if len(made.passages) == 1 and "content" in row:
            single[made.query, made.prompt, bool(made.labels), bool(made.scores)].append(made)
        else:
            examples.append(made)
    problems.check()
    return [*examples, *map(_gathered, single.values())]


def _gathered(rows: Sequence[Example]) -> Example:
    """Rows of one passage each, of one query and with the same kinds of values, as a list."""
    passages, labels, scores = (
        tuple(value for row in rows for value in getattr(row, name)) for name in ("passages", "labels", "scores")
    )
    return replace(rows[0], passages=passages, labels=labels, scores=scores)


def _example(row: Mapping[str, Any], source: str) -> Example:
    query, prompt = _text(row, "query"), str(row.get("prompt_for_query") or "")
    if unread := [key for key in _PROMPTS if row.get(key)]:
        raise ValueError(
            f"has a {unread[0]!r}, and does not say where it stands; what is put before the query is prompt_for_query, "
            "and nothing else can be kept"
        )
    made = partial(Example, query, prompt=prompt, source=source)
    if "hits" in row:
        hits = row["hits"]
        if not isinstance(hits, list) or not hits or not all(isinstance(hit, dict) for hit in hits):
            raise ValueError("hits has to be a list of objects with content and label")
        return _judged(made, hits)
    if "content" in row:
        return _judged(made, [row])
    positives = _texts(row, "pos")
    negatives = _texts(row, "neg") if row.get("neg") else ()
    passages, labels = positives + negatives, (1.0,) * len(positives) + (0.0,) * len(negatives)
    scores = _scores(row, len(positives), len(negatives))
    return made(passages, labels=labels if negatives or not scores else (), scores=scores)


def _scores(row: Mapping[str, Any], positives: int, negatives: int) -> tuple[float, ...]:
    """A teacher's scores of the passages in pos and then in neg, from one list or from two; empty if there are none."""
    apart = [key for key in ("pos_scores", "neg_scores") if row.get(key) is not None]
    if "scores" in row:
        if apart:
            raise ValueError(f"has scores and {apart[0]}; leave one of them out")
        return _numbers(row, "scores", positives + negatives, "pos and neg" if negatives else "pos")
    if not apart:
        return ()
    second = _numbers(row, "neg_scores", negatives, "neg") if negatives or "neg_scores" in apart else ()
    return _numbers(row, "pos_scores", positives, "pos") + second


def _numbers(row: Mapping[str, Any], key: str, count: int, where: str) -> tuple[float, ...]:
    values = row[key] if isinstance(row[key], list) else None
    if values is None:
        raise ValueError(f"{key} has to be a list of numbers")
    numbers = tuple(_number({key: value}, key) for value in values)
    if len(numbers) != count:
        raise ValueError(f"{len(numbers)} {key} for {count} passages in {where}")
    return numbers


def _judged(made: Callable[..., Example], rows: Sequence[Mapping[str, Any]]) -> Example:
    """Of rows of one passage each, with its label, its score, or both."""
    labels, scores = (
        tuple(_number(row, key) for row in rows) if any(key in row for row in rows) else ()
        for key in ("label", "score")
    )
    if not labels and not scores:
        raise ValueError("has neither a label nor a score")
    return made(tuple(_text(row, "content") for row in rows), labels=labels, scores=scores)


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} has to be a text that is not empty")
    return value


def _texts(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = row[key]
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
        raise ValueError(f"{key} has to be a list of texts that are not empty")
    return tuple(values)


def _number(row: Mapping[str, Any], key: str) -> float:
    value = row[key]
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # some scripts write scores as texts
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key} has to be a number")
    return number


def _why(error: Exception) -> str:
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)


def write_jsonl(examples: Iterable[Example], path: Path) -> None:
    """Examples as one JSON object a line, complete: `read_back` gives equal ones."""
    with path.open("w", encoding="utf-8") as file:
        for e in examples:
            row = {name: getattr(e, name) for name in Example.__slots__}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_back(path: Path) -> list[Example]:
    """What `write_jsonl` wrote."""
    with path.open(encoding="utf-8") as file:
        return [_read(json.loads(line)) for line in file]


def _read(row: dict[str, Any]) -> Example:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in row.items()}
    return Example(**values)


def scaled(examples: Sequence[Example]) -> list[Example]:
    """Labels of each source mapped linearly to [0, 1], from the least to the greatest that occurs in it."""
    bounds: dict[str, tuple[float, float]] = {}
    for e in examples:
        if e.labels:
            low, high = bounds.get(e.source, (0.0, 1.0))
            bounds[e.source] = (min(low, *e.labels), max(high, *e.labels))
    made = []
    for e in examples:
        low, high = bounds.get(e.source, (0.0, 1.0))
        made.append(replace(e, labels=tuple((label - low) / (high - low) for label in e.labels)))
    return made
