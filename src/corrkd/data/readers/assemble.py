"""Turning the raw arrays of a file into a checked `Split`: what all readers share.

Three questions are answered here and the answers recorded: on which side a modality is padded, how
long each sample is, and which frames within the length are naturally missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from corrkd.data.dataset import (
    SPLITS,
    WHOLE,
    BoolArray,
    FloatArray,
    IntArray,
    MultimodalDataset,
    Split,
    StrArray,
    check_split,
)
from corrkd.data.readers.labels import LabelFacts, settle_labels
from corrkd.data.readers.lengths import ALIGNED, find_lengths, occupied_frames
from corrkd.data.readers.names import MISSING_REASONS, in_usual_order
from corrkd.data.readers.options import ReadOptions
from corrkd.data.readers.raw import Array, RawSplit
from corrkd.data.readers.values import clean, column, integers, strings
from corrkd.errors import CorrKDError

ZERO_RULE = "all-zero frames inside the length"
CLIP = "$_$"  # between video and clip in an id
FEWEST_FOR_LEAK = 10  # samples: a column that equals so many labels does so for a reason


def groups_from_ids(ids: Sequence[str]) -> tuple[StrArray, IntArray] | None:
    """Return (videos, clip numbers) of ids of the form `video$_$clip` or `video[index]`; None if
    most ids have another form. Those have no video ("").

    Clips are ordered as numbers ("10" after "9"); clips that are not numbers, by their text within
    the video.
    """
    pairs = [
        (video, clip) if video and clip else ("", "0") for video, clip in map(_video_and_clip, ids)
    ]
    videos = [video for video, _ in pairs]
    if not pairs or 2 * videos.count("") > len(videos):
        return None
    if all(re.fullmatch(r"-?\d{1,18}", clip) for _, clip in pairs):
        return np.array(videos), np.array([int(clip) for _, clip in pairs], np.int64)
    rank = {pair: index for index, pair in enumerate(sorted(set(pairs)))}
    return np.array(videos), np.array([rank[pair] for pair in pairs], np.int64)


def _video_and_clip(name: str) -> tuple[str, str]:
    """Return the two halves of an id; the second is empty if there is none."""
    video, separator, clip = name.rpartition(CLIP)
    if separator:
        return video, clip
    video, _, index = name.rpartition("[")
    return (video, index[:-1]) if index.endswith("]") and index[:-1].isdecimal() else (name, "")


def unique_ids(names: StrArray) -> tuple[StrArray, int]:
    """Return the ids, with `#2`, `#3` ... appended to repeated ones, and the number of changed
    ids.
    """
    seen: dict[str, int] = {}
    taken = set(names.tolist())
    result = []
    for name in names.tolist():
        seen[name] = seen.get(name, 0) + 1
        fresh = name
        while seen[name] > 1 and fresh in taken:
            fresh = f"{name}#{seen[name]}"
            seen[name] += fresh in taken
        taken.add(fresh)
        result.append(fresh)
    made = np.array(result, dtype=np.str_)
    return made, int((made != names).sum()) if len(names) else 0


def _to_the_left(frames: Array, start: IntArray) -> Array:
    """Return the rows shifted so that frame `start` comes first. What wraps around is padding,
    which the caller zeroes.
    """
    total = frames.shape[1]
    source = (np.arange(total)[None, :] + start[:, None]) % total
    source = source.reshape(source.shape + (1,) * (frames.ndim - 2))
    return np.take_along_axis(frames, source, 1)


def assemble(
    name: str,
    raw: Mapping[str, RawSplit],
    options: ReadOptions,
    *,
    layout: str,
    lengths_note: str = "",
    special_tokens: bool = False,
    notes: Sequence[str] = (),
    class_names: tuple[str, ...] = (),
    question_names: tuple[str, ...] = (),
    score_range: tuple[float, float] | None = None,
    tokens: tuple[str, ...] = (),
    extractors: Mapping[str, Any] | None = None,
) -> MultimodalDataset:
    """Return the checked dataset of raw splits.

    Args:
        name: name of the dataset, in errors and reports.
        raw: splits by "train", "valid", "test", or the single split "all"; their frames are removed
            from them.
        options: which label is chosen, and whether one is required.
        layout: the reader's name for the layout, for display.
        lengths_note: source of the lengths in `raw`, if not arrays named for their modality.
        special_tokens: whether the lengths in `raw` include [CLS] and [SEP], at which other
            modalities have no frames.
        notes: notes of the reader.
        class_names, question_names, score_range: as in `MultimodalDataset`, for the usual labels of
            the layout.
        tokens, extractors: as in `MultimodalDataset`.

    Raises:
        CorrKDError: if a split is invalid; the message names the split and modality.
    """
    notes = list(notes)
    parts = {split: raw[split] for split in (*SPLITS, WHOLE) if split in raw}
    if not parts:
        raise CorrKDError(f"{name}: no split found; expected some of train, valid (dev), test")
    usual = LabelFacts(
        class_names=class_names, question_names=question_names, score_range=score_range
    )
    facts = settle_labels(name, parts, options, usual)
    notes += [*facts.notes, *_fill_absent(name, parts)]
    frames, counts = _clean_all(name, parts)
    for m, by_kind in counts.items():
        notes += [
            f"{m}: {count} {what} values set to 0" for what, count in by_kind.items() if count
        ]
    lengths, starts, sides, how = find_lengths(name, parts, frames, list(counts))
    if lengths_note:
        how |= {m: lengths_note for m in how if m in next(iter(parts.values())).lengths}
    masked = {m for raw_split in parts.values() for m in raw_split.present}
    spared = [m for m in how if special_tokens and how[m].endswith(ALIGNED) and m not in masked]
    splits = {}
    frame_ids: dict[str, dict[str, IntArray]] = {split: {} for split in parts}
    for split, raw_split in parts.items():
        where = f"{name}, {split}"
        present: dict[str, BoolArray] = {}
        for m in counts:
            mask = _given_mask(where, raw_split, m, frames[split][m])
            if m in raw_split.frame_ids:
                frame_ids[split][m] = _frame_ids(
                    where, raw_split, m, frames[split][m], lengths[split][m], starts[split][m]
                )
            frames[split][m], lengths[split][m], present[m], length_notes = _in_place(
                frames[split][m], mask, lengths[split][m], starts[split][m]
            )
            notes += [f"{split}, {m}: {note}" for note in length_notes]
        if len(spared) > 1:  # with only one, it cannot be decided whether its frame is missing
            notes += [
                f"{split}: {note}"
                for note in _under_special_tokens(lengths[split], present, spared)
            ]
        splits[split] = _split(
            where, raw_split, split, frames[split], lengths[split], present, frame_ids[split], notes
        )
        check_split(
            where,
            splits[split],
            targets=options.targets,
            trains=split == SPLITS[0] and options.targets,
        )
        _check_targets(where, splits[split], facts.class_names, facts.score_range)
    _refuse_leak(name, splits)
    rules = {m: f"array {m}_present" if m in masked else ZERO_RULE for m in counts}
    if len(spared) > 1:
        rules |= dict.fromkeys(spared, f"{ZERO_RULE}, but under [CLS] and [SEP]")
    return MultimodalDataset(
        name=name,
        splits=splits,
        class_names=facts.class_names,
        question_names=facts.question_names,
        score_range=facts.score_range,
        layout=layout,
        missing_rule=rules,
        notes=tuple(notes),
        extra={
            "padding": {m: sides[m] for m in counts},
            "lengths": {m: how[m] for m in counts},
            "nonfinite": counts,
        },
        tokens=tokens,
        extractors=extractors or {},
    )


def _fill_absent(name: str, parts: Mapping[str, RawSplit]) -> list[str]:
    """Add missing modalities to each split, as missing frames. Returns notes.

    Raises:
        CorrKDError: if the training split lacks one.
    """
    modalities = in_usual_order(
        dict.fromkeys(m for raw_split in parts.values() for m in raw_split.frames)
    )
    notes = []
    for split, raw_split in parts.items():
        if not raw_split.frames:
            raise CorrKDError(
                f"{name}, {split}: no modality found; add an array (N, T, d) or (N, d) of features"
            )
        for m in [m for m in modalities if m not in raw_split.frames]:
            if split == SPLITS[0]:
                raise CorrKDError(
                    f"{name}, {split}: has no {m}, but another split has; add it, or leave it out "
                    f"everywhere"
                )
            donor = next(other for other in parts.values() if m in other.frames)
            raw_split.frames[m] = _absent_frames(raw_split, donor, m)
            if m in donor.lengths:
                raw_split.lengths[m] = np.zeros(len(raw_split.frames[m]), np.int64)
            notes.append(f"{split}: has no {m}; missing in all of its samples")
        raw_split.frames = {m: raw_split.frames[m] for m in modalities}
    return notes


def _absent_frames(raw_split: RawSplit, donor: RawSplit, m: str) -> FloatArray:
    """Return zeros (N, T, d) for a modality that a split lacks, with as many frames as a modality
    that is equally long in the donor (an aligned file).
    """
    count = len(next(iter(raw_split.frames.values())))
    shape = np.shape(donor.frames[m])
    alike = [
        n
        for n in raw_split.frames
        if shape[1:2] == np.shape(donor.frames[n])[1:2] and len(shape) == 3
    ]
    frames = np.shape(raw_split.frames[alike[0]])[1] if alike else 1
    return np.zeros((count, frames, shape[-1]), np.float32)


def _clean_all(
    name: str, parts: Mapping[str, RawSplit]
) -> tuple[dict[str, dict[str, FloatArray]], dict[str, dict[str, int]]]:
    """Return clean frames by split and modality, and the number of NaN and infinite values of each
    modality. Removes the raw frames.
    """
    modalities = list(next(iter(parts.values())).frames)
    frames: dict[str, dict[str, FloatArray]] = {split: {} for split in parts}
    counts: dict[str, dict[str, int]] = {m: {"nan": 0, "inf": 0} for m in modalities}
    for split, raw_split in parts.items():
        samples = {
            m: len(x) for m, x in raw_split.frames.items() if isinstance(x, np.ndarray) and x.ndim
        }
        if len(set(samples.values())) > 1:
            raise CorrKDError(
                f"{name}, {split}: modalities differ in their number of samples: {samples}; give "
                f"each one row per sample"
            )
        for m in modalities:
            frames[split][m], nan, inf = clean(
                f"{name}, {split}, modality {m}", raw_split.frames.pop(m)
            )
            counts[m]["nan"] += nan
            counts[m]["inf"] += inf
    return frames, counts


def _given_mask(where: str, raw_split: RawSplit, m: str, frames: FloatArray) -> BoolArray:
    """Return which frames are present, (N, T): by the file's mask, else those that are not all
    zero.
    """
    if m not in raw_split.present:
        return occupied_frames(frames)
    mask = np.asarray(raw_split.present[m])
    if mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        raise CorrKDError(
            f"{where}: array {m}_present has values that are not true or false (1 or 0); write "
            f"1 for frames that are present"
        )
    mask = mask.astype(bool)
    if mask.shape == frames.shape[:1]:
        return np.repeat(mask[:, None], frames.shape[1], 1)
    if mask.shape != frames.shape[:2]:
        raise CorrKDError(
            f"{where}: array {m}_present has shape {mask.shape}, expected {frames.shape[:1]} or "
            f"{frames.shape[:2]}"
        )
    return mask


def _frame_ids(
    where: str, raw_split: RawSplit, m: str, frames: FloatArray, lengths: IntArray, starts: IntArray
) -> IntArray:
    """Return the index of each frame in its recording, (N, T), the first frame first; -1 in the
    padding.
    """
    ids = integers(where, raw_split.frame_ids[m], f"frame_ids of {m}")
    if ids.shape != frames.shape[:2]:
        raise CorrKDError(
            f"{where}: frame_ids of {m} have shape {ids.shape}, expected {frames.shape[:2]}; "
            f"number every frame"
        )
    ids = _to_the_left(ids, starts) if starts.any() else ids
    inside = np.arange(ids.shape[1])[None, :] < np.maximum(lengths, 1)[:, None]
    return np.where(inside, ids, -1)


def _in_place(
    frames: FloatArray, mask: BoolArray, lengths: IntArray, starts: IntArray
) -> tuple[FloatArray, IntArray, BoolArray, list[str]]:
    """Return (frames, lengths, present, notes), with each sample's frames first and zeros where
    nothing is present.
    """
    notes = []
    inside = np.arange(frames.shape[1])[None, :] < lengths[:, None]
    if starts.any():
        frames, mask = _to_the_left(frames, starts), _to_the_left(mask, starts)
    beyond = int((occupied_frames(frames) & ~inside).sum())
    if beyond:
        notes.append(f"{beyond} frames beyond the lengths were not zero; set to 0")
    if (lengths == 0).any():
        notes.append(f"{int((lengths == 0).sum())} samples of length 0 became one missing frame")
    present = mask & inside
    frames[~present] = 0
    return frames, np.maximum(lengths, 1), present, notes


def _under_special_tokens(
    lengths: Mapping[str, IntArray], present: Mapping[str, BoolArray], modalities: Sequence[str]
) -> list[str]:
    """Mark first and last frames as present if they are empty in all of `modalities` at once: they
    never existed. Returns a note.

    If a sample has no frames at all in the modalities, they stay missing.
    """
    together = np.logical_or.reduce([present[m] for m in modalities])
    rows = np.flatnonzero(together.any(1))
    marked = np.zeros_like(together)
    for index in (np.zeros_like(rows), lengths[modalities[0]][rows] - 1):
        marked[rows, index] = ~together[rows, index]
    for m in modalities:
        present[m][marked] = True
    count = int(marked.any(1).sum())
    names = ", ".join(modalities)
    return (
        [
            f"{count} samples have no {names} under [CLS] or [SEP]; zero vectors there do not "
            f"count as missing"
        ]
        if count
        else []
    )


def _check_targets(
    where: str, split: Split, class_names: tuple[str, ...], score_range: tuple[float, float] | None
) -> None:
    """Raise CorrKDError for classes outside the named ones and for scores out of their range."""
    if (
        class_names
        and split.labels is not None
        and split.labels.ndim == 1
        and split.labels.max() >= len(class_names)
    ):
        raise CorrKDError(
            f"{where}: label {split.labels.max()} is out of range; there are {len(class_names)} "
            f"classes, from 0"
        )
    if split.scores is not None and score_range is not None:
        low, high = float(split.scores.min()), float(split.scores.max())
        if low < score_range[0] or high > score_range[1]:
            raise CorrKDError(
                f"{where}: scores run from {low:g} to {high:g}, beyond {score_range[0]:g} to "
                f"{score_range[1]:g}"
            )


def _refuse_leak(name: str, splits: Mapping[str, Split]) -> None:
    """Raise CorrKDError if a column of a modality with one vector per sample is the label itself,
    in all splits.
    """
    parts = list(splits.values())
    for m, first in parts[0].frames.items():
        for labels in (
            [raw_split.scores for raw_split in parts],
            [raw_split.labels for raw_split in parts],
        ):
            if any(x is None or x.ndim != 1 for x in labels) or any(
                raw_split.frames[m].shape[1] != 1 for raw_split in parts
            ):
                continue
            equal = np.ones(first.shape[2], bool)
            for raw_split, label in zip(parts, labels, strict=True):
                assert label is not None
                equal &= (raw_split.frames[m][:, 0] == label.astype(np.float32)[:, None]).all(0)
            distinct = np.unique(np.concatenate([x for x in labels if x is not None]))
            if equal.any() and len(distinct) > 1 and sum(map(len, parts)) >= FEWEST_FOR_LEAK:
                raise CorrKDError(
                    f"{name}, modality {m}: column {equal.argmax()} is the label itself; leave "
                    f"it out"
                )


def _split(
    where: str,
    raw_split: RawSplit,
    split: str,
    frames: dict[str, FloatArray],
    lengths: dict[str, IntArray],
    present: dict[str, BoolArray],
    frame_ids: dict[str, IntArray],
    notes: list[str],
) -> Split:
    count = len(next(iter(frames.values())))
    ids = (
        np.array([f"{split}-{row}" for row in range(count)])
        if raw_split.ids is None
        else strings(raw_split.ids, f"{where}: ids")
    )
    if len(ids) != count:
        raise CorrKDError(
            f"{where}: {len(ids)} ids for {count} samples; give one per sample, or none"
        )
    groups = {g: strings(values, f"{where}: {g}") for g, values in raw_split.groups.items()}
    order = (
        None
        if raw_split.order is None
        else column(where, raw_split.order, "order", count).astype(np.int64)
    )
    parsed = groups_from_ids(ids.tolist())
    if parsed:
        groups.setdefault("video", parsed[0])
        order = parsed[1] if order is None else order
    for group, values in groups.items():
        if len(values) != count:
            raise CorrKDError(
                f"{where}: group {group} has {len(values)} entries for {count} samples; give one "
                f"per sample, or leave it out"
            )
    ids, renamed = unique_ids(ids)
    if renamed:
        notes.append(f"{split}: {renamed} repeated ids; numbered with #2, #3, ...")
    labels = None if raw_split.labels is None else integers(where, raw_split.labels, "labels")
    if labels is not None and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels is not None and (labels.ndim not in (1, 2) or len(labels) != count):
        raise CorrKDError(
            f"{where}: labels have shape {labels.shape}, expected ({count},) or ({count}, "
            f"questions); reshape them"
        )
    if labels is not None and labels.ndim == 2 and not np.isin(labels, (0, 1)).all():
        raise CorrKDError(
            f"{where}: labels of shape {labels.shape} are yes/no answers and must be 0 or 1; "
            f"choose one column with --label"
        )
    scores = None if raw_split.scores is None else column(where, raw_split.scores, "scores", count)
    return Split(
        frames=frames,
        lengths=lengths,
        present=present,
        ids=ids,
        scores=scores,
        labels=labels,
        groups=groups,
        order=order,
        frame_ids=frame_ids,
        missing_reasons={
            m: strings(x, f"{where}: {m}{MISSING_REASONS}")
            for m, x in raw_split.missing_reasons.items()
        },
    )


def sign_class_names(splits: Mapping[str, RawSplit]) -> tuple[str, ...]:
    """Return ("negative", "neutral", "positive") if every class is the sign of its score plus one;
    else ().
    """
    for raw_split in splits.values():
        if raw_split.scores is None or raw_split.labels is None:
            return ()
        scores, labels = (
            np.asarray(raw_split.scores, np.float64).ravel(),
            np.asarray(raw_split.labels).ravel(),
        )
        if scores.shape != labels.shape or not np.array_equal(np.sign(scores) + 1, labels):
            return ()
    return ("negative", "neutral", "positive")


def likert_range(splits: Mapping[str, RawSplit]) -> tuple[float, float] | None:
    """Return (-3, 3), the range of MOSI and MOSEI, if scores of both signs lie in it and not all in
    [-1, 1]; else None.
    """
    scores = [
        np.asarray(raw_split.scores, np.float64).ravel()
        for raw_split in splits.values()
        if raw_split.scores is not None
    ]
    every = np.concatenate(scores) if scores else np.zeros(0)
    return (-3.0, 3.0) if every.size and every.min() < 0 and 1 < np.abs(every).max() <= 3 else None
