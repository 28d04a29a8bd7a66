"""Nodes to rank, scorers that fail or wait, a tiny language model, and handlers that keep what LlamaIndex sends."""

import asyncio
import json
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.schema import NodeWithScore, TextNode

import tamis
from tamis.scorers.base import Scores

QUERY = "how do I read a zip archive"
TEXTS = [
    "A tar file keeps permissions.",
    "To read a zip archive, open it with zipfile.",
    "Bees make honey.",
    "How do I write a zip archive?",
]
BEST_FIRST = [3, 1, 0, 2]  # BM25's order of TEXTS for QUERY
SQUAD = Path(__file__).parents[3].parent / "shared" / "data" / "squad"


def make_nodes(texts=TEXTS) -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(text=text, id_=f"n{i}", metadata={"page": i}), score=0.9 - i / 10)
        for i, text in enumerate(texts)
    ]


class FakeScorer:
    """Scores a passage by its length; `before` says what happens first, and may return futures to wait for."""

    model = "fake"
    mode = "lexical"

    def __init__(self, before=lambda: None, logit=len) -> None:
        self.before = before
        self.logit = logit
        self.seen: list[tuple[str, list[str]]] = []

    def steps(self, query, passages):
        self.seen.append((query, list(passages)))
        pending = self.before()
        if pending:
            yield pending
        return Scores(np.array([self.logit(p) for p in passages], dtype=float), np.zeros(len(passages), dtype=bool))

    def to_score(self, logit):
        return np.float32(logit / (1 + logit))  # what a careless scorer returns

    def count_tokens(self, text):
        return len(text.split())

    def stats(self):
        return {}

    def close(self):
        pass


class Gate:
    """Holds requests until `size` of them wait, and `hold` seconds more; then lets all go at once."""

    def __init__(self, size: int, hold: float = 0.0) -> None:
        self.size, self.hold = size, hold
        self.waiting: list[Future[None]] = []
        self.closed_at = self.opened_at = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> list[Future[None]]:
        future: Future[None] = Future()
        with self._lock:
            self.waiting.append(future)
            full = len(self.waiting) == self.size
        if full:
            self.closed_at = time.perf_counter()
            threading.Timer(self.hold, self._open).start()
        return [future]

    def _open(self) -> None:
        self.opened_at = time.perf_counter()
        for future in self.waiting:
            future.set_result(None)


class Events(BaseEventHandler):
    events: list[Any]

    def handle(self, event, **kwargs):
        self.events.append(event)

    def named(self, *names: str) -> list[Any]:
        return [event for event in self.events if event.class_name() in names]


class Callbacks(BaseCallbackHandler):
    """A legacy handler, with a lock as real ones have."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.lock = threading.Lock()
        self.seen: list[tuple[str, Any, Any]] = []

    def on_event_start(self, event_type, payload=None, event_id="", parent_id="", **kwargs):
        self.seen.append(("start", event_type, payload))
        return event_id

    def on_event_end(self, event_type, payload=None, event_id="", **kwargs):
        self.seen.append(("end", event_type, payload))

    def start_trace(self, trace_id=None):
        pass

    def end_trace(self, trace_id=None, trace_map=None):
        pass


@pytest.fixture
def query() -> str:
    return QUERY


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    return make_nodes()


@pytest.fixture
def best_first() -> list[str]:
    return [f"n{i}" for i in BEST_FIRST]


@pytest.fixture
def fake():
    """Makes (scorer, reranker) pairs; see FakeScorer."""

    def make(**kwargs):
        scorer = FakeScorer(**kwargs)
        return scorer, tamis.Reranker(scorer)

    return make


@pytest.fixture
def gate():
    return Gate


@pytest.fixture
def callbacks() -> Callbacks:
    return Callbacks()


@pytest.fixture
def events():
    root, handler = get_dispatcher(), Events(events=[])
    root.add_event_handler(handler)
    yield handler
    root.event_handlers.remove(handler)


@pytest.fixture
def spans():
    root = get_dispatcher()
    handler = SimpleSpanHandler(open_spans={}, completed_spans=[], dropped_spans=[], current_span_ids={})
    root.add_span_handler(handler)
    yield handler
    root.span_handlers.remove(handler)


# -- RankRAG: a tiny Llama with random weights, which goes on writing as long as it may --------------------------------


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
def slow(rag, monkeypatch):
    """It, as slow as a real model, next to which LlamaIndex's own work is small; called with seconds for a batch."""

    def make(seconds):
        runner = rag._scorer.lease.loaded.engine._devices[0].runner
        run = runner.run

        def slowly(batch):
            time.sleep(seconds)
            return run(batch)

        monkeypatch.setattr(runner, "run", slowly)
        return rag

    return make


@pytest.fixture
def idle(rag):
    """Waits until the model runs nothing more, and has nothing more to run; returns how many batches it has run."""

    async def settled():
        before = -1
        for _ in range(100):
            now = rag.stats()
            if now["batches"] == before:
                assert now["queued_sequences"] == now["queued_tokens"] == 0
                return before
            before = now["batches"]
            await asyncio.sleep(0.1)
        raise AssertionError("it never stops")

    return settled


@pytest.fixture
def sequences(rag):
    """Called, the sequences that the model has run since: one for each passage ranked, and for each token written."""
    before = rag.stats()["sequences"]
    return lambda: rag.stats()["sequences"] - before


@pytest.fixture(scope="session")
def squad():
    """Called with numbers of rows of the corpus: those passages, as text nodes."""
    if not SQUAD.exists():
        pytest.skip("SQuAD is not there")
    with (SQUAD / "corpus.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for _, line in zip(range(200), lines, strict=False)]

    def make(numbers):
        return [
            TextNode(text=rows[n]["text"], id_=rows[n]["_id"], metadata={"title": rows[n]["title"]}) for n in numbers
        ]

    return make
