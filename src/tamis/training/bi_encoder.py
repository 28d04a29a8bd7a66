"""Recipe `bi-encoder`: query and passage as vectors, apart; trained so that their leading dimensions are vectors too.

Over sentence-transformers' SentenceTransformerTrainer. MatryoshkaLoss (Kusupati et al. 2022, arXiv 2205.13147) is
around every loss unless `mrl = false`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.errors import InvalidInput
from tamis.training import sentence_transformer as st
from tamis.training.adapters import Lora, adapt, merge
from tamis.training.arguments import without_card
from tamis.training.recipe import LABELLED, Recipe, from_table
from tamis.training.rows import Example

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer

    from tamis.reranker import Reranker

NAME = "bi-encoder"
LOSSES = ("contrastive", "triplet", "preference", "preference-flat")


@dataclass(frozen=True, slots=True)
class Options:
    """The table `[options]` of a bi-encoder's recipe.

    Attributes:
        loss: "contrastive" (each positive against all other passages of the batch, hard negatives among them),
            "triplet" (positive above negative by `margin`), "preference" (a teacher's scores: per query, REPLUG's
            KL), "preference-flat" (the same over a batch of single pairs, as RAG-Retrieval computes it).
        mrl: Train leading dimensions as vectors of their own.
        dims: Which numbers of them; empty is the halves of the width down to 32.
        expand: A linear layer with this many outputs behind the pooling: more dimensions than the model has.
        temperature: What similarities are divided by.
        beta: What a teacher's scores are divided by, for "preference".
        margin: Of "triplet", in cosine distance.
        mini_batch: Texts in one forward, with the gradients of the whole batch (GradCache), for "contrastive".
        max_length: Tokens of a text; None is the model's own limit.
        query_prompt: Put before queries and saved with the model; None is the data's or the model's own.
        passage_prompt: The same for passages.
        lora: Train a low-rank adapter (`rank`, `alpha`, `dropout`), which is merged when the model is saved.
    """

    loss: str = "contrastive"
    mrl: bool = True
    dims: tuple[int, ...] = ()
    expand: int | None = None
    temperature: float = 0.05
    beta: float = 0.1
    margin: float = 0.2
    mini_batch: int | None = None
    max_length: int | None = None
    query_prompt: str | None = None
    passage_prompt: str | None = None
    lora: Lora | None = None

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InvalidInput(f"[options] loss = {self.loss!r}; pass one of {', '.join(LOSSES)}.")
        for name in ("temperature", "beta"):
            if not getattr(self, name) > 0:
                raise InvalidInput(f"[options] {name} = {getattr(self, name)!r}; pass a number above 0.")
        object.__setattr__(self, "dims", tuple(self.dims))
        if isinstance(self.lora, dict):
            object.__setattr__(self, "lora", from_table(Lora, self.lora, "[options] lora"))


def prepare(
    recipe: Recipe, options: Options, examples: Sequence[Example], checkpoints: Path
) -> SentenceTransformerTrainer:
    """A sentence-transformers trainer with model, loss and data in it, not yet trained.

    Args:
        recipe: The whole recipe.
        options: Its `[options]`.
        examples: Shuffled.
        checkpoints: Where the trainer writes.

    Raises:
        InvalidInput: The examples lack what the loss needs, or a dimension is none of the model's.
    """
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer

    model = st.begin(recipe, expand=options.expand, max_length=options.max_length)
    st.set_prompts(model, options.query_prompt, options.passage_prompt, examples)
    rows = columns(examples, options, st.query_prompt(model))
    loss = _loss(model, options)
    if options.lora is not None:
        adapt(model, options.lora)
    prompts = st.column_prompts(model, list(rows))
    return SentenceTransformerTrainer(
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
    return st.arguments(recipe, checkpoints, **st.of_columns(options.loss, prompts))


def columns(examples: Sequence[Example], options: Options, prompt: str = "") -> dict[str, list[Any]]:
    """Examples as the columns that the loss reads, in its order.

    Args:
        examples: Any.
        options: `loss` is read.
        prompt: What the model itself puts before a query.

    Raises:
        InvalidInput: No example has what the loss needs.
    """
    if options.loss in LABELLED:
        names, rows = _labelled([e for e in examples if e.labels and e.positives], options, prompt)
    else:
        scored = [e for e in examples if e.scores]
        if options.loss == "preference-flat":
            names = ["query", "passage", "label"]
            rows = [(st.asked(e, prompt), p, s) for e in scored for p, s in zip(e.passages, e.scores, strict=True)]
        else:
            names, rows = _lists([e for e in scored if len(e.passages) > 1], prompt)
    if not rows:
        needs = "a positive" if options.loss in LABELLED else "a teacher's scores of two passages"
        raise InvalidInput(f"No example has what the loss {options.loss!r} needs: {needs}.")
    return {name: [row[k] for row in rows] for k, name in enumerate(names)}


def _labelled(examples: Sequence[Example], options: Options, prompt: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """One row a positive; with "triplet" one for each of its negatives."""
    if options.loss == "triplet":
        triplets = [(st.asked(e, prompt), p, n) for e in examples for p in e.positives for n in e.negatives]
        return ["query", "positive", "negative"], list(triplets)
    count = max((len(e.negatives) for e in examples), default=0)
    every = list(dict.fromkeys(n for e in examples for n in e.negatives))
    others = cycle(every)  # for queries without negatives: another's, as there are others' in the batch anyway
    rows: list[tuple[Any, ...]] = []
    for e in examples:
        own = list(islice(cycle(e.negatives), count)) if e.negatives else list(islice(others, count))
        rows += [(st.asked(e, prompt), p, *own) for p in e.positives]
    return ["query", "positive", *(f"negative_{k}" for k in range(count))], rows


def _lists(examples: Sequence[Example], prompt: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """One row a query; shorter ones are filled up with passages that the loss leaves out."""
    count = max((len(e.passages) for e in examples), default=0)
    rows = []
    for e in examples:
        lacking = count - len(e.passages)
        passages = [*e.passages, *[e.passages[0]] * lacking]
        rows.append((st.asked(e, prompt), *passages, [*e.scores, *[float("-inf")] * lacking]))
    return ["query", *(f"passage_{k}" for k in range(count)), "label"], rows


def _loss(model: SentenceTransformer, options: Options) -> Any:
    from sentence_transformers.sentence_transformer import losses

    from tamis.training.losses import FlatPreferenceLoss, PreferenceLoss

    if options.loss == "triplet":
        loss: Any = losses.TripletLoss(model, losses.TripletDistanceMetric.COSINE, options.margin)
    elif options.loss == "preference":
        loss = PreferenceLoss(model, options.temperature, options.beta)
    elif options.loss == "preference-flat":
        loss = FlatPreferenceLoss(model, options.temperature)
    elif options.mini_batch is not None:
        loss = losses.CachedMultipleNegativesRankingLoss(
            model, 1 / options.temperature, mini_batch_size=options.mini_batch
        )
    else:
        loss = losses.MultipleNegativesRankingLoss(model, 1 / options.temperature)
    if not options.mrl:
        return loss
    whole = st.width(model)
    return losses.MatryoshkaLoss(
        model, loss, st.checked_dims(options.dims, whole) if options.dims else st.halves(whole)
    )


def save(trainer: SentenceTransformerTrainer, folder: Path, options: Options, unseen: Sequence[Example] = ()) -> None:
    """Writes what `tamis.load` and `SentenceTransformer` open."""
    if options.lora is not None:
        merge(trainer.model)
    st.write(trainer.model, folder)


def load(model: str | Path, options: Options) -> Reranker:
    """The bi-encoder that the run is judged by."""
    return st.load(model)


def described(options: Options) -> dict[str, Any]:
    """The options as plain values, for cards."""
    return asdict(options)
