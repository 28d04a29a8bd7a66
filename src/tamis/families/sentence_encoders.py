"""Bi-encoders: sentence-transformers' module layouts, and plain encoders with mean pooling."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from tamis.checkpoint import Checkpoint, Module, check_safetensors
from tamis.errors import CorruptCheckpoint, InvalidInput, UnknownFamily
from tamis.families import Family
from tamis.options import LoadOptions
from tamis.scorers.base import Scorer

logger = logging.getLogger(__name__)

_PASSAGE_PROMPTS = ("document", "passage", "corpus")  # the first that a checkpoint has
_NO_OPERATION = ("Normalize", "Dropout")  # cosines normalise by themselves


def build(checkpoint: Checkpoint, options: LoadOptions, *, normalize_first: bool = False) -> Scorer:
    """A bi-encoder over the shared engine of the checkpoint."""
    from tamis import transformer
    from tamis.scorers.bi_encoder import BiEncoderScorer

    options.allow("bi-encoder", "dim", "instruction")
    prompts = checkpoint.sentence_config.get("prompts") or {}
    return transformer.held(
        transformer.lease("bi-encoder", checkpoint, options, _load),
        lambda lease: BiEncoderScorer(
            lease,
            model=checkpoint.name,
            max_length=transformer.chosen_length(options, lease.loaded.longest, checkpoint.name),
            dims=_dims(options.dim, lease.loaded.width, checkpoint.name),
            query_prompt=prompts.get("query", "") if options.instruction is None else options.instruction,
            passage_prompt=next((prompts[name] for name in _PASSAGE_PROMPTS if name in prompts), ""),
            normalize_first=normalize_first,
            long_documents=options.long_documents,
        ),
    )


def _load(checkpoint: Checkpoint, options: LoadOptions, devices: Sequence[Any], dtype: Any) -> Any:
    import torch
    from transformers import AutoModel

    from tamis import transformer
    from tamis.cache import ByteLRU
    from tamis.engine.backbone import Backbone, Readable, probe
    from tamis.engine.loaded import Loaded

    readout = _readout(checkpoint)
    config = transformer.read_config(checkpoint, options)
    tokenizer, tokenizer_length = transformer.load_tokenizer(checkpoint, options)
    longest = transformer.longest_of(checkpoint, config, tokenizer_length)
    architecture = transformer.architecture_of(checkpoint, options)

    def runner(device: Any) -> Readable:
        model, missing = transformer.load_model(AutoModel, checkpoint, config, options, dtype)
        lacking = sorted(key for key in missing if not key.startswith("pooler."))
        if lacking:
            raise CorruptCheckpoint(
                f"{checkpoint.name} lacks {len(lacking)} weights of its encoder ({lacking[0]}, ...): it belongs to "
                "another architecture than its config.json says, or it was saved incompletely."
            )
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # a head for other tasks
        encoder = Backbone(model.to(device), architecture, tokenizer.pad_id or 0)
        with torch.inference_mode():
            encoder.check(config.vocab_size, longest)
            encoder.tune(config.vocab_size, longest, first_only=_poolings(checkpoint) == ("cls",))
        return Readable(encoder, readout(device))

    runners = [runner(device) for device in devices]
    width = len(runners[0].run([probe(8, config.vocab_size, config)])[0])
    engine = transformer.engine(runners, devices[0], checkpoint, options)
    facts = transformer.facts(checkpoint, devices, dtype)
    return Loaded(engine, tokenizer, longest, width, ByteLRU(options.cache_bytes), facts)


def _readout(checkpoint: Checkpoint) -> Callable[[Any], Any]:
    """The modules behind the transformer, as one function of hidden states, in float32.

    Raises:
        UnknownFamily: The checkpoint has a module that Tamis does not compute.
    """
    from tamis.engine.pooling import POOLS

    modules = checkpoint.modules[1:] or (Module("Pooling", checkpoint.root, {"pooling_mode": "mean"}),)
    if modules[0].kind != "Pooling":
        raise _unknown(checkpoint, modules[0].kind, "before pooling")
    names = _poolings(checkpoint)
    if not set(names) <= set(POOLS):
        raise _unknown(checkpoint, f"Pooling {names}", "as its pooling")
    if modules[0].config.get("include_prompt") is False and any(
        (checkpoint.sentence_config.get("prompts") or {}).values()
    ):
        raise _unknown(checkpoint, "Pooling(include_prompt=False)", "with its prompts")
    layers = [make for module in modules[1:] if (make := _layer(checkpoint, module)) is not None]

    def on(device: Any) -> Any:
        import torch

        heads = [make().to(device) for make in layers]
        pools = [POOLS[name] for name in names]

        def read(hidden: Any, layout: Any) -> Any:
            x = torch.cat([pool(hidden, layout) for pool in pools], dim=1)
            for head in heads:
                x = head(x)
            return x

        return read

    return on


def _poolings(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The new key `pooling_mode`, or the old ones, `pooling_mode_mean_tokens: true` and the like; mean by default."""
    config: Mapping[str, Any] = checkpoint.modules[1].config if len(checkpoint.modules) > 1 else {}
    mode = config.get("pooling_mode")
    if mode is not None:
        return (mode,) if isinstance(mode, str) else tuple(mode)
    old = {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_max_tokens": "max",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens": "weightedmean",
        "pooling_mode_lasttoken": "lasttoken",
    }
    return tuple(name for key, name in old.items() if config.get(key)) or ("mean",)


def _layer(checkpoint: Checkpoint, module: Module) -> Callable[[], Any] | None:
    if module.kind in _NO_OPERATION:
        return None
    if module.kind == "Dense" and not module.config.get("use_residual"):
        return partial(_dense, module, checkpoint.name)
    if module.kind == "LayerNorm":
        return partial(_layer_norm, module, checkpoint.name)
    raise _unknown(checkpoint, module.kind, "after pooling")


def _dense(module: Module, name: str) -> Any:
    import torch

    config = module.config
    linear = torch.nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    _fill(linear, "linear.", module, name)
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1]
    if not hasattr(torch.nn.modules.activation, activation) and activation != "Identity":
        raise UnknownFamily(f"{name} has a Dense layer with the activation {activation}, which is not one of torch's.")
    return torch.nn.Sequential(linear, getattr(torch.nn, activation)())


def _layer_norm(module: Module, name: str) -> Any:
    import torch

    norm = torch.nn.LayerNorm(module.config["dimension"])
    _fill(norm, "norm.", module, name)
    return norm


def _fill(layer: Any, prefix: str, module: Module, name: str) -> None:
    from safetensors.torch import load_file

    check_safetensors(module.folder, name)
    weights = load_file(module.folder / "model.safetensors")
    try:
        layer.load_state_dict({key.removeprefix(prefix): value.float() for key, value in weights.items()})
    except RuntimeError as error:
        raise CorruptCheckpoint(f"{module.folder} does not hold the weights of {module.kind}: {error}") from error
    layer.requires_grad_(False)


def _dims(dim: int | tuple[int, ...] | None, width: int, name: str) -> tuple[int, ...]:
    dims = (width,) if dim is None else (dim,) if isinstance(dim, int) else dim
    if dims[-1] > width:
        raise InvalidInput(f"dim={dims[-1]}, but the vectors of {name} have {width} dimensions.")
    return dims


def _unknown(checkpoint: Checkpoint, module: str, where: str) -> UnknownFamily:
    return UnknownFamily(
        f"{checkpoint.name} has the sentence-transformers module {module} {where}, which Tamis does not compute."
    )


def _is_sentence_transformer(checkpoint: Checkpoint) -> bool:
    kinds = [module.kind for module in checkpoint.modules]
    return kinds[:2] == ["Transformer", "Pooling"]


FAMILIES = (
    Family(
        "nomic-embed",
        "bi-encoder",
        "nomic-embed-text-v1.5 and others of model type nomic_bert; layer-normalised before dim= truncates",
        "(1 + cos) / 2",
        partial(build, normalize_first=True),
        matches=lambda checkpoint: _is_sentence_transformer(checkpoint) and checkpoint.model_type == "nomic_bert",
    ),
    Family(
        "sentence-transformers",
        "bi-encoder",
        "any sentence-transformers layout of Transformer, Pooling, Dense, LayerNorm, Normalize",
        "(1 + cos) / 2",
        build,
        matches=_is_sentence_transformer,
    ),
    Family(
        "plain-encoder",
        "bi-encoder",
        'any encoder without a sentence-transformers layout, mean pooling; only with mode="bi-encoder"',
        "(1 + cos) / 2",
        build,
        matches=lambda _: True,
        fallback=True,
    ),
)
