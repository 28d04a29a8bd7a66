"""`cross-encoder`: query and passage through the model together; the head's logit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.budget import TokenCounter
from tamis.engine.loaded import Lease
from tamis.engine.requests import Outputs
from tamis.engine.sequences import Tokens
from tamis.errors import InputTooLong
from tamis.long_documents import QUERY_SHARE, LongDocuments, pieces, spans_of
from tamis.scorers.base import Scores
from tamis.scorers.funnel import Best
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


def best_of(logits: NDArray[np.float64], firsts: Sequence[int]) -> Best:
    """The best of each passage's rows, the first of equal ones; `firsts` says where each passage's rows begin.

    >>> best_of(np.array([1.0, 3.0, 3.0, 2.0]), [0, 3])
    Best(values=array([3., 2.]), rows=array([1, 3]))
    """
    ends = [*firsts[1:], len(logits)]
    rows = np.array([start + int(np.argmax(logits[start:end])) for start, end in zip(firsts, ends, strict=True)])
    return Best(logits[rows], rows)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Some passages as sequences: each passage's first one, which lose text, and the characters of windows."""

    sequences: list[Tokens]
    firsts: list[int]
    cut: NDArray[np.bool_]
    spans: list[tuple[int, int] | None]


class CrossEncoderScorer:
    """Pairs in the tokenizer's own template, each passage's best window, the model's raw logit.

    Args:
        lease: The loaded checkpoint.
        model: What it was called.
        max_length: Tokens of a pair, special tokens included.
        prompt: Put before the query.
        long_documents: What happens to a pair that is longer.
        full_windows: See `tamis.long_documents.windows`.
    """

    mode = "cross-encoder"

    def __init__(
        self,
        lease: Lease,
        *,
        model: str,
        max_length: int,
        prompt: str,
        long_documents: LongDocuments,
        full_windows: bool = True,
    ) -> None:
        self.model = model
        self._lease = lease
        self._tokenizer = lease.loaded.tokenizer
        self._template = self._tokenizer.template(2)
        self._max_length = max_length
        self._prompt = prompt
        self._policy: LongDocuments = long_documents
        self._full_windows = full_windows
        self.count_tokens: TokenCounter | None = self._tokenizer.count

    def steps(self, query: str, passages: Sequence[str]) -> Steps[Scores]:
        """One sequence for each passage, or for each of its windows."""
        space = self._max_length - self._template.overhead
        asked = self._tokenizer.encode([self._prompt + query], limit=space)[0]
        answers: list[Future[Outputs]] = []
        firsts: list[int] = []  # of each passage: its first sequence
        spans: list[tuple[int, int] | None] = []  # of each sequence: its characters, where it is one of several
        cut: list[NDArray[np.bool_]] = []
        count = tokens = 0
        with self._lease.open() as session:
            if room := session.backlog:
                yield room
            for start in range(0, len(passages), CHUNK):
                chunk = self._chunk(asked, passages[start : start + CHUNK], space, start)
                firsts += [count + first for first in chunk.firsts]
                count += len(chunk.sequences)
                tokens += sum(map(len, chunk.sequences))
                cut.append(chunk.cut)
                spans += chunk.spans
                answers.append(session.submit(chunk.sequences))
                if late := session.backlog:
                    yield late
            yield session.pending
            logits = relevance(np.stack([row for answer in answers for row in answer.result()]))
        best = best_of(logits, firsts)
        windows = [spans[row] for row in best.rows] if any(spans) else None
        return Scores(best.values, np.concatenate(cut), tokens, windows=windows)

    def _chunk(self, asked: Ids, passages: Sequence[str], space: int, start: int) -> _Chunk:
        query_limit = int(QUERY_SHARE * self._max_length)
        if self._policy != "truncate" and len(asked) > query_limit:
            raise InputTooLong(
                f"The query has {len(asked)} tokens or more, and may take {query_limit} of the model's "
                f'{self._max_length}. Shorten it, or load with long_documents="truncate".'
            )
        room = space - min(len(asked), query_limit)
        texts = self._tokenizer.encode(passages, limit=room if self._policy != "max_window" else None)
        parts, cut = pieces([len(text) for text in texts], room, self._policy, start, full=self._full_windows)
        sequences = []
        for owner, part in parts:
            text = texts[owner][part]
            head = asked[: max(query_limit, space - len(text))]  # a query gives way only where the pair is too long
            cut[owner] |= len(head) < len(asked)
            sequences.append(self._template.fill(head, text))
        firsts = [i for i, (owner, _) in enumerate(parts) if i == 0 or owner != parts[i - 1][0]]
        spans = spans_of(parts, lambda owner: self._tokenizer.offsets(passages[owner]))
        return _Chunk(sequences, firsts, cut, spans)

    def to_score(self, logit: float) -> float:
        """See `tamis.scores.sigmoid`."""
        return sigmoid(logit)

    def stats(self) -> Mapping[str, Any]:
        """The engine's counters."""
        return {**self._lease.loaded.facts, **self._lease.loaded.engine.stats()}

    def close(self) -> None:
        """Gives the checkpoint back."""
        self._lease.close()
