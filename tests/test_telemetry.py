"""Spans and metrics, as an OpenTelemetry SDK receives them."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import tamis
from fakes import FakeScorer
from tamis import telemetry

SECRET = "a secret question"


@pytest.fixture
def seen():
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    metering = MeterProvider([reader])
    telemetry.instrument(tracer_provider=tracing, meter_provider=metering)
    yield tracing, spans, reader
    telemetry.uninstrument()
    metering.shutdown()


def test_a_span_for_each_request_under_the_callers(seen):
    tracing, spans, _ = seen
    reranker = tamis.Reranker(FakeScorer())

    async def ask():
        with tracing.get_tracer("test").start_as_current_span("parent"):
            await asyncio.gather(reranker.arank(SECRET, ["a"]), reranker.ascore(SECRET, ["a", "b"]))

    asyncio.run(ask())
    reranker.logits(SECRET, ["c"])
    found = {span.name: span for span in spans.get_finished_spans()}
    assert set(found) == {"parent", "tamis.rank", "tamis.score", "tamis.logits"}
    assert found["tamis.rank"].parent.span_id == found["parent"].context.span_id
    assert found["tamis.logits"].parent is None
    assert found["tamis.score"].attributes == {
        "tamis.model": "fake",
        "tamis.mode": "cross-encoder",
        "tamis.passages": 2,
    }


def test_errors_and_cancellations_end_their_spans_without_text(seen):
    _, spans, _ = seen

    def fail(query, passage):
        raise RuntimeError(query)

    with pytest.raises(RuntimeError):
        tamis.Reranker(FakeScorer(fail)).rank(SECRET, ["a"])
    waiting = FakeScorer()
    waiting.gated = True
    with pytest.raises(tamis.DeadlineExceeded):
        asyncio.run(tamis.Reranker(waiting).arank(SECRET, ["a"], timeout=0.05))
    assert [span.attributes["error.type"] for span in spans.get_finished_spans()] == ["RuntimeError", "CancelledError"]
    assert all(not span.status.is_ok for span in spans.get_finished_spans())
    assert SECRET not in "".join(span.to_json() for span in spans.get_finished_spans())


def test_metrics_of_an_engine(seen, classifier):
    _, _, reader = seen
    with tamis.load(classifier("bert"), dtype="float32") as reranker:
        reranker.rank(SECRET, ["a", "b", "c"])
        stats = reranker.stats()
        data = reader.get_metrics_data()
    metrics = {m.name: m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}
    points = {name: {p.attributes["tamis.engine"]: p.value for p in m.data.data_points} for name, m in metrics.items()}
    name = str(classifier("bert"))
    assert points["tamis.tokens"][name] == stats["tokens"] > 0
    assert points["tamis.queue.tokens"][name] == 0
    assert points["tamis.batches"][name] == stats["batches"]


def test_not_installed():
    code = """
import sys
sys.modules["opentelemetry"] = None
import tamis.telemetry
try: tamis.telemetry.instrument()
except tamis.MissingExtra as error: print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "tamis[otel]"' in done.stdout
