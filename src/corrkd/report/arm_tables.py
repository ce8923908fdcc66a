"""Tables that compare arms: standings, differences, ranks, ablation, costs, and the inter-modality
table with numbers from papers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from corrkd.evaluation.comparison import Interval, ranks
from corrkd.missing.conditions import AVERAGE, COMPLETE, missing_subsets
from corrkd.report import tables
from corrkd.report.reported import Reported
from corrkd.report.run_folder import AbsentError, RunFolder
from corrkd.report.standings import LEVEL, NOT_TESTED, Clusters, Standing
from corrkd.report.tables import FRACTION, Cell, Table

BLOCK = "Reported elsewhere, not run here"
ALL = "all"
CORRKD = "corrkd"  # the arm whose losses the ablation leaves out
FAMILIES = {"published methods": "baseline", "controls": "control", "other methods": "method"}


def inter_modality(
    run: RunFolder, metric: str, reported: Mapping[str, Mapping[str, float]]
) -> Table:
    """Return the paper's inter-modality table without the ablation arms, followed by `reported`,
    the numbers from papers by row heading and condition.

    With few arms, it includes the reference minus the control. With more, `differences_table` shows
    such differences.
    """
    main = tables.main_methods(run)
    table = (
        tables.with_difference(run, metric, main)
        if run.has_few_arms
        else tables.inter_modality(run, metric, main)
    )
    complete = [
        m.title for m in tables.rows_of(run) if m.trains_on == "complete" and m.name in main
    ]
    caption = table.caption + (
        f" Trained on complete samples only: {', '.join(complete)}." if complete else ""
    )
    if not reported:
        return replace(table, caption=caption)
    headings = tables.subset_headings(run)
    cells = {
        row: {headings[c]: Cell(v) for c, v in values.items()} for row, values in reported.items()
    }
    frame = pd.DataFrame.from_dict(cells, orient="index", dtype=object).reindex(
        columns=table.columns
    )
    below = {BLOCK: frame.astype(object).where(frame.notna(), None)}
    note = (
        " Reported rows are numbers from papers, measured under other protocols. They are part "
        "of no statistic and are never marked."
    )
    return replace(table, caption=caption + note, blocks={**table.blocks, **below})


def of_dataset(reported: Reported, dataset: str, metric: str) -> Mapping[str, Mapping[str, float]]:
    """Return the numbers that papers report for a dataset and a metric."""
    return reported.get((dataset, metric), {})


def standings_table(
    run: RunFolder,
    name: str,
    standing: Mapping[str, Standing],
    clusters: Clusters,
    ranked: Mapping[str, float],
) -> Table:
    """Return the table of Avg. with both intervals, the difference from the reference with its
    interval, and p. `ranked` becomes the last column unless it is empty.
    """
    title = tables.reference_title(run)
    values = tables.seed_values(run, "weighted_f1")
    over = f"{clusters.name}s × seeds"
    frame = pd.DataFrame(index=list(standing), dtype=object)
    columns: dict[str, list[Any]] = {
        "Seeds": [s.seeds for s in standing.values()],
        "Avg., t over seeds": [
            tables.cell(tables.of(values, m, AVERAGE), FRACTION) for m in standing
        ],
        f"Avg., {over}": [_percentile(s.average) for s in standing.values()],
        f"minus {title}, {over}": [
            _percentile(s.difference, signed=True) for s in standing.values()
        ],
        "p": [_p(s.p) for s in standing.values()],
        "p, Holm": [_p(s.adjusted) for s in standing.values()],
        "Result": ["reference" if m == run.reference else s.verdict for m, s in standing.items()],
    }
    if ranked:
        columns["Mean rank"] = [Cell(ranked[m]) if m in ranked else None for m in standing]
    for heading, entries in columns.items():
        frame[heading] = pd.Series(entries, frame.index, dtype=object)
    tested = sum(s.p is not None for s in standing.values())
    caption = (
        f"Avg. of weighted F1 × 100 over the missing subsets on the {run.card.split} split. “t "
        f"over seeds”: mean ± half-width of the Student-t 95 % interval over seeds. “{over}”: mean "
        f"and 95 % percentile bootstrap interval over the split's {clusters.words} crossed with "
        f"seeds, {clusters.draws:,} draws. “minus {title}”: difference, with the same "
        f"{clusters.name}s and seeds drawn for both. p: two-sided sign-flip test over "
        f"{clusters.name}s; “p, Holm” is adjusted for the {tested} "
        f"test{'' if tested == 1 else 's'} of this table. Result: significant where that p is "
        f"below {LEVEL} and the interval of the difference excludes zero."
    )
    caption += " Mean rank: over all conditions of the section on ranks." if ranked else ""
    return Table(name, caption, "Method", {"": frame.rename(index=tables.method_titles(run))})


def ranking_table(run: RunFolder, standing: Mapping[str, Standing]) -> Table:
    """Return the ranking of trained methods without the ablation arms by Avg., from high to low;
    equal methods share a rank.

    Args:
        run: folder of the dataset.
        standing: standings by method; methods without one are shown as not tested.

    Raises:
        AbsentError: if no method has an Avg.
    """
    values = tables.seed_values(run, "weighted_f1")
    averages, complete = (
        {m: tables.cell(tables.of(values, m, c), FRACTION) for m in tables.main_methods(run)}
        for c in (AVERAGE, COMPLETE)
    )
    means = {m: round(c.mean, 2) for m, c in averages.items() if c and c.mean == c.mean}
    if not means:
        raise AbsentError("results.csv contains nothing to rank.")
    order = sorted(means, key=lambda m: -means[m])
    compared = f"Compared with {tables.reference_title(run)}"
    rows = {
        m: {
            "Rank": 1 + sum(other > means[m] for other in means.values()),
            "Avg.": averages[m],
            "complete": complete[m],
            compared: "reference"
            if m == run.reference
            else standing[m].verdict
            if m in standing
            else NOT_TESTED,
        }
        for m in order
    }
    frame = pd.DataFrame.from_dict(rows, orient="index").astype(object)
    caption = (
        f"Methods ranked by Avg., the mean weighted F1 × 100 over the missing subsets, on the "
        f"{run.card.split} split; equal methods share a rank. {tables.interval_text(run, order)} "
        f"The last column is the result of the test in the table below."
    )
    return Table("ranking", caption, "Method", {"": tables.titled(run, frame)})


def differences_table(run: RunFolder) -> Table:
    """Return the table of each method minus the reference, by subset and paired over seeds."""
    values, titles = tables.seed_values(run, "weighted_f1"), tables.method_titles(run)
    headings = tables.subset_headings(run)
    cells = {
        h: {
            m: tables.paired(values, c, FRACTION, m, run.reference)
            for m in titles
            if m != run.reference
        }
        for c, h in headings.items()
    }
    frame = pd.DataFrame(cells, dtype=object).dropna(how="all")
    if frame.empty:
        raise AbsentError(f"No method shares a seed with {titles[run.reference]}.")
    caption = (
        f"Weighted F1 × 100 minus that of {titles[run.reference]} on the {run.card.split} split, "
        "paired over the seeds of both: mean ± half-width of the Student-t 95 % interval over "
        f"seeds. {tables.subset_legend(run)}"
    )
    return Table(
        "differences", caption, "Method", {"": tables.titled(run, frame.where(frame.notna(), None))}
    )


def _percentile(interval: Interval | None, signed: bool = False) -> Cell | None:
    if interval is None:
        return None
    mean, low, high = (FRACTION.scale * v for v in interval)
    return Cell(mean, ends=(low, high), signed=signed)


def _p(value: float | None) -> Cell | None:
    return None if value is None else Cell(value, digits=4)


def ranked_conditions(run: RunFolder) -> tuple[list[str], list[str]]:
    """Return the names of the missing subsets, then complete, and the names of ratios above 0."""
    subsets = dict.fromkeys([*(c.name for c in missing_subsets(run.modalities)), COMPLETE])
    ratios = [name for name, ratio in tables.ratio_headings(run).items() if float(ratio) > 0]
    return list(subsets), ratios


def mean_ranks(run: RunFolder, conditions: Sequence[str]) -> dict[str, float]:
    """Return the mean rank of each method by weighted F1 averaged over seeds, without the ablation
    arms and methods that were not tested under any of the conditions.
    """
    values = (
        tables.seed_values(run, "weighted_f1").groupby(["method", "condition"]).mean().unstack()
    )
    scored = [m for m in tables.main_methods(run) if m in values.index]
    scores = values.reindex(index=scored, columns=list(conditions)).dropna(axis=1, how="all")
    return (
        dict(zip(scored, map(float, ranks(scores.to_numpy())), strict=True))
        if scores.shape[1]
        else {}
    )


def ranks_table(run: RunFolder) -> Table:
    """Return the table of ranks by condition, with mean ranks over the ratios and over all."""
    subsets, ratios = ranked_conditions(run)
    headings = tables.subset_headings(run)
    groups = {**{headings[c]: [c] for c in subsets}, "ratios": ratios, "all": [*subsets, *ratios]}
    columns = {h: mean_ranks(run, conditions) for h, conditions in groups.items() if conditions}
    cells = {
        h: {m: Cell(rank, digits=2 if h in ("ratios", "all") else 1) for m, rank in c.items()}
        for h, c in columns.items()
    }
    frame = pd.DataFrame(
        cells,
        index=[m for m in tables.main_methods(run) if any(m in c for c in cells.values())],
        dtype=object,
    )
    frame = frame.dropna(axis=1, how="all")
    if frame.empty:
        raise AbsentError("results.csv contains nothing to rank.")
    caption = (
        f"Ranks by weighted F1, averaged over seeds, on the {run.card.split} split; 1 is the "
        f"best, and equal methods share the mean of their ranks. “ratios”: mean rank over "
        f"{len(ratios)} missing ratios above 0; “all”: mean rank over these, the missing subsets "
        f"and complete. Ranks have no interval. "
        f"{tables.subset_legend(run)}"
    )
    return Table("ranks", caption, "Method", {"": frame.rename(index=tables.method_titles(run))})


def ablation_table(run: RunFolder) -> Table:
    """Return the ablation table over the missing subsets: CorrKD, the reference, CorrKD with losses
    left out or replaced, and the control without distillation.
    """
    arms = tables.ablation_methods(run)
    if not tables.seed_counts(run, arms):
        raise AbsentError("No arm of the ablation has results.")
    every = tables.main_methods(run)
    around = [m for m in (CORRKD, run.reference) if m in every]
    order = list(dict.fromkeys([*around, *arms, *filter(None, [run.card.control])]))
    frame = tables.compared(run, "weighted_f1", tables.subset_headings(run), FRACTION, order)
    frame = frame.loc[[m for m in order if m in frame.index]]
    caption = (
        f"Ablation: weighted F1 × 100 on the {run.card.split} split with a loss of CorrKD left out "
        f"or replaced. {tables.subset_legend(run)} {tables.reading(run, order)}"
    )
    return Table("ablation", caption, "Method", {"": tables.titled(run, frame)})


def size_table(run: RunFolder) -> Table:
    """Return the table of parameters and epochs of each method: mean over seeds, least and most."""
    columns = {"Parameters": ("parameters", 1.0, 0), "Epochs": ("epochs", 1.0, 1)}
    caption = (
        "Parameters and training epochs: mean over seeds, with the least and the most where seeds "
        "differ (no confidence interval)."
    )
    return Table("size", caption, "Method", {"": tables.titled(run, _costs(run, columns))})


def time_table(run: RunFolder) -> Table:
    """Return the table of training time (seconds), peak memory (MB) and device of each method: mean
    over seeds, least and most.
    """
    columns = {
        "Training, seconds": ("train_seconds", 1.0, 1),
        "Peak memory, MB": ("peak_memory_bytes", 1e-6, 0),
    }
    frame, costs = _costs(run, columns), run.costs()
    devices = {
        m: sorted(set(costs.loc[costs["method"] == m, "device"]) - {""}) for m in frame.index
    }
    if any(devices.values()):
        frame["Device"] = pd.Series(
            {m: ", ".join(names) or None for m, names in devices.items()}, dtype=object
        )
    caption = (
        f"Time and memory of one training on {run.card.dataset.name}: mean over seeds, with the "
        "least and the most where seeds differ (no confidence interval). Peak memory is the memory "
        "allocated on the GPU if one was used, otherwise the peak resident memory of the process, "
        "including data and libraries; 1 MB is a million bytes. The teacher's time is that of the "
        "teacher in the tables, without others that teach beside it. Times are comparable only "
        "where all trainings shared the machine in the same way."
    )
    return Table("time", caption, "Method", {"": tables.titled(run, frame)})


def _costs(run: RunFolder, columns: Mapping[str, tuple[str, float, int]]) -> pd.DataFrame:
    """Return methods (rows, by name) against costs; `columns`: heading -> (column of costs.csv,
    scale, digits).
    """
    costs = run.costs()
    measured = [m for m in tables.method_titles(run) if m in set(costs["method"])]
    if not measured:
        raise AbsentError("costs.csv contains none of the methods.")
    frame = pd.DataFrame(index=measured, dtype=object)
    for heading, (column, scale, digits) in columns.items():
        values = {m: costs.loc[costs["method"] == m, column].dropna() * scale for m in measured}
        frame[heading] = pd.Series(
            [_spread(values[m].to_numpy(), digits) for m in measured], frame.index, dtype=object
        )
    return frame


def _spread(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], digits: int
) -> Cell | int | None:
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    if low == high and low.is_integer():
        return int(low)
    return Cell(float(values.mean()), ends=(low, high) if low < high else None, digits=digits)


def curve_families(run: RunFolder) -> dict[str, list[str]]:
    """Return the methods in each figure of curves, by name of the figure: baselines, controls and
    other methods, each with the reference, or all in one figure if only one of these exists.
    """
    kinds = {m.name: m.kind for m in tables.rows_of(run) if m.kind != "ablation"}
    families = {
        family: [m for m in kinds if kinds[m] == kind or m == run.reference]
        for family, kind in FAMILIES.items()
        if any(kinds[m] == kind and m != run.reference for m in kinds)
    }
    return families if len(families) > 1 else {ALL: list(kinds)}
