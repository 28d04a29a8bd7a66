"""A bar for a trainer. Only training imports it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.utils import logging


class Bar(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Steps and the last loss, on standard error; transformers' own callbacks write losses to standard output.

    Args:
        shown: None shows it in a terminal.
    """

    def __init__(self, shown: bool | None) -> None:
        self.disable = None if shown is None else not shown
        self.bar: Any = None
        self.steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Opens the bar, where a resumed run goes on."""
        self.steps = state.global_step
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=self.steps, desc="training", unit="step", disable=self.disable
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves it."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.steps)
        self.steps = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Shows a loss beside it."""
        losses = {name: value for name, value in (logs or {}).items() if name in ("loss", "eval_loss")}
        if self.bar is not None and losses:
            self.bar.set_postfix(losses)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Closes it."""
        if self.bar is not None:
            self.bar.close()


@contextmanager
def without_bars() -> Iterator[None]:
    """The block without transformers' own bars, one for each file that it writes or reads."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def show_progress(trainer: Any, shown: bool | None) -> None:
    """Gives a trainer this bar instead of its own."""
    for kind in (PrinterCallback, ProgressCallback, DEFAULT_PROGRESS_CALLBACK):  # the last: a table in notebooks
        trainer.remove_callback(kind)
    trainer.add_callback(Bar(shown))
