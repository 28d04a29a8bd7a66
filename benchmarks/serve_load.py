"""Four client processes at once against one server on loopback, beside the same requests in one process.

    python benchmarks/serve_load.py [--rounds 3] [--requests 96] [--passages 20] [--ray] [--json FILE]

Both sides have identical weights and as many requests under way: `--clients` processes with `--at-once` each, or that
many tasks. A round runs both, in turn in the other order, and gives one ratio; compare those, since the seconds belong
to one machine on one day. The clients' own work is on the same cores. Then more requests than the server takes: how
long refusals last. Without `--ray` the server is one uvicorn process, with it a replica behind Ray Serve's proxy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

Spans = list[float]  # seconds of each request
PATH = "/v1/ranking"
OVER = 4  # times what the server takes

console = Console()


def main() -> None:
    """Parses the command line, runs, prints."""
    import machine  # here, since client processes import this file, and have no use for torch
    import workload

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 3), ("requests", 96), ("passages", 20), ("clients", 4), ("at-once", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        checkpoint = Path(folder) / "cross-encoder"
        workload.save_checkpoint(checkpoint, workload.SEED)
        with served(context, str(checkpoint), arguments) as url:
            report = {"machine": {**machine.describe(), "load_before": os.getloadavg()[0]}, "ray": arguments.ray,
                      **measure(context, str(checkpoint), url, arguments)}  # fmt: skip
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


def measure(context: Any, checkpoint: str, url: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The rounds, and the overload."""
    import load_shapes as shapes
    import workload

    import tamis

    count, many = arguments.requests, arguments.clients * arguments.at_once
    source = shapes.texts(count * (arguments.passages + 1), workload.SEED)
    requests = [(one.query, one.passages) for one in shapes.requests(source, count, arguments.passages)]
    parts = [requests[i :: arguments.clients] for i in range(arguments.clients)]
    with tamis.load(checkpoint, device="cpu", dtype="float32") as reranker:
        sides = {
            "in process": lambda: asyncio.run(in_process(reranker, requests, many)),
            "served": lambda: over_http(context, url, parts, arguments.at_once),
        }
        for run in sides.values():
            run()  # everything is warm once
        rounds: list[dict[str, tuple[float, Spans]]] = []
        for number in range(arguments.rounds):
            names = list(sides) if number % 2 else list(reversed(sides))
            rounds.append({name: sides[name]() for name in names})
    taken = {name: [one[name] for one in rounds] for name in sides}
    return {
        "requests": count, "passages": arguments.passages, "under_way": many,
        "ratios": [one["in process"][0] / one["served"][0] for one in rounds],
        **{name: {"pairs_per_second": median(count * arguments.passages / seconds for seconds, _ in runs),
                  "p50": quantile(runs, 0.5), "p99": quantile(runs, 0.99)} for name, runs in taken.items()},
        "overload": asyncio.run(overload(url, requests, OVER * many)),
    }  # fmt: skip


def quantile(runs: list[tuple[float, Spans]], share: float) -> float:
    """Of the requests of all rounds, in seconds."""
    return float(np.quantile([seconds for _, spans in runs for seconds in spans], share))


async def in_process(reranker: Any, requests: list[Any], many: int) -> tuple[float, Spans]:
    """All requests, so many at once; seconds of the whole and of each."""

    async def ask(request: Any) -> None:
        await reranker.arank(*request)

    start = time.perf_counter()
    spans = await gathered(ask, requests, many)
    return time.perf_counter() - start, spans


async def gathered(ask: Any, requests: list[Any], many: int) -> Spans:
    """Seconds of each request."""
    waiting, spans = iter(requests), []

    async def worker() -> None:
        for request in waiting:
            start = time.perf_counter()
            await ask(request)
            spans.append(time.perf_counter() - start)

    await asyncio.gather(*(worker() for _ in range(many)))
    return spans


def over_http(context: Any, url: str, parts: list[Any], at_once: int) -> tuple[float, Spans]:
    """The same by client processes, which begin together."""
    ready, results = context.Barrier(len(parts) + 1), context.Queue()
    processes = [context.Process(target=client, args=(url, part, at_once, ready, results)) for part in parts]
    for process in processes:
        process.start()
    ready.wait(120)
    start = time.perf_counter()
    spans = [seconds for _ in processes for seconds in results.get(timeout=120)]
    whole = time.perf_counter() - start
    for process in processes:
        process.join()
    return whole, spans


def client(url: str, requests: list[Any], at_once: int, ready: Any, results: Any) -> None:
    """One client process."""
    import httpx

    async def run() -> Spans:
        async with httpx.AsyncClient(trust_env=False, timeout=600) as http:

            async def ask(request: Any) -> None:
                (await http.post(url + PATH, json=body(request))).raise_for_status()

            await http.get(f"{url}/health")
            await asyncio.to_thread(ready.wait, 120)
            return await gathered(ask, requests, at_once)

    results.put(asyncio.run(run()))


def body(request: Any) -> dict[str, Any]:
    """NIM's shape."""
    query, passages = request
    return {"query": {"text": query}, "passages": [{"text": text} for text in passages], "truncate": "END"}


async def overload(url: str, requests: list[Any], many: int) -> dict[str, Any]:
    """More at once than the server takes."""
    import httpx

    refused, answered = [], []
    async with httpx.AsyncClient(trust_env=False, timeout=600, limits=httpx.Limits(max_connections=many)) as http:

        async def ask(request: Any) -> None:
            start = time.perf_counter()
            answer = await http.post(url + PATH, json=body(request))
            {200: answered, 429: refused}[answer.status_code].append(time.perf_counter() - start)

        await asyncio.gather(*(ask(requests[i % len(requests)]) for i in range(many)))
    return {"requests": many, "answered": len(answered), "refused": len(refused),
            "refused_median": median(refused) if refused else None,
            "refused_longest": max(refused, default=None), "answered_longest": max(answered, default=None)}  # fmt: skip


@contextmanager
def served(context: Any, checkpoint: str, arguments: argparse.Namespace) -> Iterator[str]:
    """The server, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limit = arguments.clients * arguments.at_once
    stop, started = context.Event(), context.Event()
    target = serve_on_ray if arguments.ray else serve_alone
    process = context.Process(target=target, args=(checkpoint, port, limit, started, stop))
    process.start()
    try:
        if not started.wait(180):
            raise SystemExit("The server did not start.")
        yield f"http://127.0.0.1:{port}"
    finally:
        stop.set()
        process.join(60)


def serve_alone(checkpoint: str, port: int, limit: int, started: Any, stop: Any) -> None:
    """uvicorn."""
    import threading

    import uvicorn

    from tamis_ray.web.app import create_app
    from tamis_ray.web.limits import Limits
    from tamis_ray.web.service import Source

    loaded = Source(checkpoint, options={"device": "cpu", "dtype": "float32"}).load()
    app = create_app(loaded, limits=Limits(requests=limit), closes=True)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", access_log=False))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    started.set()
    stop.wait()
    server.should_exit = True


def serve_on_ray(checkpoint: str, port: int, limit: int, started: Any, stop: Any) -> None:
    """A replica of Ray Serve."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    from tamis_ray import Limits, build_app

    quiet = {"log_level": "ERROR", "enable_access_log": False}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
             object_store_memory=80 * 2**20)  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
    app = build_app(checkpoint, limits=Limits(requests=limit), cpus=2.0, device="cpu", dtype="float32")
    serve.run(app, logging_config=quiet)
    started.set()
    stop.wait()
    serve.shutdown()
    ray.shutdown()


def show(report: dict[str, Any]) -> None:
    """Tables."""
    table = Table(box=None, pad_edge=False)
    for title in ("", "pairs/s", "p50 s", "p99 s"):
        table.add_column(title, justify="right" if title else "left")
    for name in ("in process", "served"):
        row = report[name]
        table.add_row(name, f"{row['pairs_per_second']:.0f}", f"{row['p50']:.3f}", f"{row['p99']:.3f}")
    console.print(table)
    ratios = ", ".join(f"{ratio:.2f}" for ratio in report["ratios"])
    console.print(f"served / in process, by rounds: {ratios}; load before: {report['machine']['load_before']:.1f}")
    over = report["overload"]
    answered, refused = (f"{over[name]} {name}" for name in ("answered", "refused"))
    longest = f"the longest after {over['answered_longest']:.2f} s"
    quick = f"median {over['refused_median'] or 0:.3f} s, longest {over['refused_longest'] or 0:.3f} s"
    console.print(f"{over['requests']} at once: {answered} ({longest}), {refused} ({quick})")


if __name__ == "__main__":
    main()
