"""`bi-encoder`: query and passages as vectors, apart; their cosine, in as many dimensions as asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.budget import TokenCounter
from tamis.engine.loaded import Lease, Vectors
from tamis.engine.requests import Outputs
from tamis.engine.sequences import Tokens
from tamis.errors import InputTooLong
from tamis.long_documents import LongDocuments, pieces
from tamis.scorers.base import Scores
from tamis.scorers.cross_encoder import CHUNK
from tamis.scorers.funnel import cosines
from tamis.scores import from_cosine
from tamis.steps import Steps


@dataclass(slots=True)
class _Chunk:
    """New passages on their way through the model: where they stand, and which rows will be theirs."""

    places: list[int]
    keys: list[bytes]
    firsts: list[int]
    cut: NDArray[np.bool_]
    rows: Future[Outputs]

    def vectors(self) -> list[Vectors]:
        spans = zip(self.firsts, [*self.firsts[1:], None], self.cut, strict=True)
        rows = self.rows.result()
        return [Vectors(np.stack(rows[start:end]), bool(cut)) for start, end, cut in spans]


class BiEncoderScorer:
    """Vectors of a sentence encoder; those of passages are kept between calls.

    Args:
        lease: The loaded checkpoint.
        model: What it was called.
        max_length: Tokens of one text, special tokens included.
        dims: Growing numbers of leading dimensions; one for plain (or truncated) cosines, more for a funnel.
        query_prompt: Put before the query.
        passage_prompt: Put before each passage.
        normalize_first: Layer-normalise the full vector before it is truncated, as nomic-embed-text-v1.5 asks.
        long_documents: What happens to a text that is longer.
    """

    mode = "bi-encoder"

    def __init__(
        self,
        lease: Lease,
        *,
        model: str,
        max_length: int,
        dims: Sequence[int],
        query_prompt: str = "",
        passage_prompt: str = "",
        normalize_first: bool = False,
        long_documents: LongDocuments = "truncate",
    ) -> None:
        self.model = model
        self._lease = lease
        self._tokenizer = lease.loaded.tokenizer
        self._template = self._tokenizer.template(1)
        self._space = max_length - self._template.overhead
        self._dims = tuple(dims)
        self._query_prompt = query_prompt
        self._passage_prompt = passage_prompt
        self._normalize = normalize_first and self._dims != (lease.loaded.width,)
        self._policy: LongDocuments = long_documents
        self._salt = repr((passage_prompt, max_length, long_documents)).encode()
        self.count_tokens: TokenCounter | None = self._tokenizer.count

    def steps(self, query: str, passages: Sequence[str]) -> Steps[Scores]:
        """The query, and the passages that are not in the cache, through the model; then their cosines."""
        asked, query_cut = self._query(query)
        cache = self._lease.loaded.vectors
        found: list[Vectors | None] = []
        chunks: list[_Chunk] = []
        tokens = len(asked)
        with self._lease.open() as session:
            if room := session.backlog:
                yield room
            answer = session.submit([asked])
            for start in range(0, len(passages), CHUNK):
                keys = [self._key(text) for text in passages[start : start + CHUNK]]
                known = [cache.get(key) for key in keys]
                found += known
                new = [i for i, vectors in enumerate(known) if vectors is None]
                if new:
                    sequences, firsts, cut = self._sequences([passages[start + i] for i in new], start)
                    rows = session.submit(sequences)
                    tokens += sum(map(len, sequences))
                    chunks.append(_Chunk([start + i for i in new], [keys[i] for i in new], firsts, cut, rows))
                if late := session.backlog:
                    yield late
            yield session.pending
            for chunk in chunks:
                for place, key, vectors in zip(chunk.places, chunk.keys, chunk.vectors(), strict=True):
                    found[place] = vectors
                    if np.isfinite(vectors.rows).all():
                        cache.put(key, vectors, vectors.rows.nbytes)
            query_row = answer.result()[0]
        all_vectors = [vectors for vectors in found if vectors is not None]
        logits = self._compare(query_row, all_vectors)
        truncated = np.array([vectors.truncated for vectors in all_vectors], dtype=np.bool_) | query_cut
        return Scores(logits, truncated, tokens, len(passages) - sum(len(chunk.places) for chunk in chunks))

    def _query(self, query: str) -> tuple[Tokens, bool]:
        ids = self._tokenizer.encode([self._query_prompt + query], limit=self._space)[0]
        if len(ids) > self._space and self._policy != "truncate":
            raise InputTooLong(
                f"The query has more than the {self._space} tokens that the model reads. Shorten it, or load with "
                'long_documents="truncate".'
            )
        return self._template.fill(ids[: self._space]), len(ids) > self._space

    def _sequences(self, texts: list[str], start: int) -> tuple[list[Tokens], list[int], NDArray[np.bool_]]:
        """Sequences of some texts, each text's first one, and which texts lose something."""
        prompted = [self._passage_prompt + text for text in texts]
        encoded = self._tokenizer.encode(prompted, limit=self._space if self._policy != "max_window" else None)
        parts, cut = pieces([len(ids) for ids in encoded], self._space, self._policy, start)
        firsts = [i for i, (owner, _) in enumerate(parts) if i == 0 or owner != parts[i - 1][0]]
        return [self._template.fill(encoded[owner][part]) for owner, part in parts], firsts, cut

    def _compare(self, query: NDArray[np.float32], passages: list[Vectors]) -> NDArray[np.float64]:
        rows = np.concatenate([vectors.rows for vectors in passages])
        if self._normalize:
            query, rows = layer_norm(query), layer_norm(rows)
        counts = [len(vectors.rows) for vectors in passages]
        return cosines(query, rows, np.cumsum([0, *counts[:-1]]).tolist(), self._dims)

    def _key(self, text: str) -> bytes:
        return blake2b(self._salt + text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def to_score(self, logit: float) -> float:
        """See `tamis.scores.from_cosine`."""
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


def layer_norm(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zero mean and unit variance over the last axis, without scale and shift (eps 1e-5, as torch's default).

    >>> layer_norm(np.array([1.0, 3.0], np.float32)).round(2).tolist()
    [-1.0, 1.0]
    """
    centred = x - x.mean(-1, keepdims=True)
    scaled: NDArray[np.float32] = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled
