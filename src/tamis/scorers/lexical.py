"""`lexical`: BM25 over the candidates themselves. The baseline, and a scorer that needs no model.

Scores come from bm25s, method "lucene" (Kamphuis et al. 2020), with k1 = 0.9 and b = 0.4, the values of Anserini's
MS MARCO baselines. Document frequencies are those of the passages of one call, so that a passage's value depends on
its neighbours: thresholds do not carry over from one call to the next.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.scorers.base import Scores
from tamis.scores import from_bm25
from tamis.steps import Steps

K1, B = 0.9, 0.4
_CHUNK = 256  # passages that are split into words at a time
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Case-folded runs of letters, digits and underscores.

    >>> words("Read a ZIP archive: zipfile.ZipFile")
    ['read', 'a', 'zip', 'archive', 'zipfile', 'zipfile']
    """
    return _WORD.findall(text.casefold())


def bm25(query: Sequence[str], passages: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """The BM25 sum of each passage's words for the query's words; shape (len(passages),).

    >>> bm25(["zip"], [["a", "zip", "file"], ["a", "tar", "file"], []]).round(3).tolist()
    [0.472, 0.0, 0.0]
    """
    from bm25s import BM25

    known = {word for passage in passages for word in passage}
    terms = [word for word in query if word in known]
    if not terms:
        return np.zeros(len(passages))
    index = BM25(k1=K1, b=B, method="lucene")
    index.index([list(passage) for passage in passages], show_progress=False)
    return np.asarray(index.get_scores(terms), dtype=np.float64)


class LexicalScorer:
    """BM25 as a scorer. It takes tens of milliseconds for a thousand passages, so it runs where it is called."""

    model = "bm25"
    mode = "lexical"
    count_tokens = None  # words are not a generator's tokens

    def steps(self, query: str, passages: Sequence[str]) -> Steps[Scores]:
        """Scores without a device: there is nothing to wait for, but after each part whoever waits may give up."""
        split: list[list[str]] = []
        for start in range(0, len(passages), _CHUNK):
            split += [words(passage) for passage in passages[start : start + _CHUNK]]
            yield ()
        logits = bm25(words(query), split)
        yield ()
        return Scores(logits, np.zeros(len(passages), dtype=np.bool_))

    def to_score(self, logit: float) -> float:
        """See `tamis.scores.from_bm25`."""
        return from_bm25(logit)

    def stats(self) -> Mapping[str, Any]:
        """Empty: there is no engine."""
        return {}

    def close(self) -> None:
        """Nothing to free."""
