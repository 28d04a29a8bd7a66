"""The folder of a job, on a disk or at a URI, through pyarrow's filesystems: a file in it is whole, or not there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self
from uuid import uuid4

from tamis.errors import InvalidInput

if TYPE_CHECKING:
    from pyarrow import Buffer, NativeFile
    from pyarrow.fs import FileSystem

UNFINISHED = "."  # what a file's name begins with while it is written; readers of Parquet pass over such names
CHUNK = 2**20  # bytes that are copied at once


def located(path: str | Path) -> tuple[FileSystem, str]:
    """The filesystem of a path or URI, and the path in it.

    Raises:
        InvalidInput: No filesystem is known for the URI.
    """
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem, LocalFileSystem

    text = str(path)
    if "://" not in text:
        return LocalFileSystem(), os.path.abspath(Path(text).expanduser())
    try:
        system, inner = FileSystem.from_uri(text)
    except (ArrowException, ValueError) as error:
        raise InvalidInput(f"{text!r} is not a folder that can be opened: {error}") from error
    return system, str(inner)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder, which travels to workers as its name.

    Attributes:
        uri: An absolute path, or a URI.
    """

    uri: str

    @classmethod
    def at(cls, path: str | Path) -> Self:
        """The folder of a path as a caller writes it."""
        text = str(path).rstrip("/") or "/"
        return cls(text if "://" in text else located(text)[1])

    def path(self, name: str) -> str:
        """The path or URI of something in it."""
        return f"{self.uri}/{name}"

    def folder(self, name: str) -> Folder:
        """A folder in it."""
        return Folder(self.path(name))

    def names(self) -> set[str]:
        """The files in it; none if it does not exist."""
        from pyarrow.fs import FileSelector, FileType

        system, root = located(self.uri)
        found = system.get_file_info(FileSelector(root, allow_not_found=True))
        return {info.base_name for info in found if info.type == FileType.File}

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        from pyarrow.fs import FileType

        system, path = located(self.path(name))
        return bool(system.get_file_info(path).type == FileType.File)

    def read(self, name: str) -> bytes | None:
        """The file's content; None if there is none."""
        if not self.has(name):
            return None
        system, path = located(self.path(name))
        with system.open_input_file(path) as file:
            return bytes(file.read())

    def write(self, name: str, content: bytes | Buffer) -> None:
        """Writes a file that others see whole or not at all; one of that name is replaced."""
        with self._writing(name) as file:
            file.write(content)

    def join(self, name: str, parts: Iterable[str]) -> None:
        """Writes a file from others of this folder, one after the other; whole or not at all."""
        system, root = located(self.uri)
        with self._writing(name) as file:
            for part in parts:
                with system.open_input_stream(f"{root}/{part}") as content:
                    while block := content.read(CHUNK):
                        file.write(block)

    @contextmanager
    def _writing(self, name: str) -> Iterator[NativeFile]:
        """A file that appears at the end: an object in a store does by itself, a file on a disk is renamed."""
        from pyarrow.fs import LocalFileSystem

        system, root = located(self.uri)
        system.create_dir(root, recursive=True)
        local = isinstance(system, LocalFileSystem)
        beside = f"{root}/{UNFINISHED}{name}-{uuid4().hex[:8]}" if local else f"{root}/{name}"
        with system.open_output_stream(beside) as file:
            yield file
        if local:
            os.replace(beside, f"{root}/{name}")

    def remove(self, names: set[str]) -> None:
        """Removes files."""
        system, root = located(self.uri)
        for name in names:
            system.delete_file(f"{root}/{name}")

    def clear(self) -> None:
        """Removes the folder with all that is in it, if it exists."""
        from pyarrow.fs import FileType

        system, root = located(self.uri)
        if system.get_file_info(root).type != FileType.NotFound:
            system.delete_dir(root)
