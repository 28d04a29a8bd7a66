"""Late interaction: ColBERT checkpoints in the three layouts there are, and bge-m3's ColBERT head.

What the files say is read in `tamis.families.colbert_layouts`. A word of a skip list that the vocabulary does not have
skips nothing, as in sentence-transformers; PyLate then drops every unknown token. The marker is inserted as an id, so
that no text has to spell it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tamis.checkpoint import Checkpoint
from tamis.errors import CorruptCheckpoint, UnknownFamily
from tamis.families import Family
from tamis.families.colbert_layouts import (
    ColbertLayout,
    SideLayout,
    bge_m3_layout,
    has_bge_head,
    is_colbert,
    layout_of,
    length_of,
)
from tamis.options import LoadOptions
from tamis.scorers.base import Scorer

logger = logging.getLogger(__name__)


def build(checkpoint: Checkpoint, options: LoadOptions) -> Scorer:
    """A ColBERT checkpoint, in whichever layout it has."""
    return _build(layout_of(checkpoint), checkpoint, options)


def build_bge_m3(checkpoint: Checkpoint, options: LoadOptions) -> Scorer:
    """bge-m3 by its token vectors."""
    return _build(bge_m3_layout(checkpoint), checkpoint, options)


def _build(colbert: ColbertLayout, checkpoint: Checkpoint, options: LoadOptions) -> Scorer:
    from tamis import transformer
    from tamis.scorers.late_interaction import LateInteractionScorer
    from tamis.scorers.sides import Expansion

    options.allow("late-interaction", "cache_dtype")
    transformer.check_namesake(checkpoint)
    if colbert.unseen and checkpoint.model_type == "deberta-v2":
        raise UnknownFamily(
            f"{checkpoint.name} expands queries by tokens that DeBERTa does not attend to; DeBERTa then computes them "
            "from the padding around, so that no score would be the same twice."
        )

    def scorer(lease: Any) -> Scorer:
        tokenizer = lease.loaded.tokenizer
        longest = min(lease.loaded.longest, length_of(checkpoint))

        def within(length: int | None) -> int:
            return min(length or longest, int(lease.loaded.longest))

        token = tokenizer.entry(colbert.token) if colbert.token else tokenizer.mask_id or tokenizer.eos_id
        if colbert.expand and token is None:
            raise UnknownFamily(f"{checkpoint.name} expands queries, and its tokenizer has no token to do it with.")
        passage_length = transformer.chosen_length(
            options, lease.loaded.longest, checkpoint.name, within(colbert.passage.length)
        )
        return LateInteractionScorer(
            lease,
            model=checkpoint.name,
            query=_side(colbert, colbert.query, tokenizer, within(colbert.query.length), checkpoint.name),
            passage=_side(colbert, colbert.passage, tokenizer, passage_length, checkpoint.name),
            expansion=Expansion(token, within(colbert.expand), colbert.attend) if colbert.expand else None,
            mean=colbert.mean,
            long_documents=options.long_documents,
            cache_dtype=options.cache_dtype or "float32",
        )

    load = partial(_load, colbert=colbert)
    details = (colbert.kind, colbert.unseen, options.cache_bytes)
    return transformer.lease("late-interaction", checkpoint, options, load, *details).hold(scorer)


def _load(
    checkpoint: Checkpoint, options: LoadOptions, devices: Sequence[Any], dtype: Any, *, colbert: ColbertLayout
) -> Any:
    import torch

    from tamis import transformer
    from tamis.cache import ByteLRU
    from tamis.engine.architectures import ARCHITECTURES
    from tamis.engine.backbone import Backbone, Readable, probe
    from tamis.engine.loaded import Loaded

    config = transformer.read_config(checkpoint, options, own=True)
    tokenizer, tokenizer_length = transformer.load_tokenizer(checkpoint, options)
    known = ARCHITECTURES.get(config.model_type)
    positions = getattr(config, "max_position_embeddings", None) or tokenizer_length
    longest = positions - (known.first_position(config) if known else 0)
    architecture = transformer.architecture_of(config, options)

    def runner(device: Any) -> Readable:
        model, missing = transformer.load_model("AutoModel", checkpoint, config, options, dtype)
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
            if colbert.unseen and encoder.packed:
                _check_unseen(encoder, config, longest)
            encoder.tune(config.vocab_size, longest, first_only=False)
        layers = colbert.head(device)

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


def _side(colbert: ColbertLayout, side: SideLayout, tokenizer: Any, length: int, name: str) -> Any:
    """One side over the checkpoint's tokenizer.

    Raises:
        UnknownFamily: The marker is not in the vocabulary, or has no place; or nothing would be left of some texts.
    """
    from tamis.scorers.sides import Side

    special = tokenizer.template(1)
    marker = tokenizer.entry(side.marker) if side.marker else None
    if side.marker and (marker is None or len(special.parts[0]) != 1):
        why = "not in its vocabulary" if marker is None else "put behind the first token, and it begins with none"
        raise UnknownFamily(f"{name} marks texts by {side.marker!r}, which is {why}; no score would be right.")
    if colbert.pieces:
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


FAMILIES = (
    Family(
        "colbert",
        "late-interaction",
        "ColBERT checkpoints as Stanford's code, PyLate or sentence-transformers' MultiVectorEncoder save them",
        "(1 + MaxSim / query tokens) / 2",
        build,
        template="[CLS] marker text [SEP], query and passage apart; queries filled up with [MASK] if they are expanded",
        window="the checkpoint's own, for queries and passages apart",
        matches=is_colbert,
    ),
    Family(
        "bge-m3-colbert",
        "late-interaction",
        'BAAI/bge-m3\'s colbert_linear; only with mode="late-interaction", since its files say bi-encoder',
        "(1 + MaxSim / query tokens) / 2",
        build_bge_m3,
        template="<s> text </s>, query and passage apart",
        matches=has_bge_head,
        fallback=True,
    ),
)
