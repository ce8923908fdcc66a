"""Reading objects in memory (data frames, Hugging Face datasets, Arrow tables, dicts of arrays) as
a `MultimodalDataset`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from corrkd.data.dataset import MultimodalDataset
from corrkd.data.readers import tables
from corrkd.data.readers.names import SPLIT_NAMES
from corrkd.data.readers.options import ReadOptions
from corrkd.data.readers.sequences import Array, Sequences, from_array, from_cells, is_missing
from corrkd.data.readers.tables import Column, Columns
from corrkd.errors import CorrKDError

NAME = "in-memory"  # of a dataset without a name
FORMS = (
    "a path, a MultimodalDataset, a data frame, a datasets.Dataset, or a dict of arrays such as "
    "{'audio': X, 'label': y}"
)


def read(source: Any, name: str | None, options: ReadOptions) -> MultimodalDataset:
    """Return the dataset in an object in memory.

    Args:
        source: a data frame, a Hugging Face dataset, an Arrow table, a dict of arrays by name, a
            dict of splits of such, or a list with a dict for each sample.
        name: name of the dataset.
        options: only `label` and `targets` are used.

    Raises:
        CorrKDError: if the object is none of these, or cannot be learned from.
    """
    name = name or NAME
    if _are_splits(source):
        parts = {
            str(key): columns_of(f"{name}, {key}", contents) for key, contents in source.items()
        }
        return tables.read_splits(parts, name, _layout(next(iter(source.values()))), options)
    return tables.read(columns_of(name, source), name, _layout(source), options)


def columns_of(where: str, source: Any) -> Columns:
    """Return the columns of an object in memory. Raises CorrKDError if it has none."""
    if _is_frame(source):
        return _frame_columns(where, source)
    if _is_arrow(source):
        from corrkd.data.readers import arrow

        return arrow.columns_of(where, _arrow_table(where, source))
    if isinstance(source, Mapping):
        return {str(key): _column(f"{where}, {key}", values) for key, values in source.items()}
    if (
        isinstance(source, list | tuple)
        and source
        and all(isinstance(row, Mapping) for row in source)
    ):
        keys = dict.fromkeys(str(key) for row in source for key in row)
        return {key: _cells(f"{where}, {key}", [row.get(key) for row in source]) for key in keys}
    raise CorrKDError(f"{where}: a {type(source).__name__} is not a dataset; give {FORMS}")


def _are_splits(source: Any) -> bool:
    """Return whether a mapping's values are datasets: a DatasetDict, or a dict by split."""
    if not isinstance(source, Mapping) or not source:
        return False
    values = list(source.values())
    if all(_is_frame(value) or _is_arrow(value) for value in values):
        return True
    return all(str(key).lower() in SPLIT_NAMES for key in source) and all(
        isinstance(value, Mapping) or _is_frame(value) or _is_arrow(value) or _is_rows(value)
        for value in values
    )


def _is_rows(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)


def _is_frame(value: Any) -> bool:
    pandas = sys.modules.get("pandas")  # imported if the object is a data frame
    return pandas is not None and isinstance(value, pandas.DataFrame)


def _is_arrow(value: Any) -> bool:
    return hasattr(value, "with_format") or hasattr(value, "__arrow_c_stream__")


def _layout(source: Any) -> str:
    if _is_frame(source):
        return "data frame"
    if hasattr(source, "with_format"):
        return "Hugging Face dataset"
    return "Arrow table" if _is_arrow(source) else "arrays in memory"


def _arrow_table(where: str, source: Any) -> Any:
    import pyarrow as pa

    if hasattr(source, "with_format"):
        if not hasattr(source, "__len__"):
            raise CorrKDError(
                f"{where}: a dataset that streams has no length; load it without streaming=True"
            )
        table = source.with_format("arrow")[:]
        return table if isinstance(table, pa.Table) else pa.table(table)
    return pa.table(source)


def _frame_columns(where: str, frame: Any) -> Columns:
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        raise CorrKDError(f"{where}: a column appears twice; rename one (frame.columns says which)")
    columns = {
        name: _series(f"{where}, column {name}", frame.iloc[:, index])
        for index, name in enumerate(names)
    }
    index = frame.index
    if (
        index.dtype.kind not in "iuf"
        and index.nlevels == 1
        and not {"id", "ids"} & {name.lower() for name in names}
    ):
        columns["ids"] = np.array([str(value) for value in index], object)
    return columns


def _series(where: str, series: Any) -> Column:
    kind = series.dtype.kind
    if kind in "iub" and not series.isna().any():
        return np.asarray(series.to_numpy())
    if kind in "iubf":  # also the pandas types with NA
        return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    return _cells(where, series.astype(object).tolist())


def _column(where: str, values: Any) -> Column:
    """Return the column in an entry of a dict."""
    if isinstance(values, Sequences):
        return values
    if hasattr(values, "detach"):  # a tensor
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    if hasattr(values, "toarray"):
        raise CorrKDError(f"{where}: a sparse array; make it dense with .toarray()")
    if hasattr(values, "iloc"):
        return _series(where, values)
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__"):
        raise CorrKDError(
            f"{where}: a {type(values).__name__}, not one value for each sample; give an array, "
            f"a list or a column"
        )
    array = values if isinstance(values, np.ndarray) else None
    if array is None and all(np.ndim(value) == 0 for value in values[:2]):
        return _cells(where, list(values))
    if array is None:
        return _labels_or_sequences(where, values)
    if array.ndim == 1:
        return array if array.dtype.kind in "fiub" else _cells(where, array.tolist())
    if array.dtype.kind == "O":
        return _labels_or_sequences(where, list(array))
    return array if _holds_labels(where) else from_array(where, array)


def _labels_or_sequences(where: str, cells: Sequence[Any]) -> Column:
    if _holds_labels(where):
        try:
            return np.asarray(list(cells), np.float64)
        except (ValueError, TypeError):
            raise CorrKDError(f"{where}: give the same number of labels for each sample") from None
    return from_cells(where, cells)


def _holds_labels(where: str) -> bool:
    """Return whether an entry holds several labels per sample, judging by its name."""
    return tables.is_label(where.rpartition(", ")[2])


def _cells(where: str, cells: list[Any]) -> Column:
    """Return a column of single values, or of lists."""
    some = [cell for cell in cells if not is_missing(cell)]
    if some and all(not isinstance(cell, str | bytes) and np.ndim(cell) for cell in some[:1]):
        return from_cells(where, cells)
    if all(isinstance(cell, bool | np.bool_) for cell in some) and len(some) == len(cells):
        return np.array(cells, bool)
    if all(
        isinstance(cell, int | float | np.integer | np.floating | bool | np.bool_) for cell in some
    ):
        numbers: Array = np.array([np.nan if is_missing(cell) else float(cell) for cell in cells])
        integral = len(some) == len(cells) and bool(
            (np.abs(numbers) < 2**53).all() and (numbers == np.round(numbers)).all()
        )
        return numbers.astype(np.int64) if integral else numbers
    return np.array(
        [
            None if is_missing(cell) else cell if isinstance(cell, str) else _text(cell)
            for cell in cells
        ],
        object,
    )


def _text(cell: Any) -> str:
    return cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)
