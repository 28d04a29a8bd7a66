"""RankRAG over a server, through the synthesizer and the language model."""

import copy
import pickle

import pytest
from llama_index.core.schema import NodeWithScore, TextNode

import tamis
import tiny_lm
from completions_stub import CompletionsStub
from llama_index.postprocessor.tamis import RankRAGLLM, RankRAGSynthesizer
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
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(n))) for n, text in enumerate(PASSAGES)]
    options = {"top_k": 2, "max_new_tokens": 8}
    here = RankRAGSynthesizer(model=folder, dtype="float32", **options).synthesize(QUESTION, nodes)
    synthesizer = RankRAGSynthesizer(model=folder, server=stub.base, api_key=KEY, **options)
    for there in (synthesizer.synthesize(QUESTION, nodes), await synthesizer.asynthesize(QUESTION, nodes)):
        assert there.response == here.response != ""
        assert [node.node_id for node in there.source_nodes] == [node.node_id for node in here.source_nodes]
    llm = RankRAGLLM(model=folder, server=stub.base, api_key=KEY, max_new_tokens=8)
    whole = llm.complete("a zip").text
    assert [piece.text async for piece in await llm.astream_complete("a zip")][-1] == whole


def test_the_key_is_nowhere_to_be_seen(folder, stub, monkeypatch):
    llm = RankRAGLLM(model=folder, server=stub.base, api_key=KEY, retries=0)
    loaded = llm.load()
    for shown in (repr(llm), str(llm.to_dict()), llm.to_json(), str(pickle.dumps(llm))):
        assert KEY not in shown
    assert copy.deepcopy(llm).load() is loaded
    twin = pickle.loads(pickle.dumps(llm))
    with pytest.raises(tamis.RemoteError, match="401"):
        twin.load()
    monkeypatch.setenv("TAMIS_API_KEY", KEY)
    assert twin.load().model == "acme/reranker-1"
