"""Recipe `llm-reranker`: a causal language model that is asked whether a passage answers a query, and says yes or no.

The score is the logit of yes less that of no, before the model says anything. Trained with sentence-transformers'
CrossEncoderTrainer over its LogitScore module, with any of its ranking losses; a model without that module is asked in
Tamis's zero-shot words, which become the roles `query` and `document` of its chat template, so that a chat model begins
where `tamis.load(model, mode="causal-lm")` stands.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.errors import InvalidInput
from tamis.training import cross_encoder, language_model
from tamis.training.adapters import Lora, adapt, merge
from tamis.training.arguments import trainer_arguments, without_card
from tamis.training.checkpoints import emptied
from tamis.training.processes import first_before_others, is_first
from tamis.training.ranking_losses import columns, make_loss
from tamis.training.recipe import Recipe, from_table
from tamis.training.rows import Example

if TYPE_CHECKING:
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer

    from tamis.checkpoint import Checkpoint
    from tamis.reranker import Reranker

NAME = "llm-reranker"
FULL = "full"
_MODULES = [
    ("", "sentence_transformers.base.modules.transformer.Transformer"),
    ("1_LogitScore", "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"),
]
_SLOTS = {"{query}": "query", "{passage}": "document"}
_LOGITS = {"method": "forward", "method_output_name": "logits"}


@dataclass(frozen=True, slots=True)
class Options:
    """The table `[options]` of an LLM reranker's recipe.

    Attributes:
        loss: As a cross-encoder's: "bce", "mse", "ranknet", "listwise", "lambda", "contrastive" or "margin-mse".
        tune: "lora" trains an adapter, which is merged when the model is saved; "full" all weights.
        lora: The adapter.
        instruction: What the model is told to judge, instead of the usual task; only where the prompt is Tamis's.
        num_layers: Keep only the first layers of a deeper model.
        max_length: Tokens of the prompt with query and passage.
        label_weight: As a cross-encoder's.
        temperature: As a cross-encoder's.
        mini_batch: Pairs in one forward; None is the whole batch.
        dtype: Of the saved weights.
    """

    loss: str = "listwise"
    tune: str = "lora"
    lora: Lora = field(default_factory=Lora)
    instruction: str | None = None
    num_layers: int | None = None
    max_length: int = 512
    label_weight: float = 10.0
    temperature: float = 1.0
    mini_batch: int | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.tune not in ("lora", FULL):
            raise InvalidInput(f'[options] tune = {self.tune!r}; pass "lora" or "full".')
        if isinstance(self.lora, dict):
            object.__setattr__(self, "lora", from_table(Lora, self.lora, "[options] lora"))
        self.ranking()

    def ranking(self) -> cross_encoder.Options:
        """What it has in common with a cross-encoder."""
        return cross_encoder.Options(
            loss=self.loss,
            max_length=self.max_length,
            label_weight=self.label_weight,
            temperature=self.temperature,
            mini_batch=self.mini_batch,
            dtype=self.dtype,
        )


def prepare(recipe: Recipe, options: Options, examples: Sequence[Example], checkpoints: Path) -> CrossEncoderTrainer:
    """A sentence-transformers trainer with model, loss and data in it, not yet trained.

    Args:
        recipe: The whole recipe.
        options: Its `[options]`.
        examples: Shuffled.
        checkpoints: Where the trainer writes.

    Raises:
        InvalidInput: The examples lack what the loss needs.
        UnknownFamily: The model has no chat template, or no single tokens for yes and no.
    """
    language_model.check_installed()
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoderTrainer
    from transformers import set_seed

    set_seed(recipe.seed)  # of the adapter
    ranking = options.ranking()
    rows = columns(examples, ranking)
    model = start(recipe, options, checkpoints.parent / "start")
    if options.tune != FULL:
        adapt(model, options.lora)
    return CrossEncoderTrainer(
        model=without_card(model),
        args=arguments(recipe, options, checkpoints),
        train_dataset=Dataset.from_dict(rows),
        loss=make_loss(model, ranking),
    )


def arguments(recipe: Recipe, options: Options, checkpoints: Path) -> Any:
    """sentence-transformers' own arguments.

    Raises:
        InvalidInput: `[arguments]` does not fit.
    """
    from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments

    usual = {"ddp_find_unused_parameters": False}
    return trainer_arguments(CrossEncoderTrainingArguments, recipe, checkpoints, usual)


def start(recipe: Recipe, options: Options, folder: Path) -> CrossEncoder:
    """A CrossEncoder over a causal language model, written to `folder` in the layout that it will be saved in."""
    from sentence_transformers.cross_encoder import CrossEncoder

    from tamis.families.chat import is_logit_score
    from tamis.quiet import quiet

    found = language_model.checkpoint(recipe.model)
    with first_before_others():
        if is_first() and is_logit_score(found):
            shutil.copytree(found.root, emptied(folder), dirs_exist_ok=True)
        elif is_first():
            write_layout(found, recipe.model, options, emptied(folder))
    with quiet():
        return CrossEncoder(str(folder), max_length=options.max_length, local_files_only=True)


def write_layout(found: Checkpoint, name: str, options: Options, folder: Path) -> None:
    """A plain causal language model in sentence-transformers' LogitScore layout, asked in Tamis's zero-shot words."""
    from tamis.families.chat import yes_no_ids, zero_shot_prompt
    from tamis.options import LoadOptions

    start = language_model.begin(name, num_layers=options.num_layers)
    prompt = zero_shot_prompt(start.text, found, LoadOptions(instruction=options.instruction))
    yes, no = yes_no_ids(start.text, found)
    start.tokenizer.chat_template = roles_template(prompt.pieces[0], strip=prompt.strip)
    start.model.save_pretrained(folder)
    start.tokenizer.save_pretrained(folder)
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(_MODULES)]
    score = {"true_token_id": yes, "false_token_id": no, "module_input_name": "causal_logits"}
    transformer = {
        "transformer_task": "text-generation",
        "modality_config": {"text": _LOGITS, "message": {**_LOGITS, "format": "flat"}},
        "module_output_name": "causal_logits",
    }
    card = {"model_type": "CrossEncoder", "prompts": {}, "activation_fn": "torch.nn.modules.linear.Identity"}
    (folder / _MODULES[1][0]).mkdir()
    for path, content in (
        ("modules.json", modules),
        (f"{_MODULES[1][0]}/config.json", score),
        ("sentence_bert_config.json", transformer),
        ("config_sentence_transformers.json", card),
    ):
        (folder / path).write_text(json.dumps(content, indent=2), encoding="utf-8")


def roles_template(text: str, *, strip: bool = False) -> str:
    """A prompt with {query} and {passage} as a chat template with the roles query and document.

    >>> roles_template("{query}!")
    '{{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first | default("") }}{{ "!" }}'
    """
    parts = []
    for piece in re.split(r"(\{query\}|\{passage\})", text):
        if piece in _SLOTS:
            role = _SLOTS[piece]
            trim = " | trim" if strip else ""
            said = f'messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first | default("")'
            parts.append(f"{{{{ {said}{trim} }}}}")
        elif piece:
            parts.append(f"{{{{ {json.dumps(piece, ensure_ascii=False)} }}}}")
    return "".join(parts)


def save(trainer: CrossEncoderTrainer, folder: Path, options: Options, unseen: Sequence[Example] = ()) -> None:
    """Writes what `tamis.load` and `CrossEncoder` open: whole weights in safetensors, the adapter merged."""
    import torch

    model = trainer.model
    if options.tune != FULL:
        merge(model)
    model.to(getattr(torch, options.dtype))
    model.save_pretrained(str(folder), safe_serialization=True)


def load(model: str | Path, options: Options) -> Reranker:
    """The reranker that the run is judged by; a chat model that was not tuned yet is asked zero-shot."""
    from tamis import load as load_reranker
    from tamis.families.chat import is_logit_score

    found = language_model.checkpoint(str(model))
    told: dict[str, Any] = {}
    if not is_logit_score(found):
        told = {"mode": "causal-lm", "instruction": options.instruction, "num_layers": options.num_layers}
    where = found.root / found.gguf if found.gguf else found.root
    return load_reranker(where, max_length=options.max_length, **told)
