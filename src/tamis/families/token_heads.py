"""What late-interaction checkpoints have behind the transformer, read from their files: layers over token states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tamis.checkpoint import Checkpoint, Module, check_safetensors
from tamis.errors import CorruptCheckpoint, ModelNotFound, PickledWeights, UnknownFamily, UntrainedHead

Layer = Callable[[Any], Any]
"""Token states (T, d) to (T, k), float32."""
Head = Callable[[Any], list[Layer]]
"""Its layers on a device."""

_SAVE = (
    "import torch, safetensors.torch as s; s.save_file(torch.load('{}', weights_only=True), '{}', {{'format': 'pt'}})"
)


def dense_head(checkpoint: Checkpoint, activation: str) -> Head:
    """The Dense modules of a sentence-transformers layout, in their order.

    Args:
        checkpoint: Its files.
        activation: What a layer that names none has.
    """
    made = [_dense(module, activation, checkpoint.name) for module in checkpoint.modules if module.kind == "Dense"]
    return lambda device: [make(device) for make in made]


def stanford_head(checkpoint: Checkpoint) -> Head:
    """`linear.weight`, which lies beside the encoder's weights.

    Raises:
        UntrainedHead: It does not.
    """
    body = checkpoint.body
    files = sorted(body.glob("*.safetensors"))
    if not files and (body / "pytorch_model.bin").is_file():
        raise _pickled(checkpoint, body / "pytorch_model.bin", body / "model.safetensors")
    check_safetensors(body, checkpoint.name)
    for file in files:
        if (weight := _tensors(file, "linear.weight").get("linear.weight")) is not None:
            return _linear(weight, None)
    raise UntrainedHead(
        f"{checkpoint.name} lacks ColBERT's projection (linear.weight), without which it would score at random. "
        "transformers drops it when it saves the model; convert the original file as a whole."
    )


def bge_m3_head(checkpoint: Checkpoint) -> Head:
    """`colbert_linear`, a layer with a bias, in a file of its own.

    Raises:
        PickledWeights: It, or the encoder, is a pickle only, as it was published.
        UntrainedHead: There is none.
    """
    file, pickle = checkpoint.root / "colbert_linear.safetensors", checkpoint.root / "colbert_linear.pt"
    if not file.is_file() and (pickle.is_file() or checkpoint.name == "BAAI/bge-m3"):
        raise _pickled(checkpoint, pickle, file)
    if not file.is_file():
        raise UntrainedHead(f"{checkpoint.name} has no colbert_linear.safetensors, so that it has no ColBERT head.")
    body = checkpoint.body
    if not list(body.glob("model*.safetensors")):  # the head's file must not pass for the model's
        raise _pickled(checkpoint, body / "pytorch_model.bin", body / "model.safetensors")
    weights = _tensors(file)
    if set(weights) != {"weight", "bias"}:
        raise CorruptCheckpoint(f"{file} holds {sorted(weights)}; bge-m3's head is a weight and a bias.")
    return _linear(weights["weight"], weights["bias"])


def _dense(module: Module, default: str, name: str) -> Callable[[Any], Layer]:
    """`act(W x + b)`, and with a residual `+ x`, or `+ R x` where the sizes differ."""
    import torch
    from torch.nn.functional import linear

    config = module.config
    check_safetensors(module.folder, name)
    weights = _tensors(module.folder / "model.safetensors")
    path = str(config.get("activation_function") or default)
    activation = path.rsplit(".", 1)[-1]
    if not path.startswith("torch.nn.") or not hasattr(torch.nn, activation):
        raise UnknownFamily(f"{name} has a Dense layer with the activation {path}, which is not one of torch's.")
    try:
        sizes: tuple[int, ...] = (config["out_features"], config["in_features"])
    except KeyError as error:
        raise CorruptCheckpoint(f"{module.folder / 'config.json'} lacks {error}. Fetch the model again.") from error
    expected = {"linear.weight": sizes}
    if config.get("bias", True):
        expected["linear.bias"] = sizes[:1]
    residual = bool(config.get("use_residual"))
    if residual and sizes[0] != sizes[1]:
        expected["residual.weight"] = sizes
    if {key: tuple(value.shape) for key, value in weights.items()} != expected:
        raise CorruptCheckpoint(f"{module.folder} does not hold the weights that its config.json asks for: {expected}.")

    def on(device: Any) -> Layer:
        here = {key: weight.to(device) for key, weight in weights.items()}
        act = getattr(torch.nn, activation)()

        def layer(x: Any) -> Any:
            y = act(linear(x, here["linear.weight"], here.get("linear.bias")))
            if not residual:
                return y
            return y + (linear(x, here["residual.weight"]) if "residual.weight" in here else x)

        return layer

    return on


def _linear(weight: Any, bias: Any) -> Head:
    from torch.nn.functional import linear

    def on(device: Any) -> list[Layer]:
        w, b = weight.to(device), None if bias is None else bias.to(device)
        return [lambda x: linear(x, w, b)]

    return on


def _tensors(file: Path, *names: str) -> dict[str, Any]:
    """The tensors of a file, all or those of `names` that are there, in float32."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            there = [name for name in opened.keys() if not names or name in names]  # noqa: SIM118 - not a mapping
            return {name: opened.get_tensor(name).float() for name in there}
    except FileNotFoundError as error:
        raise ModelNotFound(f"There is no {file}.") from error
    except (SafetensorError, OSError) as error:
        raise CorruptCheckpoint(f"{file} is damaged or cut off ({error}). Delete it and fetch it again.") from error


def _pickled(checkpoint: Checkpoint, pickle: Path, file: Path) -> PickledWeights:
    old, new = (path.relative_to(checkpoint.root).as_posix() for path in (pickle, file))
    return PickledWeights(
        f"{checkpoint.name} has weights in a pickle ({old}), which can run code when it is opened; Tamis does not. "
        "Convert it once, in a folder with all of its files, and load that folder:\n"
        f'python -c "{_SAVE.format(old, new)}"'
    )
