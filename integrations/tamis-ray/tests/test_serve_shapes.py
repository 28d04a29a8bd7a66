"""Every shape gives what the library gives in the process."""

import pytest

from tamis_ray.web.app import create_app
from tamis_ray.web.limits import Limits

QUERY = "how do I read a zip archive?"
TEXTS = ["The weather is fine.", "zipfile reads zip archives.", "", "tarfile reads tar archives.", "Bread and butter."]
LONG = "archive " * 2000


@pytest.fixture(params=["service", "cross_encoder"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
async def client(model, calling):
    async with calling(create_app(model)) as made:
        yield made


async def test_cohere_and_jina(client, model):
    expected = model.reranker.rank(QUERY, TEXTS)
    for path in ("/v1/rerank", "/v2/rerank"):
        answer = (await client.post(path, json={"query": QUERY, "documents": TEXTS})).json()
        assert [row["index"] for row in answer["results"]] == [hit.index for hit in expected]
        assert [row["relevance_score"] for row in answer["results"]] == pytest.approx([hit.score for hit in expected])
        assert [row["logit"] for row in answer["results"]] == pytest.approx([hit.logit for hit in expected], abs=1e-5)
        assert answer["id"]
        assert "document" not in answer["results"][0]
    assert answer["meta"]["api_version"] == {"version": "2"}


async def test_documents_come_as_strings_and_as_objects_and_go_back_on_request(client, model):
    documents = [TEXTS[0], {"text": TEXTS[1], "title": "ignored"}, {"text": ""}]
    asked = {"query": QUERY, "documents": documents, "top_n": 2.0, "return_documents": True, "model": model.names[-1]}
    answer = (await client.post("/v1/rerank", json={**asked, "max_chunks_per_doc": 3})).json()
    assert answer["results"][0]["index"] == 1
    assert len(answer["results"]) == 2
    assert answer["results"][0]["document"] == {"text": TEXTS[1]}
    assert answer["model"] == model.names[-1]
    assert answer["usage"]["total_tokens"] >= 0


async def test_no_number_of_documents_is_all_of_them(client):
    """vLLM's clients send 0 where nobody said how many."""
    for path in ("/v1/rerank", "/v2/rerank"):
        everything = (await client.post(path, json={"query": QUERY, "documents": TEXTS})).json()["results"]
        for top_n in (0, 0.0, None):
            answer = await client.post(path, json={"query": QUERY, "documents": TEXTS, "top_n": top_n})
            assert answer.json()["results"] == everything
    assert len(everything) == len(TEXTS)


async def test_tei(client, model):
    expected = model.reranker.rank(QUERY, TEXTS)
    answer = (await client.post("/rerank", json={"query": QUERY, "texts": TEXTS})).json()
    assert answer == [{"index": hit.index, "score": pytest.approx(hit.score)} for hit in expected]
    answer = (await client.post("/rerank", json={"query": QUERY, "texts": TEXTS, "return_text": True})).json()
    assert [row["text"] for row in answer] == expected.texts()


async def test_raw_values_are_what_a_sigmoid_makes_the_scores_from(client, model):
    from tamis.scores import sigmoid

    expected = [(hit.index, hit.score) for hit in model.reranker.rank(QUERY, TEXTS)]
    tei = await client.post("/rerank", json={"query": QUERY, "texts": TEXTS, "raw_scores": True})
    passages = [{"text": text} for text in TEXTS]
    nim = await client.post("/v1/ranking", json={"query": {"text": QUERY}, "passages": passages})
    vllm = await client.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS, "use_activation": False})
    for rows, field in ((tei.json(), "score"), (nim.json()["rankings"], "logit"),
                        (vllm.json()["results"], "relevance_score")):  # fmt: skip
        assert [(row["index"], pytest.approx(sigmoid(row[field]), abs=1e-6)) for row in rows] == expected


async def test_a_cross_encoders_raw_values_are_its_logits(cross_encoder, calling):
    expected = cross_encoder.reranker.rank(QUERY, TEXTS)
    async with calling(create_app(cross_encoder)) as client:
        answer = (await client.post("/rerank", json={"query": QUERY, "texts": TEXTS, "raw_scores": True})).json()
    assert [row["score"] for row in answer] == pytest.approx([hit.logit for hit in expected], abs=1e-5)


async def test_a_long_passage_is_cut_only_where_that_is_allowed(client):
    nim = {"query": {"text": QUERY}, "passages": [{"text": TEXTS[1]}, {"text": LONG}]}
    refused = await client.post("/v1/ranking", json=nim)  # truncate is NONE, as NVIDIA has it
    assert refused.status_code == 400
    assert "tokens or more" in refused.json()["error"]
    assert "exceeds the maximum" in refused.json()["error"]
    allowed = await client.post("/v1/ranking", json={**nim, "truncate": "END"})
    assert [row["index"] for row in allowed.json()["rankings"]] == [0, 1]
    tei = {"query": QUERY, "texts": [LONG]}
    assert (await client.post("/rerank", json={**tei, "truncate": False})).status_code == 413
    assert (await client.post("/rerank", json=tei)).status_code == 200
    rows = (await client.post("/v1/rerank", json={"query": QUERY, "documents": [LONG, "short"]})).json()["results"]
    assert {row["index"]: row["truncated"] for row in rows} == {0: True, 1: False}


async def test_nothing_to_rank(client):
    assert (await client.post("/v1/rerank", json={"query": QUERY, "documents": []})).json()["results"] == []
    assert (await client.post("/rerank", json={"query": QUERY, "texts": []})).json() == []
    empty = {"query": {"text": QUERY}, "passages": []}
    assert (await client.post("/v1/ranking", json=empty)).json()["rankings"] == []


async def test_a_model_may_have_several_names(service, calling):
    from dataclasses import replace

    async with calling(create_app(replace(service, names=("a", "org/b")))) as client:
        assert [row["id"] for row in (await client.get("/v1/models")).json()["data"]] == ["a", "org/b"]
        for name in ("a", "org/b", "", None):
            answer = await client.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS, "model": name})
            assert answer.json()["model"] == (name or "a")


async def test_another_model_is_not_served_in_its_place(client, model):
    for path, body in (
        ("/v1/rerank", {"query": QUERY, "documents": TEXTS}),
        ("/v2/rerank", {"query": QUERY, "documents": TEXTS}),
        ("/v1/ranking", {"query": {"text": QUERY}, "passages": [{"text": "a"}]}),
    ):
        answer = await client.post(path, json={**body, "model": "rerank-v3.5"})
        assert answer.status_code == 404
        assert model.names[0] in answer.json()["message"]
        assert "rerank-v3.5" not in answer.text


@pytest.mark.parametrize(
    "path, body, place",
    [
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": " \n", "documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "q", "documents": ["a", 1]}, "documents.1"),
        ("/v1/rerank", {"query": "q", "documents": "a"}, "documents"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "top_n": -1}, "top_n"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "top_n": "1"}, "top_n"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "return_documents": 1}, "return_documents"),
        ("/rerank", {"query": "q", "texts": [{"text": "a"}]}, "texts.0"),
        ("/rerank", {"query": "q", "texts": ["a"], "truncation_direction": "left"}, "truncation_direction"),
        ("/v1/ranking", {"query": "q", "passages": []}, "query"),
        ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": "a", "image": "data:"}]}, "passages.0"),
        ("/v1/ranking", {"query": {"text": "q"}, "passages": [], "truncate": "START"}, "truncate"),
    ],
)  # fmt: skip
async def test_wrong_fields_are_named(service, calling, path, body, place):
    async with calling(create_app(service)) as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == 422
    assert place in answer.json()["error"]
    assert answer.json()["error"] == answer.json()["message"]


async def test_what_a_server_says_about_itself(client, model):
    models = (await client.get("/v1/models")).json()["data"]
    assert [row["id"] for row in models] == list(model.names)
    info = (await client.get("/info")).json()
    assert info["model_id"] == model.names[0]
    assert info["max_client_batch_size"] == Limits().passages
    for path in ("/health", "/v1/health/live", "/v1/health/ready"):
        assert (await client.get(path)).status_code == 200


async def test_a_server_whose_device_is_lost_is_alive_and_not_ready(service, calling):
    from dataclasses import replace

    lost = replace(service, lost=True)
    async with calling(create_app(lost)) as client:
        assert (await client.get("/v1/health/live")).status_code == 200
        assert (await client.get("/v1/health/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 503


async def test_metrics_are_prometheus_text(client):
    from prometheus_client.parser import text_string_to_metric_families

    await client.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS})
    await client.post("/rerank", json={"query": QUERY, "texts": TEXTS})  # TEI's, where nothing is cut
    await client.get("/no/such/path")
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {(sample.name, sample.labels.get("path"), sample.labels.get("status")): sample.value
               for family in text_string_to_metric_families(answer.text) for sample in family.samples}  # fmt: skip
    assert samples["tamis_serve_answers_total", "/v1/rerank", "200"] == 1
    assert samples["tamis_serve_answers_total", "other", "404"] == 1
    assert samples["tamis_requests_total", None, None] >= 2
    assert samples["tamis_tokens_total", None, None] > 0
    assert samples["tamis_serve_open_requests", None, None] == 0
    assert "/no/such/path" not in answer.text
