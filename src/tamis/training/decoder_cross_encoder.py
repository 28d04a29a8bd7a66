"""Cross-encoders from decoders: NVIDIA's prompt as one string, pooled states, one linear layer without a bias.

As NeMo Retriever's 500M and 1B: a Llama whose tokens see each other both ways, and the mean over all tokens. As Rerank
QA Mistral-4B: the first layers of a deeper model, causal, and the last token. They are sentence-transformers' modules
while they train, and saved as transformers' `...ForSequenceClassification`. Only training imports this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.cross_encoder import CrossEncoder
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor
from transformers import AutoModelForSequenceClassification, set_seed

from tamis import transformer
from tamis.checkpoint import Checkpoint
from tamis.errors import InvalidInput
from tamis.families.decoders import check_pooling, temperature_of
from tamis.families.wordings import NVIDIA
from tamis.options import LoadOptions
from tamis.quiet import quiet
from tamis.training.adapters import adapt
from tamis.training.checkpoints import checkpoint, copy_tokenizer, emptied, fit_config, limit_length
from tamis.training.cross_encoder import Options
from tamis.training.processes import first_before_others, is_first
from tamis.training.recipe import Recipe

BIDIRECTIONAL = {
    "model_type": "llama_bidirec",
    "architectures": ["LlamaBidirectionalForSequenceClassification"],
    "is_causal": False,
}
POOLINGS = {"avg": "mean", "cls": "cls", "last": "lasttoken"}  # NVIDIA's words, and sentence-transformers'


class PromptedCrossEncoder(CrossEncoder):  # type: ignore[misc]  # untyped here
    """A CrossEncoder that reads query and passage in NVIDIA's prompt, as one string; what is too long is cut there.

    Attributes:
        temperature: What the checkpoint divides logits by: its head's weight is divided by it here.
    """

    temperature = 1.0

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Pairs as token ids; the library counts the tokens of single texts, too, for its statistics."""
        texts = [one if isinstance(one, str) else NVIDIA.render(*one) for one in inputs]
        features: dict[str, Any] = super().preprocess(texts, prompt, **kwargs)
        return features


def begin(recipe: Recipe, options: Options, folder: Path) -> PromptedCrossEncoder:
    """A decoder with a head of one label, which is new where the checkpoint has none.

    It pools as its config says, else the mean of a bidirectional one and the last token of a causal one.

    Args:
        recipe: `model` and `seed` are read.
        options: `num_layers`, `bidirectional`, `max_length` and `lora` are read.
        folder: Made: the checkpoint's files, with the config that it is trained with.

    Raises:
        InvalidInput: It is a GGUF file, or an option does not fit it.
        LoadError: It cannot be loaded.
    """
    found = checkpoint(recipe.model)
    if found.gguf is not None:
        raise InvalidInput(f"{recipe.model} is quantised; begin with the safetensors that it was made from.")
    found.check_weights()
    config = transformer.read_config(found, LoadOptions(num_layers=options.num_layers, attention="padded"))
    both_ways = options.bidirectional or getattr(config, "is_causal", True) is False
    if both_ways and config.model_type != "llama":
        raise InvalidInput(
            f"[options] bidirectional is for Llamas, whose layout says so; this is a {config.model_type}."
        )
    config.is_causal = not both_ways
    check_pooling(config, found)
    pooling = getattr(config, "pooling", None) or ("avg" if both_ways else "last")
    if both_ways:
        config.pooling = pooling  # a causal one is written as transformers has it, where the last token is not said
    temperature = temperature_of(found)
    fit_config(config, options)
    with first_before_others():
        if is_first():
            config.save_pretrained(emptied(folder))
            copy_tokenizer(found, folder)
            _link_weights(found.body, folder)
    with quiet():
        body = Transformer(
            str(folder),
            model_kwargs={"dtype": "float32", "local_files_only": True},
            modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            module_output_name="token_embeddings",
        )
    if body.tokenizer.pad_token is None:
        body.tokenizer.pad_token = body.tokenizer.eos_token
    body.model.config.pad_token_id = body.tokenizer.pad_token_id
    set_seed(recipe.seed)
    head = Dense(
        config.hidden_size,
        1,
        bias=False,
        activation_function=torch.nn.Identity(),
        init_weight=_head_weight(found, config) / temperature,
        module_output_name="scores",
    )
    model = PromptedCrossEncoder(modules=[body, Pooling(config.hidden_size, POOLINGS[pooling]), head])
    model.temperature = temperature
    limit_length(model, options.max_length, Checkpoint(found.name, folder), config)
    if options.lora is not None:
        adapt(model, options.lora)
    return model


def _link_weights(source: Path, folder: Path) -> None:
    """The weights in a second place without a second copy."""
    for file in (*source.glob("*.safetensors"), *source.glob("*.safetensors.index.json")):
        (folder / file.name).symlink_to(file.resolve())


def _head_weight(found: Checkpoint, config: Any) -> Tensor:
    """(1, hidden): the checkpoint's own, or a new one."""
    for path in sorted(found.body.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if "score.weight" in file.keys() and file.get_slice("score.weight").get_shape()[0] == 1:  # noqa: SIM118
                own: Tensor = file.get_tensor("score.weight")
                return own.float()
    return torch.randn(1, config.hidden_size) * float(getattr(config, "initializer_range", 0.02))


def write(model: PromptedCrossEncoder, folder: Path, dtype: torch.dtype) -> None:
    """Writes a trained one; a bidirectional Llama as `llama_bidirec`, which `tamis.load` knows, with its temperature.

    A causal one is written without: transformers' own class has none.

    Args:
        model: What `begin` made, an adapter merged.
        folder: Made.
        dtype: Of the weights.
    """
    body = model[0].model
    temperature = 1.0 if body.config.is_causal else model.temperature
    head = torch.nn.Linear(body.config.hidden_size, 1, bias=False)
    head.weight = torch.nn.Parameter(model[2].linear.weight.detach() * temperature)
    with torch.device("meta"):
        whole = AutoModelForSequenceClassification.from_config(body.config)
    setattr(whole, whole.base_model_prefix, body)
    whole.score = head
    whole.to(dtype).save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    if body.config.is_causal:
        _edit(folder / "tokenizer.json", _without_pairs)
    else:
        _edit(folder / "config.json", lambda config: config.update(BIDIRECTIONAL, temperature=temperature))


def _without_pairs(tokenizer: dict[str, Any]) -> None:
    """Nothing between the two texts of a pair, so that a reader that is not told of the prompt notices, and refuses."""
    first = tokenizer.get("post_processor") or {}
    for processor in first.get("processors", [first]):
        if processor.get("type") == "TemplateProcessing":
            second = {"Sequence": {"id": "B", "type_id": 0}}
            at = next(i for i, piece in enumerate(processor["single"]) if "Sequence" in piece) + 1
            processor["pair"] = [*processor["single"][:at], second, *processor["single"][at:]]


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
