"""Writing the features of many clips to one HDF5 file of named arrays, in the layout that
`corrkd.load_dataset` reads (docs/data.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from corrkd.data.groups import GROUPS
from corrkd.data.missing_reasons import reasons_text
from corrkd.data.readers.arrays import EXTRACTORS
from corrkd.data.readers.names import LENGTHS, MISSING_REASONS, PRESENT, in_usual_order
from corrkd.files import replacing
from corrkd.media.extractors.base import Frames
from corrkd.media.features import Description
from corrkd.media.labels import NUMBERS, ClipRow

Load = Callable[[int], dict[str, Frames]]
"""Index of a clip -> its frames by modality."""


def write_dataset(
    path: Path,
    clips: Sequence[ClipRow],
    columns: Sequence[str],
    lengths: dict[str, list[int]],
    load: Load,
    description: Description,
) -> None:
    """Write the features of N clips to a file, atomically and one clip at a time.

    Args:
        path: the file.
        clips: N clips, in the order of the file.
        columns: columns of the labels to write; every clip has a value, except in columns of
            groups.
        lengths: number of frames of each clip, by modality; other modalities are left out.
        load: returns the frames of the clip with an index, by modality.
        description: description of the extractors; the file keeps the part about its modalities.
    """
    modalities = in_usual_order(lengths)
    written = description.model_copy(
        update={"modalities": {m: description.modalities[m] for m in modalities}}
    )
    with replacing(path) as temporary, h5py.File(temporary, "w", locking=False) as file:
        file[EXTRACTORS] = written.model_dump_json()
        file["ids"] = _strings([clip.id for clip in clips])
        for column in columns:
            file[_array_name(column)] = _column(
                column, [clip.facts.get(column, "") for clip in clips]
            )
        arrays = {
            m: _frame_arrays(file, m, len(clips), max(lengths[m]), description) for m in modalities
        }
        reasons: dict[str, list[str]] = {m: [] for m in modalities}
        for index in range(len(clips)):
            frames = load(index)
            for m, (values, present) in arrays.items():
                count = len(frames[m].present)
                values[index, :count] = frames[m].values
                present[index, :count] = frames[m].present
                reasons[m].append(reasons_text(frames[m].missing))
        for m in modalities:
            file[f"{m}{LENGTHS}"] = np.array(lengths[m], np.int64)
            file[f"{m}{MISSING_REASONS}"] = _strings(reasons[m])


def _frame_arrays(
    file: h5py.File, m: str, count: int, longest: int, description: Description
) -> tuple[h5py.Dataset, h5py.Dataset]:
    """Create the arrays (N, T, d) and (N, T) of a modality. Padding is not written and takes almost
    no space.
    """
    width = len(description.modalities[m]["columns"])
    frames = min(longest, 1024)
    options = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    return (
        file.create_dataset(
            m, (count, longest, width), np.float32, chunks=(1, frames, width), **options
        ),
        file.create_dataset(
            f"{m}{PRESENT}", (count, longest), np.bool_, chunks=(1, longest), **options
        ),
    )


def _array_name(column: str) -> str:
    return {"label": "labels", "score": "scores"}.get(column, column)


def _column(name: str, values: list[str]) -> Any:
    if name in NUMBERS:
        return np.array(values, np.float64)
    if name == "order":
        return np.array(values, np.float64).astype(np.int64)
    if name == "split":
        return _strings([value.lower() for value in values])
    # classes by number
    if name not in GROUPS and all(value.removeprefix("-").isdecimal() for value in values):
        return np.array(values, np.int64)
    return _strings(values)


def _strings(values: list[str]) -> Any:
    return np.array(values, h5py.string_dtype())
