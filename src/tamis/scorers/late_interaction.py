"""`late-interaction`: query and passages as one vector a token, apart; MaxSim between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.budget import TokenCounter
from tamis.engine.loaded import Lease
from tamis.engine.requests import Outputs, Row
from tamis.engine.sequences import Tokens
from tamis.errors import InputTooLong
from tamis.long_documents import LongDocuments, pieces
from tamis.options import CacheDtype
from tamis.scorers.base import Scores
from tamis.scorers.cross_encoder import CHUNK
from tamis.scorers.maxsim import maxsim
from tamis.scorers.sides import Expansion, Side
from tamis.scores import from_cosine
from tamis.steps import Steps


@dataclass(frozen=True, eq=False, slots=True)
class TokenVectors:
    """What one passage left behind.

    Attributes:
        rows: Those of its tokens that count, (r, d), float32 or float16.
        firsts: Where each of its windows begins in them, int32, (w,).
        spans: The characters of each window, int32, (w, 2); None where there is but one.
        truncated: Whether text was cut off.
    """

    rows: NDArray[Any]
    firsts: NDArray[np.int32]
    spans: NDArray[np.int32] | None
    truncated: bool

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(array.nbytes for array in (self.rows, self.firsts, self.spans) if array is not None)

    def score(self, query: Row) -> tuple[float, tuple[int, int] | None]:
        """MaxSim of the best window, and that window's characters."""
        values = maxsim(query, self.rows.astype(np.float32, copy=False), self.firsts)
        best = int(values.argmax())
        return float(values[best]), None if self.spans is None else (int(self.spans[best, 0]), int(self.spans[best, 1]))


@dataclass(frozen=True, eq=False, slots=True)
class _New:
    """A passage that is not in the cache: where it stands, its key, its sequences, the rest of `TokenVectors`."""

    place: int
    key: bytes
    sequences: list[Tokens]
    spans: NDArray[np.int32] | None
    truncated: bool


@dataclass(slots=True)
class _Chunk:
    """New passages on their way through the model."""

    new: list[_New]
    rows: Future[Outputs]


class LateInteractionScorer:
    """MaxSim over the token vectors of an encoder; those of passages are kept between calls.

    Args:
        lease: The loaded checkpoint; a sequence's row is a matrix of unit vectors, one for each token.
        model: What it was called.
        query: How queries are read.
        passage: How passages are read.
        expansion: What queries are filled up with.
        mean: The logit is the mean over the query's vectors, not their sum.
        long_documents: What happens to a text that is longer than its side's length.
        cache_dtype: What passage vectors are kept in. The score is that of the kept ones, the first time too.
    """

    mode = "late-interaction"

    def __init__(
        self,
        lease: Lease,
        *,
        model: str,
        query: Side,
        passage: Side,
        expansion: Expansion | None = None,
        mean: bool = False,
        long_documents: LongDocuments = "truncate",
        cache_dtype: CacheDtype = "float32",
    ) -> None:
        self.model = model
        self._lease = lease
        self._query_side = query
        self._passage_side = passage
        self._expansion = expansion
        self._mean = mean
        self._policy: LongDocuments = long_documents
        self._dtype = np.dtype(cache_dtype)
        self._salt = repr((passage.key, long_documents, cache_dtype)).encode()
        self.count_tokens: TokenCounter | None = lease.loaded.tokenizer.count

    def steps(self, query: str, passages: Sequence[str]) -> Steps[Scores]:
        """The query, and the passages that are not in the cache, through the model; then MaxSim."""
        asked, query_cut = self._query(query)
        cache = self._lease.loaded.vectors
        found: list[TokenVectors | None] = []
        chunks: list[_Chunk] = []
        tokens = len(asked)
        with self._lease.open() as session:
            if room := session.backlog:
                yield room
            answer = session.submit([asked], more=True)
            for start in range(0, len(passages), CHUNK):
                keys = [self._key(text) for text in passages[start : start + CHUNK]]
                known = [cache.get(key) for key in keys]
                found += known
                missing = [(start + i, keys[i]) for i, vectors in enumerate(known) if vectors is None]
                if missing:
                    new = self._new(missing, passages)
                    sequences = [sequence for one in new for sequence in one.sequences]
                    chunks.append(_Chunk(new, session.submit(sequences)))
                    tokens += sum(map(len, sequences))
                if late := session.backlog:
                    yield late
            yield session.pending
            for chunk in chunks:
                for one, vectors in zip(chunk.new, self._vectors(chunk), strict=True):
                    found[one.place] = vectors
                    if np.isfinite(vectors.rows).all():
                        cache.put(one.key, vectors, vectors.nbytes)
            rows = self._query_side.counted(asked, answer.result()[0])
        return self._scores(rows, query_cut, [v for v in found if v is not None], tokens, chunks)

    def _query(self, query: str) -> tuple[Tokens, bool]:
        side = self._query_side
        [(head, ids)] = side.encode([query], whole=False)
        cut = len(ids) > side.room
        if cut and self._policy != "truncate":
            raise InputTooLong(
                f"The query has more than the {side.room} tokens that the model reads of one. Shorten it, or load "
                'with long_documents="truncate".'
            )
        tokens = side.fill(head, ids[: side.room])
        return (self._expansion(tokens) if self._expansion else tokens), cut

    def _new(self, missing: list[tuple[int, bytes]], passages: Sequence[str]) -> list[_New]:
        side = self._passage_side
        texts = side.encode([passages[place] for place, _ in missing], whole=self._policy == "max_window")
        new = []
        for (place, key), (head, ids) in zip(missing, texts, strict=True):
            parts, cut = pieces([len(ids)], side.room, self._policy, place)
            slices = [part for _, part in parts]
            sequences = [side.fill(head, ids[part]) for part in slices]
            new.append(_New(place, key, sequences, side.spans(passages[place], slices), bool(cut[0])))
        return new

    def _vectors(self, chunk: _Chunk) -> list[TokenVectors]:
        rows = iter(chunk.rows.result())
        made = []
        for one in chunk.new:
            windows = [self._passage_side.counted(sequence, next(rows)) for sequence in one.sequences]
            firsts = np.cumsum([0, *map(len, windows[:-1])], dtype=np.int32)
            kept = np.concatenate(windows, dtype=self._dtype, casting="same_kind")
            made.append(TokenVectors(kept, firsts, one.spans, one.truncated))
        return made

    def _scores(
        self, query: Row, query_cut: bool, passages: list[TokenVectors], tokens: int, chunks: list[_Chunk]
    ) -> Scores:
        scored = [vectors.score(query) for vectors in passages]
        sums = np.array([value for value, _ in scored])
        windows = [window for _, window in scored]
        return Scores(
            logits=sums / len(query) if self._mean else sums,
            truncated=np.array([vectors.truncated for vectors in passages], dtype=np.bool_) | query_cut,
            tokens=tokens,
            cached=len(passages) - sum(len(chunk.new) for chunk in chunks),
            unit=1.0 if self._mean else float(len(query)),
            windows=windows if any(windows) else None,
        )

    def _key(self, text: str) -> bytes:
        return blake2b(self._salt + text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def to_score(self, logit: float) -> float:
        """`(1 + cos) / 2` of the mean cosine; see `tamis.scores.from_cosine`."""
        return from_cosine(logit)

    def stats(self) -> Mapping[str, Any]:
        """The engine's counters and the cache's."""
        cache = self._lease.loaded.vectors
        return {
            **self._lease.loaded.facts,
            **self._lease.loaded.engine.stats(),
            "cache_hits": cache.hits,
            "cache_misses": cache.misses,
            "cache_bytes": cache.size,
        }

    def close(self) -> None:
        """Gives the checkpoint back."""
        self._lease.close()
