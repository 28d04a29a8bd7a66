"""`RankRAGReport`: what `evaluate_rankrag` found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.evaluation.bootstrap import Interval
from tamis.evaluation.collection import Collection
from tamis.evaluation.report import Report

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer.

    Attributes:
        text: What the model wrote.
        found: Whether it says that the answer is in the context. If not, it counts as an empty answer.
        contexts: Ids of the passages that it read, best first.
        exact: 1 or 0; see `tamis.evaluation.answers.exact`.
        f1: From 0 to 1; see `tamis.evaluation.answers.f1`.
        accurate: 1 or 0; see `tamis.evaluation.answers.holds`.
        answers: The right ones; () if there is none.
    """

    text: str
    found: bool
    contexts: tuple[str, ...]
    exact: float
    f1: float
    accurate: float
    answers: tuple[str, ...]


def scores(answered: Answered) -> dict[str, float]:
    """What is averaged over answers, by its name in reports."""
    return {"EM": answered.exact, "F1": answered.f1, "accuracy": answered.accurate}


@dataclass(frozen=True, slots=True)
class AnswerResult:
    """One model's answers in one collection.

    Attributes:
        collection: Its queries are those that were asked.
        model: The model's name.
        without: By query, the answers from the first stage's order.
        without_seconds: What they took together, on the clock.
        reranked: By query, the answers from the model's own order.
        reranked_seconds: What they took, ranking not included.
        differences: What reranking gains in EM, F1 and accuracy; empty if nothing was answered.
    """

    collection: Collection
    model: str
    without: Mapping[str, Answered] = field(repr=False)
    without_seconds: float
    reranked: Mapping[str, Answered] = field(repr=False)
    reranked_seconds: float
    differences: Mapping[str, Interval]

    def means(self, *, reranked: bool) -> dict[str, float | None]:
        """Over all questions, over those with an answer, and over those without; None where there is none.

        `found_precision` is the share of the questions that were answered at all that have an answer, `found_recall`
        the share of those that have one that were answered at all.
        """
        all_of = list((self.reranked if reranked else self.without).values())
        having = [one for one in all_of if one.answers]
        lacking = [one for one in all_of if not one.answers]
        said = [one for one in all_of if one.found]
        return {
            **{name: _mean(scores(one)[name] for one in all_of) for name in ("EM", "F1", "accuracy")},
            "answerable_EM": _mean(one.exact for one in having),
            "answerable_F1": _mean(one.f1 for one in having),
            "unanswerable_EM": _mean(one.exact for one in lacking),
            "found_precision": _mean(float(bool(one.answers)) for one in said),
            "found_recall": _mean(float(one.found) for one in having),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the answers."""
        unanswerable = sum(not one.answers for one in self.reranked.values())
        count = max(1, len(self.reranked))
        return {
            "collection": self.collection.name,
            "model": self.model,
            "answered": len(self.reranked),
            "unanswerable": unanswerable,
            "without_reranking": {
                **self.means(reranked=False), "seconds_per_answer": self.without_seconds / count,
            },
            "with_reranking": {
                **self.means(reranked=True), "seconds_per_answer": self.reranked_seconds / count,
            },
            "differences": {name: one._asdict() for name, one in self.differences.items()},
        }  # fmt: skip


def _mean(values: Iterator[float]) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None


@dataclass(frozen=True, slots=True)
class RankRAGReport:
    """What `evaluate_rankrag` found.

    Attributes:
        ranking: How the models rank, as `evaluate` reports it.
        answers: One result for each collection and model.
        top_k: Passages that an answer was written from, at most.
        min_score: What passages had to have to be read, with reranking; None if nothing.
    """

    ranking: Report
    answers: tuple[AnswerResult, ...]
    top_k: int
    min_score: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `json.dump`: those of `ranking`, and `answers`."""
        answers = [one.to_json() for one in self.answers if one.reranked]
        return {**self.ranking.to_json(), "top_k": self.top_k, "min_score": self.min_score, "answers": answers}

    def table(self) -> RenderableType:
        """For a terminal of 80 columns; `rich.print` shows it."""
        from tamis.evaluation.tables import rankrag_tables

        return rankrag_tables(self)

    def save_plots(self, folder: str | Path) -> list[Path]:
        """Writes those of `ranking`, and `answers.png`: EM and F1 with and without reranking.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        from tamis.evaluation.plots import rankrag_plots

        return [*self.ranking.save_plots(folder), *rankrag_plots(self, Path(folder))]

    def write_per_query(self, path: str | Path) -> None:
        """Writes one JSON object a line for each collection, model and question: its answers, and their scores."""
        with Path(path).open("w", encoding="utf-8") as file:
            for each in self.answers:
                for line in _lines(each):
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _lines(result: AnswerResult) -> Iterator[dict[str, Any]]:
    for key, after in result.reranked.items():
        grades = result.collection.qrels[key]
        yield {
            "collection": result.collection.name,
            "model": result.model,
            "query_id": key,
            "query": result.collection.queries[key].text,
            "answers": list(after.answers),
            "relevant": [passage for passage, grade in grades.items() if grade > 0],
            "without_reranking": _said(result.without[key]),
            "with_reranking": _said(after),
        }


def _said(answered: Answered) -> dict[str, Any]:
    return {"text": answered.text, "found": answered.found, "contexts": list(answered.contexts), **scores(answered)}
