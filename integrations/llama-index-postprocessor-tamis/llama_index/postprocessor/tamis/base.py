"""`TamisRerank`: a LlamaIndex node postprocessor over `tamis.Reranker`, which decides what is kept in which order."""

from __future__ import annotations

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.schema import NodeWithScore, QueryBundle

import tamis
from llama_index.postprocessor.tamis.arguments import RANK, RerankArguments
from llama_index.postprocessor.tamis.events import reported
from llama_index.postprocessor.tamis.nodes import checked, rescored, texts_of
from tamis.inputs import check_query

dispatcher = get_dispatcher(__name__)


class TamisRerank(RerankArguments):
    """Reranks nodes with a Tamis model.

    The fields are the arguments of `tamis.load` and of `tamis.Reranker.rank`, and a few that say how nodes are read
    and written. The model is loaded by the first call, never before; what is loaded is shared by copies, and its
    engine by every other `TamisRerank` of the same checkpoint. Fields may be assigned: the next call goes by them.

    Calls change neither the nodes nor this object. Each returns new `NodeWithScore` objects, best first, whose score
    is a float in [0, 1]; they share their nodes with the input. A node is scored whatever is in it: one without text
    in `metadata_mode` is an empty passage.

    Two engines that share one instance also share its `callback_manager`, which LlamaIndex assigns: the last one
    wins. Give each engine an instance of its own; they cost nothing, the model is loaded once.

    Every call sends `ReRankStartEvent`, and `ReRankEndEvent` after it however it ends; where the reranker raised or the
    call was cancelled, the latter has no nodes. A call that is refused (no query, or an empty one), that has
    nothing to rank, or whose model cannot be loaded sends neither.

    Raises:
        tamis.InvalidInput: No query, or an argument that means nothing to the model. It is a `ValueError`.
        tamis.TamisError: From the first call: the model cannot be loaded, as `tamis.load` says.
    """

    @classmethod
    def class_name(cls) -> str:
        """The name in dumps."""
        return "TamisRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = checked(nodes, query_bundle)
        if not nodes:
            return []
        check_query(query.query_str)
        reranker = self.reranker or self._loader().get()
        with reported(self.callback_manager, reranker.model, nodes, query, self.top_n) as ranked:
            ranking = reranker.rank(query.query_str, texts_of(nodes, self.metadata_mode), **self._fields(RANK))
            ranked += self._rescored(nodes, ranking, reranker.signature(query.query_str))
        return ranked

    @dispatcher.span  # the base class does this for abstract methods only
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = checked(nodes, query_bundle)
        if not nodes:
            return []
        check_query(query.query_str)
        reranker = self.reranker or await self._loader().aget()
        with reported(self.callback_manager, reranker.model, nodes, query, self.top_n) as ranked:
            ranking = await reranker.arank(query.query_str, texts_of(nodes, self.metadata_mode), **self._fields(RANK))
            ranked += self._rescored(nodes, ranking, reranker.signature(query.query_str))
        return ranked

    def _rescored(
        self, nodes: list[NodeWithScore], ranking: tamis.Ranking, signature: str | None
    ) -> list[NodeWithScore]:
        return rescored(nodes, ranking, signature, keep_retrieval_score=self.keep_retrieval_score)
