"""Reading and writing CSV files without text that a spreadsheet would take for a formula
(`corrkd.escape.csv_text`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from corrkd.escape import csv_original, csv_text
from corrkd.files import write_bytes


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index, atomically. Raises CorrKDError if it cannot be written."""
    write_bytes(path, csv_bytes(table))


def csv_bytes(table: pd.DataFrame) -> bytes:
    """Return the contents of the file that `write_csv` writes."""
    return _mapped(table, csv_text).to_csv(index=False, lineterminator="\n").encode()


def read_csv(file: Path | BinaryIO, **options: Any) -> pd.DataFrame:
    """Read a CSV file, from `write_csv` or elsewhere, with numbers exact to the last bit. `options`
    are passed to `pandas.read_csv`.
    """
    # By default, pandas before 3.1 may round the last bit.
    if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1):
        options["float_precision"] = "round_trip"
    return _mapped(pd.read_csv(file, **options), csv_original)


def _mapped(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """Return the table with a function applied to its headings and text, but not to numbers."""
    out = table.rename(columns=lambda name: change(name) if isinstance(name, str) else name)
    for name, column in out.items():
        if not pd.api.types.is_numeric_dtype(column):
            changed = {text: change(text) for text in column.unique() if isinstance(text, str)}
            if any(text != new for text, new in changed.items()):
                out[name] = column.map(lambda value, changed=changed: changed.get(value, value))
    return out
