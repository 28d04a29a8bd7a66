"""Real clients against a real server: ours in every shape, Cohere's, NVIDIA's for LangChain."""

import asyncio
import gc
import warnings

import httpx
import pytest

import tamis
from tamis.secret import Secret
from tamis_ray.web.app import create_app
from tamis_ray.web.limits import Limits

KEY = "c0ffee-" * 5
QUERY = "how do I read a zip archive?"
TEXTS = [
    "The weather is fine.", "zipfile reads zip archives.", "tarfile reads tar archives.", "Bread and butter.",
    "An archive keeps what would be lost.", "", "ünï© \u4e2d\U0001f600 zip", "zip " * 30,
]  # fmt: skip
LONG = "an archive of archives " * 700
DOORS = {
    "nim": ("/v1/ranking", {"api": "nim"}),
    "nim, found": ("/v1/ranking", {}),
    "tei": ("/rerank", {"api": "tei"}),
    "found": ("", {}),
    "vllm": ("/v1/rerank", {"api": "vllm"}),
    "cohere": ("/v2/rerank", {"api": "cohere"}),
    "jina": ("/v1/rerank", {"api": "jina"}),
}


@pytest.fixture(scope="module", params=["service", "cross_encoder"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def url(model, on_loopback):
    with on_loopback(create_app(model, limits=Limits(passages=20))) as served:
        yield served


@pytest.fixture
def http():
    """Cohere's client leaves its own open."""
    with httpx.Client(trust_env=False, timeout=60) as client:
        yield client


@pytest.mark.parametrize("door", DOORS)
def test_our_client_in_every_shape(url, model, door):
    path, options = DOORS[door]
    if options.get("api") in ("cohere", "jina"):
        options = {**options, "server_model": model.names[0]}
    expected = model.reranker.rank(QUERY, TEXTS)
    with tamis.load(url + path, mode="remote", **options) as remote:
        ranking = remote.rank(QUERY, TEXTS)
        assert [hit.index for hit in ranking] == [hit.index for hit in expected]
        assert [hit.score for hit in ranking] == pytest.approx([hit.score for hit in expected], abs=1e-5)
        assert asyncio.run(remote.arank(QUERY, TEXTS, top_n=2)).texts() == expected.texts()[:2]
        assert len(remote.rank(QUERY, [])) == 0


@pytest.mark.parametrize("door", ["nim", "tei"])
def test_our_client_learns_which_passages_were_cut(url, model, door):
    path, options = DOORS[door]
    with tamis.load(url + path, mode="remote", **options) as remote:
        ranking = remote.rank(QUERY, [*TEXTS, LONG])
        assert {hit.index for hit in ranking if hit.truncated} == {len(TEXTS)}
        expected = model.reranker.score(QUERY, [*TEXTS, LONG])
        assert remote.score(QUERY, [*TEXTS, LONG]) == pytest.approx(expected, abs=1e-5)
    with tamis.load(url + path, mode="remote", long_documents="error", **options) as strict:
        with pytest.raises(tamis.InputTooLong):
            strict.rank(QUERY, [*TEXTS, LONG])
        assert len(strict.rank(QUERY, TEXTS)) == len(TEXTS)


@pytest.mark.parametrize("door", ["nim", "tei", "found"])
def test_our_client_splits_what_is_too_much_for_one_request(url, model, door):
    path, options = DOORS[door]
    texts = [f"{text} {number}" for number in range(6) for text in TEXTS]
    with tamis.load(url + path, mode="remote", **options) as remote:
        assert remote.score(QUERY, texts) == pytest.approx(model.reranker.score(QUERY, texts), abs=1e-5)


def test_our_client_with_and_without_the_key(model, on_loopback):
    with on_loopback(create_app(model, key=Secret(KEY))) as url:
        with tamis.load(url, mode="remote", api_key=KEY) as remote:
            assert remote.rank(QUERY, TEXTS)[0].index == model.reranker.rank(QUERY, TEXTS)[0].index
        with tamis.load(f"{url}/rerank", mode="remote", api="tei", api_key="w" * 40) as remote:
            with pytest.raises(tamis.RemoteError) as refused:
                remote.rank(QUERY, TEXTS)
            assert refused.value.status == 401
            assert KEY not in str(refused.value)


def test_our_client_waits_where_it_is_told_to(service, on_loopback):
    """More callers than the server takes: each is answered in the end, those in between with 429."""
    expected = service.reranker.score(QUERY, TEXTS)
    app = create_app(service, limits=Limits(requests=1))

    async def many(remote):
        return await asyncio.gather(*(remote.ascore(QUERY, TEXTS) for _ in range(12)))

    with on_loopback(app) as url, tamis.load(f"{url}/rerank", mode="remote", api="tei", retries=50) as remote:
        answers = asyncio.run(many(remote))
        assert remote.stats()["http_retries"] > 0
    assert len(answers) == 12
    for scores in answers:
        assert scores == pytest.approx(expected, abs=1e-5)


def test_cohere(url, model, http):
    cohere = pytest.importorskip("cohere")
    expected = model.reranker.rank(QUERY, TEXTS)
    client = cohere.ClientV2(api_key="none", base_url=url, httpx_client=http)
    answer = client.rerank(model=model.names[0], query=QUERY, documents=TEXTS, top_n=3)
    assert [row.index for row in answer.results] == [hit.index for hit in expected][:3]
    assert [row.relevance_score for row in answer.results] == pytest.approx([hit.score for hit in expected][:3])
    with pytest.raises(cohere.NotFoundError):
        client.rerank(model="rerank-v3.5", query=QUERY, documents=TEXTS)


def test_coheres_first_version(url, model, http):
    cohere = pytest.importorskip("cohere")
    expected = model.reranker.rank(QUERY, TEXTS)
    client = cohere.Client(api_key="none", base_url=url, httpx_client=http)
    answer = client.rerank(model=model.names[0], query=QUERY, documents=TEXTS, return_documents=True)
    assert [row.document.text for row in answer.results] == expected.texts()


async def test_nvidias_client_for_langchain(url, model):
    nvidia = pytest.importorskip("langchain_nvidia_ai_endpoints")
    from langchain_core.documents import Document

    expected = model.reranker.rank(QUERY, TEXTS)
    rerank = nvidia.NVIDIARerank(base_url=f"{url}/v1", model=model.names[0], top_n=4, truncate="END", api_key="none")
    documents = [Document(text) for text in TEXTS]
    for found in (
        await asyncio.to_thread(rerank.compress_documents, documents, QUERY),
        await rerank.acompress_documents(documents, QUERY),
    ):
        assert [document.page_content for document in found] == expected.texts()[:4]
    assert model.names[0] in [served.id for served in rerank.available_models]
    del rerank
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its connections open
        gc.collect()
