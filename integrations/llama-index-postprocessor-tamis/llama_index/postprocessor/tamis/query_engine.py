"""`rankrag_query_engine`: a retriever, and one model that ranks what it found and answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine

from llama_index.postprocessor.tamis.synthesizer import RankRAGSynthesizer

if TYPE_CHECKING:
    from tamis.rankrag.rag import RankRAG


def rankrag_query_engine(
    retriever: BaseRetriever,
    rag: RankRAG | None = None,
    *,
    top_k: int = 5,
    streaming: bool = False,
    node_postprocessors: list[BaseNodePostprocessor] | None = None,
    callback_manager: CallbackManager | None = None,
    **options: Any,
) -> RetrieverQueryEngine:
    """A query engine whose nodes are ranked by the model that answers from them.

    Args:
        retriever: Have it retrieve more than `top_k`.
        rag: What `tamis.load_rankrag` returned; or pass what it takes, such as `model=`.
        top_k: As in `RankRAGSynthesizer`, and so are `streaming` and the options.
        streaming: See there.
        node_postprocessors: Between retriever and ranking.
        callback_manager: LlamaIndex's.
        options: See `RankRAGSynthesizer`.
    """
    synthesizer = RankRAGSynthesizer(
        rag, top_k=top_k, streaming=streaming, callback_manager=callback_manager, **options
    )
    return RetrieverQueryEngine(retriever, synthesizer, node_postprocessors, callback_manager)
