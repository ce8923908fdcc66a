"""Reading CSV files of features and labels: their separator and their columns."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from corrkd.data.readers.sequences import from_cells
from corrkd.data.readers.tables import SYNONYMS, Column, Columns
from corrkd.errors import CorrKDError
from corrkd.memory import check_memory
from corrkd.parsing import repeated

if TYPE_CHECKING:
    import pandas as pd

START = 1 << 20  # bytes within which a table's heading and first row must be
SEPARATORS = (",", "\t", ";", "|")
ENDINGS = (".csv", ".tsv")
EXPANSION = 40  # bytes of memory per byte of text, at most: for short words
EMPTY = ["", "NA", "N/A", "n/a", "NaN", "nan", "-nan", "NULL", "null", "None", "<NA>", "#N/A"]
ADVICE = "write a heading of names such as audio_0, audio_1, text_0, label, and one row per sample"


def recognises(path: Path) -> bool:
    """Return whether a file is text with two or more columns, the same number in its first two
    lines.
    """
    return _separator(_lines(path)) is not None


def read(path: Path) -> Columns:
    """Return the columns of a CSV file. Cells with lists in brackets are vectors or frames.

    Raises:
        CorrKDError: if the file is not UTF-8, its rows differ in length, or a column appears twice.
    """
    lines = _lines(path)
    separator = _separator(lines)
    if separator is None:
        raise CorrKDError(f"{path.name}: {_why_not(lines)}")
    names = next(csv.reader(lines[:1], delimiter=separator))
    _check_heading(path.name, names)
    check_memory(path.name, EXPANSION * path.stat().st_size)
    table = _parsed(path, separator, names, decimal=_decimal(lines, separator))
    return {name: _column(f"{path.name}, column {name}", table[name]) for name in names}


def _lines(path: Path) -> list[str]:
    """Return the first two lines that are not empty; [] if the file is not text."""
    with path.open("rb") as file:
        start = file.read(START)
    ends = start.rfind(b"\n")
    try:
        text = (start[: ends + 1] if len(start) == START else start).decode("utf-8-sig")
    except UnicodeDecodeError:
        return []
    if "\0" in text:
        return []
    return [line for line in text.splitlines() if line.strip()][:2]


def _separator(lines: list[str]) -> str | None:
    """Return the separator of the columns of a heading and a first row; None if there is none."""
    if len(lines) < 2:
        return None
    for separator in SEPARATORS:
        counts = {_num_columns(line, separator) for line in lines}
        if len(counts) == 1 and counts.pop() > 1:
            return separator
    return None


def _num_columns(line: str, separator: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=separator)))
    except csv.Error:  # a cell that is too long, or a quote that does not end in this line
        return 0


def _why_not(lines: list[str]) -> str:
    if not lines:
        return "not UTF-8 text; save it as `CSV UTF-8`"
    if len(lines) < 2:
        return f"a single line, not a table; {ADVICE}"
    counts = [_num_columns(line, max(SEPARATORS, key=lines[0].count)) for line in lines]
    return f"the heading has {counts[0]} columns and the first row {counts[1]}; {ADVICE}"


def _check_heading(name: str, names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise CorrKDError(f"{name}: column {repeated(names)!r} appears twice; rename one")
    numbers = [
        text
        for text in names
        if re.fullmatch(r"[+-]?\d*[.,]?\d+(e[+-]?\d+)?", text.strip(), re.IGNORECASE)
    ]
    if len(numbers) > len(names) / 2 and not all(text.strip().isdigit() for text in numbers):
        raise CorrKDError(f"{name}: the first line holds numbers, not names; {ADVICE}")


def _decimal(lines: list[str], separator: str) -> str:
    """Return the decimal mark: a comma if semicolons separate the columns and the first row has
    such numbers.
    """
    return "," if separator == ";" and re.search(r"(?:^|;)-?\d+,\d+(?:;|$)", lines[1]) else "."


def _parsed(path: Path, separator: str, names: list[str], decimal: str) -> pd.DataFrame:
    from corrkd.csv_files import read_csv

    # Ids and names of classes stay text: an id may be 007, a class None.
    text = {
        name
        for name in names
        if name.lower().strip() in {word for words in SYNONYMS.values() for word in words}
    }
    try:
        return read_csv(
            path,
            sep=separator,
            decimal=decimal,
            encoding="utf-8-sig",
            index_col=False,
            low_memory=False,
            keep_default_na=False,
            na_values={name: [""] if name in text else EMPTY for name in names},
            dtype=dict.fromkeys(text, "str"),
        )
    except UnicodeDecodeError:
        raise CorrKDError(f"{path.name}: not UTF-8 text; save it as `CSV UTF-8`") from None
    except ValueError as error:  # includes the ParserError of pandas
        raise CorrKDError(
            f"{path.name}: not a table: {' '.join(str(error).split())[:160]}; {ADVICE}"
        ) from None


def _column(where: str, values: pd.Series[Any]) -> Column:
    if values.dtype.kind in "iub":
        return np.asarray(values)
    if values.dtype.kind == "f":
        return np.asarray(values, np.float64)
    cells = [
        None if not isinstance(value, str) and value != value else value
        for value in values.astype(object)
    ]
    some = [cell for cell in cells if cell is not None]
    if some and all(isinstance(cell, str) and cell.lstrip().startswith("[") for cell in some):
        return from_cells(where, [None if cell is None else _list(where, cell) for cell in cells])
    numbers = _numbers(some)
    if numbers is None:
        return np.array([None if cell is None else str(cell) for cell in cells], object)
    out = np.full(len(cells), np.nan)
    out[[cell is not None for cell in cells]] = numbers
    return (
        out
        if len(numbers) < len(cells) or (numbers != np.round(numbers)).any()
        else out.astype(np.int64)
    )


def _numbers(cells: list[Any]) -> npt.NDArray[np.float64] | None:
    """Return the numbers in cells if all are finite numbers without leading zeros; else None."""
    try:
        numbers = [float(cell) for cell in cells]
    except (ValueError, TypeError):
        return None
    plain = all(math.isfinite(number) and abs(number) < 2**53 for number in numbers)
    coded = any(re.match(r"[+-]?0\d", str(cell)) for cell in cells)
    return np.array(numbers) if plain and not coded else None


def _list(where: str, text: str) -> Any:
    """Return the list in a cell, as Python or JSON write it."""
    try:
        return json.loads(re.sub(r"\b(nan|NaN|None)\b", "null", text))
    except (ValueError, RecursionError):
        raise CorrKDError(
            f"{where}: {text[:40]!r} is not a list of numbers; write [0.1, 0.2] or [[0.1, 0.2], "
            f"[0.3, 0.4]], or save the table as Parquet"
        ) from None
