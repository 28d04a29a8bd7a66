"""What ColBERT checkpoints say of themselves, in the three layouts there are; and bge-m3.

- Stanford (colbert-ir/colbertv2.0): architecture `HF_ColBERT`, `artifact.metadata`, the projection `linear.weight` in
  the model's own file. Without lengths: queries of 32 tokens, passages of 180.
- PyLate (lightonai/GTE-ModernColBERT-v1): `modules.json` with a Transformer and Dense layers, the rest in
  `config_sentence_transformers.json`. The same lengths where it names none, as PyLate has it.
- sentence-transformers' MultiVectorEncoder: modules for the mask and the norm too; markers are prompts. Where it names
  no length, a text may have as many tokens as the tokenizer was made for, as sentence-transformers has it.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tamis.checkpoint import Checkpoint, read_json
from tamis.errors import UnknownFamily
from tamis.families.token_heads import Head, bge_m3_head, dense_head, stanford_head

_PYLATE_KEYS = ("query_prefix", "document_prefix", "do_query_expansion", "attend_to_expansion_tokens")


@dataclass(frozen=True, slots=True)
class SideLayout:
    """What the files say of queries, or of passages: see `tamis.scorers.sides.Side`."""

    length: int | None = None
    marker: str = ""
    prompt: str = ""
    skip: Sequence[str] = ()
    first: int = 0


@dataclass(frozen=True, slots=True)
class ColbertLayout:
    """What the files say of the mode.

    Attributes:
        kind: Tells layouts apart.
        head: What is behind the transformer, up to the norm.
        query: How queries are read.
        passage: How passages are read.
        expand: Length to which queries are filled up; 0 for never.
        attend: Whether the model reads what they are filled up with.
        token: What that is; the mask token, or else the end of text, if None.
        mean: Whether MaxSim is a mean.
        pieces: Whether a skip word stands for the first piece that the tokenizer makes of it, as in Stanford's code.
    """

    kind: str
    head: Head
    query: SideLayout
    passage: SideLayout
    expand: int = 0
    attend: bool = False
    token: str | None = None
    mean: bool = False
    pieces: bool = False

    @property
    def unseen(self) -> bool:
        """Whether queries get tokens that the model does not read."""
        return self.expand > 0 and not self.attend


def layout_of(checkpoint: Checkpoint) -> ColbertLayout:
    """Whichever of the three the checkpoint has.

    Raises:
        UnknownFamily: None of them, or one with parts that Tamis does not compute.
    """
    kinds = [module.kind for module in checkpoint.modules]
    if checkpoint.sentence_config.get("model_type") == "MultiVectorEncoder":
        return _multi_vector(checkpoint)
    if "Dense" in kinds:
        return _pylate(checkpoint)
    if checkpoint.architecture == "HF_ColBERT":
        return _stanford(checkpoint)
    raise UnknownFamily(
        f"{checkpoint.name} is no ColBERT checkpoint: it has neither the architecture HF_ColBERT nor a modules.json "
        "with a Dense layer behind the transformer."
    )


def bge_m3_layout(checkpoint: Checkpoint) -> ColbertLayout:
    """bge-m3's: `<s>` is left out, `</s>` counts, and the score is a mean."""
    return ColbertLayout("bge-m3-colbert", bge_m3_head(checkpoint), SideLayout(first=1), SideLayout(first=1), mean=True)


def is_colbert(checkpoint: Checkpoint) -> bool:
    """Whether the files say so; whether it can be computed is for `layout_of` to tell."""
    said = checkpoint.sentence_config
    return (
        said.get("model_type") in ("ColBERT", "MultiVectorEncoder")
        or any(key in said for key in _PYLATE_KEYS)
        or checkpoint.architecture == "HF_ColBERT"
    )


def has_bge_head(checkpoint: Checkpoint) -> bool:
    """Whether it is bge-m3, or has its head."""
    return checkpoint.name == "BAAI/bge-m3" or any(checkpoint.root.glob("colbert_linear.*"))


def length_of(checkpoint: Checkpoint) -> int:
    """Tokens of a text where nothing else says it: what the tokenizer was made for."""
    tokenizer = read_json(checkpoint.body / "tokenizer_config.json") or {}
    lengths = (tokenizer.get("model_max_length"), checkpoint.transformer_config.get("max_seq_length"))
    return min((int(length) for length in lengths if length), default=2**31)


def _stanford(checkpoint: Checkpoint) -> ColbertLayout:
    said: Mapping[str, Any] = read_json(checkpoint.root / "artifact.metadata") or {}
    for key, only in (("similarity", "cosine"), ("interaction", "colbert")):
        if (said.get(key) or only) != only:
            raise UnknownFamily(f"{checkpoint.name} has {key}={said[key]!r} in artifact.metadata; Tamis has {only!r}.")
    length = said.get("query_maxlen") or 32
    return ColbertLayout(
        "colbert",
        stanford_head(checkpoint),
        SideLayout(length, said.get("query_token_id") or "[unused0]"),
        SideLayout(
            said.get("doc_maxlen") or 180,
            said.get("doc_token_id") or "[unused1]",
            skip=string.punctuation if said.get("mask_punctuation", True) else (),
        ),
        expand=length,
        attend=bool(said.get("attend_to_mask_tokens")),
        pieces=True,
    )


def _pylate(checkpoint: Checkpoint) -> ColbertLayout:
    said = checkpoint.sentence_config
    _check_modules(checkpoint, ())
    prompts = said.get("prompts") or {}
    expands = said.get("do_query_expansion") is not False
    length = said.get("query_length") or 32
    skip = said.get("skiplist_words")

    def side(role: str, letter: str, size: int, skip: Sequence[str] = ()) -> SideLayout:
        marker = said.get(f"{role}_prefix")
        marker = f"[{letter}] " if marker is None else marker
        return SideLayout(size, marker, (prompts.get(role) or "").removeprefix(marker), skip)

    return ColbertLayout(
        "colbert",
        dense_head(checkpoint, "torch.nn.Identity"),
        side("query", "Q", length),
        side("document", "D", said.get("document_length") or 180, list(string.punctuation) if skip is None else skip),
        expand=length if expands else 0,
        attend=expands and bool(said.get("attend_to_expansion_tokens")),
    )


def _multi_vector(checkpoint: Checkpoint) -> ColbertLayout:
    mask = _check_modules(checkpoint, ("MultiVectorMask", "Normalize"))
    said = checkpoint.transformer_config
    odd = {
        "transformer_task": said.get("transformer_task", "feature-extraction") != "feature-extraction",
        "modality_config": set(said.get("modality_config") or {"text": 0}) != {"text"},
        "module_output_name": said.get("module_output_name", "token_embeddings") != "token_embeddings",
        "processing_kwargs": bool(said.get("processing_kwargs")),
        "keep_only_token_ids": bool(mask.get("keep_only_token_ids")),
    }
    if any(odd.values()):
        wrong = ", ".join(key for key, found in odd.items() if found)
        raise UnknownFamily(f"{checkpoint.name} is a MultiVectorEncoder with a {wrong} that Tamis does not compute.")
    prompts = checkpoint.sentence_config.get("prompts") or {}
    skip, tasks = mask.get("skiplist_words") or (), mask.get("skiplist_tasks") or ["document"]
    tasks = [tasks] if isinstance(tasks, str) else tasks
    expansion = said.get("query_expansion") or {}
    floor, length = expansion.get("length") or 0, said.get("query_length")
    if expansion.get("strategy") == "fixed":
        length = floor
    elif floor and length:
        length = max(floor, length)

    def side(role: str, size: int | None) -> SideLayout:
        return SideLayout(size, prompt=prompts.get(role) or "", skip=skip if role in tasks else ())

    return ColbertLayout(
        "multi-vector",
        dense_head(checkpoint, "torch.nn.Tanh"),
        side("query", length),
        side("document", said.get("document_length")),
        expand=floor,
        attend=bool(expansion.get("attend")),
        token=expansion.get("token"),
        mean=checkpoint.sentence_config.get("similarity_fn_name") == "meanmaxsim",
    )


def _check_modules(checkpoint: Checkpoint, needed: Sequence[str]) -> Mapping[str, Any]:
    """The mask's config, once it is sure that there is a Transformer, Dense layers, and then `needed` and no more."""
    kinds = [module.kind for module in checkpoint.modules]
    layers = [kind for kind in kinds[1:] if kind == "Dense"]
    rest = kinds[1 + len(layers) :]
    if kinds != ["Transformer", *layers, *rest] or sorted(rest) != sorted(needed):
        raise UnknownFamily(
            f"{checkpoint.name} has the modules {', '.join(kinds)}; Tamis computes Transformer, Dense"
            + "".join(f", {kind}" for kind in needed)
        )
    for module in checkpoint.modules[1:]:
        for key in ("module_input_name", "module_output_name"):
            if (module.config.get(key) or "token_embeddings") != "token_embeddings":  # the mask has neither key
                raise UnknownFamily(f"{module.folder} has {key} {module.config[key]!r}, which is not one a token.")
    return next((module.config for module in checkpoint.modules if module.kind == "MultiVectorMask"), {})
