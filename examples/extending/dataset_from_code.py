"""A dataset that comes from code: any modalities, any lengths, naturally missing frames.

python examples/extending/dataset_from_code.py     writes calls.safetensors
corrkd run --data calls.safetensors
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import corrkd
from corrkd.data.convert import convert
from corrkd.data.dataset import check_split


def make_split(name: str, count: int, rng: np.random.Generator, frames: int = 10) -> corrkd.Split:
    """Samples with a sequence of 3 to `frames` vectors of speech and one vector of a face."""
    lengths = rng.integers(3, frames + 1, size=count)
    exists = np.arange(frames) < lengths[:, None]
    labels = rng.integers(3, size=count)
    speech = (labels - 1)[:, None, None] + rng.normal(size=(count, frames, 8))
    face = (labels - 1)[:, None, None] + rng.normal(size=(count, 1, 6))
    detected = rng.random(count) < 0.9  # elsewhere no face was detected: naturally missing
    split = corrkd.Split(
        frames={
            # Zero in the padding.
            "speech": np.where(exists[..., None], speech, 0).astype(np.float32),
            "face": (face * detected[:, None, None]).astype(np.float32),
        },
        lengths={"speech": lengths, "face": np.ones(count, np.int64)},
        present={"speech": exists, "face": detected[:, None]},
        ids=np.array([f"{name}$_${row}" for row in range(count)]),
        labels=labels,
    )
    check_split(name, split)
    return split


def make_dataset(seed: int = 0) -> corrkd.MultimodalDataset:
    """Three splits of phone calls."""
    rng = np.random.default_rng(seed)
    sizes = {"train": 120, "valid": 60, "test": 60}
    return corrkd.MultimodalDataset(
        name="calls",
        splits={name: make_split(name, count, rng) for name, count in sizes.items()},
        class_names=("annoyed", "neutral", "pleased"),
        missing_rule={"face": "no face was detected"},
    )


if __name__ == "__main__":
    convert(make_dataset(), Path("calls.safetensors"))
