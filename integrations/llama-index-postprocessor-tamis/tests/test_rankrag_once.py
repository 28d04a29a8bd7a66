"""Nothing is ranked twice: a postprocessor and a synthesizer over one model meet. Counted in the engine.

Each passage that is ranked, and each token that is written, is a sequence of the engine's.
"""

import asyncio
import copy
import pickle

import pytest
from llama_index.core.postprocessor import LongContextReorder, SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore

import tamis
from llama_index.postprocessor.tamis import RankRAGSynthesizer, TamisRerank, rankrag_query_engine

WRITTEN = 3  # tokens


class Fixed(BaseRetriever):
    def __init__(self, nodes):
        super().__init__()
        self.nodes = nodes

    def _retrieve(self, query_bundle):
        return [node.model_copy() for node in self.nodes]


@pytest.fixture
def retriever(nodes):
    return Fixed(nodes)


@pytest.fixture
def synthesizer(rag):
    return RankRAGSynthesizer(rag, max_new_tokens=WRITTEN)


@pytest.fixture(params=["loaded", "named"])
def rerank(request, rag, tiny_llama):
    """The same model, in two ways to say so."""
    if request.param == "loaded":
        return TamisRerank(reranker=rag.reranker, top_n=3)
    return TamisRerank(mode="rankrag", model=tiny_llama, dtype="float32", top_n=3)


@pytest.fixture(params=["sync", "async"])
def ask(request):
    def run(engine, query):
        return engine.query(query) if request.param == "sync" else asyncio.run(engine.aquery(query))

    return run


def test_ranked_once(ask, retriever, rerank, rag, query, sequences):
    alone = ask(rankrag_query_engine(retriever, rag, top_k=3, max_new_tokens=WRITTEN), query)
    assert sequences() == 4 + WRITTEN
    engine = rankrag_query_engine(retriever, rag, top_k=3, max_new_tokens=WRITTEN, node_postprocessors=[rerank])
    response = ask(engine, query)
    assert sequences() == 2 * (4 + WRITTEN)
    assert response.response == alone.response
    assert [n.node_id for n in response.source_nodes] == [n.node_id for n in alone.source_nodes]
    scores = [node.score for node in alone.source_nodes]
    assert [node.score for node in response.source_nodes] == pytest.approx(scores, abs=1e-6)
    assert response.metadata["usage"]["ranking_tokens"] == 0


def test_the_ranking_is_reported_once(ask, retriever, rerank, rag, query, events):
    ask(rankrag_query_engine(retriever, rag, max_new_tokens=WRITTEN, node_postprocessors=[rerank]), query)
    assert len(events.named("ReRankStartEvent")) == len(events.named("ReRankEndEvent")) == 1


def test_streamed(retriever, rerank, rag, query, sequences):
    engine = rankrag_query_engine(retriever, rag, streaming=True, max_new_tokens=WRITTEN, node_postprocessors=[rerank])
    assert "".join(engine.query(query).response_gen)
    assert sequences() == 4 + WRITTEN


def test_postprocessors_in_between(ask, retriever, rerank, synthesizer, query, sequences):
    lexical = TamisRerank(mode="lexical")  # other scores, another order
    between = [SimilarityPostprocessor(similarity_cutoff=0.0), LongContextReorder(), lexical]
    response = ask(RetrieverQueryEngine(retriever, synthesizer, [rerank, *between]), query)
    assert sequences() == 4 + WRITTEN
    ranked = rerank.postprocess_nodes(retriever.nodes, query_str=query)
    assert [(n.node_id, n.score) for n in response.source_nodes] == [(n.node_id, n.score) for n in ranked]


def test_a_synthesizers_sources(retriever, synthesizer, query, sequences):
    first = synthesizer.synthesize(query, retriever.nodes)
    again = synthesizer.synthesize(query, first.source_nodes)
    assert sequences() == 4 + 2 * WRITTEN
    assert (again.response, again.source_nodes) == (first.response, first.source_nodes)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda node: node.model_copy(update={"score": 0.1})])
def test_copies_keep_the_mark(retriever, rerank, synthesizer, query, sequences, duplicate):
    ranked = [duplicate(node) for node in rerank.postprocess_nodes(retriever.nodes, query_str=query)]
    synthesizer.synthesize(query, ranked)
    assert sequences() == 4 + WRITTEN


def test_the_mark_is_in_no_dump(retriever, rerank, query):
    for node in rerank.postprocess_nodes(retriever.nodes, query_str=query):
        plain = NodeWithScore(node=node.node, score=node.score)
        assert node == plain == node
        assert node != plain.model_copy(update={"score": 0.1})
        assert node.to_dict() == plain.to_dict()
        assert node.model_dump_json() == plain.model_dump_json()
        assert isinstance(pickle.loads(pickle.dumps(node)), NodeWithScore)


def other_question(nodes, query):
    return nodes, query + "?"


def rebuilt(nodes, query):
    return [NodeWithScore(node=node.node, score=node.score) for node in nodes], query


def one_rebuilt(nodes, query):
    return [*nodes[:-1], NodeWithScore(node=nodes[-1].node)], query


def other_text(nodes, query):
    nodes[0].node = nodes[0].node.model_copy()  # as MetadataReplacementPostProcessor does, in place
    nodes[0].node.set_content("A window around it.")
    return nodes, query


@pytest.mark.parametrize("change", [other_question, rebuilt, one_rebuilt, other_text])
def test_what_is_not_the_same_is_ranked(retriever, rerank, synthesizer, query, sequences, change):
    ranked = rerank.postprocess_nodes(retriever.nodes, query_str=query)
    nodes, asked = change(ranked, query)
    before = sequences()
    response = synthesizer.synthesize(asked, nodes)
    assert sequences() - before == 3 + WRITTEN
    assert response.metadata["usage"]["ranking_tokens"] > 0


@pytest.mark.parametrize("setting", [{"task": "claim"}, {"metadata_mode": "none"}])
def test_another_prompt_is_another_ranking(retriever, rerank, rag, query, sequences, setting):
    ranked = rerank.postprocess_nodes(retriever.nodes, query_str=query)
    RankRAGSynthesizer(rag, max_new_tokens=WRITTEN, **setting).synthesize(query, ranked)
    assert sequences() == 4 + 3 + WRITTEN


@pytest.mark.parametrize("setting", [{"style": "plain"}, {"relevance": "margin"}, {"max_length": 512}])
def test_another_model_is_another_ranking(retriever, rerank, tiny_llama, query, setting):
    ranked = rerank.postprocess_nodes(retriever.nodes, query_str=query)
    synthesizer = RankRAGSynthesizer(model=tiny_llama, dtype="float32", max_new_tokens=WRITTEN, **setting)
    assert synthesizer.synthesize(query, ranked).metadata["usage"]["ranking_tokens"] > 0


def test_another_reranker_leaves_no_mark(retriever, synthesizer, query, sequences):
    ranked = TamisRerank(mode="lexical", top_n=2).postprocess_nodes(retriever.nodes, query_str=query)
    assert {type(node) for node in ranked} == {NodeWithScore}
    synthesizer.synthesize(query, ranked)
    assert sequences() == 2 + WRITTEN


def test_signatures(rag, tiny_llama, query):
    named = tamis.load(tiny_llama, mode="rankrag", dtype="float32")
    assert named.signature(query) == rag.reranker.signature(query) == rag.signature(query)
    assert rag.signature(query) != rag.signature(query + "?")
    assert rag.signature(query, task="full") == rag.signature(query), "the paper ranks for both alike"
    assert rag.signature(query, task="claim") != rag.signature(query)
    assert rag.signature(query, history=[("user", "a"), ("assistant", "b")]) != rag.signature(query)
    assert tamis.load(mode="lexical").signature(query) is None
