"""Converting the frames of one modality, in any form, to one padded array that distinguishes
missing frames from padding.

A missing value is NaN, None, null or an empty list: for a whole sample, the modality is missing;
for a frame, that frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from corrkd.data.dataset import BoolArray, FloatArray, IntArray
from corrkd.errors import CorrKDError
from corrkd.memory import check_memory

Array = npt.NDArray[Any]
MOST_LISTED = 8  # widths in a message


@dataclass(frozen=True)
class Sequences:
    """One modality of N samples.

    Attributes:
        frames: (N, T, d) float32, or (N, d) for one vector per sample; zero in the padding and in
            missing frames.
        lengths: (N,) number of frames that exist, 0 if the modality is missing; None: to be found
            from the frames, as in a padded array.
        present: (N, T), or (N,) for vectors: which frames are not missing; None if none is marked
            as missing.
    """

    frames: FloatArray
    lengths: IntArray | None = None
    present: BoolArray | None = None

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def num_frames(self) -> int | None:
        """T; None for vectors."""
        return None if self.frames.ndim == 2 else self.frames.shape[1]


def from_array(where: str, values: Array) -> Sequences:
    """Return the sequences in an array (N, T, d) or (N, d); frames that are all NaN are missing.

    Raises:
        CorrKDError: if the values are not real numbers, or the array has other axes.
    """
    if values.dtype.kind not in "fiub" or values.ndim not in (2, 3):
        raise CorrKDError(
            f"{where}: {values.dtype} of shape {values.shape}; give numbers of shape (samples, "
            f"frames, width) or (samples, width)"
        )
    with np.errstate(over="ignore"):
        frames = np.array(values, np.float32, order="C", copy=True)
    missing: BoolArray = np.all(np.isnan(frames), axis=-1)
    if not missing.any():
        return Sequences(frames)
    frames[missing] = 0
    if frames.ndim == 2:
        return Sequences(frames, present=~missing)
    occupied: BoolArray = np.any(frames, axis=-1)
    lengths = np.where(occupied.any(1), occupied.shape[1] - occupied[:, ::-1].argmax(1), 0)
    return Sequences(frames, lengths, ~missing & (np.arange(frames.shape[1]) < lengths[:, None]))


def from_cells(where: str, cells: Sequence[Any]) -> Sequences:
    """Return the sequences in N cells: each None or NaN, a list of numbers, or a list of frames,
    some of which may be None.

    Lists of numbers are vectors if they have the same length, else sequences of frames of width 1.

    Raises:
        CorrKDError: if a cell contains anything else, or frames differ in width.
    """
    samples = [_frames_of_cell(f"{where}, row {row}", cell) for row, cell in enumerate(cells)]
    of_lists = {sample.ndim for sample in samples if sample is not None}
    if of_lists == {1, 2}:
        raise CorrKDError(
            f"{where}: some cells are lists of numbers and some lists of frames; make all lists "
            f"of frames"
        )
    counts = np.array([0 if sample is None else len(sample) for sample in samples], np.int64)
    some = [sample for sample in samples if sample is not None]
    if of_lists == {1}:
        return _of_numbers(where, np.concatenate(some), counts)
    widths = np.concatenate(
        [np.full(len(sample), sample.shape[1]) for sample in some] or [np.zeros(0, np.int64)]
    )
    width = one_width(where, widths)
    return scattered(where, np.concatenate(some) if some else np.zeros((0, width)), counts)


def _frames_of_cell(where: str, cell: Any) -> npt.NDArray[np.float32] | None:
    """Return the numbers (d,) or frames (T, d) of a cell; None if it is empty."""
    if is_missing(cell):
        return None
    if hasattr(cell, "detach"):  # a tensor
        cell = cell.detach().cpu()
    if isinstance(cell, np.ndarray) and cell.dtype == object:  # frames from pandas.read_parquet
        cell = cell.tolist()
    try:
        if isinstance(cell, list | tuple) and any(
            isinstance(x, list | tuple | np.ndarray) for x in cell
        ):
            cell = _with_missing_frames(cell)
        with np.errstate(over="ignore"):
            values = np.asarray(cell, np.float32)
    except (ValueError, TypeError):
        raise CorrKDError(
            f"{where}: not a list of numbers, nor a list of frames of one width; write [0.1, "
            f"0.2] or [[0.1, 0.2], [0.3, 0.4]]"
        ) from None
    if values.ndim not in (1, 2):
        raise CorrKDError(f"{where}: has {values.ndim} axes; give (frames, width) or (width,)")
    return values if values.size else None


def _with_missing_frames(frames: Sequence[Any]) -> list[Any]:
    """Return frames in which those that are None or empty are all NaN; [] if all are."""
    width = next((len(frame) for frame in frames if not is_missing(frame)), 0)
    return (
        []
        if not width
        else [
            np.full(width, np.nan, np.float32) if is_missing(frame) else frame for frame in frames
        ]
    )


def is_missing(value: Any) -> bool:
    """Return whether a cell is empty: None, a single NaN (including the NA of pandas), or an empty
    list.
    """
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, float | np.floating):
        return bool(np.isnan(value))
    return not isinstance(value, str | bytes) and hasattr(value, "__len__") and not len(value)


def one_width(where: str, widths: IntArray) -> int:
    """Return the width of all frames that have any, or 1 if none has. Raises CorrKDError if they
    differ.
    """
    distinct = np.unique(widths[widths > 0])
    if len(distinct) > 1:
        few = ", ".join(map(str, distinct[:MOST_LISTED]))
        raise CorrKDError(
            f"{where}: frames are {few} wide; give every frame the same number of values"
        )
    return int(distinct[0]) if len(distinct) else 1


def _of_numbers(where: str, numbers: npt.NDArray[np.float32], counts: IntArray) -> Sequences:
    """Return the sequences of concatenated lists of numbers: vectors if they have the same
    length.
    """
    if len(np.unique(counts[counts > 0])) > 1:
        return scattered(where, numbers[:, None], counts)
    width = one_width(where, counts)
    check_memory(where, 4 * len(counts) * width)
    vectors = np.full((len(counts), width), np.nan, np.float32)
    vectors[counts > 0] = numbers.reshape(-1, width)
    return from_array(where, vectors)


def scattered(where: str, flat: Array, counts: IntArray) -> Sequences:
    """Return the sequences of concatenated frames.

    Args:
        where: begins error messages.
        flat: (F, d) the frames of all samples; those that are all NaN are missing.
        counts: (N,) number of frames of each sample, F in total.
    """
    longest = max(1, int(counts.max(initial=0)))
    check_memory(
        f"{where}: {len(counts):,} samples of up to {longest:,} frames",
        4 * len(counts) * longest * flat.shape[1],
    )
    frames = np.zeros((len(counts), longest, flat.shape[1]), np.float32)
    present = np.zeros((len(counts), longest), bool)
    rows = np.repeat(np.arange(len(counts)), counts)
    positions = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    missing: BoolArray = np.all(np.isnan(flat), axis=1)
    frames[rows, positions] = np.where(missing[:, None], 0, flat)
    present[rows, positions] = ~missing
    marked = bool(missing.any() or (counts == 0).any())
    return Sequences(frames, counts, present if marked else None)
