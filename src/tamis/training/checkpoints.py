"""What a cross-encoder starts from: a checkpoint, perhaps with fewer layers, a smaller vocabulary, or an adapter."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.checkpoint import Checkpoint
from tamis.errors import InvalidInput
from tamis.options import LoadOptions
from tamis.training.adapters import adapt
from tamis.training.processes import first_before_others, is_first
from tamis.training.recipe import EMBEDDED, Recipe
from tamis.training.vocabulary import trim

if TYPE_CHECKING:
    from sentence_transformers.cross_encoder import CrossEncoder

    from tamis.training.cross_encoder import Options

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "hidden_dropout")
HEADS = ("classifier", "score", "head")
EAGER = 256  # tokens

_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "*.jinja", "*.model",
)  # fmt: skip
_OLD_TOKENIZER = ("vocab.txt", "vocab.json", "merges.txt")  # where there is no tokenizer.json


def checkpoint(model: str) -> Checkpoint:
    """The files of what a recipe calls its model."""
    return Checkpoint.embedded() if model == EMBEDDED else Checkpoint.find(model)


def decoders() -> tuple[str, ...]:
    """Model types that are trained as `decoder_cross_encoder` has it."""
    from tamis.engine.architectures import DECODERS

    return DECODERS


def is_decoder(found: Checkpoint) -> bool:
    """Whether a checkpoint is one of them, or NVIDIA's bidirectional Llama."""
    return found.gguf is not None or found.model_type in (*decoders(), "llama_bidirec")


def start(recipe: Recipe, options: Options, texts: Iterable[str], folder: Path) -> CrossEncoder:
    """A CrossEncoder with one label, from an encoder's checkpoint whose head may be new.

    Args:
        recipe: `model` and `seed` are read.
        options: A cross-encoder's.
        texts: What a smaller vocabulary is to serve.
        folder: Where the beginning is written, instead of what is there.

    Raises:
        InvalidInput: It is not as deep as `num_layers`, its vocabulary cannot be cut, or it does not read `max_length`.
        LoadError: It cannot be loaded.
    """
    import torch
    from sentence_transformers.cross_encoder import CrossEncoder
    from transformers import set_seed

    from tamis import transformer
    from tamis.quiet import quiet

    found = checkpoint(recipe.model)
    config = transformer.read_config(found, LoadOptions(num_layers=options.num_layers, attention="padded"))
    fit_config(config, options)
    set_seed(recipe.seed)  # of the head, if it is new
    with first_before_others():
        if is_first():
            _write(found, config, options, texts, emptied(folder))
    # Short sequences with a backward pass: eager attention is 1.12x as fast as SDPA on a CPU.
    short = not torch.cuda.is_available() and options.max_length <= EAGER
    with quiet():
        encoder = CrossEncoder(
            str(folder),
            num_labels=1,
            local_files_only=True,
            model_kwargs={"attn_implementation": "eager"} if short else {},
        )
    limit_length(encoder, options.max_length, Checkpoint(found.name, folder), config)
    if options.lora is not None:
        adapt(encoder, options.lora, [name for name in HEADS if hasattr(encoder[0].model, name)])
    return encoder


def _write(found: Checkpoint, config: Any, options: Options, texts: Iterable[str], folder: Path) -> None:
    import torch

    from tamis import transformer

    copy_tokenizer(found, folder)
    loading = LoadOptions(attention="padded", head="new")
    model, missing = transformer.load_model(
        "AutoModelForSequenceClassification", found, config, loading, torch.float32, stock=True
    )
    transformer.check_missing(model, missing, found, loading)
    if options.vocabulary is not None:
        trim(model, folder / "tokenizer.json", texts, options.vocabulary)
    model.save_pretrained(folder)


def fit_config(config: Any, options: Options) -> None:
    """One label, and the dropout of the options."""
    config.num_labels = 1
    for name in DROPOUTS if options.dropout is not None else ():
        if hasattr(config, name):
            setattr(config, name, options.dropout)


def emptied(folder: Path) -> Path:
    """The folder, with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def copy_tokenizer(found: Checkpoint, folder: Path) -> None:
    """A checkpoint's tokenizer files; those of old kinds only where there is no `tokenizer.json`."""
    old = () if (found.body / "tokenizer.json").is_file() else _OLD_TOKENIZER
    for pattern in (*_TOKENIZER, *old):
        for file in found.body.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def limit_length(model: CrossEncoder, tokens: int, found: Checkpoint, config: Any) -> None:
    """Has a model read this many tokens while it trains; saved, it reads as many as it can.

    Raises:
        InvalidInput: It cannot read so many.
    """
    from tamis import transformer

    longest = transformer.longest_of(found, config, model.tokenizer.model_max_length)
    if not 8 <= tokens <= longest:
        raise InvalidInput(f"[options] max_length = {tokens}; {found.name} reads {longest} tokens at most.")
    model.max_seq_length = longest
    model[0].processing_kwargs = {"text": {"max_length": tokens}}
