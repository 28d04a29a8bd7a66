"""Optional packages, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from tamis.errors import MissingExtra


def need(module: str, extra: str, purpose: str) -> ModuleType:
    """A module that an extra brings.

    Args:
        module: Its name.
        extra: The extra of `tamis` that installs it.
        purpose: What needs it, as the beginning of a sentence.

    Raises:
        MissingExtra: It is not installed.

    >>> need("json", "eval", "An example").loads("1")
    1
    >>> need("no_such_package", "eval", "An evaluation")
    Traceback (most recent call last):
    ...
    tamis.errors.MissingExtra: An evaluation needs no_such_package: pip install "tamis[eval]".
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        broken = (error.name or package).partition(".")[0] != package or not isinstance(error, ModuleNotFoundError)
        what = f"{package}, which is here but cannot be imported ({error})" if broken else package
        again = "--upgrade " if broken else ""
        raise MissingExtra(f'{purpose} needs {what}: pip install {again}"tamis[{extra}]".') from error
