"""What each API takes and gives. Shapes and limits: the vendors' pages, TEI's and vLLM's source; see docs/remote.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tamis.options import Scale

Body: TypeAlias = "dict[str, Any]"
Texts: TypeAlias = Sequence[str]


@dataclass(frozen=True, slots=True)
class Api:
    """One way to ask a server for scores.

    Attributes:
        name: What `tamis.load(..., api=)` takes.
        path: Where servers have it; for a URL without a path, or with `/v1` alone.
        limit: Passages of a request, unless the caller says otherwise.
        body: From (model, query, passages, whether the server may cut) to what is sent.
        rows: The field that holds the answer's rows; None where the answer is the list itself.
        value: The field of a row that holds its number.
        scale: What that number is, unless the caller says otherwise; vLLM's is measured, see `tamis.remote.scales`.
        cuts: "asked": it cuts long passages only if it is asked to, and refuses them otherwise. "silently": it
            always does, and does not say which.
        models: "listed": it wants a model's name, and /v1/models says which. "named": only the caller can say. "one":
            it has one model and asks for no name.
        hosts: The vendor's own, with all below them.
        variables: Where the vendor's users keep their keys; read for the vendor's own hosts only.
        url: The vendor's own address, if there is one for all models.
        cosines: Exact names of models whose number is a cosine, whatever the others' are.
    """

    name: str
    path: str
    limit: int
    body: Callable[[str, str, Texts, bool], Body]
    rows: str | None
    value: str
    scale: Scale
    cuts: Literal["asked", "silently"]
    models: Literal["listed", "named", "one"]
    hosts: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    url: str | None = None
    cosines: frozenset[str] = frozenset()


def _nim(model: str, query: str, passages: Texts, cut: bool) -> Body:
    return {
        "model": model,
        "query": {"text": query},
        "passages": [{"text": passage} for passage in passages],
        "truncate": "END" if cut else "NONE",
    }


def _tei(model: str, query: str, passages: Texts, cut: bool) -> Body:
    return {"query": query, "texts": list(passages), "truncate": cut, "raw_scores": True, "return_text": False}


def _vllm(model: str, query: str, passages: Texts, cut: bool) -> Body:
    return {"model": model, "query": query, "documents": list(passages), **_vllm_options(cut)}


def _vllm_score(model: str, query: str, passages: Texts, cut: bool) -> Body:
    return {"model": model, "text_1": query, "text_2": list(passages), **_vllm_options(cut)}


def _vllm_options(cut: bool) -> Body:
    """-1 is the model's own length; without it a long pair is refused."""
    return {"use_activation": False, **({"truncate_prompt_tokens": -1} if cut else {})}


def _cohere(model: str, query: str, passages: Texts, cut: bool) -> Body:
    return {"model": model, "query": query, "documents": list(passages)}


def _jina(model: str, query: str, passages: Texts, cut: bool) -> Body:
    return {"model": model, "query": query, "documents": list(passages), "return_documents": False}


def _voyage(model: str, query: str, passages: Texts, cut: bool) -> Body:
    return {
        "model": model, "query": query, "documents": list(passages), "truncation": cut, "return_documents": False,
    }  # fmt: skip


APIS = {
    api.name: api
    for api in (
        # At most 512 passages a request (NIM 2.0's page).
        Api(
            "nim", "/v1/ranking", 512, _nim, "rankings", "logit", "logit",
            "asked", "listed", ("api.nvidia.com",), ("NVIDIA_API_KEY",),
        ),
        # max_client_batch_size is 32 unless the server was started with another, which /info tells. The key of a
        # Hugging Face endpoint is the user's token; a TEI elsewhere has no business with it.
        Api(
            "tei", "/rerank", 32, _tei, None, "score", "logit",
            "asked", "one", ("endpoints.huggingface.cloud",), ("HF_TOKEN",),
        ),
        # No limit of its own: the server cuts its batches itself. 256 keeps bodies small and requests concurrent.
        Api(
            "vllm", "/v1/rerank", 256, _vllm, "results", "relevance_score", "logit",
            "asked", "listed",
        ),
        # 10,000 at most, no more than 1,000 recommended; longer passages than max_tokens_per_doc, 4096, are cut.
        Api(
            "cohere", "/v2/rerank", 1000, _cohere, "results", "relevance_score", "probability",
            "silently", "named", ("api.cohere.com", "api.cohere.ai"), ("COHERE_API_KEY", "CO_API_KEY"),
            "https://api.cohere.com/v2/rerank",
        ),
        # jina-reranker-v3 reads 64 at a time, and scores by a cosine.
        Api(
            "jina", "/v1/rerank", 64, _jina, "results", "relevance_score", "probability",
            "silently", "named", ("api.jina.ai",), ("JINA_API_KEY",), "https://api.jina.ai/v1/rerank",
            frozenset({"jina-reranker-v3", "jina-reranker-v3.5"}),
        ),
        Api(
            "voyage", "/v1/rerank", 1000, _voyage, "data", "relevance_score", "probability",
            "asked", "named", ("api.voyageai.com",), ("VOYAGE_API_KEY",), "https://api.voyageai.com/v1/rerank",
        ),
    )
}  # fmt: skip

VLLM_SCORE = Api(
    "vllm", "/score", 256, _vllm_score, "data", "score", "logit", "asked", "listed"
)  # the same server's other door


def tokens_of(answer: Any, header: str | None) -> int:
    """How many tokens the server says it read; 0 where it does not: NIM is silent, TEI has a header for it.

    >>> tokens_of({"usage": {"total_tokens": 7}}, None), tokens_of([], "12"), tokens_of({"meta": None}, None)
    (7, 12, 0)
    """
    fields = answer if isinstance(answer, dict) else {}
    usage, meta = fields.get("usage"), fields.get("meta")
    if isinstance(usage, dict):
        found = usage.get("total_tokens")
    elif isinstance(meta, dict) and isinstance(meta.get("tokens"), dict):
        found = meta["tokens"].get("input_tokens")
    else:
        found = int(header) if header is not None and header.isdecimal() and len(header) < 16 else 0
    return int(found) if isinstance(found, int | float) and 0 <= found < 2**53 else 0
