"""MAG's layout (`mosi.pkl`, `mosei.pkl`) and MISA's: a dict of lists of `((words, visual,
acoustic[, raw words]), label, segment)`.

MISA, MMIM and BBFN store the lists in a folder of `train.pkl`, `dev.pkl`, `test.pkl`; MMIM's
samples contain two lengths as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corrkd.data.dataset import MultimodalDataset
from corrkd.data.readers.assemble import assemble, likert_range
from corrkd.data.readers.glove import look_up
from corrkd.data.readers.labels import columns_of, mosei_names
from corrkd.data.readers.names import SPLIT_NAMES
from corrkd.data.readers.options import ReadOptions
from corrkd.data.readers.pad import pad
from corrkd.data.readers.raw import RawSplit
from corrkd.data.readers.values import strings
from corrkd.errors import CorrKDError


def recognises(data: Any) -> bool:
    """Return whether data is a dict of lists by split, some of them empty, of samples with at least
    three parts.
    """
    parts = (
        [data[split] for split in data if split in SPLIT_NAMES] if isinstance(data, dict) else []
    )
    return any(len(rows) > 0 for rows in parts if isinstance(rows, list | tuple)) and all(
        isinstance(rows, list | tuple) and (not rows or _is_sample(rows[0])) for rows in parts
    )


def _is_sample(sample: Any) -> bool:
    return (
        isinstance(sample, list | tuple)
        and len(sample) >= 1
        and isinstance(sample[0], list | tuple)
        and len(sample[0]) >= 3
    )


def read(data: Mapping[str, Any], name: str, options: ReadOptions) -> MultimodalDataset:
    """Return the dataset in MAG's lists. Words become vectors through the text file `glove`, unless
    the file has vectors already.

    Raises:
        CorrKDError: if a sample is damaged, there are words without `glove`, or word ids without
            their words.
    """
    parts = {
        SPLIT_NAMES[split]: rows for split, rows in data.items() if split in SPLIT_NAMES and rows
    }
    others = [str(split) for split in data if split not in SPLIT_NAMES]
    notes = [f"left out: {', '.join(others)} (not a split)"] if others else []
    notes += [
        f"left out: {split}, an empty list"
        for split, rows in data.items()
        if split in SPLIT_NAMES and not rows
    ]
    language = {split: _language(f"{name}, {split}", rows) for split, rows in parts.items()}
    sentences = {split: words for split, (words, _) in language.items() if words is not None}
    if sentences:
        together = [sentence for words in sentences.values() for sentence in words]
        vectors, unknown = look_up(name, together, options.glove)
        if unknown:
            notes.append(
                f"language: {unknown} words have no vector in {Path(str(options.glove)).name}; "
                f"all-zero frames"
            )
        for split, words in sentences.items():
            language[split] = words, vectors[: len(words)]
            vectors = vectors[len(words) :]
    raw = {
        split: _read_split(f"{name}, {split}", rows, language[split][1])
        for split, rows in parts.items()
    }
    return assemble(
        name,
        raw,
        options,
        layout="MAG",
        lengths_note="number of frames in each list",
        notes=notes,
        score_range=likert_range(raw),
    )


def _read_split(where: str, rows: Sequence[Any], language: Sequence[Any]) -> RawSplit:
    raw = RawSplit(frames={}, lengths={})
    sequences = {
        "language": language,
        "audio": [s[0][2] for s in rows],
        "vision": [s[0][1] for s in rows],
    }
    for modality, samples in sequences.items():
        raw.frames[modality], raw.lengths[modality] = pad(f"{where}, modality {modality}", samples)
    if any(len(sample) > 1 and sample[1] is not None for sample in rows):
        _set_labels(where, raw, rows)
    if all(len(sample) > 2 for sample in rows):
        raw.ids = strings([sample[2] for sample in rows], f"{where}: segments")
    return raw


def _set_labels(where: str, raw: RawSplit, rows: Sequence[Any]) -> None:
    """Set the labels: a single column is the score, and of CMU-MOSEI's seven the sentiment; of
    others one has to be chosen.
    """
    try:
        labels = [np.asarray(sample[1], np.float64).ravel() for sample in rows]
    except (ValueError, TypeError, IndexError):
        raise CorrKDError(f"{where}: labels are not numbers; save them as floats") from None
    if any(label.size == 0 for label in labels):
        raise CorrKDError(f"{where}: a sample has no label; leave it out")
    if len({label.size for label in labels}) > 1:
        raise CorrKDError(
            f"{where}: labels have {sorted({label.size for label in labels})[:8]} columns; "
            f"expected the same number in each"
        )
    table = np.stack(labels)
    raw.columns = columns_of("label", table)
    if table.shape[1] == 1 or len(mosei_names(table)) == 7:
        raw.scores = table[:, 0]


def _language(where: str, rows: Sequence[Any]) -> tuple[list[list[str]] | None, Sequence[Any]]:
    """Return (words of each sample, ()) or, if the file has vectors, (None, vectors of each
    sample).
    """
    if not all(_is_sample(sample) for sample in rows):
        raise CorrKDError(
            f"{where}: a sample is not ((words, visual, acoustic), label, segment); save "
            f"samples in this form, or named arrays"
        )
    first = [sample[0][0] for sample in rows]
    if all(
        np.ndim(np.asarray(value, object if isinstance(value, list) else None)) == 2
        for value in first
    ):
        return None, first
    raw = [sample[0][3] if len(sample[0]) > 3 else sample[0][0] for sample in rows]
    if any(
        not isinstance(word, str | bytes)
        for sentence in raw
        for word in np.ravel(np.asarray(sentence, object))
    ):
        raise CorrKDError(
            f"{where}: its language is word ids without the words; use a release with the words "
            f"and pass --glove FILE"
        )
    return [strings(sentence, f"{where}: words").tolist() for sentence in raw], ()
