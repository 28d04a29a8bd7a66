"""RankRAG over a server, through the runnable."""

import pickle

import pytest
from langchain_core.documents import Document

import tamis
import tiny_lm
from completions_stub import CompletionsStub
from langchain_tamis import RankRAG, RankRAGCompressor
from rankrag_reference import PASSAGES, QUESTION, Plain
from remote_stubs import KEY, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_lm.save(tmp_path_factory.mktemp("served"), "llama", "ForCausalLM", bos=True)


@pytest.fixture
def stub(folder):
    with serving(CompletionsStub(Plain(folder), key=KEY)) as stub:
        yield stub


async def test_the_same_as_in_this_process(folder, stub):
    asked = {"input": QUESTION, "context": [Document(text) for text in PASSAGES]}
    here = RankRAG(model=folder, dtype="float32", top_k=2, max_new_tokens=8).invoke(asked)
    there = RankRAG(model=folder, server=stub.base, api_key=KEY, top_k=2, max_new_tokens=8)
    for output in (there.invoke(asked), await there.ainvoke(asked), sum(there.stream(asked), {})):
        assert output["answer"] == here["answer"] != ""
        assert [one.page_content for one in output["context"]] == [one.page_content for one in here["context"]]
    ranked = RankRAGCompressor(model=folder, server=stub.base, api_key=KEY).compress_documents(
        asked["context"], QUESTION
    )
    assert len(ranked) == len(PASSAGES)


def test_the_key_is_nowhere_to_be_seen(folder, stub, monkeypatch):
    there = RankRAG(model=folder, server=stub.base, api_key=KEY, retries=0)
    there.load()
    for shown in (repr(there), str(there.model_dump()), there.model_dump_json(), str(pickle.dumps(there))):
        assert KEY not in shown
    twin = pickle.loads(pickle.dumps(there))
    with pytest.raises(tamis.RemoteError, match="401"):
        twin.load()
    monkeypatch.setenv("TAMIS_API_KEY", KEY)
    assert twin.load().model == "acme/reranker-1"
