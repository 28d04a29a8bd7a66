"""Parquet files cut into parts: stretches of rows that are scored, written and found again as one."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.errors import InvalidInput
from tamis_ray.bulk_columns import are_objects
from tamis_ray.bulk_files import located

if TYPE_CHECKING:
    import pyarrow as pa

AT_ONCE = 16  # footers that are read at the same time


@dataclass(frozen=True, slots=True)
class Source:
    """One file of the input.

    Attributes:
        path: An absolute path or a URI.
        name: Its name below the folder that the caller named, for messages and for the job's identity.
        rows: How many it has.
        stamp: A digest of its footer, which holds the sizes, places and statistics of all columns.
    """

    path: str
    name: str
    rows: int
    stamp: str


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `start` to `stop` of a file, and their place among all parts."""

    index: int
    path: str
    name: str
    stamp: str
    start: int
    stop: int

    def file(self, suffix: str) -> str:
        """The name of what is made of it: the same in every run over the same input, in the input's order."""
        digest = sha256(json.dumps(asdict(self) | {"path": ""}, sort_keys=True).encode()).hexdigest()
        return f"part-{self.index:06d}-{digest[:16]}.{suffix}"


def sources(paths: Sequence[str | Path], check: Callable[[pa.Schema, str], None]) -> list[Source]:
    """The Parquet files of files and folders, in the order of their names.

    Args:
        paths: Of files, and of folders, whose names with a leading `.` or `_` are passed over.
        check: Called with each file's schema and name.

    Raises:
        InvalidInput: There are none, one is damaged, or `check` refuses it.
    """
    found = [entry for path in paths for entry in _listed(str(path))]
    if len({name for _, name in found}) < len(found):
        found = [(path, path) for path, _ in found]
    if not found:
        raise InvalidInput(f"There are no .parquet files in {', '.join(map(str, paths)) or 'an empty list of paths'}.")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda entry: _source(entry[0], entry[1], check), found))


def _listed(path: str) -> list[tuple[str, str]]:
    """Path and name of each file."""
    from pyarrow.fs import FileSelector, FileType

    system, root = located(path)
    prefix = path.partition("?")[0].rstrip("/").removesuffix(root) if "://" in path else ""
    info = system.get_file_info(root)
    if info.type == FileType.NotFound:
        raise InvalidInput(f"There is no {path}. Pass a Parquet file, a folder of them, or a Ray dataset.")
    if info.type == FileType.File:
        return [(prefix + info.path, posixpath.basename(info.path))]
    found = []
    for file in system.get_file_info(FileSelector(root, recursive=True)):
        name = posixpath.relpath(file.path, root)
        if file.type != FileType.File or any(step[0] in "._" for step in name.split("/")):
            continue
        if not name.endswith(".parquet"):
            continue
        if "=" in posixpath.dirname(name):
            raise InvalidInput(
                f"{path} is partitioned into folders ({posixpath.dirname(name)}), whose columns are in no file. Pass "
                "ray.data.read_parquet(...) of it, which reads them."
            )
        found.append((prefix + file.path, name))
    return sorted(found, key=lambda entry: entry[1])


def _source(path: str, name: str, check: Callable[[pa.Schema, str], None]) -> Source:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    system, inner = located(path)
    try:
        with system.open_input_file(inner) as file:
            stamp = _stamp(file)
            file.seek(0)
            metadata = read_metadata(file)
            schema = metadata.schema.to_arrow_schema()
    except (ArrowException, OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read as Parquet: {error}") from error
    check(schema, name)
    for field in schema:
        if are_objects(field.type):
            raise InvalidInput(f"The column {field.name!r} of {name} holds pickled Python objects; give it one type.")
    return Source(path, name, metadata.num_rows, stamp)


def _stamp(file: Any) -> str:
    """Of the footer: its length is in the four bytes before the last four."""
    size = file.size()
    file.seek(max(0, size - 8))
    length = int.from_bytes(file.read(4), "little") + 8
    file.seek(max(0, size - length))
    return sha256(file.read(min(length, size))).hexdigest()[:16]


def cut(files: Sequence[Source], rows: int) -> list[Part]:
    """Parts of at most `rows` rows; a single empty one where there is no row at all.

    >>> [(p.name, p.start, p.stop) for p in cut([Source("a", "a", 5, ""), Source("b", "b", 2, "")], 3)]
    [('a', 0, 3), ('a', 3, 5), ('b', 0, 2)]
    >>> [(p.name, p.start, p.stop) for p in cut([Source("a", "a", 0, "")], 3)]
    [('a', 0, 0)]
    """
    spans = [(file, start) for file in files for start in range(0, file.rows, rows)] or [(files[0], 0)]
    return [
        Part(index, file.path, file.name, file.stamp, start, min(start + rows, file.rows))
        for index, (file, start) in enumerate(spans)
    ]


def read(part: Part, columns: Sequence[str] | None) -> pa.Table:
    """The rows of a part, without ever holding a whole row group.

    Raises:
        InvalidInput: The file is another one than when the job began.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    system, inner = located(part.path)
    with system.open_input_file(inner) as file:
        if _stamp(file) != part.stamp:
            raise InvalidInput(f"{part.name} was changed while the job ran. Start it again with another output folder.")
        parquet = ParquetFile(file, pre_buffer=False)
        names = None if columns is None else list(columns)
        groups, before = _groups(parquet.metadata, part.start, part.stop)
        left, skip, batches = part.stop - part.start, part.start - before, []
        for batch in parquet.iter_batches(min(max(left, 1), 4096), groups, names) if left else ():
            cut_off = min(skip, len(batch))
            skip -= cut_off
            batch = batch.slice(cut_off, left)
            left -= len(batch)
            if len(batch):
                batches.append(batch)
            if not left:
                break
        schema = parquet.schema_arrow
        wanted = schema if names is None else pa.schema([schema.field(name) for name in names])
        return pa.Table.from_batches(batches, None if batches else wanted).select(wanted.names)


def _groups(metadata: Any, start: int, stop: int) -> tuple[list[int], int]:
    """The row groups that hold rows `start` to `stop`, and the number of the first row in them."""
    found: list[int] = []
    first = at = 0
    for index in range(metadata.num_row_groups):
        end = at + metadata.row_group(index).num_rows
        if end > start and at < stop:
            first = first if found else at
            found.append(index)
        at = end
    return found, first
