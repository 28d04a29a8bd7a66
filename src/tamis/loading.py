"""`load`: from a checkpoint's name to a `Reranker`, or to an error that says what is in the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.errors import InvalidInput
from tamis.long_documents import LongDocuments
from tamis.options import (
    CACHE_BYTES,
    QUEUE_TOKENS,
    ApiName,
    Attention,
    CacheDtype,
    Head,
    HeadIndex,
    LoadOptions,
    Overload,
    Scale,
    Similarity,
)

if TYPE_CHECKING:
    from tamis.checkpoint import Checkpoint
    from tamis.reranker import Reranker
    from tamis.secret import Secret


def load(
    model: str | Path | None = None,
    *,
    mode: str | None = None,
    family: str | None = None,
    num_layers: int | None = None,
    device: str | Sequence[str] | None = None,
    dtype: str = "auto",
    max_length: int | None = None,
    dim: int | Sequence[int] | None = None,
    layer: int | Sequence[int] | None = None,
    instruction: str | None = None,
    long_documents: LongDocuments = "truncate",
    batch_tokens: int | None = None,
    attention: Attention = "auto",
    revision: str | None = None,
    head: Head = "require",
    trust_remote_code: bool = False,
    cache_bytes: int = CACHE_BYTES,
    score_cache_bytes: int = 0,
    weight: float | None = None,
    overload: Overload = "error",
    queue_tokens: int = QUEUE_TOKENS,
    passage_model: str | Path | None = None,
    similarity: Similarity | None = None,
    cache_dtype: CacheDtype | None = None,
    compress_ratio: int | None = None,
    compress_layers: int | Sequence[int] | None = None,
    head_index: HeadIndex | None = None,
    api: ApiName | None = None,
    api_key: str | Secret | None = None,
    server_model: str | None = None,
    request_passages: int | None = None,
    connections: int | None = None,
    deadline: float | None = None,
    retries: int | None = None,
    verify: bool | str | Path = True,
    allow_http: bool = False,
    scale: Scale | None = None,
) -> Reranker:
    """Loads a reranker. Two loads of one checkpoint share one engine, and ten threads that ask at once load once.

    Args:
        model: A hub id, a local folder or a `.gguf` file; with mode="remote" a URL. None needs no network and no GPU:
            it is tamis-mini beside the embedded all-MiniLM-L6-v2; with `mode="cross-encoder"` tamis-mini alone, which
            comes with Tamis; with `mode="bi-encoder"` all-MiniLM-L6-v2 alone; with `mode="rankrag"` the embedded
            RankRAG model.
        mode: "lexical", "cross-encoder", "causal-lm", "layerwise", "bi-encoder", "fusion", "late-interaction" or
            "rankrag"; read from the checkpoint if None. With "causal-lm" or "rankrag" any chat model ranks; untuned
            ones do it badly. "fusion" adds the similarity of the bi-encoder that the checkpoint's `fusion.json` names
            to a cross-encoder's logit, and the words in common if it says so. "remote" has a server score: see
            docs/remote.md.
        family: One of `tamis.list_families()`; read from the checkpoint if None.
        num_layers: Keep only the first n layers of a deeper model; of a fusion's cross-encoder.
        device: "cpu", "cuda:0", ...; the first CUDA device if there is one, else the CPU. A list loads a copy on each,
            and the one that is free takes the next batch.
        dtype: "float32", "bfloat16" or "float16"; "auto" is bfloat16 on devices that compute in it, else float32.
            Heads, pooling and scores are float32 or wider whatever it is.
        max_length: Tokens of a sequence, special tokens and prompt included: query and passage together where the
            model reads them together (a fusion's cross-encoder too), each text of a bi-encoder, a passage in late
            interaction. The published or the checkpoint's own limit if None.
        dim: bi-encoder, fusion: compare this many leading dimensions, re-normalised (MRL). A growing list is a funnel:
            all passages at the first, the better half at the next, and so on.
        layer: layerwise: the layer whose head scores; deeper ones are not run. A growing list is a cascade: all
            passages at the first, the better half again at the next. Scores of different layers are never mixed:
            those left behind come last, with score 0.
        instruction: What the prompt's task says, or what is put before the query where there is no prompt, instead of
            the checkpoint's own.
        long_documents: What is done with a passage that does not fit: "truncate" reads its beginning and says so on
            the hit, "max_window" scores overlapping windows and takes the best, "error" raises `InputTooLong`.
        batch_tokens: What one batch may cost. If None, 32,768 on a GPU; on a CPU 4,096 where the layers have 30 million
            weights or fewer, else 2,048.
        attention: "auto" packs sequences without padding where the architecture can; "padded" never does.
        revision: Branch, tag or commit of a hub id.
        head: "require" refuses a checkpoint without a trained head; "new" lets one be made, to be trained.
        trust_remote_code: Run Python code that the checkpoint brings along.
        cache_bytes: bi-encoder, fusion and late-interaction: how much memory passage vectors may take between calls; 0
            keeps none.
        score_cache_bytes: How much memory the outcome of whole sequences may take between calls, keyed by a digest
            of their tokens; 0 keeps none.
        weight: This reranker's own share of the device, against others on the same engine: 2 has twice the share of
            1. `tamis.tenant` does the same by name, and goes first.
        overload: What happens to a request for which the queue has no room: "error" raises `Overloaded`, "wait" waits.
        queue_tokens: How many tokens may wait for the device. What is larger by itself comes in where nothing else
            waits. Of a request that has begun to come in nothing is refused: its rest follows as there is room.
        passage_model: bi-encoder: the checkpoint that reads passages, where `model` reads queries only (DPR, Dragon).
            `revision` is of `model`; to pin this one, pass the folder of a snapshot.
        similarity: bi-encoder: "cosine" or "dot"; read from the checkpoint if None.
        cache_dtype: bi-encoder, fusion and late-interaction: what passage vectors are kept in, "float32" or "float16".
        compress_ratio: Lightweight layerwise models: how many of a passage's tokens become one at `compress_layers`;
            without it nothing is compressed.
        compress_layers: Before which layers; 8 if None, as in the published code.
        head_index: Lightweight layerwise models: "reference" reads layers through the first head, as the published
            code does with a single one, "layer" each through its own; "reference" if None.
        api: remote: "nim", "tei", "vllm", "cohere", "jina" or "voyage"; found out from the URL or the server if None.
        api_key: remote: the key that the server wants, as a `str` or pydantic's `SecretStr`. If None, the vendor's own
            variable (`COHERE_API_KEY`, ...) at the vendor's own host, else `TAMIS_API_KEY`.
        server_model: remote: which of the server's models; found out from the server if None and it has but one.
        request_passages: remote: passages of one request; the API's own limit if None. More are split, and merged.
        connections: remote: requests under way at once; 8 if None.
        deadline: remote: seconds that a call may take, all its requests and retries, where it has no `timeout=`; 60 if
            None.
        retries: remote: how often a request that failed is repeated at most; 4 if None.
        verify: remote: a file of certificate authorities instead of the usual ones. False trusts any certificate.
        allow_http: remote: send the key over http:// to another machine.
        scale: remote: what the server's numbers are, "logit", "probability" or "cosine", where it is not what its API
            says: llama.cpp, for one, gives logits under Jina's.

    Raises:
        InvalidInput: An argument is wrong, or means nothing in the mode.
        LoadError: The checkpoint cannot be loaded; its subclasses in `tamis.errors` say why.
        MissingExtra: The embedded model, or what the mode needs, is not installed.
        RemoteError: The server had to be asked, and failed.
        DeadlineExceeded: It did not answer in time.
    """
    from tamis.checkpoint import Checkpoint
    from tamis.families import named, resolve
    from tamis.reranker import Reranker

    options = LoadOptions(
        mode=mode,
        family=family,
        num_layers=num_layers,
        device=_listed(device),
        dtype=dtype,
        max_length=max_length,
        dim=_listed(dim),
        layer=_listed(layer),
        instruction=instruction,
        long_documents=long_documents,
        batch_tokens=batch_tokens,
        attention=attention,
        revision=revision,
        head=head,
        trust_remote_code=trust_remote_code,
        cache_bytes=cache_bytes,
        score_cache_bytes=score_cache_bytes,
        weight=weight,
        overload=overload,
        queue_tokens=queue_tokens,
        passage_model=None if passage_model is None else str(passage_model),
        similarity=similarity,
        cache_dtype=cache_dtype,
        compress_ratio=compress_ratio,
        compress_layers=_listed(compress_layers),
        head_index=head_index,
        api=api,
        api_key=api_key,
        server_model=server_model,
        request_passages=request_passages,
        connections=connections,
        deadline=deadline,
        retries=retries,
        verify=str(verify) if isinstance(verify, Path) else verify,
        allow_http=allow_http,
        scale=scale,
    )
    chosen = named(family, mode).mode if family else mode
    if chosen == "remote" and family in (None, "remote"):
        from tamis.remote.connecting import connect

        return Reranker(connect(model, options))
    if chosen is None and str(model).startswith(("http://", "https://")):
        raise InvalidInput('The model is a URL; pass mode="remote" to have the server score.')
    if chosen == "lexical":
        if model not in (None, "bm25"):
            raise InvalidInput(f"Lexical mode has no checkpoint, but model={str(model)!r}; leave it out.")
        return Reranker(named(family or "bm25").build(None, options))  # type: ignore[arg-type]
    checkpoint = _default(options) if model is None else Checkpoint.find(model, revision)
    return Reranker(resolve(checkpoint, options).build(checkpoint, options))


def _default(options: LoadOptions) -> Checkpoint:
    """What no model means: the model of the mode that needs no network; tamis-mini where none is named."""
    from tamis.checkpoint import Checkpoint

    if "rankrag" in (options.mode, options.family):
        from tamis.rankrag.embedded import embedded

        return embedded()
    if options.mode in ("cross-encoder", "fusion") or (options.mode is None and options.family in (None, "fusion")):
        return Checkpoint.shipped()
    return Checkpoint.embedded()


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
