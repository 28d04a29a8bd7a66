"""The processes of one launch (`accelerate launch`, `torchrun`): the first reads and writes for all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

PATIENCE = timedelta(hours=24)  # the others wait while the first mines negatives and asks a teacher


def is_first() -> bool:
    """Whether this process is the one that writes; the only one is."""
    return int(os.environ.get("RANK", "0")) == 0


def is_alone() -> bool:
    """Whether there are no other processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


@contextmanager
def first_before_others() -> Iterator[None]:
    """The block runs in the first process, and then in the others, which find what it wrote."""
    if is_alone():
        yield
        return
    import torch
    from accelerate import PartialState

    with PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE).main_process_first():
        yield


def part() -> None:
    """Ends what the processes have in common, so that each may end when it is done."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
