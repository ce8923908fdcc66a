"""Padding lists of sequences of unequal length to one array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from corrkd.data.dataset import FloatArray, IntArray
from corrkd.data.readers.names import LENGTHS, is_no_feature
from corrkd.data.readers.values import as_array
from corrkd.errors import CorrKDError
from corrkd.memory import check_memory


def pad(where: str, samples: Sequence[Any]) -> tuple[FloatArray, IntArray]:
    """Return (N, longest, d) right-padded frames of N sequences (T_i, d), and their lengths (N,).

    Raises:
        CorrKDError: if a sequence is not a table of numbers, or widths differ.
    """
    arrays = [np.asarray(sample) for sample in samples]
    for array in arrays:
        if array.ndim != 2 or array.dtype.kind not in "fiu":
            raise CorrKDError(
                f"{where}: a sample has shape {array.shape} of {array.dtype}; expected (frames, "
                f"width) numbers"
            )
    widths = {array.shape[1] for array in arrays if len(array)} or {
        array.shape[1] for array in arrays
    }
    if len(widths) != 1:
        raise CorrKDError(
            f"{where}: samples of different widths, or none: {sorted(widths)[:8]}; give every "
            f"frame the same features"
        )
    lengths = np.array([len(array) for array in arrays], np.int64)
    width, longest = widths.pop(), max(1, int(lengths.max()))
    check_memory(
        f"{where}: {len(arrays):,} samples of up to {longest:,} frames",
        4 * len(arrays) * longest * width,
    )
    frames = np.zeros((len(arrays), longest, width), np.float32)
    for row, array in enumerate(arrays):
        if len(array):
            frames[row, : len(array)] = array
    return frames, lengths


def with_lists_as_arrays(where: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays, with lists converted: (T_i, d) sequences become a padded array `key` and
    its `key_lengths`.
    """
    result = dict(arrays)
    for key, values in arrays.items():
        items = (
            values.tolist()
            if isinstance(values, np.ndarray) and values.dtype.kind == "O"
            else values
        )
        if (
            not is_no_feature(key)
            and isinstance(items, list | tuple)
            and items
            and all(map(_is_sequence, items))
        ):
            result[key], lengths = pad(f"{where}, {key}", items)
            result.setdefault(f"{key}{LENGTHS}", lengths)
        elif isinstance(values, list | tuple):
            result[key] = as_array(values)
    return result


def _is_sequence(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind in "fiu"
