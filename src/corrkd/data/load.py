"""`load_dataset`: from a path to a `MultimodalDataset`, whatever the layout."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from corrkd.data import safe_pickle
from corrkd.data.dataset import MultimodalDataset, Split
from corrkd.data.known_files import KNOWN_FILES
from corrkd.data.readers import mmsa
from corrkd.errors import CorrKDError


def load_dataset(
    path: str | Path, *, glove: Path | None = None, folds: Path | None = None, name: str | None = None
) -> MultimodalDataset:
    """The dataset at `path`."""
    path = Path(path)
    if str(path) == "synthetic":
        from corrkd.data import synthetic

        return synthetic.make(synthetic.SyntheticSpec())
    digest = sha256_of(path)
    data = safe_pickle.load(path)
    title = name or path.stem
    if mmsa.recognises(data):
        dataset = mmsa.read(data, title)
    else:
        raise CorrKDError(f"{path.name}: an unknown layout")
    return replace(dataset, sha256=digest)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
