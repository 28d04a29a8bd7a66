"""`bi-encoder`: query and passages as vectors, apart; their similarity, in as many dimensions as asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.budget import TokenCounter
from tamis.engine.loaded import Vectors
from tamis.engine.requests import Outputs
from tamis.engine.sequences import Tokens
from tamis.errors import InputTooLong
from tamis.long_documents import LongDocuments
from tamis.options import CacheDtype, Similarity
from tamis.scorers.base import Scores
from tamis.scorers.cross_encoder import CHUNK
from tamis.scorers.funnel import Best, similarities
from tamis.scorers.tower import Tower
from tamis.scores import from_cosine, from_dot
from tamis.steps import Steps


@dataclass(slots=True)
class _Chunk:
    """New passages on their way through the model: where they stand, and which rows will be theirs."""

    places: list[int]
    keys: list[bytes]
    firsts: list[int]
    cut: NDArray[np.bool_]
    spans: list[tuple[int, int] | None]
    rows: Future[Outputs]

    def vectors(self, dtype: CacheDtype) -> list[Vectors]:
        rows = self.rows.result()
        made = []
        for start, end, cut in zip(self.firsts, [*self.firsts[1:], len(rows)], self.cut, strict=True):
            spans = np.array(self.spans[start:end], np.int64) if end - start > 1 else None
            made.append(Vectors(narrowed(np.stack(rows[start:end]), dtype), bool(cut), spans))
        return made


class BiEncoderScorer:
    """Vectors of sentence encoders; those of passages are kept between calls, by the tower that made them.

    Args:
        query: What encodes queries.
        passage: What encodes passages; the same checkpoint, or one of equal width.
        model: What it was called.
        dims: Growing numbers of leading dimensions; one for plain (or truncated) similarities, more for a funnel.
        similarity: "cosine" or "dot".
        cache_dtype: What passage vectors are kept in. They are rounded before the first use too, so that a score does
            not depend on what the cache holds.
        long_documents: What happens to a text that is longer than its tower reads.
    """

    mode = "bi-encoder"

    def __init__(
        self,
        query: Tower,
        passage: Tower,
        *,
        model: str,
        dims: Sequence[int],
        similarity: Similarity = "cosine",
        cache_dtype: CacheDtype = "float32",
        long_documents: LongDocuments = "truncate",
    ) -> None:
        self.model = model
        self._query = query
        self._passage = passage
        self._dims = tuple(dims)
        self._similarity: Similarity = similarity
        self._dtype: CacheDtype = cache_dtype
        self._policy: LongDocuments = long_documents
        self._salt = repr((passage.prompt, passage.max_length, long_documents, cache_dtype)).encode()
        self.count_tokens: TokenCounter | None = passage.lease.loaded.tokenizer.count

    def steps(self, query: str, passages: Sequence[str]) -> Steps[Scores]:
        """The query, and the passages that are not in the cache, through the model; then their similarities."""
        asked, query_cut = self._asked(query)
        cache = self._passage.lease.loaded.vectors
        found: list[Vectors | None] = []
        chunks: list[_Chunk] = []
        tokens = len(asked)
        with ExitStack() as stack:
            session = stack.enter_context(self._passage.lease.open())
            one = self._query.lease is self._passage.lease
            asking = session if one else stack.enter_context(self._query.lease.open())
            for each in (session,) if one else (asking, session):
                if room := each.backlog:
                    yield room
            answer = asking.submit([asked])
            for start in range(0, len(passages), CHUNK):
                keys = [self._key(text) for text in passages[start : start + CHUNK]]
                known = [cache.get(key) for key in keys]
                found += known
                new = [i for i, vectors in enumerate(known) if vectors is None]
                if new:
                    cut = self._passage.sequences([passages[start + i] for i in new], self._policy, start)
                    rows = session.submit(cut.sequences)
                    tokens += sum(map(len, cut.sequences))
                    places = [start + i for i in new]
                    chunks.append(_Chunk(places, [keys[i] for i in new], cut.firsts, cut.truncated, cut.spans, rows))
                if late := session.backlog:
                    yield late
            yield session.pending if one else [*asking.pending, *session.pending]
            for chunk in chunks:
                for place, key, vectors in zip(chunk.places, chunk.keys, chunk.vectors(self._dtype), strict=True):
                    found[place] = vectors
                    if np.isfinite(vectors.rows).all():
                        spans = 0 if vectors.spans is None else vectors.spans.nbytes
                        cache.put(key, vectors, vectors.rows.nbytes + spans)
            query_row = answer.result()[0]
        all_vectors = [vectors for vectors in found if vectors is not None]
        best, windows = self._compare(query_row, all_vectors)
        truncated = np.array([vectors.truncated for vectors in all_vectors], dtype=np.bool_) | query_cut
        cached = len(passages) - sum(len(chunk.places) for chunk in chunks)
        return Scores(best.values, truncated, tokens, cached, windows=windows)

    def _asked(self, query: str) -> tuple[Tokens, bool]:
        sequence, cut = self._query.first(query)
        if cut and self._policy != "truncate":
            raise InputTooLong(
                f"The query has more than the {self._query.space} tokens that the model reads. Shorten it, or load "
                'with long_documents="truncate".'
            )
        return sequence, cut

    def _compare(
        self, query: NDArray[np.float32], passages: list[Vectors]
    ) -> tuple[Best, list[tuple[int, int] | None] | None]:
        """The best row of each passage, and the characters of those that are windows."""
        rows = np.concatenate([vectors.rows for vectors in passages])
        if self._query.layer_norm and self._dims != (len(query),):
            query = layer_norm(query)
        if self._passage.layer_norm and self._dims != (len(query),):
            rows = layer_norm(rows.astype(np.float32))
        counts = [len(vectors.rows) for vectors in passages]
        firsts = np.cumsum([0, *counts[:-1]]).tolist()
        cosine = self._similarity == "cosine"
        best = similarities(
            query,
            rows,
            firsts,
            self._dims,
            unit_query=cosine or self._query.unit,
            unit_rows=cosine or self._passage.unit,
        )
        if all(vectors.spans is None for vectors in passages):
            return best, None
        windows: list[tuple[int, int] | None] = []
        for vectors, row in zip(passages, best.rows - firsts, strict=True):
            windows.append(None if vectors.spans is None else (int(vectors.spans[row, 0]), int(vectors.spans[row, 1])))
        return best, windows

    def _key(self, text: str) -> bytes:
        return blake2b(self._salt + text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def to_score(self, logit: float) -> float:
        """See `tamis.scores.from_cosine` and `tamis.scores.from_dot`."""
        return from_cosine(logit) if self._similarity == "cosine" else from_dot(logit)

    def stats(self) -> Mapping[str, Any]:
        """The engine's counters and the cache's; of two towers the passages', and the queries' as `query_...`."""
        passage, query = self._passage.lease.loaded, self._query.lease.loaded
        apart = {} if query is passage else {f"query_{key}": value for key, value in query.engine.stats().items()}
        return {
            **passage.facts,
            **passage.engine.stats(),
            "similarity": self._similarity,
            "cache_hits": passage.vectors.hits,
            "cache_misses": passage.vectors.misses,
            "cache_bytes": passage.vectors.size,
            **apart,
        }

    def close(self) -> None:
        """Gives the checkpoints back."""
        self._passage.lease.close()
        self._query.lease.close()


def layer_norm(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zero mean and unit variance over the last axis, without scale and shift (eps 1e-5, as torch's default).

    >>> layer_norm(np.array([1.0, 3.0], np.float32)).round(2).tolist()
    [-1.0, 1.0]
    """
    centred = x - x.mean(-1, keepdims=True)
    scaled: NDArray[np.float32] = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled


def narrowed(rows: NDArray[np.float32], dtype: CacheDtype) -> NDArray[np.floating]:
    """Vectors in the cache's dtype; as they are where float16 cannot hold them.

    >>> narrowed(np.array([[1.0001]], np.float32), "float16").tolist(), narrowed(np.array([1e6]), "float16").tolist()
    ([[1.0]], [1000000.0])
    """
    if dtype == "float32":
        return rows
    with np.errstate(over="ignore"):
        half = rows.astype(np.float16)
    return half if np.isfinite(half).all() else rows
