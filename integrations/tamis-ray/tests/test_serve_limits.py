"""What is too much, too slow or no request at all is refused, and the server goes on."""

import asyncio
import json
import socket
import threading
from concurrent.futures import Future

import numpy as np
import pytest

import tamis
from tamis.scorers.base import Scores
from tamis.scores import sigmoid
from tamis_ray.web.app import create_app
from tamis_ray.web.limits import Limits
from tamis_ray.web.service import Service

JSON = {"content-type": "application/json"}
GOOD = {"query": "zip", "documents": ["a zip", "a tar"]}
PATHS = {
    "/v1/rerank": lambda texts: {"query": "zip", "documents": texts},
    "/v2/rerank": lambda texts: {"query": "zip", "documents": texts},
    "/rerank": lambda texts: {"query": "zip", "texts": texts},
    "/v1/ranking": lambda texts: {"query": {"text": "zip"}, "passages": [{"text": text} for text in texts]},
}


class Held:
    """A scorer whose requests wait until they are let go, and which counts those that were withdrawn."""

    model, mode, count_tokens = "held", "cross-encoder", None

    def __init__(self):
        self.waiting = []
        self.arrived = threading.Event()

    def steps(self, query, passages):
        future = Future()
        self.waiting.append(future)
        self.arrived.set()
        yield [future]
        future.result()
        return Scores(np.zeros(len(passages)), np.zeros(len(passages), dtype=np.bool_))

    def let_go(self):
        for future in self.waiting:
            if not future.done():
                future.set_result(None)

    def to_score(self, logit):
        return sigmoid(logit)

    def stats(self):
        return {}

    def close(self):
        self.let_go()


@pytest.fixture
def held():
    scorer = Held()
    yield scorer
    scorer.let_go()


def over(scorer):
    reranker = tamis.Reranker(scorer)
    return Service(reranker, reranker, ("held",))


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
async def test_too_many_passages_and_too_long_texts(service, calling, path):
    async with calling(create_app(service, limits=Limits(passages=3, characters=20))) as client:
        assert (await client.post(path, json=PATHS[path](["x" * 20] * 3))).status_code == 200
        for texts in (["x"] * 4, ["x", "x" * 21]):
            answer = await client.post(path, json=PATHS[path](texts))
            assert answer.status_code == 422
            assert "exceeds the maximum" in answer.json()["error"]
            assert "xx" not in answer.text


async def test_a_body_is_refused_while_it_is_read(service, calling):
    """Whether its length is announced, announced wrongly or not at all; the rest is not asked for."""
    taken = 0

    async def endless():
        nonlocal taken
        while True:
            taken += 1
            yield b" " * 1000

    async with calling(create_app(service, limits=Limits(body_bytes=10_000))) as client:
        for content in (b" " * 10_001, endless()):
            answer = await client.post("/v1/rerank", content=content, headers=JSON)
            assert answer.status_code == 413
            assert "10000 bytes" in answer.json()["error"]
        assert taken == 11
        assert (await client.post("/v1/rerank", json=GOOD)).status_code == 200


async def test_headers_are_bounded(service, calling, on_loopback):
    app = create_app(service, limits=Limits(header_bytes=4000))
    bombs = [{"x-bomb": "x" * 4000}, {f"x-{number}": "x" * 50 for number in range(80)}]
    async with calling(app) as client:
        for bomb in bombs:
            for answer in (await client.post("/v1/rerank", json=GOOD, headers=bomb),
                           await client.get("/health", headers=bomb)):  # fmt: skip
                assert answer.status_code == 431
    with on_loopback(app) as url, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10) as wire:
        wire.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"a: " + b"b" * 60_000 + b"\r\n\r\n")
        assert wire.recv(100).split()[1] in (b"431", b"400")  # ours, or the HTTP parser's own


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 5000,
        b'{"query": ' * 5000,
        b'{"query": "zip", "documents": ' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"query": "zi\xffp", "documents": ["a"]}',
        '{"query": "zip", "documents": ["a"]}'.encode("utf-16"),
        b'{"query": "zi\\ud800p", "documents": ["a"]}',
        b'{"query": "zip", "documents": ["a"], "top_n": NaN}',
        b'{"query": "zip", "documents": ["a"]} {}',
    ],
    ids=["empty", "cut off", "lists", "objects", "inside", "bytes", "utf-16", "half a character", "NaN", "two"],
)
@pytest.mark.parametrize("path", PATHS)
async def test_what_is_no_json_is_refused(service, calling, path, body):
    async with calling(create_app(service)) as client:
        answer = await client.post(path, content=body, headers=JSON)
        assert answer.status_code == (422 if body == b"" else 400)
        assert answer.json()["error_type"] == "validation"


async def test_nested_fields_that_are_not_known_do_no_harm(service, calling):
    async with calling(create_app(service)) as client:
        body = json.dumps({**GOOD, "deep": 1}).replace("1}", "[" * 150 + "]" * 150 + "}")
        assert (await client.post("/v1/rerank", content=body, headers=JSON)).status_code == 200


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
async def test_only_json_is_read(service, calling, kind):
    """What a form of any page in a browser could send is not."""
    async with calling(create_app(service)) as client:
        headers = {} if kind is None else {"content-type": kind}
        answer = await client.post("/v1/rerank", content=json.dumps(GOOD).encode(), headers=headers)
        assert answer.status_code == 415


# -- time and number ---------------------------------------------------------------------------------------------------


async def test_one_more_than_allowed_is_refused_at_once(held, calling):
    async with calling(create_app(over(held), limits=Limits(requests=2))) as client:
        first = [asyncio.ensure_future(client.post("/v1/rerank", json=GOOD)) for _ in range(2)]
        while len(held.waiting) < 2:
            await asyncio.sleep(0.005)
        for path, body in PATHS.items():
            answer = await client.post(path, json=body(["a"]))
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200
        held.let_go()
        assert [answer.status_code for answer in await asyncio.gather(*first)] == [200, 200]
        last = asyncio.ensure_future(client.post("/v1/rerank", json=GOOD))
        while len(held.waiting) < 3:
            await asyncio.sleep(0.005)
        held.let_go()
        assert (await last).status_code == 200
    assert len(held.waiting) == 3


async def test_an_engine_that_is_full_is_a_429(calling):
    """The engine counts tokens: requests that the server let in may still be too many of them."""
    from tamis_ray.web.service import Source

    source = Source(options={"mode": "cross-encoder", "dtype": "float32", "queue_tokens": 1})
    small = source.load()
    runner = small.reranker._scorer._lease.loaded.engine._devices[0].runner
    run, gate = runner.run, threading.Event()

    def held(batch):
        gate.wait(60)
        return run(batch)

    runner.run = held  # the device is busy until some were refused
    try:
        async with calling(create_app(small)) as client:
            asked = []

            def body():  # each other than those before: equal sequences would share a place in the queue
                return {"query": f"zip {len(asked)}", "documents": [f"a zip archive {n} " * 20 for n in range(12)]}

            while not small.stats()["queued_sequences"]:  # the device holds what came first, and these wait behind it
                asked.append(asyncio.create_task(client.post("/v1/rerank", json=body())))
                await asyncio.sleep(0.2)
            refused = await client.post("/v1/rerank", json=body())
            gate.set()
            answers = await asyncio.gather(*asked)
    finally:
        gate.set()
        runner.run = run
        small.close()
    assert refused.status_code == 429
    assert refused.headers["retry-after"]
    assert {answer.status_code for answer in answers} == {200}


async def test_a_request_that_takes_too_long_is_a_504(held, calling):
    async with calling(create_app(over(held), limits=Limits(timeout=0.05))) as client:
        answer = await client.post("/v1/rerank", json=GOOD)
        assert answer.status_code == 504
        assert held.waiting[0].done(), "what waits for nobody is withdrawn"


def test_a_caller_who_hangs_up_takes_his_request_along(held, on_loopback):
    with on_loopback(create_app(over(held), limits=Limits(requests=1))) as url:
        port = int(url.rpartition(":")[2])
        body = json.dumps(GOOD).encode()
        head = b"POST /v1/rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), 10) as wire:
            wire.sendall(head % len(body) + body)
            assert held.arrived.wait(10)
        for _ in range(500):
            if held.waiting[0].done():
                break
            threading.Event().wait(0.01)
        assert held.waiting[0].done()


def test_a_body_that_does_not_come_is_not_waited_for(service, on_loopback):
    with on_loopback(create_app(service, limits=Limits(read_timeout=0.1, requests=1))) as url:
        port = int(url.rpartition(":")[2])
        head = b"POST /v1/rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{"
        with socket.create_connection(("127.0.0.1", port), 10) as wire:
            wire.sendall(head)
            assert wire.recv(100).split()[1] == b"408"
        import httpx

        assert httpx.post(f"{url}/v1/rerank", json=GOOD, trust_env=False).status_code == 200


@pytest.mark.parametrize("wrong", [{"passages": 0}, {"timeout": 0}, {"requests": True}, {"body_bytes": "1"}])
def test_limits_are_checked(wrong):
    with pytest.raises(tamis.InvalidInput, match=next(iter(wrong))):
        Limits(**wrong)
