"""The postprocessor by itself: its fields, what it returns, what it refuses."""

import asyncio
import inspect
import json

import numpy as np
import pytest
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import ImageNode, IndexNode, MetadataMode, NodeWithScore, QueryBundle, TextNode

import tamis
from llama_index.postprocessor.tamis import TamisRerank


def ids(nodes):
    return [node.node_id for node in nodes]


@pytest.fixture(params=["sync", "async"])
def call(request):
    """Ranks through the public method, one way and the other."""

    def run(rerank, nodes, query):
        if request.param == "sync":
            return rerank.postprocess_nodes(nodes, query_str=query)
        return asyncio.run(rerank.apostprocess_nodes(nodes, query_str=query))

    return run


def test_class():
    assert BaseNodePostprocessor.__name__ in [base.__name__ for base in TamisRerank.__mro__]
    assert TamisRerank.class_name() == "TamisRerank"
    assert {"_postprocess_nodes", "_apostprocess_nodes"} <= vars(TamisRerank).keys()
    assert not {"postprocess_nodes", "apostprocess_nodes"} & vars(TamisRerank).keys()


def test_fields_are_the_arguments_of_load_and_rank():
    load = dict(inspect.signature(tamis.load).parameters)
    rank = dict(inspect.signature(tamis.Reranker.rank).parameters)
    arguments = {**load, **{name: rank[name] for name in rank.keys() - {"self", "query", "passages"}}}
    own = {"callback_manager", "metadata_mode", "keep_retrieval_score", "reranker", "needs_reranker"}
    assert TamisRerank.model_fields.keys() - own == arguments.keys()
    rerank = TamisRerank()
    assert {name: getattr(rerank, name) for name in arguments} == {n: p.default for n, p in arguments.items()}


def test_ranks(call, nodes, query, best_first):
    ranked = call(TamisRerank(mode="lexical"), nodes, query)
    assert ids(ranked) == best_first
    assert [node.score for node in ranked] == sorted((node.score for node in ranked), reverse=True)
    assert {type(node.score) for node in ranked} == {float}
    expected = tamis.load(mode="lexical").rank(query, [n.get_content(MetadataMode.EMBED) for n in nodes])
    assert [node.score for node in ranked] == [hit.score for hit in expected]


def test_scores_are_python_floats_whatever_the_scorer_returns(call, nodes, query, fake):
    ranked = call(TamisRerank(reranker=fake()[1]), nodes, query)
    assert {type(node.score) for node in ranked} == {float}
    assert [json.loads(node.to_json())["score"] for node in ranked] == [node.score for node in ranked]
    assert json.loads(ranked[0].model_dump_json())["score"] == ranked[0].score


@pytest.mark.parametrize("top_n", [None, 1, 2, 4, 8])
def test_top_n(call, nodes, query, best_first, top_n):
    assert ids(call(TamisRerank(mode="lexical", top_n=top_n), nodes, query)) == best_first[:top_n]


def test_min_score(call, nodes, query, best_first):
    least = call(TamisRerank(mode="lexical"), nodes, query)[1].score
    assert ids(call(TamisRerank(mode="lexical", min_score=least), nodes, query)) == best_first[:2]
    assert call(TamisRerank(mode="lexical", min_score=1.0), nodes, query) == []


def test_max_tokens(call, nodes, query, fake):
    rerank = TamisRerank(reranker=fake()[1], max_tokens=13)  # the longest text counts 10 words with its metadata
    assert ids(call(rerank, nodes, query)) == ["n1"]
    rerank.tokenizer = lambda text: 1
    rerank.max_tokens = 3
    assert len(call(rerank, nodes, query)) == 3


def test_input_is_unchanged(call, nodes, query):
    before = [node.model_dump() for node in nodes]
    inner = [node.node for node in nodes]
    ranked = call(TamisRerank(mode="lexical", keep_retrieval_score=True, top_n=2), nodes, query)
    assert [node.model_dump() for node in nodes] == before
    assert [node.node for node in nodes] == inner
    assert not {id(node) for node in ranked} & {id(node) for node in nodes}


def test_nodes_are_shared(call, nodes, query):
    for node in call(TamisRerank(mode="lexical"), nodes, query):
        assert node.node is nodes[int(node.node_id[1:])].node


def test_one_node_twice_is_kept_twice(call, nodes, query, best_first):
    ranked = call(TamisRerank(mode="lexical"), [*nodes, *nodes], query)
    assert ids(ranked) == [one for id_ in best_first for one in (id_, id_)]


def test_equal_scores_keep_the_retrievers_order(call, fake, query):
    same = [NodeWithScore(node=TextNode(text="abc", id_=str(i))) for i in range(20)]
    assert ids(call(TamisRerank(reranker=fake()[1]), same, query)) == ids(same)


def test_a_node_with_score_of_another_class_stays_one(query):
    class Cited(NodeWithScore):
        page: int = 0

    node = Cited(node=TextNode(text="zip"), page=7)
    (ranked,) = TamisRerank(mode="lexical").postprocess_nodes([node], query_str=query)
    assert isinstance(ranked, Cited)
    assert ranked.page == 7
    assert node.score is None


def test_keep_retrieval_score_changes_no_prompt(call, nodes, query):
    prompts = {node.node_id: node.get_content(MetadataMode.LLM) for node in nodes}
    embedded = {node.node_id: node.get_content(MetadataMode.EMBED) for node in nodes}
    nodes[1].score = np.float32(0.5)  # as other postprocessors leave it
    nodes[2].score = None
    ranked = call(TamisRerank(mode="lexical", keep_retrieval_score=True), nodes, query)
    for node in ranked:
        assert node.get_content(MetadataMode.LLM) == prompts[node.node_id]
        assert node.get_content(MetadataMode.EMBED) == embedded[node.node_id]
        assert json.loads(node.to_json())["node"]["metadata"] == node.metadata
    kept = {node.node_id: node.metadata["retrieval_score"] for node in ranked}
    assert kept == {"n0": 0.9, "n1": 0.5, "n2": None, "n3": pytest.approx(0.6)}


def test_a_second_stage_keeps_the_retrievers_score(nodes, query):
    first = TamisRerank(mode="lexical", keep_retrieval_score=True).postprocess_nodes(nodes, query_str=query)
    second = TamisRerank(mode="lexical", keep_retrieval_score=True).postprocess_nodes(first, query_str=query)
    assert [n.metadata for n in second] == [n.metadata for n in first]
    assert second[0].node.excluded_llm_metadata_keys == ["retrieval_score"]


@pytest.mark.parametrize("mode", list(MetadataMode))
def test_metadata_mode(nodes, query, fake, mode):
    nodes[0].node.excluded_embed_metadata_keys = ["page"]
    scorer, reranker = fake()
    TamisRerank(reranker=reranker, metadata_mode=mode).postprocess_nodes(nodes, query_str=query)
    assert scorer.seen == [(query, [node.node.get_content(metadata_mode=mode) for node in nodes])]
    assert TamisRerank().metadata_mode is MetadataMode.EMBED


def test_nodes_that_are_not_text_are_scored(call, query):
    mixed = [
        NodeWithScore(node=ImageNode(image_url="http://example.org/a.png", id_="image")),
        NodeWithScore(node=IndexNode(text="zip archive", index_id="x", id_="index")),
        NodeWithScore(node=TextNode(text="", id_="empty")),
    ]
    ranked = call(TamisRerank(mode="lexical", keep_retrieval_score=True), mixed, query)
    assert ids(ranked) == ["index", "image", "empty"]
    assert [type(node.node) for node in ranked] == [IndexNode, ImageNode, TextNode]


def test_the_query_is_its_text_only(nodes, fake):
    scorer, reranker = fake()
    bundle = QueryBundle("zip", custom_embedding_strs=["a made-up answer"], embedding=[1.0])
    TamisRerank(reranker=reranker).postprocess_nodes(nodes, query_bundle=bundle)
    assert [seen for seen, _ in scorer.seen] == ["zip"]


def test_scores_pass_the_similarity_postprocessors_default(nodes, query, best_first):
    ranked = TamisRerank(mode="lexical").postprocess_nodes(nodes, query_str=query)
    assert ids(SimilarityPostprocessor(similarity_cutoff=0.0).postprocess_nodes(ranked)) == best_first


def test_no_nodes(call, query):
    assert call(TamisRerank(model="/no/such/folder"), [], query) == []


@pytest.mark.parametrize("given", [[], "nodes"])
def test_no_query(call, nodes, given):
    with pytest.raises(ValueError, match="query_bundle=") as caught:
        call(TamisRerank(mode="lexical"), nodes if given else [], None)
    assert isinstance(caught.value, tamis.InvalidInput)


def test_bare_nodes_are_refused(call, query):
    with pytest.raises(tamis.InvalidInput, match="Node 0 is a TextNode; wrap it"):
        call(TamisRerank(mode="lexical"), [TextNode(text="zip")], query)


REFUSED = [
    {"topn": 3},
    {"top_n": 0},
    {"top_n": -1},
    {"top_n": True},
    {"min_score": -0.1},
    {"min_score": 1.1},
    {"min_score": float("nan")},
    {"max_tokens": 0},
    {"timeout": 0},
    {"timeout": True},
    {"timeout": float("inf")},
    {"dim": [64, 32]},
    {"max_length": 3},
    {"long_documents": "drop"},
    {"head": "maybe"},
    {"metadata_mode": "some"},
    {"reranker": "BAAI/bge-reranker-v2-m3"},
]


@pytest.mark.parametrize("wrong", REFUSED, ids=str)
def test_refused_at_construction(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TamisRerank(**wrong)


@pytest.mark.parametrize("wrong", REFUSED, ids=str)
def test_refused_at_assignment(wrong):
    rerank = TamisRerank()
    before = rerank.to_dict()
    with pytest.raises(ValueError, match=next(iter(wrong))):
        setattr(rerank, *next(iter(wrong.items())))
    assert rerank.to_dict() == before


def test_callback_manager_can_be_assigned_and_left_out(nodes, query):
    rerank = TamisRerank(mode="lexical", callback_manager=None)
    rerank.callback_manager = None
    assert len(rerank.postprocess_nodes(nodes, query_str=query)) == 4


def test_fields_hide_nothing_of_pydantic():
    assert TamisRerank.model_config["protected_namespaces"] == ()
    assert not TamisRerank.model_config.get("frozen")
    schema = TamisRerank.model_json_schema()
    assert "reranker" not in schema["properties"]
    assert schema["properties"]["class_name"]["default"] == "TamisRerank"
