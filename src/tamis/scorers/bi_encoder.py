"""`bi-encoder`: query and passages as vectors, apart; their similarity, in as many dimensions as asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.budget import TokenCounter
from tamis.engine.loaded import Session, Vectors
from tamis.engine.requests import Outputs
from tamis.engine.sequences import Tokens
from tamis.errors import InputTooLong, InvalidScore
from tamis.long_documents import LongDocuments
from tamis.options import CacheDtype, Similarity
from tamis.scorers.base import Scores
from tamis.scorers.cross_encoder import CHUNK
from tamis.scorers.funnel import Best, similarities
from tamis.scorers.tower import Tower
from tamis.scores import from_cosine, from_dot, highest
from tamis.steps import Steps


@dataclass(slots=True)
class _Chunk:
    """New passages on their way through the model: where they stand, and which rows will be theirs."""

    places: list[int]
    keys: list[bytes]
    firsts: list[int]
    cut: NDArray[np.bool_]
    spans: list[tuple[int, int] | None]
    tokens: int
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
        self.query = query
        self.passage = passage
        self._dims = tuple(dims)
        self._similarity: Similarity = similarity
        self._dtype: CacheDtype = cache_dtype
        self._policy: LongDocuments = long_documents
        self._salt = repr((passage.prompt, passage.max_length, long_documents, cache_dtype)).encode()
        self.count_tokens: TokenCounter | None = passage.lease.loaded.tokenizer.count

    def steps(self, query: str, passages: Sequence[str]) -> Steps[Scores]:
        """The query, and the passages that are not in the cache, through the model; then their similarities."""
        asked, query_cut = self._asked(query)
        found: list[Vectors | None] = []
        chunks: list[_Chunk] = []
        with ExitStack() as stack:
            asking, session = yield from self._sessions(stack)
            answer = asking.submit([asked], more=True)
            for start in range(0, len(passages), CHUNK):
                chunk = self._begun(session, passages[start : start + CHUNK], start, found)
                chunks += [] if chunk is None else [chunk]
                if late := session.backlog:
                    yield late
            yield session.pending if asking is session else [*asking.pending, *session.pending]
            for chunk in chunks:
                self._finish(chunk, found)
            query_row = answer.result()[0]
        all_vectors = [vectors for vectors in found if vectors is not None]
        best, windows = self._compare(query_row, all_vectors)
        truncated = np.array([vectors.truncated for vectors in all_vectors], dtype=np.bool_) | query_cut
        cached = len(passages) - sum(len(chunk.places) for chunk in chunks)
        tokens = len(asked) + sum(chunk.tokens for chunk in chunks)
        return Scores(best.values, truncated, tokens, cached, windows=windows)

    def search(
        self, queries: Sequence[str], passages: Sequence[str], top: int, done: Callable[[int], object] = lambda n: None
    ) -> Steps[list[Best]]:
        """Of each query the `top` most similar of many passages, each of which goes through the model once.

        Args:
            queries: At least one.
            passages: At least one.
            top: How many, at most.
            done: Called with a number of passages when they are encoded.

        Returns:
            For each query the values and the passages' numbers, best first; equal values keep the passages' order.

        Raises:
            InvalidScore: A similarity is NaN or infinite.
        """
        asked = [self._asked(query)[0] for query in queries]
        found: list[Vectors | None] = []
        with ExitStack() as stack:
            asking, session = yield from self._sessions(stack)
            answer = asking.submit(asked)
            for start in range(0, len(passages), CHUNK):
                chunk = self._begun(session, passages[start : start + CHUNK], start, found)
                if chunk is not None:
                    yield [chunk.rows]
                    self._finish(chunk, found)
                done(len(passages[start : start + CHUNK]))
            yield [answer]
            rows = answer.result()
        table = self._table([vectors for vectors in found if vectors is not None])
        best = []
        for row in rows:
            values = self._similarities(row, *table).values
            if not np.isfinite(values).all():
                raise InvalidScore(f'{self.model} returned NaN or infinity; load it with dtype="float32".')
            places = highest(values, top)
            best.append(Best(values[places], places))
        return best

    def _sessions(self, stack: ExitStack) -> Steps[tuple[Session, Session]]:
        """What queries and what passages are submitted to, the same where one tower does both; there is room."""
        session = stack.enter_context(self.passage.lease.open())
        one = self.query.lease is self.passage.lease
        asking = session if one else stack.enter_context(self.query.lease.open())
        for each in (session,) if one else (asking, session):
            if room := each.backlog:
                yield room
        return asking, session

    def _begun(
        self, session: Session, passages: Sequence[str], start: int, found: list[Vectors | None]
    ) -> _Chunk | None:
        """Adds to `found` what the cache knows of some passages, and has the others read: the chunk of those."""
        cache = self.passage.lease.loaded.vectors
        keys = [self._key(text) for text in passages]
        known = [cache.get(key) for key in keys]
        found += known
        new = [i for i, vectors in enumerate(known) if vectors is None]
        if not new:
            return None
        places = [start + i for i in new]
        cut = self.passage.sequences([passages[i] for i in new], self._policy, places)
        rows = session.submit(cut.sequences)
        tokens = sum(map(len, cut.sequences))
        return _Chunk(places, [keys[i] for i in new], cut.firsts, cut.truncated, cut.spans, tokens, rows)

    def _finish(self, chunk: _Chunk, found: list[Vectors | None]) -> None:
        """Puts a chunk's vectors where they belong, and into the cache."""
        cache = self.passage.lease.loaded.vectors
        for place, key, vectors in zip(chunk.places, chunk.keys, chunk.vectors(self._dtype), strict=True):
            found[place] = vectors
            if np.isfinite(vectors.rows).all():
                spans = 0 if vectors.spans is None else vectors.spans.nbytes
                cache.put(key, vectors, vectors.rows.nbytes + spans)

    def _asked(self, query: str) -> tuple[Tokens, bool]:
        sequence, cut = self.query.first(query)
        if cut and self._policy != "truncate":
            raise InputTooLong(
                f"The query has more than the {self.query.space} tokens that the model reads. Shorten it, or load "
                'with long_documents="truncate".'
            )
        return sequence, cut

    def _compare(
        self, query: NDArray[np.float32], passages: list[Vectors]
    ) -> tuple[Best, list[tuple[int, int] | None] | None]:
        """The best row of each passage, and the characters of those that are windows."""
        rows, firsts = self._table(passages)
        best = self._similarities(query, rows, firsts)
        if all(vectors.spans is None for vectors in passages):
            return best, None
        windows: list[tuple[int, int] | None] = []
        for vectors, row in zip(passages, best.rows - firsts, strict=True):
            windows.append(None if vectors.spans is None else (int(vectors.spans[row, 0]), int(vectors.spans[row, 1])))
        return best, windows

    def _table(self, passages: Sequence[Vectors]) -> tuple[NDArray[np.floating], list[int]]:
        """All rows, and the first one of each passage."""
        rows = np.concatenate([vectors.rows for vectors in passages])
        if self.passage.layer_norm and self._dims != (rows.shape[1],):
            rows = layer_norm(rows.astype(np.float32))
        counts = [len(vectors.rows) for vectors in passages]
        return rows, np.cumsum([0, *counts[:-1]]).tolist()

    def _similarities(self, query: NDArray[np.float32], rows: NDArray[np.floating], firsts: Sequence[int]) -> Best:
        if self.query.layer_norm and self._dims != (len(query),):
            query = layer_norm(query)
        cosine = self._similarity == "cosine"
        units = {"unit_query": cosine or self.query.unit, "unit_rows": cosine or self.passage.unit}
        return similarities(query, rows, firsts, self._dims, **units)

    def _key(self, text: str) -> bytes:
        return blake2b(self._salt + text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def to_score(self, logit: float) -> float:
        """See `tamis.scores.from_cosine` and `tamis.scores.from_dot`."""
        return from_cosine(logit) if self._similarity == "cosine" else from_dot(logit)

    def stats(self) -> Mapping[str, Any]:
        """The engine's counters and the cache's; of two towers the passages', and the queries' as `query_...`."""
        passage, query = self.passage.lease.loaded, self.query.lease.loaded
        apart = {} if query is passage else {f"query_{key}": value for key, value in query.engine.stats().items()}
        return {
            **passage.facts,
            **passage.engine.stats(),
            "similarity": self._similarity,
            "dims": list(self._dims),
            "cache_hits": passage.vectors.hits,
            "cache_misses": passage.vectors.misses,
            "cache_bytes": passage.vectors.size,
            **apart,
        }

    def close(self) -> None:
        """Gives the checkpoints back."""
        self.passage.lease.close()
        self.query.lease.close()


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
