"""The machine under the benchmark: what it is, its memory, and how fast its matrix products are at a model's shapes."""

from __future__ import annotations

import datetime
import importlib.metadata
import logging
import os
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch.nn.functional import linear

Products: TypeAlias = Sequence[tuple[int, int, int]]  # inputs, outputs, how often a layer has it

ROWS = {"cpu": 2048, "cuda": 16_384}  # tokens: about a batch of Tamis
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PACKAGES = (
    "torch", "transformers", "tokenizers", "sentence-transformers", "onnx", "onnxruntime", "openvino", "tamis-kernels",
)  # fmt: skip
MB = 1e6


def quiet(threads: int | None = None) -> None:
    """One thread a core, and no word of what loads and exports: none of it concerns the numbers."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads or cores())
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


# -- rates ------------------------------------------------------------------------------------------------------------


def matrix_rates(
    products: Products, device: str = "cpu", dtypes: Sequence[str] = tuple(DTYPES), seconds: float = 0.1
) -> dict[str, float]:
    """FLOP/s over one layer's products: the ceiling.

    Of each product the faster of torch's own and, on a CPU, oneDNN's with the weight in its own layout, the best that
    was seen in so many seconds.
    """
    return {name: _rate(DTYPES[name], products, device, seconds) for name in dtypes}


def _rate(dtype: torch.dtype, products: Products, device: str, seconds: float) -> float:
    total_flops = total_time = 0.0
    rows = ROWS[torch.device(device).type]
    for inputs, outputs, times in products:
        x, weight = (torch.randn(n, inputs, dtype=dtype, device=device) for n in (rows, outputs))
        bias = torch.randn(outputs, dtype=dtype, device=device)
        total_flops += times * 2.0 * rows * inputs * outputs
        total_time += times * min(_best(product, device, seconds) for product in _products(x, weight, bias))
    return total_flops / total_time


def _products(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> list[Callable[[], Any]]:
    found: list[Callable[[], Any]] = [lambda: linear(x, weight, bias)]
    names = ("_reorder_linear_weight", "_linear_pointwise")
    if x.device.type == "cpu" and torch.backends.mkldnn.is_available() and all(map(_onednn_has, names)):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
        found.append(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], ""))
    return found


def _onednn_has(name: str) -> bool:
    return hasattr(torch.ops.mkldnn, name)


@torch.inference_mode()
def _best(product: Callable[[], Any], device: str, seconds: float) -> float:
    product()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        synchronise(device)
        start = time.perf_counter()
        product()
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return best


def synchronise(device: str) -> None:
    """Waits for what a GPU was asked to do."""
    if device != "cpu":
        torch.cuda.synchronize(device)


# -- memory, as Linux tells it ----------------------------------------------------------------------------------------


def status(name: str) -> float | None:
    """A figure of this process in MB, such as VmRSS or VmHWM; None where there is no /proc."""
    return _figure(Path("/proc/self/status"), name)


def forget_peak() -> None:
    """VmHWM begins anew, from what is resident now."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def available() -> float:
    """MB that new processes may take without swapping."""
    found = _figure(Path("/proc/meminfo"), "MemAvailable")
    return float("inf") if found is None else found


def _figure(file: Path, name: str) -> float | None:
    if not file.exists():
        return None
    _, _, rest = file.read_text(encoding="ascii", errors="replace").partition(f"{name}:")
    return int(rest.split()[0]) * 1024 / MB


# -- what it is -------------------------------------------------------------------------------------------------------


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
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def sentence(about: dict[str, Any]) -> str:
    """What `describe` found, in one line."""
    return (
        f"{about['cpu']}, {about['threads']} threads on {about['cores']} cores, {about['instructions']}, "
        f"{' '.join(about['bfloat16']) or 'no bfloat16'}, load before the run {about['load_before'] or 0:.1f}; "
        f"Python {about['python']}, "
        + ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        + f"; {about['date']}."
    )


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
