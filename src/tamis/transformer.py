"""Loads a checkpoint's transformer, mostly by transformers' own classes; refuses what it cannot score honestly."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from tamis import bert_files
from tamis.checkpoint import Checkpoint, read_json
from tamis.engine.architectures import ARCHITECTURES, DECODERS, Architecture
from tamis.engine.attention import registered
from tamis.engine.devices import choose_batch_tokens, choose_devices, choose_dtype
from tamis.engine.engine import Engine
from tamis.engine.loaded import Lease, Loaded
from tamis.errors import CorruptCheckpoint, InvalidInput, MissingExtra, RemoteCode, UnknownFamily, UntrainedHead
from tamis.native import Native
from tamis.native_encoders import native_of
from tamis.options import LoadOptions
from tamis.quiet import quiet
from tamis.tokenizing import TextTokenizer


def architecture_of(config: Any, options: LoadOptions) -> Architecture | None:
    """How to run it packed; None for an architecture that is run padded."""
    return None if options.attention == "padded" else ARCHITECTURES.get(config.model_type)


def read_config(checkpoint: Checkpoint, options: LoadOptions, *, own: bool = False) -> Any:
    """The transformers config, cut to `num_layers`.

    With `own`, a `tamis.bert_files.BertConfig` where Tamis computes the BERT itself: transformers is not imported.

    Raises:
        RemoteCode: The architecture is the checkpoint's own code.
        UnknownFamily: transformers does not know the architecture.
        InvalidInput: It has fewer layers than `num_layers`.
    """
    native = native_of(checkpoint)
    light = bert_files.read_config(checkpoint) if own and native is None else None
    config: Any = _stock_config(checkpoint, options, native) if light is None else light
    if options.num_layers is not None:
        depth = config.num_hidden_layers
        if options.num_layers > depth:
            raise InvalidInput(f"num_layers={options.num_layers}, but {checkpoint.name} has {depth} layers.")
        config.num_hidden_layers = options.num_layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: options.num_layers]
    return config


def _stock_config(checkpoint: Checkpoint, options: LoadOptions, native: Native | None) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    known = checkpoint.model_type in CONFIG_MAPPING or native is not None
    if not known and not options.trust_remote_code and checkpoint.gguf is None:
        if "auto_map" in checkpoint.config:
            raise RemoteCode(
                f"{checkpoint.name} brings Python code of its own ({checkpoint.model_type}), which Tamis does not run. "
                "If you have read it and trust it, pass trust_remote_code=True."
            )
        raise UnknownFamily(
            f"transformers does not know the architecture {checkpoint.model_type!r} of {checkpoint.name}; "
            "it may need a newer release: pip install -U transformers."
        )
    if checkpoint.gguf is not None:
        return _gguf_config(checkpoint)
    if native is not None:
        return native.config(checkpoint.config)
    with quiet():
        return AutoConfig.from_pretrained(checkpoint.body, trust_remote_code=options.trust_remote_code and not known)


def load_model(
    class_name: str,
    checkpoint: Checkpoint,
    config: Any,
    options: LoadOptions,
    dtype: torch.dtype,
    *,
    stock: bool = False,
) -> tuple[Any, set[str]]:
    """A model of one of transformers' classes, in evaluation mode on the host, and the weights that the files lack.

    With `stock` it is transformers' own where transformers has one: training needs what that can do besides.

    Raises:
        PickledWeights: Its weights are pickles only.
        CorruptCheckpoint: A file is damaged, or weights have the wrong shape.
    """
    checkpoint.check_weights()
    known = type(config).__module__.startswith(("transformers.", "tamis."))
    architecture = architecture_of(config, options)
    native = native_of(checkpoint)
    renamed = native.renamed if native is not None else {}
    own = own_class(config, class_name, checkpoint, stock=stock)
    kind = own or _stock_class(class_name)
    patchless = own is None and architecture is not None and architecture.patch is None
    attention = {"attn_implementation": registered()} if patchless else {}
    try:
        with quiet():
            model, info = kind.from_pretrained(
                checkpoint.body,
                config=config,
                dtype=dtype,
                **_weights_of(checkpoint),
                local_files_only=True,
                output_loading_info=True,
                trust_remote_code=options.trust_remote_code and not known,
                **({"key_mapping": dict(renamed)} if renamed else {}),
                **attention,
            )
    except (RuntimeError, OSError) as error:
        raise CorruptCheckpoint(
            f"transformers could not load the weights of {checkpoint.name}: {str(error).strip().splitlines()[0]}"
        ) from error
    model.eval().requires_grad_(False)
    return model, set(info["missing_keys"])


def _stock_class(name: str) -> Any:
    import transformers

    return getattr(transformers, name)


def own_class(config: Any, class_name: str, checkpoint: Checkpoint, *, stock: bool = False) -> Any:
    """Tamis's own instead of a class of transformers, for an architecture that it computes itself; else None."""
    classifies = class_name.endswith("ForSequenceClassification")
    if config.model_type == "jina_bert":
        from tamis.engine import jina_bert

        return jina_bert.JinaBertForSequenceClassification if classifies else jina_bert.JinaBertModel
    if not stock and class_name in ("AutoModel", "AutoModelForSequenceClassification"):
        from tamis.engine import bert

        if bert.computes(config, checkpoint.body) and "auto_map" not in checkpoint.config:
            return bert.BertForSequenceClassification if classifies else bert.BertModel
    return None


def runs_code(checkpoint: Checkpoint, options: LoadOptions) -> bool:
    """Whether Python code that the checkpoint brings is run: the caller trusts it, and nobody else has it."""
    if not options.trust_remote_code or "auto_map" not in checkpoint.config:
        return False
    from transformers import CONFIG_MAPPING

    known = checkpoint.model_type in CONFIG_MAPPING or native_of(checkpoint) is not None
    return not known or "auto_map" in (read_json(checkpoint.body / "tokenizer_config.json") or {})


def check_namesake(checkpoint: Checkpoint) -> None:
    """Raises RemoteCode where transformers would take another network of the same name for the checkpoint's own."""
    own = (checkpoint.config.get("auto_map") or {}).get("AutoModel")
    alibi = checkpoint.config.get("position_embedding_type") == "alibi"  # JinaBERT, which Tamis computes itself
    if own and not alibi and checkpoint.model_type in ("bert", "roberta", "xlm-roberta", *DECODERS):
        raise RemoteCode(
            f"{checkpoint.name} brings a network of its own ({own}) under the name {checkpoint.model_type!r}, which "
            "transformers has another network for. Tamis runs neither; use a checkpoint of a stock architecture."
        )


def check_causal(checkpoint: Checkpoint) -> None:
    """Raises UnknownFamily if the checkpoint is no causal language model, whatever the caller says."""
    if checkpoint.gguf is None and not checkpoint.architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise UnknownFamily(
            f"{checkpoint.name} holds {checkpoint.architecture or 'no architecture'}, which is no causal language "
            "model: it has no next token to read. Leave mode= and family= out, and its files say what it is."
        )


def _weights_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """How transformers is told where the weights are: in safetensors, or in a GGUF file, which is dequantised."""
    if checkpoint.gguf is None:
        return {"use_safetensors": True}
    told: dict[str, Any] = {"gguf_file": checkpoint.gguf}
    try:
        from transformers import GgufConfig
    except ImportError:  # before 5.16 it dequantises whatever it is told
        return told
    return {**told, "quantization_config": GgufConfig(dequantize=True)}


def _gguf_config(checkpoint: Checkpoint) -> Any:
    from transformers import AutoConfig

    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f'{checkpoint.name} is a GGUF file: pip install "tamis[gguf]" to read it.') from error
    try:
        with quiet():
            return AutoConfig.from_pretrained(checkpoint.root, gguf_file=checkpoint.gguf)
    except Exception as error:  # the reader raises whatever it stumbles over in a damaged file
        raise CorruptCheckpoint(f"{checkpoint.name} is not a GGUF file that transformers reads: {error}") from error


def check_missing(model: Any, missing: set[str], checkpoint: Checkpoint, options: LoadOptions) -> None:
    """Raises UntrainedHead if a part of the head would be random, and CorruptCheckpoint if a part of the body would."""
    prefix = f"{model.base_model_prefix}."
    body = {key for key in missing if key.startswith(prefix) and ".pooler." not in key}
    if body:
        raise CorruptCheckpoint(
            f"{checkpoint.name} lacks {len(body)} weights of its body ({min(body)}, ...): it belongs to another "
            "architecture than its config.json says, or it was saved incompletely."
        )
    if missing and options.head == "require":
        raise UntrainedHead(
            f"{checkpoint.name} has no trained scoring head ({', '.join(sorted(missing))}): it would score at random. "
            'Pass mode="bi-encoder" if it is an embedding model, or head="new" to train it as a reranker.'
        )


def load_tokenizer(checkpoint: Checkpoint, options: LoadOptions) -> tuple[TextTokenizer, int]:
    """The tokenizer, and the length that it was made for (a huge number if it does not say).

    Raises:
        CorruptCheckpoint: Its files are missing or damaged.
    """
    tokenizer: Any = bert_files.read_tokenizer(checkpoint)
    auto = _stock_class("AutoTokenizer") if tokenizer is None else None
    try:
        if auto is not None:
            with quiet():
                tokenizer = auto.from_pretrained(
                    checkpoint.body,
                    local_files_only=True,
                    trust_remote_code=runs_code(checkpoint, options),  # no None, or it asks on a terminal
                    **({"gguf_file": checkpoint.gguf} if checkpoint.gguf else {}),
                )
        core = TextTokenizer(tokenizer, lowercase=bool(checkpoint.transformer_config.get("do_lower_case")))
    except UnknownFamily:
        raise
    except Exception as error:  # tokenizers raises bare Exception for a file that it cannot parse
        raise CorruptCheckpoint(
            f"The tokenizer files of {checkpoint.name} are missing or damaged "
            f"({type(error).__name__}: {str(error).strip()[:200]}). Fetch the model again."
        ) from error
    return core, int(tokenizer.model_max_length)


def longest_of(checkpoint: Checkpoint, config: Any, tokenizer_length: int) -> int:
    """Tokens that the checkpoint reads at most: the least of what its files say.

    Architectures with absolute positions cannot read more than they have; a rotary one says what it was trained on.
    """
    limits = [tokenizer_length, checkpoint.transformer_config.get("max_seq_length")]
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        architecture = ARCHITECTURES.get(config.model_type)
        limits.append(positions - (architecture.first_position(config) if architecture else 0))
    return min(limit for limit in limits if limit)


def chosen_length(options: LoadOptions, longest: int, name: str, published: int | None = None) -> int:
    """`max_length`; or the limit that was published with the model, within the checkpoint's own.

    Raises:
        InvalidInput: `max_length` is above that limit.
    """
    if options.max_length is not None and options.max_length > longest:
        raise InvalidInput(f"max_length={options.max_length}, but {name} reads {longest} tokens at most.")
    return options.max_length or min(longest, published or longest)


def lease(
    mode: str, checkpoint: Checkpoint, options: LoadOptions, load: Callable[..., Loaded], *details: Hashable
) -> Lease:
    """A share of the checkpoint in memory, loaded if nobody has it in the same settings.

    Only what makes a difference tells two loads apart: an option that means nothing to this mode or this checkpoint
    loads no second copy.

    Args:
        mode: Tells apart what the modes make of one checkpoint.
        checkpoint: Its files.
        options: As the caller gave them.
        load: Called with the checkpoint, the options, the devices and the dtype.
        details: Whatever else changes what `load` makes; `cache_bytes` where it keeps vectors.
    """
    if options.head == "new":
        with suppress(UntrainedHead):  # where the head is there, it is the model that everybody else has
            return lease(mode, checkpoint, replace(options, head="require"), load, *details)
    devices = choose_devices(options.device)
    dtype = choose_dtype(options.dtype, devices[0])
    key = (
        mode, checkpoint.fingerprint(), devices, dtype, options.num_layers, options.attention, options.head,
        options.batch_tokens or choose_batch_tokens(devices[0], checkpoint.config), runs_code(checkpoint, options),
        options.score_cache_bytes, options.queue_tokens, details,
    )  # fmt: skip
    make = partial(load, checkpoint, options, devices, dtype)
    return Lease(key, make, weight=options.weight, wait=options.overload == "wait")


def engine(runners: Sequence[Any], device: torch.device, checkpoint: Checkpoint, options: LoadOptions) -> Engine:
    """The engine over copies of one model."""
    return Engine(
        runners,
        options.batch_tokens or choose_batch_tokens(device, checkpoint.config),
        checkpoint.name,
        queue_tokens=options.queue_tokens,
        score_bytes=options.score_cache_bytes,
    )


def facts(checkpoint: Checkpoint, devices: Sequence[torch.device], dtype: torch.dtype) -> Mapping[str, Any]:
    """What `stats()` says of the model."""
    return {
        "architecture": checkpoint.architecture,
        "device": ", ".join(map(str, devices)),
        "dtype": str(dtype).removeprefix("torch."),
    }
