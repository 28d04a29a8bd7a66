"""Servers that fail, one way after the other: a full answer or a clear error, and nothing in between."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from email.utils import formatdate

import pytest

import tamis
from remote_stubs import (
    QUERY,
    Nim,
    Tei,
    Vllm,
    die_midway,
    drip,
    flood,
    hang_up,
    passages,
    raw,
    send,
    serving,
    status,
)

GIVEN = passages(0, 1, 2)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def stub():
    with serving(Tei()) as stub:
        yield stub


def connect(stub, **options) -> tamis.Reranker:
    return tamis.load(stub.url, mode="remote", **{"api": "tei", **options})


# -- tried again -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [
    hang_up, die_midway, status(500), status(502, b"<html>bad gateway"), status(503), status(504), status(408),
    status(429), status(429, retry_after="0"), status(503, retry_after="soon"),
])  # fmt: skip
def test_what_passes_is_tried_again(stub, fault):
    stub.faults = [fault, fault]
    with connect(stub) as reranker:
        assert [hit.index for hit in reranker.rank(QUERY, GIVEN)] == [2, 1, 0]
        assert len(stub.posts) == 3
        assert stub.posts[0] == stub.posts[1] == stub.posts[2]
        stats = reranker.stats()
        assert (stats["http_retries"], stats["http_failures"], stats["http_requests"]) == (2, 2, 3)


@pytest.mark.parametrize("number", [400, 401, 403, 404, 405, 409, 415, 422, 424, 501, 302])
def test_what_does_not_pass_is_not(stub, number):
    stub.faults = [status(number, {"error": "the reason"})]
    with connect(stub) as reranker:
        with pytest.raises(tamis.RemoteError, match=rf"/rerank answered {number}: the reason\.") as caught:
            reranker.rank(QUERY, GIVEN)
        assert caught.value.status == number
        assert caught.value.detail == "the reason"
        assert not caught.value.retryable
        assert len(stub.posts) == 1
        assert len(reranker.rank(QUERY, GIVEN)) == 3, "an error is over with the call"


def test_retries_end(stub):
    stub.faults = [status(503, {"error": "loading"})] * 9
    with connect(stub, retries=2) as reranker:
        with pytest.raises(tamis.RemoteError, match=r"503: loading\. It was tried 3 times") as caught:
            reranker.rank(QUERY, GIVEN)
        assert caught.value.retryable
        assert len(stub.posts) == 3
    stub.faults = [status(503)]
    with connect(stub, retries=0) as reranker, pytest.raises(tamis.RemoteError, match=r"503: no\.$"):
        reranker.rank(QUERY, GIVEN)


def test_a_server_that_is_down_and_comes_up():
    port = free_port()
    with tamis.load(f"http://127.0.0.1:{port}/rerank", mode="remote", api="tei", retries=1) as reranker:
        with pytest.raises(
            tamis.RemoteError, match=rf"127.0.0.1:{port}/rerank cannot be reached.*tried 2 times"
        ) as caught:
            reranker.rank(QUERY, GIVEN)
        assert caught.value.status is None
        assert caught.value.retryable
        stub = Tei()
        stub.start(port)
        try:
            assert len(reranker.rank(QUERY, GIVEN)) == 3
            stub.stop()  # its sockets go with it
            with pytest.raises(tamis.RemoteError, match="cannot be reached, or broke off"):
                reranker.rank(QUERY, GIVEN)
        finally:
            stub.stop()


def test_down_while_it_is_loaded():
    with pytest.raises(tamis.RemoteError, match="cannot be reached"):
        tamis.load(f"http://127.0.0.1:{free_port()}", mode="remote", retries=0)
    with pytest.raises(tamis.RemoteError, match="cannot be reached"):
        tamis.load(f"http://127.0.0.1:{free_port()}/v1/ranking", mode="remote", retries=0)


def test_no_such_host():
    message = r"no-such-host\.invalid/rerank cannot be reached"
    reranker = tamis.load("http://no-such-host.invalid/rerank", mode="remote", api="tei", retries=0)
    with reranker, pytest.raises(tamis.RemoteError, match=message):
        reranker.rank(QUERY, GIVEN)


# -- Retry-After -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["1", "date"])
def test_retry_after_is_obeyed(stub, header):
    def refuse(handler):
        when = header if header == "1" else formatdate(time.time() + 2, usegmt=True)
        send(handler, 429, {"error": "slowly"}, retry_after=when)

    times = []
    stub.faults = [refuse]
    usual = stub.answer
    stub.answer = lambda path, body: (times.append(time.monotonic()), usual(path, body))[1]
    with connect(stub) as reranker:
        start = time.monotonic()
        assert len(reranker.rank(QUERY, GIVEN)) == 3
        assert times[0] - start >= 0.99


def test_a_wait_beyond_the_deadline_is_not_begun(stub):
    stub.faults = [status(429, {"error": "quota"}, retry_after="3600")]
    with connect(stub, deadline=30) as reranker:
        start = time.monotonic()
        with pytest.raises(tamis.RemoteError, match=r"no time left.* wait 3600 s.*deadline=") as caught:
            reranker.rank(QUERY, GIVEN)
        assert time.monotonic() - start < 20
        assert (caught.value.status, caught.value.retry_after) == (429, 3600.0)
        with pytest.raises(tamis.RemoteError, match="quota"):  # what one is told, all know: nobody asks again
            reranker.rank(QUERY, GIVEN)
        assert len(stub.posts) == 1


def test_a_storm_is_not_answered_with_one(stub):
    """Forty requests meet a server that takes none for a second: each waits, and none is lost."""
    stub.faults = [status(429, {"error": "storm"}, retry_after="1")] * 12
    with connect(stub, request_passages=1, connections=4, retries=9) as reranker:
        logits = [float(place) for place in range(40)]
        assert reranker.logits(QUERY, passages(*logits)) == logits
        assert len(stub.posts) <= 40 + 12
        assert reranker.stats()["http_retries"] == 12


# -- deadlines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [drip(0.05), lambda handler: time.sleep(30)], ids=["drip", "silence"])
def test_slow_answers_meet_the_deadline(stub, fault):
    with connect(stub) as reranker:
        reranker.rank(QUERY, GIVEN)  # connected
        stub.faults = [fault, fault]
        start = time.monotonic()
        with pytest.raises(tamis.DeadlineExceeded, match="timeout="):
            reranker.rank(QUERY, GIVEN, timeout=0.5)
        with pytest.raises(tamis.DeadlineExceeded, match="timeout="):
            asyncio.run(reranker.arank(QUERY, GIVEN, timeout=0.5))
        assert time.monotonic() - start < 20
        stub.faults.clear()  # of one that gave up before it was heard
        assert len(reranker.rank(QUERY, GIVEN)) == 3


def test_the_deadline_of_those_who_set_none(stub):
    with connect(stub, deadline=0.5) as reranker:
        stub.faults = [lambda handler: time.sleep(30)]
        with pytest.raises(tamis.DeadlineExceeded, match=r"/rerank did not answer in time.*deadline="):
            reranker.rank(QUERY, GIVEN)
        stub.faults = [lambda handler: (time.sleep(1.5), hang_up(handler))]
        assert len(reranker.rank(QUERY, GIVEN, timeout=60)) == 3, "the caller's own goes first"


def test_the_deadline_of_a_load():
    with serving(Nim()) as stub:
        stub.get = lambda path: time.sleep(30)
        with pytest.raises(tamis.DeadlineExceeded, match=r"did not answer within deadline=0\.5"):
            tamis.load(stub.url, mode="remote", deadline=0.5)


# -- answers that cannot be trusted ------------------------------------------------------------------------------------


def rows(*pairs):
    return raw(json.dumps([{"index": index, "score": score} for index, score in pairs]).encode())


GOOD = json.dumps([{"index": index, "score": 1.5} for index in range(3)]).encode()


@pytest.mark.parametrize(("fault", "message"), [
    (raw(GOOD[:-4]), "is not JSON, or was cut off"),
    (raw(b""), "is not JSON"),
    (raw(b"<html>Sign in</html>"), "is not JSON"),
    (raw(b'[{"index": 0, "score": 1.5}, \xff]'), "is not UTF-8"),
    (raw("\ufeff[]".encode()), "is not JSON"),
    (raw("[]".encode("utf-16")), "is not UTF-8|is not JSON"),
    (raw(b"[" * 100_000), "nested too deeply|is not JSON"),
    (raw(b'{"rankings": []}'), "has no list of scores"),
    (raw(b"null"), "has no list of scores"),
    (raw(b"[]"), "has 0 scores for 3 passages"),
    (rows((0, 1.0), (1, 1.0)), "has 2 scores for 3 passages"),
    (rows((0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0)), "has 4 scores for 3 passages"),
    (rows((0, 1.0), (1, 1.0), (1, 1.0)), "has two scores for passage 1"),
    (rows((0, 1.0), (1, 1.0), (3, 1.0)), "names passage 3, and 3 were sent, from 0"),
    (rows((0, 1.0), (1, 1.0), (-1, 1.0)), "names passage -1"),
    (rows((0, 1.0), (1, 1.0), ("2", 1.0)), "names passage str"),
    (rows((0, 1.0), (1, 1.0), (2.0, 1.0)), "names passage 2.0"),
    (rows((0, 1.0), (1, 1.0), (True, 1.0)), "names passage True"),
    (rows((0, 1.0), (1, 1.0), (None, 1.0)), "names passage NoneType"),
    (rows((0, 1.0), (1, float("nan")), (2, 1.0)), "scores passage 1 nan"),
    (rows((0, 1.0), (1, float("-inf")), (2, 1.0)), "scores passage 1 -inf"),
    (raw(b'[{"index":0,"score":1e999},{"index":1,"score":1},{"index":2,"score":1}]'), "scores passage 0 inf"),
    (rows((0, 10**400), (1, 1.0), (2, 1.0)), "scores passage 0 inf"),
    (raw(b'[{"index":0,"score":' + b"1" * 9999 + b"}]"), "is not JSON"),
    (rows((0, 1.0), (1, "1.0"), (2, 1.0)), "has no number under 'score' for passage 1"),
    (rows((0, 1.0), (1, None), (2, 1.0)), "has no number under 'score' for passage 1"),
    (rows((0, 1.0), (1, True), (2, 1.0)), "has no number under 'score' for passage 1"),
    (raw(b"[1, 2, 3]"), "has a score that is no object"),
    (status(200, GOOD, content_encoding="gzip"), "compressed its answer"),
])  # fmt: skip
def test_answers_are_never_guessed_at(stub, fault, message):
    with connect(stub) as reranker:
        stub.faults = [fault]
        with pytest.raises(tamis.RemoteError, match=message) as caught:
            reranker.rank(QUERY, GIVEN)
        assert caught.value.status == 200
        assert not caught.value.retryable
        assert str(caught.value).startswith(stub.url)
        assert len(stub.posts) == 1
        assert len(reranker.rank(QUERY, GIVEN)) == 3


def test_a_body_without_end_is_not_read_to_it(stub):
    stub.faults = [flood]
    with connect(stub) as reranker, pytest.raises(tamis.RemoteError, match=r"sent more than \d+ bytes"):
        reranker.rank(QUERY, GIVEN)


def test_an_answer_may_hold_the_passages_again():
    with serving(Vllm()) as stub, tamis.load(stub.url, mode="remote", api="vllm", scale="logit") as reranker:
        assert len(reranker.rank(QUERY, ["\u4e2d" * 500_000 + " 1", "b 2"])) == 2


def test_headers_without_end(stub):
    def fault(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 50_000 + b"\r\n")

    stub.faults = [fault]
    with connect(stub, retries=0) as reranker, pytest.raises(tamis.RemoteError, match="broke off"):
        reranker.rank(QUERY, GIVEN)


def test_no_http_at_all(stub):
    def fault(handler):
        handler.wfile.write(b"220 smtp.example.com ESMTP\r\n")
        handler.close_connection = True

    stub.faults = [fault]
    with connect(stub, retries=0) as reranker, pytest.raises(tamis.RemoteError, match="broke off"):
        reranker.rank(QUERY, GIVEN)


# -- one bad request among many ----------------------------------------------------------------------------------------


def test_an_error_in_one_request_ends_the_others(stub):
    with connect(stub, request_passages=1, connections=2) as reranker:
        stub.faults = [None, status(424, {"error": "wrong model", "error_type": "backend"})]
        with pytest.raises(tamis.RemoteError, match="424: wrong model"):
            reranker.rank(QUERY, passages(*range(60)))
        sent = len(stub.posts)
        assert sent < 60
        time.sleep(0.2)
        assert len(stub.posts) <= sent + 1, "the other connection's, which was on the wire already, and no more"
        assert reranker.stats()["http_open"] == 0


def test_a_refusal_that_is_about_something_else_is_not_halved():
    with (
        serving(Nim()) as stub,
        tamis.load(stub.url, mode="remote", api="nim", server_model="acme/reranker-1") as reranker,
    ):
        stub.faults = [status(400, {"error": "the engine is on fire"})]
        with pytest.raises(tamis.RemoteError, match="on fire"):
            reranker.rank(QUERY, GIVEN)
        assert len(stub.posts) == 1


@pytest.mark.parametrize("body", [{}, {"error": None}, [], "x", {"error": {"message": ["y"]}}, {"detail": [1, 2]}])
def test_refusals_without_a_reason(stub, body):
    stub.faults = [status(418, body)]
    with connect(stub) as reranker, pytest.raises(tamis.RemoteError, match=r"answered 418"):
        reranker.rank(QUERY, GIVEN)


def test_errors_travel_between_processes():
    import pickle

    error = tamis.RemoteError("x", status=429, retryable=True, retry_after=2.0, detail="y")
    twin = pickle.loads(pickle.dumps(error))
    assert (str(twin), twin.status, twin.retryable, twin.retry_after, twin.detail) == ("x", 429, True, 2.0, "y")
