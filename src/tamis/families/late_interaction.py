"""Late interaction: ColBERT checkpoints in the three layouts there are, and bge-m3's ColBERT head.

- Stanford (colbert-ir/colbertv2.0): architecture `HF_ColBERT`, `artifact.metadata`, the projection `linear.weight` in
  the model's own file. Without lengths: queries of 32 tokens, passages of 180.
- PyLate (lightonai/GTE-ModernColBERT-v1): `modules.json` with a Transformer and Dense layers, the rest in
  `config_sentence_transformers.json`. The same lengths where it names none, as PyLate has it.
- sentence-transformers' MultiVectorEncoder: modules for the mask and the norm too; markers are prompts. Where it names
  no length, a text may have as many tokens as the tokenizer was made for, as sentence-transformers has it.

A word of a skip list that the vocabulary does not have skips nothing, as in sentence-transformers; PyLate then drops
every unknown token. The marker is inserted as an id, so that no text has to spell it.
"""

from __future__ import annotations

import logging
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tamis.checkpoint import Checkpoint, read_json
from tamis.errors import CorruptCheckpoint, UnknownFamily
from tamis.families import Family
from tamis.families.token_heads import Head, bge_m3_head, dense_head, stanford_head
from tamis.options import LoadOptions
from tamis.scorers.base import Scorer

logger = logging.getLogger(__name__)

_PYLATE_KEYS = ("query_prefix", "document_prefix", "do_query_expansion", "attend_to_expansion_tokens")


@dataclass(frozen=True, slots=True)
class _Side:
    """What the files say of queries, or of passages: see `tamis.scorers.late_interaction.Side`."""

    length: int | None = None
    marker: str = ""
    prompt: str = ""
    skip: Sequence[str] = ()
    first: int = 0


@dataclass(frozen=True, slots=True)
class _Recipe:
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
    query: _Side
    passage: _Side
    expand: int = 0
    attend: bool = False
    token: str | None = None
    mean: bool = False
    pieces: bool = False

    @property
    def unseen(self) -> bool:
        """Whether queries get tokens that the model does not read."""
        return self.expand > 0 and not self.attend


def build(checkpoint: Checkpoint, options: LoadOptions) -> Scorer:
    """A ColBERT checkpoint, in whichever layout it has."""
    return _build(_recipe(checkpoint), checkpoint, options)


def build_bge_m3(checkpoint: Checkpoint, options: LoadOptions) -> Scorer:
    """bge-m3 by its token vectors: `<s>` is left out, `</s>` counts, and the score is a mean."""
    head = bge_m3_head(checkpoint)
    recipe = _Recipe("bge-m3-colbert", head, _Side(first=1), _Side(first=1), mean=True)
    return _build(recipe, checkpoint, options)


def _build(recipe: _Recipe, checkpoint: Checkpoint, options: LoadOptions) -> Scorer:
    from tamis import transformer
    from tamis.scorers.late_interaction import Expansion, LateInteractionScorer

    options.allow("late-interaction", "cache_dtype")
    transformer.check_namesake(checkpoint)
    if recipe.unseen and checkpoint.model_type == "deberta-v2":
        raise UnknownFamily(
            f"{checkpoint.name} expands queries by tokens that DeBERTa does not attend to; DeBERTa then computes them "
            "from the padding around, so that no score would be the same twice."
        )

    def scorer(lease: Any) -> Scorer:
        tokenizer = lease.loaded.tokenizer
        longest = min(lease.loaded.longest, _length_of(checkpoint))

        def within(length: int | None) -> int:
            return min(length or longest, int(lease.loaded.longest))

        token = tokenizer.entry(recipe.token) if recipe.token else tokenizer.mask_id or tokenizer.eos_id
        if recipe.expand and token is None:
            raise UnknownFamily(f"{checkpoint.name} expands queries, and its tokenizer has no token to do it with.")
        passage_length = transformer.chosen_length(
            options, lease.loaded.longest, checkpoint.name, within(recipe.passage.length)
        )
        return LateInteractionScorer(
            lease,
            model=checkpoint.name,
            query=_side(recipe, recipe.query, tokenizer, within(recipe.query.length), checkpoint.name),
            passage=_side(recipe, recipe.passage, tokenizer, passage_length, checkpoint.name),
            expansion=Expansion(token, within(recipe.expand), recipe.attend) if recipe.expand else None,
            mean=recipe.mean,
            long_documents=options.long_documents,
            cache_dtype=options.cache_dtype or "float32",
        )

    load = partial(_load, recipe=recipe)
    lease = transformer.lease("late-interaction", checkpoint, options, load, recipe.kind, recipe.unseen)
    return transformer.held(lease, scorer)


def _load(checkpoint: Checkpoint, options: LoadOptions, devices: Sequence[Any], dtype: Any, *, recipe: _Recipe) -> Any:
    import torch
    from transformers import AutoModel

    from tamis import transformer
    from tamis.cache import ByteLRU
    from tamis.engine.architectures import ARCHITECTURES
    from tamis.engine.backbone import Backbone, Readable, probe
    from tamis.engine.loaded import Loaded

    config = transformer.read_config(checkpoint, options)
    tokenizer, tokenizer_length = transformer.load_tokenizer(checkpoint, options)
    known = ARCHITECTURES.get(config.model_type)
    positions = getattr(config, "max_position_embeddings", None) or tokenizer_length
    longest = positions - (known.first_position(config) if known else 0)
    architecture = transformer.architecture_of(config, options)

    def runner(device: Any) -> Readable:
        model, missing = transformer.load_model(AutoModel, checkpoint, config, options, dtype)
        lacking = sorted(key for key in missing if "pooler." not in key)
        if lacking:
            raise CorruptCheckpoint(
                f"{checkpoint.name} lacks {len(lacking)} weights of its encoder ({lacking[0]}, ...): it belongs to "
                "another architecture than its config.json says, or it was saved incompletely."
            )
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # a head for other tasks
        encoder = Backbone(model.to(device), architecture, tokenizer.pad_id or 0)
        with torch.inference_mode():
            encoder.check(config.vocab_size, longest)
            if recipe.unseen and encoder.packed:
                _check_unseen(encoder, config, longest)
            encoder.tune(config.vocab_size, longest, first_only=False)
        layers = recipe.head(device)

        def read(hidden: Any, layout: Any) -> Any:
            x = hidden.float()
            for layer in layers:
                x = layer(x)
            return torch.nn.functional.normalize(x, dim=-1)

        return Readable(encoder, read, per_token=True)

    runners = [runner(device) for device in devices]
    width = runners[0].run([probe(8, config.vocab_size, config)])[0].shape[1]
    engine = transformer.engine(runners, devices[0], checkpoint, options)
    facts = transformer.facts(checkpoint, devices, dtype)
    return Loaded(engine, tokenizer, longest, width, ByteLRU(options.cache_bytes), facts)


def _check_unseen(encoder: Any, config: Any, longest: int) -> None:
    """Packs no more if tokens that are not attended to come out otherwise than padded: some attention has no such."""
    from tamis.engine.backbone import TOLERANCE, probe, relative_difference

    lengths = [min(length, longest) for length in (19, 150)]
    batch = [replace(probe(length, config.vocab_size, config), unseen=length // 2) for length in lengths]
    together, layout = encoder(batch)
    difference = max(
        relative_difference(together[span], encoder.one_by_row([tokens]))
        for tokens, span in zip(batch, layout.spans, strict=True)
    )
    if not difference <= TOLERANCE[encoder.dtype]:  # NaN included
        encoder.packed = False
        logger.info("%s runs padded: its attention reads every token, packed.", type(encoder.body).__name__)


def _side(recipe: _Recipe, side: _Side, tokenizer: Any, length: int, name: str) -> Any:
    """One side over the checkpoint's tokenizer.

    Raises:
        UnknownFamily: The marker is not in the vocabulary, or has no place; or nothing would be left of some texts.
    """
    from tamis.scorers.late_interaction import Side

    special = tokenizer.template(1)
    marker = tokenizer.entry(side.marker) if side.marker else None
    if side.marker and (marker is None or len(special.parts[0]) != 1):
        why = "not in its vocabulary" if marker is None else "put behind the first token, and it begins with none"
        raise UnknownFamily(f"{name} marks texts by {side.marker!r}, which is {why}; no score would be right.")
    if recipe.pieces:
        skip = {int(ids[0]) for ids in tokenizer.encode(side.skip) if len(ids)} - {tokenizer.unk_id}
    else:
        skip = {i for word in side.skip if (i := tokenizer.entry(word)) is not None}
    kept = [i for part in special.parts for i in part][side.first :]
    if not set(kept) - skip:
        raise UnknownFamily(f"{name} keeps no special token of a text, so that nothing would be left of an empty one.")
    made = Side(
        tokenizer, length=length, marker=() if marker is None else (marker,), prompt=side.prompt, skip=skip,
        first=side.first,
    )  # fmt: skip
    if made.room < 1:
        raise UnknownFamily(f"{name} reads {length} tokens of a text, and its marker and special tokens take them all.")
    return made


# -- what the files say ------------------------------------------------------------------------------------------------


def _recipe(checkpoint: Checkpoint) -> _Recipe:
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


def _stanford(checkpoint: Checkpoint) -> _Recipe:
    said: Mapping[str, Any] = read_json(checkpoint.root / "artifact.metadata") or {}
    for key, only in (("similarity", "cosine"), ("interaction", "colbert")):
        if (said.get(key) or only) != only:
            raise UnknownFamily(f"{checkpoint.name} has {key}={said[key]!r} in artifact.metadata; Tamis has {only!r}.")
    length = said.get("query_maxlen") or 32
    return _Recipe(
        "colbert",
        stanford_head(checkpoint),
        _Side(length, said.get("query_token_id") or "[unused0]"),
        _Side(
            said.get("doc_maxlen") or 180,
            said.get("doc_token_id") or "[unused1]",
            skip=string.punctuation if said.get("mask_punctuation", True) else (),
        ),
        expand=length,
        attend=bool(said.get("attend_to_mask_tokens")),
        pieces=True,
    )


def _pylate(checkpoint: Checkpoint) -> _Recipe:
    said = checkpoint.sentence_config
    _check_modules(checkpoint, ())
    prompts = said.get("prompts") or {}
    expands = said.get("do_query_expansion") is not False
    length = said.get("query_length") or 32
    skip = said.get("skiplist_words")

    def side(role: str, letter: str, size: int, skip: Sequence[str] = ()) -> _Side:
        marker = said.get(f"{role}_prefix")
        marker = f"[{letter}] " if marker is None else marker
        return _Side(size, marker, (prompts.get(role) or "").removeprefix(marker), skip)

    return _Recipe(
        "colbert",
        dense_head(checkpoint, "torch.nn.Identity"),
        side("query", "Q", length),
        side("document", "D", said.get("document_length") or 180, list(string.punctuation) if skip is None else skip),
        expand=length if expands else 0,
        attend=expands and bool(said.get("attend_to_expansion_tokens")),
    )


def _multi_vector(checkpoint: Checkpoint) -> _Recipe:
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

    def side(role: str, size: int | None) -> _Side:
        return _Side(size, prompt=prompts.get(role) or "", skip=skip if role in tasks else ())

    return _Recipe(
        "multi-vector",
        dense_head(checkpoint, "torch.nn.Tanh"),
        side("query", length),
        side("document", said.get("document_length")),
        expand=floor,
        attend=bool(expansion.get("attend")),
        token=expansion.get("token"),
        mean=checkpoint.sentence_config.get("similarity_fn_name") == "meanmaxsim",
    )


def _length_of(checkpoint: Checkpoint) -> int:
    """Tokens of a text where nothing else says it: what the tokenizer was made for."""
    tokenizer = read_json(checkpoint.body / "tokenizer_config.json") or {}
    lengths = (tokenizer.get("model_max_length"), checkpoint.transformer_config.get("max_seq_length"))
    return min((int(length) for length in lengths if length), default=2**31)


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


def _is_colbert(checkpoint: Checkpoint) -> bool:
    said = checkpoint.sentence_config
    return (
        said.get("model_type") in ("ColBERT", "MultiVectorEncoder")
        or any(key in said for key in _PYLATE_KEYS)
        or checkpoint.architecture == "HF_ColBERT"
    )


def _has_bge_head(checkpoint: Checkpoint) -> bool:
    return checkpoint.name == "BAAI/bge-m3" or any(checkpoint.root.glob("colbert_linear.*"))


FAMILIES = (
    Family(
        "colbert",
        "late-interaction",
        "ColBERT checkpoints as Stanford's code, PyLate or sentence-transformers' MultiVectorEncoder save them",
        "(1 + MaxSim / query tokens) / 2",
        build,
        template="[CLS] marker text [SEP], query and passage apart; queries filled up with [MASK] if they are expanded",
        window="the checkpoint's own, for queries and passages apart",
        matches=_is_colbert,
    ),
    Family(
        "bge-m3-colbert",
        "late-interaction",
        'BAAI/bge-m3\'s colbert_linear; only with mode="late-interaction", since its files say bi-encoder',
        "(1 + MaxSim / query tokens) / 2",
        build_bge_m3,
        template="<s> text </s>, query and passage apart",
        matches=_has_bge_head,
        fallback=True,
    ),
)
