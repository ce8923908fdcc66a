"""Writing predictions from JSON lines to one table (.csv, .parquet or .jsonl), row by row.
docs/using.md describes the columns.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from corrkd.errors import CorrKDError
from corrkd.escape import csv_text
from corrkd.targets.registry import target_from_json

GROUP = 8192  # rows of a Parquet row group


def columns(card: Mapping[str, Any], *, splits: bool) -> pa.Schema:
    """Return the columns with their types, in order.

    Args:
        card: card of the model.
        splits: whether the lines have a split.
    """
    text, number, target = pa.string(), pa.float64(), target_from_json(card["target"])
    out = {"id": text} | ({"split": text} if splits else {})
    out |= ({"question": text} if target.questions else {}) | (
        {} if target.has_classes else {"score": number}
    )
    out |= {"label": text} | (
        {f"p_{name}": number for name in target.classes} if target.has_classes else {}
    )
    out |= {f"used_{m}": number for m in card["modalities"]}
    out |= {"condition": text, "weighted_f1": number, "harder": pa.bool_()}
    if (card.get("evaluated") or {}).get("level") is not None:
        out |= {"in_set": text} if target.has_classes else {"low": number, "high": number}
    return pa.schema(list(out.items()))


# prefix of the optional first line in the file of a batch
SUM_LINE = "# sha256 of what follows: "


def rows(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Yield the rows in files of JSON lines, one per sample or per sample and question. Raises
    CorrKDError if a line is damaged.
    """
    for path in files:
        with path.open(encoding="utf-8") as file:
            try:
                for line in file:
                    if not line.startswith(SUM_LINE):
                        yield from _rows(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise CorrKDError(
                    f"{path}: damaged; delete it, so that its samples are predicted again"
                ) from None


def _rows(prediction: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    reliability, held = (
        prediction["reliability"] or {"measured": {}},
        prediction.get("prediction_set"),
    )
    common = {
        **{key: prediction.get(key) for key in ("id", "split", "score")},
        **{f"used_{m}": share for m, share in prediction["used"].items()},
        **{key: reliability.get(key) for key in ("condition", "harder")},
        "weighted_f1": reliability["measured"].get("weighted_f1"),
        **dict(zip(("low", "high"), prediction.get("interval", ()), strict=False)),
    }
    if isinstance(prediction["label"], str):
        yield {
            **common,
            "label": prediction["label"],
            **_shares(prediction.get("probabilities", {}), held),
        }
        return
    for question, label in prediction["label"].items():
        shares = _shares(prediction["probabilities"][question], held and held[question])
        yield {**common, "question": question, "label": label, **shares}


def _shares(probabilities: Mapping[str, float], held: Sequence[str] | None) -> dict[str, Any]:
    return {f"p_{name}": p for name, p in probabilities.items()} | {
        "in_set": None if held is None else "|".join(held)
    }


def _write_csv(out: Path, files: Sequence[Path], schema: pa.Schema) -> None:
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(csv_text, schema.names))
        for row in rows(files):
            values = (row.get(name) for name in schema.names)
            writer.writerow(
                [csv_text(value) if isinstance(value, str) else value for value in values]
            )


def _write_parquet(out: Path, files: Sequence[Path], schema: pa.Schema) -> None:
    remaining = rows(files)
    with pq.ParquetWriter(out, schema) as writer:
        while group := list(islice(remaining, GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _write_jsonl(out: Path, files: Sequence[Path], schema: pa.Schema) -> None:
    with out.open("wb") as file:
        for path in files:
            with path.open("rb") as source:
                file.writelines(line for line in source if not line.startswith(SUM_LINE.encode()))


WRITERS: dict[str, Callable[[Path, Sequence[Path], pa.Schema], None]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".jsonl": _write_jsonl,
}
"""Functions (output, files of JSON lines, columns) that write a table, by suffix of the output."""
