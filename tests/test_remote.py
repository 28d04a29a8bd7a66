"""`mode="remote"` against a stub of each API: what is sent, what is made of the answer, how a server is found out."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tamis
from remote_stubs import (
    KEY,
    QUERY,
    Cohere,
    HostedNim,
    Jina,
    Nim,
    Stub,
    Tei,
    Vllm,
    VllmScore,
    Voyage,
    passages,
    serving,
    sigmoid,
    status,
)
from tamis.remote.apis import APIS
from tamis.remote.batches import groups
from tamis.scores import from_cosine, logit, order
from tamis.scores import sigmoid as exact_sigmoid

MODEL = {"server_model": "acme/reranker-1"}
KINDS = {
    "nim": (Nim, {"api": "nim"}),
    "hosted nim": (HostedNim, {"api": "nim", **MODEL, "api_key": KEY}),
    "tei": (Tei, {"api": "tei"}),
    "vllm": (Vllm, {"api": "vllm"}),
    "vllm score": (VllmScore, {"api": "vllm"}),
    "cohere": (Cohere, {"api": "cohere", **MODEL, "api_key": KEY}),
    "jina": (Jina, {"api": "jina", **MODEL, "api_key": KEY}),
    "voyage": (Voyage, {"api": "voyage", **MODEL, "api_key": KEY}),
}
LOGITS = (-1.5, 4.25, 0.0, -7.0, 2.5)


@pytest.fixture(params=KINDS)
def served(request):
    """A stub, and a reranker over it."""
    kind, options = KINDS[request.param]
    with serving(kind(key=options.get("api_key"))) as stub, connect(stub, **options) as reranker:
        stub.requests.clear()
        yield stub, reranker


def connect(stub: Stub, **options) -> tamis.Reranker:
    return tamis.load(stub.url, mode="remote", **options)


def test_ranks_by_every_api(served):
    stub, reranker = served
    given = passages(*LOGITS)
    ranking = reranker.rank(QUERY, given)
    assert [hit.index for hit in ranking] == [1, 4, 2, 0, 3]
    assert [hit.logit for hit in ranking] == pytest.approx([4.25, 2.5, 0.0, -1.5, -7.0], abs=1e-9)
    assert [hit.score for hit in ranking] == pytest.approx([sigmoid(x) for x in (4.25, 2.5, 0.0, -1.5, -7.0)])
    assert {type(hit.score) for hit in ranking} | {type(hit.logit) for hit in ranking} == {float}
    assert ranking.texts()[0] is given[1]
    assert not any(hit.truncated for hit in ranking)
    assert asyncio.run(reranker.arank(QUERY, given)) == ranking
    assert [sorted(stub.texts(body)) for body in stub.posts] == [sorted(given)] * 2
    assert stub.requests[0][2]["user-agent"] == f"tamis/{tamis.__version__}"


def test_logits_and_scores_keep_the_callers_order(served):
    _, reranker = served
    assert reranker.logits(QUERY, passages(*LOGITS)) == pytest.approx(LOGITS, abs=1e-9)
    assert reranker.score(QUERY, passages(*LOGITS)) == pytest.approx([sigmoid(logit) for logit in LOGITS])


def test_cuts_are_the_policys(served):
    stub, reranker = served
    given = passages(*LOGITS)
    assert [hit.index for hit in reranker.rank(QUERY, given, top_n=2)] == [1, 4]
    ranking = reranker.rank(QUERY, given, min_score=0.5)
    assert [hit.index for hit in ranking] == [1, 4, 2]
    assert ranking.usage.below_min_score == 2
    counted = reranker.rank(QUERY, given, max_tokens=10, tokenizer=lambda text: len(text.split()))
    assert [hit.index for hit in counted] == [1, 4]
    assert not any({"top_n", "top_k"} & body.keys() for body in stub.posts), "the server would leave some out"


def test_nothing_to_rank_asks_nobody(served):
    stub, reranker = served
    assert len(reranker.rank(QUERY, [])) == 0
    assert not stub.requests


def test_texts_as_they_come(served):
    """Empty ones, which TEI and Voyage refuse; lone surrogates, which no JSON can carry; everything else as it is."""
    stub, reranker = served
    given = ["", "ünï© \u4e2d\U0001f600 \x00 2", "half \ud83d 1"]
    assert reranker.logits(QUERY, given) == pytest.approx([-9.0, 2.0, 1.0], abs=1e-9)
    assert stub.texts(stub.posts[0]) == [" ", given[1], "half \ufffd 1"]


def test_ties_keep_the_callers_order(served):
    _, reranker = served
    assert [hit.index for hit in reranker.rank(QUERY, passages(1, 2, 1, 2, 1))] == [1, 3, 0, 2, 4]


def test_tokens_that_the_server_counts(served):
    stub, reranker = served
    used = reranker.rank(QUERY, passages(1, 2)).usage.tokens
    characters = sum(map(len, passages(1, 2)))
    expected = {Tei: characters, Vllm: characters, VllmScore: 3, Jina: 7, Voyage: 7}.get(type(stub), 0)
    assert used == expected


# -- splitting and merging ---------------------------------------------------------------------------------------------


def test_a_long_list_is_split_and_merged(served):
    stub, _ = served
    logits = [((7 * place) % 83) / 8 for place in range(83)]
    with connect(stub, **{**KINDS_OF[type(stub)], "request_passages": 10, "connections": 3}) as reranker:
        stub.requests.clear()
        assert reranker.logits(QUERY, passages(*logits)) == pytest.approx(logits, abs=1e-9)
    sizes = [len(stub.texts(body)) for body in stub.posts]
    assert len(sizes) == 9
    assert sum(sizes) == 83
    assert max(sizes) <= 10
    assert stub.peak <= 3


KINDS_OF = dict(KINDS.values())


@pytest.mark.parametrize(
    ("kind", "limit"), [("nim", 512), ("tei", 32), ("cohere", 1000), ("jina", 64), ("voyage", 1000)]
)
def test_limits_are_the_apis_own(kind, limit):
    made, options = KINDS[kind]
    with serving(made(key=options.get("api_key"))) as stub, connect(stub, **options) as reranker:
        reranker.logits(QUERY, passages(*range(limit)))
        reranker.logits(QUERY, passages(*range(limit + 1)))
        sizes = [len(stub.texts(body)) for body in stub.posts]
    assert sizes[0] == limit
    assert sorted(sizes[1:]) == [(limit + 1) // 2, limit + 1 - (limit + 1) // 2]


@given(count=st.integers(1, 400), limit=st.integers(1, 50))
def test_groups_cover_everything_once(count, limit):
    made = groups(count, limit)
    assert [index for group in made for index in group] == list(range(count))
    assert len(made) == -(-count // limit)
    assert max(map(len, made)) - min(map(len, made)) <= 1


@pytest.mark.parametrize("kind", ["nim", "tei", "cohere"])
def test_a_server_with_a_smaller_limit_gets_smaller_requests(kind):
    made, options = KINDS[kind]
    logits = [((7 * place) % 31) / 8 for place in range(31)]
    with serving(made(key=options.get("api_key"), most=5)) as stub, connect(stub, **options) as reranker:
        assert reranker.logits(QUERY, passages(*logits)) == pytest.approx(logits, abs=1e-9)
        assert min(len(stub.texts(body)) for body in stub.posts) > 1


# -- passages that are too long ----------------------------------------------------------------------------------------

LONG = 200
ASKED = ("nim", "tei", "vllm", "vllm score", "voyage")  # they cut only what they are asked to


def long_at(*places):
    return [("long " * 100 if place in places else "") + text for place, text in enumerate(passages(*range(20)))]


@pytest.mark.parametrize("kind", ASKED)
def test_one_long_passage_costs_nobody_else_his_score(kind):
    made, options = KINDS[kind]
    with serving(made(key=options.get("api_key"), longest=LONG)) as stub, connect(stub, **options) as reranker:
        stub.requests.clear()
        ranking = reranker.rank(QUERY, long_at(3, 11))
        assert [hit.index for hit in ranking] == list(reversed(range(20)))
        assert sorted(hit.index for hit in ranking if hit.truncated) == [3, 11]
        assert len(stub.posts) < 16, "the long ones stand together when a refused request is halved"


@pytest.mark.parametrize("kind", ASKED)
def test_the_error_names_the_passage(kind):
    made, options = KINDS[kind]
    options = {**options, "long_documents": "error"}
    with serving(made(key=options.get("api_key"), longest=LONG)) as stub, connect(stub, **options) as reranker:
        with pytest.raises(tamis.InputTooLong, match=r"^Passage 11 is too long .*\b200\b.*long_documents=") as caught:
            reranker.rank(QUERY, long_at(11))
        assert isinstance(caught.value, tamis.InvalidInput)
        assert len(reranker.rank(QUERY, long_at())) == 20
        asked = [body.get("truncate", body.get("truncation")) for body in stub.posts]
        assert not {"END", True} & set(asked)


@pytest.mark.parametrize("kind", ["cohere", "jina"])
def test_who_cuts_silently_cannot_promise_an_error(kind):
    made, options = KINDS[kind]
    with serving(made()) as stub, pytest.raises(tamis.InvalidInput, match="does not say which"):
        connect(stub, **{**options, "long_documents": "error"})


def test_a_question_that_is_too_long():
    with serving(Nim(longest=40)) as stub, connect(stub, api="nim") as reranker:
        stub.answer, usual = lambda path, body: usual(path, {**body, "truncate": "NONE"}), stub.answer
        with pytest.raises(tamis.InputTooLong, match=r"Cutting it does not help"):
            reranker.rank("long " * 20, passages(1, 2))


# -- scales ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Vllm, VllmScore])
@pytest.mark.parametrize(("activation", "far"), [("honoured", 40.0), ("ignored", 15.0), ("identity", 40.0)])
def test_vllms_numbers_are_measured(kind, activation, far):
    """What they are depends on its version and on the checkpoint, and no answer says so."""
    with serving(kind(activation=activation)) as stub, connect(stub, api="vllm") as reranker:
        assert reranker.logits(QUERY, passages(far, far + 1, -3)) == pytest.approx([far, far + 1, -3], abs=1e-6)
        assert reranker.score(QUERY, passages(1.0)) == pytest.approx([sigmoid(1.0)])
        assert len(stub.posts) == 4


def test_vllms_numbers_that_mean_nothing():
    with serving(Vllm()) as stub:
        stub.value = lambda body: float if "use_activation" in body else (lambda logit: logit / 7)
        with pytest.raises(tamis.RemoteError, match=r"neither logits nor their sigmoid; pass scale="):
            connect(stub, api="vllm")
        with connect(stub, api="vllm", scale="logit") as reranker:
            assert reranker.logits(QUERY, passages(3.5)) == [3.5]


def test_logits_under_jinas_name_are_told_apart_or_refused():
    """llama.cpp's server does that."""
    with serving(Jina(value=float)) as stub:
        message = r"scores passage \d 4\.25, which is no probability; pass scale="
        with connect(stub, api="jina", **MODEL) as reranker, pytest.raises(tamis.RemoteError, match=message):
            reranker.rank(QUERY, passages(4.25, 0.5))
        with connect(stub, api="jina", scale="logit", **MODEL) as reranker:
            assert reranker.logits(QUERY, passages(4.25, 0.5)) == [4.25, 0.5]


def test_jina_v3_scores_by_a_cosine():
    with serving(Jina(value=float)) as stub, connect(stub, api="jina", server_model="jina-reranker-v3") as reranker:
        ranking = reranker.rank(QUERY, passages(-0.25, 0.5))
        assert [(hit.logit, hit.score) for hit in ranking] == [(0.5, 0.75), (-0.25, 0.375)]
        assert [hit.score for hit in ranking] == [from_cosine(hit.logit) for hit in ranking]
        with pytest.raises(tamis.RemoteError, match="no cosine"):
            reranker.rank(QUERY, passages(1.5))


def test_probabilities_at_the_ends_of_their_range_stay_finite_and_in_order():
    given = [0.0, 5e-324, 1e-300, 0.5, 1 - 2**-53, 1.0, 1.0]
    with serving(Jina(value=float)) as stub, connect(stub, api="jina", **MODEL) as reranker:
        ranking = reranker.rank(QUERY, passages(*given))
    assert [hit.index for hit in ranking] == [5, 6, 4, 3, 2, 1, 0]
    assert np.isfinite([hit.logit for hit in ranking]).all()
    assert [hit.score for hit in ranking] == pytest.approx([1.0, 1.0, 1.0, 0.5, 1e-300, 5e-324, 0.0])


@given(st.lists(st.floats(0, 1), min_size=1))
def test_the_logit_of_a_probability_keeps_the_order(given):
    logits = np.array([logit(probability) for probability in given])
    assert np.isfinite(logits).all()
    ranked = [given[place] for place in order(logits)]
    assert ranked == pytest.approx(sorted(given, reverse=True), rel=1e-12)
    assert [exact_sigmoid(one) for one in logits] == pytest.approx(given, rel=1e-12, abs=1e-15)


# -- finding out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "url"), [
    (Nim, "/v1/ranking"), (Nim, ""), (Nim, "/"), (Nim, "/v1"), (Tei, "/rerank"), (Tei, ""), (Tei, "/v1/"),
    (Vllm, "/v1/rerank"), (Vllm, ""), (Vllm, "/v1"), (VllmScore, "/score"),
])  # fmt: skip
def test_the_api_and_the_model_are_found_out(kind, url):
    with serving(kind()) as stub, tamis.load(stub.base + url, mode="remote") as reranker:
        assert [hit.index for hit in reranker.rank(QUERY, passages(*LOGITS))] == [1, 4, 2, 0, 3]
        assert reranker.model == (stub.url if kind is Tei else "acme/reranker-1")
        assert reranker.mode == "remote"


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
@pytest.mark.parametrize("kind", ["nim", "tei", "vllm", "cohere", "jina", "voyage"])
def test_a_base_url_gets_the_apis_own_path(kind, end):
    """Vendors' own base URLs end in /v1, where no API ranks."""
    made, options = KINDS[kind]
    with serving(made(key=options.get("api_key"))) as stub:
        with tamis.load(stub.base + end, mode="remote", **options) as reranker:
            assert reranker.logits(QUERY, passages(*LOGITS)) == pytest.approx(LOGITS, abs=1e-9)
        assert {path for method, path, _, _ in stub.requests if method == "POST"} == {made.path}


@pytest.mark.parametrize("path", ["/v2", "/gateway/v1", "/v1/v1"])
def test_any_other_path_is_taken_as_it_is(path):
    stub = Nim()
    stub.path = path
    with serving(stub), connect(stub, api="nim", **MODEL) as reranker:
        assert reranker.logits(QUERY, passages(*LOGITS)) == pytest.approx(LOGITS, abs=1e-9)


@pytest.mark.parametrize("kind", ["hosted nim", "tei", "cohere"])
def test_an_unknown_path_is_told_the_apis_own(kind):
    made, options = KINDS[kind]
    stub = made(key=options.get("api_key"))
    stub.faults = [status(404)]
    with serving(stub), tamis.load(stub.base + "/elsewhere", mode="remote", **options) as reranker:
        own = APIS[options["api"]].path
        with pytest.raises(tamis.RemoteError, match=f"answered 404.* such as https://host{own}\\."):
            reranker.rank(QUERY, passages(1))


def test_the_servers_own_limit_is_taken():
    with serving(Tei(most=64)) as stub, tamis.load(stub.base, mode="remote") as reranker:
        reranker.logits(QUERY, passages(*range(64)))
        assert len(stub.posts) == 1


def test_nothing_is_asked_that_the_caller_has_said():
    with serving(Nim()) as stub, connect(stub, api="nim", **MODEL) as reranker:
        assert not stub.requests
        assert reranker.model == "acme/reranker-1"
        reranker.rank(QUERY, ["x 1"])
        assert len(stub.requests) == 1


@pytest.mark.parametrize("kind", [Cohere, Jina, Voyage])
def test_a_server_that_does_not_say(kind):
    with serving(kind()) as stub, pytest.raises(tamis.InvalidInput, match=r"does not say which API.* api="):
        tamis.load(stub.url, mode="remote", **MODEL)


def test_several_models():
    with serving(Nim(models=3)) as stub:
        with pytest.raises(tamis.InvalidInput, match=r"3 models, acme/reranker-1, .*server_model="):
            connect(stub)
        with connect(stub, server_model="acme/reranker-2") as reranker:
            reranker.rank(QUERY, ["x 1"])
            assert stub.posts[0]["model"] == "acme/reranker-2"


@pytest.mark.parametrize(("options", "message"), [
    ({"api": "tei", "device": "cpu"}, "device= means nothing in remote mode"),
    ({"api": "tei", "dtype": "float16"}, "dtype= means nothing in remote mode"),
    ({"api": "tei", "cache_bytes": 1}, "cache_bytes= means nothing"),
    ({"api": "tei", "instruction": "x"}, "instruction= means nothing"),
    ({"api": "tei", "trust_remote_code": True}, "trust_remote_code= means nothing"),
    ({"api": "tei", "weight": 2.0}, "weight= means nothing"),
    ({"api": "tei", "long_documents": "max_window"}, "needs the model's tokenizer"),
    ({"api": "tei", "server_model": "x"}, "leave server_model= out"),
    ({"api": "voyage"}, "pass server_model="),
    ({"api": "openai"}, "api='openai'; pass 'nim' or 'tei'"),
    ({"api": "tei", "deadline": 0}, "deadline=0"),
    ({"api": "tei", "deadline": float("nan")}, "deadline=nan"),
    ({"api": "tei", "retries": -1}, "retries=-1"),
    ({"api": "tei", "connections": 0}, "connections=0"),
    ({"api": "tei", "request_passages": 1.5}, "request_passages=1.5"),
    ({"api": "tei", "scale": "raw"}, "scale='raw'"),
    ({"api": "tei", "verify": ""}, "verify=''"),
    ({"api": "tei", "allow_http": 1}, "allow_http=1"),
    ({"api": "tei", "family": "bm25"}, "mode='remote'"),
])  # fmt: skip
def test_arguments_that_are_wrong(options, message):
    with pytest.raises(tamis.InvalidInput, match=message):
        tamis.load("http://127.0.0.1:9/rerank", mode="remote", **options)


@pytest.mark.parametrize(("url", "message"), [
    (None, "no model is none"), ("BAAI/bge-reranker-v2-m3", "takes a server's URL"), ("ftp://host/x", "URL"),
    ("http://", "URL"), ("http://host:99999/x", "URL"), ("https://user:pass@host/rerank", "a user or a password"),
    ("https://host/rerank#x", "fragment"), ("https://host/re rank", "space"), ("https://host/a\x7fb", "control"),
    ("http://[::1/rerank", "URL"),
])  # fmt: skip
def test_urls_that_are_none(url, message):
    with pytest.raises(tamis.InvalidInput, match=message) as caught:
        tamis.load(url, mode="remote", api="tei")
    assert "pass@" not in str(caught.value)


def test_a_url_without_the_mode():
    with pytest.raises(tamis.InvalidInput, match='mode="remote"'):
        tamis.load("https://host/v1/ranking")


def test_the_servers_options_mean_nothing_to_a_checkpoint(classifier):
    for options in ({"api": "nim"}, {"api_key": "k"}, {"retries": 1}, {"verify": False}, {"allow_http": True}):
        [name] = options
        with pytest.raises(tamis.InvalidInput, match=f"{name}= means nothing in"):
            tamis.load(classifier(), **options)
        with pytest.raises(tamis.InvalidInput, match=f"{name}= means nothing in lexical mode"):
            tamis.load(mode="lexical", **options)


def test_the_family_is_the_mode():
    with serving(Tei()) as stub, tamis.load(stub.url, family="remote", api="tei") as reranker:
        assert reranker.mode == "remote"


def test_stats():
    with serving(Tei()) as stub, connect(stub, api="tei") as reranker:
        reranker.rank(QUERY, passages(*range(40)))
        stats = reranker.stats()
    assert stats["model"] == stub.url
    assert (stats["requests"], stats["http_requests"], stats["http_retries"], stats["http_failures"]) == (1, 2, 0, 0)
    assert stats["http_open"] == 0
    assert 0 < stats["http_latency_p50"] <= stats["latency_p99"]


def test_neither_torch_nor_transformers_is_loaded():
    with serving(Tei()) as stub:
        program = (
            "import sys, tamis\n"
            f"with tamis.load({stub.base!r}, mode='remote') as reranker:\n"
            "    print(len(reranker.rank('q', ['a 1', 'b 2'])))\n"
            "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


def test_the_command(capsys, tmp_path):
    from tamis.cli import main

    (tmp_path / "lines.txt").write_text("a -2\nb 3\n")
    with serving(Nim()) as stub:
        arguments = ["--mode", "remote", "--model", stub.url, "--api", "nim", "--server-model", "acme/reranker-1"]
        assert main(["rank", "--query", "q", "--json", *arguments, str(tmp_path / "lines.txt")]) == 0
    assert '"model": "acme/reranker-1"' in capsys.readouterr().out
