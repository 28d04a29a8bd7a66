"""What a row of a bulk job is: which columns are read, which are kept, and what makes a row bad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tamis.errors import InvalidInput

if TYPE_CHECKING:
    import pyarrow as pa

RESULT = ("score", "logit", "truncated", "reason")


@dataclass(frozen=True, slots=True)
class Row:
    """What is scored of a row.

    Attributes:
        query: One.
        texts: One passage, or those of a list.
        listed: Whether it is a list, of any length: then the row is ranked by itself.
    """

    query: str
    texts: tuple[str, ...]
    listed: bool = False


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns by name.

    Attributes:
        query: Texts.
        text: Texts, or lists of texts: the passages of a row.
        kept: Those that stand beside the scores in the result; all of them if None.
    """

    query: str
    text: str
    kept: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_columns(self.query, self.text)
        if self.kept is not None:
            if isinstance(self.kept, str):
                raise InvalidInput(f"id_columns={self.kept!r}; pass a list of column names.")
            object.__setattr__(self, "kept", tuple(self.kept))
            check_columns(*self.kept)

    def needed(self) -> list[str] | None:
        """The columns that have to be read; None for all."""
        return None if self.kept is None else list(dict.fromkeys((self.query, self.text, *self.kept)))

    def ids(self) -> list[str]:
        """The columns that say which row it is: those that the caller asked to keep."""
        return [name for name in self.kept or () if name not in (self.query, self.text)]

    def check(self, schema: pa.Schema, where: str) -> None:
        """Raises InvalidInput if a table with this schema cannot be scored."""
        check_schema(schema, {self.query: False, self.text: None}, self.kept or (), where)
        taken = [name for name in (schema.names if self.kept is None else self.kept) if name in RESULT]
        if taken:
            raise InvalidInput(
                f"{where} has a column {taken[0]!r} already, and the result would have two. Rename it, or name the "
                "columns that are to be kept with id_columns=."
            )

    def rows(self, table: pa.Table) -> list[Row | str]:
        """Each row, or what is wrong with it."""
        queries, texts = table.column(self.query).to_pylist(), table.column(self.text).to_pylist()
        return [self._row(query, text) for query, text in zip(queries, texts, strict=True)]

    def _row(self, query: Any, text: Any) -> Row | str:
        listed = isinstance(text, list | tuple)
        wrong = wrong_text(self.query, query)
        if not wrong:
            wrong = wrong_texts(self.text, text) if listed else wrong_text(self.text, text)
        return wrong or Row(query, tuple(text) if listed else (text,), listed)


def check_columns(*names: object) -> None:
    """Raises InvalidInput for what is no name of a column."""
    for name in names:
        if not isinstance(name, str) or not name:
            raise InvalidInput(f"{name!r} is no column; pass its name.")


def check_schema(schema: pa.Schema, texts: dict[str, bool | None], others: Sequence[str], where: str) -> None:
    """Raises InvalidInput if columns are missing or hold something else.

    Args:
        schema: Of a table.
        texts: Columns of texts (False), of lists of texts (True), of either (None).
        others: Columns of any type that have to be there.
        where: The table, for the message.
    """
    for name in (*texts, *others):
        if name not in schema.names:
            raise InvalidInput(f"{where} has no column {name!r}; it has {', '.join(schema.names) or 'none'}.")
        if schema.names.count(name) > 1:
            raise InvalidInput(f"{where} has the column {name!r} {schema.names.count(name)} times; rename all but one.")
    for name, listed in texts.items():
        kind = schema.field(name).type
        if not ((listed is not True and _is_text(kind)) or (listed is not False and _is_texts(kind))):
            wanted = {False: "a text", True: "a list of texts", None: "a text or a list of texts"}[listed]
            raise InvalidInput(f"The column {name!r} of {where} is {kind}; it should be {wanted} in each row.")


def _is_text(kind: pa.DataType) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    known = types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)
    return bool(known or are_objects(kind))  # of objects, each row says what it is


def are_objects(kind: pa.DataType) -> bool:
    """Whether it is Ray's column of pickled Python objects: what a column of texts and numbers mixed becomes."""
    return getattr(kind, "extension_name", "") == "ray.data.arrow_pickled_object"


def _is_texts(kind: pa.DataType) -> bool:
    from pyarrow import types

    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return _is_text(kind.value_type) if listed else types.is_null(kind) or are_objects(kind)


def wrong_text(name: str, value: Any) -> str:
    """What is wrong with a text; empty if nothing is."""
    if value is None:
        return f"{name} is null"
    if not isinstance(value, str):
        return f"{name} is a {type(value).__name__}, not a text"
    return "" if value.strip() else f"{name} is empty"


def wrong_texts(name: str, values: Any) -> str:
    """What is wrong with a list of texts; an empty one is a list."""
    if not isinstance(values, list | tuple):
        return f"{name} is null" if values is None else f"{name} is a {type(values).__name__}, not a list of texts"
    return next((wrong for i, value in enumerate(values) if (wrong := wrong_text(f"{name}[{i}]", value))), "")
