"""Reading untrusted HDF5 files: links are checked before they are followed, and no other file is
opened.

An HDF5 file can refer to other files (external links, external storage, virtual datasets), list one
object under any number of names, and declare arrays of any size. Only hard links, and soft links to
a name in the same group, are followed; each reference counts with its full size.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from corrkd.data.readers.bounds import Budget, refused
from corrkd.errors import CorrKDError

Array = npt.NDArray[Any]
ROWS = 16  # strings read at a time: their lengths are unknown before


def members(name: str, group: h5py.Group) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    """Yield (name, object) for each link of a group.

    Args:
        name: name of the file, which begins error messages.
        group: group of an open file.

    Raises:
        CorrKDError: if a link leaves the file or its group.
    """
    for key in group:
        link = group.get(key, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise refused(name, f"{key!r} is a link to another file; copy the data into this one")
        if isinstance(link, h5py.SoftLink):
            if "/" in link.path or link.path in (".", "..") or link.path not in group:
                raise refused(name, f"{key!r} is a soft link out of its group; copy the data there")
            if not isinstance(group.get(link.path, getlink=True), h5py.HardLink):
                raise refused(name, f"{key!r} is a link to a link; copy the data there")
        yield key, group[key]


def array(name: str, dataset: h5py.Dataset, budget: Budget) -> Array:
    """Return a dataset's values; strings as objects.

    Raises:
        CorrKDError: if its values are stored elsewhere, are neither numbers nor strings, or exceed
            the budget.
    """
    if dataset.external:
        raise refused(name, "its values are stored in another file")
    if dataset.is_virtual:
        raise refused(name, "it is a virtual dataset, with values stored elsewhere")
    text = h5py.check_string_dtype(dataset.dtype)
    if text is None and dataset.dtype.kind not in "fiub":
        raise refused(
            name, f"values of type {dataset.dtype}; only numbers, booleans and strings are read"
        )
    budget.take(name, dataset.nbytes)
    if text is None:
        return np.asarray(dataset)
    return _strings(name, dataset, budget)


def _strings(name: str, dataset: h5py.Dataset, budget: Budget) -> Array:
    """Return the strings of a dataset. They may all refer to one long text in the file, so they are
    counted as they are read, some rows at a time.
    """
    if dataset.ndim == 0:
        text = dataset.asstr(errors="replace")[()]
        budget.take(name, sys.getsizeof(text))
        return np.array(text, object)
    pieces = []
    for start in range(0, len(dataset), ROWS):
        piece = np.asarray(dataset.asstr(errors="replace")[start : start + ROWS], object)
        budget.take(name, sum(map(sys.getsizeof, piece.ravel().tolist())))
        pieces.append(piece)
    return np.concatenate(pieces) if pieces else np.empty(dataset.shape, object)


def open_file(path: Path) -> h5py.File:
    """Open an HDF5 file for reading. Raises CorrKDError if it is not one."""
    try:
        return h5py.File(path, "r")
    except (OSError, RuntimeError) as error:
        if "truncated" in str(error):
            raise CorrKDError(f"{path.name}: a truncated HDF5 file; download it again") from None
        raise CorrKDError(
            f"{path.name}: a damaged HDF5 file ({str(error)[:120]}); download or write it again"
        ) from None
