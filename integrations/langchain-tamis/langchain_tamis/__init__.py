"""Tamis for LangChain: rerankers, and RankRAG.

>>> from langchain_core.documents import Document
>>> from langchain_tamis import TamisRerank
>>> documents = [Document("a tar file"), Document("how to read a zip archive")]
>>> [best] = TamisRerank(mode="lexical", top_n=1).compress_documents(documents, "read a zip archive")
>>> best.page_content, round(best.metadata["relevance_score"], 2)
('how to read a zip archive', 0.53)
"""

from typing import TYPE_CHECKING, Any

from langchain_tamis.compressor import RankRAGCompressor, TamisRerank
from langchain_tamis.rankrag import RankRAG

if TYPE_CHECKING:
    from langchain_tamis.cross_encoder import TamisCrossEncoder

__version__ = "0.1.0"

__all__ = ["RankRAG", "RankRAGCompressor", "TamisCrossEncoder", "TamisRerank", "__version__"]


def __getattr__(name: str) -> Any:
    """`TamisCrossEncoder`, on first use: its base class may be langchain-classic's, which imports torch."""
    if name == "TamisCrossEncoder":
        from langchain_tamis.cross_encoder import TamisCrossEncoder

        return TamisCrossEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
