"""`rankrag`: a language model's probability of saying that a passage is relevant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from hashlib import blake2b
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tamis.budget import TokenCounter
from tamis.engine.lm_sequences import Ranked, Warmed
from tamis.engine.loaded import Lease
from tamis.engine.requests import Outputs
from tamis.errors import InputTooLong
from tamis.long_documents import CHARACTERS_PER_TOKEN, LongDocuments, pieces
from tamis.rankrag.prompts import Tokenised, Turn
from tamis.scorers.base import Scores
from tamis.scorers.cross_encoder import CHUNK
from tamis.scores import sigmoid
from tamis.steps import Steps
from tamis.tokenizing import Ids

Relevance: TypeAlias = Literal["probability", "margin"]


def log_odds(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logit of p(True) under the softmax over the whole vocabulary: its sigmoid is the paper's relevance.

    `log p - log(1 - p)` is True's logit less the logarithm of the sum over all others, which tells apart what is
    certain too: of a model that is sure of two passages, p(True) rounds to 1 for both.

    Args:
        rows: Logits of True and False, and the logarithm of the sum over the vocabulary without True, (n, 3).

    >>> true, false, other = 2.0, 1.0, 0.0  # a vocabulary of three words
    >>> row = [true, false, np.log(np.exp(false) + np.exp(other))]
    >>> p = np.exp(true) / np.exp([true, false, other]).sum()
    >>> round(sigmoid(log_odds(np.array([row]))[0]), 4), round(float(p), 4)
    (0.6652, 0.6652)
    """
    return rows[:, 0] - rows[:, 2]


def margin(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """True less False, whatever else the model might say.

    >>> margin(np.array([[2.0, 0.5, 3.0]])).tolist()
    [1.5]
    """
    return rows[:, 0] - rows[:, 1]


class RankRAGScorer:
    """The paper's ranking prompt, passage first; what a passage left in the model is kept between calls.

    Args:
        lease: The loaded checkpoint.
        model: What it was called.
        prompts: Its wording, tokenised.
        task: Name of the wording's task.
        max_length: Tokens of a prompt.
        relevance: "probability" is the paper's p(True), "margin" True less False.
        long_documents: What happens to a passage that does not fit.
    """

    mode = "rankrag"

    def __init__(
        self,
        lease: Lease,
        *,
        model: str,
        prompts: Tokenised,
        task: str = "short",
        max_length: int,
        relevance: Relevance = "probability",
        long_documents: LongDocuments = "truncate",
    ) -> None:
        self.model = model
        self.prompts = prompts
        self.lease = lease
        self.max_length = max_length
        self.task = task
        self._read = log_odds if relevance == "probability" else margin
        self._policy: LongDocuments = long_documents
        self.count_tokens: TokenCounter | None = lease.loaded.tokenizer.count

    def signature(self, query: str, task: str | None = None, history: Sequence[Turn] = ()) -> str:
        """A digest of all that scores depend on besides the passages: model, settings and the rest of the prompt."""
        asking = self.prompts.wording.asking(query, task or self.task, history)
        about = (self.lease.key, self.max_length, self._policy, self._read.__name__, asking)
        return blake2b(repr(about).encode(), digest_size=16).hexdigest()

    def steps(self, query: str, passages: Sequence[str]) -> Steps[Scores]:
        """As `ranking`, for the task that was chosen and no history."""
        return self.ranking(query, passages, None, ())

    def ranking(
        self, question: str, passages: Sequence[str], task: str | None, history: Sequence[Turn]
    ) -> Steps[Scores]:
        """One sequence for each passage, or for each of its windows; `task` is the one that was chosen if None."""
        asked = self.prompts.asking(question, task or self.task, history)
        room = self._room(len(asked))
        answers: list[Future[Outputs]] = []
        owners: list[int] = []
        spans: list[tuple[int, int] | None] = []
        cut: list[NDArray[np.bool_]] = []
        tokens = 0
        with self.lease.open() as session:
            if wait := session.backlog:
                yield wait
            for start in range(0, len(passages), CHUNK):
                made = self._fitted(passages[start : start + CHUNK], room, start)
                sequences = [self._ranked(piece, asked) for _, piece, _ in made[0]]
                tokens += sum(map(len, sequences))
                owners += [start + owner for owner, _, _ in made[0]]
                spans += [span for _, _, span in made[0]]
                cut.append(made[1])
                answers.append(session.submit(sequences))
                if late := session.backlog:
                    yield late
            yield session.pending
            rows = np.stack([row for answer in answers for row in answer.result()]).astype(np.float64)
        logits = self._read(rows)
        edges = np.flatnonzero(np.diff(owners, prepend=-1))
        best = [a + int(np.argmax(logits[a:b])) for a, b in zip(edges, [*edges[1:], len(logits)], strict=True)]
        won = [spans[i] for i in best]
        windows = won if any(span is not None for span in won) else None
        return Scores(logits[best], np.concatenate(cut), tokens, windows=windows)

    def warming(self, passages: Sequence[str], done: Any = lambda n: None) -> Steps[int]:
        """Runs passages without a question, so that later questions find them; how many were given."""
        room = self._room(0)
        with self.lease.open() as session:
            if wait := session.backlog:
                yield wait
            for start in range(0, len(passages), CHUNK):
                made, _ = self._fitted(passages[start : start + CHUNK], room, start)
                system = self.prompts.system
                batch = [
                    Warmed(np.concatenate([system, piece]), system=len(system), end=len(system) + len(piece))
                    for _, piece, _ in made
                    if len(system) + len(piece)  # of an empty passage in a wording without a word nothing is left
                ]
                answer = session.submit(batch)
                yield [answer]
                answer.result()
                done(len(passages[start : start + CHUNK]))
        return len(passages)

    def _room(self, asked: int) -> int:
        room = self.max_length - len(self.prompts.system) - asked
        if room < 16:
            raise InputTooLong(
                f"The question and the prompt take {self.max_length - room} of the model's {self.max_length} tokens: "
                "there is no room for a passage. Shorten the question or its history, or raise max_length=."
            )
        return room

    def _fitted(
        self, passages: Sequence[str], room: int, first: int
    ) -> tuple[list[tuple[int, Ids, tuple[int, int] | None]], NDArray[np.bool_]]:
        """Of each passage (its number, its piece of the prompt, its characters if it is a window); which lose text."""
        most = None if self._policy == "max_window" else room * CHARACTERS_PER_TOKEN
        heads = [text[:most] for text in passages]
        encoded = self.prompts.ranked(heads)
        cut = np.zeros(len(passages), np.bool_)
        out: list[tuple[int, Ids, tuple[int, int] | None]] = []
        for i, (text, head, ids) in enumerate(zip(passages, heads, encoded, strict=True)):
            if len(ids) <= room and len(head) < len(text):  # of tokens that are longer than most
                head, ids = text, self.prompts.ranked([text])[0]
            if len(ids) <= room:
                out.append((i, ids, None))
                continue
            spans, windows = self._windows(head, len(ids), room, first + i)
            cut[i] = self._policy == "truncate"
            whole = self._policy == "max_window"
            out += [(i, window, span if whole else None) for span, window in zip(spans, windows, strict=True)]
        return out, cut

    def _windows(self, text: str, tokens: int, room: int, number: int) -> tuple[list[tuple[int, int]], list[Ids]]:
        """What the policy reads of a passage that does not fit: characters, and the piece of the prompt with them.

        Args:
            text: The passage.
            tokens: Of the piece that holds all of it.
            room: Tokens that a piece may have.
            number: The passage's, for messages.
        """
        places = self.prompts.places(text)
        frame = tokens - len(places) + 4  # and what a cut may add
        while room > frame:
            parts, _ = pieces([len(places)], room - frame, self._policy, number)
            spans = [(int(places[part.start, 0]), int(places[part.stop - 1, 1])) for _, part in parts]
            windows = self.prompts.ranked([text[start:stop] for start, stop in spans])
            excess = max(map(len, windows)) - room
            if excess <= 0:
                return spans, windows
            frame += excess  # what follows a passage is never cut
        raise InputTooLong(
            f"Passage {number} does not fit beside the question and the prompt; shorten these, or raise max_length=."
        )

    def _ranked(self, piece: Ids, asked: Ids) -> Ranked:
        system = self.prompts.system
        ids = np.concatenate([system, piece, asked])
        return Ranked(ids, system=len(system), end=len(system) + len(piece))

    def to_score(self, logit: float) -> float:
        """See `tamis.scores.sigmoid`."""
        return sigmoid(logit)

    def stats(self) -> Mapping[str, Any]:
        """The engine's counters, and the passages'."""
        return {**self.lease.loaded.facts, **self.lease.loaded.engine.stats(), **self.lease.loaded.extra()}

    def close(self) -> None:
        """Gives the checkpoint back."""
        self.lease.close()
