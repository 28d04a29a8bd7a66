"""RankRAG's training samples as values, and what they are drawn by."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tamis.errors import InvalidInput
from tamis.rankrag.conversations import Message

RATIOS: Mapping[str, float] = {
    "sft": 0.2,
    "context_qa": 0.069 + 0.09 + 0.026 + 0.026 + 0.09 + 0.15 + 0.08 + 0.2,  # DROP to TATQA, and conversations
    "retrieval_qa": 0.09 + 0.09,  # SQuAD, WebQuestions
    "ranking": 0.15,  # MS MARCO
    "pseudo_ranking": 0.03,  # pairs from conversations
    "retrieval_ranking": 0.02 + 0.02,  # SQuAD, WebQuestions
}
"""Appendix B's blend, by task; they do not sum to 1 there either."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One example, as text.

    Attributes:
        kind: One of `RATIOS`.
        target: What the model is to say.
        question: What is asked.
        passages: What it is asked about; none for a chat.
        task: The wording's task, "short", "full", ...
        messages: For a chat: what was said before.
    """

    kind: str
    target: str
    question: str = ""
    passages: tuple[str, ...] = ()
    task: str = "short"
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What the samples are drawn by.

    Attributes:
        samples: How many in all; the paper's second stage has 211,200.
        ratios: Of the tasks, by their names in `RATIOS`; scaled to sum to 1 over those that have a source.
        contexts: Passages of a retrieval-augmented sample.
        questions: How many questions about the same passages are drawn together, at most; the paper draws one. More
            cost little where samples share rows.
        negatives: "False" for each "True" among the ranking pairs.
        ranking_share: Draw only this share of the ranking pairs, and no more of anything else for it.
        ranking_pairs: Ranking pairs at most.
        leave_out: Tasks without which the blend is made.
        unanswerable: The share of questions without an answer among those that are to be answered, and among the
            ranking pairs that are "False", where the collections have any.
        passage_words: A longer passage is shortened to the part with the answer.
        tasks: The wording's task by collection, where "short" (or "full", for answers above ten words) is not meant:
            "claim" for claims.
    """

    samples: int = 10_000
    ratios: Mapping[str, float] = field(default_factory=lambda: dict(RATIOS))
    contexts: int = 5
    questions: int = 1
    negatives: int = 1
    ranking_share: float = 1.0
    ranking_pairs: int | None = None
    leave_out: tuple[str, ...] = ()
    unanswerable: float = 0.1
    passage_words: int = 300
    tasks: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "leave_out", tuple(self.leave_out))
        for name in (*self.ratios, *self.leave_out):
            if name not in RATIOS:
                raise InvalidInput(f"There is no task {name!r}; the blend has {', '.join(RATIOS)}.")
        if any(ratio < 0 for ratio in self.ratios.values()):
            raise InvalidInput("A ratio is negative; 0 leaves a task out.")
        for name, least in (("samples", 1), ("contexts", 2), ("questions", 1), ("negatives", 1), ("passage_words", 16)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidInput(f"{name} = {value!r}; pass a whole number of at least {least}.")
        for name in ("ranking_share", "unanswerable"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInput(f"{name} = {getattr(self, name)!r}; pass a share from 0 to 1.")


def chat(messages: Sequence[Message]) -> Sample:
    """A conversation whose last turn is to be said."""
    return Sample("sft", messages[-1][1], messages=tuple(messages[:-1]))


def write_jsonl(samples: Iterable[Sample], path: Path) -> None:
    """Samples as one JSON object a line; `read_back` gives equal ones."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples)


def read_back(path: Path) -> list[Sample]:
    """What `write_jsonl` wrote."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        row["passages"] = tuple(row["passages"])
        row["messages"] = tuple((role, text) for role, text in row["messages"])
    return [Sample(**row) for row in rows]
