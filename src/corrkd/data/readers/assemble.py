"""From raw arrays of a file to a checked `Split`: what all readers share.

Three questions are settled here, once, and their answers are recorded: on which side a modality is padded, how long each
sample is, and which frames inside the length are naturally missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

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
from corrkd.errors import CorrKDError

Array = npt.NDArray[Any]

GROUPS = ("person", "speaker", "session", "video")
SPLIT_NAMES = {"train": "train", "valid": "valid", "dev": "valid", "val": "valid", "test": "test"}
MOST_CLASSES = 1000  # a label beyond it is a mistake, not a class
ZERO_RULE = "all-zero frames inside the length"
ALIGNED = "(aligned)"  # how `_lengths` ends its words on lengths that another modality lends
VIDEO_CLIP = re.compile(r"(?P<video>.+)(?:\$_\$(?P<clip>.+)|\[(?P<index>\d+)\])")


@dataclass(kw_only=True)
class RawSplit:
    """One split as a file has it, before repair. N samples; whatever a layout lacks is left empty.

    Attributes:
        frames: per modality (N, T, d) padded on either side, or (N, d).
        lengths: per modality (N,), only where the file carries lengths of that modality.
        present: per modality (N, T), only where the file carries a mask of its own.
        ids: (N,) strings, or None.
        scores, labels, groups, order: as in `Split`, unchecked.
        frame_ids: per modality (N, T), only where the file numbers the frames of that modality.
    """

    frames: dict[str, Array]
    lengths: dict[str, Any] = field(default_factory=dict)
    present: dict[str, Any] = field(default_factory=dict)
    ids: Any = None
    scores: Any = None
    labels: Any = None
    groups: dict[str, Any] = field(default_factory=dict)
    order: Any = None
    frame_ids: dict[str, Any] = field(default_factory=dict)


def strings(values: Any) -> StrArray:
    """(N,) text of strings, bytes (UTF-8, else latin-1) or numbers."""
    items = values if isinstance(values, list) else np.asarray(values, object).ravel()
    return np.array([_text(value) for value in items], dtype=np.str_)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.decode("latin-1")
    if isinstance(value, np.ndarray):
        return _text(value.item()) if value.size == 1 else " ".join(strings(value))
    return str(value).encode("utf-8", "replace").decode()


def integers(where: str, values: Any, what: str) -> IntArray:
    """(N,) or (N, Q) integers of anything that holds whole numbers. Raises CorrKDError for NaN, fractions and text."""
    numbers = numeric(where, values, what)
    if not np.isfinite(numbers).all():
        raise CorrKDError(f"{where}: {what} contain NaN or infinite values")
    if (np.abs(numbers) >= 2**53).any():
        raise CorrKDError(f"{where}: {what} are out of range")
    if (numbers != np.round(numbers)).any():
        raise CorrKDError(
            f"{where}: {what} are not whole numbers; real-valued labels belong in an array named `scores`"
        )
    return numbers.astype(np.int64)


def numeric(where: str, values: Any, what: str) -> npt.NDArray[np.float64]:
    """A float64 array of anything that holds numbers. Raises CorrKDError where it does not."""
    try:
        return np.asarray(values, np.float64)
    except (ValueError, TypeError):
        raise CorrKDError(f"{where}: {what} are not numbers") from None


def column(where: str, values: Any, what: str, count: int) -> npt.NDArray[np.float64]:
    """(N,) numbers of (N,), (N, 1) or (N, 1, 1)."""
    numbers = numeric(where, values, what)
    if numbers.size != count:
        raise CorrKDError(f"{where}: {what} have shape {numbers.shape}, expected one for each of {count} samples")
    return numbers.reshape(count)


def is_modality(values: Any, count: int) -> bool:
    """An array of real numbers, (count, T, d) or (count, d), that nothing else claims by its name."""
    return (
        isinstance(values, np.ndarray)
        and values.dtype.kind == "f"
        and values.ndim in (2, 3)
        and len(values) == count
        and values.shape[1:] not in ((1,), (1, 1))
    )


def clean(where: str, array: Any) -> tuple[FloatArray, int, int]:
    """(N, T, d) finite float32 in memory of its own, and how many NaN and infinite values became zero."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise CorrKDError(f"{where}: not an array of numbers")
    if array.ndim not in (2, 3):
        raise CorrKDError(f"{where}: shape {array.shape}, expected (samples, frames, width) or (samples, width)")
    if 0 in array.shape[1:]:
        raise CorrKDError(f"{where}: zero width or no frames (shape {array.shape}); leave the modality out")
    with np.errstate(over="ignore"):
        frames = np.array(array, np.float32, order="C", copy=True)
    nan, inf = int(np.isnan(frames).sum()), int(np.isinf(frames).sum())
    if frames.size and nan == frames.size:
        raise CorrKDError(f"{where}: every value is NaN; leave the modality out")
    if nan or inf:
        np.nan_to_num(frames, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return frames if frames.ndim == 3 else frames[:, None, :], nan, inf


def groups_from_ids(ids: Sequence[str]) -> tuple[StrArray, IntArray] | None:
    """(videos, clip numbers) where every id reads `video$_$clip` or `video[index]`; None where one does not.

    Clips are ordered as numbers ("10" after "9"); clips that are no numbers by their text within their video.
    """
    found = [VIDEO_CLIP.fullmatch(name) for name in ids]
    if not ids or any(match is None for match in found):
        return None
    videos = [match["video"] for match in found if match]
    clips = [match["clip"] or match["index"] for match in found if match]
    if all(re.fullmatch(r"-?\d{1,18}", clip) for clip in clips):
        return np.array(videos), np.array([int(clip) for clip in clips], np.int64)
    place = {pair: rank for rank, pair in enumerate(sorted(set(zip(videos, clips, strict=True))))}
    return np.array(videos), np.array([place[pair] for pair in zip(videos, clips, strict=True)], np.int64)


def unique_ids(names: StrArray) -> tuple[StrArray, int]:
    """The ids with `#2`, `#3` ... after the second, third ... of the same name, and how many were changed."""
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


def _occupied(frames: FloatArray) -> BoolArray:
    """(N, T) frames that hold anything but zeros, taken a few samples at a time."""
    return np.concatenate(
        [frames[start : start + 256].any(2) for start in range(0, len(frames), 256)] or [np.zeros((0, 0), bool)]
    )


def _margins(occupied: BoolArray) -> tuple[IntArray, IntArray]:
    """(N,) empty frames before the first and after the last occupied one; an empty sample has T of both."""
    frames = occupied.shape[1]
    some = occupied.any(1)
    return np.where(some, occupied.argmax(1), frames), np.where(some, occupied[:, ::-1].argmax(1), frames)


def _side(margins: Iterable[tuple[IntArray, IntArray]]) -> str:
    """Where the empty margins lie: "left", "right", "none", or "mixed" with the number of samples of each."""
    left = right = 0
    for before, after in margins:
        left += int(((before > 0) & (after == 0)).sum())
        right += int(((after > 0) & (before == 0)).sum())
    if left and right:
        return f"mixed: left in {left} samples, right in {right}"
    return "left" if left else "right" if right else "none"


def _to_the_left(frames: Array, start: IntArray) -> Array:
    """Rows moved so that frame `start` comes first. What wraps around is padding, and is zeroed by the caller."""
    total = frames.shape[1]
    source = (np.arange(total)[None, :] + start[:, None]) % total
    source = source.reshape(source.shape + (1,) * (frames.ndim - 2))
    return np.take_along_axis(frames, source, 1)


def assemble(
    name: str,
    raw: Mapping[str, RawSplit],
    *,
    layout: str,
    lengths_note: str = "",
    special_tokens: bool = False,
    notes: Sequence[str] = (),
    class_names: tuple[str, ...] = (),
    question_names: tuple[str, ...] = (),
    score_range: tuple[float, float] | None = None,
    targets: bool = True,
) -> MultimodalDataset:
    """A checked dataset of raw splits.

    Args:
        name: of the dataset, in errors and reports.
        raw: splits by "train", "valid", "test", or the single split "all"; their frames are taken out of them.
        layout: the reader's name for people.
        lengths_note: where the lengths in `raw` come from, if not from arrays named for their modality.
        special_tokens: whether the lengths in `raw` count [CLS] and [SEP], under which other modalities have no frames.
        notes: the reader's own notes.
        class_names, question_names, score_range: as in `MultimodalDataset`.
        targets: whether there must be scores or labels.

    Raises:
        CorrKDError: a line that names the split and modality and what is wrong with it.
    """
    notes = list(notes)
    parts = {split: raw[split] for split in (*SPLITS, WHOLE) if split in raw}
    if not parts:
        raise CorrKDError(f"{name}: no split found; expected some of train, valid (dev), test")
    frames, counts = _clean_all(name, parts)
    for m, found in counts.items():
        notes += [f"{m}: {count} {what} values set to 0" for what, count in found.items() if count]
    lengths, starts, sides, how = _lengths(name, parts, frames, list(counts))
    if lengths_note:
        how |= {m: lengths_note for m in how if m in next(iter(parts.values())).lengths}
    masked = {m for part in parts.values() for m in part.present}
    spared = [m for m in how if special_tokens and how[m].endswith(ALIGNED) and m not in masked]
    splits = {}
    frame_ids: dict[str, dict[str, IntArray]] = {split: {} for split in parts}
    for split, part in parts.items():
        where = f"{name}, {split}"
        present: dict[str, BoolArray] = {}
        for m in counts:
            mask = _given_mask(where, part, m, frames[split][m])
            if m in part.frame_ids:
                frame_ids[split][m] = _frame_ids(where, part, m, frames[split][m], lengths[split][m], starts[split][m])
            frames[split][m], lengths[split][m], present[m], found_notes = _in_place(
                frames[split][m], mask, lengths[split][m], starts[split][m]
            )
            notes += [f"{split}, {m}: {note}" for note in found_notes]
        if len(spared) > 1:  # of one alone nobody can say whether its frame is missing
            notes += [f"{split}: {note}" for note in _under_special_tokens(lengths[split], present, spared)]
        splits[split] = _split(where, part, split, frames[split], lengths[split], present, frame_ids[split], notes)
        check_split(where, splits[split], targets=targets)
        _check_targets(where, splits[split], class_names, score_range)
    rules = {m: f"array {m}_present" if m in masked else ZERO_RULE for m in counts}
    if len(spared) > 1:
        rules |= dict.fromkeys(spared, f"{ZERO_RULE}, but under [CLS] and [SEP]")
    return MultimodalDataset(
        name=name,
        splits=splits,
        class_names=class_names,
        question_names=question_names,
        score_range=score_range,
        layout=layout,
        missing_rule=rules,
        notes=tuple(notes),
        extra={"padding": {m: sides[m] for m in counts}, "lengths": {m: how[m] for m in counts}, "nonfinite": counts},
    )


def _clean_all(
    name: str, parts: Mapping[str, RawSplit]
) -> tuple[dict[str, dict[str, FloatArray]], dict[str, dict[str, int]]]:
    """Clean frames by split and modality; how many NaN and infinite values each modality held. Takes the raw frames away."""
    modalities = list(next(iter(parts.values())).frames)
    frames: dict[str, dict[str, FloatArray]] = {split: {} for split in parts}
    counts: dict[str, dict[str, int]] = {m: {"nan": 0, "inf": 0} for m in modalities}
    for split, part in parts.items():
        if list(part.frames) != modalities:
            raise CorrKDError(
                f"{name}, {split}: modalities {', '.join(part.frames)}; another split has {', '.join(modalities)}"
            )
        samples = {m: len(x) for m, x in part.frames.items() if isinstance(x, np.ndarray) and x.ndim}
        if len(set(samples.values())) > 1:
            raise CorrKDError(f"{name}, {split}: modalities differ in their number of samples: {samples}")
        for m in modalities:
            frames[split][m], nan, inf = clean(f"{name}, {split}, modality {m}", part.frames.pop(m))
            counts[m]["nan"] += nan
            counts[m]["inf"] += inf
    return frames, counts


def _given_mask(where: str, part: RawSplit, m: str, frames: FloatArray) -> BoolArray:
    """(N, T) which frames are present: by the file's own mask, else those that hold anything but zeros."""
    if m not in part.present:
        return _occupied(frames)
    mask = np.asarray(part.present[m]).astype(bool)
    mask = mask[:, None] if mask.ndim == 1 else mask
    if mask.shape != frames.shape[:2]:
        raise CorrKDError(f"{where}: array {m}_present has shape {mask.shape}, expected {frames.shape[:2]}")
    return mask


def _frame_ids(where: str, part: RawSplit, m: str, frames: FloatArray, lengths: IntArray, starts: IntArray) -> IntArray:
    """(N, T) numbers of the frames in their recordings, the first frame first; -1 in the padding."""
    ids = integers(where, part.frame_ids[m], f"frame_ids of {m}")
    if ids.shape != frames.shape[:2]:
        raise CorrKDError(f"{where}: frame_ids of {m} have shape {ids.shape}, expected {frames.shape[:2]}")
    ids = _to_the_left(ids, starts) if starts.any() else ids
    inside = np.arange(ids.shape[1])[None, :] < np.maximum(lengths, 1)[:, None]
    return np.where(inside, ids, -1)


def _in_place(
    frames: FloatArray, mask: BoolArray, lengths: IntArray, starts: IntArray
) -> tuple[FloatArray, IntArray, BoolArray, list[str]]:
    """(frames, lengths, present, notes) with each sample's frames first and zeros wherever nothing is present."""
    notes = []
    inside = np.arange(frames.shape[1])[None, :] < lengths[:, None]
    if starts.any():
        frames, mask = _to_the_left(frames, starts), _to_the_left(mask, starts)
    beyond = int((_occupied(frames) & ~inside).sum())
    if beyond:
        notes.append(f"{beyond} frames beyond the lengths were not zero; set to 0")
    if (lengths == 0).any():
        notes.append(f"{int((lengths == 0).sum())} samples of length 0 became one absent frame")
    present = mask & inside
    frames[~present] = 0
    return frames, np.maximum(lengths, 1), present, notes


def _under_special_tokens(
    lengths: Mapping[str, IntArray], present: Mapping[str, BoolArray], modalities: Sequence[str]
) -> list[str]:
    """Marks first and last frames present that are empty in all of `modalities` at once: they never were there. Gives a note.

    A sample in which the modalities have no frame at all keeps them as missing.
    """
    together = np.logical_or.reduce([present[m] for m in modalities])
    rows = np.flatnonzero(together.any(1))
    marked = np.zeros_like(together)
    for place in (np.zeros_like(rows), lengths[modalities[0]][rows] - 1):
        marked[rows, place] = ~together[rows, place]
    for m in modalities:
        present[m][marked] = True
    count = int(marked.any(1).sum())
    names = ", ".join(modalities)
    return [f"{count} samples have no {names} under [CLS] or [SEP]; zero vectors there, not missing"] if count else []


def _check_targets(
    where: str, split: Split, class_names: tuple[str, ...], score_range: tuple[float, float] | None
) -> None:
    """Raises CorrKDError for classes without a name where names are known, and for scores out of their range."""
    if split.labels is not None and split.labels.ndim == 1:
        classes = len(class_names) or MOST_CLASSES
        if split.labels.max() >= classes:
            raise CorrKDError(
                f"{where}: label {split.labels.max()} is out of range; there are at most {classes} classes, from 0"
            )
    if split.scores is not None and score_range is not None:
        low, high = float(split.scores.min()), float(split.scores.max())
        if low < score_range[0] or high > score_range[1]:
            raise CorrKDError(
                f"{where}: scores run from {low:g} to {high:g}, beyond {score_range[0]:g} to {score_range[1]:g}"
            )


def _split(
    where: str,
    part: RawSplit,
    split: str,
    frames: dict[str, FloatArray],
    lengths: dict[str, IntArray],
    present: dict[str, BoolArray],
    frame_ids: dict[str, IntArray],
    notes: list[str],
) -> Split:
    count = len(next(iter(frames.values())))
    ids = np.array([f"{split}-{row}" for row in range(count)]) if part.ids is None else strings(part.ids)
    if len(ids) != count:
        raise CorrKDError(f"{where}: {len(ids)} ids for {count} samples")
    groups = {g: strings(values) for g, values in part.groups.items()}
    order = None if part.order is None else column(where, part.order, "order", count).astype(np.int64)
    parsed = groups_from_ids(ids.tolist())
    if parsed:
        groups.setdefault("video", parsed[0])
        order = parsed[1] if order is None else order
    for group, values in groups.items():
        if len(values) != count:
            raise CorrKDError(f"{where}: group {group} has {len(values)} entries for {count} samples")
    ids, renamed = unique_ids(ids)
    if renamed:
        notes.append(f"{split}: {renamed} ids were used before; numbered with #2, #3, ...")
    labels = None if part.labels is None else integers(where, part.labels, "labels")
    if labels is not None and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels is not None and (labels.ndim not in (1, 2) or len(labels) != count):
        raise CorrKDError(f"{where}: labels have shape {labels.shape}, expected ({count},) or ({count}, questions)")
    if labels is not None and labels.ndim == 2 and not np.isin(labels, (0, 1)).all():
        raise CorrKDError(f"{where}: labels of shape {labels.shape} are yes/no answers and must be 0 or 1")
    scores = None if part.scores is None else column(where, part.scores, "scores", count)
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
    )


def _lengths(
    name: str, parts: Mapping[str, RawSplit], frames: Mapping[str, Mapping[str, FloatArray]], modalities: Sequence[str]
) -> tuple[dict[str, dict[str, IntArray]], dict[str, dict[str, IntArray]], dict[str, str], dict[str, str]]:
    """(lengths, first frames) by split and modality; (padding side, the rule the lengths came from) by modality.

    A modality's own lengths come first; then, where all sequences have the same number of frames (an aligned file), those of the
    others; then the empty margins, jointly over aligned modalities: a frame is padding where all of them are empty. Some public
    files pad a few samples on the other side, so the margins are judged sample by sample.
    """
    own = {m for m in modalities if all(m in part.lengths for part in parts.values())}
    sequences = [m for m in modalities if any(frames[split][m].shape[1] > 1 for split in parts)]
    aligned = len(sequences) > 1 and all(len({frames[split][m].shape[1] for m in sequences}) == 1 for split in parts)
    lenders = [m for m in sequences if m in own] if aligned else []
    lengths: dict[str, dict[str, IntArray]] = {split: {} for split in parts}
    starts: dict[str, dict[str, IntArray]] = {split: {} for split in parts}
    sides: dict[str, str] = {}
    how: dict[str, str] = {}
    occupied = {split: {m: _occupied(frames[split][m]) for m in modalities} for split in parts}

    for m in [m for m in modalities if m in own]:
        for split, part in parts.items():
            lengths[split][m] = _own_lengths(f"{name}, {split}, modality {m}", part.lengths[m], occupied[split][m])
        sides[m] = _side_of_given([(occupied[split][m], lengths[split][m]) for split in parts])
        how[m] = "given in the file"
    for m in [m for m in modalities if m not in own]:
        together = sequences if aligned else [m]
        joint = {split: np.logical_or.reduce([occupied[split][other] for other in together]) for split in parts}
        margins = {split: _margins(joint[split]) for split in parts}
        if m not in sequences:
            lengths |= {split: {**lengths[split], m: np.ones(len(frames[split][m]), np.int64)} for split in parts}
            sides[m], how[m] = "none", "one vector per sample"
        elif lenders:
            sides[m], how[m] = sides[lenders[0]], f"lengths of {' and '.join(lenders)} {ALIGNED}"
            for split in parts:
                before, after = _margins(occupied[split][m])
                content = occupied[split][m].shape[1] - (before if sides[m] == "left" else after)
                lengths[split][m] = np.maximum.reduce([lengths[split][other] for other in lenders] + [content])
        else:
            sides[m], how[m] = _side(margins.values()), f"inferred from all-zero margins of {', '.join(together)}"
            for split, (before, after) in margins.items():
                lengths[split][m] = np.maximum(joint[split].shape[1] - before - after, 0)
                starts[split][m] = np.where(lengths[split][m] > 0, before, 0)
    for split in parts:
        for m in modalities:
            shift = (
                frames[split][m].shape[1] - lengths[split][m]
                if sides[m] == "left"
                else np.zeros_like(lengths[split][m])
            )
            starts[split].setdefault(m, shift)
    return lengths, starts, sides, how


def _own_lengths(where: str, values: Any, occupied: BoolArray) -> IntArray:
    count, longest = occupied.shape
    lengths = integers(where, values, "lengths").reshape(-1)
    if len(lengths) != count:
        raise CorrKDError(f"{where}: {len(lengths)} lengths for {count} samples")
    if count and (lengths.min() < 0 or lengths.max() > longest):
        raise CorrKDError(
            f"{where}: lengths run from {lengths.min()} to {lengths.max()}, but the array holds {longest} frames"
        )
    return lengths


def _side_of_given(pairs: Sequence[tuple[BoolArray, IntArray]]) -> str:
    """Left where given lengths fit content at the end of the array and do not fit content at its start."""
    place = [np.arange(occupied.shape[1])[None, :] for occupied, _ in pairs]
    outside_right = sum(int((o & (p >= n[:, None])).sum()) for p, (o, n) in zip(place, pairs, strict=True))
    outside_left = sum(int((o & (p < o.shape[1] - n[:, None])).sum()) for p, (o, n) in zip(place, pairs, strict=True))
    if outside_left < outside_right:
        return "left"
    return "right" if any((n < o.shape[1]).any() for o, n in pairs) else "none"


def sign_class_names(splits: Mapping[str, RawSplit]) -> tuple[str, ...]:
    """("negative", "neutral", "positive") where every class is the sign of its score plus one; else ()."""
    for part in splits.values():
        if part.scores is None or part.labels is None:
            return ()
        scores, labels = np.asarray(part.scores, np.float64).ravel(), np.asarray(part.labels).ravel()
        if scores.shape != labels.shape or not np.array_equal(np.sign(scores) + 1, labels):
            return ()
    return ("negative", "neutral", "positive")


def likert_range(splits: Mapping[str, RawSplit]) -> tuple[float, float] | None:
    """MOSI's and MOSEI's (-3, 3) where scores of both signs lie in it and not all in [-1, 1]; else None."""
    scores = [np.asarray(part.scores, np.float64).ravel() for part in splits.values() if part.scores is not None]
    every = np.concatenate(scores) if scores else np.zeros(0)
    return (-3.0, 3.0) if every.size and every.min() < 0 and 1 < np.abs(every).max() <= 3 else None
