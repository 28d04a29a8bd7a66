"""The machine under the benchmark: what it is, and how fast its matrix products are at the model's own shapes."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

ROWS = 2048  # tokens: a batch of Tamis
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PACKAGES = ("torch", "transformers", "tokenizers", "sentence-transformers", "onnx", "onnxruntime", "openvino")


def matrix_rates(shape: tuple[int, int, int]) -> dict[str, float]:
    """FLOP/s that `torch.nn.functional.linear` reaches over one layer's products, for each dtype."""
    return {name: _rate(dtype, *shape[1:]) for name, dtype in DTYPES.items()}


def _rate(dtype: torch.dtype, d: int, m: int, seconds: float = 0.1) -> float:
    """Of 4 (d, d), one (d, m) and one (m, d), in the share that a transformer layer has of each."""
    total_flops = total_time = 0.0
    for inputs, outputs, times in ((d, d, 4), (d, m, 1), (m, d, 1)):
        x, weight = torch.randn(ROWS, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
        bias = torch.randn(outputs, dtype=dtype)
        total_flops += times * 2.0 * ROWS * inputs * outputs
        total_time += times * _best(x, weight, bias, seconds)
    return total_flops / total_time


@torch.inference_mode()
def _best(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, seconds: float) -> float:
    linear(x, weight, bias)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        linear(x, weight, bias)
        best = min(best, time.perf_counter() - start)
    return best


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Processor, instruction set, versions and date."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": _cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": _bfloat16(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _cpu_model() -> str:
    """The kernel's words for it, with family and model: virtual machines often hide the name."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in info.read_text(encoding="utf-8").splitlines())
    found: dict[str, str] = {}
    for key, _, value in lines:
        found.setdefault(key.strip(), value.strip())
    return f"{found.get('model name', 'unknown')} (family {found.get('cpu family')}, model {found.get('model')})"


def _bfloat16() -> list[str]:
    """Which of the processor's bfloat16 instructions torch sees."""
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return [name for name, has in features.items() if "bf16" in name and has]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
