"""The key that a server wants to see, where it has one."""

from __future__ import annotations

import os
from hmac import compare_digest
from pathlib import Path

from tamis.errors import InvalidInput
from tamis.secret import Secret

VARIABLE = "TAMIS_SERVE_KEY"
SHORTEST = 16  # characters


def read_key(file: str | Path | None = None, *, required: bool = False) -> Secret | None:
    """The key from a file, else from the environment's `TAMIS_SERVE_KEY`; None where neither has one.

    Args:
        file: Its first and only line.
        required: A key must be there: another process of this server has one.

    Raises:
        InvalidInput: The file cannot be read, the key is too short or cannot stand in a header, or there is none.
    """
    if file is not None:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(
                f"The key's file cannot be read ({type(error).__name__}); it must be on every machine that runs a "
                "replica, and readable there."  # its name stays out: it may be the key, passed by mistake
            ) from None
    else:
        text = os.environ.get(VARIABLE, "")
    if file is None and not text.strip():
        if required:
            raise InvalidInput(
                f"This server was started with a key, and {VARIABLE} is not set in this process. Set it in the "
                "environment of every machine's Ray, or pass --api-key-file, a path that is good on all of them."
            )
        return None
    key = Secret(text)
    if len(key.reveal()) < SHORTEST:
        raise InvalidInput(f"The key has fewer than {SHORTEST} characters; make one with `openssl rand -hex 32`.")
    return key


def shows(authorization: str | None, key: Secret) -> bool:
    """Whether a request's Authorization header has the key. Takes as long for a wrong one as for the right one.

    >>> key = Secret("0123456789abcdef")
    >>> [shows(header, key) for header in ("Bearer 0123456789abcdef", "bearer 0123456789abcdeg", "Bearer", None)]
    [True, False, False, False]
    """
    scheme, _, token = (authorization or "").partition(" ")
    same = compare_digest(token.strip().encode("utf-8", "surrogateescape"), key.reveal().encode())
    return same and scheme.lower() == "bearer"
