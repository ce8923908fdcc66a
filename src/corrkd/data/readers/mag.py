"""MAG's layout (`mosi.pkl`, `mosei.pkl`) and MISA's: a dict of lists of `((words, visual, acoustic[, raw words]), label, segment)`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corrkd.data.dataset import FloatArray, MultimodalDataset
from corrkd.data.readers.assemble import SPLIT_NAMES, RawSplit, assemble, likert_range, strings
from corrkd.errors import CorrKDError

Words = list[list[str]]
WIDEST = 10_000  # a vector file of more numbers a line is none


def recognises(data: Any) -> bool:
    """A dict of split names whose values are lists of three-part samples."""
    return (
        isinstance(data, dict)
        and bool(data)
        and all(name in SPLIT_NAMES and isinstance(part, list | tuple) and len(part) > 0 for name, part in data.items())
        and all(_is_sample(part[0]) for part in data.values())
    )


def _is_sample(sample: Any) -> bool:
    return (
        isinstance(sample, list | tuple)
        and len(sample) >= 2
        and isinstance(sample[0], list | tuple)
        and len(sample[0]) >= 3
    )


def read(data: Mapping[str, Sequence[Any]], name: str, glove: Path | None) -> MultimodalDataset:
    """The dataset in MAG's lists. Words become vectors by the text file `glove`; where the file has vectors already, they are used.

    Raises:
        CorrKDError: a damaged sample; words without `glove`; word ids without their words.
    """
    words: dict[str, Words | None] = {split: _words(f"{name}, {split}", part) for split, part in data.items()}
    vectors: dict[str, FloatArray] = {}
    if any(w is not None for w in words.values()):
        if glove is None:
            raise CorrKDError(
                f"{name}: its language is words, not vectors; pass --glove FILE, a GloVe text file such as glove.840B.300d.txt"
            )
        vectors = read_glove(glove, {word for split in words.values() for sentence in split or () for word in sentence})
    notes, raw = [], {}
    for split, part in data.items():
        sentences = words[split]
        if sentences is None:
            language = [sample[0][0] for sample in part]
        else:
            width = len(next(iter(vectors.values())))
            blank = np.zeros(width, np.float32)
            language = [
                np.array([vectors.get(word, blank) for word in s], np.float32).reshape(len(s), width) for s in sentences
            ]
            unknown = sum(word not in vectors for s in sentences for word in s)
            if unknown:
                notes.append(
                    f"{split}, language: {unknown} words have no vector in {Path(str(glove)).name}; all-zero frames"
                )
        raw[SPLIT_NAMES[split]] = _read_split(f"{name}, {split}", part, language, notes)
    return assemble(
        name,
        raw,
        layout="MAG",
        lengths_note="number of frames in each list",
        notes=notes,
        score_range=likert_range(raw),
    )


def _read_split(where: str, part: Sequence[Any], language: Sequence[Any], notes: list[str]) -> RawSplit:
    raw = RawSplit(frames={}, lengths={})
    sequences = {"language": language, "audio": [s[0][2] for s in part], "vision": [s[0][1] for s in part]}
    for modality, samples in sequences.items():
        raw.frames[modality], raw.lengths[modality] = pad(f"{where}, modality {modality}", samples)
    try:
        labels = [np.asarray(sample[1], np.float64).ravel() for sample in part]
    except (ValueError, TypeError):
        raise CorrKDError(f"{where}: labels are not numbers") from None
    if any(label.size == 0 for label in labels):
        raise CorrKDError(f"{where}: a sample has no label")
    if any(label.size > 1 for label in labels):
        notes.append(f"{where}: labels have several columns; the first (sentiment) is used")
    raw.scores = np.array([label[0] for label in labels])
    if all(len(sample) > 2 for sample in part):
        raw.ids = strings([sample[2] for sample in part])
    return raw


def pad(where: str, samples: Sequence[Any]) -> tuple[FloatArray, np.ndarray[Any, np.dtype[np.int64]]]:
    """(N, longest, d) right-padded frames of N sequences (T_i, d), and their lengths. Raises CorrKDError where widths differ."""
    arrays = [np.asarray(sample) for sample in samples]
    for array in arrays:
        if array.ndim != 2 or array.dtype.kind not in "fiu":
            raise CorrKDError(
                f"{where}: a sample has shape {array.shape} of {array.dtype}; expected (frames, width) numbers"
            )
    widths = {array.shape[1] for array in arrays if len(array)}
    if len(widths) != 1:
        raise CorrKDError(f"{where}: samples of different widths, or of none: {sorted(widths)}")
    lengths = np.array([len(array) for array in arrays], np.int64)
    frames = np.zeros((len(arrays), int(lengths.max()), widths.pop()), np.float32)
    for row, array in enumerate(arrays):
        if len(array):
            frames[row, : len(array)] = array
    return frames, lengths


def _words(where: str, part: Sequence[Any]) -> Words | None:
    """The words of each sample, or None where the language is vectors."""
    if not all(_is_sample(sample) for sample in part):
        raise CorrKDError(f"{where}: a sample is not ((words, visual, acoustic), label, segment)")
    first = [sample[0][0] for sample in part]
    if all(np.ndim(np.asarray(value, object if isinstance(value, list) else None)) == 2 for value in first):
        return None
    raw = [sample[0][3] if len(sample[0]) > 3 else sample[0][0] for sample in part]
    if any(not isinstance(word, str | bytes) for sentence in raw for word in np.ravel(np.asarray(sentence, object))):
        raise CorrKDError(
            f"{where}: its language is word ids without the words; use a release with the words and pass --glove FILE"
        )
    return [strings(sentence).tolist() for sentence in raw]


def read_glove(path: Path, needed: Iterable[str]) -> dict[str, FloatArray]:
    """Vectors of the needed words from a text file "word number number ..."; a word not found is looked up in lower case.

    The file is read line by line; a first line "count width" (word2vec's) is passed over.

    Raises:
        CorrKDError: no such file, or a line that is no word and vector.
    """
    needed = set(needed)
    wanted = needed | {word.lower() for word in needed}
    found: dict[str, FloatArray] = {}
    width = 0
    try:
        with Path(path).open(encoding="utf-8", errors="replace", newline="\n") as file:
            for number, line in enumerate(file, 1):
                parts = line.rstrip().split(" ")
                if number == 1 and len(parts) == 2:
                    continue
                width = width or len(parts) - 1
                if not 1 < width <= WIDEST or len(parts) <= width:
                    raise CorrKDError(
                        f"{path}: line {number} is not a word and {width or 'some'} numbers; pass a GloVe text file"
                    )
                word = " ".join(parts[:-width])
                if word in wanted:
                    found[word] = np.array(parts[-width:], np.float32)
    except OSError as error:
        raise CorrKDError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise CorrKDError(f"{path}: line {number} is not a word and {width} numbers; pass a GloVe text file") from None
    vectors = {
        word: found[word] if word in found else found[word.lower()]
        for word in needed
        if word in found or word.lower() in found
    }
    if not vectors:
        raise CorrKDError(f"{path}: has none of the {len(needed)} words of the data; is it the right vector file?")
    return vectors
