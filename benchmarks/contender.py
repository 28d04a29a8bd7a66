"""What a contender is: a model that is loaded and answers with the logits of a query's passages, from texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import models
import numpy as np
from machine import synchronise
from numpy.typing import NDArray
from workload import Workload

Logits: TypeAlias = NDArray[np.float64]
Run: TypeAlias = Callable[[Sequence[str]], Logits]
Inputs: TypeAlias = dict[str, NDArray[np.int64]]

BATCHES = (1, 4, 8, 16, 32)
FITS = 32_768  # tokens of a padded batch
TRIED = 32  # passages that batch sizes are tried on


@dataclass
class Ready:
    """A contender that is loaded.

    Attributes:
        run: From passages to logits.
        facts: What else it knows of its runs: "padding", the share of the tokens computed that was padding; "batch".
        close: Lets go of what does not go by itself.
    """

    run: Run
    facts: Callable[[], dict[str, Any]] = dict
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        name: In the table and for `--only`.
        rate: The matrix rate that its share is counted of; None where it computes in another format.
        load: Makes it ready to run, with so many threads. Raises ImportError where its library is missing.
        prepare: What must be made once for a checkpoint, in a process of its own.
    """

    name: str
    rate: str | None
    load: Callable[[Workload, int], Ready]
    prepare: Callable[[Workload], Any] | None = None


@dataclass
class Padded:
    """Counts tokens that are computed, and those among them that are padding."""

    computed: int = 0
    read: list[Any] = field(default_factory=list)  # where they are: no GPU is waited for
    more: dict[str, Any] = field(default_factory=dict)

    def add(self, mask: Any) -> None:
        """A batch."""
        self.computed += int(np.prod(mask.shape))
        self.read.append(mask.sum())

    def facts(self) -> dict[str, Any]:
        """Of all batches so far."""
        return {"padding": 1 - sum(map(int, self.read)) / self.computed if self.computed else None, **self.more}


def fastest(workload: Workload, run: Callable[[Sequence[str], int], Any], device: str = "cpu") -> int:
    """The batch size with which a part of the passages takes the shortest; the second of two tries counts."""
    sample = workload.passages[:: -(-len(workload.passages) // TRIED)]
    fit = [n for n in BATCHES if n == 1 or n * max(workload.lengths) <= FITS]
    sizes = [n for n in fit if n < 2 * len(sample)]
    seconds: dict[int, float] = {}
    for size in 2 * sizes if len(sizes) > 1 else ():  # the first time some libraries compile for a shape
        start = time.perf_counter()
        run(sample, size)
        synchronise(device)
        seconds[size] = time.perf_counter() - start
    return min(seconds, key=seconds.__getitem__) if seconds else sizes[0]


def sorted_batches(workload: Workload, forward: Callable[[Inputs], Any], device: str = "cpu") -> Ready:
    """Tokenises, sorts by length, pads batches of the size that is the fastest for the workload."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(workload.checkpoint)

    def loop(passages: Sequence[str], size: int, count: Padded) -> Logits:
        encoded = models.encode(workload.shape, tokenizer, workload.query, passages)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        ranked = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        logits = np.zeros(len(lengths))
        for start in range(0, len(ranked), size):
            rows = ranked[start : start + size]
            padded = tokenizer.pad({name: [values[i] for i in rows] for name, values in encoded.items()})
            inputs = {name: np.asarray(values, np.int64) for name, values in padded.items()}
            count.add(inputs["attention_mask"])
            logits[rows] = np.asarray(forward(inputs))[:, 0]
        return logits

    size = fastest(workload, lambda passages, size: loop(passages, size, Padded()), device)
    count = Padded(more={"batch": size})
    return Ready(lambda passages: loop(passages, size, count), count.facts)
