"""HTTP/2, where the server offers it: one connection for all requests, and a log that does not show the key."""

from __future__ import annotations

import asyncio
import json
import logging
import threading

import pytest

import tamis
from remote_stubs import KEY, QUERY, passages, ranked

pytest.importorskip("h2")
hypercorn = pytest.importorskip("hypercorn")
trustme = pytest.importorskip("trustme")


class App:
    """TEI's /rerank for an ASGI server."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, object, str]] = []
        self.under_way = self.peak = 0

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event["body"], event["more_body"]
        self.seen.append(
            (scope["http_version"], tuple(scope["client"]), dict(scope["headers"])[b"authorization"].decode())
        )
        self.under_way += 1
        self.peak = max(self.peak, self.under_way)
        await asyncio.sleep(0.05)
        self.under_way -= 1
        answer = json.dumps(ranked(json.loads(body)["texts"], "score", float)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An app, its URL, and the authority behind its certificate."""
    from hypercorn.asyncio import serve

    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    config = hypercorn.Config()
    config.bind = ["127.0.0.1:0"]
    config.certfile = config.keyfile = str(folder / "server.pem")
    config.errorlog = config.accesslog = None
    [socket] = config.create_sockets().secure_sockets
    port = socket.getsockname()[1]
    config.bind = [f"fd://{socket.detach()}"]
    app, started = App(), threading.Event()
    stop: list = []

    async def main() -> None:
        over = asyncio.Event()
        stop.append((asyncio.get_running_loop(), over))
        started.set()
        await serve(app, config, shutdown_trigger=over.wait)

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert started.wait(20)
    yield app, f"https://127.0.0.1:{port}/rerank", folder / "ca.pem"
    stop[0][0].call_soon_threadsafe(stop[0][1].set)
    thread.join(20)


def test_http2(server, caplog):
    app, url, authority = server
    caplog.set_level(logging.DEBUG)
    options = {"mode": "remote", "api": "tei", "api_key": KEY, "verify": authority, "request_passages": 3}
    with tamis.load(url, **options) as reranker:
        for _ in range(2):
            logits = [float(place) for place in range(40)]
            assert reranker.logits(QUERY, passages(*logits)) == logits
    assert {version for version, _, _ in app.seen} == {"2"}
    assert {key for _, _, key in app.seen} == {f"Bearer {KEY}"}
    assert len({client for _, client, _ in app.seen}) == 1, "one connection"
    assert 1 < app.peak <= 8
    assert "httpcore" in caplog.text
    assert KEY not in caplog.text
    assert "weighs" not in caplog.text


async def test_cancelling_a_stream_leaves_the_others(server):
    app, url, authority = server
    with tamis.load(url, mode="remote", api="tei", api_key=KEY, verify=authority, request_passages=1) as reranker:
        first = asyncio.ensure_future(reranker.arank(QUERY, passages(*range(30))))
        second = asyncio.ensure_future(reranker.arank(QUERY, passages(1, 2)))
        while not app.under_way:
            await asyncio.sleep(0.01)
        first.cancel()
        assert [hit.index for hit in await second] == [1, 0]
        with pytest.raises(asyncio.CancelledError):
            await first
        assert len(await reranker.arank(QUERY, passages(1, 2))) == 2
