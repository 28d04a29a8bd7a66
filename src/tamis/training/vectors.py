"""Texts as a bi-encoder's vectors: what mining, distillation and the Matryoshka adaptor look at, made once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tamis.errors import InvalidInput

if TYPE_CHECKING:
    from tamis.reranker import Reranker
    from tamis.scorers.tower import Tower
    from tamis.steps import Steps

CHUNK = 256  # texts that are tokenised together


def encode(reranker: Reranker, texts: Sequence[str], *, queries: bool = False) -> NDArray[np.float32]:
    """The vectors of n texts through the reranker's own engine, of length 1: float32, (n, d), d the full width.

    A text that is longer than the model reads is cut off. Equal texts are read once.

    Args:
        reranker: Loaded in bi-encoder mode.
        texts: Any number, of any length.
        queries: They are queries, and get the prompt and the encoder of queries.

    Raises:
        InvalidInput: The reranker is in another mode.
    """
    from tamis.scorers.bi_encoder import BiEncoderScorer

    scorer = reranker._scorer
    if not isinstance(scorer, BiEncoderScorer):
        raise InvalidInput(f'{reranker.model} is loaded in {reranker.mode} mode; vectors need mode="bi-encoder".')
    tower = scorer.query if queries else scorer.passage
    places = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    rows = reranker.run("encode", len(places), _rows(tower, list(places)))
    return rows[[places[text] for text in texts]]


def _rows(tower: Tower, texts: Sequence[str]) -> Steps[NDArray[np.float32]]:
    futures = []
    with tower.lease.open() as session:
        for start in range(0, len(texts), CHUNK):
            if wait := session.backlog:
                yield wait
            cut = tower.sequences(texts[start : start + CHUNK], "truncate", range(start, len(texts)))
            futures.append(session.submit(cut.sequences))
        yield session.pending
        rows = np.array([row for future in futures for row in future.result()], np.float32)
    rows = rows.reshape(len(texts), tower.lease.loaded.width)
    unit: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    return unit
