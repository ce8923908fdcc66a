"""Numbers from papers in a CSV file, which are shown next to the results but enter no statistic."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from corrkd.errors import CorrKDError
from corrkd.missing.conditions import AVERAGE, COMPLETE
from corrkd.report.run_folder import RunFolder
from corrkd.report.tables import letters, subset_headings
from corrkd.targets.measures import metric_of

COLUMNS = ("method", "condition", "metric", "value")

Reported = dict[tuple[str, str], dict[str, dict[str, float]]]
"""(dataset folder, metric) -> row heading -> condition -> value in the scale of the table."""


def shown_metrics(run: RunFolder) -> list[str]:
    """Return the metrics that have an inter-modality table."""
    return list(run.card.target.tabled_metrics)


def read_reported(file: Path, runs: Mapping[str, RunFolder]) -> Reported:
    """Read the columns method, condition, metric, value and, if present, dataset and source.

    Args:
        file: CSV file. A condition is a name or the heading of a table ("average", "Avg.",
            "{l,a}"); values are in the scale of the table.
        runs: datasets of the plan by folder. The column `dataset` contains a folder or the name of
            the dataset in it; it is needed if there are several datasets.

    Raises:
        CorrKDError: on the first mistake, with the row, the column and the allowed values.
    """
    out: Reported = {}
    try:
        with Path(file).open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text, strict=True)
            lacking = [c for c in COLUMNS if c not in (reader.fieldnames or [])]
            if lacking:
                raise CorrKDError(
                    f"{file}: no column {lacking[0]}; expected {', '.join(COLUMNS)}, and "
                    f"dataset, source"
                )
            for row in reader:
                where = f"{file}: row {reader.line_num}"
                if None in row or None in row.values():
                    raise CorrKDError(f"{where}: expected {len(reader.fieldnames or [])} columns")
                _take({k: v.strip() for k, v in row.items()}, runs, out, where)
    except OSError as error:
        raise CorrKDError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorrKDError(f"{file}: not a CSV file in UTF-8 ({error})") from None
    return out


def _take(row: Mapping[str, str], runs: Mapping[str, RunFolder], out: Reported, where: str) -> None:
    dataset = _dataset(row.get("dataset", ""), runs, where)
    run = runs[dataset]
    if not row["method"]:
        raise CorrKDError(f"{where}: method is empty")
    condition = _conditions(run).get(_spelled(row["condition"]))
    if condition is None:
        allowed = ", ".join(subset_headings(run).values())
        raise CorrKDError(f"{where}: unknown condition {row['condition']!r}; available: {allowed}")
    metric = row["metric"]
    if metric not in shown_metrics(run):
        raise CorrKDError(
            f"{where}: unknown metric {metric!r}; available: {', '.join(shown_metrics(run))}"
        )
    source = f"reported: {row['source']}" if row.get("source") else "reported"
    values = out.setdefault((dataset, metric), {}).setdefault(f"{row['method']} ({source})", {})
    if condition in values:
        raise CorrKDError(
            f"{where}: condition {row['condition']!r} of {row['method']} appears twice"
        )
    values[condition] = _value(row["value"], metric, where)


def _dataset(wanted: str, runs: Mapping[str, RunFolder], where: str) -> str:
    matches = [
        name for name, run in runs.items() if wanted in (name, run.card.dataset.name) or not wanted
    ]
    if len(matches) == 1:
        return matches[0]
    problem = (
        f"unknown dataset {wanted!r}"
        if wanted
        else "dataset is empty, but there are several datasets"
    )
    raise CorrKDError(
        f"{where}: {problem if not matches or not wanted else f'dataset {wanted!r} is ambiguous'}; "
        f"expected {' or '.join(runs)}"
    )


def _value(text: str, metric: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CorrKDError(f"{where}: value {text!r} is not a number")
    if metric_of(metric).scale == 100.0 and not (value == 0.0 or 1.0 < value <= 100.0):
        raise CorrKDError(
            f"{where}: value {text} is not in the table's scale, {metric_of(metric).title}"
        )
    return value


def _conditions(run: RunFolder) -> dict[str, str]:
    """Return the conditions by all accepted spellings."""
    headings = subset_headings(run)
    names = {_spelled(text): name for name, heading in headings.items() for text in (name, heading)}
    everything = {_spelled("{" + ",".join(letters(run).values()) + "}"): COMPLETE, "avg": AVERAGE}
    return everything | names


def _spelled(condition: str) -> str:
    """Return a common spelling, such as for "{a, l}" and "{l,a}" or "audio+language" and
    "language+audio".
    """
    text = condition.strip().casefold()
    if text.startswith("{") and text.endswith("}"):
        return "{" + ",".join(sorted(word.strip() for word in text[1:-1].split(","))) + "}"
    return "+".join(sorted(text.split("+")))
