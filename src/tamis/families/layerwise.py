"""Language models with a scalar head after each of several layers: FlagEmbedding's layerwise and lightweight series.

The released series differ in which head reads a layer. MiniCPM's has its own. The lightweight model's code counts the
layers that are asked for, so that a single one is always read by the first head, which was trained on another layer;
`head_index="reference"` does the same, and `head_index="layer"` what its training did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tamis.checkpoint import Checkpoint
from tamis.errors import CorruptCheckpoint, InvalidInput, UnknownFamily, UntrainedHead
from tamis.families import Family
from tamis.families.wordings import BGE, BGE_LIGHTWEIGHT
from tamis.options import LoadOptions
from tamis.prompts import Prompt
from tamis.scorers.base import Scorer

if TYPE_CHECKING:
    from tamis.engine.compression import Compression

COMPRESS_LAYERS = (8,)  # LightWeightFlagLLMReranker's default, which takes effect with a ratio


@dataclass(frozen=True, slots=True)
class Series:
    """What tells one series of layerwise checkpoints from another.

    Attributes:
        architecture: The class that its config names.
        prompt: What it reads.
        compresses: Whether passages may lose tokens on their way.
    """

    architecture: str
    prompt: Prompt
    compresses: bool = False

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint's config names the series' class."""
        return checkpoint.architecture == self.architecture


MINICPM = Series("LayerWiseMiniCPMForCausalLM", BGE)
LIGHTWEIGHT = Series("CostWiseGemmaForCausalLM", BGE_LIGHTWEIGHT, compresses=True)


def _build(series: Series, checkpoint: Checkpoint, options: LoadOptions) -> Scorer:
    from tamis import transformer
    from tamis.prompts import BoundPrompt
    from tamis.scorers.prompted import PromptedScorer

    _check_config(series, checkpoint)
    _check_options(series, options)
    heads = head_layers(checkpoint, options.num_layers)
    layers = _chosen(options.layer, heads, checkpoint.name)
    compression = _compression(checkpoint, options)
    first = series.compresses and options.head_index != "layer"
    make = partial(_load, heads, compression, first)
    return transformer.lease("layerwise", checkpoint, options, make, compression, first).hold(
        lambda lease: PromptedScorer(
            lease,
            model=checkpoint.name,
            mode="layerwise",
            prompt=BoundPrompt(
                series.prompt,
                lease.loaded.tokenizer,
                max_length=transformer.chosen_length(options, lease.loaded.longest, checkpoint.name),
                policy=options.long_documents,
            ),
            layers=layers,
            compresses=compression is not None,
        ),
    )


def _load(
    heads: range,
    compression: Compression | None,
    first: bool,
    checkpoint: Checkpoint,
    options: LoadOptions,
    devices: Sequence[Any],
    dtype: Any,
) -> Any:
    from tamis import transformer
    from tamis.cache import ByteLRU
    from tamis.engine.layerwise import layer_heads, layerwise_runner
    from tamis.engine.loaded import Loaded

    config = transformer.read_config(checkpoint, options)
    tokenizer, tokenizer_length = transformer.load_tokenizer(checkpoint, options)
    longest = transformer.longest_of(checkpoint, config, tokenizer_length)
    architecture = transformer.architecture_of(config, options)
    checkpoint.check_weights()
    weight = head_weights(checkpoint, len(heads), config.hidden_size)
    cap = getattr(config, "final_logit_softcapping", None)

    def runner(device: Any) -> Any:
        body, missing = transformer.load_model("AutoModel", checkpoint, config, options, dtype)
        if missing:
            raise CorruptCheckpoint(
                f"{checkpoint.name} lacks {len(missing)} weights of its body ({min(missing)}, ...): it was saved "
                "incompletely. Fetch the model again."
            )
        readout = layer_heads(weight.to(device), heads, cap=cap, first=first)
        return layerwise_runner(body.to(device), readout, architecture, tokenizer.pad_id, longest, compression)

    engine = transformer.engine([runner(device) for device in devices], devices[0], checkpoint, options)
    return Loaded(engine, tokenizer, longest, 1, ByteLRU(0), transformer.facts(checkpoint, devices, dtype))


def head_layers(checkpoint: Checkpoint, num_layers: int | None = None) -> range:
    """After which layers the checkpoint has a head, within the first `num_layers`.

    Raises:
        CorruptCheckpoint: Its config does not say.
        InvalidInput: None is left.
    """
    config = checkpoint.config
    for key in ("start_layer", "num_hidden_layers"):
        if key not in config:
            raise CorruptCheckpoint(f"The config.json of {checkpoint.name} lacks {key}. Fetch the model again.")
    start, depth, step = config["start_layer"], config["num_hidden_layers"], config.get("layer_sep", 1)
    heads = range(start, min(depth, num_layers or depth) + 1, step)
    if not heads:
        raise InvalidInput(f"num_layers={num_layers}, but the first head of {checkpoint.name} is after layer {start}.")
    return heads


def head_weights(checkpoint: Checkpoint, count: int, width: int) -> Any:
    """The weights of the first heads, (count, width) float32 tensor.

    Raises:
        UntrainedHead: One is missing.
        CorruptCheckpoint: One has another shape.
    """
    import torch
    from safetensors import safe_open

    names = [f"lm_head.{i}.linear_head.weight" for i in range(count)]
    found: dict[str, Any] = {}
    for path in sorted(checkpoint.body.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name).float() for name in set(names).intersection(file.keys())}
    lacking = [name for name in names if name not in found]
    if lacking:
        raise UntrainedHead(
            f"{checkpoint.name} lacks {len(lacking)} of its {count} heads ({lacking[0]}, ...), and would score at "
            "random there. Fetch the model again, or merge the adapter that it was trained with."
        )
    for name in names:
        if found[name].shape != (1, width):
            raise CorruptCheckpoint(
                f"{name} of {checkpoint.name} has the shape {tuple(found[name].shape)}; a head has {(1, width)}."
            )
    return torch.cat([found[name] for name in names])


def _check_config(series: Series, checkpoint: Checkpoint) -> None:
    """Raises UnknownFamily for what is not of the series, or has heads of another kind."""
    config = checkpoint.config
    if not series.matches(checkpoint):
        raise UnknownFamily(
            f"{checkpoint.name} holds {checkpoint.architecture or 'no architecture'}; this family's checkpoints hold "
            f"{series.architecture}."
        )
    for key, value in (("head_type", "simple"), ("head_multi", True), ("layer_wise", True)):
        if config.get(key, value) != value:
            raise UnknownFamily(
                f"{checkpoint.name} has {key}={config[key]!r} in its config.json; Tamis reads a scalar head of its own "
                f"after each layer ({key}={value!r}), as it was published."
            )


def _check_options(series: Series, options: LoadOptions) -> None:
    compressing = ("compress_ratio", "compress_layers", "head_index")
    if not series.compresses:
        for name in compressing:
            if getattr(options, name) is not None:
                raise InvalidInput(f"{name}= is for bge-reranker-v2.5-gemma2-lightweight and its kind; leave it out.")
    options.allow("layerwise", "layer", *compressing)


def _chosen(layer: int | tuple[int, ...] | None, heads: range, name: str) -> tuple[int, ...]:
    layers = (heads[-1],) if layer is None else (layer,) if isinstance(layer, int) else layer
    for one in layers:
        if one not in heads:
            step = f", every {heads.step}" if heads.step > 1 else ""
            raise InvalidInput(
                f"layer={one}, but {name} is loaded with heads after layers {heads[0]} to {heads[-1]}{step}."
            )
    return layers


def _compression(checkpoint: Checkpoint, options: LoadOptions) -> Compression | None:
    """What the options ask for; nothing is compressed without a ratio.

    Raises:
        InvalidInput: There are layers without a ratio, or beyond the model; or it is to run padded.
    """
    from tamis.engine.compression import Compression

    layers, depth = options.compress_layers or COMPRESS_LAYERS, checkpoint.config["num_hidden_layers"]
    if options.compress_layers is not None and options.compress_ratio is None:
        raise InvalidInput("compress_layers= does nothing without compress_ratio=; pass 2, 4 or 8.")
    if max(layers) >= depth and options.compress_ratio is not None:
        raise InvalidInput(
            f"compress_layers={list(layers)}, but {checkpoint.name} has {depth} layers: passages can be compressed "
            f"before layers 1 to {depth - 1}."
        )
    if options.compress_ratio in (None, 1):
        return None
    if options.attention == "padded":
        raise InvalidInput('compress_ratio= and attention="padded" exclude each other; leave one of them out.')
    return Compression(options.compress_ratio or 1, layers)


FAMILIES = (
    Family(
        "bge-reranker-v2-minicpm-layerwise",
        "layerwise",
        "bge-reranker-v2-minicpm-layerwise; layer= 8 to 40",
        "sigmoid of the layer's head at the last token",
        partial(_build, MINICPM),
        matches=MINICPM.matches,
        template="A: {query} / B: {passage} / task",
    ),
    Family(
        "bge-reranker-v2.5-gemma2-lightweight",
        "layerwise",
        "bge-reranker-v2.5-gemma2-lightweight; layer= 8 to 42, compress_ratio= and compress_layers=, head_index=",
        "sigmoid of the layer's head at the last token, bounded",
        partial(_build, LIGHTWEIGHT),
        matches=LIGHTWEIGHT.matches,
        template="A: {query} / B: {passage} / task",
    ),
)
