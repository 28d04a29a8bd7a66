"""RankRAG's samples, drawn from test collections with answers: see `tamis.training.rankrag_data` for the tasks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from tamis.evaluation.collection import Collection, Query
from tamis.training.mining import holds_answer
from tamis.training.rankrag_passages import CHUNK_WORDS, IRRELEVANT, RELEVANT, chunks, recall, shortened
from tamis.training.rankrag_samples import Mix, Sample

if TYPE_CHECKING:
    import numpy as np

NOT_THERE = "The answer cannot be found in the context."  # `tamis.rankrag.answers.says_nothing` is true of it
LONG_ANSWER = 10  # words: a longer one is asked for as a full answer, not as a short phrase
GOLD = 2  # relevant passages among the contexts, at most
SAYS_LITTLE = ("yes", "no", "maybe", "true", "false")  # answers that no passage has to hold
DUPLICATE = 0.5  # a passage with more of a relevant passage's 4-grams than this is no negative

Key: TypeAlias = tuple[int, str]  # of a query: which collection, and its id there


class Drawing:
    """Draws samples of the four tasks that have passages.

    Args:
        collections: Questions, passages and judgements.
        runs: BM25's of each of them.
        mix: How.
        rng: Draws.
    """

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
        self._used: set[tuple[int, str]] = set()  # passages of positive ranking pairs
        self._about: dict[tuple[int, str], list[Key]] = defaultdict(list)  # by passage, the questions that it answers
        for key in self._answered:
            for passage in self._gold(key):
                self._about[key[0], passage].append(key)

    # -- the five tasks ---------------------------------------------------------------------------------------------

    def context_qa(self, count: int) -> list[Sample]:
        """A question after the one passage that answers it, or after one that does not."""

        def make(key: Key) -> list[Sample]:
            query, answer = self._query(key), self._answer(key)
            gold = self._answering(key) if answer else (self._gold(key) or [*self._judged(key), *self._found(key)][:1])
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
            self._used |= {(key[0], one) for one in chosen}
            return [self._pair(key, "ranking", self._text(key, one, self._answer(key)), True) for one in chosen]

        def irrelevant(key: Key) -> list[Sample]:
            key = self._sometimes_unanswerable(key)
            pool = self._negatives(key)
            if self._mix.questions > 1:  # passages that others are relevant to: they share their rows
                pool = [one for one in pool if (key[0], one) in self._used] or pool
            chosen = self._one(pool)
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
            for key in self._shuffled(keys):
                samples += make(key)
                if len(samples) >= count:
                    return samples[:count]
            if len(samples) == before:
                break
        return samples

    def _shuffled(self, keys: Sequence[Key]) -> list[Key]:
        """The queries in random order; those about one passage together, up to `questions` of them."""
        drawn = [keys[place] for place in self._rng.permutation(len(keys))]
        if self._mix.questions == 1:
            return drawn
        groups: dict[tuple[int, str], list[Key]] = defaultdict(list)
        for key in drawn:
            groups[key[0], next(iter([*self._gold(key), *self._judged(key)]), "")].append(key)
        size = self._mix.questions
        parts = [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]
        return [key for place in self._rng.permutation(len(parts)) for key in parts[place]]

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

    def _answering(self, key: Key) -> list[str]:
        """What is relevant and holds the answer as it is read; all of it where the answer is long, or yes or no."""
        gold, answer = self._gold(key), self._answer(key)
        if len(answer.split()) > LONG_ANSWER or answer.casefold() in SAYS_LITTLE:
            return gold
        return [one for one in gold if answer.casefold() in self._text(key, one, answer).casefold()]

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
    return len(answer) > 2 and answer.casefold() not in SAYS_LITTLE
