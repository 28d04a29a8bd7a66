"""`TamisCrossEncoder`, alone and under LangChain's own reranker."""

import asyncio
import inspect
import math
import pickle

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from pydantic import ValidationError

import tamis
from langchain_tamis import TamisCrossEncoder
from langchain_tamis.cross_encoder import BaseCrossEncoder


def sigmoid(*logits):
    return pytest.approx([1 / (1 + math.exp(-logit)) for logit in logits])


def test_is_a_cross_encoder():
    assert issubclass(TamisCrossEncoder, BaseCrossEncoder)


def test_fields_are_the_arguments_of_load():
    expected = {name: parameter.default for name, parameter in inspect.signature(tamis.load).parameters.items()}
    assert {name: field.default for name, field in TamisCrossEncoder.model_fields.items()} == expected | {
        "reranker": None,
        "needs_reranker": False,
    }


def test_unknown_fields_are_refused():
    with pytest.raises(ValidationError):
        TamisCrossEncoder(top_n=3)


def test_scores_in_the_order_of_the_pairs(reranker):
    pairs = [("a", "1"), ("b", "2"), ("a", "3"), ("c", "-4"), ("b", "0"), ("a", "1")]
    scores = TamisCrossEncoder(reranker=reranker).score(pairs)
    assert scores == sigmoid(1, 2, 3, -4, 0, 1)
    assert {type(score) for score in scores} == {float}


def test_no_pairs(reranker):
    assert TamisCrossEncoder(reranker=reranker).score([]) == []
    assert TamisCrossEncoder(model="/no/such/folder").score([]) == []


def test_a_query_is_one_request(number_scorer):
    scorer = number_scorer()
    TamisCrossEncoder(reranker=tamis.Reranker(scorer)).score([("a", "1"), ("b", "2"), ("a", "3")])
    assert sorted(scorer.requests) == [("a", ["1", "3"]), ("b", ["2"])]


def test_queries_are_under_way_together(number_scorer):
    scorer = number_scorer(together=8)  # none is answered before all have asked
    pairs = [(f"q{i}", str(i)) for i in range(8)]
    assert TamisCrossEncoder(reranker=tamis.Reranker(scorer)).score(pairs) == sigmoid(*range(8))


async def test_sync_inside_a_running_loop(number_scorer):
    scorer = number_scorer(together=1, hold=0.01)
    assert TamisCrossEncoder(reranker=tamis.Reranker(scorer)).score([("q", "1")]) == sigmoid(1)


def test_errors_pass_through(reranker):
    encoder = TamisCrossEncoder(reranker=reranker)
    with pytest.raises(tamis.InvalidScore):
        encoder.score([("q", "1"), ("q", "nan")])
    with pytest.raises(tamis.InvalidInput):
        encoder.score([("", "1")])


@pytest.mark.parametrize("native", [False, True])
async def test_under_langchains_reranker(reranker, fixed_retriever, native):
    retriever = ContextualCompressionRetriever(
        base_compressor=CrossEncoderReranker(model=TamisCrossEncoder(reranker=reranker), top_n=2),
        base_retriever=fixed_retriever,
    )
    found = await retriever.ainvoke("q") if native else await asyncio.to_thread(retriever.invoke, "q")
    assert [document.page_content for document in found] == ["weighs 2 grams", "weighs 1 gram"]


def test_loads_on_first_use_and_once():
    encoder = TamisCrossEncoder(mode="lexical")
    zip_score, tar_score = encoder.score([("zip", "a zip file"), ("zip", "a tar file")])
    assert zip_score > tar_score == 0.0
    assert encoder.load() is encoder.load()


def test_restored_without_its_reranker(reranker):
    encoder = TamisCrossEncoder(reranker=reranker)
    for lost in (pickle.loads(pickle.dumps(encoder)), TamisCrossEncoder(**encoder.model_dump())):
        with pytest.raises(tamis.InvalidInput, match="TamisCrossEncoder was restored from a dump or a pickle"):
            lost.score([("q", "1")])
    assert pickle.loads(pickle.dumps(TamisCrossEncoder(mode="lexical"))).score([("q", "1")]) == [0.0]
