"""The postprocessor over a server: unchanged above the arguments of `load`, and holding the key as a secret."""

import asyncio
import copy
import json
import pickle
from pathlib import Path

import pytest
from llama_index.core.schema import NodeWithScore, TextNode
from pydantic import SecretStr, ValidationError

import tamis
from llama_index.postprocessor.tamis import TamisRerank
from remote_stubs import KEY, QUERY, Nim, Tei, passages, serving, sigmoid

RESTORED = {
    "pickle": lambda r: pickle.loads(pickle.dumps(r)),
    "dict": lambda r: TamisRerank.from_dict(r.to_dict()),
    "json": lambda r: TamisRerank.from_json(r.to_json()),
    "model_dump_json": lambda r: TamisRerank.model_validate_json(r.model_dump_json()),
}


@pytest.fixture
def nodes():
    texts = passages(0.5, 2.0, -1.0)
    return [NodeWithScore(node=TextNode(text=text, id_=str(n)), score=0.5) for n, text in enumerate(texts)]


@pytest.fixture
def stub():
    with serving(Tei(key=KEY)) as stub:
        yield stub


def remote(stub, **options) -> TamisRerank:
    return TamisRerank(**{"model": stub.url, "mode": "remote", "api": "tei", "api_key": KEY, **options})


def test_nodes_best_first(stub, nodes):
    rerank = remote(stub, top_n=2)
    ranked = rerank.postprocess_nodes(nodes, query_str=QUERY)
    for _ in range(2):  # each run has a loop of its own
        assert asyncio.run(rerank.apostprocess_nodes(nodes, query_str=QUERY)) == ranked
    assert [node.node_id for node in ranked] == ["1", "0"]
    assert [node.score for node in ranked] == pytest.approx([sigmoid(2.0), sigmoid(0.5)])
    assert {type(node.score) for node in ranked} == {float}
    assert [node.score for node in nodes] == [0.5] * 3
    assert stub.requests[0][2]["authorization"] == f"Bearer {KEY}"


async def test_inside_a_running_loop(stub, nodes):
    rerank = remote(stub)
    ranked = rerank.postprocess_nodes(nodes, query_str=QUERY)
    assert await rerank.apostprocess_nodes(nodes, query_str=QUERY) == ranked


def test_what_is_found_out_about_the_server(nodes):
    with serving(Nim()) as stub:
        ranked = TamisRerank(model=stub.url, mode="remote").postprocess_nodes(nodes, query_str=QUERY)
        assert [node.node_id for node in ranked] == ["1", "0", "2"]


async def test_errors_are_tamiss(stub, nodes):
    with pytest.raises(tamis.RemoteError, match=r"401.*api_key="):
        remote(stub, api_key="wrong").postprocess_nodes(nodes, query_str=QUERY)
    with pytest.raises(tamis.RemoteError, match="401"):
        await remote(stub, api_key=None).apostprocess_nodes(nodes, query_str=QUERY)
    with pytest.raises(tamis.InvalidInput, match="device= means nothing in remote mode"):
        remote(stub, device="cpu").postprocess_nodes(nodes, query_str=QUERY)


@pytest.mark.parametrize("restore", RESTORED.values(), ids=RESTORED)
def test_what_is_restored_reads_the_key_where_it_lives(restore, stub, nodes, monkeypatch):
    rerank = remote(stub, deadline=30.0, retries=0)
    rerank.postprocess_nodes(nodes, query_str=QUERY)
    twin = restore(rerank)
    assert twin.api_key is None
    assert twin.to_dict() == rerank.to_dict()
    with pytest.raises(tamis.RemoteError, match="401"):
        twin.postprocess_nodes(nodes, query_str=QUERY)
    monkeypatch.setenv("TAMIS_API_KEY", KEY)
    assert len(restore(rerank).postprocess_nodes(nodes, query_str=QUERY)) == 3
    assert rerank.api_key == SecretStr(KEY)


def test_the_key_is_nowhere_to_be_seen(stub, nodes):
    rerank = remote(stub, verify=Path("/etc/ca.pem"))
    shown = [repr(rerank), str(rerank), str(rerank.to_dict()), rerank.to_json(), rerank.model_dump_json()]
    shown += [json.dumps(TamisRerank.model_json_schema()), str(pickle.dumps(rerank)), repr(rerank._lazy.options)]
    assert not any(KEY in text for text in shown)
    assert "api_key" not in rerank.to_dict()
    assert rerank.to_dict()["verify"] == "/etc/ca.pem"
    rerank = remote(stub)
    rerank.postprocess_nodes(nodes, query_str=QUERY)
    for twin in (copy.copy(rerank), copy.deepcopy(rerank), rerank.model_copy(), rerank.model_copy(deep=True)):
        assert twin._loader().get() is rerank._loader().get()


@pytest.mark.parametrize("mistyped", [{"apikey": KEY}, {"api_key": KEY + "\x00"}, {"api_key": [KEY]}])
def test_the_key_is_not_in_what_is_said_of_mistakes(mistyped):
    with pytest.raises(ValidationError) as caught:
        TamisRerank(**mistyped)
    assert KEY not in str(caught.value)
