"""What the recipes over causal language models share: the model that training begins with, and TRL's trainer over it.

The loss is on what the model is to say alone. TRL's own trainer computes, on a CPU, the logits of every position, which
for a small model with a large vocabulary is a third of the work; here the model's own `logits_to_keep` computes those
that the loss needs (`tamis.training.answer_trainer`). The loss is the same number.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.checkpoint import Checkpoint, read_json
from tamis.errors import InvalidInput
from tamis.extras import need
from tamis.options import LoadOptions
from tamis.training.adapters import Lora
from tamis.training.arguments import trainer_arguments
from tamis.training.recipe import EMBEDDED, Recipe, from_table

if TYPE_CHECKING:
    from tamis.tokenizing import TextTokenizer

DTYPES = ("float32", "bfloat16", "float16")
ADAPTER = "adapter_config.json"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a language model's weights change.

    Attributes:
        tune: "lora" trains an adapter, "full" all weights.
        lora: The adapter, where there is one.
        adapter: A folder with an adapter that training goes on with, such as a first stage's.
        dtype: Of the weights that training begins with; an adapter's own are float32 whatever it is.
    """

    tune: str = "lora"
    lora: Lora = field(default_factory=Lora)
    adapter: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if isinstance(self.lora, Mapping):
            object.__setattr__(self, "lora", from_table(Lora, self.lora, "[options] lora"))
        if self.tune not in ("lora", "full"):
            raise InvalidInput(f'[options] tune = {self.tune!r}; pass "lora" or "full".')
        if self.dtype not in DTYPES:
            raise InvalidInput(f"[options] dtype = {self.dtype!r}; pass one of {', '.join(DTYPES)}.")
        if self.tune == "full" and self.adapter is not None:
            raise InvalidInput('[options] adapter = is for tune = "lora"; merge it, and begin with the merged model.')


@dataclass(frozen=True, slots=True)
class Start:
    """A causal language model that is about to be trained.

    Attributes:
        model: On the host, every weight frozen.
        tokenizer: transformers' tokenizer.
        text: The same one, as prompts use it.
        ends: Tokens that end what it says.
        longest: Tokens that it reads at most.
        name: What it is called.
    """

    model: Any
    tokenizer: Any
    text: TextTokenizer
    ends: tuple[int, ...]
    longest: int
    name: str


def checkpoint(model: str) -> Checkpoint:
    """The files of what a recipe calls its model; "embedded" is SmolLM2-135M-Instruct."""
    from tamis.rankrag.embedded import embedded

    return embedded() if model == EMBEDDED else Checkpoint.find(model)


def begin(model: str, dtype: str = "float32", *, num_layers: int | None = None) -> Start:
    """Loads a causal language model to train it; a GGUF file is dequantised.

    Raises:
        LoadError: It cannot be loaded, or is no causal language model.
    """
    import torch
    from transformers import AutoTokenizer

    from tamis import transformer
    from tamis.quiet import quiet
    from tamis.rankrag.labels import ends_of

    found = checkpoint(model)
    transformer.check_causal(found)
    options = LoadOptions(attention="padded", num_layers=num_layers)  # what runs packed keeps no gradients
    config = transformer.read_config(found, options)
    loaded, missing = transformer.load_model("AutoModelForCausalLM", found, config, options, getattr(torch, dtype))
    transformer.check_missing(loaded, missing, found, options)
    text, longest = transformer.load_tokenizer(found, options)
    with quiet():
        gguf = {"gguf_file": found.gguf} if found.gguf else {}
        tokenizer = AutoTokenizer.from_pretrained(found.body, local_files_only=True, **gguf)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    longest = transformer.longest_of(found, config, longest)
    return Start(loaded, tokenizer, text, ends_of(loaded, text), longest, found.name)


def can_share(start: Start, max_length: int) -> bool:
    """Whether samples can share a row: where attention takes a mask of any shape, and looks back over a whole row."""
    config = start.model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    return config._attn_implementation == "sdpa" and (window is None or window >= max_length)


def answer_trainer(
    start: Start, tuning: Tuning, rows: Sequence[Mapping[str, Any]], recipe: Recipe, checkpoints: Path, **usual: Any
) -> Any:
    """TRL's SFTTrainer over rows of `input_ids`, `labels`, `parts` and `length`; not yet trained.

    Args:
        start: What `begin` gave.
        tuning: Adapter or all weights.
        rows: The labels are -100 where there is no loss.
        recipe: `seed` and `arguments` are read.
        checkpoints: Where the trainer writes.
        usual: Arguments that the recipe has of its own, where the user's say nothing.

    Raises:
        MissingExtra: TRL or PEFT is not installed.
        InvalidInput: An argument that the trainer does not take, or an adapter of another model.
    """
    check_installed()
    from datasets import Dataset

    from tamis.training.answer_trainer import AnswerCollator, AnswerTrainer

    model, lora = adapted(start, tuning)
    with quiet_peft():
        trainer = AnswerTrainer(
            model=model,
            args=arguments(recipe, checkpoints, **usual),
            train_dataset=Dataset.from_list([dict(row) for row in rows]),
            processing_class=start.tokenizer,
            peft_config=lora,
            data_collator=AnswerCollator(start.tokenizer.pad_token_id),
            base=start.name,
        )
    for config in getattr(trainer.model, "peft_config", {}).values():
        config.base_model_name_or_path = ""  # until `save`: PEFT looks a name up on the hub each time that it saves
    return trainer


def arguments(recipe: Recipe, checkpoints: Path, **usual: Any) -> Any:
    """TRL's arguments: those of the recipe, and what suits the machine where nothing is said.

    Raises:
        InvalidInput: One that there is not, or that does not go with another.
    """
    import torch
    from trl import SFTConfig

    given = {**usual, **recipe.arguments}
    cuda = torch.cuda.is_available()
    suited: dict[str, Any] = {
        "ddp_find_unused_parameters": False,
        "bf16": "fp16" not in given and (cuda or _fast_bfloat16()),
        "train_sampling_strategy": "random" if given.get("per_device_train_batch_size") == 1 else "group_by_length",
    }
    if not {"activation_checkpointing", "gradient_checkpointing"} & set(given):
        suited["activation_checkpointing"] = False  # TRL's default saves memory, and takes a third more time
    fixed = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    return trainer_arguments(SFTConfig, recipe, checkpoints, {**suited, **usual}, fixed)


def adapted(start: Start, tuning: Tuning) -> tuple[Any, Any]:
    """The model as it is trained, and the configuration of the adapter that is still to be put in, or None.

    Raises:
        InvalidInput: The adapter belongs to another model.
    """
    if tuning.tune == "full":
        return start.model.requires_grad_(True), None
    if tuning.adapter is not None:
        from peft import PeftModel

        if not (Path(tuning.adapter) / ADAPTER).is_file():
            raise InvalidInput(f"[options] adapter = {tuning.adapter!r} holds no {ADAPTER}.")
        try:
            with quiet_peft():
                return PeftModel.from_pretrained(start.model, tuning.adapter, is_trainable=True), None
        except (RuntimeError, ValueError, KeyError) as error:
            why = str(error).strip().splitlines()[0]
            raise InvalidInput(f"The adapter {tuning.adapter} does not fit {start.name}: {why}") from error
    return start.model, lora_config(tuning.lora)


def lora_config(lora: Lora, task: str = "CAUSAL_LM") -> Any:
    """PEFT's configuration of an adapter for a task that PEFT knows."""
    from peft import LoraConfig

    return LoraConfig(
        task_type=task,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.modules if isinstance(lora.modules, str) else list(lora.modules),
    )


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silences what PEFT asks of transformers by a name that is on its way out: no caller can help it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield


def save(trainer: Any, folder: Path) -> None:
    """Puts the adapter, or the whole model and its tokenizer, into a folder: safetensors for transformers and PEFT.

    Args:
        trainer: What `answer_trainer` gave, after training.
        folder: Made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = (
        ("adapter_*",) if (trainer.written / ADAPTER).is_file() else ("*.safetensors", "*.json", "*.jinja", "*.model")
    )
    for file in (file for pattern in kept for file in trainer.written.glob(pattern)):
        shutil.move(file, folder / file.name)
    shutil.rmtree(trainer.written)
    if (folder / ADAPTER).is_file():
        config = read_json(folder / ADAPTER)
        content = json.dumps({**config, "base_model_name_or_path": trainer.base}, indent=2)
        (folder / ADAPTER).write_text(content, encoding="utf-8")


def base_of(folder: Path) -> str | None:
    """The base model that a folder's adapter names; None where the folder holds a whole model."""
    if not (folder / ADAPTER).is_file():
        return None
    config = read_json(folder / ADAPTER)
    return str(config.get("base_model_name_or_path"))


def check_installed() -> None:
    """Raises MissingExtra if TRL or PEFT is not there."""
    for module in ("datasets", "peft", "trl"):
        need(module, "train", "Training")


def _fast_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16."""
    import torch

    from tamis.engine.devices import choose_dtype

    return choose_dtype("auto", torch.device("cpu")) == torch.bfloat16
