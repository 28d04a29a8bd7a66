"""On a Ray cluster of this machine's own, which begins and ends with this module."""

import asyncio
import gc
import os
import socket
import time
import warnings

import httpx
import pytest

import tamis
from tamis_ray import Limits, build_app
from tamis_ray.cli import why
from tamis_ray.serve import NAME

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of pydantic, about Ray's own models
    import ray
    from ray import serve

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
QUERY = "how do I read a zip archive?"
TEXTS = ["The weather is fine.", "zipfile reads zip archives.", "tarfile reads tar archives."]
BODY = {"query": QUERY, "documents": TEXTS}
QUIET = {"log_level": "ERROR", "enable_access_log": False}


@pytest.fixture(scope="module")
def url():
    """A cluster with Serve's proxy on it, and no application yet."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False,
        logging_level="ERROR", configure_logging=False,
    )  # fmt: skip
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=QUIET)
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # Ray forgets the processes that it has ended
            gc.collect()


@pytest.fixture(scope="module")
def served(url):
    """Two replicas of the embedded model, each with room for four requests."""
    app = build_app(dtype="float32", cpus=0.5, replicas=2, limits=Limits(requests=4), drain=20.0)
    serve.run(app, name=NAME, route_prefix="/", logging_config=QUIET)
    return url


@pytest.fixture(scope="module")
def expected():
    with tamis.load(dtype="float32") as reranker:
        yield reranker.rank(QUERY, TEXTS)


def replicas():
    return [actor for actor in ray.util.list_named_actors(all_namespaces=True) if f"#{NAME}#" in actor["name"]]


def test_a_replica_answers_as_this_process_does(served, expected):
    for api, path in (("tei", "/rerank"), ("nim", "/v1/ranking"), (None, "")):
        with tamis.load(served + path, mode="remote", api=api) as remote:
            ranking = remote.rank(QUERY, TEXTS)
            assert [hit.index for hit in ranking] == [hit.index for hit in expected]
            assert [hit.score for hit in ranking] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    for path in ("/v1/models", "/health", "/v1/health/ready", "/metrics", "/openapi.json"):
        assert httpx.get(served + path, trust_env=False, timeout=30).status_code == 200


def test_what_is_refused_in_a_replica_is_refused_by_serve(served):
    json = {"content-type": "application/json"}
    for content, status in ((b"[" * 5000, 400), (b"\xff", 400), (b"{}", 422), (b" " * (17 * 2**20), 413)):
        answer = httpx.post(f"{served}/v1/rerank", content=content, headers=json, trust_env=False, timeout=60)
        assert answer.status_code == status
        assert answer.json()["error_type"] == "validation"
    bomb = {"x-bomb": "x" * 30_000}
    assert httpx.get(f"{served}/v1/models", headers=bomb, trust_env=False, timeout=30).status_code in (400, 431)


def test_why_no_replica_starts_is_told(served):
    """As `tamis-serve` tells it; Serve itself says that the deployment failed, and shows a traceback."""
    bad = build_app(mode="lexical", dim=8, cpus=0.1)  # what only a replica finds out
    once = bad._bound_deployment.options(max_constructor_retry_count=1)
    with pytest.raises(RuntimeError) as failed:
        serve.run(once.bind(), name="bad", route_prefix="/bad", logging_config=QUIET)
    assert "dim=" not in str(failed.value)
    assert why("bad") == "dim= means nothing in lexical mode; leave it out."
    serve.delete("bad")
    assert why("bad") == ""


async def test_overload_is_a_429_at_once_and_what_was_let_in_is_answered(served):
    long = {"query": QUERY, "documents": [f"{number} a zip archive " * 30 for number in range(60)]}
    async with httpx.AsyncClient(trust_env=False, timeout=120, limits=httpx.Limits(max_connections=100)) as client:

        async def timed():
            start = time.perf_counter()
            answer = await client.post(f"{served}/v1/rerank", json=long)
            return answer, time.perf_counter() - start

        done = await asyncio.gather(*(timed() for _ in range(40)))
    by_status = {status: [seconds for answer, seconds in done if answer.status_code == status] for status in (200, 429)}
    assert len(by_status[200]) + len(by_status[429]) == 40
    assert len(by_status[200]) >= 4
    assert by_status[429]
    assert min(by_status[429]) < max(by_status[200]), "a refusal does not wait for a turn"
    assert all(int(answer.headers["retry-after"]) >= 1 for answer, _ in done if answer.status_code == 429)


async def test_a_replica_that_is_killed_under_load_loses_nothing(served, expected):
    before = {actor["name"] for actor in replicas()}
    assert len(before) == 2
    scores = [hit.score for hit in expected]
    with tamis.load(f"{served}/rerank", mode="remote", api="tei", retries=100, deadline=120.0) as remote:
        load = [asyncio.ensure_future(remote.arank(QUERY, [f"{text}" for text in TEXTS])) for _ in range(60)]
        await asyncio.wait(load, return_when=asyncio.FIRST_COMPLETED)
        name = sorted(before)[0]
        namespace = next(actor["namespace"] for actor in replicas() if actor["name"] == name)
        ray.kill(ray.get_actor(name, namespace=namespace), no_restart=True)
        load += [asyncio.ensure_future(remote.arank(QUERY, TEXTS)) for _ in range(20)]
        rankings = await asyncio.gather(*load)
    assert len(rankings) == 80
    for ranking in rankings:
        assert [hit.score for hit in ranking] == pytest.approx(scores, abs=1e-5)
    for _ in range(600):  # Serve puts another in its place
        now = {actor["name"] for actor in replicas()}
        if len(now) == 2 and name not in now:
            break
        await asyncio.sleep(0.1)
    assert len(now) == 2
    assert name not in now


@pytest.mark.slow  # Serve looks at the load for half a minute before it starts another replica
@pytest.mark.timeout(400)
async def test_a_second_replica_starts_under_load_and_nothing_is_lost(url):
    app = build_app(dtype="float32", cpus=0.2, autoscale=(1, 2), limits=Limits(requests=8))
    await asyncio.to_thread(serve.run, app, name="scaled", route_prefix="/scaled", logging_config=QUIET)

    def running():
        return serve.status().applications["scaled"].deployments[NAME].replica_states.get("RUNNING", 0)

    assert running() == 1
    long = [f"{number} a zip archive " * 30 for number in range(20)]
    with tamis.load(f"{url}/scaled/rerank", mode="remote", api="tei", retries=1000, deadline=300.0) as remote:
        end, more = time.monotonic() + 240, asyncio.Event()

        async def ask():
            count = 0
            while not more.is_set() and time.monotonic() < end:
                assert len(await remote.arank(QUERY, long)) == 20
                count += 1
            return count

        load = [asyncio.ensure_future(ask()) for _ in range(8)]
        while running() < 2 and time.monotonic() < end:
            await asyncio.sleep(1)
        more.set()
        counts = await asyncio.gather(*load)
    assert running() == 2
    assert min(counts) > 0
    await asyncio.to_thread(serve.delete, "scaled")


def test_what_is_under_way_is_answered_before_the_end(url):
    """`serve.delete` drains. One replica: `/metrics` of two tells of the idler one."""
    app = build_app(dtype="float32", cpus=0.5, limits=Limits(requests=4), drain=60.0)
    serve.run(app, name="drained", route_prefix="/drained", logging_config=QUIET)
    long = [[f"{request} {number} a zip archive " * 30 for number in range(100)] for request in range(3)]

    async def requests():
        async with httpx.AsyncClient(base_url=f"{url}/drained", trust_env=False, timeout=120) as client:

            def send(texts):
                return asyncio.ensure_future(client.post("/rerank", json={"query": QUERY, "texts": texts}))

            load = [send(texts) for texts in long]
            while await open_requests(client) < len(load):
                assert not any(request.done() for request in load), "answered before all were seen under way"
                await asyncio.sleep(0.01)
            await asyncio.to_thread(serve.delete, "drained")
            return await asyncio.gather(*load), (await send(long[0])).status_code

    async def open_requests(client):
        lines = (await client.get("/metrics")).text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("tamis_serve_open_requests "))

    answers, after = asyncio.run(requests())
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert all(len(answer.json()) == 100 for answer in answers)
    assert after == 404
