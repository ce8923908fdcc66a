"""Reading a folder with one file per split: `train.pkl`, `dev.pkl`, `test.pkl`, as MISA, MMIM and
BBFN write them, or tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from corrkd.data import safe_pickle
from corrkd.data.readers import csv_tables
from corrkd.data.readers.containers import read_h5, read_npz, read_safetensors
from corrkd.data.readers.names import SPLIT_NAMES
from corrkd.data.readers.tables import Columns, stacked
from corrkd.errors import CorrKDError

READERS: Mapping[str, Callable[[Path], Any]] = {
    ".pkl": safe_pickle.load,
    ".pickle": safe_pickle.load,
    ".npz": read_npz,
    ".h5": read_h5,
    ".hdf5": read_h5,
    ".safetensors": read_safetensors,
}
TABLES = (*csv_tables.ENDINGS, ".parquet", ".arrow", ".feather")
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")  # of a split, as on the Hugging Face hub
Files = dict[str, list[Path]]


def split_files(folder: Path) -> Files:
    """Return, by split, the files of a folder or of its subfolder `data` with names that end in
    that of a split: one, or the shards of a table.

    Raises:
        CorrKDError: if two files are for the same split and are not shards.
    """
    files: Files = {}
    inside = [
        *folder.iterdir(),
        *((folder / "data").iterdir() if (folder / "data").is_dir() else ()),
    ]
    for path in sorted(inside):
        shard = SHARD.fullmatch(path.stem) if path.suffix.lower() in TABLES else None
        word = re.split(r"[^a-z]", (shard[1] if shard else path.stem).lower())[-1]
        if path.suffix.lower() in (*READERS, *TABLES) and word in SPLIT_NAMES and path.is_file():
            some = files.setdefault(SPLIT_NAMES[word], [])
            if some and not (shard and SHARD.fullmatch(some[-1].stem)):
                raise CorrKDError(
                    f"{folder.name}: {some[-1].name} and {path.name} are both for split "
                    f"{SPLIT_NAMES[word]}; move one away"
                )
            some.append(path)
    return files


def are_tables(files: Files) -> bool:
    """Return whether the files are tables. Raises CorrKDError if some are and some are not."""
    endings = {path.suffix.lower() for paths in files.values() for path in paths}
    if endings & set(TABLES) and endings & set(READERS):
        raise CorrKDError(
            f"splits in files of several kinds ({', '.join(sorted(endings))}); use the same "
            f"kind for all"
        )
    return bool(endings & set(TABLES))


def read_tables(files: Files) -> dict[str, Columns]:
    """Return the columns of each split's tables."""
    return {
        split: read_table(paths[0]) if len(paths) == 1 else read_shards(paths)
        for split, paths in files.items()
    }


def read_table(path: Path) -> Columns:
    """Return the columns of a table: Parquet, Arrow or CSV."""
    from corrkd.data.readers import arrow  # slow to import and rarely needed

    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(arrow.PARQUET):
        return arrow.read_parquet(path)
    return arrow.read_arrow(path) if start.startswith(arrow.ARROW) else csv_tables.read(path)


def read_shards(paths: Sequence[Path]) -> Columns:
    """Return the columns of a table in several files, one below the other."""
    return stacked(paths[0].name, {path.name: read_table(path) for path in paths})


def read_data(files: Files) -> dict[str, Any]:
    """Return the contents of the files by split, as in a file of all splits."""
    return {split: READERS[path.suffix.lower()](path) for split, (path,) in files.items()}
