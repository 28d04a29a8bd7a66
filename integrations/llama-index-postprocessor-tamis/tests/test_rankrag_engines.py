"""RankRAG end to end: query engines and chat engines, offline, over passages of SQuAD where it is there."""

import asyncio

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.chat_engine import CondensePlusContextChatEngine, CondenseQuestionChatEngine, ContextChatEngine
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import SubQuestionQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import MetadataMode
from llama_index.core.tools import QueryEngineTool

import tamis
from llama_index.postprocessor.tamis import RankRAGLLM, RankRAGSynthesizer, TamisRerank, rankrag_query_engine
from standstill import watched

LONG = 1000  # tokens; the tiny model goes on that far


class Fixed(BaseRetriever):
    """Always retrieves the same nodes, as fresh objects, as stores do."""

    def __init__(self, nodes):
        super().__init__()
        self.nodes = nodes

    def _retrieve(self, query_bundle):
        return [node.model_copy() for node in self.nodes]

    async def _aretrieve(self, query_bundle):
        return self._retrieve(query_bundle)


@pytest.fixture
def retriever(nodes):
    return Fixed(nodes)


@pytest.fixture
def llm(rag):
    return RankRAGLLM(rag=rag, max_new_tokens=8)


@pytest.fixture
def index(squad):
    return VectorStoreIndex(nodes=squad(range(0, 120, 10)), embed_model=MockEmbedding(embed_dim=8))


@pytest.fixture
def expected(rag):
    """What the model says of nodes, asked alone."""

    def ask(query, nodes, **options):
        return rag.answer(query, [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes], **options)

    return ask


# -- query engines ---------------------------------------------------------------------------------------------------


async def test_over_an_index(index, rag, expected):
    query = "Which name is also used to describe the Amazon rainforest in English?"
    retriever = index.as_retriever(similarity_top_k=8)
    engine = rankrag_query_engine(retriever, rag, top_k=3, max_new_tokens=10)
    retrieved = retriever.retrieve(query)
    answer = expected(query, retrieved, top_k=3, max_new_tokens=10)
    for response in (engine.query(query), await engine.aquery(query)):
        assert response.response == answer.text
        assert [n.node_id for n in response.source_nodes] == [retrieved[hit.index].node_id for hit in answer.contexts]
        scores = [hit.score for hit in answer.contexts]
        assert [node.score for node in response.source_nodes] == pytest.approx(scores, abs=1e-6)
        assert scores == sorted(scores, reverse=True)
        assert len(response.metadata["scores"]) == 8
    stored = index.docstore.docs.values()
    assert all(set(node.metadata) == {"title"} for node in stored)


def test_as_query_engine(index, rag, llm):
    """With the model as the index's language model too, or LlamaIndex asks for an OpenAI key."""
    synthesizer = RankRAGSynthesizer(llm=llm, top_k=2, max_new_tokens=4)
    engine = index.as_query_engine(llm=llm, response_synthesizer=synthesizer, similarity_top_k=5)
    response = engine.query("What is the Amazon?")
    assert len(response.source_nodes) == 2
    assert response.response == engine.query("What is the Amazon?").response


@pytest.mark.parametrize("mode", [ResponseMode.COMPACT, ResponseMode.REFINE, ResponseMode.TREE_SUMMARIZE])
async def test_llamaindexs_own_synthesizers(index, rag, llm, sequences, mode):
    """The model ranks as a postprocessor, and answers as a language model."""
    rerank = TamisRerank(reranker=rag.reranker, top_n=2)
    engine = index.as_query_engine(llm=llm, similarity_top_k=5, node_postprocessors=[rerank], response_mode=mode)
    response = engine.query("What is the Amazon?")
    assert response.response == (await engine.aquery("What is the Amazon?")).response
    assert [node.score for node in response.source_nodes] == sorted(n.score for n in response.source_nodes)[::-1]
    texts = {ResponseMode.COMPACT: 1, ResponseMode.REFINE: 2, ResponseMode.TREE_SUMMARIZE: 1}[mode]
    assert sequences() <= 2 * (5 + texts * 8)


async def test_streams(retriever, rag, query):
    engine = rankrag_query_engine(retriever, rag, max_new_tokens=12)
    streaming = rankrag_query_engine(retriever, rag, max_new_tokens=12, streaming=True)
    whole = engine.query(query)
    assert "".join(streaming.query(query).response_gen) == whole.response
    response = await streaming.aquery(query)
    assert [node.node_id for node in response.source_nodes] == [node.node_id for node in whole.source_nodes]
    assert [node.score for node in response.source_nodes] == pytest.approx(
        [n.score for n in whole.source_nodes], abs=1e-6
    )
    assert "".join([piece async for piece in response.async_response_gen()]) == whole.response
    assert str(streaming.query(query)) == whole.response


async def test_cancelled_queries_leave_nothing_running(retriever, rag, query, idle):
    before = await idle()
    for streaming in (False, True):
        engine = rankrag_query_engine(retriever, rag, max_new_tokens=LONG, streaming=streaming)

        async def ask(engine=engine):
            response = await engine.aquery(query)
            return str(response) if isinstance(response.response, str) else [p async for p in response.response_gen]

        asking = asyncio.create_task(ask()) if not streaming else asyncio.create_task(engine.aquery(query))
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        del asking, ask
    assert await idle() - before < LONG / 2
    assert (await rankrag_query_engine(retriever, rag, max_new_tokens=4).aquery(query)).response


async def test_twenty_queries_share_batches_and_block_no_loop(retriever, slow, query, expected):
    rag = slow(0.1)  # a call that blocked would hold the loop for five batches
    engine = rankrag_query_engine(retriever, rag, top_k=2, max_new_tokens=4)
    before = rag.stats()["batches"]
    async with watched() as seen:
        responses = await asyncio.gather(*(engine.aquery(f"{query} {i}") for i in range(20)))
    assert seen.held() < 0.25
    assert rag.stats()["batches"] - before < 20 * 5 / 3, "one at a time would take 20 * 5"
    for i in (0, 7, 19):
        answer = expected(f"{query} {i}", retriever.nodes, top_k=2, max_new_tokens=4)
        assert responses[i].response == answer.text
        scores = [hit.score for hit in answer.contexts]
        assert [node.score for node in responses[i].source_nodes] == pytest.approx(scores, abs=1e-5)


def test_sync_queries_from_many_threads(retriever, rag, query):
    from concurrent.futures import ThreadPoolExecutor

    engine = rankrag_query_engine(retriever, rag, max_new_tokens=3)
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda i: engine.query(f"{query} {i % 4}").response, range(16)))
    assert texts[:4] * 4 == texts


async def test_as_a_tool(retriever, rag, query):
    tool = QueryEngineTool.from_defaults(rankrag_query_engine(retriever, rag, top_k=2, max_new_tokens=3), name="docs")
    output = await tool.acall(query)
    assert len(output.raw_output.source_nodes) == 2


def test_the_last_step_of_another_engine(retriever, rag, llm, query):
    """A synthesizer that LlamaIndex hands nodes it made itself."""
    from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion

    class Two(BaseQuestionGenerator):
        def generate(self, tools, query):
            return [SubQuestion(sub_question=f"{query.query_str} {i}", tool_name="docs") for i in range(2)]

        async def agenerate(self, tools, query):
            return self.generate(tools, query)

        def _get_prompts(self):
            return {}

        def _update_prompts(self, prompts):
            pass

    tool = QueryEngineTool.from_defaults(
        rankrag_query_engine(retriever, rag, top_k=1, max_new_tokens=3), name="docs", description="docs"
    )
    engine = SubQuestionQueryEngine(
        question_gen=Two(),
        response_synthesizer=RankRAGSynthesizer(rag, max_new_tokens=3),
        query_engine_tools=[tool],
        use_async=False,
        verbose=False,
    )
    response = engine.query(query)
    assert [node.score for node in response.source_nodes[:2]] == sorted(
        (node.score for node in response.source_nodes[:2]), reverse=True
    )
    assert any("Sub question" in node.text for node in response.source_nodes)


def test_prompts_are_the_models_own(retriever, rag, query):
    engine = rankrag_query_engine(retriever, rag, max_new_tokens=3)
    assert engine.get_prompts() == {}
    with pytest.raises(tamis.InvalidInput, match="query is empty"):
        engine.query(" ")


# -- chat engines ----------------------------------------------------------------------------------------------------


@pytest.fixture
def memory():
    """Not LlamaIndex's default, which leaves a database open."""
    return ChatMemoryBuffer.from_defaults(token_limit=2000)


@pytest.fixture(params=[ContextChatEngine, CondensePlusContextChatEngine])
def chat(request, retriever, llm, rag):
    def make():
        return request.param.from_defaults(
            retriever=retriever,
            llm=llm,
            memory=ChatMemoryBuffer.from_defaults(token_limit=2000),
            node_postprocessors=[TamisRerank(reranker=rag.reranker, top_n=2)],
        )

    return make


async def test_chat_engines(chat, query):
    here, there = chat(), chat()
    for message in (query, "And a tar file?"):  # the second has a history
        said = await there.achat(message)
        assert here.chat(message).response == said.response != ""
        assert [node.score for node in said.source_nodes] == sorted(n.score for n in said.source_nodes)[::-1]
        assert len(said.source_nodes) == 2
    assert len(here.chat_history) == 4


async def test_chat_engines_stream(chat, query):
    whole = await chat().achat(query)
    here, there = chat(), chat()
    assert "".join(here.stream_chat(query).response_gen) == whole.response
    response = await there.astream_chat(query)
    assert "".join([piece async for piece in response.async_response_gen()]) == whole.response
    assert [message.content for message in there.chat_history][-1] == whole.response


async def test_a_query_engine_that_chats(retriever, rag, llm, memory, query):
    engine = rankrag_query_engine(retriever, rag, top_k=2, max_new_tokens=6)
    chat = CondenseQuestionChatEngine.from_defaults(engine, llm=llm, memory=memory)
    first = await chat.achat(query)
    assert first.response
    second = await chat.achat("And a tar file?")
    assert len(second.source_nodes) == 2
    assert [node.score for node in second.source_nodes] == sorted(n.score for n in second.source_nodes)[::-1]


async def test_as_chat_engine(index, llm, memory):
    chat = index.as_chat_engine(llm=llm, chat_mode="context", similarity_top_k=2, memory=memory)
    assert (await chat.achat("What is the Amazon?")).response
