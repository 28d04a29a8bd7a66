"""Language models that are asked with a prompt: `causal-lm`, `layerwise`, and decoders with a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.budget import TokenCounter
from tamis.engine.loaded import Lease, Session
from tamis.engine.requests import Outputs
from tamis.engine.sequences import Tokens
from tamis.prompts import BoundPrompt, Span
from tamis.scorers.base import Scores
from tamis.scorers.cross_encoder import CHUNK
from tamis.scores import sigmoid
from tamis.steps import Steps

OUT = -1e9
"""Logit of the first passage that a cascade left behind: it has none of the last layer, and its score is 0."""

Read = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From the values that the model gives for each sequence, (n, k), to one logit each, (n,)."""


def only(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The one value.

    >>> only(np.array([[1.5], [-2.0]])).tolist()
    [1.5, -2.0]
    """
    return rows[:, 0]


def difference(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The first less the second: `log p(yes) - log p(no)`, whose sigmoid is p(yes) among the two.

    >>> difference(np.array([[3.5, 1.0]])).tolist()
    [2.5]
    """
    return rows[:, 0] - rows[:, 1]


class PromptedScorer:
    """A prompt with query and passage, each passage's best window, one logit read off the model.

    Args:
        lease: The loaded checkpoint.
        model: What it was called.
        mode: One of `tamis.options.MODES`.
        prompt: The family's.
        read: From the model's values to the logit.
        layers: After which layers the model is left; None is the last. Several are a cascade: at each but the last
            the worse half stays behind.
        compresses: Whether passages lose tokens within the model: then no two share a part of theirs.
    """

    def __init__(
        self,
        lease: Lease,
        *,
        model: str,
        mode: str,
        prompt: BoundPrompt,
        read: Read = only,
        layers: Sequence[int | None] = (None,),
        compresses: bool = False,
    ) -> None:
        self.model = model
        self.mode = mode
        self._lease = lease
        self._prompt = prompt
        self._read = read
        self._layers = tuple(layers)
        self._compresses = compresses
        self.count_tokens: TokenCounter | None = lease.loaded.tokenizer.count

    def steps(self, query: str, passages: Sequence[str]) -> Steps[Scores]:
        """One sequence for each passage, or for each of its windows; for a cascade, again for the better half."""
        asked = self._prompt.ask(query)
        answers: list[Future[Outputs]] = []
        sequences: list[list[Tokens]] = []  # of each passage
        spans: list[list[Span | None]] = []
        cut: list[NDArray[np.bool_]] = []
        with self._lease.open() as session:
            if room := session.backlog:
                yield room
            for start in range(0, len(passages), CHUNK):
                made = asked.sequences(passages[start : start + CHUNK], start)
                answers.append(session.submit([self._leaving(tokens, 0) for tokens in made.tokens]))
                mine: list[list[Tokens]] = [[] for _ in made.cut]
                places: list[list[Span | None]] = [[] for _ in made.cut]
                for owner, tokens, span in zip(made.owners, made.tokens, made.spans, strict=True):
                    mine[owner].append(tokens)
                    places[owner].append(span)
                sequences += mine
                spans += places
                cut.append(made.cut)
                if late := session.backlog:
                    yield late
            yield session.pending
            total = sum(len(tokens) for windows in sequences for tokens in windows)
            values = [row for answer in answers for row in answer.result()]
            logits, best = self._best(values, [len(windows) for windows in sequences])
            logits, best, more = yield from self._cascade(session, sequences, logits, best)
        won = [places[i] for places, i in zip(spans, best, strict=True)]
        windows = won if any(span is not None for span in won) else None
        return Scores(logits, np.concatenate(cut), total + more, windows=windows)

    def _cascade(
        self, session: Session, sequences: list[list[Tokens]], logits: NDArray[np.float64], best: list[int]
    ) -> Steps[tuple[NDArray[np.float64], list[int], int]]:
        """The later layers: logits of those that got through, and those left behind ranked below them."""
        alive = np.arange(len(logits))
        final, behind, tokens = logits, [], 0
        for stage in range(1, len(self._layers)):
            border = np.sort(final[alive])[len(alive) // 2]
            behind.append((alive[final[alive] < border], final))
            alive = alive[~(final[alive] < border)]  # ties at the border go on together, and what is not a number
            again = [self._leaving(one, stage) for i in alive for one in sequences[i]]
            tokens += sum(map(len, again))
            answer = session.submit(again)
            yield [answer]
            values, won = self._best(list(answer.result()), [len(sequences[i]) for i in alive])
            final = final.copy()
            final[alive] = values
            for i, window in zip(alive, won, strict=True):
                best[i] = window
        place = 0
        for group, screened in reversed(behind):
            for value in -np.unique(-screened[group]):  # falling; equal ones stay equal
                final[group[screened[group] == value]] = OUT - place
                place += 1
        return final, best, tokens

    def _leaving(self, tokens: Tokens, stage: int) -> Tokens:
        if self._compresses and tokens.passage is not None:
            tokens = replace(tokens, shared=min(tokens.shared, tokens.passage[0]))
        layer = self._layers[stage]
        return tokens if layer is None else replace(tokens, layer=layer)

    def _best(self, values: list[Any], counts: list[int]) -> tuple[NDArray[np.float64], list[int]]:
        """Of each passage the best window's logit, and which window that is."""
        logits = self._read(np.stack(values).astype(np.float64))
        edges = np.cumsum([0, *counts])
        best = [int(np.argmax(logits[a:b])) for a, b in pairwise(edges)]
        return logits[edges[:-1] + best], best

    def to_score(self, logit: float) -> float:
        """See `tamis.scores.sigmoid`."""
        return sigmoid(logit)

    def stats(self) -> Mapping[str, Any]:
        """The engine's counters."""
        return {**self._lease.loaded.facts, **self._lease.loaded.engine.stats()}

    def close(self) -> None:
        """Gives the checkpoint back."""
        self._lease.close()
