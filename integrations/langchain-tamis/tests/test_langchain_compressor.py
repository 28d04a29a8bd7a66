"""What `TamisRerank` returns, and what it refuses."""

import inspect
import json
import math

import pytest
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.load import dumps
from pydantic import ValidationError

import tamis
from langchain_tamis import RankRAGCompressor, TamisRerank


def texts(documents):
    return [document.page_content for document in documents]


def test_is_a_document_compressor():
    assert issubclass(TamisRerank, BaseDocumentCompressor)


def test_both_methods_are_native_and_take_callbacks():
    for method in (TamisRerank.compress_documents, TamisRerank.acompress_documents):
        assert list(inspect.signature(method).parameters) == ["self", "documents", "query", "callbacks"]
    assert TamisRerank.acompress_documents is not BaseDocumentCompressor.acompress_documents


def test_fields_are_the_arguments_of_load_and_rank():
    of_load = inspect.signature(tamis.load).parameters
    of_rank = dict(list(inspect.signature(tamis.Reranker.rank).parameters.items())[3:])  # self, query, passages
    expected = {name: parameter.default for name, parameter in {**of_load, **of_rank}.items()}
    expected |= {"reranker": None, "needs_reranker": False}
    assert {name: field.default for name, field in TamisRerank.model_fields.items()} == expected


async def test_best_first_with_scores(reranker, documents):
    rerank = TamisRerank(reranker=reranker)
    for ranked in (
        rerank.compress_documents(documents, "how heavy?"),
        await rerank.acompress_documents(documents, "how heavy?"),
    ):
        assert texts(ranked) == ["weighs 2 grams", "weighs 1 gram", "weighs 0.5 grams", "weighs -1 gram"]
        expected = [1 / (1 + math.exp(-logit)) for logit in (2, 1, 0.5, -1)]
        assert [document.metadata["relevance_score"] for document in ranked] == pytest.approx(expected)


def test_lexical_end_to_end():
    documents = [Document("a tar file"), Document("how to read a zip archive")]
    [best] = TamisRerank(mode="lexical", top_n=1).compress_documents(documents, "read a zip archive")
    assert best.page_content == "how to read a zip archive"


def test_ids_and_metadata_are_kept(reranker, documents):
    ranked = TamisRerank(reranker=reranker).compress_documents(documents, "how heavy?")
    assert [document.id for document in ranked] == ["c", "a", None, "b"]
    assert [document.metadata.get("source") for document in ranked] == [None, "a.txt", None, "b.txt"]
    assert all(isinstance(document, Document) for document in ranked)


def test_a_score_from_elsewhere_is_replaced_in_the_copy_only(reranker, documents):
    best = TamisRerank(reranker=reranker).compress_documents(documents, "how heavy?")[0]
    assert best.metadata == {"relevance_score": pytest.approx(0.8808, abs=1e-4)}
    assert documents[2].metadata == {"relevance_score": "from elsewhere"}


async def test_inputs_are_unchanged(reranker, documents):
    before = [document.model_copy(deep=True) for document in documents]
    rerank = TamisRerank(reranker=reranker, top_n=2)
    ranked = rerank.compress_documents(documents, "how heavy?") + await rerank.acompress_documents(documents, "q")
    assert documents == before
    assert not any(copy is document for copy in ranked for document in documents)
    assert not any(copy.metadata is document.metadata for copy in ranked for document in documents)


def test_a_subclass_of_document_stays_one(reranker):
    class Page(Document):
        number: int

    [page] = TamisRerank(reranker=reranker).compress_documents([Page(page_content="1", number=7)], "q")
    assert (type(page), page.number) == (Page, 7)


@pytest.mark.parametrize("make", [tuple, list, lambda documents: dict(enumerate(documents)).values()])
def test_any_sequence_in_a_list_out(reranker, documents, make):
    ranked = TamisRerank(reranker=reranker).compress_documents(make(documents), "how heavy?")
    assert isinstance(ranked, list)
    assert len(ranked) == 4


def test_scores_are_json(number_scorer, documents):
    import numpy as np

    class Careless(number_scorer):
        def to_score(self, logit):
            return np.float32(super().to_score(logit))

    for scorer in (number_scorer(), Careless()):
        ranked = TamisRerank(reranker=tamis.Reranker(scorer)).compress_documents(documents, "how heavy?")
        assert {type(document.metadata["relevance_score"]) for document in ranked} == {float}
        for document in ranked:
            assert json.loads(json.dumps(document.metadata)) == document.metadata
            assert json.loads(document.model_dump_json())["metadata"] == document.metadata
            assert "not_implemented" not in dumps(document)


async def test_empty_documents(reranker):
    rerank = TamisRerank(reranker=reranker)
    assert rerank.compress_documents([], "q") == []
    assert await rerank.acompress_documents([], "q") == []


async def test_empty_documents_load_nothing(tmp_path):
    for kind in (TamisRerank, RankRAGCompressor):
        compressor = kind(model=tmp_path / "nothing")
        assert compressor.compress_documents([], "q") == []
        assert await compressor.acompress_documents([], "q") == []


def test_an_empty_document_and_duplicates_are_kept():
    documents = [Document(""), Document("zip", id="1"), Document("zip", id="2")]
    ranked = TamisRerank(mode="lexical").compress_documents(documents, "zip")
    assert [document.id for document in ranked] == ["1", "2", None]


@pytest.mark.parametrize("top_n, kept", [(None, 4), (1, 1), (4, 4), (8, 4)])
def test_top_n(reranker, documents, top_n, kept):
    assert len(TamisRerank(reranker=reranker, top_n=top_n).compress_documents(documents, "q")) == kept


async def test_min_score(reranker, documents):
    rerank = TamisRerank(reranker=reranker, min_score=0.7)  # sigmoid(1) = 0.731, sigmoid(0.5) = 0.622
    assert texts(rerank.compress_documents(documents, "q")) == ["weighs 2 grams", "weighs 1 gram"]
    assert texts(await rerank.acompress_documents(documents, "q")) == ["weighs 2 grams", "weighs 1 gram"]
    assert TamisRerank(reranker=reranker, min_score=1).compress_documents(documents, "q") == []


async def test_max_tokens(reranker, documents):
    rerank = TamisRerank(reranker=reranker, max_tokens=7)  # three words each
    assert len(rerank.compress_documents(documents, "q")) == 2
    assert len(await rerank.acompress_documents(documents, "q")) == 2
    assert len(TamisRerank(reranker=reranker, max_tokens=7, tokenizer=len).compress_documents(documents, "q")) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"topn": 3},
        {"top_n": 0},
        {"top_n": -1},
        {"top_n": True},
        {"min_score": -0.1},
        {"min_score": 1.5},
        {"min_score": math.nan},
        {"max_tokens": 0},
        {"max_length": 0},
        {"dim": [256, 128]},
        {"long_documents": "drop"},
        {"attention": "fast"},
        {"head": "any"},
        {"reranker": "a model's name"},
    ],
)
def test_refused_at_construction_and_on_assignment(wrong):
    with pytest.raises(ValidationError):
        TamisRerank(mode="lexical", **wrong)
    rerank = TamisRerank(mode="lexical")
    before = rerank.model_dump()
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError):
        setattr(rerank, name, value)
    assert rerank.model_dump() == before


@pytest.mark.parametrize("query", ["", " \n"])
async def test_an_empty_query_is_refused(reranker, documents, query):
    rerank = TamisRerank(reranker=reranker)
    with pytest.raises(tamis.InvalidInput, match="query is empty"):
        rerank.compress_documents(documents, query)
    with pytest.raises(tamis.InvalidInput, match="query is empty"):
        await rerank.acompress_documents(documents, query)


async def test_nan_is_an_error_and_not_an_order(reranker):
    rerank = TamisRerank(reranker=reranker)
    documents = [Document("1"), Document("nan")]
    with pytest.raises(tamis.InvalidScore):
        rerank.compress_documents(documents, "q")
    with pytest.raises(tamis.InvalidScore):
        await rerank.acompress_documents(documents, "q")
    assert len(rerank.compress_documents(documents[:1], "q")) == 1
