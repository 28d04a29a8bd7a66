"""Recipe `late-interaction`: ColBERT, a vector a token and MaxSim (Khattab and Zaharia 2020, arXiv 2004.12832).

Over sentence-transformers' MultiVectorEncoderTrainer: each positive against the other passages of the batch, hard
negatives among them; or a teacher's scores of each query's passages, by their KL divergence (ColBERTv2's distillation).
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.errors import InvalidInput
from tamis.training import bi_encoder
from tamis.training import sentence_transformer as st
from tamis.training.arguments import trainer_arguments, without_card
from tamis.training.checkpoints import checkpoint
from tamis.training.recipe import Recipe
from tamis.training.rows import Example

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.multi_vector_encoder import MultiVectorEncoderTrainer

    from tamis.reranker import Reranker

NAME = "late-interaction"
LOSSES = ("contrastive", "distillation")
COLBERT = "MultiVectorEncoder"  # what the library calls its kind of model, in its saved files


@dataclass(frozen=True, slots=True)
class Options:
    """The table `[options]` of a late-interaction recipe.

    Attributes:
        loss: "contrastive", or "distillation" of a teacher's scores (`[data] teacher`, or rows with scores).
        dim: Dimensions of a token's vector, where the start is no ColBERT model yet.
        query_length: Tokens of a query; shorter ones are filled up with [MASK] if `expand`.
        passage_length: Tokens of a passage.
        expand: Query expansion.
        skip_punctuation: A passage's punctuation does not count.
        query_prompt: Put before queries; None is the start's own.
        passage_prompt: Put before passages; None is the start's own.
        temperature: What scores are divided by. MaxSim is a sum over the query's tokens.
        teacher_temperature: What a teacher's scores are divided by.
        mini_batch: Passages in one forward.
    """

    loss: str = "contrastive"
    dim: int = 128
    query_length: int = 32
    passage_length: int = 256
    expand: bool = True
    skip_punctuation: bool = True
    query_prompt: str | None = None
    passage_prompt: str | None = None
    temperature: float = 1.0
    teacher_temperature: float = 1.0
    mini_batch: int | None = None

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InvalidInput(f"[options] loss = {self.loss!r}; pass one of {', '.join(LOSSES)}.")
        for name in ("dim", "query_length", "passage_length"):
            if not getattr(self, name) >= 1:
                raise InvalidInput(f"[options] {name} = {getattr(self, name)!r}; pass a whole number of at least 1.")


def prepare(
    recipe: Recipe, options: Options, examples: Sequence[Example], checkpoints: Path
) -> MultiVectorEncoderTrainer:
    """A sentence-transformers trainer with model, loss and data in it, not yet trained.

    Raises:
        InvalidInput: The examples lack what the loss needs.
    """
    from datasets import Dataset
    from sentence_transformers.multi_vector_encoder import MultiVectorEncoderTrainer, losses

    model = begin(recipe, options)
    st.set_prompts(model, options.query_prompt, options.passage_prompt, examples)
    like = bi_encoder.Options(loss="contrastive" if options.loss == "contrastive" else "preference")
    kept = examples if options.loss == "contrastive" else _whole(examples)
    rows = bi_encoder.columns(kept, like, st.query_prompt(model))
    if options.loss == "contrastive":
        loss: Any = losses.MultiVectorMultipleNegativesRankingLoss(
            model, scale=1 / options.temperature, mini_batch_size=options.mini_batch
        )
    else:
        loss = losses.MultiVectorDistillKLDivLoss(
            model,
            student_temperature=options.temperature,
            teacher_temperature=options.teacher_temperature,
            mini_batch_size=options.mini_batch,
        )
    prompts = st.column_prompts(model, list(rows))
    return MultiVectorEncoderTrainer(
        model=without_card(model),
        args=arguments(recipe, options, checkpoints, prompts),
        train_dataset=Dataset.from_dict(rows),
        loss=loss,
    )


def arguments(recipe: Recipe, options: Options, checkpoints: Path, prompts: Mapping[str, str] | None = None) -> Any:
    """The trainer's arguments; `prompts` are put before the texts of each column.

    Raises:
        InvalidInput: `[arguments]` does not fit.
    """
    from sentence_transformers.multi_vector_encoder import MultiVectorEncoderTrainingArguments

    usual = st.of_columns(options.loss, prompts)
    return trainer_arguments(MultiVectorEncoderTrainingArguments, recipe, checkpoints, usual)


def begin(recipe: Recipe, options: Options) -> MultiVectorEncoder:
    """A ColBERT model as it is; or an encoder, with a new projection behind it."""
    import torch
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from transformers import set_seed

    set_seed(recipe.seed)  # of the projection
    found = checkpoint(recipe.model)
    if found.sentence_config.get("model_type") in (COLBERT, "ColBERT") or found.architecture == "HF_ColBERT":
        return MultiVectorEncoder(str(found.root), local_files_only=True)
    body = Transformer(
        str(found.body),
        model_kwargs={"local_files_only": True},
        query_length=options.query_length,
        document_length=options.passage_length,
        query_expansion={"strategy": "fixed", "length": options.query_length} if options.expand else None,
    )
    dense = Dense(
        body.get_embedding_dimension(),
        options.dim,
        bias=False,
        activation_function=torch.nn.Identity(),
        module_input_name="token_embeddings",
    )
    mask = MultiVectorMask(skiplist_words=list(string.punctuation) if options.skip_punctuation else None)
    return MultiVectorEncoder(modules=[body, dense, mask, Normalize(module_input_name="token_embeddings")])


def _whole(examples: Sequence[Example]) -> list[Example]:
    """Those with as many scores as most have: the library's loss takes lists of one length."""
    counts = [len(e.scores) for e in examples if len(e.scores) > 1]
    usual = max(set(counts), key=counts.count, default=0)
    return [e for e in examples if len(e.scores) == usual and usual]


def save(trainer: MultiVectorEncoderTrainer, folder: Path, options: Options, unseen: Sequence[Example] = ()) -> None:
    """Writes what `tamis.load` and `MultiVectorEncoder` open."""
    st.write(trainer.model, folder)


def load(model: str | Path, options: Options) -> Reranker | None:
    """The model that the run is judged by; None for a start that is no ColBERT model."""
    from tamis import load as load_reranker

    found = checkpoint(str(model))
    if found.sentence_config.get("model_type") not in (COLBERT, "ColBERT") and found.architecture != "HF_ColBERT":
        return None
    return load_reranker(found.root, mode="late-interaction")


def described(options: Options) -> dict[str, Any]:
    """The options as plain values, for cards."""
    return asdict(options)
