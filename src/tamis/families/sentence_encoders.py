"""Bi-encoders: sentence-transformers' module layouts, and plain encoders with mean pooling.

Queries and passages may have an encoder each (`passage_model=`): two checkpoints, two leases, one width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from tamis.checkpoint import Checkpoint
from tamis.engine.loaded import Lease
from tamis.errors import CorruptCheckpoint, InvalidInput, UnknownFamily
from tamis.families import Family, claimed
from tamis.families.sentence_modules import ends_normalized, is_sentence_transformer, poolings_of, readout_of
from tamis.options import LoadOptions, Similarity
from tamis.scorers.base import Scorer

SCORE = "(1 + cos) / 2; of a dot product (1 + s / (1 + |s|)) / 2"

_PASSAGE_PROMPTS = ("document", "passage", "corpus")  # the first that a checkpoint has
_ENCODER_HALVES = ("t5", "mt5", "umt5")  # types whose plain class has a decoder too; sentence-t5, gtr-t5
_SIMILARITIES: dict[str, Similarity] = {"cosine": "cosine", "dot": "dot", "dot_product": "dot"}


def build(
    checkpoint: Checkpoint,
    options: LoadOptions,
    *,
    passage: Checkpoint | None = None,
    layer_norm: bool = False,
    pooling: str = "mean",
    similarity: Similarity | None = None,
) -> Scorer:
    """A bi-encoder over the shared engines of its checkpoint, or of its two.

    Args:
        checkpoint: Encodes queries; and passages, unless they have a checkpoint of their own.
        options: As the caller gave them.
        passage: Encodes passages, instead of the caller's `passage_model`.
        layer_norm: Whether vectors are layer-normalised before `dim=` truncates them.
        pooling: What a checkpoint without sentence-transformers' modules does.
        similarity: What the family compares by, where the caller does not say.
    """
    from tamis import transformer
    from tamis.scorers.bi_encoder import BiEncoderScorer
    from tamis.scorers.tower import Tower

    options.allow("bi-encoder", "dim", "instruction", "passage_model", "similarity", "cache_dtype")
    if passage is None:
        passage = checkpoint if options.passage_model is None else Checkpoint.find(options.passage_model)
    for one in (checkpoint, passage):
        transformer.check_namesake(one)
    _check_role(checkpoint, "DPRQuestionEncoder", "reads queries")
    _check_role(passage, "DPRContextEncoder", "reads passages")
    compared = options.similarity or similarity or _stated_similarity(checkpoint, passage)
    stated = _stated_dim(checkpoint, passage) if options.dim is None else None

    def lease(one: Checkpoint) -> Lease:
        return transformer.lease("bi-encoder", one, options, partial(_load, pooling), pooling, options.cache_bytes)

    def tower(one: Checkpoint, lease: Lease, prompt: str) -> Tower:
        length = transformer.chosen_length(options, lease.loaded.longest, one.name)
        normed = layer_norm or (is_sentence_transformer(one) and one.model_type == "nomic_bert")
        return Tower(lease, length, prompt, normed, ends_normalized(one))

    def scorer(asking: Lease, reading: Lease) -> Scorer:
        width = asking.loaded.width
        if reading.loaded.width != width:
            raise InvalidInput(
                f"The vectors of {checkpoint.name} have {width} dimensions and those of {passage.name} "
                f"{reading.loaded.width}: they were not trained together. Pass the passage_model that was."
            )
        prompts = checkpoint.sentence_config.get("prompts") or {}
        theirs = passage.sentence_config.get("prompts") or {}
        return BiEncoderScorer(
            tower(checkpoint, asking, prompts.get("query", "") if options.instruction is None else options.instruction),
            tower(passage, reading, next((theirs[name] for name in _PASSAGE_PROMPTS if name in theirs), "")),
            model=checkpoint.name,
            dims=_dims(options.dim, width, checkpoint.name) if stated is None else (min(stated, width),),
            similarity=compared,
            cache_dtype=options.cache_dtype or "float32",
            long_documents=options.long_documents,
        )

    def with_query(asking: Lease) -> Scorer:
        if passage is checkpoint:
            return scorer(asking, asking)
        return lease(passage).hold(partial(scorer, asking))

    return lease(checkpoint).hold(with_query)


def _load(pooling: str, checkpoint: Checkpoint, options: LoadOptions, devices: Sequence[Any], dtype: Any) -> Any:
    import torch

    from tamis import transformer
    from tamis.cache import ByteLRU
    from tamis.engine.backbone import Backbone, Readable, probe
    from tamis.engine.loaded import Loaded
    from tamis.families.dual_encoders import dpr_parts

    readout = readout_of(checkpoint, pooling)
    config = transformer.read_config(checkpoint, options, own=True)
    tokenizer, tokenizer_length = transformer.load_tokenizer(checkpoint, options)
    longest = transformer.longest_of(checkpoint, config, tokenizer_length)
    architecture = transformer.architecture_of(config, options)
    dpr = config.model_type == "dpr"
    model_class = checkpoint.architecture if dpr else "AutoModel"  # which takes every DPR model for a question encoder
    if config.model_type in _ENCODER_HALVES:
        model_class = "AutoModelForTextEncoding"

    def runner(device: Any) -> Readable:
        model, missing = transformer.load_model(model_class, checkpoint, config, options, dtype)
        lacking = sorted(key for key in missing if not key.startswith("pooler."))
        if lacking:
            raise CorruptCheckpoint(
                f"{checkpoint.name} lacks {len(lacking)} weights of its encoder ({lacking[0]}, ...): it belongs to "
                "another architecture than its config.json says, or it was saved incompletely."
            )
        body, project = dpr_parts(model.to(device)) if dpr else (model.to(device), None)
        if getattr(body, "pooler", None) is not None:
            body.pooler = None  # a head for other tasks
        encoder = Backbone(body, architecture, tokenizer.pad_id or 0)
        with torch.inference_mode():
            encoder.check(config.vocab_size, longest)
            encoder.tune(config.vocab_size, longest, first_only=poolings_of(checkpoint, pooling) == ("cls",))
        read = readout(device)
        return Readable(encoder, read if project is None else lambda hidden, layout: project(read(hidden, layout)))

    runners = [runner(device) for device in devices]
    width = len(runners[0].run([probe(8, config.vocab_size, config)])[0])
    engine = transformer.engine(runners, devices[0], checkpoint, options)
    facts = transformer.facts(checkpoint, devices, dtype)
    return Loaded(engine, tokenizer, longest, width, ByteLRU(options.cache_bytes), facts)


def _check_role(checkpoint: Checkpoint, architecture: str, does: str) -> None:
    """DPR's two encoders have one model type, and each loads as the other, with random weights."""
    if checkpoint.model_type == "dpr" and checkpoint.architecture != architecture:
        raise InvalidInput(
            f"{checkpoint.name} holds a {checkpoint.architecture or 'DPR model'}; what {does} is a {architecture}. "
            "Load the question encoder, with the context encoder as passage_model=."
        )


def _stated_similarity(*checkpoints: Checkpoint) -> Similarity:
    """What the checkpoints' sentence-transformers configs compare by; the cosine if they do not say.

    Raises:
        UnknownFamily: They say something that is neither a cosine nor a dot product.
        InvalidInput: They say different things.
    """
    said: set[Similarity] = set()
    for checkpoint in checkpoints:
        name = checkpoint.sentence_config.get("similarity_fn_name")
        if name is not None and name not in _SIMILARITIES:
            raise UnknownFamily(
                f"{checkpoint.name} was made for the similarity {name!r}, which Tamis does not compute. If it ranks "
                'by another one too, pass similarity="cosine" or "dot".'
            )
        said |= set() if name is None else {_SIMILARITIES[name]}
    if len(said) > 1:
        raise InvalidInput("The two checkpoints say cosine and dot; pass the similarity= that they were trained with.")
    return said.pop() if said else "cosine"


def _stated_dim(*checkpoints: Checkpoint) -> int | None:
    """What the checkpoints' sentence-transformers configs truncate vectors to; None if they do not.

    Raises:
        CorruptCheckpoint: It is no number of dimensions.
        InvalidInput: They say different things.
    """
    said = {checkpoint.sentence_config.get("truncate_dim") for checkpoint in checkpoints}
    if len(said) > 1:
        raise InvalidInput(
            f"The two checkpoints cut their vectors to {' and '.join(sorted(map(str, said)))} dimensions; "
            "pass the dim= that they were trained with."
        )
    dim = said.pop()
    if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int) or dim < 1):
        raise CorruptCheckpoint(
            f"{checkpoints[0].name}: truncate_dim is {dim!r} in config_sentence_transformers.json; it is a number of "
            "dimensions, or null."
        )
    return dim


def _dims(dim: int | tuple[int, ...] | None, width: int, name: str) -> tuple[int, ...]:
    dims = (width,) if dim is None else (dim,) if isinstance(dim, int) else dim
    if dims[-1] > width:
        raise InvalidInput(f"dim={dims[-1]}, but the vectors of {name} have {width} dimensions; pass {width} at most.")
    return dims


_NO_ENCODERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForSequenceClassification", "ForRanking")

FAMILIES = (
    Family(
        "nomic-embed",
        "bi-encoder",
        "nomic-embed-text-v1.5 and others of model type nomic_bert; layer-normalised before dim= truncates",
        SCORE,
        partial(build, layer_norm=True),
        template="the checkpoint's prompts before query and passage",
        matches=lambda checkpoint: is_sentence_transformer(checkpoint) and checkpoint.model_type == "nomic_bert",
    ),
    Family(
        "sentence-transformers",
        "bi-encoder",
        "any sentence-transformers layout of Transformer, Pooling, Dense, LayerNorm, Normalize",
        SCORE,
        build,
        template="the checkpoint's prompts before query and passage",
        matches=is_sentence_transformer,
    ),
    Family(
        "plain-encoder",
        "bi-encoder",
        'any encoder without a sentence-transformers layout, mean pooling; only with mode="bi-encoder"',
        SCORE,
        build,
        template="query; passage",
        matches=lambda checkpoint: not checkpoint.architecture.endswith(_NO_ENCODERS) and not claimed(checkpoint),
        fallback=True,
    ),
)
