"""An open model file: what tells its format, and its members if it is an archive."""

from __future__ import annotations

import io
import os
import zipfile
from functools import cached_property
from typing import BinaryIO

from ..tensors import size_of

MAX_LISTING = 32 * 2**20  # bytes of a zip file's directory, about 300,000 names


class Source:
    """An open model file, and what tells its format.

    Attributes
    ----------
    path : str
        As the user gave it; external data and a configuration beside the file are found from it.
    file : seekable binary file
    size : int
        Bytes.
    head : bytes
        The first 4096, or all.
    """

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.size = size_of(file)
        self.head = file.read(4096)

    @cached_property
    def zip(self) -> zipfile.ZipFile | None:
        """The zip archive that the file is, or None. Read its members by `member`."""
        if not self.head.startswith(b"PK\3\4"):
            return None
        try:
            return zipfile.ZipFile(_Bounded(self.file))
        except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
            raise ValueError(f"not a whole zip file: {error}") from error

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of the archive's members; none if the file is no zip archive."""
        return frozenset(self.zip.namelist() if self.zip else ())

    def member(self, name: str, most: int) -> bytes:
        """Return a member of the archive, or raise ValueError if it is broken or over `most` bytes.

        What it claims and what comes out are both held to `most`, so that an archive cannot unpack
        to more than the caller is ready for.
        """
        info = self._info(name)
        if info.file_size > most:
            raise ValueError(f"{name} has {info.file_size} bytes, expected at most {most}")
        content = self.start(name, most + 1)
        if len(content) > most:
            raise ValueError(f"{name} has more than {most} bytes")
        return content

    def start(self, name: str, count: int) -> bytes:
        """Return the first `count` bytes of a member, or all."""
        assert self.zip is not None
        try:
            with self.zip.open(self._info(name)) as file:
                return file.read(count)
        except ValueError:
            raise
        except (
            Exception
        ) as error:  # zlib.error, BadZipFile, EOFError, RuntimeError (encrypted), ...
            raise ValueError(f"{name} can't be read: {error}") from error

    def _info(self, name: str) -> zipfile.ZipInfo:
        assert self.zip is not None
        try:
            return self.zip.getinfo(name)
        except KeyError:
            raise ValueError(f"the archive has no {name}") from None


class _Bounded(io.RawIOBase):
    """A file as `zipfile` reads it, whose directory may not be longer than it can use."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:  # the end of the file, of which a comment is the most part
            size = 2**17
        if size > MAX_LISTING:
            raise zipfile.BadZipFile(f"{size} bytes at once, expected at most {MAX_LISTING}")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True
