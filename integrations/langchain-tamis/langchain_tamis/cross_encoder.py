"""`TamisCrossEncoder`: LangChain's cross-encoder interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_tamis.model import TamisModel

if TYPE_CHECKING:
    from langchain_core.cross_encoders import BaseCrossEncoder
else:
    try:
        from langchain_core.cross_encoders import BaseCrossEncoder
    except ImportError:  # langchain-core got it during 1.2; before, langchain-classic alone had it
        try:
            from langchain_classic.retrievers.document_compressors.cross_encoder import BaseCrossEncoder
        except ImportError:
            BaseCrossEncoder: Any = object  # nobody is there who would ask for the class


class TamisCrossEncoder(TamisModel, BaseCrossEncoder):
    """Scores pairs of query and passage with Tamis, for whatever takes a `BaseCrossEncoder`.

    The fields are the arguments of `tamis.load`, or a loaded `reranker=`. The interface is synchronous only, and says
    nothing of batches; where a document compressor will do, `TamisRerank` is the better door.

    >>> TamisCrossEncoder(mode="lexical").score([("zip", "a tar file"), ("tar", "a tar file")])
    [0.0, 0.13...]
    """

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Scores in [0, 1], in the order of the pairs.

        The passages of one query are one request, and all requests are under way together, so that pairs of different
        queries share batches.

        Args:
            text_pairs: (query, passage) pairs.
        """
        places: dict[str, list[int]] = {}
        for place, (query, _) in enumerate(text_pairs):
            places.setdefault(query, []).append(place)
        if not places:
            return []
        requests = [(query, [text_pairs[place][1] for place in of_query]) for query, of_query in places.items()]
        scores = [0.0] * len(text_pairs)
        for of_query, ranking in zip(places.values(), self.load().rank_many(requests), strict=True):
            for hit in ranking:
                scores[of_query[hit.index]] = float(hit.score)
        return scores
