"""Reading Parquet and Arrow files, and folders that `datasets` saved, without a Python object for
each number.

The files are untrusted: the declared sizes are counted before anything is read, and offsets are
checked before they are followed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from corrkd.data.dataset import IntArray
from corrkd.data.readers.bounds import Budget
from corrkd.data.readers.sequences import Array, Sequences, from_array, one_width, scattered
from corrkd.data.readers.tables import Column, Columns
from corrkd.errors import CorrKDError
from corrkd.files import leads_elsewhere
from corrkd.parsing import read_json, refusing, repeated

PARQUET, ARROW = b"PAR1", b"ARROW1"
ROWS = 1024  # rows read at a time
STATE, SPLITS_FILE = "state.json", "dataset_dict.json"  # of `datasets`
LONGEST_SCHEMA = 1 << 20  # bytes of `datasets`' description of the columns
INDEX = "__index_level_"  # begins the names of pandas' index columns
LARGEST_WIDTH = 8  # bytes of a number


# --------------------------------------------------------------------------------------------------
# files


def read_parquet(path: Path) -> Columns:
    """Return the columns of a Parquet file. Raises CorrKDError if it is damaged or declares far
    more than its size.
    """
    budget = Budget.of(path)
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.metadata
            groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
            for group in groups:
                for chunk in (group.column(index) for index in range(metadata.num_columns)):
                    budget.take(
                        path.name,
                        max(chunk.total_uncompressed_size, LARGEST_WIDTH * chunk.num_values),
                    )
            schema = file.schema_arrow
            _check_names(path.name, schema.names)
            chosen = [name for name in schema.names if is_read(schema.field(name).type)]
            batches = list(_counted(path, file.iter_batches(ROWS, columns=chosen)))
            table = pa.Table.from_batches(
                batches, pa.schema([schema.field(name) for name in chosen], schema.metadata)
            )
    except (pa.ArrowException, OSError, OverflowError) as error:
        raise CorrKDError(
            f"{path.name}: a damaged Parquet file ({' '.join(str(error).split())[:120]}); download "
            f"or write it again"
        ) from None
    return columns_of(path.name, table)


def read_arrow(path: Path) -> Columns:
    """Return the columns of an Arrow file (Feather). Raises CorrKDError if it is damaged."""
    return columns_of(path.name, _arrow_table(path))


def recognises_folder(folder: Path) -> bool:
    """Return whether `datasets.Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote a
    folder.
    """
    return (folder / STATE).is_file() or (folder / SPLITS_FILE).is_file()


def read_folder(folder: Path) -> Columns | dict[str, Columns]:
    """Return the columns of a saved dataset, or those of each split. Raises CorrKDError if it is
    damaged.
    """
    if not (folder / SPLITS_FILE).is_file():
        return columns_of(folder.name, _saved_table(folder))
    with refusing(folder / SPLITS_FILE):
        splits = [str(split) for split in read_json(folder / SPLITS_FILE)["splits"]]
    for split in splits:
        if leads_elsewhere(split):
            raise CorrKDError(
                f"{folder / SPLITS_FILE}: split {split!r} is not the name of a folder in it; save "
                f"the dataset again"
            )
    return {
        split: columns_of(f"{folder.name}, {split}", _saved_table(folder / split))
        for split in splits
    }


def files_of_folder(folder: Path) -> list[Path]:
    """Return the data files of a saved dataset."""
    return sorted([*folder.glob("*.arrow"), *folder.glob("*/*.arrow")])


def _saved_table(folder: Path) -> pa.Table:
    path = folder / STATE
    state = read_json(path)
    with refusing(path):
        names = [str(entry["filename"]) for entry in state["_data_files"]]
        if state.get("_indices_files") or state.get("_indices_data_files"):
            raise CorrKDError(
                f"{folder}: has an index besides its rows; save it again after "
                f"dataset.flatten_indices()"
            )
    for name in names:
        if leads_elsewhere(name):
            raise CorrKDError(
                f"{path}: {name!r} is not the name of a file in its folder; save the dataset again"
            )
    if not names:
        raise CorrKDError(f"{folder}: no data; save the dataset again with save_to_disk")
    tables = [_arrow_table(folder / name) for name in names]
    try:
        return pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise CorrKDError(
            f"{folder}: its files differ in their columns ({str(error).splitlines()[0][:120]}); "
            f"save the dataset again"
        ) from None


def _arrow_table(path: Path) -> pa.Table:
    """Return the table in an Arrow file or stream; each batch is counted and checked."""
    try:
        with path.open("rb") as file:
            start = file.read(len(ARROW))
        with pa.memory_map(str(path)) as source:
            if start == ARROW:
                reader = pa.ipc.open_file(source)
                batches = _counted(
                    path, (reader.get_batch(index) for index in range(reader.num_record_batches))
                )
            else:
                reader = pa.ipc.open_stream(source)
                batches = _counted(path, iter(reader))
            _check_names(path.name, reader.schema.names)
            return pa.Table.from_batches(batches, reader.schema)
    except (pa.ArrowException, OSError, OverflowError) as error:
        raise CorrKDError(
            f"{path.name}: a damaged Arrow file ({' '.join(str(error).split())[:120]}); download "
            f"or write it again"
        ) from None


def _counted(path: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the batches, each within the limits of the file and with valid offsets."""
    budget = Budget.of(path)
    for batch in batches:
        batch.validate(full=True)
        budget.take(path.name, batch.nbytes)
        yield batch


def _check_names(where: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise CorrKDError(f"{where}: column {repeated(names)!r} appears twice; rename one")


# --------------------------------------------------------------------------------------------------
# columns


def columns_of(where: str, table: pa.Table) -> Columns:
    """Return a table's columns: numbers, text, and lists as sequences. Structs, images and the like
    become text columns that are not used.

    Args:
        where: begins error messages.
        table: a checked table; its schema contains the description of the classes by `datasets`.

    Raises:
        CorrKDError: if frames of a column differ in width.
    """
    class_names = _class_names(table.schema.metadata)
    columns: Columns = {}
    for name in table.column_names:
        if name.startswith(INDEX):
            continue
        columns[name] = _column(f"{where}, column {name}", table.column(name))
        if (
            name in class_names
            and "class_names" not in columns
            and name.lower() in ("label", "labels", "y", "target", "class")
        ):
            columns["class_names"] = np.array(class_names[name], object)
            columns[name] = _without_unlabelled(columns[name])
    return columns


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return the names of the classes by column, from the ClassLabel of `datasets`."""
    text = (metadata or {}).get(b"huggingface", b"")
    if not text or len(text) > LONGEST_SCHEMA:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
        return {
            name: [str(label) for label in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _without_unlabelled(column: Column) -> Column:
    """Return a column of classes in which -1, which `datasets` gives to samples without a label, is
    missing.
    """
    if (
        not isinstance(column, np.ndarray)
        or column.dtype.kind not in "iuf"
        or not (column == -1).any()
    ):
        return column
    return np.where(column == -1, np.nan, column.astype(np.float64))


def is_read(kind: pa.DataType) -> bool:
    """Return whether columns of a type hold numbers, text, or lists of numbers up to two deep."""
    kind, depth = _storage(kind), 0
    while _is_list(kind):
        kind, depth = _storage(kind.value_type), depth + 1
    if depth:
        return depth <= 2 and _is_number(kind)
    return _is_number(kind) or _is_text(kind) or pa.types.is_null(kind)


def _column(where: str, column: pa.ChunkedArray) -> Column:
    if not is_read(column.type):
        return np.full(len(column), None, object)
    kind = _storage(column.type)
    if _is_list(kind):
        return _sequences(where, column)
    if _is_number(kind):
        parts = [_numbers(chunk) for chunk in column.chunks]
        return np.concatenate(parts) if parts else np.zeros(0)
    return np.array(column.to_pylist(), object)


def _sequences(where: str, column: pa.ChunkedArray) -> Sequences:
    """Return the sequences of a column of lists; vectors if no list is nested and all have the same
    length.
    """
    nested = _is_list(_storage(_storage(column.type).value_type))
    counts: list[IntArray] = []
    widths: list[IntArray] = []
    numbers: list[Array] = []
    for chunk in column.chunks:
        values, num_frames = _unnested(chunk)
        counts.append(num_frames)
        if nested:
            values, of_frames = _unnested(values)
            widths.append(of_frames)
        with np.errstate(over="ignore"):
            numbers.append(_numbers(values).astype(np.float32))
    count = np.concatenate(counts) if counts else np.zeros(0, np.int64)
    flat = np.concatenate(numbers) if numbers else np.zeros(0, np.float32)
    if not nested:
        if len(np.unique(count[count > 0])) > 1:
            return scattered(where, flat[:, None], count)
        vectors = np.full((len(count), one_width(where, count)), np.nan, np.float32)
        vectors[count > 0] = flat.reshape(-1, vectors.shape[1])
        return from_array(where, vectors)
    of_frames = np.concatenate(widths) if widths else np.zeros(0, np.int64)
    frames = np.full((len(of_frames), one_width(where, of_frames)), np.nan, np.float32)
    frames[of_frames > 0] = flat.reshape(-1, frames.shape[1])
    return scattered(where, frames, count)


def _unnested(array: pa.Array) -> tuple[pa.Array, IntArray]:
    """Return the values of all lists one after the other, and the length of each, (N,); 0 for
    null.
    """
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    lengths = (
        pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    )
    values = array.flatten()
    if len(values) != lengths.sum():  # a fixed-size list whose nulls have values
        values = array.filter(array.is_valid()).flatten()
    return values, lengths


def _numbers(array: pa.Array) -> Array:
    """Return the numbers, NaN for null."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if array.null_count or not (pa.types.is_integer(array.type) or pa.types.is_boolean(array.type)):
        array = pc.cast(array, pa.float64(), safe=False)
    return array.to_numpy(zero_copy_only=False)


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    # string views, as polars writes; the oldest supported pyarrow has none
    is_view = getattr(pa.types, "is_string_view", None)
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or (is_view is not None and is_view(kind))
    )
