"""Reading a label file with one folder per feature set beside it, which contains `<utterance>.npy`
for each utterance: GCNet, MERBench and successors.

GCNet's label file is a pickled list: utterances, labels, speakers and sentences by video, then the
videos of each split. MERBench's is an `.npz` of pickled dicts `{utterance: {"emo": class, "val":
score}}`, one for each split. The folders are beside the label file or in `features/` there; an
`.npy` contains (d,) or (T, d) numbers and is memory-mapped.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from corrkd.data.dataset import SPLITS, WHOLE, FloatArray, IntArray, MultimodalDataset, StrArray
from corrkd.data.groups import dependent_samples
from corrkd.data.readers.assemble import assemble, likert_range
from corrkd.data.readers.containers import read_npy_header
from corrkd.data.readers.names import SPLIT_NAMES, feature_set_modality, is_no_feature
from corrkd.data.readers.options import ReadOptions
from corrkd.data.readers.raw import RawSplit
from corrkd.data.readers.values import as_array, strings
from corrkd.errors import CorrKDError
from corrkd.files import leads_elsewhere
from corrkd.memory import check_memory

CORPUS = "_corpus"  # suffix of a split's name in MERBench
VALID_SHARE = 0.1  # of the training groups, if there is no validation split
LOOKED_AT = 50  # utterances that are checked to recognise a folder of features
IEMOCAP = re.compile(r"(Ses\d\d)[FM]_")


@dataclass(frozen=True)
class Utterances:
    """The contents of a label file, (N,) for each field.

    Attributes:
        layout: text for display.
        ids: names of the utterances and of their feature files.
        splits: "train", "valid" or "test".
        labels: label columns by name.
        groups: as in `Split`.
        order: position within the video.
        notes: notes on what is left out.
    """

    layout: str
    ids: StrArray
    splits: StrArray
    labels: Mapping[str, Any]
    groups: Mapping[str, StrArray]
    order: IntArray
    notes: tuple[str, ...] = ()


def recognises_gcnet(data: Any) -> bool:
    """Return whether data is four dicts by video, then two or three sets of videos."""
    return (
        isinstance(data, list | tuple)
        and len(data) in (6, 7)
        and all(isinstance(x, dict) for x in data[:4])
        and all(isinstance(x, set | frozenset | list | tuple) for x in data[4:])
    )


def recognises_merbench(arrays: Mapping[str, Any]) -> bool:
    """Return whether arrays are single pickled dicts, named `train_corpus` and the like."""
    return any(
        key.endswith(CORPUS)
        and isinstance(x, np.ndarray)
        and x.shape == ()
        and isinstance(x.item(), dict)
        for key, x in arrays.items()
    )


def read_gcnet(
    data: Sequence[Any], path: Path, name: str, options: ReadOptions
) -> MultimodalDataset:
    """Return the dataset of a GCNet label file and the features beside it. Raises CorrKDError if
    they do not fit together.
    """
    of_video, labels, speakers = data[:3]
    videos = [video for video in of_video for _ in of_video[video]]
    for what, lists in (("labels", labels), ("speakers", speakers)):
        for video, ids in of_video.items():
            if video not in lists or len(lists[video]) != len(ids):
                raise CorrKDError(
                    f"{name}: video {str(video)[:60]} has {len(ids)} utterances and another "
                    f"number of {what}"
                )
    same = len(data) == 7 and set(data[4]) == set(data[5])  # no separate videos for validation
    sets = (
        {"train": data[4], "test": data[-1]}
        if len(data) == 6 or same
        else dict(zip(SPLITS, data[4:], strict=True))
    )
    split_of = {str(video): split for split, members in sets.items() for video in members}
    outside = sorted({video for video in videos if str(video) not in split_of})
    if outside:
        raise CorrKDError(f"{name}: video {str(outside[0])[:60]} is in no split")
    speaker = strings([x for video in of_video for x in speakers[video]], f"{name}: speakers")
    rooms = np.array(
        [match[1] if (match := IEMOCAP.match(str(video))) else str(video) for video in videos]
    )
    groups = {"video": strings(videos, f"{name}: videos")}
    if (rooms != groups["video"]).any():
        groups["session"] = rooms
    if (speaker != "").any():  # speakers are named within a session only
        groups["speaker"] = np.array(
            [f"{room} {who}" if who else "" for room, who in zip(rooms, speaker, strict=True)]
        )
    utterances = Utterances(
        layout="GCNet",
        ids=strings([x for video in of_video for x in of_video[video]], f"{name}: utterances"),
        splits=np.array([split_of[str(video)] for video in videos]),
        labels={"labels": as_array([x for video in of_video for x in labels[video]])},
        groups=groups,
        order=np.array([i for video in of_video for i in range(len(of_video[video]))], np.int64),
    )
    return _read(utterances, path, name, options)


def read_merbench(
    arrays: Mapping[str, Any], path: Path, name: str, options: ReadOptions
) -> MultimodalDataset:
    """Return the dataset of a MERBench label file and the features beside it. Raises CorrKDError if
    they do not fit together.
    """
    ids: list[Any] = []
    splits: list[str] = []
    rows: list[Mapping[str, Any]] = []
    left_out = []
    for key, values in arrays.items():
        word = key.removesuffix(CORPUS)
        split = (
            "test" if word == "test1" and f"test{CORPUS}" not in arrays else SPLIT_NAMES.get(word)
        )
        if split is None or not isinstance(values.item() if values.shape == () else None, dict):
            left_out.append(key)
            continue
        for utterance, row in values.item().items():
            if not isinstance(row, dict):
                raise CorrKDError(
                    f"{name}, {key}: utterance {str(utterance)[:60]} has a {type(row).__name__}, "
                    f"expected emo and val"
                )
            ids.append(utterance)
            splits.append(split)
            rows.append(row)
    if not rows:
        raise CorrKDError(f"{name}: no utterance in any of {', '.join(arrays)}")
    columns = {key: [row.get(key) for row in rows] for key in ("emo", "val")}
    # A column without labels has a single value, as -10.
    labels = {
        key: as_array(x)
        for key, x in columns.items()
        if None not in x and len(set(map(str, x))) > 1
    }
    names = strings(ids, f"{name}: utterances")
    halves = [text.rpartition("_") for text in names.tolist()]
    utterances = Utterances(
        layout="MERBench",
        ids=names,
        splits=np.array(splits),
        labels=labels,
        groups={"video": np.array([video or text for (video, _, text) in halves])},
        order=np.array(
            [
                int(digits[0]) if (digits := re.findall(r"\d{1,9}$", clip)) else 0
                for _, _, clip in halves
            ],
            np.int64,
        ),
        notes=(f"left out: {', '.join(left_out)}",) if left_out else (),
    )
    return _read(utterances, path, name, options)


def _read(utterances: Utterances, path: Path, name: str, options: ReadOptions) -> MultimodalDataset:
    folders = _feature_folders(name, path, utterances.ids)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    splits, notes = utterances.splits, list(utterances.notes)
    if "valid" not in splits:
        splits, note = _with_valid(utterances)
        notes.append(note)
    frames, lengths = {}, {}
    for m, folder in folders.items():
        frames[m], lengths[m], note = _features(
            f"{name}, {folder.name}", folder, utterances.ids, digest
        )
        notes.append(f"{m}: {folder.name}{note}")
    raw = {}
    for split in (*SPLITS, WHOLE):
        rows = np.flatnonzero(splits == split)
        if len(rows):
            raw[split] = _raw_split(
                {m: x[rows] for m, x in frames.items()}, lengths, rows, utterances
            )
    dataset = assemble(
        name,
        raw,
        options,
        layout=f"{utterances.layout}, one file per utterance",
        lengths_note="number of frames in each file",
        notes=notes,
        score_range=likert_range(raw),
    )
    return replace(dataset, sha256=digest.hexdigest())


def _raw_split(
    frames: dict[str, FloatArray],
    lengths: Mapping[str, IntArray],
    rows: IntArray,
    utterances: Utterances,
) -> RawSplit:
    raw = RawSplit(
        frames=dict(frames),
        lengths={m: x[rows] for m, x in lengths.items()},
        ids=utterances.ids[rows],
        columns={key: values[rows] for key, values in utterances.labels.items()},
        groups={g: values[rows] for g, values in utterances.groups.items()},
        order=utterances.order[rows],
    )
    for values in raw.columns.values():
        if values.dtype.kind == "f":
            raw.scores = values
        else:
            raw.labels = values
    return raw


def _feature_folders(name: str, path: Path, ids: StrArray) -> dict[str, Path]:
    """Return the folders of features by modality; a second one of the same modality keeps its
    name.
    """
    spread = ids[:: max(1, len(ids) // LOOKED_AT)].tolist()
    candidates = [
        folder
        for root in (path.parent, path.parent / "features")
        if root.is_dir()
        for folder in sorted(root.iterdir())
    ]
    folders: dict[str, Path] = {}
    for folder in candidates:
        if folder.is_dir() and any(
            _file_of(name, folder, utterance).is_file() for utterance in spread
        ):
            if is_no_feature(folder.name.removesuffix("-UTT").removesuffix("-FRA")):
                continue
            modality = feature_set_modality(folder.name) or folder.name
            folders[modality if modality not in folders else folder.name] = folder
    if not folders:
        raise CorrKDError(
            f"{path.name}: labels of {len(ids)} utterances, but no features: expected folders "
            f"beside it, or in features/, with files such as {ids[0]}.npy"
        )
    return folders


def _file_of(name: str, folder: Path, utterance: str) -> Path:
    """Return the feature file of an utterance. Raises CorrKDError if its name would lead
    elsewhere.
    """
    if leads_elsewhere(utterance):
        raise CorrKDError(f"{name}: utterance {utterance[:60]!r} cannot be the name of a file")
    return folder / f"{utterance}.npy"


def _features(
    where: str, folder: Path, ids: StrArray, digest: Any
) -> tuple[FloatArray, IntArray, str]:
    """Return (N, T, d) frames and (N,) lengths of a folder's files, and a note on what is missing.
    Shapes are checked before anything is read.
    """
    files = [_file_of(where, folder, utterance) for utterance in ids.tolist()]
    headers = {
        row: header
        for row, file in enumerate(files)
        if (header := _header(where, file)) is not None
    }
    rows = {row: header for row, header in headers.items() if header.frames}
    widths = {header.width: row for row, header in rows.items()}
    if len(widths) != 1:
        some = ", ".join(f"{files[row].name} {width}" for width, row in islice(widths.items(), 3))
        raise CorrKDError(
            f"{where}: files of different widths, or none with frames: {some or 'none'}"
        )
    lengths = np.array(
        [rows[row].frames if row in rows else 0 for row in range(len(files))], np.int64
    )
    longest = int(lengths.argmax())
    shape = (len(files), int(lengths[longest]), next(iter(widths)))
    check_memory(f"{where}, {files[longest].name} of {shape[1]:,} frames", 4 * math.prod(shape))
    frames = np.zeros(shape, np.float32)
    for row, header in rows.items():
        try:  # one map at a time: each keeps a file open
            with files[row].open("rb") as file:
                size = header.frames, header.width
                frames[row, : header.frames] = np.memmap(
                    file, header.dtype, "r", header.offset, size, header.order
                )
        except (OSError, ValueError) as error:
            raise CorrKDError(
                f"{where}, {files[row].name}: a damaged .npy file ({str(error)[:80]})"
            ) from None
        digest.update(f"{ids[row]}\n".encode())
        digest.update(frames[row, : header.frames].data)
    absent, empty = len(files) - len(headers), len(headers) - len(rows)
    note = f"; {absent} utterances have no file: missing" if absent else ""
    return frames, lengths, note + (f"; {empty} files have no frame: missing" if empty else "")


@dataclass(frozen=True)
class _Header:
    """The header of an `.npy` file of (T, d) or (d,) numbers."""

    frames: int
    width: int
    dtype: np.dtype[Any]
    order: Literal["C", "F"]
    offset: int


def _header(where: str, path: Path) -> _Header | None:
    """Return the header of a feature file; None if the file does not exist."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            shape, fortran, dtype = read_npy_header(file)
            offset = file.tell()
    except (OSError, ValueError, EOFError) as error:
        raise CorrKDError(
            f"{where}, {path.name}: not an .npy file of numbers ({str(error)[:80]})"
        ) from None
    if dtype.kind not in "fiu" or len(shape) not in (1, 2) or not shape[-1]:
        raise CorrKDError(
            f"{where}, {path.name}: shape {shape} of {dtype}; expected (width,) or (frames, width)"
        )
    frames = shape[0] if len(shape) == 2 else 1
    return _Header(frames, shape[-1], dtype, "F" if fortran else "C", offset)


def _with_valid(utterances: Utterances) -> tuple[StrArray, str]:
    """Return the splits with some training groups as validation, chosen by a hash of their names,
    and a note.
    """
    train = utterances.splits == "train"
    by, members = dependent_samples(
        utterances.ids[train], {g: x[train] for g, x in utterances.groups.items()}
    )
    if len(set(members.tolist())) < 2:  # ids without a video
        by, members = "utterance", utterances.ids[train]
    order = sorted(set(members.tolist()), key=lambda text: hashlib.sha256(text.encode()).digest())
    held = order[: max(1, round(VALID_SHARE * len(order)))]
    splits = utterances.splits.astype("<U5")
    splits[np.flatnonzero(train)[np.isin(members, held)]] = "valid"
    return (
        splits,
        f"no validation split: {len(held)} of {len(order)} groups by {by} of the training "
        f"split are held out",
    )
