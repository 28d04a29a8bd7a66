"""When a reranker is loaded, how often, on which thread; and what copies, dumps and pickles hold."""

import asyncio
import copy
import pickle
import re
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from langchain_core.documents import Document

import langchain_tamis
import tamis
from langchain_tamis import RankRAGCompressor, TamisCrossEncoder, TamisRerank
from tamis.lazy import LazyReranker

DOCUMENTS = [Document("a tar file"), Document("a zip file")]
PROJECT = Path(__file__).parents[1]


def test_the_package():
    assert langchain_tamis.__all__ == [
        "RankRAG",
        "RankRAGCompressor",
        "TamisCrossEncoder",
        "TamisRerank",
        "__version__",
    ]
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert project["version"] == langchain_tamis.__version__
    assert (PROJECT / "langchain_tamis" / "py.typed").exists()


# Before langchain-core had the cross-encoder's base class, langchain-classic had it, and imports torch.
CONSTRUCTED = ["TamisRerank", *(["TamisCrossEncoder"] if find_spec("langchain_core.cross_encoders") else [])]


@pytest.mark.parametrize("name", CONSTRUCTED)
def test_importing_and_constructing_is_light(name):
    program = f"import sys, langchain_tamis as t; t.{name}(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'Nothing'"):
        langchain_tamis.Nothing  # noqa: B018


def test_the_readme_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    for block in blocks:
        exec(block, {})
    assert re.fullmatch(r"0\.\d+ How to read a zip archive\.\n0\.\d+ A tar file\.\n", capsys.readouterr().out)


async def test_a_model_that_is_not_there_fails_on_first_use_and_not_before(tmp_path):
    rerank = TamisRerank(model=tmp_path / "nothing")
    with pytest.raises(tamis.LoadError):
        rerank.compress_documents(DOCUMENTS, "q")
    with pytest.raises(tamis.LoadError):
        await rerank.acompress_documents(DOCUMENTS, "q")
    rerank.model, rerank.mode = None, "lexical"  # a failure is not for ever
    assert len(rerank.compress_documents(DOCUMENTS, "q")) == 2


def test_threads_that_share_an_instance_load_once():
    rerank = TamisRerank(mode="lexical")
    with ThreadPoolExecutor(16) as threads:
        loaded = list(threads.map(lambda _: rerank.load(), range(16)))
    assert len(set(map(id, loaded))) == 1


async def test_tasks_that_share_an_instance_load_once():
    rerank = TamisRerank(mode="lexical")
    await asyncio.gather(*(rerank.acompress_documents(DOCUMENTS, "zip") for _ in range(20)))
    assert rerank.load().stats()["requests"] == 20
    assert await rerank.aload() is rerank.load()


async def test_the_first_request_loads_off_the_loop():
    threads = []

    def slowly(**options):
        threads.append(threading.get_ident())
        time.sleep(0.3)
        return tamis.load(**options)

    rerank = TamisRerank(mode="lexical")
    rerank._lazy = LazyReranker(slowly, {})
    task = asyncio.ensure_future(rerank.acompress_documents(DOCUMENTS, "zip"))
    ticks = 0
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks > 5  # the loop went on meanwhile
    assert threads
    assert threads[0] != threading.get_ident()
    assert len(await task) == len(rerank.compress_documents(DOCUMENTS, "zip")) == 2
    assert len(threads) == 1


def test_another_model_is_loaded_when_a_field_changes():
    rerank = TamisRerank(mode="lexical")
    first = rerank.load()
    rerank.top_n = 1
    assert rerank.load() is first
    rerank.family = "bm25"
    assert rerank.load() is not first


def test_instances_over_one_checkpoint_share_its_engine():
    one, two = TamisRerank(top_n=1), TamisCrossEncoder()  # the embedded model
    [best] = one.compress_documents(DOCUMENTS, "How do I read a zip archive?")
    batches = one.load().stats()["batches"]
    score = two.score([("How do I read a zip archive?", best.page_content)])
    assert best.metadata["relevance_score"] == pytest.approx(score[0], abs=1e-3)
    assert one.load() is not two.load()
    assert one.load().stats()["batches"] == two.load().stats()["batches"] >= batches > 0


# -- copies, dumps, pickles ------------------------------------------------------------------------------------------

COPIES = [
    copy.copy,
    copy.deepcopy,
    lambda rerank: rerank.model_copy(),
    lambda rerank: rerank.model_copy(deep=True),
    lambda rerank: rerank.model_copy(update={"top_n": 1}),
]


@pytest.mark.parametrize("twin", COPIES)
def test_copies_share_the_loaded_model(twin, reranker):
    given = TamisRerank(reranker=reranker)
    assert twin(given).load() is reranker
    loading = TamisRerank(mode="lexical")
    loaded = loading.load()
    assert twin(loading).load() is loaded
    assert len(twin(loading).compress_documents(DOCUMENTS, "zip")) in (1, 2)


def test_a_copy_with_another_model_leaves_the_original_alone():
    original = TamisRerank(mode="lexical")
    loaded = original.load()
    other = original.model_copy(update={"family": "bm25"})
    assert other.load() is not loaded
    assert original.load() is loaded
    assert other.load() is other.load()


def test_dumps_leave_the_reranker_out(reranker):
    rerank = TamisRerank(model="some/model", dim=[64, 128], top_n=3, reranker=reranker)
    dump = rerank.model_dump()
    assert "reranker" not in dump
    assert "reranker" not in repr(rerank).lower().replace("tamisrerank", "")
    assert TamisRerank(**dump).model_dump() == dump
    assert TamisRerank.model_validate_json(rerank.model_dump_json()).model_dump() == dump
    assert "reranker" not in TamisRerank.model_json_schema()["properties"]


def test_pickles_keep_the_fields():
    rerank = TamisRerank(mode="lexical", top_n=1)
    rerank.load()
    twin = pickle.loads(pickle.dumps(rerank))
    assert twin.model_dump() == rerank.model_dump()
    assert [document.page_content for document in twin.compress_documents(DOCUMENTS, "zip")] == ["a zip file"]


RESTORED = {
    "pickle": lambda rerank: pickle.loads(pickle.dumps(rerank)),
    "model_dump": lambda rerank: type(rerank)(**rerank.model_dump()),
    "exclude_unset": lambda rerank: type(rerank)(**rerank.model_dump(exclude_unset=True)),
    "exclude_defaults": lambda rerank: type(rerank)(**rerank.model_dump(exclude_defaults=True)),
    "model_dump_json": lambda rerank: type(rerank).model_validate_json(rerank.model_dump_json()),
}


@pytest.mark.parametrize("restore", RESTORED.values(), ids=RESTORED)
async def test_what_is_restored_without_its_reranker_says_so(restore, reranker):
    rerank = TamisRerank(reranker=reranker, device="cpu")
    twin = restore(rerank)
    assert rerank.load() is reranker
    for lost in (twin, copy.deepcopy(twin), twin.model_copy(update={"top_n": 1}), restore(twin)):
        with pytest.raises(tamis.InvalidInput, match=r"reranker=.* model="):
            lost.compress_documents(DOCUMENTS, "q")
        with pytest.raises(tamis.InvalidInput, match=r"reranker=.* model="):
            await lost.acompress_documents(DOCUMENTS, "q")
    twin.reranker = reranker
    assert twin.load() is reranker
    assert TamisRerank(**rerank.model_dump(), reranker=reranker).load() is reranker


@pytest.mark.parametrize("restore", RESTORED.values(), ids=RESTORED)
def test_what_is_restored_loads_the_model_that_its_fields_name(restore, reranker):
    assert restore(TamisRerank(mode="lexical", reranker=reranker)).load().mode == "lexical"


@pytest.mark.parametrize("kind", [TamisRerank, RankRAGCompressor])
def test_a_tokenizer_that_is_no_name_stays_out_of_dumps(kind, caplog):
    compressor = kind(max_tokens=9, tokenizer=len)
    assert kind.model_validate_json(compressor.model_dump_json()).tokenizer is None
    assert kind(**compressor.model_dump()).tokenizer is None
    assert kind.model_validate_json(kind(tokenizer="cl100k_base").model_dump_json()).tokenizer == "cl100k_base"
    assert pickle.loads(pickle.dumps(compressor)).tokenizer is len
    assert not caplog.records


@pytest.mark.parametrize("kind", [TamisRerank, RankRAGCompressor])
def test_a_tokenizer_that_cannot_be_pickled_stays_out_of_pickles(kind, caplog):
    compressor = kind(max_tokens=9, tokenizer=lambda text: len(text))
    twin = pickle.loads(pickle.dumps(compressor))
    assert (twin.tokenizer, twin.max_tokens) == (None, 9)
    assert compressor.tokenizer("ab") == 2, "the original lost what its pickle cannot hold"
    [record] = caplog.records
    assert f"{kind.__name__}: its tokenizer cannot be pickled" in record.getMessage()
