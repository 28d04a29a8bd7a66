"""RankRAG's training samples: the paper's five tasks, made from test collections with answers, and from chats.

Yu et al. 2024 (arXiv 2407.02485), section 4.2 and appendices B and C. A sample is text; `rankrag_tokens` makes it what
the model reads. See `docs/training-rankrag.md` for which of the paper's data each task stands for.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from tamis.errors import InvalidInput
from tamis.evaluation.collection import Collection, Query
from tamis.rankrag.conversations import Message
from tamis.training.mining import holds_answer
from tamis.training.rankrag_passages import CHUNK_WORDS, IRRELEVANT, RELEVANT, chunks, recall, shortened

RATIOS: Mapping[str, float] = {
    "sft": 0.2,
    "context_qa": 0.069 + 0.09 + 0.026 + 0.026 + 0.09 + 0.15 + 0.08 + 0.2,  # DROP to TATQA, and conversations
    "retrieval_qa": 0.09 + 0.09,  # SQuAD, WebQuestions
    "ranking": 0.15,  # MS MARCO
    "pseudo_ranking": 0.03,  # pairs from conversations
    "retrieval_ranking": 0.02 + 0.02,  # SQuAD, WebQuestions
}
"""Appendix B's blend, by task; they do not sum to 1 there either."""

NOT_THERE = "The answer cannot be found in the context."  # `tamis.rankrag.answers.says_nothing` is true of it
LONG_ANSWER = 10  # words: a longer one is asked for as a full answer, not as a short phrase
GOLD = 2  # relevant passages among the contexts, at most
DUPLICATE = 0.5  # a passage with more of a relevant passage's 4-grams than this is no negative

Key: TypeAlias = tuple[int, str]  # of a query: which collection, and its id there


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


@dataclass(frozen=True, slots=True)
class Blend:
    """Samples in the order in which they were drawn, shuffled.

    Attributes:
        samples: All tasks' together.
        counts: Samples of each task.
        left_out: Tasks without samples, and why.
    """

    samples: tuple[Sample, ...]
    counts: Mapping[str, int]
    left_out: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What the samples are drawn by.

    Attributes:
        samples: How many in all; the paper's second stage has 211,200.
        ratios: Of the tasks, by their names in `RATIOS`; scaled to sum to 1 over those that have a source.
        contexts: Passages of a retrieval-augmented sample.
        questions: How many questions are asked about the same contexts, at most; the paper asks one. More cost little
            where samples share rows.
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


def blend(
    collections: Sequence[Collection],
    runs: Sequence[Mapping[str, Mapping[str, float]]],
    chats: Sequence[Sequence[Message]],
    mix: Mix,
    rng: np.random.Generator,
) -> Blend:
    """The samples of the second stage, in the ratios of `mix`.

    Args:
        collections: What questions and passages are drawn from; those without answers give ranking pairs only.
        runs: BM25's of each of them: hard negatives and contexts are drawn from what it found.
        chats: Conversations that end with the assistant's turn.
        mix: How many of what.
        rng: Draws.

    Raises:
        InvalidInput: No task has a source.
    """
    drawing = _Drawing(collections, runs, mix, rng)
    made: dict[str, Callable[[int], list[Sample]]] = {
        "sft": lambda count: [chat(chats[i]) for i in _order(len(chats), count, rng)],
        "context_qa": drawing.context_qa,
        "retrieval_qa": drawing.retrieval_qa,
        "ranking": drawing.ranking,
        "pseudo_ranking": drawing.pseudo_ranking,
        "retrieval_ranking": drawing.retrieval_ranking,
    }
    left_out: dict[str, str] = {}
    for kind in RATIOS:
        if kind in mix.leave_out or not mix.ratios.get(kind, 0.0):
            left_out[kind] = "asked for"
        elif not (chats if kind == "sft" else made[kind](1)):
            left_out[kind] = "no source"
    kinds = [kind for kind in RATIOS if kind not in left_out]
    total = sum(mix.ratios[kind] for kind in kinds)
    if not kinds:
        raise InvalidInput(f"There is nothing to train on: {left_out}.")
    samples: list[Sample] = []
    room = mix.ranking_pairs
    for kind in kinds:
        count = round(mix.samples * mix.ratios[kind] / total)
        if kind in ("ranking", "pseudo_ranking"):
            count = round(count * mix.ranking_share)
            count, room = (count, None) if room is None else (min(count, room), room - min(count, room))
        samples += made[kind](count) if count else []
    counts = {kind: sum(sample.kind == kind for sample in samples) for kind in kinds}
    return Blend(tuple(samples[i] for i in rng.permutation(len(samples))), counts, left_out)


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


def _order(size: int, count: int, rng: np.random.Generator) -> Iterator[int]:
    """Places in a list of `size`, all once before one comes again."""
    for start in range(0, count, size or 1):
        yield from (int(i) for i in rng.permutation(size)[: count - start])


class _Drawing:
    def __init__(
        self,
        collections: Sequence[Collection],
        runs: Sequence[Mapping[str, Mapping[str, float]]],
        mix: Mix,
        rng: np.random.Generator,
    ) -> None:
        self._collections, self._runs, self._mix, self._rng = collections, runs, mix, rng
        keys = [(number, query) for number, one in enumerate(collections) for query in one.queries]
        self._relevant = [key for key in keys if self._gold(key)]
        self._answered = [key for key in self._relevant if self._query(key).answers]
        self._unanswerable = [key for key in keys if self._query(key).answers == ()]
        self._about: dict[tuple[int, str], list[Key]] = defaultdict(list)  # by passage, the questions that it answers
        for key in self._answered:
            for passage in self._gold(key):
                self._about[key[0], passage].append(key)

    # -- the five tasks ---------------------------------------------------------------------------------------------

    def context_qa(self, count: int) -> list[Sample]:
        """A question after the one passage that answers it, or after one that does not."""

        def make(key: Key) -> list[Sample]:
            query, answer = self._query(key), self._answer(key)
            gold = self._gold(key) or [*self._judged(key), *self._found(key)][:1]
            said, task = answer or NOT_THERE, self._task(key, answer)
            chosen = self._one(gold)
            return [Sample("context_qa", said, query.text, (self._text(key, one, answer),), task) for one in chosen]

        return self._asked(count, make)

    def retrieval_qa(self, count: int) -> list[Sample]:
        """A question after `contexts` passages: those that answer it, and what BM25 found besides, shuffled."""

        def make(key: Key) -> list[Sample]:
            ids = self._contexts(key, self._gold(key)[:GOLD] or self._judged(key)[:1], self._found(key))
            passages = tuple(self._text(key, one, self._answer(key)) for one in ids)
            made = []
            for one in [key, *self._companions(key, ids)] if ids else []:
                answer = self._answer(one)
                if one == key or not answer or any(answer in text for text in passages):
                    said, task = answer or NOT_THERE, self._task(one, answer)
                    made.append(Sample("retrieval_qa", said, self._query(one).text, passages, task))
            return made

        return self._asked(count, make)

    def ranking(self, count: int) -> list[Sample]:
        """One passage, relevant or not; what is not is what BM25 takes for it, or was judged."""

        def relevant(key: Key) -> list[Sample]:
            chosen = self._one(self._gold(key))
            return [self._pair(key, "ranking", self._text(key, one, self._answer(key)), True) for one in chosen]

        def irrelevant(key: Key) -> list[Sample]:
            key = self._sometimes_unanswerable(key)
            chosen = self._one(self._negatives(key))
            return [self._pair(key, "ranking", self._text(key, one, ""), False) for one in chosen]

        return self._pairs(self._relevant, count, relevant, irrelevant)

    def pseudo_ranking(self, count: int) -> list[Sample]:
        """A chunk of a long relevant passage, relevant if it has the answer's 4-grams."""

        def parts(key: Key, low: float, high: float) -> list[str]:
            answers = [answer for answer in self._query(key).answers or () if _telling(answer)]
            whole = [self._collections[key[0]].corpus[one].text for one in self._gold(key)]
            cut = [part for text in whole if len(text.split()) > CHUNK_WORDS for part in chunks(text)]
            return [part for part in cut if answers and low < max(recall(one, part) for one in answers) < high]

        def relevant(key: Key) -> list[Sample]:
            chosen = self._one(parts(key, RELEVANT, 2.0))
            return [self._pair(key, "pseudo_ranking", part, True) for part in chosen]

        def irrelevant(key: Key) -> list[Sample]:
            chosen = self._one(parts(key, -1.0, IRRELEVANT))
            return [self._pair(key, "pseudo_ranking", part, False) for part in chosen]

        return self._pairs(self._answered, count, relevant, irrelevant)

    def retrieval_ranking(self, count: int) -> list[Sample]:
        """Which of `contexts` passages are relevant."""

        def make(key: Key) -> list[Sample]:
            ids = self._contexts(key, self._gold(key)[:GOLD], self._negatives(key))
            passages = tuple(self._text(key, one, self._answer(key)) for one in ids)
            made = []
            for one in [key, *self._companions(key, ids)] if ids else []:
                gold = self._gold(one)
                others = [other for other in ids if other not in gold]
                if not gold or (one != key and len(self._harmless(one, others)) < len(others)):
                    continue
                target = ", ".join(f"Passage {number}" for number, other in enumerate(ids, 1) if other in gold)
                made.append(Sample("retrieval_ranking", target, self._query(one).text, passages, self._task(one, "")))
            return made

        return self._drawn(self._relevant, count, make)

    # -- draws ------------------------------------------------------------------------------------------------------

    def _drawn(self, keys: Sequence[Key], count: int, make: Callable[[Key], list[Sample]]) -> list[Sample]:
        """Samples of queries in random order, all once before one comes again; fewer if none gives any."""
        samples: list[Sample] = []
        while len(samples) < count:
            before = len(samples)
            for place in self._rng.permutation(len(keys)):
                samples += make(keys[place])
                if len(samples) >= count:
                    return samples[:count]
            if len(samples) == before:
                break
        return samples

    def _pairs(
        self,
        keys: Sequence[Key],
        count: int,
        relevant: Callable[[Key], list[Sample]],
        irrelevant: Callable[[Key], list[Sample]],
    ) -> list[Sample]:
        """`negatives` irrelevant passages for each relevant one."""
        true = math.ceil(count / (1 + self._mix.negatives))
        return self._drawn(keys, true, relevant) + self._drawn(keys, count - true, irrelevant)

    def _one(self, pool: Sequence[str]) -> list[str]:
        return [pool[int(self._rng.integers(len(pool)))]] if pool else []

    def _asked(self, count: int, make: Callable[[Key], list[Sample]]) -> list[Sample]:
        """Samples of questions with answers, and of some without."""
        without = round(count * self._mix.unanswerable) if self._answered else count
        some = self._drawn(self._unanswerable, without, make) if without else []
        return some + (self._drawn(self._answered, count - len(some), make) if count > len(some) else [])

    def _companions(self, key: Key, ids: Sequence[str]) -> list[Key]:
        """Other questions that passages among `ids` answer, drawn; as many as `questions` leaves room for."""
        found = dict.fromkeys(other for one in ids for other in self._about[key[0], one] if other != key)
        others = list(found)
        return [others[i] for i in self._rng.permutation(len(others))[: self._mix.questions - 1]]

    def _sometimes_unanswerable(self, key: Key) -> Key:
        if self._unanswerable and self._rng.random() < self._mix.unanswerable:
            return self._unanswerable[int(self._rng.integers(len(self._unanswerable)))]
        return key

    def _pair(self, key: Key, kind: str, passage: str, positive: bool) -> Sample:
        return Sample(kind, "True" if positive else "False", self._query(key).text, (passage,), self._task(key, ""))

    def _contexts(self, key: Key, first: Sequence[str], others: Sequence[str]) -> list[str]:
        """`first` and the best of the others, shuffled; none if there are too few."""
        ids = list(dict.fromkeys([*first, *others]))[: self._mix.contexts]
        if len(ids) < self._mix.contexts:
            return []
        return [ids[i] for i in self._rng.permutation(len(ids))]

    # -- a query ----------------------------------------------------------------------------------------------------

    def _query(self, key: Key) -> Query:
        return self._collections[key[0]].queries[key[1]]

    def _gold(self, key: Key) -> list[str]:
        judged = self._collections[key[0]].qrels.get(key[1], {})
        return [passage for passage, grade in judged.items() if grade > 0]

    def _judged(self, key: Key) -> list[str]:
        """What was judged and is not relevant."""
        judged = self._collections[key[0]].qrels.get(key[1], {})
        return [passage for passage, grade in judged.items() if grade <= 0]

    def _found(self, key: Key) -> list[str]:
        """What BM25 found and is not known to be relevant, best first."""
        gold = set(self._gold(key))
        return [passage for passage in self._runs[key[0]].get(key[1], {}) if passage not in gold]

    def _negatives(self, key: Key) -> list[str]:
        """What was judged and what BM25 found, without what may well be relevant."""
        return list(dict.fromkeys([*self._judged(key), *self._harmless(key, self._found(key))]))

    def _harmless(self, key: Key, passages: Sequence[str]) -> list[str]:
        """Those that hold none of the query's answers, and repeat none of its relevant passages."""
        corpus, query = self._collections[key[0]].corpus, self._query(key)
        gold = [corpus[one].text for one in self._gold(key)]
        return [
            one
            for one in passages
            if not holds_answer(query, corpus[one].text)
            and all(recall(text, corpus[one].text) <= DUPLICATE for text in gold)
        ]

    def _answer(self, key: Key) -> str:
        """The shortest of its answers, the model answer in a phrase; empty if it has none."""
        return min((answer.strip() for answer in self._query(key).answers or ()), key=len, default="")

    def _task(self, key: Key, answer: str) -> str:
        usual = "full" if len(answer.split()) > LONG_ANSWER else "short"
        return self._mix.tasks.get(self._collections[key[0]].name, usual)

    def _text(self, key: Key, passage: str, around: str) -> str:
        return shortened(self._collections[key[0]].corpus[passage].text, self._mix.passage_words, around)


def _telling(answer: str) -> bool:
    """Whether it matters that a passage has the answer's words."""
    return len(answer) > 2 and answer.casefold() not in ("yes", "maybe", "true", "false")
