"""What the machine can do: devices, the dtype that "auto" takes on them and why, threads."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_CPU_BFLOAT16 = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16", "bf16": "BF16"}
_COMPILED = ("avx512_bf16", "amx_bf16")  # capabilities that tamis-kernels has code for
_KERNELS = {"amx": "AMX-BF16", "avx512_bf16": "AVX512-BF16"}
_CPU_OTHERS = {"avx2": "AVX2", "avx512_f": "AVX-512", "avx512_vnni": "AVX512-VNNI", "asimd": "NEON", "sve": "SVE"}


def devices() -> list[dict[str, Any]]:
    """Every device that `device=` may name here, the one that is taken by default first."""
    import torch

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        what = f"{about.name}, compute capability {about.major}.{about.minor}"
        found.append({"name": f"cuda:{index}", "what": what, "bytes": about.total_memory})
    known = {**_CPU_OTHERS, **_CPU_BFLOAT16}
    can = [label for name, label in known.items() if _capabilities().get(name)]
    what = f"{torch.backends.cpu.get_cpu_capability()}; {', '.join(can) or 'no extension known'}"
    found.append({"name": "cpu", "what": what, "bytes": _memory()})
    if torch.backends.mps.is_available():
        found.append({"name": "mps", "what": "Apple GPU, taken only by name", "bytes": None})
    return found


def dtype() -> dict[str, Any]:
    """What `dtype="auto"` is on the default device, why, and how a product of matrices confirms it."""
    from tamis.engine.devices import choose_device, choose_dtype

    device = choose_device(None)
    ratio = bfloat16_time(device)
    return {
        "device": str(device),
        "auto": str(choose_dtype("auto", device)).removeprefix("torch."),
        "why": _why(device),
        "bfloat16_time": ratio,
    }


def kernels() -> str | None:
    """The instructions of this CPU that tamis-kernels uses, or why it does nothing; None if it is not installed."""
    try:
        import tamis_kernels
    except ImportError:
        return None
    return tamis_kernels.why_not() or f"compiled for {_KERNELS[tamis_kernels.level()]}"


def _why(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        able = "computes" if (major, minor) >= (8, 0) else "does not compute"
        return f"a GPU of compute capability {major}.{minor} {able} in bfloat16; it takes 8.0"
    can = [label for name, label in _CPU_BFLOAT16.items() if _capabilities().get(name)]
    if can:
        return f"this CPU computes in bfloat16 ({', '.join(can)})"
    return "this CPU does not compute in bfloat16 (no AVX512-BF16, AMX-BF16 or BF16)"


def bfloat16_time(device: torch.device) -> float:
    """How long a linear layer of MiniLM's size takes in bfloat16, against float32, over 256 tokens: median of 9."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        start = time.perf_counter()
        for _ in range(4):
            pairs[dtype][0] @ pairs[dtype][1]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((256, 384), (384, 1536)))
    both = (torch.float32, torch.bfloat16)
    pairs = {dtype: (x.to(device, dtype), weight.to(device, dtype)) for dtype in both}
    for dtype in both:
        seconds(dtype)
    times = [(seconds(torch.float32), seconds(torch.bfloat16)) for _ in range(9)]
    return round(median(b for _, b in times) / median(a for a, _ in times), 2)


def threads() -> dict[str, Any]:
    """How many threads torch computes with, and how many CPUs this process may use."""
    import torch

    return {"torch": torch.get_num_threads(), "cpus": usable_cpus()}


def usable_cpus() -> float:
    """CPUs that this process may use at once: of its affinity, within the container's quota."""
    count: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return count if quota == "max" else min(count, round(int(quota) / int(period), 1))
    except (OSError, ValueError):
        return count


def notes(threads: dict[str, Any]) -> list[str]:
    """What is amiss, and what to do about it."""
    import torch

    found = []
    if kernels() is None and sys.platform == "linux" and any(_capabilities().get(name) for name in _COMPILED):
        found.append('This CPU would be faster with tamis-kernels: pip install "tamis[kernels]".')
    if threads["torch"] > max(1, threads["cpus"]):
        best = max(1, int(threads["cpus"]))
        found.append(
            f"torch computes with {threads['torch']} threads, and this process may use {threads['cpus']} CPUs: set "
            f"OMP_NUM_THREADS={best}."
        )
    if not torch.cuda.is_available() and shutil.which("nvidia-smi") is not None:
        build = "a build without CUDA" if torch.version.cuda is None else f"a build for CUDA {torch.version.cuda}"
        found.append(
            f"There is an NVIDIA driver, but torch {torch.__version__} sees no GPU; it is {build}. "
            "https://pytorch.org/get-started/locally says which one fits the driver."
        )
    return found


def _capabilities() -> dict[str, bool]:
    import torch

    return dict(torch.cpu.get_capabilities()) if hasattr(torch.cpu, "get_capabilities") else {}


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
