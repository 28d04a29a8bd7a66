"""Keys, and that nothing of what callers send is said again: in answers to others' mistakes, in logs, in reprs."""

import asyncio
import logging
from functools import partial

import pytest

import tamis
from tamis.scorers.base import Scores
from tamis.secret import Secret
from tamis_ray.web.app import create_app
from tamis_ray.web.key import read_key, shows
from tamis_ray.web.limits import Limits
from tamis_ray.web.service import Service, Source

KEY = "c0ffee-" * 5
SAID = "my grandmother's secret recipe"
GOOD = {"query": SAID, "documents": [SAID + " is written here"]}
JSON = {"content-type": "application/json"}


@pytest.fixture
async def locked(service, calling):
    async with calling(create_app(service, key=Secret(KEY), limits=Limits(body_bytes=5000))) as client:
        yield client


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}",
     f"Bearer {KEY.upper()}", "Bearer " + "x" * 10_000, "Bearer caf\u00e9"],
)  # fmt: skip
async def test_without_the_key_nothing_is_told(locked, header):
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    for path in ("/v1/rerank", "/v2/rerank", "/rerank", "/v1/ranking", "/no/such/path"):
        answer = await locked.post(path, json=GOOD, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert KEY not in answer.text
    for path in ("/v1/models", "/info", "/metrics", "/openapi.json"):
        assert (await locked.get(path, headers=headers)).status_code == 401


async def test_with_the_key_everything_is_as_without_one(locked):
    headers = {"authorization": f"Bearer {KEY}"}
    assert (await locked.post("/v1/rerank", json=GOOD, headers=headers)).status_code == 200
    assert (await locked.get("/metrics", headers=headers)).status_code == 200
    assert "HTTPBearer" in (await locked.get("/openapi.json", headers=headers)).text


async def test_probes_need_no_key(locked):
    for path in ("/health", "/v1/health/live", "/v1/health/ready"):
        assert (await locked.get(path)).status_code == 200


async def test_a_prefix_changes_nothing(service):
    import httpx

    app = create_app(service, key=Secret(KEY), limits=Limits(body_bytes=5000))
    transport = httpx.ASGITransport(app, root_path="/prefix")
    async with httpx.AsyncClient(transport=transport, base_url="http://test/prefix") as client:
        headers = {"authorization": f"Bearer {KEY}"}
        assert (await client.post("/v1/rerank", json=GOOD)).status_code == 401
        assert (await client.get("/health")).status_code == 200
        assert (await client.post("/v1/rerank", json=GOOD, headers=headers)).status_code == 200
        answer = await client.post("/v1/rerank", content=b" " * 5001, headers={**headers, **JSON})
        assert answer.status_code == 413


async def test_a_body_is_not_read_for_who_has_no_key(locked):
    async def never():
        raise AssertionError("it was read")
        yield b""

    assert (await locked.post("/v1/rerank", content=never(), headers=JSON)).status_code == 401


class Broken:
    """A scorer whose errors quote what it was given, as a tokenizer's may."""

    model, mode, count_tokens = "broken", "cross-encoder", None

    def steps(self, query, passages):
        yield []
        raise ValueError(f"cannot read {query!r}")

    def stats(self):
        return {}

    def close(self):
        pass


async def test_logs_and_errors_have_nothing_of_the_texts(service, calling, caplog):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the client's own
    reranker = tamis.Reranker(Broken())
    broken = Service(reranker, reranker, ("broken",))
    answers = []
    for served in (service, broken):
        async with calling(create_app(served, key=Secret(KEY), limits=Limits(body_bytes=5000, passages=5))) as client:
            headers = {"authorization": f"Bearer {KEY}", "x-note": SAID}
            post = partial(client.post, "/v1/rerank", headers={**headers, **JSON})
            answers += [await post(json=body) for body in (
                GOOD, {**GOOD, "model": SAID}, {**GOOD, SAID: SAID}, {**GOOD, "documents": [{SAID: SAID}]},
                {**GOOD, "documents": [SAID] * 6}, {**GOOD, "top_n": SAID}, {**GOOD, "query": [SAID]},
            )]  # fmt: skip
            wrong = SAID.encode(), b'"' + SAID.encode(), SAID.encode() * 1000, SAID.encode() + b"\xff"
            answers += [await post(content=body) for body in wrong]
            answers.append(await client.post("/v1/rerank", json=GOOD, headers={"authorization": f"Bearer {SAID}"}))
            answers.append(await client.get(f"/{SAID}", params={"q": SAID}, headers=headers))
            body = {"query": {"text": SAID}, "passages": [{"text": SAID, SAID: 1}], "truncate": SAID}
            answers.append(await client.post("/v1/ranking", json=body, headers=headers))
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 400, 401, 404, 413, 422, 500}
    for answer in answers:
        assert "grandmother" not in answer.text
        assert KEY not in answer.text
    assert "POST /v1/rerank 200" in caplog.text
    assert "ValueError at test_serve_security.py:" in caplog.text
    assert "grandmother" not in caplog.text
    assert KEY not in caplog.text


async def test_scores_that_are_none_are_told_as_a_failure(calling):
    import numpy as np

    class NotANumber(Broken):
        def steps(self, query, passages):
            yield []
            return Scores(np.full(len(passages), np.nan), np.zeros(len(passages), dtype=np.bool_))

    reranker = tamis.Reranker(NotANumber())
    async with calling(create_app(Service(reranker, reranker, ("nan",)))) as client:
        answer = await client.post("/v1/rerank", json=GOOD)
    assert answer.status_code == 500
    assert answer.json()["error_type"] == "backend"


async def test_a_lost_device_is_told_to_probes(calling):
    class Lost(Broken):
        def steps(self, query, passages):
            yield []
            raise tamis.DeviceLost("gone")

    reranker = tamis.Reranker(Lost())
    lost = Service(reranker, reranker, ("lost",))
    async with calling(create_app(lost)) as client:
        assert (await client.get("/health")).status_code == 200
        answer = await client.post("/v1/rerank", json=GOOD)
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert (await client.get("/health")).status_code == 503
    assert lost.lost


def test_a_storm_of_bad_requests_leaves_the_server_as_it_was(service, on_loopback):
    """Over real connections, mixed with good ones, which are all answered."""
    import httpx

    bad = [b"[" * 4000, b"\xff" * 100, b"{}", b" " * 6000, b'{"query": "a", "documents": [{}]}']

    async def storm(url):
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
            requests = []
            for number in range(60):
                if number % 3 == 0:
                    requests.append(client.post("/v1/rerank", json={"query": "zip", "documents": [f"zip {number}"]}))
                else:
                    requests.append(client.post("/v1/rerank", content=bad[number % 5], headers=JSON))
            return await asyncio.gather(*requests)

    with on_loopback(create_app(service, limits=Limits(body_bytes=5000))) as url:
        answers = asyncio.run(storm(url))
    statuses = [answer.status_code for answer in answers]
    assert statuses[::3] == [200] * 20
    assert set(statuses) == {200, 400, 413, 422}


# -- where keys come from ----------------------------------------------------------------------------------------------


def test_a_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("TAMIS_SERVE_KEY", raising=False)
    assert read_key() is None
    with pytest.raises(tamis.InvalidInput, match="TAMIS_SERVE_KEY is not set"):
        read_key(required=True)
    monkeypatch.setenv("TAMIS_SERVE_KEY", KEY)
    assert shows(f"Bearer {KEY}", read_key(required=True))
    file = tmp_path / "key"
    file.write_text("another-key-of-length\n")
    assert shows("Bearer another-key-of-length", read_key(file))
    assert not shows(f"Bearer {KEY}", read_key(file))


@pytest.mark.parametrize("text", ["", "short", "no\nline breaks in it", "\u00fcnlikely to go into a header"])
def test_a_key_that_is_none_is_refused_without_showing_it(tmp_path, text):
    file = tmp_path / "key"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(tamis.InvalidInput) as refused:
        read_key(file)
    assert not text or text not in str(refused.value)
    with pytest.raises(tamis.InvalidInput, match="cannot be read"):
        read_key(tmp_path / "none")


def test_a_key_for_another_server_does_not_travel():
    with pytest.raises(tamis.InvalidInput, match="TAMIS_API_KEY"):
        Source("http://gpu:8000", options={"mode": "remote", "api_key": "sk-1234"})


def test_a_folders_path_is_nobodys_business(tmp_path):
    import tiny

    folder = tiny.save_classifier(tmp_path / "my-model", "bert")
    loaded = Source(str(folder)).load()
    assert loaded.names == ("my-model",)
    loaded.close()
