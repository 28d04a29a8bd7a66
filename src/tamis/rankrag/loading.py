"""`load_rankrag`: a causal language model, and perhaps a LoRA adapter, as a `RankRAG`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.checkpoint import Checkpoint
from tamis.errors import InvalidInput, UnknownFamily
from tamis.long_documents import LongDocuments
from tamis.options import QUEUE_TOKENS, LoadOptions, Overload
from tamis.rankrag.adapters import find_adapter, merged
from tamis.rankrag.embedded import adapter_of, embedded, is_embedded
from tamis.rankrag.labels import ends_of, forms_of, likeliest, wording_of
from tamis.rankrag.options import PASSAGE_BYTES, RankRAGOptions, Style
from tamis.rankrag.prompts import Best, Tokenised, Wording
from tamis.scorers.base import Scorer

if TYPE_CHECKING:
    from tamis.rankrag.rag import RankRAG
    from tamis.scorers.rankrag import RankRAGScorer, Relevance
    from tamis.secret import Secret


def load_rankrag(
    model: str | Path | None = None,
    *,
    adapter: str | Path | None = None,
    style: Style = "auto",
    wording: Wording | None = None,
    best_passage: Best | None = None,
    relevance: Relevance = "probability",
    task: str = "short",
    num_layers: int | None = None,
    device: str | None = None,
    dtype: str = "auto",
    max_length: int | None = None,
    long_documents: LongDocuments = "truncate",
    batch_tokens: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    passage_bytes: int = PASSAGE_BYTES,
    host_bytes: int = 0,
    passage_dir: str | Path | None = None,
    disk_bytes: int = 8 << 30,
    weight: float | None = None,
    overload: Overload = "error",
    queue_tokens: int = QUEUE_TOKENS,
    server: str | None = None,
    server_model: str | None = None,
    api_key: str | Secret | None = None,
    request_passages: int | None = None,
    connections: int | None = None,
    deadline: float | None = None,
    retries: int | None = None,
    verify: bool | str | Path = True,
    allow_http: bool = False,
) -> RankRAG:
    """Loads a RankRAG model: one language model that ranks passages and answers from the best.

    Untuned models rank badly: the paper itself measures a chat model with this prompt below the retriever whose
    passages it was given. Tune one, or load one that was.

    Args:
        model: A causal language model: a hub id, a folder or a `.gguf` file. None is the embedded one, SmolLM2-135M
            with an adapter of ours.
        adapter: A LoRA adapter (PEFT) for it, merged at load: a hub id or a folder. "none" leaves the embedded model as
            it was before ours.
        style: "plain" is the paper's own form, "chat" the same words in the model's chat template; "auto" is the
            latter where there is one.
        wording: Instead of both; see `tamis.rankrag.prompts.Wording`.
        best_passage: Where the best of the passages that an answer is written from stands in the prompt: "first", as in
            the paper, or "last", beside the question, which the embedded model answers better from. None is as the
            wording has it, "first" if it does not say; for the embedded model, where no wording is passed, "last".
        relevance: "probability" is the paper's p(True) over the whole vocabulary, "margin" True less False.
        task: Whose prompts are used where a call names no task: "short", "full", "claim" or "conversation".
        num_layers: As in `tamis.load`, and so are those that follow.
        device: One device.
        dtype: "float32", "bfloat16", "float16" or "auto".
        max_length: Tokens of a prompt and its answer together.
        long_documents: What is done with a passage that does not fit a ranking prompt.
        batch_tokens: What one batch may cost.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run Python code that the checkpoint brings along.
        passage_bytes: How much of the device's memory passages' keys and values may take between calls.
        host_bytes: How much pinned memory of the host may take what leaves a GPU.
        passage_dir: A folder for what leaves the device, instead of `host_bytes`, and at the last `close` for all of
            it; later processes find it again.
        disk_bytes: How much of it.
        weight: This object's own share of the device.
        overload: "error" or "wait", where the queue is full.
        queue_tokens: How many tokens may wait.
        server: The URL of a server that runs the model and speaks OpenAI's /v1/completions with logprobs: vLLM,
            SGLang, llama.cpp's. Of `model` only the tokenizer is loaded here. See docs/remote.md.
        server_model: server: the model's name there; found out if it has but one.
        api_key: server: as in `tamis.load`, and so are those that follow.
        request_passages: server: prompts of one request; 16 if None.
        connections: server: requests under way at once.
        deadline: server: seconds that a call without `timeout=` may take.
        retries: server: repetitions of a failed request.
        verify: server: a file of certificate authorities.
        allow_http: server: send the key over http:// to another machine.

    Raises:
        InvalidInput: An argument is wrong, or the adapter belongs to another model.
        LoadError: The checkpoint cannot be loaded, or is no causal language model.
        MissingExtra: The embedded model, gguf, peft or httpx is not installed.
        RemoteError: The server failed, or gives no log-probabilities.
    """
    from tamis.rankrag.loaded import LoadedRankRAG
    from tamis.rankrag.rag import RankRAG

    options = LoadOptions(
        mode="rankrag",
        num_layers=num_layers,
        device=device,
        dtype=dtype,
        max_length=max_length,
        long_documents=long_documents,
        batch_tokens=batch_tokens,
        revision=revision,
        trust_remote_code=trust_remote_code,
        weight=weight,
        overload=overload,
        queue_tokens=queue_tokens,
        server_model=server_model,
        api_key=api_key,
        request_passages=request_passages,
        connections=connections,
        deadline=deadline,
        retries=retries,
        verify=str(verify) if isinstance(verify, Path) else verify,
        allow_http=allow_http,
    )
    more = RankRAGOptions(
        adapter=None if adapter is None else str(adapter),
        style=style,
        wording=wording,
        best_passage=best_passage,
        relevance=relevance,
        task=task,
        passage_bytes=passage_bytes,
        host_bytes=host_bytes,
        passage_dir=None if passage_dir is None else str(passage_dir),
        disk_bytes=disk_bytes,
        server=server,
    )
    if server is not None:
        from tamis.rankrag.serving import serve

        return serve(model, server, options, more)
    checkpoint = embedded() if model is None else Checkpoint.find(model, revision)
    scorer = make_scorer(checkpoint, options, more)
    tokenizer = scorer.lease.loaded.tokenizer
    loaded = scorer.lease.loaded
    assert isinstance(loaded, LoadedRankRAG)  # noqa: S101 - `_load` made it
    return RankRAG(scorer, tokenizer.decode, loaded.ends)


def build(checkpoint: Checkpoint, options: LoadOptions) -> Scorer:
    """The ranking half, for `tamis.load(mode="rankrag")`."""
    return make_scorer(checkpoint, options, RankRAGOptions())


def make_scorer(checkpoint: Checkpoint, options: LoadOptions, more: RankRAGOptions) -> RankRAGScorer:
    """The scorer over the shared engine of the checkpoint and its adapter."""
    from tamis import transformer
    from tamis.scorers.rankrag import RankRAGScorer

    options.allow("rankrag")
    if options.attention == "padded":
        raise InvalidInput(
            'attention="padded" means nothing in rankrag mode, where the keys and values of passages are kept apart; '
            "leave it out."
        )
    transformer.check_causal(checkpoint)
    if more.best_passage is None and more.wording is None and is_embedded(checkpoint):
        more = replace(more, best_passage="last")
    named = adapter_of(checkpoint, more.adapter)
    adapter = None if named is None else find_adapter(named)
    details = (
        None if adapter is None else adapter.fingerprint(), more.style, repr(more.wording), more.best_passage,
        more.passage_bytes, more.host_bytes, more.passage_dir, more.disk_bytes,
    )  # fmt: skip
    lease = transformer.lease("rankrag", checkpoint, options, partial(_load, more, adapter), *details)

    def scorer(lease: Any) -> RankRAGScorer:
        return RankRAGScorer(
            lease,
            model=checkpoint.name,
            prompts=lease.loaded.prompts,
            task=more.task,
            max_length=transformer.chosen_length(options, lease.loaded.longest, checkpoint.name),
            relevance=more.relevance,
            long_documents=options.long_documents,
        )

    return lease.hold(scorer)


def _load(
    more: RankRAGOptions,
    adapter: Checkpoint | None,
    checkpoint: Checkpoint,
    options: LoadOptions,
    devices: Sequence[Any],
    dtype: Any,
) -> Any:
    import torch

    from tamis import transformer
    from tamis.cache import ByteLRU
    from tamis.engine.language_model import LanguageModel
    from tamis.engine.passages import Disk, HostMemory, PassageCache, Tier
    from tamis.rankrag.loaded import LoadedRankRAG

    if len(devices) != 1:
        raise InvalidInput("A RankRAG model runs on one device, since its passages' keys and values are there.")
    config = transformer.read_config(checkpoint, options)
    architecture = transformer.architecture_of(config, options)
    if architecture is None or not architecture.decoder:
        raise UnknownFamily(
            f"{checkpoint.name} is a {config.model_type}, whose keys and values Tamis cannot keep, so that it cannot "
            'be a RankRAG model here. mode="causal-lm" ranks with it.'
        )
    tokenizer, tokenizer_length = transformer.load_tokenizer(checkpoint, options)
    longest = transformer.longest_of(checkpoint, config, tokenizer_length)
    prompts = Tokenised(wording_of(more, tokenizer, checkpoint.name), tokenizer)
    model, missing = transformer.load_model("AutoModelForCausalLM", checkpoint, config, options, dtype)
    transformer.check_missing(model, missing, checkpoint, options)
    if adapter is not None:
        model = merged(model, adapter, checkpoint.name)
    behind: Tier | None = None
    if more.passage_dir is not None:
        tuned = None if adapter is None else adapter.fingerprint()
        name = repr((checkpoint.fingerprint(), tuned, str(dtype), options.num_layers))
        try:
            behind = Disk(Path(more.passage_dir).expanduser(), more.disk_bytes, name)
        except OSError as error:
            raise InvalidInput(
                f"passage_dir={more.passage_dir!r} is no folder to write in: {error.strerror}."
            ) from error
    elif more.host_bytes:
        behind = HostMemory(more.host_bytes)
    passages = PassageCache(more.passage_bytes, devices[0], behind)
    forms = forms_of(prompts, tokenizer, checkpoint.name)
    with torch.inference_mode():
        runner = LanguageModel(model.to(devices[0]), architecture, tokenizer.pad_id or 0, forms[0], passages)
        runner.backbone.check(config.get_text_config().vocab_size, longest)
        if not runner.backbone.packed:
            raise UnknownFamily(f"{checkpoint.name} does not run packed, which a RankRAG model must; see the warning.")
        runner.backbone.tune(config.get_text_config().vocab_size, longest, first_only=False)
        runner.set_labels(likeliest(runner, prompts, forms, checkpoint.name))
    engine = transformer.engine([runner], devices[0], checkpoint, options)
    ends = ends_of(model, tokenizer)
    return LoadedRankRAG(
        engine, tokenizer, longest, 3, ByteLRU(0), transformer.facts(checkpoint, devices, dtype),
        extra=runner.stats, prompts=prompts, ends=ends,
    )  # fmt: skip
