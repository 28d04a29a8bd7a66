"""Keeps transformers quiet while it loads a checkpoint."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from tamis.gguf_files import parsing_once

_lock = threading.Lock()


@contextmanager
def quiet() -> Iterator[None]:
    """Silences progress bars and loading reports: what they say, Tamis's errors say."""
    if "transformers" not in sys.modules:  # nor will it be, by what is computed without it
        yield
        return
    from transformers.utils import logging

    with _lock:
        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            with warnings.catch_warnings(), parsing_once():
                warnings.simplefilter("ignore", FutureWarning)  # keys of a checkpoint's config are not the caller's
                yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()
