"""Loaded models, apps over them, and servers on loopback."""

import socket
import threading
import time
from contextlib import contextmanager

import pytest


@pytest.fixture(scope="session")
def service():
    """The embedded bi-encoder, in float32."""
    from tamis_ray.web.service import Source

    loaded = Source(options={"dtype": "float32"}).load()
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def cross_encoder():
    """tamis-mini, whose scores are sigmoids."""
    from tamis_ray.web.service import Source

    loaded = Source(names=("mini",), options={"mode": "cross-encoder", "dtype": "float32"}).load()
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def rag_service(tmp_path_factory):
    """A tiny Llama with random weights, whose answers are long and mean nothing."""
    import tiny_lm
    from tamis_ray.web.service import Source

    folder = tiny_lm.save(tmp_path_factory.mktemp("llama"), "llama", "ForCausalLM")
    loaded = Source(str(folder), rankrag=True, names=("tiny",), options={"dtype": "float32", "max_length": 2048}).load()
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def calling():
    """`async with calling(app) as client`: an HTTP client whose server is the app, in this process."""
    import httpx

    def make(app, **options):
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", **options)

    return make


@pytest.fixture(scope="session")
def on_loopback():
    """`with on_loopback(app) as url`: a real server, in a thread."""
    import uvicorn

    @contextmanager
    def serving(app, **options):
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, **options))
            thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
            thread.start()
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            try:
                yield f"http://127.0.0.1:{bound.getsockname()[1]}"
            finally:
                server.should_exit = True
                thread.join(30)
        assert not thread.is_alive()

    return serving
