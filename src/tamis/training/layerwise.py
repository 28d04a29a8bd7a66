"""Recipe `layerwise`: a decoder with a scalar head after each of several layers, which teach each other.

As FlagEmbedding's layerwise rerankers are trained (github.com/FlagOpen/FlagEmbedding; Liu et al. 2025, Matroyshka
Re-Ranker): every layer's scores of a query's passages are trained towards the relevant one, and the shallower layers
towards the deepest one's softmax too, so that leaving early costs little. Saved in the layout of
bge-reranker-v2-minicpm-layerwise, which `tamis.load` opens: `layer=` chooses the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.errors import InvalidInput
from tamis.training import language_model
from tamis.training.arguments import trainer_arguments
from tamis.training.language_model import Tuning
from tamis.training.ranking_losses import asked
from tamis.training.recipe import NO_TEACHER, Recipe
from tamis.training.rows import Example

if TYPE_CHECKING:
    from tamis.reranker import Reranker

NAME = "layerwise"
READS = NO_TEACHER


@dataclass(frozen=True, kw_only=True)
class Options(Tuning):
    """The table `[options]` of a layerwise recipe: those of `Tuning` and more; an adapter is merged when it is saved.

    Attributes:
        first_layer: After which layer the first head reads; the middle one if None.
        every: A head after every so many layers from there on. The deepest layer has to be among them.
        distil: Weight of the shallower layers' divergence from the deepest one; 0 is none.
        num_layers: Keep only the first layers of a deeper model.
        passages: Of a query in each example: the first relevant one, and others.
        max_length: Tokens of a prompt with query and passage.
    """

    first_layer: int | None = None
    every: int = 1
    distil: float = 1.0
    num_layers: int | None = None
    passages: int = 8
    max_length: int = 512

    def __post_init__(self) -> None:
        Tuning.__post_init__(self)
        for name, least in (("every", 1), ("passages", 2), ("max_length", 64)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidInput(f"[options] {name} = {value!r}; pass a whole number of at least {least}.")
        if self.adapter is not None:
            raise InvalidInput("[options] adapter = is not for layerwise models; begin with a merged model.")

    def layers(self, depth: int) -> range:
        """After which layers of `depth` there is a head.

        Raises:
            InvalidInput: The deepest one has none.
        """
        first = depth // 2 if self.first_layer is None else self.first_layer
        heads = range(first, depth + 1, self.every)
        if not 1 <= first <= depth or heads[-1] != depth:
            raise InvalidInput(
                f"[options] first_layer = {first} and every = {self.every} leave the deepest layer, {depth}, without a "
                "head."
            )
        return heads


def prepare(recipe: Recipe, options: Options, examples: Sequence[Example], checkpoints: Path) -> Any:
    """The Trainer of transformers with the heads, the loss and the data in it, not yet trained.

    Args:
        recipe: The whole recipe.
        options: Its `[options]`.
        examples: Those with a relevant passage and another one are used.
        checkpoints: Where the trainer writes.

    Raises:
        InvalidInput: No example has both, or the model is of an architecture that the layout does not hold.
    """
    language_model.check_installed()
    from transformers import set_seed

    from tamis.training.layerwise_trainer import GroupCollator, LayerwiseModel, LayerwiseTrainer, tokenised

    set_seed(recipe.seed)  # of heads and adapter
    start = language_model.begin(recipe.model, options.dtype, num_layers=options.num_layers)
    check_architecture(start.model.config)
    rows = tokenised(groups(examples, options.passages), start.text, options.max_length)
    body = start.model.base_model.requires_grad_(options.tune == "full")
    if options.tune == "lora":
        from peft import get_peft_model

        with language_model.quiet_peft():
            body = get_peft_model(body, language_model.lora_config(options.lora, "FEATURE_EXTRACTION"))
    return LayerwiseTrainer(
        model=LayerwiseModel(body, options.layers(start.model.config.num_hidden_layers)),
        args=arguments(recipe, options, checkpoints),
        train_dataset=rows,
        processing_class=start.tokenizer,
        data_collator=GroupCollator(start.tokenizer.pad_token_id),
        distil=options.distil,
    )


def arguments(recipe: Recipe, options: Options, checkpoints: Path) -> Any:
    """Transformers' own arguments.

    Raises:
        InvalidInput: `[arguments]` does not fit.
    """
    from transformers import TrainingArguments

    return trainer_arguments(TrainingArguments, recipe, checkpoints, {"remove_unused_columns": False})


def groups(examples: Sequence[Example], size: int) -> list[tuple[str, list[str]]]:
    """Queries with `size` passages each, the first one relevant; where there are too few others, they come again.

    A query stands behind what its row puts before it.

    Raises:
        InvalidInput: No example has a relevant passage and another one.
    """
    found = [
        (asked(e), [e.positives[0], *(e.negatives[i % len(e.negatives)] for i in range(size - 1))])
        for e in examples
        if e.labels and e.positives and e.negatives
    ]
    if not found:
        raise InvalidInput("No example has a relevant passage and another one, which the recipe needs.")
    return found


def check_architecture(config: Any) -> None:
    """Raises InvalidInput where the layout cannot say what the model computes: it holds what a Llama does."""
    text = config.get_text_config()
    window, head = getattr(text, "sliding_window", None), getattr(text, "head_dim", None)
    plain = text.model_type in ("llama", "mistral") and not window and text.hidden_act == "silu"
    if (
        not plain
        or (head or text.hidden_size // text.num_attention_heads) * text.num_attention_heads != text.hidden_size
    ):
        raise InvalidInput(
            f"The layerwise layout holds Llama's arithmetic, and this {text.model_type} has more or other parts. Begin "
            "with a Llama, or a Mistral without a window."
        )


def save(trainer: Any, folder: Path, options: Options, unseen: Sequence[Example] = ()) -> None:
    """Writes body and heads in the layout of bge-reranker-v2-minicpm-layerwise, the adapter merged."""
    import json

    from safetensors.torch import save_file

    model = trainer.accelerator.unwrap_model(trainer.model)
    body = model.body.merge_and_unload() if options.tune == "lora" else model.body
    weights = {f"model.{name}": tensor.detach().contiguous().cpu() for name, tensor in body.state_dict().items()}
    for i in range(len(model.layers)):
        weights[f"lm_head.{i}.linear_head.weight"] = model.heads.weight[i : i + 1].detach().clone().cpu()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.dumps(layout(body.config, model.layers), indent=2)
    (folder / "config.json").write_text(config, encoding="utf-8")
    trainer.processing_class.save_pretrained(str(folder))


def layout(config: Any, layers: range) -> dict[str, Any]:
    """The `config.json` of a MiniCPM that computes what the Llama of `config` does: all of its factors are 1."""
    rope = dict(getattr(config, "rope_parameters", None) or {})
    kept = (
        "attention_bias", "attention_dropout", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size",
        "initializer_range", "intermediate_size", "max_position_embeddings", "mlp_bias", "num_attention_heads",
        "num_hidden_layers", "num_key_value_heads", "pad_token_id", "rms_norm_eps", "vocab_size",
    )  # fmt: skip
    scaled = {} if rope.get("rope_type", "default") == "default" else {"rope_scaling": rope}
    return {
        "architectures": ["LayerWiseMiniCPMForCausalLM"],
        "model_type": "minicpm",
        **{key: getattr(config, key) for key in kept if hasattr(config, key)},
        "rope_theta": rope.get("rope_theta", 10_000.0),
        **scaled,
        "scale_emb": 1,
        "scale_depth": config.num_hidden_layers**0.5,  # the published code divides by the root of the depth
        "dim_model_base": config.hidden_size,
        "start_layer": layers[0],
        "layer_sep": layers.step,
        "layer_wise": True,
        "head_multi": True,
        "head_type": "simple",
        "torch_dtype": str(config.dtype).removeprefix("torch."),
    }


def load(model: str | Path, options: Options) -> Reranker | None:
    """The reranker that the run is judged by, at its deepest layer; None for a model that has no heads yet."""
    from tamis import load as load_reranker
    from tamis.families.layerwise import MINICPM

    found = language_model.checkpoint(str(model))
    if not MINICPM.matches(found):
        return None
    return load_reranker(found.root, max_length=options.max_length)
