"""A key that is shown to a server and to nobody else."""

from __future__ import annotations

from typing import Any, Self

from tamis.errors import InvalidInput


class Secret:
    """A key. Neither its text nor its representation shows it, and it cannot be pickled.

    >>> key = Secret("sk-1234")
    >>> str(key), repr(key), key.reveal()
    ('**********', "Secret('**********')", 'sk-1234')
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        value = value.strip()  # a file's last line end
        if not value or not value.isascii() or not value.isprintable():
            raise InvalidInput("The key is empty, or no HTTP header takes it; pass it as it was issued.")
        self._value = value

    @classmethod
    def of(cls, value: object) -> Secret | None:
        """A key as callers hold it: a `str`, a `Secret`, pydantic's `SecretStr`; None is none.

        Raises:
            InvalidInput: It is something else, or cannot be sent.
        """
        if value is None or isinstance(value, Secret):
            return value
        reveal = getattr(value, "get_secret_value", None)
        value = reveal() if callable(reveal) else value
        if not isinstance(value, str):
            raise InvalidInput(f"api_key is a {type(value).__name__}; pass a str, or pydantic's SecretStr.")
        return cls(value)

    def reveal(self) -> str:
        """The key itself."""
        return self._value

    def hide(self, text: str) -> str:
        """The text without the key, should a server have repeated it."""
        return text.replace(self._value, "**********")

    def __repr__(self) -> str:
        return f"Secret({str(self)!r})"

    def __str__(self) -> str:
        return "**********"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("A key does not travel in pickles. Set it in the environment of the process that unpickles.")
