from __future__ import annotations

import csv
import io
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from corrkd.report import plain_report, tables
from corrkd.report.run_folder import AbsentError
from corrkd.report.tables import Cell, Metric
from tests.report.fake_run import DATASET, RUN_ARMS, TITLES, opened, subsets, write_fake_run


def from_file(out: Path, method: str, condition: str, metric: str) -> list[float]:
    """Read the seeds' values, averaged over draws, independently of the tables."""
    with open(out / DATASET / "results.csv", newline="", encoding="utf-8") as file:
        rows = [
            r
            for r in csv.DictReader(file)
            if (r["method"], r["condition"], r["metric"]) == (method, condition, metric)
        ]
    seeds = sorted({r["seed"] for r in rows})
    by_seed = [[float(r["value"]) for r in rows if r["seed"] == s] for s in seeds]
    return [sum(values) / len(values) for values in by_seed]


def test_numbers_are_read_to_the_last_bit(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", samples=5, seeds=(0,))
    results = pd.read_csv(folder / DATASET / "results.csv")
    values = np.random.default_rng(0).random(len(results))
    results.assign(value=values).to_csv(folder / DATASET / "results.csv", index=False)
    np.testing.assert_array_equal(opened(folder).results["value"], values)


@pytest.mark.parametrize("metric", ["weighted_f1", "accuracy"])
def test_inter_modality_numbers(reported: Path, metric: str) -> None:
    frame = tables.inter_modality(opened(reported), metric).blocks[""]
    assert list(frame.index) == [
        "Majority floor",
        "Teacher",
        "No-distillation control",
        "CorrKD student",
        "Bayes ceiling",
    ]
    conditions = [*subsets(("language", "audio", "vision"))[:-1], "average", "complete"]
    for method, condition in itertools.product(RUN_ARMS, range(len(conditions))):
        values = [100 * v for v in from_file(reported, method, conditions[condition], metric)]
        assert len(values) == 3
        low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
        cell = frame.loc[TITLES[method]].iloc[condition]
        assert cell.mean == pytest.approx(np.mean(values))
        assert (cell.mean - cell.half, cell.mean + cell.half) == pytest.approx((low, high))
    for title, method in (("Majority floor", "majority"), ("Bayes ceiling", "bayes")):
        assert frame.loc[title, "{l}"].mean == pytest.approx(
            100 * from_file(reported, method, "language", metric)[0]
        )
        assert frame.loc[title, "{l}"].half is None


def test_difference_is_paired_within_seeds(reported: Path) -> None:
    table = tables.with_difference(opened(reported), "weighted_f1")
    cell = table.blocks["Difference, paired over seeds"].iloc[0]["Avg."]
    student, control = (
        np.array(from_file(reported, m, "average", "weighted_f1")) * 100
        for m in ("student", "control")
    )
    interval = stats.ttest_rel(student, control).confidence_interval(0.95)
    assert (cell.mean - cell.half, cell.mean + cell.half) == pytest.approx(
        (interval.low, interval.high)
    )


def test_a_seed_that_only_one_method_has_is_not_paired(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run")
    results = pd.read_csv(folder / DATASET / "results.csv")
    results[~((results.method == "control") & (results.seed == 1))].to_csv(
        folder / DATASET / "results.csv", index=False
    )
    run = opened(folder)
    cell = tables.paired(
        tables.seed_values(run, "weighted_f1"), "average", tables.FRACTION, "student", "control"
    )
    student, control = (
        from_file(folder, m, "average", "weighted_f1") for m in ("student", "control")
    )
    assert cell.mean == pytest.approx(
        100 * np.mean([student[0] - control[0], student[2] - control[1]])
    )


def test_ratio_table_averages_draws_before_seeds(reported: Path) -> None:
    frame = tables.by_ratio(opened(reported)).blocks[""]
    assert list(frame.columns) == [*(f"{r / 10:g}" for r in range(11)), "AUC"]
    values = [100 * v for v in from_file(reported, "control", "ratio-0.3", "weighted_f1")]
    assert frame.loc["No-distillation control", "0.3"].mean == pytest.approx(np.mean(values))
    assert frame.loc["No-distillation control", "0.3"].half == pytest.approx(
        stats.t.ppf(0.975, 2) * stats.sem(values)
    )
    area = [100 * v for v in from_file(reported, "student", "ratios", "auc_weighted_f1")]
    assert frame.loc["CorrKD student", "AUC"].mean == pytest.approx(np.mean(area))
    assert frame.loc["Bayes ceiling", "AUC"] is None  # not measured


@pytest.mark.parametrize(
    ("modalities", "headings"),
    [
        (("language", "audio"), ["{l}", "{a}", "Avg.", "complete"]),
        (
            ("language", "audio", "vision"),
            ["{l}", "{a}", "{v}", "{l,a}", "{l,v}", "{a,v}", "Avg.", "complete"],
        ),
        (("b", "bb", "c"), ["{b}", "{bb}", "{c}", "{b,bb}", "{b,c}", "{bb,c}", "Avg.", "complete"]),
        (
            tuple("wxyz"),
            [
                *("{w}", "{x}", "{y}", "{z}", "{w,x}", "{w,y}", "{w,z}", "{x,y}", "{x,z}", "{y,z}"),
                *("{w,x,y}", "{w,x,z}", "{w,y,z}", "{x,y,z}", "Avg.", "complete"),
            ],
        ),
    ],
)
def test_condition_order(tmp_path: Path, modalities: tuple[str, ...], headings: list[str]) -> None:
    run = opened(write_fake_run(tmp_path / "run", modalities=modalities, samples=10))
    assert tables.inter_modality(run, "weighted_f1").columns == headings
    assert tables.per_class(run).columns == headings


def test_other_conditions_and_classes(reported: Path) -> None:
    run = opened(reported)
    assert tables.others(run, "weighted_f1").columns == [
        "burst 0.3",
        "burst 0.6",
        "late 0.5",
        "noise 0.5",
        "natural",
    ]
    blocks = tables.per_class(run).blocks
    assert list(blocks) == ["low", "middle", "high"]
    expected = 100 * np.mean(from_file(reported, "teacher", "audio+vision", "f1/middle"))
    assert blocks["middle"].loc["Teacher", "{a,v}"].mean == pytest.approx(expected)


def test_metrics_side_by_side(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", kind="score")
    table = tables.side_by_side(opened(folder))
    assert list(table.blocks) == ["Complete samples"]  # no protocol was tested
    assert table.columns == ["Weighted F1", "Accuracy", "Mean absolute error", "Correlation"]
    frame = table.blocks["Complete samples"]
    for metric, heading, scale, digits in (
        ("weighted_f1", "Weighted F1", 100, 2),
        ("mae", "Mean absolute error", 1, 3),
    ):
        means = {m: scale * np.mean(from_file(folder, m, "complete", metric)) for m in RUN_ARMS}
        cells = {m: frame.loc[TITLES[m], heading] for m in RUN_ARMS}
        assert {m: c.mean for m, c in cells.items()} == pytest.approx(means)
        assert {c.digits for c in cells.values()} == {digits}
        best = (min if metric == "mae" else max)(means, key=lambda m: means[m])
        assert cells[best].mark == "best"
    empty = write_fake_run(tmp_path / "empty")
    (empty / DATASET / "results.csv").write_text("method,seed,condition,draw,metric,value\n")
    with pytest.raises(AbsentError, match="none of the target's metrics"):
        tables.side_by_side(opened(empty))


def test_questions_are_the_blocks(tmp_path: Path) -> None:
    out = write_fake_run(tmp_path / "run", kind="questions")
    run = opened(out)
    blocks = tables.per_class(run).blocks
    assert list(blocks) == ["happy", "sad"]
    expected = 100 * np.mean(from_file(out, "student", "vision", "weighted_f1/sad"))
    assert blocks["sad"].loc["CorrKD student", "{v}"].mean == pytest.approx(expected)
    assert list(tables.confusion(run, "complete")) == ["happy", "sad"]


@given(
    st.lists(
        st.sampled_from([50.0, 50.001, 50.004, 50.01, 51.0, 49.0, math.nan]), min_size=2, max_size=5
    ),
    st.sampled_from([1, -1]),
)
@settings(deadline=None, max_examples=100)
def test_marks(means: list[float], sign: int) -> None:
    metric = Metric("x", "x", sign=sign)
    column = {str(i): Cell(m, 1.0) for i, m in enumerate(means)} | {"floor": Cell(1e9 * sign)}
    out = tables.marked(column, [str(i) for i in range(len(means))], metric)
    assert out["floor"].mark == ""
    texts = {m: f"{c.mean:.2f}" for m, c in out.items() if m != "floor" and not math.isnan(c.mean)}
    order = sorted(set(texts.values()), key=float, reverse=sign > 0)
    for method, text in texts.items():
        rank = order.index(text)  # equal to the reader, equal in rank
        assert out[method].mark == (["best", "second"][rank] if rank < 2 and len(order) > 1 else "")
    assert all(c.mark == "" for c in out.values() if math.isnan(c.mean))


@pytest.mark.parametrize(
    ("means", "marks"),
    [
        ([50.0, 50.001, 50.004], ["", "", ""]),  # they read the same
        ([60.0, 60.001, 50.0], ["best", "best", "second"]),
        ([39.0, 38.0, 20.0], ["", "", ""]),  # below the by-length floor
        ([40.0, 41.0, 20.0], ["", "best", ""]),  # one equals it
    ],
)
def test_equal_values_and_values_below_a_floor_are_not_marked(
    means: list[float], marks: list[str]
) -> None:
    column = {str(i): Cell(m, 1.0) for i, m in enumerate(means)}
    floors = {"majority": Cell(30.0), "by-length": Cell(40.0)}
    out = tables.marked(column | floors, list(column), tables.FRACTION)
    assert [out[m].mark for m in column] == marks
    assert {out[m].mark for m in floors} == {""}
    errors = Metric("x", "x", sign=-1)  # of which less is better
    out = tables.marked({"majority": Cell(1.0), "0": Cell(0.5), "1": Cell(1.5)}, ["0", "1"], errors)
    assert [out["0"].mark, out["1"].mark] == ["best", ""]


def test_best_of_calibration_is_the_lowest(reported: Path) -> None:
    column = tables.calibration(opened(reported)).blocks[""]["{a}"]
    assert min(column, key=lambda c: round(c.mean, 2)).mark == "best"
    assert max(column, key=lambda c: round(c.mean, 2)).mark == ""


def test_undefined_values_are_marked(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", kind="score")
    results = pd.read_csv(folder / DATASET / "results.csv")
    hit = (
        (results.method == "student")
        & (results.seed == 1)
        & (results.condition == "audio")
        & (results.metric == "corr")
    )
    assert hit.sum() == 1
    results.loc[hit, "value"] = math.nan
    results.to_csv(folder / DATASET / "results.csv", index=False)
    run = opened(folder)
    table = tables.inter_modality(run, "corr")
    assert tables.parts(table.blocks[""].loc["CorrKD student", "{a}"], 3) == ("undef.", "", "")
    assert "undef." in tables.to_html(table)
    assert tables.parts(table.blocks[""].loc["CorrKD student", "{l}"], 3)[0] != "undef."
    best = [
        t
        for t, c in tables.inter_modality(run, "mae").blocks[""]["Avg."].items()
        if c.mark == "best"
    ]
    means = {
        t: np.mean(from_file(folder, m, "average", "mae"))
        for m, t in TITLES.items()
        if m in RUN_ARMS
    }
    assert best == [min(means, key=means.get)]


def test_undefined_in_one_draw_is_undefined(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", samples=5)
    results = pd.read_csv(folder / DATASET / "results.csv")
    hit = (
        (results.method == "student")
        & (results.seed == 0)
        & (results.condition == "ratio-0.3")
        & (results.draw == 1)
    )
    results.loc[hit, "value"] = math.nan
    results.to_csv(folder / DATASET / "results.csv", index=False)
    values = tables.of(tables.seed_values(opened(folder), "weighted_f1"), "student", "ratio-0.3")
    assert values.isna().to_dict() == {0: True, 1: False, 2: False}


def test_confusion_counts(reported: Path) -> None:
    run = opened(reported)
    condition = tables.shown_conditions(run)[1]
    assert condition == "vision"  # the invented numbers make the last modality the weakest
    counts = tables.confusion(run, condition)[""].to_numpy()
    expected = np.zeros((3, 3), int)
    for seed in range(3):
        rows = pd.read_parquet(
            reported / DATASET / f"seed-{seed}" / "student" / "predictions.parquet"
        )
        for row in rows[rows.condition == condition].itertuples():
            expected[row.target, row.prediction] += 1
    assert counts.tolist() == expected.tolist()
    assert counts.sum() == 3 * 60


@pytest.mark.parametrize(
    ("value", "digits", "signed", "text"),
    [
        (1.005, 1, False, "1.0"),
        (-0.004, 2, False, "0.00"),
        (-0.004, 2, True, "0.00"),
        (-1.5, 2, False, "−1.50"),
        (0.5, 2, True, "+0.50"),
        (math.nan, 2, True, "undef."),
        (math.inf, 2, False, "∞"),
    ],
)
def test_number(value: float, digits: int, signed: bool, text: str) -> None:
    assert tables.number(value, digits, signed) == text


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), max_size=12))
@settings(deadline=None, max_examples=100)
def test_nothing_of_a_name_is_read_as_markup(name: str) -> None:
    escaped = r"\\[{}$&#_%]|\\text[a-z]+\{\}|\$(-|\\times|\\pm|\\infty)\$|[^{}$&#_%\\~^<>]"
    assert re.fullmatch(
        rf"(\{{[\[*]\}})?({escaped})*", tables.latex_text(name)
    )  # braced where it would be an argument of the line break
    markdown = tables.markdown_text(name)
    assert "<" not in markdown
    assert all(markdown[i - 1] == "\\" for i, c in enumerate(markdown) if c in "|*_`[]" and i)


def test_formats_carry_the_same_numbers(reported: Path) -> None:
    table = tables.inter_modality(opened(reported), "weighted_f1")
    cell = table.blocks[""].loc["CorrKD student", "Avg."]
    text = f"{cell.mean:.2f}"
    tag = {"best": ("<strong>", r"\textbf{", "**"), "second": ("<u>", r"\underline{", "<ins>")}[
        cell.mark
    ]
    for opening, written in zip(
        tag, (tables.to_html(table), tables.to_latex(table), tables.to_markdown(table)), strict=True
    ):
        assert opening + text in written
    rows = list(csv.reader(io.StringIO(tables.to_csv(table))))
    header, row = rows[0], next(r for r in rows if r[1] == "CorrKD student")
    assert float(row[header.index("Avg.")]) == cell.mean
    assert float(row[header.index("Avg.") + 1]) == cell.half
    assert len({len(r) for r in rows}) == 1
    latex = tables.to_latex(table)
    body = latex.split(r"\toprule")[1].split(r"\bottomrule")[0]
    assert all(line.count(" & ") == 8 for line in body.splitlines() if " & " in line)
    assert latex.count(r"\begin{tabular}{lrrrrrrrr}") == 1


def test_plain_report(reported: Path) -> None:
    lines = plain_report(reported).splitlines()
    assert lines[2] == DATASET
    assert [line.split()[0] for line in lines[4:7]] == ["Avg.", "complete", "{l}"]
    values = [
        f"{100 * np.mean(from_file(reported, m, 'average', 'weighted_f1')):.2f}"
        for m in ("teacher", "control", "student")
    ]
    assert [t for t in lines[4].split() if t in values] == values
    assert "l = language" in lines[-1].replace("\u00a0", " ")


def test_plain_report_without_results(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", samples=5)
    (folder / DATASET / "results.csv").unlink()
    assert f"{DATASET}: The run folder contains no results.csv." in plain_report(folder)


def test_text_tables_line_up_with_wide_characters() -> None:
    frame = pd.DataFrame(
        {"{l}": [Cell(1.0), Cell(2.0)], "[b]": [3, None]}, index=["感情\x1b[2J", "b"], dtype=object
    )
    lines = tables.to_text(tables.Table("t", "", "Method", {"": frame})).splitlines()
    assert [line.split() for line in lines] == [
        ["Method", "{l}", "[b]"],
        ["感情\\x1b[2J", "1.00", "3"],
        ["b", "2.00", "n/a"],
    ]
    assert {len(line) + line.count("感") + line.count("情") for line in lines} == {len(lines[2])}


def test_intervals_move_below_their_means_in_wide_tables() -> None:
    def html(half: float, columns: int) -> str:
        frame = pd.DataFrame(
            {str(i): [Cell(60.0, half)] for i in range(columns)}, index=["a"], dtype=object
        )
        return tables.to_html(tables.Table("t", "", "Method", {"": frame}))

    assert [('class="wide"' in html(half, 8)) for half in (1.5, 150.0)] == [False, True]
    assert 'class="wide"' in html(1.5, 12)
    assert 'class="wide"' not in html(math.nan, 12)


def test_absent_metric_is_named(reported: Path) -> None:
    with pytest.raises(AbsentError, match="mae"):
        tables.inter_modality(opened(reported), "mae")
