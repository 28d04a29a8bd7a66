"""Recipe `cross-encoder`: an encoder or a decoder that reads query and passage together and gives one logit.

Over sentence-transformers' CrossEncoderTrainer and its losses. What each loss aims at is in
`tamis.training.ranking_losses`; what encoders start from in `tamis.training.checkpoints`, and decoders in
`tamis.training.decoder_cross_encoder`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.errors import InvalidInput
from tamis.training.adapters import Lora, merge
from tamis.training.arguments import trainer_arguments, without_card
from tamis.training.calibration import calibrate
from tamis.training.checkpoints import checkpoint, decoders, is_decoder, start
from tamis.training.ranking_losses import LISTS, LOSSES, columns, make_loss, soft
from tamis.training.recipe import Recipe, from_table
from tamis.training.rows import Example
from tamis.training.run_folder import START

if TYPE_CHECKING:
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer

    from tamis.reranker import Reranker

NAME = "cross-encoder"
DTYPES = ("float32", "float16", "bfloat16")
DECODER_FAMILY = "rerank-qa-mistral"  # what reads NVIDIA's prompt, where the files do not say so


@dataclass(frozen=True, slots=True)
class Options:
    """The table `[options]` of a cross-encoder's recipe.

    Attributes:
        loss: "bce" or "mse" (pointwise; labels in [0, 1], which may be graded), "ranknet" (pairwise), "listwise"
            (cross-entropy over the list: ListNet, and with one positive InfoNCE), "lambda" (LambdaLoss, nDCG),
            "contrastive" (the first positive against the list's negatives and those of the batch), "margin-mse" (a
            teacher's margins).
        num_layers: Keep only the first layers of a deeper model, as Rerank QA Mistral-4B does.
        bidirectional: A decoder whose tokens see each other both ways, mean-pooled, as NeMo Retriever's 500M and 1B.
        vocabulary: Keep this many pieces of a WordPiece vocabulary, chosen by the training texts.
        lora: Train a low-rank adapter (`rank`, `alpha`, `dropout`), which is merged when the model is saved.
        max_length: Tokens of query and passage together while it trains; saved, it reads as many as its start.
        dropout: While it trains; None is the model's own. 0 is a third faster on a CPU, whose fused attention has none.
        label_weight: Target logits per label, where there is a teacher and the loss is listwise.
        temperature: What a teacher's scores are divided by, where the loss is listwise.
        mini_batch: Pairs in one forward, where the loss is over lists; None is the whole batch.
        calibrate: After training, fit `a * logit + b` to held-out labels (Platt) and write it into the head: the order
            stays, the sigmoid becomes a probability among one relevant passage and its hard negatives.
        held_out: The share of examples that is not trained on, for that and for the loss on unseen data.
        patience: Stop after this many evaluations in a row without a lower loss on held-out examples, and keep the best
            checkpoint; None trains to the end.
        dtype: Of the saved weights.
    """

    loss: str = "listwise"
    num_layers: int | None = None
    bidirectional: bool = False
    vocabulary: int | None = None
    lora: Lora | None = None
    max_length: int = 512
    dropout: float | None = None
    label_weight: float = 10.0
    temperature: float = 1.0
    mini_batch: int | None = None
    calibrate: bool = True
    held_out: float = 0.05
    patience: int | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, known in (("loss", LOSSES), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise InvalidInput(f"[options] {name} = {getattr(self, name)!r}; pass one of {', '.join(known)}.")
        if not 0 <= self.held_out < 0.5:
            raise InvalidInput(f"[options] held_out = {self.held_out!r}; pass a share in [0, 0.5).")
        if not self.temperature > 0:
            raise InvalidInput(f"[options] temperature = {self.temperature!r}; pass a number above 0.")
        if self.mini_batch is not None and self.loss not in LISTS:
            raise InvalidInput(f"[options] mini_batch is for {', '.join(LISTS)}; lower per_device_train_batch_size.")
        if self.patience is not None and not self.held_out:
            raise InvalidInput("[options] patience needs held_out examples; raise held_out.")
        if isinstance(self.lora, Mapping):
            object.__setattr__(self, "lora", from_table(Lora, self.lora, "[options] lora"))


def prepare(recipe: Recipe, options: Options, examples: Sequence[Example], checkpoints: Path) -> CrossEncoderTrainer:
    """A sentence-transformers trainer with model, loss and data in it, not yet trained.

    Args:
        recipe: The whole recipe.
        options: Its `[options]`.
        examples: Shuffled; see `split`.
        checkpoints: Where the trainer writes.

    Raises:
        InvalidInput: The examples lack what the loss needs, or an option or argument does not fit.
        LoadError: The start cannot be loaded.
    """
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoderTrainer
    from transformers import EarlyStoppingCallback

    if options.loss not in ("listwise", "margin-mse"):
        examples = soft(examples)  # before they are split, so that both parts are read alike
    train, unseen = split(examples, options)
    rows = columns(train, options)
    unseen_rows = None
    with suppress(InvalidInput):  # few examples may leave none that says anything
        unseen_rows = columns(unseen, options) if unseen else None
    texts = (text for e in train for text in (e.query, *e.passages))
    model = _started(recipe, options, texts, checkpoints.parent / START)
    return CrossEncoderTrainer(
        model=without_card(model),
        args=arguments(recipe, options, checkpoints, evaluates=unseen_rows is not None),
        train_dataset=Dataset.from_dict(rows),
        eval_dataset=None if unseen_rows is None else Dataset.from_dict(unseen_rows),
        loss=make_loss(model, options),
        callbacks=[EarlyStoppingCallback(options.patience)] if options.patience and unseen_rows is not None else None,
    )


def split(examples: Sequence[Example], options: Options) -> tuple[Sequence[Example], Sequence[Example]]:
    """The examples that are trained on, and the last share of `held_out`, which is not.

    >>> [len(part) for part in split([Example("q", ("p",))] * 50, Options(held_out=0.05))]
    [48, 2]
    """
    count = len(examples) - int(len(examples) * options.held_out)
    return examples[:count], examples[count:]


def _started(recipe: Recipe, options: Options, texts: Iterable[str], folder: Path) -> CrossEncoder:
    if not is_decoder(checkpoint(recipe.model)):
        if options.bidirectional:
            raise InvalidInput("[options] bidirectional is for decoders; an encoder's tokens see each other anyway.")
        return start(recipe, options, texts, folder)
    from tamis.training import decoder_cross_encoder

    if options.vocabulary is not None:
        raise InvalidInput("[options] vocabulary is for encoders with WordPiece; leave it out.")
    return decoder_cross_encoder.begin(recipe, options, folder)


def arguments(recipe: Recipe, options: Options, checkpoints: Path, *, evaluates: bool | None = None) -> Any:
    """sentence-transformers' own arguments.

    Args:
        recipe: `seed` and `arguments` are read.
        options: The recipe's.
        checkpoints: Where the trainer writes.
        evaluates: Whether there is anything to look at while it trains; None: if something is held out.

    Raises:
        InvalidInput: `[arguments]` does not fit.
    """
    from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments

    usual: dict[str, Any] = {
        "eval_strategy": "steps",
        "ddp_find_unused_parameters": False,  # DDP looks for tensors in what CrossEncoder returns, and finds none there
    }
    if options.loss == "contrastive":
        usual["batch_sampler"] = "no_duplicates"  # another's positive is taken for a negative
    if options.patience is not None:
        usual |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    seen = options.held_out > 0 if evaluates is None else evaluates
    fixed = {} if seen else {"eval_strategy": "no", "load_best_model_at_end": False}
    return trainer_arguments(CrossEncoderTrainingArguments, recipe, checkpoints, usual, fixed)


def save(trainer: CrossEncoderTrainer, folder: Path, options: Options, examples: Sequence[Example] = ()) -> None:
    """Writes what `tamis.load` and its library open: safetensors, the head calibrated if the options say so.

    Args:
        trainer: After training.
        folder: Made; what a model wrote there before is replaced.
        options: Those of `prepare`.
        examples: Those of `prepare`.
    """
    import torch

    model = trainer.model
    if options.lora is not None:
        merge(model)
    labelled = [e for e in split(examples, options)[1] if e.labels and e.positives and e.negatives]
    if options.calibrate and labelled:
        calibrate(model, labelled)
    model[0].processing_kwargs = {}  # the length of training
    backend = model.tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    dtype = getattr(torch, options.dtype)
    folder.mkdir(parents=True, exist_ok=True)
    if model.transformers_model.config.model_type in decoders():
        from tamis.training import decoder_cross_encoder

        decoder_cross_encoder.write(model, folder, dtype)
    else:
        prompts = {e.prompt for e in examples}
        if len(prompts) == 1 and any(prompts):
            model.prompts, model.default_prompt_name = {"query": prompts.pop()}, "query"
        model.to(dtype).save_pretrained(str(folder), create_model_card=False, safe_serialization=True)


def load(model: str | Path, options: Options) -> Reranker:
    """The reranker that the run is judged by: a bi-encoder as such, before it has become a cross-encoder.

    Of a fusion it is the cross-encoder alone, since that is what was trained.
    """
    from tamis import load as load_reranker
    from tamis.families.fusion import FILE

    found = checkpoint(str(model))
    if found.model_type in decoders():
        return load_reranker(found.root, family=DECODER_FAMILY, num_layers=options.num_layers)
    return load_reranker(found.root, mode="cross-encoder" if (found.root / FILE).is_file() else None)


def usage(folder: Path) -> str:
    """How to open what `save` wrote."""
    family = f', family="{DECODER_FAMILY}"' if checkpoint(str(folder)).model_type in decoders() else ""
    return f'tamis.load("{folder}"{family})'
