"""Converting any values of a file to arrays of text or numbers, or raising one line that says why
not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from corrkd.data.dataset import FloatArray, IntArray, StrArray
from corrkd.errors import CorrKDError

LONGEST_NAME = 1000  # characters of an id, a group, a class
MOST_TEXT = 1 << 30  # bytes of an array of names


def as_array(values: Any) -> npt.NDArray[Any]:
    """Return a list as an array; text as objects, which take only as much memory as each string
    needs.
    """
    if isinstance(values, np.ndarray):
        return values
    rows = [row if isinstance(row, list | tuple) else (row,) for row in values]
    text = any(isinstance(value, str | bytes) for row in rows for value in row)
    return np.array(values, object) if text else np.asarray(values)


def strings(values: Any, what: str = "names") -> StrArray:
    """Return text (N,) from strings, bytes (UTF-8, else latin-1) or numbers.

    Args:
        values: N values.
        what: the values, as "mosi, train: ids"; begins the error message.

    Raises:
        CorrKDError: if a text is too long: in an array, all take as much memory as the longest.
    """
    items = values if isinstance(values, list) else np.asarray(values, object).ravel()
    texts = [_text(value) for value in items]
    longest = max(map(len, texts), default=0)
    if longest > LONGEST_NAME or 4 * longest * len(texts) > MOST_TEXT:
        raise CorrKDError(
            f"{what}: one of {len(texts):,} has {longest:,} characters; that is too long for a name"
        )
    return np.array(texts, dtype=np.str_)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.decode("latin-1")
    if isinstance(value, np.ndarray):
        return (
            _text(value.item())
            if value.size == 1
            else " ".join(_text(x) for x in value.ravel().tolist())
        )
    return str(value).encode("utf-8", "replace").decode()


def integers(where: str, values: Any, what: str) -> IntArray:
    """Return (N,) or (N, Q) integers from whole numbers of any type. Raises CorrKDError for NaN,
    fractions and text.
    """
    numbers = numeric(where, values, what)
    if not np.isfinite(numbers).all():
        raise CorrKDError(f"{where}: {what} contain NaN or infinite values")
    if (np.abs(numbers) >= 2**53).any():
        raise CorrKDError(f"{where}: {what} are out of range")
    if (numbers != np.round(numbers)).any():
        raise CorrKDError(
            f"{where}: {what} are not whole numbers; real-valued labels belong in an array named "
            f"`scores`"
        )
    return numbers.astype(np.int64)


def numeric(where: str, values: Any, what: str) -> npt.NDArray[np.float64]:
    """Return a float64 array from numbers of any type. Raises CorrKDError if there are other
    values.
    """
    try:
        return np.asarray(values, np.float64)
    except (ValueError, TypeError):
        raise CorrKDError(f"{where}: {what} are not numbers") from None


def column(where: str, values: Any, what: str, count: int) -> npt.NDArray[np.float64]:
    """Return (N,) numbers from (N,), (N, 1) or (N, 1, 1)."""
    numbers = numeric(where, values, what)
    if numbers.size != count:
        raise CorrKDError(
            f"{where}: {what} have shape {numbers.shape}, expected one for each of {count} samples"
        )
    return numbers.reshape(count)


def ranks_within(groups: StrArray, values: npt.NDArray[Any]) -> IntArray:
    """Return the rank of each value within its group, (N,) from 0; equal values in their order."""
    order = np.lexsort((values, groups))
    _, first, group = np.unique(groups[order], return_index=True, return_inverse=True)
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.arange(len(values)) - first[group]
    return ranks


def clean(where: str, array: Any) -> tuple[FloatArray, int, int]:
    """Return (N, T, d) finite float32 in new memory, and the numbers of NaN and infinite values,
    which became zero.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise CorrKDError(f"{where}: not an array of numbers")
    if array.ndim not in (2, 3):
        raise CorrKDError(
            f"{where}: shape {array.shape}, expected (samples, frames, width) or (samples, width)"
        )
    if 0 in array.shape[1:]:
        raise CorrKDError(
            f"{where}: zero width or no frames (shape {array.shape}); leave the modality out"
        )
    with np.errstate(over="ignore"):
        frames = np.array(array, np.float32, order="C", copy=True)
    nan, inf = int(np.isnan(frames).sum()), int(np.isinf(frames).sum())
    if nan or inf:
        np.nan_to_num(frames, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return frames if frames.ndim == 3 else frames[:, None, :], nan, inf
