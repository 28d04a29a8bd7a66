"""Every error that Tamis raises on purpose; each message says what is wrong and what to do.

TamisError
├── InvalidInput          an argument is wrong (also a ValueError)
│   ├── InputTooLong      a text is longer than the model reads, and the policy forbids cutting it
│   └── InvalidData       rows of data files are wrong; every one is named, with its file and line
├── LoadError             a checkpoint cannot be loaded
│   ├── ModelNotFound     no such folder or hub id, or nothing in it that is a model
│   ├── UnknownFamily     neither the checkpoint's files nor the caller say how to score with it
│   ├── UntrainedHead     the scoring head is not in the checkpoint: its scores would be random
│   ├── PickledWeights    the only weights are pickles, which run code when opened
│   ├── RemoteCode        the checkpoint needs Python code of its own
│   └── CorruptCheckpoint a file is damaged, cut off, or incomplete
├── MissingExtra          an optional package is not installed (also an ImportError)
├── InvalidScore          the model returned NaN or infinity for a passage
├── OutOfMemory           one sequence alone does not fit the device
├── Overloaded            too much waits for the model already
├── RemoteError           a server failed, or its answer cannot be trusted
├── DeadlineExceeded      a call took longer than its timeout (also a TimeoutError)
├── DeviceLost            the engine's thread died, or the process was forked after CUDA was in use
└── Closed                the reranker or its engine was closed
"""

from __future__ import annotations

from collections.abc import Sequence


class TamisError(Exception):
    """The root of every error that Tamis raises on purpose."""


class InvalidInput(TamisError, ValueError):
    """An argument is wrong: its type, its range, or what it asks of this model."""


class InputTooLong(InvalidInput):
    """A text is longer than the model reads, and the caller's policy does not allow cutting it."""


class InvalidData(InvalidInput):
    """Rows of data files are wrong.

    Args:
        problems: One line for each row, with its file and line; the message shows the first 20 and the count.

    >>> print(InvalidData(["dev.tsv:3: there is no query 'q9'."]))
    1 bad row:
    dev.tsv:3: there is no query 'q9'.
    """

    SHOWN = 20

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        count, more = len(self.problems), len(self.problems) - self.SHOWN
        lines = [f"{count} bad row{'s' * (count != 1)}:", *self.problems[: self.SHOWN]]
        return "\n".join([*lines, f"... and {more} more."] if more > 0 else lines)


class LoadError(TamisError):
    """A checkpoint cannot be loaded."""


class ModelNotFound(LoadError):
    """No such folder or hub id, or nothing in it that is a model."""


class UnknownFamily(LoadError):
    """Neither the checkpoint's files nor the caller say how to score with it."""


class UntrainedHead(LoadError):
    """The checkpoint lacks the scoring head, so that its scores would be random numbers."""


class PickledWeights(LoadError):
    """The checkpoint's only weights are pickles, which can run code when they are opened."""


class RemoteCode(LoadError):
    """The checkpoint needs Python code that it brings along."""


class CorruptCheckpoint(LoadError):
    """A file of the checkpoint is damaged, cut off, or lacks weights."""


class MissingExtra(TamisError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class InvalidScore(TamisError):
    """The model returned NaN or infinity, which cannot be ranked."""


class OutOfMemory(TamisError):
    """One sequence alone does not fit the device's memory."""


class Overloaded(TamisError):
    """Too much waits for the model already; the request was not queued."""


class RemoteError(TamisError):
    """A server could not be reached, refused, failed, or answered what cannot be trusted.

    Attributes:
        status: The HTTP status of its answer; None where there was none.
        retryable: Whether the same request may succeed later. It was tried again already, as often as `retries=` says.
        retry_after: The seconds that the server asked to wait; None where it did not say.
        detail: What the server gave as the reason, cut short; empty where it gave none.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retryable = retryable
        self.retry_after = retry_after
        self.detail = detail


class DeadlineExceeded(TamisError, TimeoutError):
    """A call took longer than its timeout; what it still had waiting was withdrawn."""


class DeviceLost(TamisError):
    """The engine's thread died, or this process was forked after the model was loaded on a GPU."""


class Closed(TamisError):
    """The reranker, or the engine under it, was closed before the request was done."""
