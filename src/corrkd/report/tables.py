"""The tables of a report: each is made once, as frames of cells, and written as HTML, Markdown, LaTeX, CSV or plain text."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from markupsafe import Markup

from corrkd.errors import CorrKDError
from corrkd.evaluation.comparison import half_width
from corrkd.missing.conditions import COMPLETE, missing_subsets
from corrkd.report.run_folder import AbsentError, RunFolder

FLOOR, CEILING = "majority", "bayes"
AVERAGE = "average"
Mark = Literal["", "best", "second"]


@dataclass(frozen=True)
class Metric:
    """How a metric of results.csv is shown: `scale` times its value, with `digits` decimals; `sign` is -1 where less is better."""

    title: str
    scale: float = 100.0
    digits: int = 2
    sign: int = 1


METRICS = {
    "weighted_f1": Metric("Weighted F1 × 100"),
    "accuracy": Metric("Accuracy × 100"),
    "ece": Metric("Expected calibration error × 100 (less is better)", sign=-1),
    "mae": Metric("Mean absolute error (less is better)", scale=1.0, digits=3, sign=-1),
    "corr": Metric("Pearson correlation", scale=1.0, digits=3),
}
FRACTION = METRICS["weighted_f1"]


@dataclass(frozen=True)
class Cell:
    """A mean over seeds, scaled as shown; NaN where the metric is undefined. `half`: half-width of its 95 % interval, NaN with one
    seed, None where there are no seeds (floor, ceiling). `signed`: a difference, shown with its sign.
    """

    mean: float
    half: float | None = None
    mark: Mark = ""
    signed: bool = False


@dataclass(frozen=True)
class Table:
    """One table. `blocks`: frames with the same columns, one below the other, by the heading above each ("" for none). Entries are
    `Cell`, int, or None where nothing was measured; the index holds the row headings, `corner` stands above it.
    """

    name: str
    caption: str
    corner: str
    blocks: Mapping[str, pd.DataFrame]
    digits: int = 2
    folded: bool = False

    @property
    def columns(self) -> list[str]:
        """The column headings."""
        return [str(c) for c in next(iter(self.blocks.values())).columns]


# ------------------------------------------------------------------------------------------------------------------ statistics


def seed_values(run: RunFolder, metric: str) -> pd.Series[float]:
    """One metric by (method, seed, condition), averaged over draws, unscaled. NaN where it is undefined in any draw."""
    rows = run.results[run.results["metric"] == metric]
    if rows.empty:
        raise AbsentError(f"results.csv holds no {metric}.")
    draws = rows.groupby(["method", "seed", "condition"], sort=False)["value"]
    return draws.mean().where(draws.count() == draws.size())


def of(values: pd.Series[float], method: str, condition: str) -> pd.Series[float]:
    """The seeds' values of one method under one condition; empty where it was not measured."""
    methods, conditions = values.index.get_level_values("method"), values.index.get_level_values("condition")
    return values[(methods == method) & (conditions == condition)].droplevel(["method", "condition"])


def cell(values: Iterable[float], how: Metric, *, seeded: bool = True, signed: bool = False) -> Cell | None:
    """Mean and interval of the seeds' values, scaled; None of no values."""
    array = np.asarray(list(values), np.float64) * how.scale
    return Cell(float(array.mean()), half_width(array) if seeded else None, signed=signed) if len(array) else None


def paired(values: pd.Series[float], condition: str, how: Metric, first: str, second: str) -> Cell | None:
    """`first` minus `second`, with the interval of the differences within seeds; None where no seed has both."""
    differences = (of(values, first, condition) - of(values, second, condition)).dropna()
    return cell(differences, how, signed=True)


def marked(column: Mapping[str, Cell | None], trained: Sequence[str], how: Metric) -> dict[str, Cell | None]:
    """The column with its best and second-best trained method marked; what reads the same is marked the same."""
    shown = {
        m: how.sign * round(c.mean, how.digits) for m in trained if (c := column.get(m)) and not math.isnan(c.mean)
    }
    levels = sorted(set(shown.values()), reverse=True)
    marks: dict[float, Mark] = dict(zip(levels, ("best", "second"), strict=False))
    if len(shown) < 2:
        return dict(column)
    return {m: replace(c, mark=marks.get(shown.get(m, math.nan), "")) if c else None for m, c in column.items()}


# ---------------------------------------------------------------------------------------------------------------------- frames


def method_titles(run: RunFolder) -> dict[str, str]:
    """Titles by method in the order of the rows: floor, teacher, control, any other, student, ceiling."""
    place = {"teacher": 0, "control": 1, "student": 3}
    trained = sorted(run.card.methods, key=lambda m: place.get(m.name, 2))
    return {FLOOR: "Majority floor", **{m.name: m.title for m in trained}, CEILING: "Bayes ceiling"}


def subset_headings(run: RunFolder) -> dict[str, str]:
    """Column heading by condition, in the paper's order: the missing subsets as {l,a}, their average, complete."""
    initials = {m: m[:1] for m in run.modalities}
    if len({i.casefold() for i in initials.values()} - {""}) < len(initials):
        initials = {m: m for m in run.modalities}
    subsets = [c for c in missing_subsets(run.modalities) if c.name != COMPLETE]
    headings = {c.name: "{" + ",".join(initials[m] for m in c.available) + "}" for c in subsets}
    return {**headings, AVERAGE: "Avg.", COMPLETE: "complete"}


def ratio_headings(run: RunFolder) -> dict[str, str]:
    """Column heading (the ratio itself) by intra-modality condition, rising."""
    ratios = {c.name: c.ratio for c in run.card.conditions if c.kind == "ratio" and c.ratio is not None}
    return {name: f"{ratio:g}" for name, ratio in sorted(ratios.items(), key=lambda item: item[1])}


def other_headings(run: RunFolder) -> dict[str, str]:
    """Column heading by condition of the other kinds (burst, late, noise, natural), as listed in run.json."""
    others = [c for c in run.card.conditions if c.kind not in ("modalities", "ratio")]
    return {c.name: c.name if c.ratio is None else f"{c.kind} {c.ratio:g}" for c in others}


def compared(run: RunFolder, metric: str, headings: Mapping[str, str], how: Metric) -> pd.DataFrame:
    """Methods (rows, by name) against conditions (columns, by heading): marked cells; what was not measured at all is left out."""
    values = seed_values(run, metric)
    titles = method_titles(run)
    trained = [m for m in titles if m not in (FLOOR, CEILING)]
    columns = {}
    for condition, heading in headings.items():
        cells = {m: cell(of(values, m, condition), how, seeded=m in trained) for m in titles}
        columns[heading] = marked(cells, trained, how)
    frame = pd.DataFrame(columns, index=list(titles), dtype=object).dropna(how="all").dropna(how="all", axis=1)
    if frame.empty:
        raise AbsentError(f"results.csv holds no {metric} under these conditions.")
    return frame.astype(object).where(frame.notna(), None)


def titled(run: RunFolder, frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the methods' titles as row headings."""
    return frame.rename(index=method_titles(run))


def conditions_table(run: RunFolder, name: str, metric: str, headings: Mapping[str, str], caption: str) -> Table:
    """Methods against conditions in one metric."""
    how = METRICS[metric]
    return Table(name, caption, "Method", {"": titled(run, compared(run, metric, headings, how))}, how.digits)


def inter_modality(run: RunFolder, metric: str) -> Table:
    """The paper's inter-modality table, and below it student minus control, paired over seeds."""
    how, headings, values = METRICS[metric], subset_headings(run), seed_values(run, metric)
    caption = f"{how.title} on the {run.card.split} split with only some modalities available. {subset_legend(run)} {reading(run)}"
    table = conditions_table(run, f"inter-modality-{metric.replace('_', '-')}", metric, headings, caption)
    differences = {headings[c]: paired(values, c, how, "student", "control") for c in headings}
    if not any(differences.values()):
        return table
    difference = pd.DataFrame(differences, index=["Student − control"], dtype=object)[table.columns]
    return replace(table, blocks={**table.blocks, "Difference, paired over seeds": difference})


def subset_legend(run: RunFolder) -> str:
    """What the headings' letters stand for, as a sentence."""
    headings = subset_headings(run)
    letters = [
        f"{headings[m][1:-1]}\u00a0=\u00a0{m}" for m in run.modalities if m in headings and headings[m] != "{" + m + "}"
    ]
    return "Braces name the modalities that are available" + (f" ({', '.join(letters)})." if letters else ".")


def reading(run: RunFolder) -> str:
    """How to read a cell, as sentences."""
    seeds = run.results.loc[run.results["seed"] >= 0, "seed"].nunique()
    interval = (
        f"Mean ± half-width of the Student-t 95 % interval over {seeds} seeds."
        if seeds > 1
        else "One seed, hence no interval (—)."
    )
    return f"{interval} Best trained method in bold, second underlined."


def by_ratio(run: RunFolder) -> Table:
    """Weighted F1 by share of dropped frames, and the area under that curve."""
    frames = [compared(run, "weighted_f1", ratio_headings(run), FRACTION)]
    with contextlib.suppress(AbsentError):
        frames.append(compared(run, "auc_weighted_f1", {"ratios": "AUC"}, FRACTION))
    frame = pd.concat(frames, axis=1).astype(object)
    caption = (
        f"Weighted F1 × 100 on the {run.card.split} split by the share of frames that every modality has lost; AUC is the area under that "
        f"curve over the ratios, × 100. {reading(run)}"
    )
    return Table("missing-ratios", caption, "Method", {"": titled(run, frame.where(frame.notna(), None))})


def others(run: RunFolder, metric: str) -> Table:
    """Bursts, late starts, noise, and the samples that the data itself leaves incomplete."""
    meanings = {
        "burst": "a contiguous gap of that share (burst)",
        "late": "that share of the first frames lost (late)",
        "noise": "noise in place of that share of the frames (noise)",
        "natural": "the samples alone that the data itself leaves incomplete (natural)",
    }
    kinds = dict.fromkeys(c.kind for c in run.card.conditions)
    told = ", ".join(meanings[kind] for kind in kinds if kind in meanings)
    caption = f"{METRICS[metric].title} on the {run.card.split} split under other conditions: {told}. {reading(run)}"
    return conditions_table(run, f"other-conditions-{metric.replace('_', '-')}", metric, other_headings(run), caption)


def per_class(run: RunFolder) -> Table:
    """F1 of each class, or weighted F1 of each yes/no question, under the inter-modality conditions."""
    questions = run.card.target.kind == "questions"
    names = run.card.target.questions if questions else run.card.target.classes
    blocks = {}
    for name in names:
        try:
            frame = compared(run, f"{'weighted_f1' if questions else 'f1'}/{name}", subset_headings(run), FRACTION)
        except AbsentError:
            continue
        blocks[name] = titled(run, frame)
    if not blocks:
        raise AbsentError(f"results.csv holds no F1 by {'question' if questions else 'class'}.")
    columns = next(iter(blocks.values())).columns
    what = "Weighted F1 × 100 of each question" if questions else "F1 × 100 of each class"
    caption = f"{what} on the {run.card.split} split. {subset_legend(run)} {reading(run)}"
    return Table("per-class", caption, "Method", {n: f.reindex(columns=columns) for n, f in blocks.items()})


def calibration(run: RunFolder) -> Table:
    """Expected calibration error under the inter-modality conditions."""
    caption = f"{METRICS['ece'].title} on the {run.card.split} split. {subset_legend(run)} {reading(run)}"
    return conditions_table(run, "calibration", "ece", subset_headings(run), caption)


def data(run: RunFolder) -> Table:
    """Samples per split and class (or "yes" answers per question)."""
    card = run.card.dataset
    rows = {split: {"samples": count, **card.labels.get(split, {})} for split, count in card.splits.items()}
    frame = pd.DataFrame.from_dict(rows, orient="index").astype(object)
    what = "answers “yes” to each question" if run.card.target.kind == "questions" else "of each class"
    return Table("data", f"Samples in each split, and {what}.", "Split", {"": frame.where(frame.notna(), None)})


def shown_conditions(run: RunFolder) -> list[str]:
    """Complete, and the single modality with which the student's mean weighted F1 is lowest (of equals the first)."""
    values = seed_values(run, "weighted_f1")
    means = {m: of(values, "student", m).mean() for m in run.modalities}
    known = [m for m, mean in means.items() if not math.isnan(mean)]
    return [COMPLETE, min(known, key=lambda m: means[m])] if known else [COMPLETE]


def confusion(run: RunFolder, condition: str) -> dict[str, pd.DataFrame]:
    """The student's counts, true (rows) by predicted (columns) class, summed over seeds; by question, or under "" for classes."""
    if run.card.target.kind == "score":
        raise AbsentError("The target is a score: there is no confusion matrix.")
    rows = run.predictions([condition]).query("method == 'student'")
    if rows.empty:
        raise AbsentError(f"predictions.parquet holds nothing of the student under {condition}.")
    names = run.card.target.classes or ["no", "yes"]
    out = {}
    for question in run.card.target.questions if run.card.target.kind == "questions" else [""]:
        asked = rows[rows["question"] == question]
        counts = np.zeros((len(names), len(names)), int)
        np.add.at(counts, (asked["target"].to_numpy(int), asked["prediction"].to_numpy(int)), 1)
        out[question] = pd.DataFrame(counts, index=names, columns=names)
    return out


def confusion_table(run: RunFolder, name: str, condition: str) -> Table:
    """The counts of `confusion` as a table."""
    caption = f"{method_titles(run)['student']}, available: {condition}. Samples by true (row) and predicted (column) class, all seeds."
    blocks = {q: f.astype(object) for q, f in confusion(run, condition).items()}
    return Table(f"confusion-{name}", caption, "True class", blocks, folded=True)


# --------------------------------------------------------------------------------------------------------------------- writers


def number(value: float, digits: int, signed: bool = False) -> str:
    """As shown: a true minus sign, no negative zero; "undef." for NaN."""
    if math.isnan(value):
        return "undef."
    value = round(value, digits) + 0.0
    return f"{value:{'+' if signed and value else ''}.{digits}f}".replace("-", "−")


def parts(entry: Any, digits: int) -> tuple[str, str, Mark]:
    """Text, interval ("" where there are no seeds, a dash with one) and mark of an entry."""
    if not isinstance(entry, Cell):
        return ("n/a" if entry is None or pd.isna(entry) else str(entry)), "", ""
    if entry.half is None or math.isnan(entry.mean):
        return number(entry.mean, digits, entry.signed), "", entry.mark
    half = "—" if math.isnan(entry.half) else f"± {number(entry.half, digits)}"
    return number(entry.mean, digits, entry.signed), half, entry.mark


def rows(frame: pd.DataFrame) -> Iterator[tuple[str, list[Any]]]:
    """Row heading and entries of each row."""
    for heading, *entries in frame.itertuples(name=None):
        yield str(heading), entries


def to_html(table: Table) -> Markup:
    """A <table> with scopes, everything escaped; the caption is left to the page."""
    tags = {"": Markup("{}"), "best": Markup("<strong>{}</strong>"), "second": Markup("<u>{}</u>")}
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(c) for c in table.columns)
    body = Markup("")
    for title, frame in table.blocks.items():
        body += Markup("<tbody>")
        if title:
            span = len(table.columns) + 1
            body += Markup('<tr class="block"><th scope="rowgroup" colspan="{}">{}</th></tr>').format(span, title)
        for heading, entries in rows(frame):
            body += Markup('<tr><th scope="row">{}</th>').format(heading)
            for text, half, mark in (parts(entry, table.digits) for entry in entries):
                interval = Markup(' <span class="half">{}</span>').format(half) if half else ""
                body += Markup("<td>{}{}</td>").format(tags[mark].format(text), interval)
            body += Markup("</tr>")
        body += Markup("</tbody>\n")
    intervals = [parts(entry, table.digits)[1] for frame in table.blocks.values() for entry in frame.to_numpy().ravel()]
    stacked = len(table.columns) > 9 and any(interval not in ("", "—") for interval in intervals)
    wide = Markup(' class="wide"') if stacked else ""
    return Markup('<table{}><thead><tr><th scope="col">{}</th>{}</tr></thead>\n{}</table>').format(
        wide, table.corner, head, body
    )


_MARKDOWN = str.maketrans({**{c: "\\" + c for c in "\\`*_[]|~$"}, "&": "&amp;", "<": "&lt;", ">": "&gt;"})


def markdown_text(text: str) -> str:
    """One line of text with nothing left that Markdown would read as markup."""
    return " ".join(text.split()).translate(_MARKDOWN)


def to_markdown(table: Table) -> str:
    """A pipe table; blocks become rows with a bold heading alone."""
    tags = {"": "{}", "best": "**{}**", "second": "<ins>{}</ins>"}
    lines = [[markdown_text(c) for c in (table.corner, *table.columns)], ["---", *["---:"] * len(table.columns)]]
    for title, frame in table.blocks.items():
        if title:
            lines.append([f"*{markdown_text(title)}*", *[""] * len(table.columns)])
        for heading, entries in rows(frame):
            shown = [parts(entry, table.digits) for entry in entries]
            lines.append([markdown_text(heading), *(tags[m].format(t) + (f" {h}" if h else "") for t, h, m in shown)])
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
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    }
)


def latex_text(text: str) -> str:
    """One line of text with nothing left that LaTeX would read as a command."""
    return " ".join(text.split()).translate(_LATEX)


def to_latex(table: Table) -> str:
    """A table environment for the booktabs package."""
    tags = {"": "%s", "best": r"\textbf{%s}", "second": r"\underline{%s}"}
    blocks = []
    for title, frame in table.blocks.items():
        lines = [rf"\multicolumn{{{len(table.columns) + 1}}}{{l}}{{\emph{{{latex_text(title)}}}}} \\"] if title else []
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
    """Unrounded numbers as scaled in the table, each column with its half-width beside it; undefined and unmeasured are empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["block", table.corner, *(f"{c}{suffix}" for c in table.columns for suffix in ("", " ±"))])
    for title, frame in table.blocks.items():
        for heading, entries in rows(frame):
            pairs = [(e.mean, e.half) if isinstance(e, Cell) else (e, None) for e in entries]
            writer.writerow([title, heading, *("" if v is None or pd.isna(v) else v for pair in pairs for v in pair)])
    return file.getvalue()


def to_text(table: Table) -> str:
    """Plain text for a terminal: conditions as rows, the average first, methods as columns."""
    frame = next(iter(table.blocks.values()))
    first = [c for c in ("Avg.", "complete") if c in table.columns]
    names = [*first, *(c for c in table.columns if c not in first)]
    grid = [["", *map(str, frame.index)]]
    for name in names:
        shown = (parts(entry, table.digits) for entry in frame[name])
        grid.append([name, *(text + (f" {half}" if half else "") for text, half, _ in shown)])
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in grid]
    return "\n".join(lines)


def plain_table(folder: Path) -> str:
    """The inter-modality table of a run as plain text for a terminal, the average first.

    Raises:
        CorrKDError: where it is not a run folder, or holds no weighted F1.
    """
    run = RunFolder.open(folder)
    try:
        table = inter_modality(run, "weighted_f1")
        return METRICS["weighted_f1"].title + "\n" + to_text(table) + "\n" + subset_legend(run)
    except AbsentError as error:
        raise CorrKDError(f"{run.path}: {error}") from None
