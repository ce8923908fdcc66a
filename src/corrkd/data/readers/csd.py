"""CMU-MultimodalSDK's computational sequences: a folder of `.csd` files, read with h5py alone.

Each file contains one modality: `/<root>/data/<video>/features` (T, d) and `/intervals` (T, 2) in
seconds; one contains the labels. If the SDK has not aligned them, samples are the label segments,
and within each the frames of every modality are averaged over the intervals of the words. After the
SDK's align, keys are `video[i]` and the frames are used as they are.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from corrkd.data.dataset import SPLITS, WHOLE, FloatArray, MultimodalDataset
from corrkd.data.readers import hdf5
from corrkd.data.readers.assemble import assemble, likert_range
from corrkd.data.readers.bounds import Budget
from corrkd.data.readers.glove import look_up
from corrkd.data.readers.labels import SENTIMENT, columns_of, find_column, mosei_names, parse_choice
from corrkd.data.readers.names import LABEL_STEMS, SPLIT_NAMES, feature_set_modality, in_usual_order
from corrkd.data.readers.options import ReadOptions
from corrkd.data.readers.pad import pad
from corrkd.data.readers.raw import Array, Columns, RawSplit
from corrkd.data.readers.values import ranks_within
from corrkd.errors import CorrKDError
from corrkd.memory import check_memory
from corrkd.parsing import parse_json, read_json

Seconds = npt.NDArray[np.float64]
Key = tuple[str, int]  # a video, and a clip in it

ALIGNED_KEY = re.compile(r"([^\[\]]+)\[(\d{1,9})\]")
DIMENSIONS = "dimension names"  # in the metadata
PAUSE = "sp"  # mark of a short pause among the words, from the aligner

# CMU-MOSI's standard folds are its 93 videos in ASCII order, cut into 52, 10 and 31. The digest is
# of the ordered ids, one per line.
MOSI_FOLDS = (52, 10, 31)
MOSI_VIDEOS = "f2a31ee2c33bee039f71d7d99b560ce7b5d6ccaa5eeb9db6833e8d02ac918ae7"


@dataclass(frozen=True)
class Sequence:
    """One computational sequence: for each key, the finite frames (T, d) and their intervals (T, 2)
    in seconds, in the order of the file.

    Attributes:
        root: name of the sequence.
        nonfinite: number of NaN and infinite values, which became 0.
        data: by key; frames of words are strings.
        names: of the columns, if the metadata has them.
    """

    root: str
    nonfinite: int
    data: dict[str, tuple[Array, Seconds]]
    names: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether its frames are words."""
        return next(iter(self.data.values()))[0].dtype.kind == "O"

    def in_order_of_time(self) -> Sequence:
        """Return the sequence with the frames of each key sorted by start time."""
        data = {}
        for key, (frames, spans) in self.data.items():
            order = np.argsort(spans[:, 0], kind="stable")
            data[key] = frames[order], spans[order]
        return Sequence(self.root, self.nonfinite, data, self.names)


@dataclass(frozen=True)
class Sample:
    """A segment: its frames by modality, its row in the label sequence, and its start in
    seconds.
    """

    frames: dict[str, Array]
    labels: FloatArray
    start: float


def recognises(path: Path) -> bool:
    """Return whether a path is a folder with `.csd` files."""
    return path.is_dir() and any(path.glob("*.csd"))


def read(folder: Path, name: str, options: ReadOptions) -> MultimodalDataset:
    """Return the dataset in a folder of `.csd` files.

    Args:
        folder: contains the labels ("All Labels.csd", "Opinion Segment Labels.csd") and one file
            per modality. Without labels, if targets are not required, samples are the keys of an
            aligned folder, or whole videos.
        name: name of the dataset.
        options: `folds`, a JSON file {"train": [video, ...], "valid": [...], "test": [...]}, not
            needed for CMU-MOSI; `glove` for words; `label` for one of several label columns.

    Raises:
        CorrKDError: if a file is not a computational sequence, or there are no labels, or no folds
            for these videos.
    """
    files = sorted(folder.glob("*.csd"))
    sequences = {path: read_sequence(path) for path in files}
    labels = {path: s for path, s in sequences.items() if _holds_labels(f"{s.root} {path.stem}")}
    label, notes = _label_sequence(folder.name, labels, options)
    features = {path: s.in_order_of_time() for path, s in sequences.items() if path not in labels}
    modalities, more = _by_modality(folder.name, features, options)
    notes += more
    if not modalities:
        raise CorrKDError(
            f"{folder.name}: {len(labels)} label sequences, but no modality; put the .csd files "
            f"of features in the folder"
        )
    notes += [
        f"{m}: {s.nonfinite} NaN or infinite values set to 0"
        for m, s in modalities.items()
        if s.nonfinite
    ]
    samples, how = _samples(label, modalities)
    fold_of = _fold_of(folder.name, sorted({video for video, _ in samples}), options)
    outside = sum(video not in fold_of for video, _ in samples)
    if outside:
        notes.append(f"{outside} segments belong to videos in no fold and are left out")
    raw = {}
    for split in (*SPLITS, WHOLE):
        keys = sorted(key for key in samples if fold_of.get(key[0]) == split)
        if keys:
            raw[split] = _raw_split(
                f"{folder.name}, {split}", {key: samples[key] for key in keys}, modalities, label
            )
    return assemble(
        name,
        raw,
        options,
        layout=f"CMU-MultimodalSDK .csd folder, {how}",
        lengths_note="number of frames in each segment",
        notes=notes,
        score_range=likert_range(raw),
    )


def _holds_labels(name: str) -> bool:
    text = name.lower()
    return any(stem in text for stem in LABEL_STEMS)


def read_sequence(path: Path) -> Sequence:
    """Return the sequence in a `.csd` file. Raises CorrKDError if it has none, or declares more
    than it contains.
    """
    if not path.is_file():
        raise CorrKDError(f"{path.name}: not a regular file")
    budget = Budget.of(path)
    with hdf5.open_file(path) as file:
        try:
            groups = [
                (key, item)
                for key, item in hdf5.members(path.name, file)
                if isinstance(item, h5py.Group)
            ]
            roots = [(key, dict(hdf5.members(path.name, item))) for key, item in groups]
            roots = [
                (key, inside) for key, inside in roots if isinstance(inside.get("data"), h5py.Group)
            ]
            if len(roots) != 1:
                raise CorrKDError(
                    f"{path.name}: not a computational sequence: expected one group with `data` "
                    f"inside"
                )
            root, inside = roots[0]
            data, nonfinite = {}, 0
            for key, entry in hdf5.members(path.name, inside["data"]):
                frames, spans, bad = _entry(f"{path.name}, {key}", entry, budget)
                data[key] = frames, spans
                nonfinite += bad
            names = _dimension_names(path.name, inside.get("metadata"), budget)
        except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CorrKDError(
                f"{path.name}: not a computational sequence, or a damaged one ({str(error)[:120]})"
            ) from None
    if not data:
        raise CorrKDError(
            f"{path.name}: a computational sequence without videos; download it again"
        )
    _check_widths(path.name, data)
    return Sequence(root, nonfinite, data, names)


def _entry(where: str, entry: h5py.Group, budget: Budget) -> tuple[Array, Seconds, int]:
    """Return a video's frames (T, d) or words (T, 1), intervals (T, 2), and number of NaN and
    infinite values.
    """
    items = dict(hdf5.members(where, entry)) if isinstance(entry, h5py.Group) else {}
    if not all(isinstance(items.get(key), h5py.Dataset) for key in ("features", "intervals")):
        raise CorrKDError(
            f"{where}: expected the arrays features and intervals; download the file again"
        )
    frames, spans = (hdf5.array(where, items[key], budget) for key in ("features", "intervals"))
    if (
        frames.ndim != 2
        or frames.shape[1] == 0
        or spans.shape != (len(frames), 2)
        or spans.dtype.kind not in "fiu"
    ):
        raise CorrKDError(
            f"{where}: features {frames.shape} and intervals {spans.shape} do not fit"
        )
    if not np.isfinite(spans).all():
        raise CorrKDError(f"{where}: intervals contain NaN or infinite values")
    if frames.dtype.kind == "O":
        return frames, np.asarray(spans, np.float64), 0
    frames = np.asarray(frames, np.float32)
    bad = int((~np.isfinite(frames)).sum())
    return (
        np.nan_to_num(frames, nan=0.0, posinf=0.0, neginf=0.0),
        np.asarray(spans, np.float64),
        bad,
    )


def _check_widths(name: str, data: dict[str, tuple[Array, Seconds]]) -> None:
    """Raise CorrKDError if videos have frames of different widths, or words in one and numbers in
    another.
    """
    first, (frames, _) = next(iter(data.items()))
    for video, (other, _) in data.items():
        if other.shape[1] != frames.shape[1] or other.dtype.kind != frames.dtype.kind:
            kinds = [
                f"{'words' if x.dtype.kind == 'O' else 'numbers'} of width {x.shape[1]}"
                for x in (frames, other)
            ]
            raise CorrKDError(
                f"{name}: video {first} has {kinds[0]}, video {video} has {kinds[1]}; make them "
                f"the same"
            )


def _dimension_names(name: str, metadata: Any, budget: Budget) -> tuple[str, ...]:
    """Return the names of the columns in a sequence's metadata, a JSON list; () if there are
    none.
    """
    items = dict(hdf5.members(name, metadata)) if isinstance(metadata, h5py.Group) else {}
    if not isinstance(items.get(DIMENSIONS), h5py.Dataset):
        return ()
    text = hdf5.array(name, items[DIMENSIONS], budget).ravel().tolist()
    try:
        names = parse_json(text[0], name) if text and isinstance(text[0], str | bytes) else ()
    except CorrKDError:  # not written by the SDK, so it may be anything
        return ()
    return (
        tuple(names) if isinstance(names, list) and all(isinstance(x, str) for x in names) else ()
    )


def _label_sequence(
    name: str, labels: dict[Path, Sequence], options: ReadOptions
) -> tuple[Sequence | None, list[str]]:
    """Return the sequence with the label, and a note if there are others. Raises CorrKDError if
    there is none, or the choice is ambiguous.
    """
    if not labels:
        if options.targets:
            raise CorrKDError(f"{name}: no label sequence; expected a file named '... Labels'")
        return None, []
    if len(labels) == 1:
        return next(iter(labels.values())), []
    if options.label is not None:
        wanted = parse_choice(options.label).columns[0][0]
        every = {
            full: path
            for path, s in labels.items()
            for full in _columns(s, next(iter(s.data.values()))[0])
        }
        path = every[find_column(name, every, wanted)[0]]
    else:
        usual = [
            path
            for path, s in labels.items()
            if any(w in f"{s.root} {path.stem}".lower() for w in (SENTIMENT, "opinion"))
        ]
        if len(usual) != 1:
            files = ", ".join(path.name for path in labels)
            raise CorrKDError(
                f"{name}: several label sequences ({files}); choose a column with --label, or "
                f"move the others away"
            )
        path = usual[0]
    others = ", ".join(other.name for other in labels if other != path)
    return labels[path], [f"labels are read from {path.name}, not from {others}"]


def _columns(sequence: Sequence, table: Array) -> Columns:
    """Return the columns of a label table, named as in the sequence's metadata or in CMU-MOSEI."""
    names = sequence.names if len(sequence.names) == table.shape[1] else ()
    return columns_of(sequence.root.replace(".", "_"), table, names or _mosei_names(sequence))


def _mosei_names(sequence: Sequence) -> tuple[str, ...]:
    return mosei_names(np.concatenate([table for table, _ in sequence.data.values()]))


def _by_modality(
    name: str, sequences: dict[Path, Sequence], options: ReadOptions
) -> tuple[dict[str, Sequence], list[str]]:
    """Return the sequence of each modality, by the words in its name, and notes; a second sequence
    of a modality keeps the name of its file.
    """
    notes = []
    modalities: dict[str, Sequence] = {}
    words = {path: s for path, s in sequences.items() if s.is_text}
    for path, sequence in sequences.items():
        if path not in words:
            modality = feature_set_modality(f"{sequence.root} {path.stem}") or path.stem
            modalities[modality if modality not in modalities else path.stem] = sequence
    if words and "language" not in modalities and options.glove is not None:
        path = _word_file(name, words)
        sequence, pauses = _without_pauses(words.pop(path))
        if pauses:
            notes.append(f"language: {pauses} pauses ({PAUSE}) among the words are left out")
        modalities["language"], unknown = _word_vectors(name, sequence, options)
        if unknown:
            notes.append(
                f"language: {unknown} words have no vector in {options.glove.name}; all-zero frames"
            )
    without = "" if "language" in modalities else "; pass --glove FILE to use them as language"
    notes += [f"left out: {path.name} (words, not numbers{without})" for path in words]
    return {m: modalities[m] for m in in_usual_order(modalities)}, notes


def _word_file(name: str, texts: dict[Path, Sequence]) -> Path:
    """Return the file of words among those of text: MOSEI's folder has phones too. Raises
    CorrKDError if the choice is ambiguous.
    """
    named = [path for path, s in texts.items() if "word" in f"{s.root} {path.stem}".lower()] or [
        path for path, s in texts.items() if "phone" not in f"{s.root} {path.stem}".lower()
    ]
    if len(named) != 1:
        raise CorrKDError(
            f"{name}: {', '.join(path.name for path in named or texts)} contain text; keep only "
            f"the one with the words"
        )
    return named[0]


def _without_pauses(words: Sequence) -> tuple[Sequence, int]:
    """Return the sequence without the marks of pauses, and the number of marks."""
    keep = {key: frames[:, 0] != PAUSE for key, (frames, _) in words.data.items()}
    data = {
        key: (frames[keep[key]], spans[keep[key]]) for key, (frames, spans) in words.data.items()
    }
    return Sequence(words.root, 0, data), sum(int((~kept).sum()) for kept in keep.values())


def _word_vectors(name: str, sequence: Sequence, options: ReadOptions) -> tuple[Sequence, int]:
    """Return the sequence with its words as vectors, and the number of words without one."""
    text = [[str(word) for word in frames[:, 0]] for frames, _ in sequence.data.values()]
    vectors, unknown = look_up(name, text, options.glove)
    data = {
        key: (frames, spans)
        for (key, (_, spans)), frames in zip(sequence.data.items(), vectors, strict=True)
    }
    return Sequence(sequence.root, 0, data), unknown


def _samples(
    label: Sequence | None, modalities: dict[str, Sequence]
) -> tuple[dict[Key, Sample], str]:
    """Return the samples by video and clip, and a text on how their frames were obtained."""
    keys = (
        label.data if label is not None else {key: 0 for s in modalities.values() for key in s.data}
    )
    if all(ALIGNED_KEY.fullmatch(key) for key in keys):
        return _aligned(label, list(keys), modalities), "aligned by the SDK"
    how = "averaged over words" if "language" in modalities else "whole segments"
    if label is None:
        spans = {key: _span(key, modalities) for key in keys}
        entire = Sequence(
            "", 0, {key: (np.zeros((1, 0), np.float32), span) for key, span in spans.items()}
        )
        return _segments(entire, modalities), f"{how}, each video a sample"
    return _segments(label, modalities), how


def _span(video: str, modalities: dict[str, Sequence]) -> Seconds:
    """Return (1, 2): the first start, and a time beyond the last end, of a video's frames."""
    spans = [
        s.data[video][1] for s in modalities.values() if video in s.data and len(s.data[video][1])
    ]
    if not spans:
        return np.zeros((1, 2))
    return np.array(
        [
            [
                min(x[:, 0].min() for x in spans),
                np.nextafter(max(x[:, 1].max() for x in spans), np.inf),
            ]
        ]
    )


def _aligned(
    label: Sequence | None, keys: list[str], modalities: dict[str, Sequence]
) -> dict[Key, Sample]:
    """Return the samples of sequences that the SDK has aligned: keys `video[i]`."""
    samples = {}
    for key in keys:
        match = ALIGNED_KEY.fullmatch(key)
        assert match is not None
        frames = {m: s.data[key][0] if key in s.data else _none(s) for m, s in modalities.items()}
        rows, spans = (
            (np.zeros((1, 0), np.float32), np.zeros((1, 2))) if label is None else label.data[key]
        )
        if not len(rows):
            raise CorrKDError(f"{key}: a segment without a label; leave it out")
        samples[match[1], int(match[2])] = Sample(frames, rows[0], float(spans[0, 0]))
    return samples


def _segments(label: Sequence, modalities: dict[str, Sequence]) -> dict[Key, Sample]:
    """Return each label segment, aligned to its words if there is a language sequence. Clips are
    numbered in the order of the file.
    """
    samples = {}
    words = modalities.get("language")
    for video, (rows, spans) in label.data.items():
        inside = {
            m: Middles.of(s, video) for m, s in modalities.items() if words is None or s is words
        }
        counts = {m: middles.count(spans) for m, middles in inside.items()}
        size = sum(
            4 * counts.get(m, counts.get("language", 0)) * _width(s) for m, s in modalities.items()
        )
        check_memory(f"the segments of video {video}", size)
        for clip, (start, end) in enumerate(spans):
            frames = {m: middles.between(start, end) for m, middles in inside.items()}
            if words is not None:
                frames, intervals = (
                    {"language": frames["language"]},
                    inside["language"].intervals(start, end),
                )
                frames |= {
                    m: average(s, video, intervals) for m, s in modalities.items() if s is not words
                }
            samples[video, clip] = Sample(
                {m: frames[m] for m in modalities}, rows[clip], float(start)
            )
    return samples


@dataclass(frozen=True)
class Middles:
    """The frames of a sequence in a video, sorted by the centre of their intervals, so that each
    segment's are found quickly.
    """

    frames: Array
    spans: Seconds
    order: npt.NDArray[np.int64]
    middle: Seconds  # (T,), rising

    @classmethod
    def of(cls, sequence: Sequence, video: str) -> Middles:
        """Return the frames of a video, which the sequence may lack."""
        frames, spans = sequence.data.get(video, (_none(sequence), np.zeros((0, 2))))
        middle = spans.mean(1)
        order = np.argsort(middle, kind="stable")
        return cls(frames, spans, order, middle[order])

    def _rows(self, start: float, end: float) -> npt.NDArray[np.int64]:
        """Return the rows of the frames with a centre in [start, end), in the order of their
        starts.
        """
        first, last = np.searchsorted(self.middle, (start, end))
        return np.sort(self.order[first:last])

    def count(self, segments: Seconds) -> int:
        """Return the total number of frames of segments (N, 2)."""
        first, last = (
            np.searchsorted(self.middle, segments[:, 0]),
            np.searchsorted(self.middle, segments[:, 1]),
        )
        return int(np.maximum(last - first, 0).sum())

    def between(self, start: float, end: float) -> Array:
        """Return the frames of a segment, (T, d)."""
        return self.frames[self._rows(start, end)]

    def intervals(self, start: float, end: float) -> Seconds:
        """Return the intervals of a segment's frames, (T, 2)."""
        return self.spans[self._rows(start, end)]


def _raw_split(
    where: str, samples: dict[Key, Sample], modalities: dict[str, Sequence], label: Sequence | None
) -> RawSplit:
    """Return samples as a split, ordered by time within a video."""
    raw = RawSplit(frames={}, ids=[f"{video}$_${clip}" for video, clip in samples])
    for m in modalities:
        raw.frames[m], raw.lengths[m] = pad(
            f"{where}, modality {m}", [sample.frames[m] for sample in samples.values()]
        )
    videos = np.array([video for video, _ in samples])
    raw.order = ranks_within(videos, np.array([sample.start for sample in samples.values()]))
    if label is not None:
        table = np.stack([sample.labels for sample in samples.values()])
        raw.columns = _columns(label, table)
        if table.shape[1] == 1 or next(iter(raw.columns)).endswith(f".{SENTIMENT}"):
            raw.scores = table[:, 0]
    return raw


def _width(sequence: Sequence) -> int:
    return int(next(iter(sequence.data.values()))[0].shape[1])


def _none(sequence: Sequence) -> FloatArray:
    return np.zeros((0, _width(sequence)), np.float32)


def average(sequence: Sequence, video: str, intervals: Seconds) -> FloatArray:
    """Return the mean of the frames that overlap each interval, (W, d); zeros if none does."""
    result = np.zeros((len(intervals), _width(sequence)), np.float32)
    if video not in sequence.data:
        return result
    features, spans = sequence.data[video]
    # Both ends are sorted, so that the frames of an interval are within one slice; some frames of
    # the slice may end before the interval if frames are nested.
    latest = np.maximum.accumulate(spans[:, 1])
    first = np.searchsorted(latest, intervals[:, 0], side="right")
    last = np.searchsorted(spans[:, 0], intervals[:, 1], side="left")
    nested = (latest != spans[:, 1]).any()
    for row, (low, high) in enumerate(zip(first, last, strict=True)):
        inside = features[low:high]
        if nested:
            inside = inside[spans[low:high, 1] > intervals[row, 0]]
        if len(inside):
            result[row] = inside.mean(0)
    return result


def _fold_of(name: str, videos: list[str], options: ReadOptions) -> dict[str, str]:
    """Return the split of each video; a single one if folds are neither given nor standard nor
    required.
    """
    if options.folds is None and not options.targets and not _is_mosi(videos):
        return dict.fromkeys(videos, WHOLE)
    return _folds(name, videos, options.folds)


def _is_mosi(videos: list[str]) -> bool:
    return hashlib.sha256("\n".join(videos).encode()).hexdigest() == MOSI_VIDEOS


def _folds(name: str, videos: list[str], path: Path | None) -> dict[str, str]:
    """Return the split of each video, from the JSON file or, for CMU-MOSI's videos, the standard
    folds.
    """
    if path is None:
        if not _is_mosi(videos):
            raise CorrKDError(
                f"{name}: these videos have no standard folds; pass --folds FILE, JSON "
                f'{{"train": [video, ...], ...}}'
            )
        return dict(zip(videos, np.repeat(SPLITS, MOSI_FOLDS).tolist(), strict=True))
    data = read_json(path, "expected folds") if path.is_file() else None
    if not isinstance(data, dict) or not all(
        s in SPLIT_NAMES and isinstance(v, list) for s, v in data.items()
    ):
        raise CorrKDError(
            f'{path}: expected {{"train": [video, ...], "valid": [...], "test": [...]}}'
        )
    return {str(video): SPLIT_NAMES[split] for split, fold in data.items() for video in fold}
