"""MMSA's layout (`aligned_50.pkl`, `unaligned_50.pkl`, CH-SIMS): a dict of splits, each a dict of arrays with `regression_labels`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from corrkd.data.dataset import MultimodalDataset
from corrkd.data.readers.assemble import (
    GROUPS,
    SPLIT_NAMES,
    RawSplit,
    assemble,
    integers,
    is_modality,
    likert_range,
    numeric,
    sign_class_names,
    strings,
)
from corrkd.errors import CorrKDError

MODALITIES = {"text": "language", "audio": "audio", "vision": "vision"}
TARGETS = ("regression_labels", "classification_labels")


def recognises(data: Any) -> bool:
    """A dict of split names whose values are dicts with MMSA's label arrays."""
    return (
        isinstance(data, dict)
        and bool(data)
        and all(name in SPLIT_NAMES and isinstance(part, dict) for name, part in data.items())
        and any(target in part for part in data.values() for target in TARGETS)
    )


def read(data: Mapping[str, Mapping[str, Any]], name: str) -> MultimodalDataset:
    """The dataset in MMSA's dict: `text`, `audio`, `vision` and any further (N, T, d) or (N, d) float array.

    Lengths are taken from `<modality>_lengths`, those of `text` also from the mask in `text_bert`; it counts [CLS] and [SEP], where
    aligned files hold no audio and vision, and that is not counted as missing. CH-SIMS's labels of single
    modalities (`regression_labels_T` ...) stay out; a note says so.
    """
    raw, unused = {}, set()
    for split, part in data.items():
        raw[SPLIT_NAMES[split]], left_out = _read_split(f"{name}, {split}", part)
        unused |= left_out
    sims = any("regression_labels_T" in part for part in data.values())
    sequences = {x.shape[1] for part in raw.values() for x in part.frames.values() if np.ndim(x) == 3}
    notes = [f"left out: {', '.join(sorted(unused))}"] if unused else []
    return assemble(
        name,
        raw,
        layout=f"MMSA {'aligned' if len(sequences) <= 1 else 'unaligned'}{', CH-SIMS' if sims else ''}",
        special_tokens=all("text_bert" in part and "text_lengths" not in part for part in data.values()),
        notes=notes,
        class_names=_class_names(data) or sign_class_names(raw),
        score_range=(-1.0, 1.0) if sims else likert_range(raw),
    )


def _read_split(where: str, part: Mapping[str, Any]) -> tuple[RawSplit, set[str]]:
    target = next((part[t] for t in TARGETS if t in part), None)
    if target is None:
        raise CorrKDError(f"{where}: has neither regression_labels nor classification_labels")
    count = len(np.atleast_1d(target))
    frames = {m: part[key] for key, m in MODALITIES.items() if key in part}
    known = {*MODALITIES, *TARGETS, "id", "raw_text", "annotations", "text_bert"}
    frames |= {key: values for key, values in part.items() if key not in known and is_modality(values, count)}
    lengths = {m: part[f"{key}_lengths"] for key, m in _keys(frames).items() if f"{key}_lengths" in part}
    mask, language = part.get("text_bert"), frames.get("language")
    if "language" not in lengths and isinstance(mask, np.ndarray) and isinstance(language, np.ndarray):
        rows = mask[:, 1:2] if mask.ndim == 3 else mask  # ids, mask, segment
        if language.ndim == 3 and rows.shape == (count, 1, language.shape[1]):
            lengths["language"] = numeric(where, rows, "text_bert").sum((1, 2))
    groups = {g: strings(part[g]) for g in GROUPS if g in part}
    used = {
        *known,
        *_keys(frames),
        *(f"{key}_lengths" for key in _keys(frames)),
        *(f"{key}_frame_ids" for key in _keys(frames)),
        *groups,
        "order",
        "frame_ids",
    }
    raw = RawSplit(
        frames=frames,
        lengths=lengths,
        ids=part.get("id"),
        scores=numeric(where, part["regression_labels"], "regression_labels") if "regression_labels" in part else None,
        labels=None
        if part.get("classification_labels") is None
        else integers(where, part["classification_labels"], "labels"),
        groups=groups,
        order=part.get("order"),
        frame_ids={
            m: part[name]
            for key, m in _keys(frames).items()
            for name in ("frame_ids", f"{key}_frame_ids")
            if name in part and np.ndim(frames[m]) == 3
        },
    )
    return raw, set(map(str, part)) - used


def _keys(frames: Mapping[str, Any]) -> dict[str, str]:
    """File key -> modality, of the modalities found."""
    own_name = {m: key for key, m in MODALITIES.items()}
    return {own_name.get(m, m): m for m in frames}


def _class_names(data: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Names from `annotations` ("Negative" ...) where each class goes with one of them; else ()."""
    pairs: set[tuple[int, str]] = set()
    for part in data.values():
        if "annotations" not in part or "classification_labels" not in part:
            return ()
        words = [word.strip().lower() for word in strings(part["annotations"])]
        pairs |= set(zip(np.asarray(part["classification_labels"]).ravel().astype(int).tolist(), words, strict=False))
    names = dict(pairs)
    if len(names) != len(pairs) or "" in names.values() or sorted(names) != list(range(len(names))):
        return ()
    return tuple(names[k] for k in range(len(names)))
