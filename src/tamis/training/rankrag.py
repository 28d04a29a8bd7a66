"""Recipe `rankrag`: a causal language model that ranks passages and answers from the best, in the paper's two stages.

Yu et al. 2024 (arXiv 2407.02485). Stage one is supervised fine-tuning on chats; stage two the blend of five tasks, with
the loss on the answers alone. See `rankrag_data` for the samples, `rankrag_tokens` for what the model reads, and
`docs/training-rankrag.md` for the whole.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.errors import InvalidData, InvalidInput
from tamis.evaluation.collection import Collection, read_collection
from tamis.evaluation.first_stage import bm25_run
from tamis.evaluation.rows import Problems
from tamis.rankrag.conversations import Message
from tamis.rankrag.prompts import PAPER, Wording, chat_wording
from tamis.training import language_model, run_folder
from tamis.training.examples import drawn
from tamis.training.language_model import Start, Tuning
from tamis.training.rankrag_chats import collection_chats, read_chats
from tamis.training.rankrag_data import blend
from tamis.training.rankrag_samples import Mix, Sample, chat
from tamis.training.rankrag_samples import read_back as read_back
from tamis.training.rankrag_samples import write_jsonl as write_jsonl
from tamis.training.rankrag_tokens import Row, SampleEncoder
from tamis.training.recipe import Recipe

if TYPE_CHECKING:
    from tamis.rankrag.rag import RankRAG
    from tamis.reranker import Reranker

log = logging.getLogger(__name__)

NAME = "rankrag"
READS = ("train", "limit", "limits", "negatives_top")
STAGE_ONE = "stage_one"  # the kind of stage one's samples
STAGES = ("sft", "blend", "both")
STYLES = ("auto", "chat", "plain")
ADAM: Mapping[str, Any] = {"adam_beta1": 0.9, "adam_beta2": 0.98}  # the paper's, in both stages


@dataclass(frozen=True, kw_only=True)
class Options(Mix, Tuning):
    """The table `[options]` of a RankRAG recipe: those of `Mix` and of `Tuning`, and more.

    Attributes:
        stage: "sft" is stage one, "blend" stage two, "both" one after the other.
        sft: What stage one learns to say, and the blend's share of it: jsonl files of chats
            (`{"messages": [{"role": ..., "content": ...}, ...]}`), or collections whose questions have long answers.
        sft_samples: Chats of stage one; None is all.
        sft_arguments: Of the trainer in stage one, where they differ from `[arguments]`, if stage is "both".
        style: The prompts' form, as `load_rankrag` has it: "plain" is the paper's, "chat" the model's chat template,
            "auto" the latter where there is one.
        max_length: Tokens of a sample; passages are shortened to it.
        share: Samples about the same passages that are trained in one row, at most: the same loss for less work. 1 is
            each in a row of its own.
    """

    stage: str = "blend"
    sft: tuple[str, ...] = ()
    sft_samples: int | None = None
    sft_arguments: Mapping[str, Any] = field(default_factory=dict)
    style: str = "auto"
    max_length: int = 2048
    share: int = 8

    def __post_init__(self) -> None:
        Mix.__post_init__(self)
        Tuning.__post_init__(self)
        object.__setattr__(self, "sft", (self.sft,) if isinstance(self.sft, str) else tuple(self.sft))
        for name, allowed in (("stage", STAGES), ("style", STYLES)):
            if getattr(self, name) not in allowed:
                raise InvalidInput(f"[options] {name} = {getattr(self, name)!r}; pass one of {', '.join(allowed)}.")
        if self.stage != "blend" and not self.sft:
            raise InvalidInput(f"[options] stage = {self.stage!r} needs chats: sft = [files or collections].")


def examples(recipe: Recipe, options: Options, progress: bool | None = None) -> list[Sample]:
    """Every sample of the run, drawn with its seed: those of stage one first, whose kind is "stage_one".

    Raises:
        InvalidInput: A file or folder is missing, or no task has a source.
        InvalidData: Bad rows, all of them, of every file.
    """
    problems: list[str] = []
    collections, chats = _read(recipe, options, problems)
    if problems:
        raise InvalidData(problems)
    rng = np.random.default_rng(recipe.seed)
    first: list[Sample] = []
    if options.stage != "blend":
        chosen = rng.permutation(len(chats))[: options.sft_samples]
        first = [replace(chat(chats[i]), kind=STAGE_ONE) for i in chosen]
    if options.stage == "sft":
        return first
    runs = [bm25_run(collection, top=recipe.data.negatives_top) for collection in collections]
    mixed = blend(collections, runs, chats, options, rng)
    log.info("The blend has %s; left out: %s", dict(mixed.counts), dict(mixed.left_out) or "nothing")
    return [*first, *mixed.samples]


def prepare(recipe: Recipe, options: Options, examples: Sequence[Sample], checkpoints: Path) -> Any:
    """TRL's trainer of the (last) stage, not yet trained; with stage = "both", stage one runs first.

    Args:
        recipe: The whole recipe.
        options: Its `[options]`.
        examples: What `examples` gave.
        checkpoints: Where the trainer writes.
    """
    start = language_model.begin(recipe.model, options.dtype)
    if options.stage == "both":
        start, options = _stage_one(recipe, options, examples, start, checkpoints)
    rows = encoded([one for one in examples if (one.kind == STAGE_ONE) == (options.stage == "sft")], start, options)
    return language_model.answer_trainer(start, options, rows, recipe, checkpoints, **ADAM)


def arguments(recipe: Recipe, options: Options, checkpoints: Path) -> Any:
    """The trainer's arguments of the (last) stage; those of stage one are tried too, where it runs.

    Raises:
        InvalidInput: `[arguments]` or `sft_arguments` does not fit.
    """
    if options.stage == "both":
        language_model.arguments(_first(recipe, options), checkpoints, **ADAM)
    return language_model.arguments(recipe, checkpoints, **ADAM)


def _first(recipe: Recipe, options: Options) -> Recipe:
    """The recipe of stage one."""
    return replace(recipe, arguments={**recipe.arguments, **options.sft_arguments})


def encoded(samples: Sequence[Sample], start: Start, options: Options) -> list[Row]:
    """Samples as rows of tokens; those that fit no length are left out.

    Raises:
        InvalidInput: None is left.
    """
    wording = wording_of(start, options.style)
    encoder = SampleEncoder(wording, start.text, start.ends, min(options.max_length, start.longest))
    rows = encoder.rows(samples, options.share if language_model.can_share(start, options.max_length) else 1)
    if not rows:
        raise InvalidInput(f"No sample fits max_length = {options.max_length}.")
    return rows


def wording_of(start: Start, style: str) -> Wording:
    """The prompts that `load_rankrag` will have in this style."""
    chats = style == "chat" or (style == "auto" and start.text.chat is not None)
    return chat_wording(start.text, start.name) if chats else PAPER


def save(trainer: Any, folder: Path, options: Options | None = None, unseen: Sequence[Any] = ()) -> None:
    """Writes the adapter, for `load_rankrag(base, adapter=folder)`, or the model, for `load_rankrag(folder)`."""
    language_model.save(trainer, folder)


def open_rankrag(model: str | Path, options: Options | None = None) -> RankRAG:
    """What a run began with, or what it wrote, as a `RankRAG`."""
    from tamis.rankrag.embedded import EMBEDDED, UNTUNED
    from tamis.rankrag.loading import load_rankrag
    from tamis.training import recipe

    style: Any = "auto" if options is None else options.style
    folder = Path(model)
    base = language_model.base_of(folder)
    if base is None and str(model) == recipe.EMBEDDED:
        return load_rankrag(adapter=UNTUNED, style=style)
    if base is None:
        return load_rankrag(model, style=style)
    return load_rankrag(None if base in (EMBEDDED, recipe.EMBEDDED) else base, adapter=folder, style=style)


def load(model: str | Path, options: Options) -> Reranker:
    """Its ranking half, which the run is judged by."""
    return open_rankrag(model, options).reranker


def check(recipe: Recipe, options: Options) -> int:
    """How many samples there are, and nothing wrong with their sources."""
    return len(examples(recipe, options))


def usage(folder: Path) -> str:
    """The call that opens what `save` wrote."""
    from tamis.rankrag.embedded import EMBEDDED
    from tamis.training import recipe

    base = language_model.base_of(folder)
    if base is None:
        return f'tamis.load_rankrag("{folder}")'
    first = "" if base in (EMBEDDED, recipe.EMBEDDED) else f'"{base}", '
    return f'tamis.load_rankrag({first}adapter="{folder}")'


def _read(recipe: Recipe, options: Options, problems: list[str]) -> tuple[list[Collection], list[tuple[Message, ...]]]:
    """Collections to train on and chats; what is wrong with rows is added to `problems`."""
    data = recipe.data
    collections: list[Collection] = []
    chats: list[tuple[Message, ...]] = []
    for name in dict.fromkeys([*data.train, *options.sft]):
        path = Path(name).expanduser()
        limit = data.limit_of(path) if name in data.train else None
        try:
            if path.suffix == ".jsonl":
                found = Problems()
                chats += drawn(read_chats(path, found), limit, np.random.default_rng(recipe.seed))
                problems += found.found
                continue
            collection = read_collection(path, "train").limited(limit, recipe.seed)
        except InvalidData as error:
            problems += error.problems
            continue
        if name in data.train:
            collections.append(collection)
        if name in options.sft:
            chats += collection_chats(collection)
    return collections, chats


def _stage_one(
    recipe: Recipe, options: Options, examples: Sequence[Sample], start: Start, checkpoints: Path
) -> tuple[Start, Options]:
    """Runs stage one, or finds it done, and gives what stage two begins with."""
    folder = checkpoints.parent / run_folder.STAGE_ONE
    done = folder / "done"
    if not done.exists():
        from tamis.training.progress import show_progress

        steps = folder / run_folder.CHECKPOINTS
        rows = encoded([one for one in examples if one.kind == STAGE_ONE], start, options)
        trainer = language_model.answer_trainer(start, options, rows, _first(recipe, options), steps, **ADAM)
        show_progress(trainer, None)
        trainer.train(resume_from_checkpoint=run_folder.last_checkpoint(steps))
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            save(trainer, folder)
            done.touch()
        trainer.accelerator.wait_for_everyone()
    if options.tune == "lora":
        return language_model.begin(recipe.model, options.dtype), replace(options, adapter=str(folder))
    return language_model.begin(str(folder), options.dtype), options
