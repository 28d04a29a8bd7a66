"""sentence-transformers' modules behind the transformer: pooling, dense layers, norms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import takewhile
from typing import Any

from tamis.checkpoint import Checkpoint, Module, check_safetensors
from tamis.errors import CorruptCheckpoint, UnknownFamily


def is_sentence_transformer(checkpoint: Checkpoint) -> bool:
    """Whether its `modules.json` says that it is a transformer whose tokens are pooled."""
    kinds = [module.kind for module in checkpoint.modules]
    return kinds[:2] == ["Transformer", "Pooling"]


def ends_normalized(checkpoint: Checkpoint) -> bool:
    """Whether its vectors leave the last module with length 1."""
    return "Normalize" in {module.kind for module in _trailing(checkpoint)}


def readout_of(checkpoint: Checkpoint, pooling: str = "mean") -> Callable[[Any], Any]:
    """The modules behind the transformer, as one function of hidden states, in float32.

    A normalisation at the end is left to whoever compares the vectors: it comes after truncation.

    Args:
        checkpoint: Its files.
        pooling: What is done where they have no modules.

    Raises:
        UnknownFamily: The checkpoint has a module that Tamis does not compute.
    """
    from tamis.engine.pooling import POOLS

    modules = checkpoint.modules[1:] or (Module("Pooling", checkpoint.root, {"pooling_mode": pooling}),)
    if modules[0].kind != "Pooling":
        raise _unknown(checkpoint, modules[0].kind, "before pooling")
    names = poolings_of(checkpoint, pooling)
    if not set(names) <= set(POOLS):
        raise _unknown(checkpoint, f"Pooling {names}", "as its pooling")
    if modules[0].config.get("include_prompt") is False and any(
        (checkpoint.sentence_config.get("prompts") or {}).values()
    ):
        raise _unknown(checkpoint, "Pooling(include_prompt=False)", "with its prompts")
    inner = modules[1 : len(modules) - len(_trailing(checkpoint))]
    layers = [make for module in inner if (make := _layer(checkpoint, module)) is not None]

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


def poolings_of(checkpoint: Checkpoint, default: str = "mean") -> tuple[str, ...]:
    """The new key `pooling_mode`, or the old ones, `pooling_mode_mean_tokens: true` and the like."""
    if len(checkpoint.modules) < 2:
        return (default,)
    config = checkpoint.modules[1].config
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


def _trailing(checkpoint: Checkpoint) -> list[Module]:
    """The modules at the end that only normalise, or that do nothing."""
    return list(takewhile(lambda module: module.kind in ("Normalize", "Dropout"), reversed(checkpoint.modules)))


def _layer(checkpoint: Checkpoint, module: Module) -> Callable[[], Any] | None:
    if module.kind == "Dropout":
        return None
    if module.kind == "Normalize":
        return _unit
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


def _unit() -> Any:
    import torch

    class Unit(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.nn.functional.normalize(x, dim=-1)

    return Unit()


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


def _unknown(checkpoint: Checkpoint, module: str, where: str) -> UnknownFamily:
    return UnknownFamily(
        f"{checkpoint.name} has the sentence-transformers module {module} {where}, which Tamis does not compute."
    )
