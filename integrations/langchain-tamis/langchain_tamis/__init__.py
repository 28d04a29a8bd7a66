"""Tamis for LangChain: rerankers, and RankRAG.

>>> from langchain_core.documents import Document
>>> from langchain_tamis import TamisRerank
>>> documents = [Document("a tar file"), Document("how to read a zip archive")]
>>> [best] = TamisRerank(mode="lexical", top_n=1).compress_documents(documents, "read a zip archive")
>>> best.page_content, round(best.metadata["relevance_score"], 2)
('how to read a zip archive', 0.53)
"""

from langchain_tamis.compressor import RankRAGCompressor, TamisRerank
from langchain_tamis.cross_encoder import TamisCrossEncoder
from langchain_tamis.rankrag import RankRAG

__version__ = "0.1.0"

__all__ = ["RankRAG", "RankRAGCompressor", "TamisCrossEncoder", "TamisRerank", "__version__"]
