"""A test of ten seconds: the models that are here rank what has a known order.

Every load compares the packed form with one sequence at a time, and goes on padded where they differ: the models of
the test run packed on every machine that was tried, so that `packed` says whether this one is another.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

from tamis.errors import TamisError

SECONDS = 10.0  # for one ranking; it takes milliseconds
QUERY = "how do I read a zip archive?"
PASSAGES = (
    "The weather in Lisbon is mild in spring.",
    "The zipfile module reads and writes zip archives; ZipFile opens one, and extractall unpacks it.",
    "The tarfile module reads and writes tar archives, with or without compression.",
    "A list is sorted in place by its sort method.",
)
FIRST = [1, 2]  # the right passage, and the one that is nearly right


def self_test() -> list[dict[str, Any]]:
    """One row for each model: whether it passed, why not, and its times in milliseconds."""
    from tamis.checkpoint import EMBEDDED, MINI, Checkpoint
    from tamis.errors import MissingExtra

    tests = [(MINI, "cross-encoder")]
    try:
        Checkpoint.embedded()
        tests = [(MINI, "fusion"), *tests, (EMBEDDED, "bi-encoder")]
    except MissingExtra:
        pass
    return [_tested(model, mode) for model, mode in tests]


def _tested(model: str, mode: str) -> dict[str, Any]:
    row: dict[str, Any] = {"model": model, "mode": mode, "passed": False, "problem": None}
    try:
        row |= _measured(mode)
    except TamisError as error:
        return {**row, "problem": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever is broken here, the report is to say it
        return {**row, "problem": f"{type(error).__name__}: {error}"}
    if row["order"][: len(FIRST)] != FIRST:
        row["problem"] = f"it ranked {row['order']}, where {FIRST} come first"
    return {**row, "passed": row["problem"] is None}


def _measured(mode: str) -> dict[str, Any]:
    from tamis import load

    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the load warns of is in `packed`
        reranker = load(mode=mode, cache_bytes=0)
    with reranker:
        loaded = time.perf_counter()
        first = reranker.rank(QUERY, PASSAGES, timeout=SECONDS)
        times = [_timed(lambda: reranker.rank(QUERY, PASSAGES, timeout=SECONDS)) for _ in range(5)]
        stats = reranker.stats()
    return {
        "order": [hit.index for hit in first],
        "device": stats["device"],
        "dtype": stats["dtype"],
        "packed": stats["packed"],
        "load_ms": round(1000 * (loaded - start), 1),
        "rank_ms": round(1000 * min(times), 2),
        "tokens": first.usage.tokens,
    }


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
