"""The key reaches the server that it is for, encrypted, and nothing else: no text, no pickle, no log, no other host."""

from __future__ import annotations

import copy
import logging
import pickle
import ssl
import traceback

import pytest

import tamis
from remote_stubs import KEY, QUERY, Tei, die_midway, hang_up, passages, send, serving, status
from tamis.lazy import LazyReranker
from tamis.options import LoadOptions
from tamis.remote.address import parse
from tamis.remote.apis import APIS
from tamis.remote.connecting import _key
from tamis.secret import Secret

VARIABLES = (
    "TAMIS_API_KEY", "NVIDIA_API_KEY", "COHERE_API_KEY", "CO_API_KEY", "JINA_API_KEY", "VOYAGE_API_KEY", "HF_TOKEN",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def connect(stub, **options) -> tamis.Reranker:
    return tamis.load(stub.url, mode="remote", **{"api": "tei", "api_key": KEY, "retries": 0, **options})


def test_the_key_is_a_bearer_token():
    with serving(Tei(key=KEY)) as stub:
        with connect(stub) as reranker:
            assert len(reranker.rank(QUERY, passages(1, 2))) == 2
        assert stub.requests[0][2]["authorization"] == f"Bearer {KEY}"
        with connect(stub, api_key=f" {KEY}\n") as reranker:  # as it comes out of a file
            assert len(reranker.rank(QUERY, passages(1, 2))) == 2
        with tamis.load(stub.base, mode="remote", api_key=KEY) as reranker:  # the questions of a load need it too
            assert len(reranker.rank(QUERY, passages(1, 2))) == 2
        with pytest.raises(tamis.RemoteError, match=r"401.*api_key="):
            tamis.load(stub.base, mode="remote")


# -- where it comes from -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("url", "api", "variable"), [
    ("https://api.cohere.com/v2/rerank", "cohere", "COHERE_API_KEY"),
    ("https://api.cohere.com/v2/rerank", "cohere", "CO_API_KEY"),
    ("https://ai.api.nvidia.com/v1/retrieval/nvidia/x/reranking", "nim", "NVIDIA_API_KEY"),
    ("https://api.jina.ai/v1/rerank", "jina", "JINA_API_KEY"),
    ("https://api.voyageai.com/v1/rerank", "voyage", "VOYAGE_API_KEY"),
    ("https://x.us-east-1.aws.endpoints.huggingface.cloud/rerank", "tei", "HF_TOKEN"),
])  # fmt: skip
def test_a_vendors_key_is_for_the_vendor(monkeypatch, url, api, variable):
    def key(url):
        found = _key(parse(url), APIS[api], LoadOptions())
        return None if found is None else found.reveal()

    with pytest.raises(tamis.InvalidInput, match=rf"api_key=, or set .*{variable}"):
        key(url)
    monkeypatch.setenv("TAMIS_API_KEY", "general")
    assert key(url) == "general"
    monkeypatch.setenv(variable, "special")
    assert key(url) == "special"
    assert key("https://elsewhere.example.com/v1/rerank") == "general"
    assert key("https://api.cohere.com.evil.example/v2/rerank") == "general"
    monkeypatch.delenv("TAMIS_API_KEY")
    assert key("https://elsewhere.example.com/v1/rerank") is None
    assert key("http://127.0.0.1:8000/rerank") is None
    assert _key(parse(url), APIS[api], LoadOptions(api_key="mine")) == Secret("mine")


def test_the_general_variable_reaches_the_server(monkeypatch):
    monkeypatch.setenv("TAMIS_API_KEY", KEY)
    with serving(Tei(key=KEY)) as stub, connect(stub, api_key=None) as reranker:
        assert len(reranker.rank(QUERY, passages(1, 2))) == 2


@pytest.mark.parametrize("key", ["", " ", "two\nlines", "schlüssel", "a\x00b"])
def test_keys_that_no_header_takes(key):
    with pytest.raises(tamis.InvalidInput, match="key") as caught:
        tamis.load("http://127.0.0.1:9/rerank", mode="remote", api="tei", api_key=key)
    assert not key.strip() or key not in str(caught.value)
    with pytest.raises(tamis.InvalidInput, match="api_key is a bytes"):
        tamis.load("http://127.0.0.1:9/rerank", mode="remote", api="tei", api_key=b"x")


# -- where it must not go ----------------------------------------------------------------------------------------------


def test_not_in_the_clear_over_a_network():
    url = "http://192.0.2.7:8080/rerank"
    with pytest.raises(tamis.InvalidInput, match=r"192\.0\.2\.7 over http://.*https://.*allow_http=True"):
        tamis.load(url, mode="remote", api="tei", api_key=KEY)
    tamis.load(url, mode="remote", api="tei", api_key=KEY, allow_http=True).close()
    tamis.load(url, mode="remote", api="tei").close()
    tamis.load(url.replace("http", "https"), mode="remote", api="tei", api_key=KEY).close()


@pytest.mark.parametrize("number", [301, 302, 303, 307, 308])
def test_not_after_a_redirect(number):
    with serving(Tei()) as other, serving(Tei()) as stub, connect(stub) as reranker:
        stub.faults = [status(number, {}, location=other.url + "?token=hidden")]
        with pytest.raises(
            tamis.RemoteError, match=rf"{number}.* on to http://127\.0\.0\.1/rerank; .* load it"
        ) as caught:
            reranker.rank(QUERY, passages(1))
        assert "hidden" not in str(caught.value)
        assert not other.requests
        stub.faults = [status(number, {}), status(number, {}, location="http://[")]
        for _ in range(2):
            with pytest.raises(tamis.RemoteError, match=r"another path|nowhere"):
                reranker.rank(QUERY, passages(1))


def test_not_through_a_proxy_to_this_machine(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with serving(Tei(key=KEY)) as stub, connect(stub) as reranker:
        assert len(reranker.rank(QUERY, passages(1, 2))) == 2


def test_not_in_texts():
    with serving(Tei(key=KEY)) as stub, connect(stub) as reranker:
        reranker.rank(QUERY, passages(1))
        options = LoadOptions(mode="remote", api_key=KEY)
        shown = [repr(reranker), str(reranker.stats()), repr(options), str(options), repr(options.api_key)]
        assert options.api_key == Secret(KEY) == copy.deepcopy(options).api_key
        assert all(KEY not in text for text in shown)
        assert "**********" in shown[2]


def repeats_the_key(handler) -> None:
    send(handler, 401, {"message": f"invalid api token {handler.headers['authorization']}: Bearer {KEY}"})


def dies_with_it(handler) -> None:
    handler.wfile.write(f"HTTP/1.1 {KEY}\r\n\r\n".encode())
    handler.close_connection = True


@pytest.mark.parametrize("fault", [repeats_the_key, dies_with_it, hang_up, die_midway, status(500), status(307, {})])
def test_not_in_errors(fault):
    with serving(Tei()) as stub, connect(stub) as reranker:
        stub.faults = [fault]
        with pytest.raises(tamis.RemoteError) as caught:
            reranker.rank(QUERY, passages(1))
        error = caught.value
        whole = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
        for text in (str(error), repr(error), error.detail, repr(vars(error)), whole):
            assert KEY not in text.replace("/tests/", "")
        assert error.__cause__ is None
        if fault is repeats_the_key:
            assert "invalid api token Bearer **********" in str(error)


def test_passages_are_not_in_errors():
    """FastAPI's refusals repeat what was sent."""
    with serving(Tei()) as stub, connect(stub) as reranker:
        body = {"detail": [{"loc": ["body", "texts"], "msg": "Input should be shorter", "input": passages(1)}]}
        stub.faults = [status(409, body)]
        with pytest.raises(tamis.RemoteError, match="Input should be shorter") as caught:
            reranker.rank(QUERY, passages(1))
        assert "weighs" not in str(caught.value)


def test_not_in_pickles():
    with pytest.raises(TypeError, match="pickles"):
        pickle.dumps(LoadOptions(api_key=KEY))
    lazy = LazyReranker(tamis.load, {"mode": "remote", "api_key": Secret(KEY), "model": "http://127.0.0.1:9/rerank"})
    twin = pickle.loads(pickle.dumps(lazy))
    assert twin.options == {"mode": "remote", "model": "http://127.0.0.1:9/rerank"}
    assert lazy.options["api_key"] == Secret(KEY)


def test_not_in_logs(caplog):
    caplog.set_level(logging.DEBUG)
    with serving(Tei(key=KEY)) as stub, connect(stub, retries=1) as reranker:
        stub.faults = [status(503), None, repeats_the_key]
        reranker.rank(QUERY, passages(1))
        with pytest.raises(tamis.RemoteError):
            reranker.rank(QUERY, passages(1))
    assert "httpcore" in {record.name.split(".")[0] for record in caplog.records}
    assert KEY not in caplog.text
    assert QUERY not in caplog.text
    assert "weighs" not in caplog.text


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority():
    return pytest.importorskip("trustme").CA()


@pytest.fixture
def encrypted(authority):
    """A stub over https."""
    with serving(Tei(key=KEY)) as stub:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        stub.server.socket = context.wrap_socket(stub.server.socket, server_side=True)
        yield stub


def secure(stub) -> str:
    return stub.url.replace("http://", "https://")


def test_certificates_are_checked(encrypted, authority, tmp_path):
    options = {"mode": "remote", "api": "tei", "api_key": KEY}
    with tamis.load(secure(encrypted), **options) as reranker:
        with pytest.raises(tamis.RemoteError, match=r"nobody here vouches for\. Pass verify=") as caught:
            reranker.rank(QUERY, passages(1, 2))
        assert not caught.value.retryable
        assert not encrypted.requests
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for verify in (tmp_path / "ca.pem", str(tmp_path / "ca.pem"), False):
        with tamis.load(secure(encrypted), verify=verify, **options) as reranker:
            assert len(reranker.rank(QUERY, passages(1, 2))) == 2
    with pytest.raises(tamis.InvalidInput, match="is not a file of PEM certificates"):
        tamis.load(secure(encrypted), verify=tmp_path / "no.pem", **options)
    (tmp_path / "bad.pem").write_text("x")
    with pytest.raises(tamis.InvalidInput, match="is not a file of PEM certificates"):
        tamis.load(secure(encrypted), verify=tmp_path / "bad.pem", **options)
