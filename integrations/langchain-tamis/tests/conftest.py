"""A scorer below the seam, a tiny language model, documents, and a retriever: what the tests are made from."""

import asyncio
import re
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

import tamis
from tamis.scorers.base import Scores
from tamis.scores import sigmoid


class NumberScorer:
    """A passage's logit is the first number in it.

    `together`: requests wait until this many are there; a thread then holds them for `hold` seconds and lets them go,
    as a device would. 0 is a scorer that never waits.
    """

    model = "numbers"
    mode = "cross-encoder"

    def __init__(self, together=0, hold=0.0):
        self.together = together
        self.hold = hold
        self.requests = []  # (query, passages), as they came
        self.waiting = []
        self.threads = set()  # on which passages were scored
        self.released = threading.Event()
        self.lock = threading.Lock()

    def steps(self, query, passages):
        self.requests.append((query, list(passages)))
        if self.together:
            yield [self._queue()]
        self.threads.add(threading.get_ident())
        numbers = [float(re.search(r"-?[\d.]+|nan", text)[0]) for text in passages]
        return Scores(np.array(numbers), np.zeros(len(passages), dtype=np.bool_))

    def _queue(self):
        future = Future()
        with self.lock:
            self.waiting.append(future)
            full = len(self.waiting) == self.together
        if full:
            threading.Thread(target=self._release).start()
        return future

    def _release(self):
        self.released.set()
        time.sleep(self.hold)
        for future in self.waiting:
            future.set_result(None)

    def to_score(self, logit):
        return sigmoid(logit)

    def count_tokens(self, text):
        return len(text.split())

    def stats(self):
        return {}

    def close(self):
        pass


class FixedRetriever(BaseRetriever):
    """Finds the same documents for every query."""

    documents: list[Document]

    def _get_relevant_documents(self, query, *, run_manager):
        return self.documents

    async def _aget_relevant_documents(self, query, *, run_manager):
        return self.documents


class Recorder(BaseCallbackHandler):
    """Keeps what a tracer would be told, by run id."""

    def __init__(self):
        self.runs = {}

    def on_retriever_start(self, serialized, query, *, run_id, parent_run_id=None, name=None, **kwargs):
        self.runs[run_id] = {"name": name, "parent": parent_run_id, "inputs": query}

    def on_retriever_end(self, documents, *, run_id, **kwargs):
        self.runs[run_id]["outputs"] = documents

    def on_chain_start(self, serialized, inputs, *, run_id, parent_run_id=None, name=None, **kwargs):
        self.runs[run_id] = {"name": name, "parent": parent_run_id, "inputs": inputs}

    def on_chain_end(self, outputs, *, run_id, **kwargs):
        self.runs[run_id]["outputs"] = outputs

    def on_chain_error(self, error, *, run_id, **kwargs):
        self.runs[run_id]["error"] = error

    def named(self, name):
        return {run_id: run for run_id, run in self.runs.items() if run["name"] == name}


@pytest.fixture
def number_scorer():
    return NumberScorer


@pytest.fixture
def reranker():
    """A loaded reranker over numbers, which never waits."""
    return tamis.Reranker(NumberScorer())


@pytest.fixture
def documents():
    """By their numbers: the third, the first, the fourth, the second."""
    return [
        Document("weighs 1 gram", id="a", metadata={"source": "a.txt", "tags": ["x"]}),
        Document("weighs -1 gram", id="b", metadata={"source": "b.txt"}),
        Document("weighs 2 grams", id="c", metadata={"relevance_score": "from elsewhere"}),
        Document("weighs 0.5 grams", metadata={}),
    ]


@pytest.fixture
def fixed_retriever(documents):
    return FixedRetriever(documents=documents)


@pytest.fixture
def recorder():
    return Recorder()


# -- RankRAG: a tiny Llama with random weights, whose answers are long and mean nothing --------------------------------


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """Its folder."""
    import tiny_lm

    return tiny_lm.save(tmp_path_factory.mktemp("llama"), "llama", "ForCausalLM")


@pytest.fixture(scope="session")
def rag(tiny_llama):
    """It, loaded."""
    with tamis.load_rankrag(tiny_llama, dtype="float32") as loaded:
        yield loaded


@pytest.fixture
def texts():
    return ["a tar file", "how to read a zip archive", "bees make honey"]


@pytest.fixture
def asked(texts):
    """An input of `RankRAG` whose answer goes on for a thousand tokens if it may."""
    documents = [
        Document(text, id=str(n), metadata={"page": n, "tags": ["x"], "relevance_score": "from elsewhere"})
        for n, text in enumerate(texts)
    ]
    return {"input": "read a zip?", "context": documents}


@pytest.fixture
def alike():
    """Whether two outputs say the same; scores differ in the last places, since other requests were in the batch."""

    def compared(output, expected):
        assert output.keys() == expected.keys()
        for key, value in output.items():
            if not isinstance(value, list):
                assert value == expected[key]
                continue
            mine, theirs = ([{**document.metadata} for document in documents] for documents in (value, expected[key]))
            scores = [[metadata.pop("relevance_score") for metadata in listed] for listed in (mine, theirs)]
            assert scores[0] == pytest.approx(scores[1], rel=1e-3)
            assert mine == theirs
            texts = [[(document.id, document.page_content) for document in listed] for listed in (value, expected[key])]
            assert texts[0] == texts[1]
        return True

    return compared


@pytest.fixture
def idle(rag):
    """Waits until the model computes nothing more; returns how many batches it has run: one for each token."""

    async def settled():
        before = -1
        for _ in range(100):
            now = rag.stats()["batches"]
            if now == before:
                return now
            before = now
            await asyncio.sleep(0.15)
        raise AssertionError("it never stops")

    return settled
