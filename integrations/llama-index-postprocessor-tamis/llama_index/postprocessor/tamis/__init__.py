"""Tamis for LlamaIndex: a reranking node postprocessor, and RankRAG.

`node_postprocessors=[TamisRerank(model="...", top_n=5)]` reranks; `rankrag_query_engine(retriever)` ranks and answers
with one model.
"""

from llama_index.postprocessor.tamis.base import TamisRerank
from llama_index.postprocessor.tamis.llm import RankRAGLLM
from llama_index.postprocessor.tamis.query_engine import rankrag_query_engine
from llama_index.postprocessor.tamis.synthesizer import RankRAGSynthesizer

__all__ = ["RankRAGLLM", "RankRAGSynthesizer", "TamisRerank", "rankrag_query_engine"]
