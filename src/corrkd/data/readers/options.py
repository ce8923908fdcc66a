"""What a caller asks of every reader alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How a dataset file is to be read.

    Attributes:
        glove: a GloVe text file, for layouts that hold words instead of vectors.
        folds: a JSON file {split: [video, ...]}, for layouts without splits.
        label: which label column is meant, and how (readers/labels.py); None: the layout's usual one.
        targets: whether scores or labels are needed.
    """

    glove: Path | None = None
    folds: Path | None = None
    label: str | None = None
    targets: bool = True
