"""A fresh process that holds something and is asked about it: its memory is its own, and its threads meet nobody's."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self


class Ended(RuntimeError):
    """What was asked for failed there, or the process is no more."""


class Process:
    """A spawned process with one object in it.

    Args:
        make: Called there, with `args`; a module's own function or class.
        args: What it is called with.
    """

    def __init__(self, make: Callable[..., Any], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, args), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, *args: Any) -> Any:
        """What a method of the object returns there.

        Raises:
            Ended: It raised, or the process is no more.
        """
        self._pipe.send((method, args))
        return self._answer()

    def _answer(self) -> Any:
        try:
            failed, value = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            raise Ended(f"its process ended with {code}" + " (out of memory?)" * (code == -9)) from None
        if failed:
            raise Ended(value)
        return value

    def close(self) -> None:
        """Ends the process."""
        with suppress(OSError):
            self._pipe.send(None)
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def call(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns in a process of its own.

    Raises:
        Ended: It raised, or the process is no more.
    """
    with Process(_Once, function, args) as process:
        return process.ask("run")


class _Once:
    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._function, self._args = function, args

    def run(self) -> Any:
        return self._function(*self._args)


def _serve(pipe: Connection, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    made: Any = None
    asked: Any = ("", ())
    while asked is not None:
        method, given = asked
        try:
            value = getattr(made, method)(*given) if method else None
            made = made if method else make(*args)
            pipe.send((False, value))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
            pipe.send((True, f"{type(error).__name__}: {_first_line(error)}"))
        try:
            asked = pipe.recv()
        except EOFError:
            return


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else ""
