"""A folder of one file a split (`train.pkl`, `dev.pkl`, `test.pkl`), as MISA, MMIM and BBFN write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from corrkd.data import safe_pickle
from corrkd.data.readers.containers import read_h5, read_npz, read_safetensors
from corrkd.data.readers.names import SPLIT_NAMES
from corrkd.errors import CorrKDError

READERS: Mapping[str, Callable[[Path], Any]] = {
    ".pkl": safe_pickle.load,
    ".pickle": safe_pickle.load,
    ".npz": read_npz,
    ".h5": read_h5,
    ".hdf5": read_h5,
    ".safetensors": read_safetensors,
}


def split_files(folder: Path) -> dict[str, Path]:
    """Return the files of a folder whose name ends in a split's, by split.

    Raises:
        CorrKDError: two files are of the same split.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        word = re.split(r"[^a-z]", path.stem.lower())[-1]
        if path.suffix.lower() in READERS and word in SPLIT_NAMES and path.is_file():
            split = SPLIT_NAMES[word]
            if split in files:
                raise CorrKDError(
                    f"{folder.name}: {files[split].name} and {path.name} are both of split {split}; move one away"
                )
            files[split] = path
    return files


def read_data(files: dict[str, Path]) -> dict[str, Any]:
    """Return what is in the files, by split, as a file of all splits would hold it."""
    return {split: READERS[path.suffix.lower()](path) for split, path in files.items()}
