"""Which device, which dtype on it, and how much at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from tamis.errors import InvalidInput

GPU_BATCH_TOKENS = 32768  # a GPU wants much work at once
CPU_BATCH_TOKENS = 2048  # a CPU's caches are full early, and nothing comes between two parts of a batch
SMALL = 30e6  # weights of all layers: up to these a batch is over soon, and is twice as large


def choose_device(device: str | None) -> torch.device:
    """The device named, or the best there is: CUDA, else the CPU (Apple's MPS only by name).

    Raises:
        InvalidInput: torch does not know the name, or this machine lacks the device.
    """
    if device is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidInput(f'device={device!r} is no device; pass "cpu", "cuda" or "cuda:1", for example.') from error
    if chosen.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        chosen = torch.device("cuda", chosen.index or 0)
        if chosen.index >= found:
            raise InvalidInput(
                f'device={device!r}, but torch {torch.__version__} sees {found} CUDA devices here; pass device="cpu", '
                "or install a torch build for your GPU."
            )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise InvalidInput('device="mps", but this machine has no Apple GPU that torch can use; pass device="cpu".')
    return chosen


def choose_devices(devices: str | tuple[str, ...] | None) -> tuple[torch.device, ...]:
    """As `choose_device`, for one name or several; the same one twice is two copies on it."""
    names = devices if isinstance(devices, tuple) else (devices,)
    return tuple(choose_device(name) for name in names)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype named; for "auto" bfloat16 where the device computes in it, else float32."""
    if dtype == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    chosen: torch.dtype = getattr(torch, dtype)
    return chosen


def choose_batch_tokens(device: torch.device, config: Mapping[str, Any]) -> int:
    """What a batch of the transformer with this `config.json` may cost."""
    if device.type != "cpu":
        return GPU_BATCH_TOKENS
    layers, width = _size(config, "num_hidden_layers", "n_layers"), _size(config, "hidden_size", "dim")
    return CPU_BATCH_TOKENS if 12 * layers * width**2 > SMALL else 2 * CPU_BATCH_TOKENS  # as BERT's layers have them


def _size(config: Mapping[str, Any], *names: str) -> float:
    """The number under the first of these names that is there; infinity where there is none."""
    found = next((config[name] for name in names if name in config), None)
    return float(found) if isinstance(found, int) else math.inf


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))
    return False
