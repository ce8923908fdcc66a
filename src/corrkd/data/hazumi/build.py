"""Building the Hazumi dataset from its dump files: windows of exchanges, classes by tertiles, each
person in a single split.
"""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from corrkd.csv_files import read_csv
from corrkd.data.dataset import SPLITS
from corrkd.data.hazumi.sources import SourceFile, read_source, source_files
from corrkd.errors import CorrKDError
from corrkd.files import replacing

WINDOW = 8  # exchanges
ENDINGS = (".pkl", ".h5")
CORRESPONDENCE = "correspondence.csv"
NUM_ANNOTATIONS = 17  # columns before the features
WIDTHS = {"audio": 384, "vision": 66, "text": 785}  # in the order of the columns
NUM_PARTS_OF_SPEECH = 17  # text columns before the sentence embedding
ANNOTATOR, AVERAGE = "UI_", "UI_Aver"
FloatArray = npt.NDArray[np.float32]

# By split and corpus, the first session of each person.
PEOPLE: Mapping[str, Mapping[str, str]] = {
    "train": {
        "2010": (
            "F2002 F2003 F3001 F3003 F4001 F5001 F5003 M2003 M2004 M2005 M2006 M3001 M3002 M3005 "
            "M4003 M6001"
        ),
        "2012": (
            "F2005 F2006 F2007 F2009 F3001 F3003 F3004 F3006 F3007 F3009 F4001 F4002 F4003 F4004 "
            "F4005 F4006 F4007 F4008 F4009 F4010 F4011 F5003 F5004 F5005 M2002 M2005 M3001 M3002 "
            "M3004 M3006 M3007 M3008 M3009 M4006 M6001"
        ),
    },
    "valid": {"2010": "F2004 F4005", "2012": "F3002 M2001 M2003 M2006 M4001 M4005 M4008 M4009"},
    "test": {
        "2010": "F4002 F4003 F4004 F5002 M3003 M4001 M5002",
        "2012": "F2001 F2002 F3008 F5001 M2004 M4004 M5001 M5003",
    },
}


@dataclass(frozen=True)
class Session:
    """The exchanges of one dialogue.

    Attributes:
        name: name of the session.
        person: the first session of the person who speaks.
        split: split of the person.
        features: (n, d) by modality.
        scores: (n,) means over the annotators.
    """

    name: str
    person: str
    split: str
    features: dict[str, FloatArray]
    scores: FloatArray


def read_sessions(
    folder: Path,
    *,
    files: Sequence[SourceFile] | None = None,
    on_file: Callable[[], object] = lambda: None,
) -> list[Session]:
    """Read the sessions of the set from clones of the three repositories.

    Args:
        folder: with Hazumi2010, Hazumi2012 and Hazumi2105.
        files: files to read; default: all that the set needs.
        on_file: called after each file.

    Raises:
        CorrKDError: if a file does not exist or differs from the published one.
    """
    split_of = {
        corpus + name: split
        for split, corpora in PEOPLE.items()
        for corpus, names in corpora.items()
        for name in names.split()
    }
    files = source_files() if files is None else files
    first_sessions: dict[str, str] = {}
    sessions = []
    # The table of second sessions comes first, whatever the order of the files.
    for file in sorted(files, key=lambda file: (not file.name.endswith(CORRESPONDENCE), file.name)):
        content = read_source(file, folder)
        if file.name.endswith(CORRESPONDENCE):
            rows = csv.reader(io.StringIO(content.decode("utf-8-sig")))
            first_sessions = {row[0]: row[1] for row in rows if len(row) > 1}
        else:
            name = PurePosixPath(file.name).stem
            person = first_sessions.get(name, name)
            sessions.append(_session(content, name, person, split_of[person]))
        on_file()
    return sessions


def _session(content: bytes, name: str, person: str, split: str) -> Session:
    table = read_csv(io.BytesIO(content))
    expected = NUM_ANNOTATIONS + sum(WIDTHS.values())
    if table.shape[1] != expected:
        raise CorrKDError(f"session {name}: has {table.shape[1]} columns, expected {expected}")
    annotators = [
        column for column in table if str(column).startswith(ANNOTATOR) and column != AVERAGE
    ]
    values = table.iloc[:, NUM_ANNOTATIONS:].to_numpy(np.float32)
    ends = np.cumsum(list(WIDTHS.values()))[:-1]
    features = dict(zip(WIDTHS, np.split(values, ends, axis=1), strict=True))
    spoken = features["text"][:, NUM_PARTS_OF_SPEECH:].any(1, keepdims=True)
    # where nobody spoke, the first column holds a constant artefact
    features["text"] = features["text"] * spoken
    return Session(
        name, person, split, features, table[annotators].mean(axis="columns").to_numpy(np.float32)
    )


def dataset_of(sessions: Sequence[Session]) -> dict[str, dict[str, Any]]:
    """Return the dataset in MMSA's layout, by split. A sample is an exchange with those before it,
    padded on the right.

    Raises:
        CorrKDError: if a split has no session.
    """
    by_split = {
        split: [session for session in sessions if session.split == split] for split in SPLITS
    }
    for split, members in by_split.items():
        if not members:
            raise CorrKDError(f"no session of the split {split}")
    scores = {
        split: np.concatenate([s.scores for s in members]) for split, members in by_split.items()
    }
    cuts = np.quantile(scores["train"], [1 / 3, 2 / 3])
    return {split: _split(members, scores[split], cuts) for split, members in by_split.items()}


def _split(
    sessions: Sequence[Session], scores: FloatArray, cuts: npt.NDArray[np.floating]
) -> dict[str, Any]:
    lengths = np.concatenate(
        [np.minimum(np.arange(1, len(s.scores) + 1), WINDOW) for s in sessions]
    ).tolist()
    frames = {m: np.concatenate([windows(s.features[m]) for s in sessions]) for m in WIDTHS}
    return {
        "id": np.array([f"{s.name}$_${row}" for s in sessions for row in range(len(s.scores))]),
        **frames,
        "audio_lengths": lengths,
        "vision_lengths": lengths,
        "regression_labels": scores,
        "classification_labels": np.digitize(scores, cuts),
        "person": np.array([s.person for s in sessions for _ in s.scores]),
    }


def windows(features: FloatArray) -> FloatArray:
    """Return, for each row of (n, d), the window of rows that ends there: (n, 8, d), padded with
    zeros on the right.
    """
    frames = np.zeros((len(features), WINDOW, features.shape[1]), np.float32)
    for end in range(1, len(features) + 1):
        window = features[max(0, end - WINDOW) : end]
        frames[end - 1, : len(window)] = window
    return frames


def write_dataset(path: Path, splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a dataset of `dataset_of` atomically: .pkl in MMSA's layout, .h5 as named arrays.

    Raises:
        CorrKDError: if the name has another ending or the file cannot be written.
    """
    check_ending(path)
    with replacing(path) as temporary:
        if path.suffix == ".pkl":
            with temporary.open("wb") as file:
                pickle.dump(
                    {split: dict(arrays) for split, arrays in splits.items()}, file, protocol=4
                )
        else:
            _write_h5(temporary, splits)


def check_ending(path: Path) -> None:
    """Raise CorrKDError if the name of an output file has another ending."""
    if path.suffix not in ENDINGS:
        raise CorrKDError(f"{path}: the output's name must end in {' or '.join(ENDINGS)}")


def _write_h5(path: Path, splits: Mapping[str, Mapping[str, Any]]) -> None:
    text = h5py.string_dtype()
    joined = {
        key: np.concatenate([arrays[key] for arrays in splits.values()])
        for key in next(iter(splits.values()))
    }
    sizes = [len(arrays["id"]) for arrays in splits.values()]
    lengths = joined["audio_lengths"].astype(np.int64)
    exists = np.arange(WINDOW) < lengths[:, None]
    with h5py.File(path, "w", locking=False) as file:
        for m in WIDTHS:
            file.create_dataset(
                m, data=joined[m], compression="gzip", compression_opts=1, shuffle=True
            )
        file["text_present"] = exists & joined["text"].any(-1)
        file["lengths"] = lengths
        file["ids"] = np.array(joined["id"].tolist(), text)
        file["person"] = np.array(joined["person"].tolist(), text)
        file["split"] = np.array(np.repeat(list(splits), sizes).tolist(), text)
        file["scores"] = joined["regression_labels"]
        file["labels"] = joined["classification_labels"]
