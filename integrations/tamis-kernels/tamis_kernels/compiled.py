"""The library: whether it is here, what this machine can run of it, and the threads that it runs on."""

from __future__ import annotations

import ctypes
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

LEVELS = ("none", "avx512_bf16", "amx")
LIBRARY = Path(__file__).parent / "_kernels.so"


class Code(NamedTuple):
    """What was compiled: the library, OpenMP's way to run a function on a team, the best of `LEVELS`; or why not."""

    functions: Any
    parallel: Any
    level: int
    problem: str | None = None


def level() -> str:
    """The best of `LEVELS` that was compiled, that this processor has, and that the operating system allows."""
    return LEVELS[code().level]


def why_not() -> str | None:
    """Why nothing here can be used, in a sentence; None where it can."""
    return code().problem


def needed() -> Code:
    """What was compiled.

    Raises:
        RuntimeError: Nothing here can be used; it says why.
    """
    found = code()
    if found.problem is not None:
        raise RuntimeError(found.problem)
    return found


@lru_cache(maxsize=1)
def code() -> Code:
    """What was compiled, or why it cannot be used; looked for once."""
    nothing = partial(Code, None, None, 0)
    if not LIBRARY.is_file():
        return nothing("tamis-kernels was installed without its library: no C compiler was there, or it failed.")
    library = ctypes.CDLL(str(LIBRARY))
    best = library.tamis_kernels_level()
    if not best:
        return nothing("tamis-kernels has no code for this machine: it has to be Linux on x86-64 with AVX-512 BF16.")
    parallel = _parallel()
    if parallel is None:
        return nothing("This torch does not run on OpenMP, whose threads tamis-kernels would share.")
    return Code(library, parallel, best)


def _parallel() -> Any:
    """OpenMP's way to run a function on a team, from the library that torch runs on."""
    import torch

    for folder in (Path(torch.__file__).parent / "lib", Path(torch.__file__).parent):
        for file in sorted(folder.glob("libtorch_cpu.so*")):
            try:
                return ctypes.cast(ctypes.CDLL(str(file)).GOMP_parallel, ctypes.c_void_p)
            except (OSError, AttributeError):
                continue
    return None
