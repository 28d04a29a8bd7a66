"""`tamis-serve` as a process of its own: what a shell, a container or a service manager starts and stops."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx
import pytest

import tamis

pytest.importorskip("ray.serve")

KEY = "c0ffee-" * 5
QUERY = "how do I read a zip archive?"
TEXTS = ["The weather is fine.", "zipfile reads zip archives.", "tarfile reads tar archives."]
LONG = {"query": QUERY, "documents": [f"{number} a zip archive " * 30 for number in range(60)]}
ENTRY = "import sys; from tamis_ray.cli import main; sys.exit(main())"  # what pip makes of [project.scripts]
SECONDS = 120  # at most, for a step that Ray does on a machine that is busy with other things


@contextmanager
def started(log, *arguments):
    """The command, which is ended if the test has not ended it."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "TAMIS_API_KEY")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", ENTRY, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**environment, "TAMIS_SERVE_KEY": KEY},
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.wait()


def until(done, process, log):
    """Waits for something of a process that lives; what it wrote is in the failure."""
    end = time.monotonic() + SECONDS
    while not done():
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < end, log.read_text(errors="replace")
        threading.Event().wait(0.05)


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@pytest.mark.timeout(600)
def test_it_starts_answers_drains_and_ends(service, tmp_path):
    log, port = tmp_path / "log", free_port()
    url = f"http://127.0.0.1:{port}"
    expected = service.reranker.rank(QUERY, TEXTS)
    options = ["--dtype", "float32", "--cpus", "0.5", "--port", str(port), "--drain", "60"]
    with (
        started(log, *options) as process,
        httpx.Client(trust_env=False, timeout=SECONDS, headers={"authorization": f"Bearer {KEY}"}) as client,
    ):

        def healthy():
            with suppress(httpx.TransportError):
                return client.get(f"{url}/health").status_code == 200
            return False

        until(healthy, process, log)
        until(lambda: f"serving at {url}" in log.read_text(errors="replace"), process, log)
        rows = client.post(f"{url}/v1/rerank", json={"query": QUERY, "documents": TEXTS}).json()["results"]
        assert [row["index"] for row in rows] == [hit.index for hit in expected]
        assert [row["relevance_score"] for row in rows] == pytest.approx([hit.score for hit in expected], abs=1e-5)
        assert httpx.post(f"{url}/v1/rerank", json=LONG, trust_env=False).status_code == 401
        with tamis.load(url, mode="remote", api_key=KEY) as remote:
            ranking = remote.rank(QUERY, TEXTS)
        assert [hit.index for hit in ranking] == [hit.index for hit in expected]
        assert [hit.score for hit in ranking] == pytest.approx([hit.score for hit in expected], abs=1e-5)

        def ask():
            answer = httpx.post(
                f"{url}/v1/rerank", json=LONG, trust_env=False, timeout=SECONDS, headers=dict(client.headers)
            )
            return answer, time.monotonic()

        def under_way():
            lines = client.get(f"{url}/metrics").text.splitlines()
            return any(line.startswith("tamis_serve_open_requests ") and float(line.split()[1]) for line in lines)

        with ThreadPoolExecutor(1) as pool:
            long = pool.submit(ask)
            until(under_way, process, log)
            told = time.monotonic()
            process.send_signal(signal.SIGTERM)
            answer, answered = long.result(SECONDS)
        assert answer.status_code == 200
        assert len(answer.json()["results"]) == len(LONG["documents"])
        assert answered > told, "it was under way when the process was told to end"
        assert process.wait(SECONDS) == 0
        with pytest.raises(httpx.TransportError):
            client.get(f"{url}/health")
    said = log.read_text(errors="replace")
    assert "tamis: ending; what is under way is answered first" in said
    assert "Traceback" not in said
    assert KEY not in said
    assert QUERY not in said
