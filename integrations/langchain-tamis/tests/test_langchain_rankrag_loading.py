"""When a RankRAG model is loaded, how often, on which thread; and what copies, dumps and pickles hold."""

import asyncio
import copy
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.load import dumps
from langchain_core.runnables import ConfigurableField

import tamis
from langchain_tamis import RankRAG, RankRAGCompressor
from tamis.lazy import LazyRankRAG
from tamis.rankrag.prompts import Task, Wording

WORDING = Wording(tasks={"short": Task("Is it about {question}?", "{question}", 8)}, closing="A:")


@pytest.fixture
def runnable(tiny_llama):
    """One that has not loaded its model yet."""
    return RankRAG(model=tiny_llama, dtype="float32", top_k=2, max_new_tokens=4)


def test_importing_and_constructing_is_light():
    program = (
        "import sys, langchain_tamis as t; t.RankRAG().as_compressor(); t.RankRAG(model='some/model').bind(top_k=1); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


async def test_a_model_that_is_not_there_fails_on_first_use_and_not_before(tmp_path, tiny_llama, asked):
    runnable = RankRAG(model=tmp_path / "nothing", dtype="float32", max_new_tokens=4)
    with pytest.raises(tamis.LoadError):
        runnable.invoke(asked)
    with pytest.raises(tamis.LoadError):
        await runnable.ainvoke(asked)
    with pytest.raises(tamis.LoadError):
        list(runnable.stream(asked))
    runnable.model = tiny_llama  # a failure is not for ever
    assert runnable.invoke(asked)["answer"]


def test_what_is_wrong_with_an_input_is_said_before_a_model_is_loaded(tmp_path):
    with pytest.raises(tamis.InvalidInput, match="needs 'context'"):
        RankRAG(model=tmp_path / "nothing").invoke({"input": "q"})


def test_threads_that_share_an_instance_load_once(runnable):
    with ThreadPoolExecutor(16) as threads:
        loaded = list(threads.map(lambda _: runnable.load(), range(16)))
    assert len(set(map(id, loaded))) == 1


async def test_tasks_that_share_an_instance_load_once(runnable, asked):
    await asyncio.gather(*(runnable.ainvoke(asked) for _ in range(10)))
    assert runnable.load().stats()["requests"] == 10
    assert await runnable.aload() is runnable.load()


async def test_the_first_request_loads_off_the_loop(tiny_llama, asked):
    threads = []

    def slowly(**options):
        threads.append(threading.get_ident())
        time.sleep(0.3)
        return tamis.load_rankrag(tiny_llama, dtype="float32")

    runnable = RankRAG(max_new_tokens=4)
    runnable.rag = LazyRankRAG(slowly, runnable._options())
    task = asyncio.ensure_future(runnable.ainvoke(asked))
    ticks = 0
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks > 5  # the loop went on meanwhile
    assert threads
    assert threads[0] != threading.get_ident()
    assert (await task)["answer"] == runnable.invoke(asked)["answer"]
    assert len(threads) == 1


def test_another_model_is_loaded_when_a_field_changes(runnable):
    first = runnable.load()
    runnable.top_k = 1
    runnable.task = "claim"  # says how a call is worded, and not which model
    assert runnable.load() is first
    runnable.relevance = "margin"
    assert runnable.load() is not first


def test_a_given_model_can_be_replaced(runnable, rag):
    runnable.rag = rag
    assert runnable.load() is rag
    runnable.rag = None
    assert runnable.load() is not rag


# -- copies, dumps, pickles ------------------------------------------------------------------------------------------

COPIES = [
    copy.copy,
    copy.deepcopy,
    lambda runnable: runnable.model_copy(),
    lambda runnable: runnable.model_copy(deep=True),
    lambda runnable: runnable.model_copy(update={"top_k": 1}),
    lambda runnable: runnable.as_compressor(),
]


@pytest.mark.parametrize("twin", COPIES)
@pytest.mark.parametrize("first", [True, False])
def test_copies_share_the_model_whoever_loads_it(twin, first, rag, runnable):
    assert twin(RankRAG(rag=rag)).load() is rag
    other = twin(runnable)
    assert other.load() is runnable.load() if first else runnable.load() is other.load()


def test_a_copy_with_another_model_leaves_the_original_alone(runnable):
    loaded = runnable.load()
    other = runnable.model_copy(update={"relevance": "margin"})
    assert other.load() is not loaded
    assert runnable.load() is loaded
    assert other.load() is other.load()


@pytest.mark.parametrize("kind", [RankRAG, RankRAGCompressor])
def test_dumps_leave_the_model_out(kind, rag):
    runnable = kind(model="some/model", wording=WORDING, task="short", rag=rag)
    dump = runnable.model_dump()
    assert "rag" not in dump
    assert repr(rag) not in repr(runnable)
    assert kind(**dump).model_dump() == dump
    assert kind.model_validate_json(runnable.model_dump_json()).wording == WORDING
    assert "rag" not in kind.model_json_schema()["properties"]


def test_langchain_does_not_serialise_it(rag):
    assert '"type": "not_implemented"' in dumps(RankRAG(rag=rag))


def test_pickles_keep_the_fields(runnable, asked, alike):
    runnable.load()
    twin = pickle.loads(pickle.dumps(runnable))
    assert twin.model_dump() == runnable.model_dump()
    assert alike(twin.invoke(asked), runnable.invoke(asked))
    assert twin.load() is not runnable.load()


RESTORED = {
    "pickle": lambda runnable: pickle.loads(pickle.dumps(runnable)),
    "model_dump": lambda runnable: type(runnable)(**runnable.model_dump()),
    "exclude_unset": lambda runnable: type(runnable)(**runnable.model_dump(exclude_unset=True)),
    "exclude_defaults": lambda runnable: type(runnable)(**runnable.model_dump(exclude_defaults=True)),
    "model_dump_json": lambda runnable: type(runnable).model_validate_json(runnable.model_dump_json()),
}


@pytest.mark.parametrize("restore", RESTORED.values(), ids=RESTORED)
async def test_what_is_restored_without_its_model_says_so(restore, rag, asked, alike):
    runnable = RankRAG(rag=rag, device="cpu", max_new_tokens=4)
    twin = restore(runnable)
    assert runnable.load() is rag
    for lost in (twin, copy.deepcopy(twin), restore(twin), twin.model_copy(update={"top_k": 1})):
        with pytest.raises(tamis.InvalidInput, match=r"rag=.* model="):
            lost.invoke(asked)
        with pytest.raises(tamis.InvalidInput, match=r"rag=.* model="):
            await lost.ainvoke(asked)
        with pytest.raises(tamis.InvalidInput, match=r"rag=.* model="):
            lost.as_compressor().compress_documents(asked["context"], asked["input"])
        with pytest.raises(tamis.InvalidInput, match="RankRAG was restored from a dump or a pickle"):
            lost.configurable_fields(top_k=ConfigurableField(id="k")).invoke(asked, {"configurable": {"k": 1}})
    with pytest.raises(tamis.InvalidInput, match="RankRAGCompressor was restored from a dump or a pickle"):
        restore(runnable.as_compressor()).load()
    twin.rag = rag
    assert alike(twin.invoke(asked), runnable.invoke(asked))


@pytest.mark.parametrize("restore", RESTORED.values(), ids=RESTORED)
def test_what_was_made_with_no_model_needs_none(restore, runnable):
    for made in (RankRAG(), runnable, runnable.as_compressor()):
        assert restore(made).needs_rag is False
    runnable.load()
    assert restore(runnable).needs_rag is False


@pytest.mark.parametrize("restore", RESTORED.values(), ids=RESTORED)
def test_what_is_restored_loads_the_model_that_its_fields_name(restore, rag, tiny_llama, asked, alike):
    twin = restore(RankRAG(model=tiny_llama, dtype="float32", rag=rag, max_new_tokens=4))
    assert twin.load() is not rag
    assert alike(twin.invoke(asked), RankRAG(rag=rag, max_new_tokens=4).invoke(asked))


@pytest.mark.parametrize("loaded", [True, False])
def test_configurable_fields_load_once(runnable, rag, asked, loaded):
    """LangChain makes a new instance for each call."""
    if not loaded:
        runnable.rag = rag
    configurable = runnable.configurable_fields(top_k=ConfigurableField(id="top_k"), task=ConfigurableField(id="task"))
    before = runnable.load().stats()["requests"]
    for top_k in (1, 2, 3):
        output = configurable.invoke(asked, {"configurable": {"top_k": top_k, "task": "claim"}})
        assert len(output["context"]) == top_k
    assert runnable.load().stats()["requests"] == before + 3
    assert runnable.top_k == 2
