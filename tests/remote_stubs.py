"""Servers on loopback that speak the published APIs, look at every request closely, and misbehave when told to.

Nothing here knows of the client: shapes are those of the vendors' pages and of TEI's and vLLM's source, as
docs/remote.md names them. A passage's logit is the last word of its text.
"""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

QUERY = "what is it?"
KEY = "sk-very-secret-5c1d"


def passages(*logits: float) -> list[str]:
    return [f"passage number {place} weighs {logit}" for place, logit in enumerate(logits)]


def logit_of(text: str) -> float:
    last = (text.split() or ["-9"])[-1]
    try:
        return float(last)
    except ValueError:
        return 5.0 if "Paris" in text else -6.0


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


class Refusal(Exception):
    def __init__(self, status: int, body: Any, **headers: str) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers


def shape(body: Any, required: dict[str, type], optional: dict[str, type] | None = None) -> None:
    """The fields of a request, all of them, with their types; what is not there must not be sent. Optional ones may be
    null, as Voyage's own client has them."""
    known = {**required, **(optional or {})}
    if not isinstance(body, dict) or not required.keys() <= body.keys() <= known.keys():
        raise Refusal(422, {"detail": [{"loc": ["body"], "msg": "Extra or missing fields", "input": body}]})
    for name, value in body.items():
        if type(value) is not known[name] and (value is not None or name in required):
            raise Refusal(422, {"detail": [{"loc": ["body", name], "msg": "Wrong type", "input": value}]})


class Stub:
    """One server.

    Attributes:
        requests: (method, path, headers, body) of each that arrived.
        violations: What was wrong with them; a fixture asserts that there is nothing.
        faults: Taken one for each POST, before it is answered; None answers as usual.
        gate: While it is clear, POSTs wait.
    """

    path = "/rerank"

    def __init__(self, *, key: str | None = None, most: int = 10**6, longest: int = 10**6, models: int = 1) -> None:
        self.key, self.most, self.longest = key, most, longest
        self.models = [f"acme/reranker-{number}" for number in range(1, models + 1)]
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.violations: list[str] = []
        self.faults: list[Callable[[Any], None] | None] = []
        self.gate = threading.Event()
        self.gate.set()
        self.open = self.peak = self.dropped = 0
        self.connections: list[socket.socket] = []
        self.lock = threading.Lock()
        self.server: ThreadingHTTPServer | None = None
        self.port = 0

    # -- what each API does -----------------------------------------------------------------------------------------

    def get(self, path: str) -> Any:
        raise Refusal(404, {"error": "Not Found"})

    def answer(self, path: str, body: Any) -> tuple[Any, dict[str, str]]:
        raise NotImplementedError

    def texts(self, body: Any) -> list[str]:
        """The passages of a request."""
        return body["documents"]

    # -- the machinery ----------------------------------------------------------------------------------------------

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return self.base + self.path

    @property
    def posts(self) -> list[Any]:
        return [body for method, _, _, body in self.requests if method == "POST"]

    def start(self, port: int = 0) -> Stub:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                stub.handle(self, "GET", None)

            def do_POST(self) -> None:
                stub.handle(self, "POST", self.rfile.read(int(self.headers["content-length"])))

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def process_request(self, request: Any, address: Any) -> None:
                stub.connections.append(request)
                super().process_request(request, address)

            def shutdown_request(self, request: Any) -> None:
                stub.connections.remove(request)
                super().shutdown_request(request)

            def handle_error(self, *_: Any) -> None:
                with stub.lock:
                    stub.dropped += 1  # the client hung up

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        if self.server is not None:
            self.gate.set()
            self.server.shutdown()
            self.server.server_close()
            for connection in list(self.connections):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self.server = None

    def handle(self, handler: Any, method: str, raw: bytes | None) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self.lock:
            self.open += 1
            self.peak = max(self.peak, self.open)
            fault = self.faults.pop(0) if method == "POST" and self.faults else None
        try:
            body = None if raw is None else json.loads(raw.decode("utf-8"))
            self.requests.append((method, handler.path, headers, body))
            if method == "POST":
                assert self.gate.wait(60)
            if fault is not None:
                fault(handler)
                return
            if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
                raise Refusal(401, {"message": f"invalid api token {headers.get('authorization')}"})
            found = (self.get(handler.path), {}) if method == "GET" else self.checked(handler.path, headers, body)
            if callable(found[0]):
                found[0](handler)
            else:
                send(handler, 200, found[0], **found[1])
        except Refusal as refusal:
            send(handler, refusal.status, refusal.body, **refusal.headers)
        finally:
            with self.lock:
                self.open -= 1

    def checked(self, path: str, headers: dict[str, str], body: Any) -> tuple[Any, dict[str, str]]:
        try:
            if path != self.path:
                raise Refusal(404, {"detail": "Not Found"})
            if headers.get("content-type") != "application/json":
                raise Refusal(415, {"error": "Unsupported Media Type"})
            return self.answer(path, body)
        except Refusal as refusal:
            if refusal.status in (404, 415, 422):
                self.violations.append(f"{path}: {refusal.body}")
            raise

    def too_long(self, query: str, texts: list[str]) -> int | None:
        """How long the first pair is that does not fit, a character a token."""
        return next((len(query) + len(text) for text in texts if len(query) + len(text) > self.longest), None)


def send(handler: Any, status: int, body: Any, **headers: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def ranked(texts: list[str], name: str, value: Callable[[float], float], **more: Any) -> list[dict[str, Any]]:
    rows = [{"index": index, name: value(logit_of(text)), **more} for index, text in enumerate(texts)]
    return sorted(rows, key=lambda row: -row[name])


class Nim(Stub):
    path = "/v1/ranking"

    def texts(self, body):
        return [passage["text"] for passage in body["passages"]]

    def get(self, path):
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": name} for name in self.models]}
        if path == "/v1/metadata":
            return {"version": "1.10.0", "modelInfo": [{"shortName": "x"}], "assetInfo": [], "licenseInfo": {}}
        return super().get(path)

    def answer(self, path, body):
        shape(body, {"model": str, "query": dict, "passages": list}, {"truncate": str})
        shape(body["query"], {"text": str})
        for passage in body["passages"]:
            shape(passage, {"text": str})
        if body["model"] not in self.models or body.get("truncate", "NONE") not in ("NONE", "END"):
            raise Refusal(422, {"detail": "Unknown model or truncate"})
        texts = self.texts(body)
        if not 1 <= len(texts) <= min(512, self.most):
            raise Refusal(400, {"error": f"{len(texts)} passages exceed the maximum of {self.most}"})
        length = self.too_long(body["query"]["text"], texts)
        if body.get("truncate", "NONE") == "NONE" and length is not None:
            said = f"Input length {length} exceeds maximum allowed token size {self.longest}"
            raise Refusal(400, {"error": said})
        return {"rankings": ranked(texts, "logit", float)}, {}


class HostedNim(Nim):
    path = "/v1/retrieval/nvidia/reranking"


class Tei(Stub):
    def __init__(self, *, most: int = 32, **options: Any) -> None:
        super().__init__(most=most, **options)

    def texts(self, body):
        return body["texts"]

    def get(self, path):
        if path == "/info":
            return {
                "model_id": self.models[0], "model_sha": None, "model_dtype": "float16",
                "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
                "max_concurrent_requests": 512, "max_input_length": 512, "max_batch_tokens": 16384,
                "max_client_batch_size": self.most, "version": "1.9.0",
            }  # fmt: skip
        return super().get(path)

    def answer(self, path, body):
        optional = {"truncate": bool, "raw_scores": bool, "return_text": bool, "truncation_direction": str}
        shape(body, {"query": str, "texts": list}, optional)
        if not body["texts"]:
            raise Refusal(400, {"error": "`texts` cannot be empty", "error_type": "Empty"})
        if len(body["texts"]) > self.most:
            said = f"batch size {len(body['texts'])} > maximum allowed batch size {self.most}"
            raise Refusal(413, {"error": said, "error_type": "Validation"})
        if not all(body["texts"]):
            raise Refusal(400, {"error": "`inputs` cannot be empty", "error_type": "Validation"})
        length = self.too_long(body["query"], body["texts"])
        if length is not None and not body.get("truncate", False):
            said = f"`inputs` must have less than {self.longest} tokens. Given: {length}"
            raise Refusal(413, {"error": said, "error_type": "Validation"})
        value = float if body.get("raw_scores") else sigmoid
        tokens = sum(len(text) for text in body["texts"])
        return ranked(body["texts"], "score", value), {"x_compute_tokens": str(tokens)}


class Vllm(Stub):
    """`activation`: "honoured", "ignored" (older versions), "identity" (the checkpoint's own)."""

    path = "/v1/rerank"

    def __init__(self, *, activation: str = "honoured", **options: Any) -> None:
        super().__init__(**options)
        self.activation = activation

    def get(self, path):
        if path == "/v1/models":
            rows = [{"id": name, "object": "model", "owned_by": "vllm", "root": name} for name in self.models]
            return {"object": "list", "data": rows}
        if path == "/version":
            return {"version": "0.11.1"}
        return super().get(path)

    def value(self, body):
        if self.activation == "identity" or (self.activation == "honoured" and body.get("use_activation") is False):
            return float
        return sigmoid

    def check(self, query, texts, body):
        if body["model"] not in self.models:
            raise Refusal(404, {"object": "error", "message": "no such model", "type": "NotFoundError", "code": 404})
        length = self.too_long(query, texts)
        if length is not None and body.get("truncate_prompt_tokens") is None:
            said = (
                f"This model's maximum context length is {self.longest} tokens. However, you requested {length} tokens."
            )
            raise Refusal(400, {"object": "error", "message": said, "type": "BadRequestError", "code": 400})

    def answer(self, path, body):
        optional = {"top_n": int, "truncate_prompt_tokens": int, "use_activation": bool, "priority": int}
        shape(body, {"model": str, "query": str, "documents": list}, optional)
        self.check(body["query"], body["documents"], body)
        rows = ranked(body["documents"], "relevance_score", self.value(body))
        for row in rows:
            row["document"] = {"text": body["documents"][row["index"]], "multi_modal": None}
        usage = {"total_tokens": sum(map(len, body["documents"]))}
        return {"id": "rerank-1", "model": body["model"], "usage": usage, "results": rows}, {}


class VllmScore(Vllm):
    path = "/score"

    def texts(self, body):
        return body["text_2"]

    def answer(self, path, body):
        optional = {"truncate_prompt_tokens": int, "use_activation": bool, "priority": int}
        shape(body, {"model": str, "text_1": str, "text_2": list}, optional)
        self.check(body["text_1"], body["text_2"], body)
        rows = [
            {"index": index, "object": "score", "score": self.value(body)(logit_of(text))}
            for index, text in enumerate(body["text_2"])
        ]
        usage = {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0}
        data = {"id": "score-1", "object": "list", "created": 1, "model": body["model"], "data": rows, "usage": usage}
        return data, {}


class Cohere(Stub):
    path = "/v2/rerank"

    def answer(self, path, body):
        shape(body, {"model": str, "query": str, "documents": list}, {"top_n": int, "max_tokens_per_doc": int})
        if len(body["documents"]) > min(self.most, 1000):
            raise Refusal(400, {"message": f"too many documents: the maximum is {min(self.most, 1000)}"})
        meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
        return {"id": "1", "results": ranked(body["documents"], "relevance_score", sigmoid), "meta": meta}, {}


class Jina(Stub):
    path = "/v1/rerank"

    def __init__(self, *, value: Callable[[float], float] = sigmoid, **options: Any) -> None:
        super().__init__(**options)
        self.value = value

    def answer(self, path, body):
        optional = {"top_n": int, "return_documents": bool}
        shape(body, {"model": str, "query": str, "documents": list}, optional)
        rows = ranked(body["documents"], "relevance_score", self.value)
        return {"model": body["model"], "object": "list", "usage": {"total_tokens": 7}, "results": rows}, {}


class Voyage(Stub):
    path = "/v1/rerank"

    def answer(self, path, body):
        optional = {"top_k": int, "return_documents": bool, "truncation": bool}
        shape(body, {"model": str, "query": str, "documents": list}, optional)
        if not all(body["documents"]):
            raise Refusal(400, {"detail": "Each document must have at least 1 character."})
        length = self.too_long(body["query"], body["documents"])
        if length is not None and not body.get("truncation", True):
            raise Refusal(400, {"detail": f"A pair has {length} tokens; the maximum is {self.longest}."})
        rows = ranked(body["documents"], "relevance_score", sigmoid)
        return {"object": "list", "data": rows, "model": body["model"], "usage": {"total_tokens": 7}}, {}


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    stub.start()
    try:
        yield stub
    finally:
        stub.stop()
    assert not stub.violations


# -- faults: each is done to one request instead of answering it -------------------------------------------------------


def status(number: int, body: Any = None, **headers: str) -> Callable[[Any], None]:
    return lambda handler: send(handler, number, {"error": "no"} if body is None else body, **headers)


def raw(data: bytes) -> Callable[[Any], None]:
    """A whole answer with status 200 and this body."""
    return lambda handler: send(handler, 200, data)


def hang_up(handler: Any) -> None:
    """Closes the connection without an answer."""
    handler.close_connection = True


def die_midway(handler: Any) -> None:
    """Promises a body, sends a part of it, and closes the connection."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n[{")
    handler.close_connection = True


def drip(seconds: float) -> Callable[[Any], None]:
    """A byte at a time, for ever."""

    def fault(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        for _ in range(1000):
            handler.wfile.write(b" ")
            time.sleep(seconds)

    return fault


def flood(handler: Any) -> None:
    """A body without an end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
    for _ in range(1000):
        handler.wfile.write(b" " * 65536)
