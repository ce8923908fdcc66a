"""The tables of a report, as data frames of cells, and their formats: HTML, Markdown, LaTeX, CSV
and plain text.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from markupsafe import Markup
from rich.console import Console
from rich.table import Table as TextTable
from rich.text import Text

from corrkd.escape import csv_text, terminal_text
from corrkd.evaluation.comparison import half_width
from corrkd.missing.conditions import AVERAGE, COMPLETE, PROTOCOLS, RATIOS, Family, missing_subsets
from corrkd.report.run_folder import TEACHER, AbsentError, MethodCard, RunFolder
from corrkd.targets.measures import Metric, metric_of

FLOORS = {"majority": "Majority floor", "by-length": "By-length floor"}
CEILING = "bayes"
WIDEST = 100  # characters in the cells of a row that fit on the page next to its heading
Mark = Literal["", "best", "second"]
QUANTILES = {"lowest": 0.0, "a quarter below": 0.25, "median": 0.5, "highest": 1.0}


FRACTION = metric_of("weighted_f1")


@dataclass(frozen=True)
class Cell:
    """A number as shown.

    Attributes:
        mean: scaled mean over seeds; NaN if undefined.
        half: half-width of its 95 % interval; NaN with one seed, None without seeds (floor,
            ceiling).
        mark: whether it is the best or second best of its column.
        signed: whether it is a difference, which is shown with its sign.
        ends: ends of an asymmetric interval, instead of `half`.
        digits: number of decimals; None for that of the table.
    """

    mean: float
    half: float | None = None
    mark: Mark = ""
    signed: bool = False
    ends: tuple[float, float] | None = None
    digits: int | None = None


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        corner: heading above the row headings.
        blocks: frames with the same columns, shown below each other, by heading ("" for none).
            Entries are `Cell`, int, text, or None if not measured; the index has the row headings.
        folded: whether the page shows the table folded up.
    """

    name: str
    caption: str
    corner: str
    blocks: Mapping[str, pd.DataFrame]
    digits: int = 2
    folded: bool = False

    @property
    def columns(self) -> list[str]:
        """Headings of the columns."""
        return [str(c) for c in next(iter(self.blocks.values())).columns]


# --------------------------------------------------------------------------------------------------
# statistics


def seed_values(run: RunFolder, metric: str) -> pd.Series[float]:
    """Return a metric by (method, seed, condition), averaged over draws, unscaled; NaN if it is
    undefined in any draw. Raises AbsentError if the metric is not in results.csv.
    """
    rows = run.results[run.results["metric"] == metric]
    if rows.empty:
        raise AbsentError(f"results.csv contains no {metric}.")
    draws = rows.groupby(["method", "seed", "condition"], sort=False)["value"]
    return draws.mean().where(draws.count() == draws.size())


def of(values: pd.Series[float], method: str, condition: str) -> pd.Series[float]:
    """Return the values of one method and condition by seed; empty if not measured."""
    methods, conditions = (
        values.index.get_level_values("method"),
        values.index.get_level_values("condition"),
    )
    return values[(methods == method) & (conditions == condition)].droplevel(
        ["method", "condition"]
    )


def cell(
    values: Iterable[float], how: Metric, *, seeded: bool = True, signed: bool = False
) -> Cell | None:
    """Return the scaled mean and interval of one value per seed; None without values."""
    array = np.asarray(list(values), np.float64) * how.scale
    return (
        Cell(float(array.mean()), half_width(array) if seeded else None, signed=signed)
        if len(array)
        else None
    )


def paired(
    values: pd.Series[float], condition: str, how: Metric, first: str, second: str
) -> Cell | None:
    """Return `first` minus `second`, with the interval of the differences within seeds; None
    without common seeds.
    """
    differences = (of(values, first, condition) - of(values, second, condition)).dropna()
    return cell(differences, how, signed=True)


def marked(
    column: Mapping[str, Cell | None], trained: Sequence[str], how: Metric
) -> dict[str, Cell | None]:
    """Return the column with the best and second-best trained methods marked. Methods that are
    equal after rounding share a mark. Nothing is marked if all are equal, nor methods that are not
    above the floors.
    """

    def levels_of(methods: Iterable[str]) -> dict[str, float]:
        return {
            m: how.sign * round(c.mean, how.digits)
            for m in methods
            if (c := column.get(m)) and not math.isnan(c.mean)
        }

    rounded = levels_of(trained)
    levels = sorted(set(rounded.values()), reverse=True)
    if len(levels) < 2 or not how.sign:
        return dict(column)
    floor = max(levels_of(FLOORS).values(), default=-math.inf)
    marks: dict[float, Mark] = dict(zip(levels, ("best", "second"), strict=False))
    marks = {level: mark for level, mark in marks.items() if level > floor}
    return {
        m: replace(c, mark=marks.get(rounded.get(m, math.nan), "")) if c else None
        for m, c in column.items()
    }


# --------------------------------------------------------------------------------------------------
# frames


def rows_of(run: RunFolder) -> list[MethodCard]:
    """Return the trained methods in the order of rows: baselines, teacher, controls, others,
    reference, ablation.
    """
    by_name = {TEACHER: 1, run.card.control: 2, run.reference: 4}
    by_kind = {"baseline": 0, "control": 2, "method": 3, "ablation": 5}
    return sorted(
        run.card.methods, key=lambda method: by_name.get(method.name, by_kind[method.kind])
    )


def main_methods(run: RunFolder) -> list[str]:
    """Return the trained methods without the ablation arms, in the order of rows."""
    return [m.name for m in rows_of(run) if m.kind != "ablation"]


def ablation_methods(run: RunFolder) -> list[str]:
    """Return the ablation arms, in the order of rows."""
    return [m.name for m in rows_of(run) if m.kind == "ablation"]


def method_titles(run: RunFolder) -> dict[str, str]:
    """Return the titles by method in the order of rows: floors, trained methods, ceiling."""
    return {**FLOORS, **{m.name: m.title for m in rows_of(run)}, CEILING: "Bayes ceiling"}


def reference_title(run: RunFolder) -> str:
    """Return the title of the arm that others are compared with."""
    return method_titles(run)[run.reference]


def seed_counts(run: RunFolder, methods: Iterable[str] | None = None) -> dict[str, int]:
    """Return the number of seeds in results.csv of each trained method that has any."""
    chosen = set(methods if methods is not None else (m.name for m in run.card.methods))
    results = run.results
    counts = (
        results[(results["seed"] >= 0) & results["method"].isin(chosen)]
        .groupby("method")["seed"]
        .nunique()
    )
    return {str(method): int(count) for method, count in counts.items()}


def letters(run: RunFolder) -> dict[str, str]:
    """Return the initials of the modalities, or their names if two have the same initial."""
    initials = {m: m[:1] for m in run.modalities}
    unique = len({i.casefold() for i in initials.values()} - {""}) == len(initials)
    return initials if unique else {m: m for m in run.modalities}


def subset_headings(run: RunFolder) -> dict[str, str]:
    """Return the column headings by condition, in the order of the paper: the missing subsets such
    as {l,a}, their average, complete.
    """
    initials = letters(run)
    subsets = [c for c in missing_subsets(run.modalities) if c.name != COMPLETE]
    headings = {c.name: c.heading(initials) for c in subsets}
    return {**headings, AVERAGE: "Avg.", COMPLETE: "complete"}


def ratio_headings(run: RunFolder) -> dict[str, str]:
    """Return the column headings (the ratios) by intra-modality condition, in rising order."""
    ratios = [c for c in run.conditions if c.family is Family.RATIOS]
    return {c.name: c.heading({}) for c in sorted(ratios, key=lambda c: c.ratio or 0.0)}


def other_headings(run: RunFolder) -> dict[str, str]:
    """Return the column headings by condition of other kinds (burst, late, noise, natural, ...), in
    the order of run.json.
    """
    initials = letters(run)
    return {c.name: c.heading(initials) for c in run.conditions if c.family is Family.OTHERS}


def compared(
    run: RunFolder,
    metric: str,
    headings: Mapping[str, str],
    how: Metric,
    methods: Iterable[str] | None = None,
) -> pd.DataFrame:
    """Return marked cells of methods (rows, by name) against conditions (columns, by heading),
    without rows and columns that were not measured.

    Args:
        run: folder of the dataset.
        metric: name of the metric.
        headings: column headings by condition.
        how: how the metric is shown.
        methods: trained methods to show; default: all.

    Raises:
        AbsentError: if nothing was measured.
    """
    values = seed_values(run, metric)
    trained = [m.name for m in rows_of(run) if methods is None or m.name in methods]
    rows = [*FLOORS, *trained, CEILING]
    columns = {}
    for condition, heading in headings.items():
        cells = {m: cell(of(values, m, condition), how, seeded=m in trained) for m in rows}
        columns[heading] = marked(cells, trained, how)
    frame = (
        pd.DataFrame(columns, index=rows, dtype=object).dropna(how="all").dropna(how="all", axis=1)
    )
    if frame.empty:
        raise AbsentError(f"results.csv contains no {metric} under these conditions.")
    return frame.astype(object).where(frame.notna(), None)


def titled(run: RunFolder, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with the titles of the methods as row headings, and a column with the number
    of seeds if it differs between methods.
    """
    counts = seed_counts(run, frame.index)
    if len(set(counts.values())) > 1:
        frame = frame.assign(
            Seeds=pd.Series([counts.get(m) for m in frame.index], frame.index, dtype=object)
        )
    return frame.rename(index=method_titles(run))


def conditions_table(
    run: RunFolder,
    name: str,
    metric: str,
    headings: Mapping[str, str],
    caption: str,
    methods: Iterable[str] | None = None,
) -> Table:
    """Return the table of methods against conditions in one metric."""
    how = metric_of(metric)
    frame = titled(run, compared(run, metric, headings, how, methods))
    return Table(name, f"{caption} {reading(run, methods)}", "Method", {"": frame}, how.digits)


def inter_modality(run: RunFolder, metric: str, methods: Iterable[str] | None = None) -> Table:
    """Return the paper's inter-modality table."""
    name, headings = f"inter-modality-{metric.replace('_', '-')}", subset_headings(run)
    caption = (
        f"{metric_of(metric).title} on the {run.card.split} split with only some modalities "
        f"available. {subset_legend(run)}"
    )
    return conditions_table(run, name, metric, headings, caption, methods)


def with_difference(run: RunFolder, metric: str, methods: Iterable[str] | None = None) -> Table:
    """Return the inter-modality table, followed by the reference minus the control, paired over
    seeds.
    """
    how, headings, values = metric_of(metric), subset_headings(run), seed_values(run, metric)
    table = inter_modality(run, metric, methods)
    control = run.card.control
    if control is None or control == run.reference:
        return table
    differences = {headings[c]: paired(values, c, how, run.reference, control) for c in headings}
    if not any(differences.values()):
        return table
    row = f"{reference_title(run)} − {method_titles(run)[control]}"
    difference = pd.DataFrame(differences, index=[row], dtype=object).reindex(columns=table.columns)
    return replace(table, blocks={**table.blocks, "Difference, paired over seeds": difference})


def subset_legend(run: RunFolder) -> str:
    """Return a sentence on the meaning of the letters in headings."""
    stood = [
        f"{letter}\u00a0=\u00a0{m}"
        for m, letter in letters(run).items()
        if letter != m and len(run.modalities) > 1
    ]
    return "Braces name the modalities that are available" + (
        f" ({', '.join(stood)})." if stood else "."
    )


def reading(run: RunFolder, methods: Iterable[str] | None = None) -> str:
    """Return sentences on how to read a cell and its mark."""
    return (
        f"{interval_text(run, methods)} Bold: best trained method; underlined: second best. "
        f"Methods that are not above the floors, or all equal, are not marked."
    )


def interval_text(run: RunFolder, methods: Iterable[str] | None = None) -> str:
    """Return a sentence on the intervals after the means."""
    counts = set(seed_counts(run, methods).values())
    seeds = (
        f"{max(counts, default=0)} seeds"
        if len(counts) < 2
        else "each method's seeds (their number: last column)"
    )
    return (
        f"Mean ± half-width of the Student-t 95 % interval over {seeds}."
        if max(counts, default=0) > 1
        else "One seed, hence no interval (—)."
    )


def by_ratio(run: RunFolder, methods: Iterable[str] | None = None) -> Table:
    """Return the table of weighted F1 by share of dropped frames, with the area under the curve."""
    frames = [compared(run, "weighted_f1", ratio_headings(run), FRACTION, methods)]
    with contextlib.suppress(AbsentError):
        frames.append(compared(run, "auc_weighted_f1", {RATIOS: "AUC"}, FRACTION, methods))
    frame = pd.concat(frames, axis=1).astype(object)
    caption = (
        f"Weighted F1 × 100 on the {run.card.split} split by the share of frames missing from "
        f"every modality; AUC is the area under this curve, × 100. {reading(run, methods)}"
    )
    return Table(
        "missing-ratios", caption, "Method", {"": titled(run, frame.where(frame.notna(), None))}
    )


def others(run: RunFolder, metric: str, methods: Iterable[str] | None = None) -> Table:
    """Return the table of other conditions: bursts, late starts, noise, samples that are incomplete
    in the data, and conditions of other packages.
    """
    meanings = dict.fromkeys(
        c.meaning or c.kind for c in run.conditions if c.family is Family.OTHERS
    )
    caption = (
        f"{metric_of(metric).title} on the {run.card.split} split under other conditions, each "
        f"with its share in the heading: {', '.join(meanings)}."
    )
    name = f"other-conditions-{metric.replace('_', '-')}"
    return conditions_table(run, name, metric, other_headings(run), caption, methods)


def side_by_side(run: RunFolder, methods: Iterable[str] | None = None) -> Table:
    """Return the table of all summary metrics of the target, as in published tables: on complete
    samples, and as the mean of each protocol.
    """
    protocols = {p.row: p for p in PROTOCOLS.values() if (run.results["condition"] == p.row).any()}
    titles = {
        COMPLETE: "Complete samples",
        **{row: f"{p.title}: mean over its rates" for row, p in protocols.items()},
    }
    frames = {title: _metrics_frame(run, condition, methods) for condition, title in titles.items()}
    headings = list(dict.fromkeys(heading for frame in frames.values() for heading in frame))
    if not headings:
        raise AbsentError("results.csv contains none of the target's metrics on complete samples.")
    means = [
        f"{p.title}: {p.meaning}, mean over the rates "
        f"{', '.join(f'{c.ratio:g}' for c in p.conditions(run.modalities))}."
        for p in protocols.values()
    ]
    caption = " ".join(
        [
            f"All metrics on the {run.card.split} split; F1 and accuracies × 100.",
            *means,
            reading(run, methods),
        ]
    )
    blocks = {
        title: titled(run, frame.reindex(columns=headings))
        for title, frame in frames.items()
        if len(frame)
    }
    return Table(
        "metrics",
        caption,
        "Method",
        {title: f.where(f.notna(), None) for title, f in blocks.items()},
    )


def _metrics_frame(run: RunFolder, condition: str, methods: Iterable[str] | None) -> pd.DataFrame:
    """Return methods (rows, by name) against the target's summary metrics (columns, by heading)
    under one condition; empty if none was measured.
    """
    columns = []
    for metric in run.card.target.summary_metrics:
        how = metric_of(metric)
        with contextlib.suppress(AbsentError):
            column = compared(run, metric, {condition: how.heading}, how, methods)
            columns.append(
                column.map(lambda c, digits=how.digits: replace(c, digits=digits) if c else None)
            )
    together = pd.concat(columns, axis=1) if columns else pd.DataFrame(dtype=object)
    return together.reindex([m for m in method_titles(run) if m in together.index]).astype(object)


def per_class(run: RunFolder, methods: Iterable[str] | None = None) -> Table:
    """Return the table of F1 of each class, or weighted F1 of each yes/no question, under the
    inter-modality conditions.
    """
    questions = run.card.target.questions
    names = questions or run.card.target.classes
    blocks = {}
    for name in names:
        try:
            frame = compared(
                run,
                f"{'weighted_f1' if questions else 'f1'}/{name}",
                subset_headings(run),
                FRACTION,
                methods,
            )
        except AbsentError:
            continue
        blocks[name] = titled(run, frame)
    if not blocks:
        raise AbsentError(f"results.csv contains no F1 by {'question' if questions else 'class'}.")
    columns = next(iter(blocks.values())).columns
    what = "Weighted F1 × 100 of each question" if questions else "F1 × 100 of each class"
    caption = f"{what} on the {run.card.split} split. {subset_legend(run)} {reading(run, methods)}"
    return Table(
        "per-class", caption, "Method", {n: f.reindex(columns=columns) for n, f in blocks.items()}
    )


def calibration(run: RunFolder, methods: Iterable[str] | None = None) -> Table:
    """Return the table of the expected calibration error under the inter-modality conditions,
    before and after temperature scaling.
    """
    caption = f"{metric_of('ece').title} on the {run.card.split} split. {subset_legend(run)}"
    table = conditions_table(run, "calibration", "ece", subset_headings(run), caption, methods)
    with contextlib.suppress(AbsentError):
        after = titled(
            run, compared(run, "ece_calibrated", subset_headings(run), metric_of("ece"), methods)
        )
        caption = (
            f"{table.caption} Second block: logits divided by a temperature that was fitted for "
            f"each condition on the validation split."
        )
        blocks = {
            "As trained": table.blocks[""],
            "With the condition's temperature": after.reindex(columns=table.columns),
        }
        table = replace(table, caption=caption, blocks=blocks)
    return table


def prediction_sets(run: RunFolder) -> Table:
    """Return the table of the coverage and size of prediction sets under the inter-modality
    conditions.
    """
    headings = subset_headings(run)
    size = "Classes in a set" if run.card.target.has_classes else "Length of the interval"
    blocks = {}
    for title, metric in {
        "Sets that contain the true value, %": "coverage",
        size: "set_size",
    }.items():
        frame = compared(run, metric, headings, metric_of(metric))
        blocks[title] = titled(run, frame).map(
            lambda c: replace(c, mark="", digits=2) if isinstance(c, Cell) else c
        )
    caption = (
        f"Prediction sets on the {run.card.split} split, calibrated on groups held out from "
        f"training and selection.{_requested(run)} That they contain the true value as often as "
        "requested, on average over groups, assumes that groups are exchangeable, that is, that "
        f"the tested groups resemble the held-out ones. {subset_legend(run)} {interval_text(run)}"
    )
    return Table("prediction-sets", caption, "Method", blocks)


def _requested(run: RunFolder) -> str:
    """Return sentences on the requested coverage and why the sets cover more; "" without sets."""
    if run.card.sets is None:
        return ""
    level, groups = run.card.sets.level, run.card.sets.groups
    sentence = (
        f" Requested: sets that contain the true value for {100 * level:g} % of the samples of a "
        f"new group."
    )
    if level * (groups + 1) / groups > 1.0 + 1e-9:
        return f"{sentence} {groups} groups are too few for that: every set contains everything."
    share = f"{100 * level * (groups + 1) / groups:.1f} %"
    return (
        f"{sentence} To guarantee this with {groups} groups, the sets contain it for {share} of "
        f"the samples of these groups."
    )


def coverage_by_group(run: RunFolder) -> Table:
    """Return the table of the reference's coverage by group: mean and quantiles over groups."""
    rows = run.coverage()
    rows = rows[rows["method"] == run.reference]
    headings = subset_headings(run)
    blocks = {}
    for condition, heading in headings.items():
        of_condition = rows[rows["condition"] == condition]
        if len(of_condition):
            shares = 100 * of_condition.groupby("group")["coverage"].mean()
            blocks[heading] = {
                "Groups": len(shares),
                "Mean": Cell(float(shares.mean())),
                **{name: Cell(float(shares.quantile(q))) for name, q in QUANTILES.items()},
            }
    if not blocks:
        raise AbsentError(f"coverage.csv contains nothing about {run.reference}.")
    frame = pd.DataFrame.from_dict(blocks, orient="index").astype(object)
    caption = (
        f"How coverage varies between groups: share of a group's samples on the {run.card.split} "
        f"split whose true value is in the prediction set of {reference_title(run)}, %. The "
        f"requested coverage is guaranteed for the mean over groups, not for each group. "
        f"{subset_legend(run)}"
    )
    return Table("coverage-by-group", caption, "Available", {"": frame}, digits=1)


def data(run: RunFolder) -> Table:
    """Return the table of samples per split and class (or of "yes" labels per question)."""
    card = run.card.dataset
    rows = {
        split: {"samples": count, **card.labels.get(split, {})}
        for split, count in card.splits.items()
    }
    frame = pd.DataFrame.from_dict(rows, orient="index").astype(object)
    what = (
        "and of these with the answer “yes” to each question"
        if run.card.target.questions
        else "by class"
    )
    return Table(
        "data", f"Samples in each split, {what}.", "Split", {"": frame.where(frame.notna(), None)}
    )


def missing_frames(run: RunFolder) -> Table:
    """Return the table of the share of frames of each modality and split that are missing in the
    data, by reason.
    """
    rows: dict[str, dict[str, object]] = {}
    for m, splits in run.card.dataset.missing_frames.items():
        for split, count in splits.items():
            reasons = {**count.reasons, "other": count.missing - sum(count.reasons.values())}
            percent = {
                reason: 100 * n / max(1, count.frames) for reason, n in reasons.items() if n > 0
            }
            rows[f"{m}, {split}"] = {
                "Frames": count.frames,
                "Missing %": Cell(100 * count.missing / max(1, count.frames)),
                "Reasons, % of all frames": ", ".join(
                    f"{reason} {share:.1f}" for reason, share in percent.items()
                ),
            }
    caption = "Frames that are already missing in the recordings, and why."
    frame = pd.DataFrame.from_dict(rows, orient="index").astype(object)
    return Table("missing-frames", caption, "Modality, split", {"": frame}, digits=1)


def shown_conditions(run: RunFolder) -> list[str]:
    """Return complete and the single modality with the lowest mean weighted F1 of the reference
    (the first of equals).
    """
    values = seed_values(run, "weighted_f1")
    means = {m: of(values, run.reference, m).mean() for m in run.modalities}
    measured = [m for m, mean in means.items() if not math.isnan(mean)]
    return [COMPLETE, min(measured, key=lambda m: means[m])] if measured else [COMPLETE]


def confusion(run: RunFolder, condition: str) -> dict[str, pd.DataFrame]:
    """Return the confusion matrix of the reference, true (rows) by predicted (columns) class,
    summed over seeds: by question, or under "" for classes.
    """
    if not run.card.target.has_classes:
        raise AbsentError("The target is a score: there is no confusion matrix.")
    rows = run.predictions([condition])
    rows = rows[rows["method"] == run.reference]
    if rows.empty:
        raise AbsentError(
            f"predictions.parquet contains nothing about {run.reference} under {condition}."
        )
    names = run.card.target.classes
    out = {}
    for question in run.card.target.questions or ("",):
        subset = rows[rows["question"] == question]
        counts = np.zeros((len(names), len(names)), int)
        np.add.at(counts, (subset["target"].to_numpy(int), subset["prediction"].to_numpy(int)), 1)
        out[question] = pd.DataFrame(counts, index=names, columns=names)
    return out


def confusion_table(run: RunFolder, name: str, condition: str) -> Table:
    """Return the counts of `confusion` as a table."""
    caption = (
        f"{reference_title(run)}, available: {condition}. Number of samples by true (row) and "
        f"predicted (column) class, summed over all seeds."
    )
    blocks = {q: f.astype(object) for q, f in confusion(run, condition).items()}
    return Table(f"confusion-{name}", caption, "True class", blocks, folded=True)


# --------------------------------------------------------------------------------------------------
# writers


def number(value: float, digits: int, signed: bool = False) -> str:
    """Return a number as text, with a typographic minus sign, without negative zero, and "undef."
    for NaN.
    """
    if math.isnan(value):
        return "undef."
    if math.isinf(value):  # an interval that contains everything
        return "∞" if value > 0 else "−∞"
    value = round(value, digits) + 0.0
    return f"{value:{'+' if signed and value else ''}.{digits}f}".replace("-", "−")


def parts(entry: Any, digits: int) -> tuple[str, str, Mark]:
    """Return the text, interval ("" without seeds, a dash with one seed) and mark of an entry."""
    if isinstance(entry, int | np.integer):
        return f"{entry:,}", "", ""
    if not isinstance(entry, Cell):
        return ("n/a" if entry is None or pd.isna(entry) else str(entry)), "", ""
    digits = digits if entry.digits is None else entry.digits
    text = number(entry.mean, digits, entry.signed)
    if math.isnan(entry.mean) or (entry.half is None and entry.ends is None):
        return text, "", entry.mark
    if entry.ends is not None:
        return (
            text,
            f"[{', '.join(number(end, digits, entry.signed) for end in entry.ends)}]",
            entry.mark,
        )
    return (
        text,
        "—" if math.isnan(entry.half or 0.0) else f"± {number(entry.half or 0.0, digits)}",
        entry.mark,
    )


def rows(frame: pd.DataFrame) -> Iterator[tuple[str, list[Any]]]:
    """Yield the heading and entries of each row."""
    for heading, *entries in frame.itertuples(name=None):
        yield str(heading), entries


def to_html(table: Table) -> Markup:
    """Return a table as an escaped HTML <table> with scopes, without its caption."""
    tags = {"": Markup("{}"), "best": Markup("<strong>{}</strong>"), "second": Markup("<u>{}</u>")}
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(c) for c in table.columns)
    body = Markup("")
    for title, frame in table.blocks.items():
        body += Markup("<tbody>")
        if title:
            span = len(table.columns) + 1
            body += Markup(
                '<tr class="block"><th scope="rowgroup" colspan="{}">{}</th></tr>'
            ).format(span, title)
        for heading, entries in rows(frame):
            body += Markup('<tr><th scope="row">{}</th>').format(heading)
            for text, half, mark in (parts(entry, table.digits) for entry in entries):
                interval = Markup(' <span class="half">{}</span>').format(half) if half else ""
                body += Markup("<td>{}{}</td>").format(tags[mark].format(text), interval)
            body += Markup("</tr>")
        body += Markup("</tbody>\n")
    wide = Markup(' class="wide"') if _is_wide(table) else ""
    return Markup('<table{}><thead><tr><th scope="col">{}</th>{}</tr></thead>\n{}</table>').format(
        wide, table.corner, head, body
    )


def _is_wide(table: Table) -> bool:
    """Return whether intervals go below their means, so that the last columns fit on the page."""
    entries = [
        parts(entry, table.digits)
        for frame in table.blocks.values()
        for entry in frame.to_numpy().ravel()
    ]
    longest = max(
        (len(text) + len(interval) for text, interval, _ in entries if interval not in ("", "—")),
        default=0,
    )
    return longest * len(table.columns) > WIDEST or any(
        interval.startswith("[") for _, interval, _ in entries
    )


_MARKDOWN = str.maketrans(
    {**{c: "\\" + c for c in "\\`*_[]|~$"}, "&": "&amp;", "<": "&lt;", ">": "&gt;"}
)


def markdown_text(text: str) -> str:
    """Return text on one line, escaped for Markdown."""
    line = terminal_text(" ".join(text.split())).translate(_MARKDOWN)
    return re.sub(r"^([#+=-]|\d+(?=[.)]))", lambda start: _first_escaped(start[0]), line)


def _first_escaped(start: str) -> str:
    """Return escaped characters that would begin a heading, list or rule at the start of a line."""
    return f"\\{start}" if not start.isdigit() else f"{start}\\"


def to_markdown(table: Table) -> str:
    """Return a table as a Markdown pipe table, with block headings in italics as rows."""
    tags = {"": "{}", "best": "**{}**", "second": "<ins>{}</ins>"}
    lines = [
        [markdown_text(c) for c in (table.corner, *table.columns)],
        ["---", *["---:"] * len(table.columns)],
    ]
    for title, frame in table.blocks.items():
        if title:
            lines.append([f"*{markdown_text(title)}*", *[""] * len(table.columns)])
        for heading, entries in rows(frame):
            line = [markdown_text(heading)]
            for entry, (text, half, mark) in (
                (entry, parts(entry, table.digits)) for entry in entries
            ):
                text = markdown_text(text) if isinstance(entry, str) else text
                line.append(tags[mark].format(text) + (f" {half}" if half else ""))
            lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


_LATEX = str.maketrans(
    {
        **{c: "\\" + c for c in "{}$&#_%"},
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "−": "$-$",
        "×": r"$\times$",
        "±": r"$\pm$",
        "∞": r"$\infty$",
        "→": r"\textrightarrow{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    }
)


def latex_text(text: str) -> str:
    """Return text on one line, escaped for LaTeX."""
    line = terminal_text(" ".join(text.split())).translate(_LATEX)
    return (
        f"{{{line[0]}}}{line[1:]}" if line[:1] in ("[", "*") else line
    )  # after \\ they would be its arguments


def to_latex(table: Table) -> str:
    """Return a table as a LaTeX table environment for the booktabs package."""
    tags = {"": "%s", "best": r"\textbf{%s}", "second": r"\underline{%s}"}
    blocks = []
    for title, frame in table.blocks.items():
        lines = (
            [rf"\multicolumn{{{len(table.columns) + 1}}}{{l}}{{\emph{{{latex_text(title)}}}}} \\"]
            if title
            else []
        )
        for heading, entries in rows(frame):
            cells = [latex_text(heading)]
            for text, half, mark in (parts(entry, table.digits) for entry in entries):
                interval = rf" {{\scriptsize {latex_text(half)}}}" if half else ""
                cells.append(tags[mark] % latex_text(text) + interval)
            lines.append(" & ".join(cells) + r" \\")
        blocks.append("\n".join(lines))
    head = " & ".join(latex_text(c) for c in (table.corner, *table.columns))
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}[t]",
            r"\centering\small\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{latex_text(table.caption)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            "\n\\midrule\n".join(blocks),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def to_csv(table: Table) -> str:
    """Return a table as CSV with scaled, unrounded numbers. After each column comes its half-width,
    or the ends of its interval. Undefined and unmeasured values are empty.
    """
    entries = {c: [e for f in table.blocks.values() for e in f[c]] for c in table.columns}
    asymmetric = {
        c: any(isinstance(e, Cell) and e.ends is not None for e in entries[c]) for c in entries
    }
    headings = [
        h
        for c in table.columns
        for h in ((c, f"{c} low", f"{c} high") if asymmetric[c] else (c, f"{c} ±"))
    ]

    def written(column: str, entry: Any) -> list[Any]:
        if not isinstance(entry, Cell):
            return [entry, *([None] * (1 + asymmetric[column]))]
        return (
            [entry.mean, *(entry.ends or (None, None))]
            if asymmetric[column]
            else [entry.mean, entry.half]
        )

    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(csv_text, ["block", table.corner, *headings]))
    for title, frame in table.blocks.items():
        for heading, row in rows(frame):
            values = [v for c, e in zip(table.columns, row, strict=True) for v in written(c, e)]
            text = [
                "" if v is None or pd.isna(v) else csv_text(v) if isinstance(v, str) else v
                for v in values
            ]
            writer.writerow([csv_text(title), csv_text(heading), *text])
    return file.getvalue()


def to_text(table: Table, *, transposed: bool = False) -> str:
    """Return the first block as plain text for a terminal. If `transposed`, methods are columns and
    conditions are rows, with the average first.
    """
    frame = next(iter(table.blocks.values())).map(lambda entry: _plain(entry, table.digits))
    if transposed:
        first = [c for c in ("Avg.", "complete") if c in frame]
        frame = frame[[*first, *(c for c in frame if c not in first)]].T
    grid = TextTable("" if transposed else table.corner, box=None, pad_edge=False, header_style="")
    for heading in frame.columns:
        grid.add_column(_cell_text(heading), justify="right", no_wrap=True)
    for heading, entries in rows(frame):
        grid.add_row(_cell_text(heading), *map(_cell_text, entries))
    file = io.StringIO()
    Console(file=file, width=10_000, color_system=None, legacy_windows=False).print(grid)
    return "\n".join(map(str.rstrip, file.getvalue().splitlines()))


def _plain(entry: Any, digits: int) -> str:
    text, half, _ = parts(entry, digits)
    return f"{text} {half}" if half else text


def _cell_text(text: object) -> Text:
    return Text(terminal_text(str(text).replace("\n", " ")))
