"""OpenTelemetry, for those who ask for it: a span for each request, and the engines' numbers as metrics.

Nothing here is imported from OpenTelemetry before `instrument` is called, and no text of a query or a passage ever
goes into a span or a metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future
from typing import Any

from tamis.errors import MissingExtra

_COUNTERS = {  # stats() name: (metric, unit, what it counts)
    "tokens": ("tamis.tokens", "{token}", "Tokens that went through the model"),
    "sequences": ("tamis.sequences", "{sequence}", "Sequences that went through the model"),
    "batches": ("tamis.batches", "{batch}", "Batches that were run"),
    "shared": ("tamis.shared", "{sequence}", "Sequences that were in flight already"),
    "refused": ("tamis.refused", "{request}", "Requests that a full queue turned away"),
    "splits": ("tamis.splits", "{batch}", "Batches halved to find what made the model raise"),
    "out_of_memory": ("tamis.out_of_memory", "{batch}", "Batches that did not fit the device"),
    "device_seconds": ("tamis.device.time", "s", "Time that devices were busy"),
}
_GAUGES = {
    "queued_tokens": ("tamis.queue.tokens", "{token}", "Tokens that wait"),
    "queued_sequences": ("tamis.queue.sequences", "{sequence}", "Sequences that wait"),
    "tokens_per_batch": ("tamis.batch.tokens", "{token}", "Tokens of a batch, on average"),
    "padding": ("tamis.padding", "1", "Share of computed tokens that were padding"),
    "queue_wait_p50": ("tamis.queue.wait.p50", "s", "Median wait of a sequence"),
    "queue_wait_p99": ("tamis.queue.wait.p99", "s", "99th percentile of the waits"),
}

Watch = Callable[[str, Mapping[str, Any], "Future[Any]"], None]

_watch: Watch | None = None


def instrument(*, tracer_provider: Any = None, meter_provider: Any = None) -> None:
    """Sends spans and metrics from now on, to the providers given or to OpenTelemetry's global ones.

    Raises:
        MissingExtra: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry import metrics, trace
    except ImportError as error:
        raise MissingExtra('Spans and metrics need OpenTelemetry: pip install "tamis[otel]".') from error
    from tamis import __version__

    tracer = trace.get_tracer("tamis", __version__, tracer_provider=tracer_provider)
    meter = metrics.get_meter("tamis", __version__, meter_provider=meter_provider)
    for key, (name, unit, text) in _COUNTERS.items():
        meter.create_observable_counter(name, [_reader(key, metrics.Observation)], unit, text)
    for key, (name, unit, text) in _GAUGES.items():
        meter.create_observable_gauge(name, [_reader(key, metrics.Observation)], unit, text)

    def watch(operation: str, attributes: Mapping[str, Any], future: Future[Any]) -> None:
        # Begun in the caller's context, where its parent is; ended by whichever thread resolves the future.
        span = tracer.start_span(f"tamis.{operation}", attributes={f"tamis.{k}": v for k, v in attributes.items()})

        def end(done: Future[Any]) -> None:
            error = CancelledError() if done.cancelled() else done.exception(timeout=0)
            if error is not None:
                span.set_attribute("error.type", type(error).__name__)  # the message may quote the caller's input
                span.set_status(trace.StatusCode.ERROR)
            span.end()

        future.add_done_callback(end)

    global _watch
    _watch = watch


def uninstrument() -> None:
    """Sends no more spans; metrics end with their provider."""
    global _watch
    _watch = None


def started(operation: str, attributes: Mapping[str, Any], future: Future[Any]) -> None:
    """A request has begun; `future` will end it. Costs nothing unless `instrument` was called."""
    if _watch is not None:
        _watch(operation, attributes, future)


def _reader(key: str, observation: Any) -> Callable[[Any], Iterable[Any]]:
    def read(_: Any) -> Iterable[Any]:
        from tamis.engine.engine import engines

        return [observation(engine.stats()[key], {"tamis.engine": engine.name}) for engine in engines()]

    return read
