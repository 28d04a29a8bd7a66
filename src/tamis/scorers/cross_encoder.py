"""`cross-encoder`: query and passage through the model together; the head's logit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.budget import TokenCounter
from tamis.engine.loaded import Lease
from tamis.engine.requests import Outputs
from tamis.engine.sequences import Tokens
from tamis.errors import InputTooLong
from tamis.long_documents import QUERY_SHARE, LongDocuments, pieces
from tamis.scorers.base import Scores
from tamis.scores import sigmoid
from tamis.steps import Steps
from tamis.tokenizing import Ids

CHUNK = 256  # passages tokenised and submitted together, while the device runs the ones before


def relevance(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """One logit as it is; of two labels (not relevant, relevant) the difference.

    >>> relevance(np.array([[1.5], [-2.0]], np.float32)).tolist()
    [1.5, -2.0]
    >>> relevance(np.array([[1.0, 3.5]], np.float32)).tolist()
    [2.5]
    """
    wide = rows.astype(np.float64)
    return wide[:, 0] if wide.shape[1] == 1 else wide[:, 1] - wide[:, 0]


class CrossEncoderScorer:
    """Pairs in the tokenizer's own template, each passage's best window, the model's raw logit.

    Args:
        lease: The loaded checkpoint.
        model: What it was called.
        max_length: Tokens of a pair, special tokens included.
        prompt: Put before the query.
        long_documents: What happens to a pair that is longer.
    """

    mode = "cross-encoder"

    def __init__(
        self, lease: Lease, *, model: str, max_length: int, prompt: str, long_documents: LongDocuments
    ) -> None:
        self.model = model
        self._lease = lease
        self._tokenizer = lease.loaded.tokenizer
        self._template = self._tokenizer.template(2)
        self._max_length = max_length
        self._prompt = prompt
        self._policy: LongDocuments = long_documents
        self.count_tokens: TokenCounter | None = self._tokenizer.count

    def steps(self, query: str, passages: Sequence[str]) -> Steps[Scores]:
        """One sequence for each passage, or for each of its windows."""
        space = self._max_length - self._template.overhead
        asked = self._tokenizer.encode([self._prompt + query], limit=space)[0]
        answers: list[Future[Outputs]] = []
        firsts: list[int] = []  # of each passage: its first sequence
        cut: list[NDArray[np.bool_]] = []
        count = tokens = 0
        with self._lease.open() as session:
            if room := session.backlog:
                yield room
            for start in range(0, len(passages), CHUNK):
                owners, sequences, lost = self._sequences(asked, passages[start : start + CHUNK], space, start)
                firsts += [count + i for i, owner in enumerate(owners) if i == 0 or owner != owners[i - 1]]
                count += len(sequences)
                tokens += sum(map(len, sequences))
                cut.append(lost)
                answers.append(session.submit(sequences))
                if late := session.backlog:
                    yield late
            yield session.pending
            logits = relevance(np.stack([row for answer in answers for row in answer.result()]))
        return Scores(np.maximum.reduceat(logits, firsts), np.concatenate(cut), tokens)

    def _sequences(
        self, asked: Ids, passages: Sequence[str], space: int, start: int
    ) -> tuple[list[int], list[Tokens], NDArray[np.bool_]]:
        """The sequences of some passages, each one's passage, and which passages lose text."""
        query_limit = int(QUERY_SHARE * self._max_length)
        if self._policy != "truncate" and len(asked) > query_limit:
            raise InputTooLong(
                f"The query has {len(asked)} tokens or more, and may take {query_limit} of the model's "
                f'{self._max_length}. Shorten it, or load with long_documents="truncate".'
            )
        room = space - min(len(asked), query_limit)
        texts = self._tokenizer.encode(passages, limit=room if self._policy != "max_window" else None)
        parts, cut = pieces([len(text) for text in texts], room, self._policy, start)
        owners, sequences = [], []
        for owner, part in parts:
            text = texts[owner][part]
            head = asked[: max(query_limit, space - len(text))]  # a query gives way only where the pair is too long
            cut[owner] |= len(head) < len(asked)
            owners.append(owner)
            sequences.append(self._template.fill(head, text))
        return owners, sequences, cut

    def to_score(self, logit: float) -> float:
        """See `tamis.scores.sigmoid`."""
        return sigmoid(logit)

    def stats(self) -> Mapping[str, Any]:
        """The engine's counters."""
        return {**self._lease.loaded.facts, **self._lease.loaded.engine.stats()}

    def close(self) -> None:
        """Gives the checkpoint back."""
        self._lease.close()
