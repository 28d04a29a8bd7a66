"""The adapters over a server: unchanged above the arguments of `load`, and holding the key as a secret."""

import copy
import json
import pickle

import pytest
from langchain_core.documents import Document
from pydantic import SecretStr, ValidationError

import tamis
from langchain_tamis import TamisCrossEncoder, TamisRerank
from remote_stubs import KEY, QUERY, Nim, Tei, passages, serving, sigmoid

DOCUMENTS = [
    Document(text, id=str(place), metadata={"n": place}) for place, text in enumerate(passages(0.5, 2.0, -1.0))
]


@pytest.fixture
def stub():
    with serving(Tei(key=KEY)) as stub:
        yield stub


def remote(stub, **options) -> TamisRerank:
    return TamisRerank(**{"model": stub.url, "mode": "remote", "api": "tei", "api_key": KEY, **options})


async def test_documents_best_first(stub):
    rerank = remote(stub, top_n=2)
    for ranked in (rerank.compress_documents(DOCUMENTS, QUERY), await rerank.acompress_documents(DOCUMENTS, QUERY)):
        assert [document.id for document in ranked] == ["1", "0"]
        scores = [document.metadata["relevance_score"] for document in ranked]
        assert scores == pytest.approx([sigmoid(2.0), sigmoid(0.5)])
    assert "relevance_score" not in DOCUMENTS[1].metadata
    assert stub.requests[0][2]["authorization"] == f"Bearer {KEY}"


def test_what_is_found_out_about_the_server():
    with serving(Nim()) as stub:
        rerank = TamisRerank(model=stub.url, mode="remote")
        assert [document.id for document in rerank.compress_documents(DOCUMENTS, QUERY)] == ["1", "0", "2"]
        assert rerank.load().model == "acme/reranker-1"


def test_pairs(stub):
    encoder = TamisCrossEncoder(model=stub.url, mode="remote", api="tei", api_key=SecretStr(KEY))
    assert encoder.score([("a", "x 1"), ("b", "x 2"), ("a", "x -3")]) == pytest.approx([sigmoid(x) for x in (1, 2, -3)])


async def test_errors_are_tamiss(stub):
    with pytest.raises(tamis.RemoteError, match=r"401.*api_key="):
        remote(stub, api_key="wrong").compress_documents(DOCUMENTS, QUERY)
    with pytest.raises(tamis.RemoteError, match="401"):
        await remote(stub, api_key=None).acompress_documents(DOCUMENTS, QUERY)
    with pytest.raises(tamis.InvalidInput, match="device= means nothing in remote mode"):
        remote(stub, device="cpu").compress_documents(DOCUMENTS, QUERY)


def test_the_key_is_nowhere_to_be_seen(stub, monkeypatch):
    rerank = remote(stub, verify=False, deadline=30.0, retries=0, connections=2, scale="logit")
    rerank.compress_documents(DOCUMENTS, QUERY)
    shown = [repr(rerank), str(rerank), str(rerank.model_dump()), rerank.model_dump_json(), repr(rerank._lazy.options)]
    shown += [json.dumps(TamisRerank.model_json_schema()), str(pickle.dumps(rerank))]
    assert not any(KEY in text for text in shown)
    assert "api_key" not in rerank.model_dump()
    for restore in (lambda r: pickle.loads(pickle.dumps(r)), lambda r: TamisRerank(**r.model_dump())):
        twin = restore(rerank)
        assert twin.api_key is None
        assert twin.model_dump() == rerank.model_dump()
        with pytest.raises(tamis.RemoteError, match="401"):
            twin.compress_documents(DOCUMENTS, QUERY)
        with monkeypatch.context() as there:
            there.setenv("TAMIS_API_KEY", KEY)  # where the twin lives
            assert len(restore(rerank).compress_documents(DOCUMENTS, QUERY)) == 3
    assert rerank.api_key == SecretStr(KEY)
    for twin in (copy.copy(rerank), copy.deepcopy(rerank), rerank.model_copy(update={"top_n": 1})):
        assert twin.load() is rerank.load()


@pytest.mark.parametrize("mistyped", [{"apikey": KEY}, {"api_key": KEY + "\x00"}, {"api_key": [KEY]}])
def test_the_key_is_not_in_what_is_said_of_mistakes(mistyped):
    with pytest.raises(ValidationError) as caught:
        TamisRerank(**mistyped)
    assert KEY not in str(caught.value)
    rerank = TamisRerank(mode="remote")
    with pytest.raises(ValidationError) as caught:
        rerank.api_key = KEY + "\x00"
    assert KEY not in str(caught.value)


def test_another_key_is_another_connection(stub):
    rerank = remote(stub)
    first = rerank.load()
    assert rerank.load() is first
    rerank.api_key = "other"
    assert rerank.load() is not first
