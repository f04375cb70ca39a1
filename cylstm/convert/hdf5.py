"""HDF5 files by h5py, within bounds: what a file says costs no more than its own size allows.

Read are hard links to datasets of floats whose values are in the file itself. Links to other
files, virtual datasets and filters that unpack to far more than they are packed are refused.

The structure of a file is libhdf5's to parse. It finds most damage, and some keeps it busy without
end: where files come from strangers, load them in a process with a limit of time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from ..weights import Array

MAX_RATIO = 20  # of what a compressed dataset unpacks to
MAX_FREE = 2**20  # bytes that any dataset may have
MAX_NODES = 100_000  # groups and datasets that are looked at
MAX_DEPTH = 32


class _Refused(ValueError):
    """What is refused here, in words of our own."""


class Group:
    """A group of an HDF5 file; a name that leads elsewhere is not there."""

    def __init__(self, group: Any) -> None:
        self._group = group

    @classmethod
    def open(cls, file: BinaryIO) -> Group:
        """The root of an open file; ImportError without h5py, ValueError if it is broken."""
        try:
            import h5py
        except ImportError as error:
            raise ImportError("Keras' HDF5 files need h5py: pip install cylstm[keras]") from error
        try:
            return cls(h5py.File(file, "r"))
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"not a whole HDF5 file: {error}") from error

    def group(self, name: str) -> Group | None:
        """The group of this name or path, or None."""
        found = self._get(name)
        return Group(found) if hasattr(found, "keys") else None

    def dataset(self, name: str) -> Dataset:
        """The dataset of this name or path, or ValueError."""
        found = self._get(name)
        if found is None or hasattr(found, "keys"):
            raise ValueError(f"no dataset {name!r} in {self._group.name!r}")
        return Dataset(found)

    def names(self) -> list[str]:
        """The names in this group, those of datasets with numbers for names in their order."""
        found = list(_safely(self._group.keys))
        return sorted(
            found, key=lambda name: (0, int(name), name) if name.isdigit() else (1, 0, name)
        )

    def walk(self, path: str = "", depth: int = 0) -> Iterator[tuple[str, Group]]:
        """(path, group) of all groups below, in their order."""
        if depth > MAX_DEPTH:
            raise ValueError(f"groups nested more than {MAX_DEPTH} deep")
        for count, name in enumerate(self.names()):
            if count > MAX_NODES:
                raise ValueError(f"more than {MAX_NODES} names in a group")
            if (group := self.group(name)) is not None:
                below = f"{path}/{name}" if path else name
                yield below, group
                yield from group.walk(below, depth + 1)

    def text(self, name: str) -> str | None:
        """An attribute that is a string, or None."""
        value = _safely(lambda: self._group.attrs.get(name))
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        return value if isinstance(value, str) else None

    def texts(self, name: str) -> list[str] | None:
        """An attribute that is a list of strings, which Keras splits when it is long, or None."""
        attrs = self._group.attrs
        parts = []
        if _safely(lambda: name in attrs):
            parts.append(_safely(lambda: attrs[name]))
        while _safely(lambda: f"{name}{len(parts)}" in attrs) and len(parts) < MAX_NODES:
            parts.append(_safely(lambda: attrs[f"{name}{len(parts)}"]))
        if not parts:
            return None
        found = [item for part in parts for item in np.asarray(part).ravel().tolist()]
        return [n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in found]

    def _get(self, name: str) -> Any:
        """What a path of hard links leads to."""
        import h5py

        found = self._group
        for part in name.split("/"):
            if not part or part == "." or not hasattr(found, "keys"):
                return None
            link = _safely(lambda: found.get(part, getlink=True))  # noqa: B023
            if not isinstance(link, h5py.HardLink):
                return None
            found = _safely(lambda: found[part])  # noqa: B023
        return found


class Dataset:
    """A dataset that has not been read: its shape costs nothing."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.shape: tuple[int, ...] = tuple(_safely(lambda: dataset.shape) or ())
        self.dtype = _safely(lambda: dataset.dtype.newbyteorder("="))

    @property
    def name(self) -> str:
        return str(self._dataset.name)

    def read(self) -> Array:
        """The array, or ValueError for what is not an array of floats in the file itself."""
        array: Array = _safely(self._read)
        return array

    def _read(self) -> Array:
        found = self._dataset
        if found.dtype.kind != "f":
            raise _Refused(f"{self.name} is {found.dtype}, expected floats")
        if found.is_virtual or found.external:
            raise _Refused(f"{self.name} has its values in other files")
        size, stored = found.nbytes, found.id.get_storage_size()
        if size > max(MAX_FREE, stored * (MAX_RATIO if found.compression else 1)):
            raise _Refused(f"{self.name} would take {size} bytes, of which {stored} are stored")
        array = np.empty(found.shape, found.dtype.newbyteorder("="))
        if array.size:
            found.read_direct(array)
        return array


def _safely(call: Any) -> Any:
    """What h5py says, whose errors for broken files are of many kinds."""
    try:
        return call()
    except _Refused:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeError) as error:
        raise ValueError(f"a broken HDF5 file: {error}") from error
