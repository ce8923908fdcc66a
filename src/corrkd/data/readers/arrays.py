"""Named arrays in one `.npz`, `.h5`, `.safetensors` or pickle: the layout for users' data. N
samples; the first axis of every array is N.

    any name                      (N, T, d) or (N, d) real numbers, or (N, T, d) integers: a
                                  modality of that name, padded on the right; `text` is language,
                                  `acoustic` audio, `visual` vision. Integers of one or two axes may
                                  be ids or labels: left out, with a note. Names with words such as
                                  label, emotion, rating, id are never modalities
    <modality>_lengths, lengths   (N,) number of frames that exist
    <modality>_present            (N, T) or (N,) booleans: False if a frame, or the whole modality,
                                  is missing in the data
    scores (score, sentiment)     (N,) real numbers
    labels (label)                (N,) classes from 0 up, or their names, or (N, Q) yes/no answers
    emotion_labels, ratings, ...  (N,) or (N, Q) numbers: further labels for `--label`
    ids (id)                      (N,) strings, preferably video$_$clip
    split                         (N,) "train", "valid" (or "dev"), "test"; or 0, 1, 2
    person, speaker, session,
    video                         (N,) groups
    order                         (N,) position within the video or session
    <modality>_frame_ids,
    frame_ids                     (N, T) integers: index of each frame in the video or session, if
                                  samples overlap
    <modality>_missing_reasons    (N,) strings: why frames are missing, as "no face 12, video stream
                                  over 3"
    class_names, question_names   strings, one per class or question
    <labels>_names                (Q,) names of the columns of further labels

Without `split`, groups (else single samples) are assigned to 70/15/15 % at random, always in the
same way (deal.py). If targets are not required, as for predictions, a file with neither targets nor
`split` is one split, "all".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from corrkd.data.dataset import SPLITS, WHOLE, MultimodalDataset, StrArray
from corrkd.data.groups import GROUPS
from corrkd.data.readers.assemble import assemble
from corrkd.data.readers.deal import dealt, dealt_note, members_of
from corrkd.data.readers.labels import columns_of
from corrkd.data.readers.names import (
    FRAME_IDS,
    LENGTHS,
    MISSING_REASONS,
    PRESENT,
    SPLIT_NAMES,
    feature_candidates,
    feature_keys,
    in_usual_order,
    label_keys,
    modality_names,
)
from corrkd.data.readers.options import ReadOptions
from corrkd.data.readers.pad import with_lists_as_arrays
from corrkd.data.readers.raw import Array, Columns, RawSplit
from corrkd.data.readers.values import column, strings
from corrkd.errors import CorrKDError
from corrkd.parsing import parse_json

SCORES = ("scores", "score", "sentiment")
LABELS = ("labels", "label")
IDS = ("ids", "id")
PER_SAMPLE = (*IDS, *GROUPS, "split", "order")  # one value per sample
EXTRACTORS = "extractors"  # how the features were extracted, as JSON
COMPANIONS = (LENGTHS, PRESENT, FRAME_IDS, MISSING_REASONS)
RESERVED = {
    *SCORES,
    *LABELS,
    *PER_SAMPLE,
    "lengths",
    "frame_ids",
    "class_names",
    "question_names",
    EXTRACTORS,
}
NAMES = "_names"  # follows a label array's name
ONE_HOT = (
    "{key}: every row has a single 1 and is read as yes/no answers, one question per column; if "
    "they are classes, save {key}.argmax(1)"
)


def recognises(data: Any) -> bool:
    """Return whether data is a dict of arrays, at least one of two or three axes: pickled named
    arrays.
    """
    return (
        isinstance(data, dict)
        and all(isinstance(key, str) for key in data)
        and any(isinstance(x, np.ndarray) and x.ndim in (2, 3) for x in data.values())
    )


def recognises_splits(data: Any) -> bool:
    """Return whether data is a dict of splits of named arrays, with scores under a name that no
    other layout uses.
    """
    parts = (
        [contents for key, contents in data.items() if key in SPLIT_NAMES]
        if isinstance(data, dict)
        else []
    )
    return bool(parts) and all(
        isinstance(contents, dict) and any(key in contents for key in SCORES) for contents in parts
    )


def read(
    arrays: Mapping[str, Any],
    name: str,
    kind: str,
    options: ReadOptions,
    *,
    notes: Sequence[str] = (),
) -> MultimodalDataset:
    """Return the dataset in named arrays (see the top of this file for the names).

    Args:
        arrays: by name.
        name: name of the dataset.
        kind: "npz", "h5", "safetensors" or "pickled", for display.
        options: only `label` and `targets` are used.
        notes: notes of the caller.

    Raises:
        CorrKDError: if there is no target or no modality, or arrays do not fit one another.
    """
    together, array_notes = _raw_split(name, arrays, options)
    ids = (
        np.array([f"sample-{row}" for row in range(_rows(together))])
        if together.ids is None
        else together.ids
    )
    together.ids = ids
    splits, split_notes = _splits(name, arrays.get("split"), together, options)
    raw = {
        split: together.take(np.flatnonzero(splits == split))
        for split in (*SPLITS, WHOLE)
        if (splits == split).any()
    }
    return _assembled(raw, arrays, name, kind, options, [*notes, *array_notes, *split_notes])


def read_splits(
    parts: Mapping[str, Mapping[str, Any]],
    name: str,
    kind: str,
    options: ReadOptions,
    notes: list[str],
) -> MultimodalDataset:
    """Return the dataset in named arrays by split, as `read`; `class_names` and the like are read
    from the first split.
    """
    raw = {}
    for split, arrays in parts.items():
        raw[split], more = _raw_split(f"{name}, {split}", arrays, options)
        notes = [*notes, *(f"{split}: {note}" for note in more)]
    return _assembled(raw, next(iter(parts.values())), name, kind, options, notes)


def _assembled(
    raw: Mapping[str, RawSplit],
    arrays: Mapping[str, Any],
    name: str,
    kind: str,
    options: ReadOptions,
    notes: list[str],
) -> MultimodalDataset:
    return assemble(
        name,
        raw,
        options,
        layout=f"{kind} arrays",
        notes=notes,
        class_names=tuple(strings(arrays.get("class_names", ()), f"{name}: class_names").tolist()),
        question_names=tuple(
            strings(arrays.get("question_names", ()), f"{name}: question_names").tolist()
        ),
        extractors=_extractors(name, arrays.get(EXTRACTORS)),
    )


def _extractors(name: str, value: Any) -> dict[str, Any]:
    """Return how the features were extracted, as `corrkd features` writes it; {} if the file does
    not say.
    """
    if value is None:
        return {}
    text = np.asarray(value, object)
    described = parse_json(str(text.item()), f"{name}: {EXTRACTORS}") if text.size == 1 else None
    if not isinstance(described, dict):
        raise CorrKDError(f"{name}: array {EXTRACTORS} is not a JSON object; leave it out")
    return described


def _rows(raw: RawSplit) -> int:
    return len(next(iter(raw.frames.values())))


def _raw_split(
    name: str, arrays: Mapping[str, Any], options: ReadOptions
) -> tuple[RawSplit, list[str]]:
    """Return named arrays as one split, and notes."""
    arrays = with_lists_as_arrays(name, arrays)
    unreadable = sorted(key for key, x in arrays.items() if not isinstance(x, np.ndarray))
    arrays = {key: x for key, x in arrays.items() if key not in unreadable}
    count = _count(name, arrays, options)
    names = modality_names(
        feature_keys(name, arrays, count, RESERVED | _companions(arrays), lenient=True)
    )
    keys = {m: key for key, m in names.items()}
    if not keys:
        raise CorrKDError(
            f"{name}: no modality: no (N, T, d) array of numbers or (N, d) array of real ones "
            f"with N = {count}; "
            "save features as floats, one row per sample"
        )
    _check_lengths_of_arrays(name, arrays, list(names), count)
    columns = _label_columns(arrays, count)
    scores, labels, notes = _usual_labels(name, arrays, count)
    used = {*RESERVED, *names, *(f"{key}{what}" for key in names for what in COMPANIONS)}
    used |= {full.partition(".")[0] for full in columns} | {
        key for key in arrays if key.endswith(NAMES)
    }
    left_out = sorted(set(arrays) - used) + unreadable
    notes += [f"left out: {', '.join(left_out)}"] if left_out else []
    raw = RawSplit(
        frames={m: arrays[keys[m]] for m in in_usual_order(keys)},
        lengths=_companion(arrays, keys, LENGTHS),
        present={
            m: arrays[f"{key}{PRESENT}"] for m, key in keys.items() if f"{key}{PRESENT}" in arrays
        },
        ids=next((strings(arrays[key], f"{name}: {key}") for key in IDS if key in arrays), None),
        scores=scores,
        labels=labels,
        columns=columns,
        groups={g: strings(arrays[g], f"{name}: {g}") for g in GROUPS if g in arrays},
        order=arrays.get("order"),
        frame_ids=_companion(arrays, keys, FRAME_IDS),
        missing_reasons={
            m: arrays[f"{key}{MISSING_REASONS}"]
            for m, key in keys.items()
            if f"{key}{MISSING_REASONS}" in arrays
        },
    )
    return raw, notes


def _companions(arrays: Mapping[str, Array]) -> set[str]:
    """Return the names of arrays that describe another array."""
    return {key for key in arrays if key.endswith((*COMPANIONS, NAMES))}


def _count(name: str, arrays: Mapping[str, Array], options: ReadOptions) -> int:
    """Return the number of samples. Raises CorrKDError if the arrays do not determine it, disagree,
    or lack required targets.
    """
    target = next((key for key in (*SCORES, *LABELS) if key in arrays), None)
    if target is not None and arrays[target].ndim == 0:
        raise CorrKDError(f"{name}: array {target} is a single value; expected one for each sample")
    sized = [
        key
        for key in (*SCORES, *LABELS, *PER_SAMPLE, "lengths")
        if key in arrays and arrays[key].ndim
    ]
    candidates = feature_candidates(arrays, RESERVED | _companions(arrays), lenient=True)
    sizes = {key: len(arrays[key]) for key in candidates}
    if sized:
        count = len(arrays[sized[0]])
    elif not sizes:
        raise CorrKDError(
            f"{name}: no modality: no (N, T, d) array of numbers or (N, d) array of real ones; "
            f"save features as floats"
        )
    elif len(set(sizes.values())) > 1:
        counted = ", ".join(f"{key} {size}" for key, size in sizes.items())
        raise CorrKDError(
            f"{name}: modalities differ in their number of samples ({counted}); add an array "
            f"`ids`, one for each sample"
        )
    else:
        count = next(iter(sizes.values()))
    if not count:
        raise CorrKDError(f"{name}: no samples; give each array one row per sample")
    if target is None and options.targets and not label_keys(arrays, count, RESERVED):
        raise CorrKDError(
            f"{name}: has {', '.join(arrays) or 'no arrays'}; an array `scores` or `labels` is "
            f"required"
        )
    return count


def _check_lengths_of_arrays(
    name: str, arrays: Mapping[str, Array], features: Iterable[str], count: int
) -> None:
    """Raise CorrKDError if an array with one value or row per sample has another number of them."""
    companions = [f"{key}{what}" for key in features for what in COMPANIONS]
    for key in (*SCORES, *LABELS, *PER_SAMPLE, "lengths", "frame_ids", *companions):
        if key in arrays and (arrays[key].ndim == 0 or len(arrays[key]) != count):
            raise CorrKDError(
                f"{name}: array {key} has shape {arrays[key].shape}, expected {count} samples "
                f"first; transpose it, or leave it out"
            )
    for key in PER_SAMPLE:
        if key in arrays and arrays[key].size != count:
            raise CorrKDError(
                f"{name}: array {key} has shape {arrays[key].shape}, but `{key}` has one value "
                f"per sample; rename the modality, as `vision`"
            )


def _label_columns(arrays: Mapping[str, Array], count: int) -> Columns:
    """Return every column that can be the label, by name."""
    keys = label_keys(arrays, count, {*PER_SAMPLE, "lengths", "frame_ids", *_companions(arrays)})
    columns: Columns = {}
    for key in keys:
        names = strings(
            arrays.get(f"{key}{NAMES}", arrays.get("question_names", ())), f"{key}{NAMES}"
        ).tolist()
        columns |= columns_of(key, arrays[key], names)
    return columns


def _usual_labels(
    name: str, arrays: Mapping[str, Array], count: int
) -> tuple[Array | None, Array | None, list[str]]:
    """Return (scores, labels, notes) from the arrays of these names; None if there is none or it
    has several columns.
    """
    notes: list[str] = []
    scores: Array | None = None
    labels: Array | None = None
    key = next((key for key in SCORES if key in arrays and arrays[key].size == count), None)
    if key is not None:
        scores = column(name, arrays[key], key, count)
    key = next((key for key in LABELS if key in arrays), None)
    if key is not None:
        values = arrays[key]
        if values.size > count and values.dtype.kind in "fiu" and not np.isin(values, (0, 1)).all():
            pass  # several columns that are not answers: one of them has to be chosen
        elif values.dtype.kind == "f" and _fractions(values):
            scores = column(name, values, key, count) if scores is None else scores
            notes.append(f"{key} are not whole numbers: read as scores")
        else:
            labels = values
            notes += [ONE_HOT.format(key=key)] if _is_one_hot(values) else []
    return scores, labels, notes


def _fractions(values: Array) -> bool:
    return bool((np.isfinite(values) & (values != np.round(values))).any())


def _splits(
    name: str, column: Any, raw: RawSplit, options: ReadOptions
) -> tuple[StrArray, list[str]]:
    """Return the split of each sample, (N,), and a note if no array gives it."""
    if column is not None:
        return _given_split(name, np.asarray(column)), []
    labelled = raw.scores is not None or raw.labels is not None or bool(raw.columns)
    by, members = members_of(raw.ids, raw.groups)
    too_few = len(set(members.tolist())) < len(SPLITS)
    if not labelled or (too_few and not options.targets):
        return np.full(len(members), WHOLE), []
    return dealt(members), [dealt_note(by)]


def _companion(arrays: Mapping[str, Array], keys: Mapping[str, str], what: str) -> dict[str, Any]:
    """Return lengths or frame ids by modality: from a modality's array, else, for sequences, from
    the common one.
    """
    result: dict[str, Any] = {}
    for m, key in keys.items():
        if f"{key}{what}" in arrays:
            result[m] = arrays[f"{key}{what}"]
        elif what[1:] in arrays and arrays[key].ndim == 3:
            result[m] = arrays[what[1:]]
    return result


def _is_one_hot(labels: Array) -> bool:
    """Return whether (N, K) labels, K > 2, have a single 1 in every row: more often one-hot classes
    than answers.
    """
    return (
        labels.ndim == 2
        and labels.shape[1] > 2
        and labels.dtype.kind in "fiub"
        and bool(np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all())
    )


def _given_split(name: str, values: Array) -> StrArray:
    by_number = dict(zip("012", SPLITS, strict=True))
    words = strings(values).tolist()
    for word in words:
        if word not in SPLIT_NAMES and word not in by_number:
            raise CorrKDError(
                f"{name}: array split holds {word[:40]!r}; allowed are train, valid (dev, val), "
                f"test, or 0, 1, 2"
            )
    return np.array([SPLIT_NAMES.get(word) or by_number[word] for word in words])
