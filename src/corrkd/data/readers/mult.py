"""MulT's layout (`mosi_data.pkl`, `mosei_senti_data.pkl`, `iemocap_data.pkl`, `*_noalign.pkl`): a
dict of splits with `labels`.

Low-rank Fusion uses an older variant: `label`, and `covarep`, `facet`, `glove` for the modalities;
for IEMOCAP it has a dict for each emotion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from corrkd.data.dataset import IntArray, MultimodalDataset, StrArray
from corrkd.data.groups import GROUPS
from corrkd.data.readers import split_dicts
from corrkd.data.readers.assemble import assemble, likert_range
from corrkd.data.readers.labels import are_names, columns_of, mosei_names
from corrkd.data.readers.names import ALIASES, USUAL, label_keys
from corrkd.data.readers.options import ReadOptions
from corrkd.data.readers.raw import Array, RawSplit
from corrkd.data.readers.split_dicts import feature_names, left_out, raw_split, splits_of
from corrkd.data.readers.values import column, numeric, ranks_within, strings
from corrkd.errors import CorrKDError

LABELS = ("labels", "label")
OTHERS = (*LABELS, "id", "order", "frame_ids")
IEMOCAP_QUESTIONS = ("neutral", "happy", "sad", "angry")


def recognises(data: Any) -> bool:
    """Return whether data is a dict of splits, one of which has an array `labels` or `label`."""
    return split_dicts.recognises(data) and any(
        isinstance(contents, dict) and any(key in contents for key in LABELS)
        for contents in data.values()
    )


def recognises_emotions(data: Any) -> bool:
    """Return whether data is a dict of such dicts, one for each emotion."""
    return (
        isinstance(data, dict)
        and bool(data)
        and all(recognises(split_dicts.with_text_keys(x)) for x in data.values())
    )


def read_emotion(data: Mapping[str, Any], name: str, options: ReadOptions) -> MultimodalDataset:
    """Return the dataset of the emotion that `--label` names. Raises CorrKDError if it names none
    of them.
    """
    if options.label is None or options.label not in data:
        raise CorrKDError(
            f"{name}: has a dataset for each of {', '.join(map(str, data))}; choose one with "
            f"--label"
        )
    chosen = ReadOptions(targets=options.targets)
    return read(split_dicts.with_text_keys(data[options.label]), f"{name} {options.label}", chosen)


def read(data: Mapping[str, Any], name: str, options: ReadOptions) -> MultimodalDataset:
    """Return the dataset in MulT's dict: `text`, `audio`, `vision`, any further float array,
    `labels` and optionally `id`.

    Labels of shape (N, 1, 1) are scores; (N, Q, 2) are yes/no questions, one-hot as (absent,
    present); with Q = 4 they are IEMOCAP's neutral, happy, sad, angry; (N, 6) and (N, 1, 6) are
    CMU-MOSEI's emotions, each a question of whether it is above 0. Padding may be on either side.
    """
    parts, notes = splits_of(data, name)
    labels = {split: _labels(f"{name}, {split}", contents) for split, contents in parts.items()}
    features = {
        split: _features(f"{name}, {split}", contents, labels[split])
        for split, contents in parts.items()
    }
    raw = {
        split: _read_split(f"{name}, {split}", contents, features[split], labels[split])
        for split, contents in parts.items()
    }
    columns = [full for contents in raw.values() for full in contents.columns]
    notes += left_out(parts, [key for keys in features.values() for key in keys], columns, OTHERS)
    questions = next(iter(raw.values())).labels
    names: tuple[str, ...] = ()
    if questions is not None and questions.ndim == 2:
        width = questions.shape[1]
        named = tuple(full.rpartition(".")[2] for full in next(iter(raw.values())).columns)
        names = IEMOCAP_QUESTIONS if width == 4 else named if len(named) == width else ()
        names = names or tuple(f"question {q + 1}" for q in range(width))
    return assemble(
        name,
        raw,
        options,
        layout="MulT",
        notes=notes,
        question_names=names,
        score_range=likert_range(raw),
    )


def _labels(where: str, contents: Mapping[str, Any]) -> Array | None:
    key = next((key for key in LABELS if key in contents), None)
    labels = None if key is None else np.asarray(contents[key])
    return (
        labels
        if labels is None or (labels.ndim and are_names(labels))
        else numeric(where, labels, "labels")
    )


def _features(where: str, contents: Mapping[str, Any], labels: Array | None) -> dict[str, str]:
    """Return {key: modality}."""
    return feature_names(where, contents, _count(where, contents, labels), (*OTHERS, *GROUPS))


def _read_split(
    where: str, contents: Mapping[str, Any], features: Mapping[str, str], labels: Array | None
) -> RawSplit:
    raw = raw_split(contents, features)
    raw.ids, groups, order = _ids(where, contents.get("id"))
    raw.groups = groups | raw.groups
    raw.order = order if raw.order is None else raw.order
    count = _count(where, contents, labels)
    for key in label_keys(contents, count, (*OTHERS, *GROUPS)):
        raw.columns |= columns_of(key, contents[key])
    if labels is not None:
        _set_labels(where, raw, labels, count)
    return raw


def _count(where: str, contents: Mapping[str, Any], labels: Array | None) -> int:
    if labels is not None and labels.ndim:
        return len(labels)
    for key in ("id", *USUAL, *ALIASES):
        if key in contents and np.ndim(contents[key]):
            return len(contents[key])
    raise CorrKDError(
        f"{where}: has neither labels nor `text`, `audio` or `vision`; add an array labels"
    )


def _set_labels(where: str, raw: RawSplit, labels: Array, count: int) -> None:
    """Set scores, classes or yes/no answers, by the shape of the labels."""
    if labels.dtype.kind in "SUO":
        raw.labels = labels
        return
    if labels.ndim == 3 and labels.shape[2] == 2:
        raw.labels = _answers(where, labels)
        return
    if (
        labels.ndim == 2
        and labels.shape[1] == 2
        and np.isin(labels, (0, 1)).all()
        and (labels.sum(1) == 1).all()
    ):
        raw.labels = labels.argmax(1)  # one emotion, one-hot as (absent, present)
        return
    raw.columns = columns_of("labels", labels) | raw.columns
    table = labels.reshape(count, -1)
    if table.shape[1] > 2 and np.isin(table, (0, 1)).all() and (table.sum(1) == 1).all():
        raw.labels = table.argmax(1)  # one-hot classes
        return
    names = mosei_names(table)
    if len(names) == 7:
        raw.scores = table[:, 0]
    elif names:
        raw.labels = (table > 0).astype(np.int64)
    elif table.shape[1] == 1:
        raw.scores = column(where, labels, "labels", count)


def _answers(where: str, labels: Array) -> IntArray:
    """Return yes/no answers (N, Q) from one-hot (N, Q, 2)."""
    if not np.isfinite(labels).all():
        raise CorrKDError(f"{where}: labels contain NaN or infinite values; leave such samples out")
    if not (np.isin(labels, (0, 1)).all() and (labels.sum(2) == 1).all()):
        raise CorrKDError(
            f"{where}: labels of shape {labels.shape} are not one-hot; give (N, Q, 2) with a "
            f"single 1 in each pair"
        )
    return labels.argmax(2).astype(np.int64)


def _ids(where: str, values: Any) -> tuple[StrArray | None, dict[str, Any], IntArray | None]:
    """Return (ids, groups, order) from (N, 3) fields video, start, end; plain ids are returned as
    they are.
    """
    if values is None:
        return None, {}, None
    table = np.asarray(values, object)
    if table.ndim != 2 or table.shape[1] < 3:
        return strings(list(table), f"{where}: ids"), {}, None
    fields = strings(table, f"{where}: ids").reshape(table.shape)
    video, start, end = fields[:, 0], fields[:, 1], fields[:, 2]
    ids = np.array([f"{v}@{s}-{e}" for v, s, e in zip(video, start, end, strict=True)])
    try:
        times = start.astype(np.float64)
    except ValueError:
        return ids, {"video": video}, None
    return ids, {"video": video}, ranks_within(video, times)
