"""Recipe `embedding-distillation`: a small bi-encoder learns the vectors of a large one, without labels.

Stella's and Jasper's loss (Zhang et al. 2024, arXiv 2412.19048, section 3): `10 cosine + 200 similarity + 20 relative`,
the last two at smaller dimensions too. The teacher is any bi-encoder that `tamis.load` opens; its vectors are computed
once, by Tamis's engine. Where the student is narrower it gets a linear layer to the teacher's width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.errors import InvalidInput
from tamis.training import sentence_transformer as st
from tamis.training.arguments import without_card
from tamis.training.recipe import NO_TEACHER, Recipe
from tamis.training.rows import Example

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformerTrainer

    from tamis.reranker import Reranker

NAME = "embedding-distillation"
READS = NO_TEACHER


@dataclass(frozen=True, slots=True)
class Options:
    """The table `[options]` of an embedding distillation's recipe.

    Attributes:
        teacher: A folder, a hub id or "embedded".
        cosine: Weight of 1 - cos between the student's vector and the teacher's. 0 leaves the widths free.
        similarity: Weight of the squared differences between their matrices of cosines.
        relative: Weight of the pairs of pairs that are in another order.
        margin: By how much these are to be apart.
        mrl: Hold the student's leading dimensions to the teacher's similarities too.
        dims: Which numbers of them; empty is the halves of the width down to 32.
        max_length: Tokens of a text that the student reads; None is its own limit.
        query_prompt: Put before queries and saved with the student; None is its own. The teacher has its own.
        passage_prompt: The same for passages.
    """

    teacher: str
    cosine: float = 10.0
    similarity: float = 200.0
    relative: float = 20.0
    margin: float = 0.015
    mrl: bool = True
    dims: tuple[int, ...] = ()
    max_length: int | None = None
    query_prompt: str | None = None
    passage_prompt: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(self.dims))
        weights = (self.cosine, self.similarity, self.relative)
        if min(weights) < 0 or not any(weights):
            raise InvalidInput("[options] cosine, similarity and relative are weights: none below 0, one above.")


def prepare(
    recipe: Recipe, options: Options, examples: Sequence[Example], checkpoints: Path
) -> SentenceTransformerTrainer:
    """A sentence-transformers trainer with student, loss and the teacher's vectors in it; these are computed here.

    Queries and passages are trained apart, in batches of one kind, so that each has its prompt.

    Raises:
        InvalidInput: The teacher is no bi-encoder, or a dimension is none of the student's.
    """
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer

    from tamis.training.losses import EmbeddingDistillationLoss
    from tamis.training.vectors import encode

    queries = list(dict.fromkeys(example.query for example in examples))
    passages = list(dict.fromkeys(passage for example in examples for passage in example.passages))
    with st.load(options.teacher) as teacher:
        targets = {"query": encode(teacher, queries, queries=True), "passage": encode(teacher, passages)}
    model = st.begin(recipe, max_length=options.max_length)
    wanted = targets["query"].shape[1]
    if options.cosine and st.width(model) != wanted:
        model = st.begin(recipe, expand=wanted, max_length=options.max_length)
    st.set_prompts(model, options.query_prompt, options.passage_prompt, [])
    whole = st.width(model)
    dims = (st.checked_dims(options.dims, whole) if options.dims else st.halves(whole)) if options.mrl else (whole,)
    texts = {"query": queries, "passage": passages}
    prompts = {"query": model.prompts.get("query") or "", "passage": model.prompts.get("document") or ""}
    return SentenceTransformerTrainer(
        model=without_card(model),
        args=arguments(recipe, options, checkpoints, prompts),
        train_dataset={
            kind: Dataset.from_dict({"text": texts[kind], "label": np.asarray(rows)}) for kind, rows in targets.items()
        },
        loss=EmbeddingDistillationLoss(
            model, dims, (options.cosine, options.similarity, options.relative), options.margin
        ),
    )


def arguments(recipe: Recipe, options: Options, checkpoints: Path, prompts: Mapping[str, str] | None = None) -> Any:
    """The trainer's arguments; `prompts` are put before the texts of each kind.

    Raises:
        InvalidInput: `[arguments]` does not fit.
    """
    said = prompts is not None and any(prompts.values())
    return st.arguments(recipe, checkpoints, prompts=prompts if said else None)


def save(trainer: SentenceTransformerTrainer, folder: Path, options: Options, unseen: Sequence[Example] = ()) -> None:
    """Writes what `tamis.load` and `SentenceTransformer` open."""
    st.write(trainer.model, folder)


def load(model: str | Path, options: Options) -> Reranker:
    """The bi-encoder that the run is judged by."""
    return st.load(model)


def described(options: Options) -> dict[str, Any]:
    """The options as plain values, for cards."""
    return asdict(options)
