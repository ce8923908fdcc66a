"""CMU-MultimodalSDK's computational sequences: a folder of `.csd` files, read with h5py alone.

Each file holds one modality: `/<root>/data/<video>/features` (T, d) and `/intervals` (T, 2) in seconds; one holds the labels. Where
the SDK has not aligned them yet, samples are the label segments, and within each the frames of every modality are averaged
over the intervals of the words. After the SDK's align, keys read `video[i]` and the frames are taken as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from corrkd.data.dataset import SPLITS, FloatArray, MultimodalDataset
from corrkd.data.readers.arrays import most_unpacked, refuse_bomb
from corrkd.data.readers.assemble import SPLIT_NAMES, RawSplit, assemble, likert_range
from corrkd.data.readers.mag import pad
from corrkd.errors import CorrKDError

Seconds = npt.NDArray[np.float64]

# Words in a file's root name -> modality, in this order.
NAMES = {
    "language": ("wordvectors", "word_vectors", "glove", "bert", "text", "language", "words"),
    "audio": ("covarep", "coavarep", "opensmile", "audio", "acoustic"),
    "vision": ("facet", "openface", "visual", "vision", "video"),
}
ALIGNED_KEY = re.compile(r"(.+)\[(\d+)\]")

# CMU-MOSI's standard folds are its 93 videos in ASCII order, cut into 52, 10 and 31. The sum is of the ordered ids, a line each.
MOSI_FOLDS = (52, 10, 31)
MOSI_VIDEOS = "f2a31ee2c33bee039f71d7d99b560ce7b5d6ccaa5eeb9db6833e8d02ac918ae7"


@dataclass(frozen=True)
class Sequence:
    """One computational sequence: per key its finite frames (T, d) and intervals (T, 2) in seconds, in order of time."""

    root: str
    nonfinite: int  # values that were NaN or infinite and became 0
    data: dict[str, tuple[FloatArray, Seconds]]


def recognises(path: Path) -> bool:
    """A folder with `.csd` files."""
    return path.is_dir() and any(path.glob("*.csd"))


def read(folder: Path, name: str, folds: Path | None) -> MultimodalDataset:
    """The dataset in a folder of `.csd` files.

    Args:
        folder: holds the labels ("All Labels.csd", "Opinion Segment Labels.csd") and one file per modality.
        name: of the dataset.
        folds: a JSON file {"train": [video, ...], "valid": [...], "test": [...]}; not needed for CMU-MOSI.

    Raises:
        CorrKDError: a file that is no computational sequence; no labels; no folds known for these videos.
    """
    notes: list[str] = []
    files = sorted(folder.glob("*.csd"))
    sequences = {path: read_sequence(path) for path in files}
    labels = [path for path, s in sequences.items() if s and "label" in f"{s.root} {path.stem}".lower()]
    if len(labels) != 1:
        raise CorrKDError(
            f"{folder.name}: {len(labels)} label sequences among {', '.join(p.name for p in files)}; expected one, named '... Labels'"
        )
    label = sequences.pop(labels[0])
    assert label is not None
    notes += [f"left out: {path.name} (text, not numbers)" for path, s in sequences.items() if s is None]
    modalities = _by_modality({path: s for path, s in sequences.items() if s is not None})
    if not modalities:
        raise CorrKDError(f"{folder.name}: labels, but no modality")
    notes += [f"{m}: {s.nonfinite} NaN or infinite values set to 0" for m, s in modalities.items() if s.nonfinite]
    aligned = all(ALIGNED_KEY.fullmatch(key) for key in label.data)
    samples = _aligned(label, modalities) if aligned else _segments(label, modalities)
    fold_of = _folds(folder.name, sorted({key[0] for key in samples}), folds)
    outside = sum(key[0] not in fold_of for key in samples)
    if outside:
        notes.append(f"{outside} segments belong to videos in no fold and are left out")
    raw = {}
    for split in SPLITS:
        chosen = sorted(key for key in samples if fold_of.get(key[0]) == split)
        if chosen:
            part = RawSplit(
                frames={},
                ids=[f"{video}$_${clip}" for video, clip in chosen],
                scores=[samples[key][0] for key in chosen],
            )
            for m in modalities:
                part.frames[m], part.lengths[m] = pad(
                    f"{folder.name}, {split}, modality {m}", [samples[key][1][m] for key in chosen]
                )
            raw[split] = part
    how = "aligned by the SDK" if aligned else "averaged over words" if "language" in modalities else "whole segments"
    return assemble(
        name,
        raw,
        layout=f"CMU-MultimodalSDK .csd folder, {how}",
        lengths_note="number of frames in each segment",
        notes=notes,
        score_range=likert_range(raw),
    )


def read_sequence(path: Path) -> Sequence | None:
    """One `.csd` file, or None where its features are text."""
    try:
        with h5py.File(path, "r") as file:
            roots = [key for key in file if isinstance(file[key], h5py.Group) and "data" in file[key]]
            if len(roots) != 1:
                raise CorrKDError(f"{path.name}: not a computational sequence: expected one group with `data` inside")
            sizes: list[int] = []
            file[roots[0]]["data"].visititems(lambda _, item: sizes.append(getattr(item, "nbytes", 0)))
            refuse_bomb(path.name, sum(sizes), most_unpacked(path))
            data, nonfinite = {}, 0
            for key, entry in file[roots[0]]["data"].items():
                if entry["features"].dtype.kind not in "fiu":
                    return None
                features = np.asarray(entry["features"], np.float32)
                intervals = np.asarray(entry["intervals"], np.float64)
                if features.ndim != 2 or features.shape[1] == 0 or intervals.shape != (len(features), 2):
                    raise CorrKDError(
                        f"{path.name}, {key}: features {features.shape} and intervals {intervals.shape} do not fit"
                    )
                order = np.argsort(intervals[:, 0], kind="stable")
                nonfinite += int((~np.isfinite(features)).sum())
                data[key] = (np.nan_to_num(features[order], nan=0.0, posinf=0.0, neginf=0.0), intervals[order])
            if not data:
                raise CorrKDError(f"{path.name}: a computational sequence without any video")
            return Sequence(roots[0], nonfinite, data)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CorrKDError(f"{path.name}: not a computational sequence, or a damaged one ({str(error)[:120]})") from None


def _by_modality(sequences: dict[Path, Sequence]) -> dict[str, Sequence]:
    """Modality -> sequence, by the words in its name; a second sequence of the same modality keeps its file's name."""
    found: dict[str, Sequence] = {}
    for path, sequence in sequences.items():
        text = f"{sequence.root} {path.stem}".lower()
        modality = next((m for m, words in NAMES.items() if any(word in text for word in words)), path.stem)
        found[modality if modality not in found else path.stem] = sequence
    return {m: found[m] for m in (*[m for m in NAMES if m in found], *[m for m in found if m not in NAMES])}


Samples = dict[tuple[str, int], tuple[float, dict[str, FloatArray]]]


def _aligned(label: Sequence, modalities: dict[str, Sequence]) -> Samples:
    """(video, clip) -> (score, frames by modality) of sequences that the SDK has aligned: keys `video[i]`."""
    samples: Samples = {}
    for key, (scores, _) in label.data.items():
        match = ALIGNED_KEY.fullmatch(key)
        assert match is not None
        frames = {m: s.data[key][0] if key in s.data else _none(s) for m, s in modalities.items()}
        samples[match[1], int(match[2])] = float(scores[0, 0]), frames
    return samples


def _segments(label: Sequence, modalities: dict[str, Sequence]) -> Samples:
    """(video, clip) -> (score, frames by modality): each label segment, aligned to its words where there is a language sequence."""
    samples: Samples = {}
    for video, (scores, spans) in label.data.items():
        for clip, (start, end) in enumerate(spans):
            frames: dict[str, FloatArray] = {}
            words = modalities.get("language")
            if words is not None:
                inside = _within(words, video, start, end)
                frames = {m: average(s, video, inside) for m, s in modalities.items() if s is not words}
                frames["language"] = (
                    words.data[video][0][_rows(words, video, start, end)] if video in words.data else _none(words)
                )
            else:
                frames = {
                    m: s.data[video][0][_rows(s, video, start, end)] if video in s.data else _none(s)
                    for m, s in modalities.items()
                }
            samples[video, clip] = float(scores[clip, 0]), {m: frames[m] for m in modalities}
    return samples


def _none(sequence: Sequence) -> FloatArray:
    return np.zeros((0, next(iter(sequence.data.values()))[0].shape[1]), np.float32)


def _rows(sequence: Sequence, video: str, start: float, end: float) -> npt.NDArray[np.bool_]:
    """Frames whose middle lies in [start, end)."""
    middle = sequence.data[video][1].mean(1)
    return (middle >= start) & (middle < end)


def _within(words: Sequence, video: str, start: float, end: float) -> Seconds:
    """Intervals (W, 2) of the words in a segment."""
    return words.data[video][1][_rows(words, video, start, end)] if video in words.data else np.zeros((0, 2))


def average(sequence: Sequence, video: str, intervals: Seconds) -> FloatArray:
    """(W, d) mean of the frames that overlap each interval; zeros where none does."""
    result = np.zeros((len(intervals), _none(sequence).shape[1]), np.float32)
    if video not in sequence.data:
        return result
    features, spans = sequence.data[video]
    # Both ends in order, so that the frames of an interval are one slice.
    first = np.searchsorted(np.maximum.accumulate(spans[:, 1]), intervals[:, 0], side="right")
    last = np.searchsorted(spans[:, 0], intervals[:, 1], side="left")
    for row, (low, high) in enumerate(zip(first, last, strict=True)):
        if low < high:
            result[row] = features[low:high].mean(0)
    return result


def _folds(name: str, videos: list[str], path: Path | None) -> dict[str, str]:
    """Video -> split, from the JSON file or, for CMU-MOSI's videos, the standard folds."""
    if path is None:
        if hashlib.sha256("\n".join(videos).encode()).hexdigest() != MOSI_VIDEOS:
            raise CorrKDError(
                f'{name}: no standard folds are known for these videos; pass --folds FILE, JSON {{"train": [video, ...], ...}}'
            )
        return dict(zip(videos, np.repeat(SPLITS, MOSI_FOLDS).tolist(), strict=True))
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorrKDError(f"{path}: not a JSON file of folds ({str(error)[:120]})") from None
    if not isinstance(data, dict) or not all(s in SPLIT_NAMES and isinstance(v, list) for s, v in data.items()):
        raise CorrKDError(f'{path}: expected {{"train": [video, ...], "valid": [...], "test": [...]}}')
    return {str(video): SPLIT_NAMES[split] for split, fold in data.items() for video in fold}
