"""A reader of a layout: pickled lists with a dict for each sample.

python examples/extending/layout.py     reads such a list and writes calls.safetensors
corrkd run --data calls.safetensors
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import corrkd
from corrkd.data.convert import convert
from corrkd.data.readers.assemble import assemble
from corrkd.data.readers.names import SPLIT_NAMES, modality_of
from corrkd.data.readers.options import ReadOptions
from corrkd.data.readers.pad import pad
from corrkd.data.readers.raw import RawSplit
from corrkd.data.readers.values import as_array

NOT_MODALITIES = {"id", "split", "label"}


def recognises(data: Any) -> bool:
    """Whether these are dicts that have at least those keys: the content counts, not the name."""
    return (
        isinstance(data, list)
        and bool(data)
        and all(isinstance(sample, dict) and sample.keys() >= NOT_MODALITIES for sample in data)
    )


def read(
    data: list[Mapping[str, Any]], name: str, options: ReadOptions
) -> corrkd.MultimodalDataset:
    """Read the other keys of a sample as modalities, (T, d)."""
    splits: dict[str, list[Mapping[str, Any]]] = {}
    for sample in data:
        splits.setdefault(SPLIT_NAMES[sample["split"]], []).append(sample)
    raw = {}
    for split, samples in splits.items():
        raw[split] = RawSplit(
            frames={},
            ids=[sample["id"] for sample in samples],
            labels=as_array([sample["label"] for sample in samples]),
        )
        for key in samples[0].keys() - NOT_MODALITIES:
            modality = modality_of(key)  # `acoustic` is audio
            where = f"{name}, {split}, {key}"
            padded, lengths = pad(where, [sample[key] for sample in samples])
            raw[split].frames[modality], raw[split].lengths[modality] = padded, lengths
    return assemble(
        name, raw, options, layout="list of samples", lengths_note="number of frames of each sample"
    )


def make_calls(count: int = 50) -> list[dict[str, Any]]:
    """Samples with 2 to 6 frames each, four from each call."""
    rng = np.random.default_rng(0)
    return [
        {
            "id": f"call{row // 4}$_${row % 4}",
            "split": "train" if row < 30 else "valid" if row < 40 else "test",
            "label": ("calm", "tense")[row % 2],
            "acoustic": rng.normal(size=(row % 5 + 2, 8)),
        }
        for row in range(count)
    ]


if __name__ == "__main__":
    calls = make_calls()
    dataset = read(calls, "calls", ReadOptions())
    convert(dataset, Path("calls.safetensors"))
    print(recognises(calls), dataset.split("train").lengths["audio"])
