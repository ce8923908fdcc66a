"""MulT's layout (`mosi_data.pkl`, `mosei_senti_data.pkl`, `iemocap_data.pkl`, `*_noalign.pkl`): a dict of splits with `labels`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from corrkd.data.dataset import IntArray, MultimodalDataset, StrArray
from corrkd.data.readers.assemble import (
    GROUPS,
    SPLIT_NAMES,
    Array,
    RawSplit,
    assemble,
    column,
    is_modality,
    likert_range,
    numeric,
    strings,
)
from corrkd.errors import CorrKDError

MODALITIES = {"text": "language", "audio": "audio", "vision": "vision"}
IEMOCAP_QUESTIONS = ("neutral", "happy", "sad", "angry")


def recognises(data: Any) -> bool:
    """A dict of split names whose values are dicts with an array `labels`."""
    return (
        isinstance(data, dict)
        and bool(data)
        and all(name in SPLIT_NAMES and isinstance(part, dict) and "labels" in part for name, part in data.items())
    )


def read(data: Mapping[str, Mapping[str, Any]], name: str) -> MultimodalDataset:
    """The dataset in MulT's dict: `text`, `audio`, `vision`, any further float array, `labels` and perhaps `id`.

    Labels of shape (N, 1, 1) are scores; (N, Q, 2) are yes/no questions, one-hot as (absent, present); with Q = 4 they are
    IEMOCAP's neutral, happy, sad, angry. Padding may be on either side.
    """
    raw = {SPLIT_NAMES[split]: _read_split(f"{name}, {split}", part) for split, part in data.items()}
    questions = next(iter(raw.values())).labels
    names: tuple[str, ...] = ()
    if questions is not None:
        width = questions.shape[1]
        names = IEMOCAP_QUESTIONS if width == 4 else tuple(f"question {q + 1}" for q in range(width))
    return assemble(name, raw, layout="MulT", question_names=names, score_range=likert_range(raw))


def _read_split(where: str, part: Mapping[str, Any]) -> RawSplit:
    labels = numeric(where, part["labels"], "labels")
    count = len(labels) if labels.ndim else 0
    frames = {m: part[key] for key, m in MODALITIES.items() if key in part}
    known = {*MODALITIES, "labels", "id"}
    frames |= {key: values for key, values in part.items() if key not in known and is_modality(values, count)}
    ids, groups, order = _ids(part.get("id"))
    groups |= {g: strings(part[g]) for g in GROUPS if g in part}
    raw = RawSplit(frames=frames, ids=ids, groups=groups, order=order)
    if labels.ndim == 3 and labels.shape[2] == 2:
        raw.labels = _answers(where, labels)
    else:
        raw.scores = column(where, labels, "labels", count)
    return raw


def _answers(where: str, labels: Array) -> IntArray:
    """(N, Q) yes/no of one-hot (N, Q, 2)."""
    if not np.isfinite(labels).all():
        raise CorrKDError(f"{where}: labels contain NaN or infinite values")
    if not (np.isin(labels, (0, 1)).all() and (labels.sum(2) == 1).all()):
        raise CorrKDError(f"{where}: labels of shape {labels.shape} are not one-hot")
    return labels.argmax(2).astype(np.int64)


def _ids(values: Any) -> tuple[StrArray | None, dict[str, Any], IntArray | None]:
    """(ids, groups, order) of (N, 3) fields video, start, end; of plain ids, themselves."""
    if values is None:
        return None, {}, None
    table = np.asarray(values, object)
    if table.ndim != 2 or table.shape[1] < 3:
        return strings(list(table)), {}, None
    fields = strings(table).reshape(table.shape)
    video, start, end = fields[:, 0], fields[:, 1], fields[:, 2]
    ids = np.array([f"{v}@{s}-{e}" for v, s, e in zip(video, start, end, strict=True)])
    try:
        times = start.astype(np.float64)
    except ValueError:
        return ids, {"video": video}, None
    order = np.zeros(len(ids), np.int64)
    for name in np.unique(video):
        rows = np.flatnonzero(video == name)
        order[rows[np.argsort(times[rows], kind="stable")]] = np.arange(len(rows))
    return ids, {"video": video}, order
