"""What is served: a loaded reranker, or a RankRAG model, under its names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tamis
from tamis.errors import DeviceLost, InvalidInput
from tamis.rankrag.rag import RankRAG
from tamis.scores import logit, sigmoid
from tamis.types import Hit, Ranking

CUTS_NOTHING = ("lexical", "remote")  # modes without a policy for long passages, or with another machine's


@dataclass(slots=True)
class Service:
    """A model, loaded.

    Attributes:
        reranker: What ranks.
        strict: What ranks where nothing may be cut; the same engine with another policy.
        names: What requests may call it; the first is what answers say.
        rag: What answers, if it is a RankRAG model.
        lost: Whether the device was lost, so that only a new process helps.
    """

    reranker: tamis.Reranker
    strict: tamis.Reranker
    names: tuple[str, ...]
    rag: RankRAG | None = None
    lost: bool = False

    async def rank(
        self, query: str, texts: Sequence[str], *, top_n: int | None, timeout: float, cut: bool = True
    ) -> Ranking:
        """The ranking of some texts. Raises as `Reranker.arank` does; `InputTooLong` unless `cut`."""
        try:
            return await (self.reranker if cut else self.strict).arank(query, texts, top_n=top_n, timeout=timeout)
        except DeviceLost:
            self.lost = True
            raise

    def stats(self) -> dict[str, Any]:
        """`Reranker.stats`, with the requests of both."""
        mine = dict(self.reranker.stats())
        if self.strict is not self.reranker:
            mine["requests"] += self.strict.stats()["requests"]
        return mine

    def close(self) -> None:
        """Closes the model: whoever waits for it gets `Closed`."""
        self.reranker.close()
        self.strict.close()
        if self.rag is not None:
            self.rag.close()


@dataclass(frozen=True, slots=True)
class Source:
    """A model, to be loaded where it will run.

    Attributes:
        model: What `tamis.load` or `tamis.load_rankrag` takes.
        rankrag: Whether it answers, too.
        names: What requests may call it; the model's own name if empty.
        options: The loader's other arguments.
    """

    model: str | None = None
    rankrag: bool = False
    names: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.options.get("api_key") is not None:
            raise InvalidInput(
                "A key does not travel to other processes; set TAMIS_API_KEY in the environment of the replicas."
            )
        if not all(isinstance(name, str) and name for name in self.names):
            raise InvalidInput("A served name is empty; pass names that requests can have under `model`.")

    def load(self) -> Service:
        """Loads it. Raises as `tamis.load` and `tamis.load_rankrag` do."""
        if self.rankrag:
            rag = tamis.load_rankrag(self.model, **self.options)
            reranker = strict = rag.reranker
            if self._cuts(reranker):
                strict = tamis.load_rankrag(self.model, **{**self.options, "long_documents": "error"}).reranker
            return Service(reranker, strict, self._names(reranker), rag)
        reranker = strict = tamis.load(self.model, **self.options)
        if self._cuts(reranker):
            strict = tamis.load(self.model, **{**self.options, "long_documents": "error"})
        return Service(reranker, strict, self._names(reranker))

    def _cuts(self, reranker: tamis.Reranker) -> bool:
        policy = self.options.get("long_documents", "truncate")
        return policy == "truncate" and reranker.mode not in CUTS_NOTHING and not self.options.get("server")

    def _names(self, reranker: tamis.Reranker) -> tuple[str, ...]:
        path = Path(reranker.model)  # a folder's path is nobody's business
        return self.names or (path.resolve().name if path.exists() else reranker.model,)


def raw_values(hits: Sequence[Hit]) -> list[float]:
    """What clients that apply a sigmoid need to come to our scores: the logits, or the scores' own inverse.

    A cross-encoder's score is its logit's sigmoid, so the logit goes out, which ties nowhere. A cosine's or a BM25
    sum's is not.

    >>> from tamis.types import Passage
    >>> raw_values([Hit(0, sigmoid(3.0), 3.0, Passage(""))]), raw_values([Hit(0, 0.5, 0.25, Passage(""))])
    ([3.0], [0.0])
    """
    if all(abs(sigmoid(hit.logit) - hit.score) < 1e-9 for hit in hits):
        return [hit.logit for hit in hits]
    return [logit(hit.score) for hit in hits]
