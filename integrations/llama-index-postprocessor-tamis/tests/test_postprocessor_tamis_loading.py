"""When the model is loaded, by whom, and what copies, dumps and pickles make of it."""

import asyncio
import copy
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import MetadataMode

import tamis
from llama_index.postprocessor.tamis import TamisRerank

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "model_copy": lambda r: r.model_copy(),
    "model_copy deep": lambda r: r.model_copy(deep=True),
}
RESTORED = {
    "pickle": lambda r: pickle.loads(pickle.dumps(r)),
    "dict": lambda r: TamisRerank.from_dict(r.to_dict()),
    "json": lambda r: TamisRerank.from_json(r.to_json()),
    "model_dump_json": lambda r: TamisRerank.model_validate_json(r.model_dump_json()),
    "exclude_unset": lambda r: TamisRerank(**r.model_dump(exclude_unset=True)),
    "exclude_defaults": lambda r: TamisRerank(**r.model_dump(exclude_defaults=True)),
}


def warned(caplog):
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("query", ["", " \n"])
def test_an_empty_query_loads_nothing(nodes, query):
    rerank = TamisRerank(model="/no/such/folder")
    with pytest.raises(tamis.InvalidInput, match="query is empty"):
        rerank.postprocess_nodes(nodes, query_str=query)
    with pytest.raises(tamis.InvalidInput, match="query is empty"):
        asyncio.run(rerank.apostprocess_nodes(nodes, query_str=query))
    assert rerank.postprocess_nodes([], query_str=query) == []


def test_constructing_loads_nothing(nodes, query):
    rerank = TamisRerank(model="/no/such/folder")
    for _ in range(2):  # and a failure is not remembered
        with pytest.raises(tamis.ModelNotFound, match="/no/such/folder"):
            rerank.postprocess_nodes(nodes, query_str=query)
        with pytest.raises(tamis.ModelNotFound, match="/no/such/folder"):
            asyncio.run(rerank.apostprocess_nodes(nodes, query_str=query))
    rerank.model, rerank.mode = None, "lexical"
    assert len(rerank.postprocess_nodes(nodes, query_str=query)) == 4


def test_importing_loads_no_torch():
    code = "import sys, llama_index.postprocessor.tamis as t; t.TamisRerank(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_instance_serves_many_loops(nodes, query, best_first):
    rerank = TamisRerank(mode="lexical")
    ranked = [asyncio.run(rerank.apostprocess_nodes(nodes, query_str=query)) for _ in range(3)]
    assert [[node.node_id for node in one] for one in ranked] == [best_first] * 3


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_share_what_is_loaded(duplicate, nodes, query, fake, callbacks):
    scorer, reranker = fake()
    rerank = TamisRerank(reranker=reranker, callback_manager=CallbackManager([callbacks]))
    twin = duplicate(rerank)
    assert twin.reranker is reranker
    assert twin.callback_manager.handlers == [callbacks]
    assert twin.postprocess_nodes(nodes, query_str=query) == rerank.postprocess_nodes(nodes, query_str=query)
    assert len(scorer.seen) == 2
    twin.top_n = 1
    assert rerank.top_n is None


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_are_loaded_once(duplicate, nodes, query):
    rerank = TamisRerank(mode="lexical")
    twin = duplicate(rerank)
    assert twin.postprocess_nodes(nodes, query_str=query) == rerank.postprocess_nodes(nodes, query_str=query)
    assert twin._loader().get() is rerank._loader().get()


def test_a_copy_with_another_model_loads_its_own(nodes, query):
    rerank = TamisRerank(mode="lexical")
    rerank.postprocess_nodes(nodes, query_str=query)
    other = rerank.model_copy(update={"model": "/no/such/folder", "mode": None})
    with pytest.raises(tamis.ModelNotFound):
        other.postprocess_nodes(nodes, query_str=query)
    assert len(rerank.postprocess_nodes(nodes, query_str=query)) == 4


@pytest.mark.parametrize("restore", RESTORED.values(), ids=RESTORED)
def test_restored(restore, nodes, query, best_first, caplog):
    rerank = TamisRerank(mode="lexical", top_n=2, min_score=0.1, metadata_mode="none", tokenizer="cl100k_base")
    rerank.postprocess_nodes(nodes, query_str=query)
    twin = restore(rerank)
    assert twin.to_dict() == rerank.to_dict()
    assert twin.metadata_mode is MetadataMode.NONE
    assert [node.node_id for node in twin.postprocess_nodes(nodes, query_str=query)] == best_first[:2]
    assert not warned(caplog)


@pytest.mark.parametrize("restore", RESTORED.values(), ids=RESTORED)
def test_restored_funnel_and_path(restore):
    rerank = TamisRerank(model=Path("models") / "small", dim=[64, 128, 384])
    twin = restore(rerank)
    assert twin.to_dict() == rerank.to_dict()
    assert list(twin.dim) == [64, 128, 384]
    assert rerank.to_dict()["model"] == str(Path("models/small"))


@pytest.mark.parametrize("restore", RESTORED.values(), ids=RESTORED)
def test_restored_without_its_reranker(restore, nodes, query, fake, caplog):
    rerank = TamisRerank(reranker=fake()[1], top_n=2)
    twin = restore(restore(rerank))
    assert twin.reranker is None
    with pytest.raises(tamis.InvalidInput, match=r"restored from a dump or a pickle"):
        twin.postprocess_nodes(nodes, query_str=query)
    with pytest.raises(tamis.InvalidInput, match=r"restored from a dump or a pickle"):
        asyncio.run(twin.apostprocess_nodes(nodes, query_str=query))
    twin.reranker = rerank.reranker
    assert twin.postprocess_nodes(nodes, query_str=query) == rerank.postprocess_nodes(nodes, query_str=query)
    assert rerank.reranker is not None, "the original lost what its pickle cannot hold"
    assert not warned(caplog)


@pytest.mark.parametrize("restore", RESTORED.values(), ids=RESTORED)
def test_restored_from_what_the_fields_name(restore, nodes, query, best_first):
    rerank = TamisRerank(reranker=tamis.load(mode="lexical"), mode="lexical")
    ranked = restore(rerank).postprocess_nodes(nodes, query_str=query)
    assert [node.node_id for node in ranked] == best_first


def test_from_dict_takes_a_reranker(nodes, query, fake):
    rerank = TamisRerank(reranker=fake()[1], top_n=2)
    twin = TamisRerank.from_dict(rerank.to_dict(), reranker=rerank.reranker)
    assert twin.postprocess_nodes(nodes, query_str=query) == rerank.postprocess_nodes(nodes, query_str=query)


def test_a_tokenizer_that_is_no_name_stays_out_of_dumps():
    rerank = TamisRerank(mode="lexical", max_tokens=9, tokenizer=len)
    assert TamisRerank.from_json(rerank.to_json()).tokenizer is None
    assert pickle.loads(pickle.dumps(rerank)).tokenizer is len
