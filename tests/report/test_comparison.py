from __future__ import annotations

import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from corrkd.errors import CorrKDError
from corrkd.evaluation import comparison
from corrkd.report import arm_tables, plain_report, write_report
from corrkd.report.findings import findings
from corrkd.report.page import part
from corrkd.report.report import head
from corrkd.report.reported import read_reported
from corrkd.report.run_folder import AbsentError, RunFolder
from corrkd.report.sections import standings_of
from corrkd.report.standings import SEED, Standing, analyse, method_counts, standings
from corrkd.report.tables import Table, to_csv
from tests.report.fake_run import (
    COMPARED_ARMS,
    DATASET,
    TITLES,
    edit_card,
    opened,
    subsets,
    write_fake_comparison,
)
from tests.report.test_page import read

DRAWS = 300
REFERENCE = "corrkd"
MODALITIES = ("language", "audio", "vision")
MAIN = [m for m in COMPARED_ARMS if m != "corrkd-without-scd"]


@pytest.fixture
def out(compared: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may change."""
    return shutil.copytree(compared, tmp_path / "out")


def family(
    run: RunFolder, methods: tuple[str, ...] | list[str], draws: int = DRAWS
) -> dict[str, Standing]:
    """Compute standings from the stored predictions."""
    return standings(method_counts(run), methods, REFERENCE, draws)


def from_file(out: Path, method: str, condition: str, metric: str = "weighted_f1") -> list[float]:
    with open(out / DATASET / "results.csv", newline="", encoding="utf-8") as file:
        wanted = (method, condition, metric)
        return [
            100 * float(r["value"])
            for r in csv.DictReader(file)
            if (r["method"], r["condition"], r["metric"]) == wanted
        ]


def edit_results(out: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    file = out / DATASET / "results.csv"
    change(pd.read_csv(file, dtype={"seed": "Int64"})).to_csv(file, index=False)


def arrays(out: Path, method: str) -> np.ndarray[Any, Any]:
    """Count predictions row by row, (S, C, G, 1, K, K)."""
    run = out / DATASET
    groups = dict(pd.read_csv(run / "groups.csv").itertuples(index=False))
    group_index = {g: i for i, g in enumerate(sorted(set(groups.values())))}
    conditions = subsets(MODALITIES)[:-1]
    counts = np.zeros((3, len(conditions), len(group_index), 1, 3, 3), int)
    for seed in range(3):
        rows = pd.read_parquet(run / f"seed-{seed}" / method / "predictions.parquet")
        for row in rows[rows["condition"].isin(conditions)].itertuples():
            counts[
                seed,
                conditions.index(row.condition),
                group_index[groups[row.id]],
                0,
                row.target,
                row.prediction,
            ] += 1
    return counts


def replace_by_corrkd(out: Path, method: str) -> None:
    """Give a method CorrKD's predictions and scores."""
    for folder in (out / DATASET).glob("seed-*"):
        rows = pd.read_parquet(folder / REFERENCE / "predictions.parquet").assign(method=method)
        rows.to_parquet(folder / method / "predictions.parquet", index=False)
    edit_results(
        out,
        lambda r: pd.concat(
            [r[r["method"] != method], r[r["method"] == REFERENCE].assign(method=method)]
        ),
    )


def remove_runs(out: Path, method: str, *seeds: int) -> None:
    """Remove these runs, as if they had failed."""
    for seed in seeds:
        shutil.rmtree(out / DATASET / f"seed-{seed}" / method)
    edit_results(out, lambda r: r[(r["method"] != method) | ~r["seed"].isin(seeds)])


def test_inter_modality_matches_the_file(compared: Path) -> None:
    table = arm_tables.inter_modality(opened(compared), "weighted_f1", {})
    frame = table.blocks[""]
    assert list(frame.index) == ["Majority floor", *(TITLES[m] for m in MAIN)]
    assert table.columns == ["{l}", "{a}", "{v}", "{l,a}", "{l,v}", "{a,v}", "Avg.", "complete"]
    for condition, column in zip(
        [*subsets(MODALITIES)[:-1], "average", "complete"], table.columns, strict=True
    ):
        means = {m: float(np.mean(from_file(compared, m, condition))) for m in MAIN}
        for method, mean in means.items():
            assert frame.loc[TITLES[method], column].mean == pytest.approx(mean)
        best, second = sorted(means, key=lambda m: -means[m])[:2]
        marks = {title: cell.mark for title, cell in frame[column].items() if cell.mark}
        assert marks == {TITLES[best]: "best", TITLES[second]: "second"}
    assert "Trained on complete samples only: SELF-MM, Teacher." in table.caption


def test_differences_are_paired_within_seeds(out: Path) -> None:
    remove_runs(out, "gcnet", 1)
    frame = arm_tables.differences_table(opened(out)).blocks[""]
    assert "CorrKD" not in frame.index
    for condition, heading in (("language", "{l}"), ("average", "Avg."), ("complete", "complete")):
        reference = from_file(out, REFERENCE, condition)
        for method, seeds in (("gcnet", (0, 2)), ("no-distillation", (0, 1, 2))):
            values = dict(zip(seeds, from_file(out, method, condition), strict=True))
            differences = [values[seed] - reference[seed] for seed in seeds]
            cell = frame.loc[TITLES[method], heading]
            assert cell.mean == pytest.approx(np.mean(differences))
            assert cell.half == pytest.approx(comparison.half_width(np.array(differences)))
    assert frame.loc["GCNET", "Seeds"] == 2


def test_statistics_match_the_counts(compared: Path) -> None:
    by_method = family(opened(compared), MAIN)
    reference, counts = arrays(compared, REFERENCE), arrays(compared, "gcnet")
    standing, chance = by_method["gcnet"], {"seed": SEED, "draws": DRAWS}
    assert standing.seeds == 3
    assert standing.average == comparison.group_interval(counts, **chance)
    assert standing.difference == comparison.paired_group_interval(counts, reference, **chance)
    assert standing.p == comparison.sign_flip_test(counts, reference, **chance)
    others = [m for m in MAIN if m != REFERENCE]
    assert [by_method[m].adjusted for m in others] == pytest.approx(
        comparison.holm([by_method[m].p for m in others])
    )
    assert (by_method[REFERENCE].difference, by_method[REFERENCE].p) == (None, None)


@pytest.mark.parametrize("kind", ["classes", "questions", "score"])
def test_average_of_counts_matches_the_scores(tmp_path: Path, kind: str) -> None:
    out = write_fake_comparison(
        tmp_path / "out", arms=("gcnet", "corrkd"), seeds=(0, 1), samples=30, kind=kind
    )
    for method, standing in family(opened(out), ("gcnet", "corrkd"), 20).items():
        assert 100 * standing.average.mean == pytest.approx(
            np.mean(from_file(out, method, "average"))
        )


def test_equal_predictions_are_not_significantly_different(out: Path) -> None:
    replace_by_corrkd(out, "gcnet")
    analysis = analyse(DATASET, opened(out), DRAWS)
    assert isinstance(analysis.main, dict)
    same = analysis.main["gcnet"]
    assert same.difference == (0.0, 0.0, 0.0)
    assert (same.p, same.adjusted) == (1.0, 1.0)
    assert re.search(r"\d (is|are) not significantly different", " ".join(findings(analysis)))
    ranking = arm_tables.ranking_table(opened(out), analysis.main).blocks[""]
    assert ranking.loc["GCNET", "Rank"] == ranking.loc["CorrKD", "Rank"]
    assert ranking.loc["GCNET", "Compared with CorrKD"] == "not significantly different"
    frame = standings_of(analysis, "main").blocks[""]
    assert frame.loc["GCNET", "Mean rank"].mean == frame.loc["CorrKD", "Mean rank"].mean


def test_standings_table_shows_both_intervals(compared: Path) -> None:
    analysis = analyse(DATASET, opened(compared), DRAWS)
    table = standings_of(analysis, "main")
    assert isinstance(analysis.main, dict)
    row, standing = table.blocks[""].loc["Teacher"], analysis.main["teacher"]
    values = np.array(from_file(compared, "teacher", "average"))
    assert row["Avg., t over seeds"].half == pytest.approx(comparison.half_width(values))
    assert row["Avg., persons × seeds"].ends == pytest.approx(
        (100 * standing.average.low, 100 * standing.average.high)
    )
    assert row["minus CorrKD, persons × seeds"].mean == pytest.approx(
        100 * standing.difference.mean
    )
    assert "8 persons" in table.caption
    assert f"{DRAWS:,} draws" in table.caption
    header = next(csv.reader(to_csv(table).splitlines()))
    assert {
        "Avg., persons × seeds low",
        "Avg., persons × seeds high",
        "Avg., t over seeds ±",
    } <= set(header)
    ablation = standings_of(analysis, "ablation").blocks[""]
    assert list(ablation.index) == ["CORRKD-WITHOUT-SCD"]
    assert ablation.iloc[0]["p"].mean == ablation.iloc[0]["p, Holm"].mean  # a family of one


def test_a_failed_seed_is_absent_and_counted(out: Path) -> None:
    remove_runs(out, "gcnet", 1)
    frame = arm_tables.inter_modality(opened(out), "weighted_f1", {}).blocks[""]
    assert frame["Seeds"].to_dict() == {
        t: {"GCNET": 2, "Majority floor": None}.get(t, 3) for t in frame.index
    }
    standing = family(opened(out), MAIN)["gcnet"]
    pair = [counts[[0, 2]] for counts in (arrays_with(out, "gcnet"), arrays(out, REFERENCE))]
    assert standing.seeds == 2
    assert standing.difference == comparison.paired_group_interval(*pair, seed=SEED, draws=DRAWS)


def arrays_with(out: Path, method: str) -> np.ndarray[Any, Any]:
    """Return `arrays` where seed 1 is absent."""
    shutil.copytree(out / DATASET / "seed-0" / method, out / DATASET / "seed-1" / method)
    counts = arrays(out, method)
    shutil.rmtree(out / DATASET / "seed-1" / method)
    return counts


def test_without_corrkd_nothing_is_tested(out: Path) -> None:
    remove_runs(out, REFERENCE, 0, 1, 2)
    analysis = analyse(DATASET, opened(out), DRAWS)
    assert (
        "CorrKD" not in arm_tables.inter_modality(opened(out), "weighted_f1", {}).blocks[""].index
    )
    assert isinstance(analysis.main, dict)
    assert {s.p for s in analysis.main.values()} == {None}
    assert "nothing is tested" in " ".join(findings(analysis))


def test_few_groups_are_reported(tmp_path: Path) -> None:
    out = write_fake_comparison(tmp_path / "out", arms=("gcnet", "corrkd"), seeds=(0, 1), persons=4)
    sentences = " ".join(findings(analyse(DATASET, opened(out), DRAWS)))
    assert "Of 1 method compared with CorrKD on Avg., 1 is not significantly differ" in sentences
    assert "the smallest possible p is 0.125 after Holm" in sentences  # 2 / 2^4


def test_the_ranking_is_by_the_average_and_reports_the_test(compared: Path) -> None:
    analysis = analyse(DATASET, opened(compared), DRAWS)
    assert isinstance(analysis.main, dict)
    frame = arm_tables.ranking_table(opened(compared), analysis.main).blocks[""]
    means = {TITLES[m]: float(np.mean(from_file(compared, m, "average"))) for m in MAIN}
    assert list(frame.index) == sorted(means, key=lambda title: -means[title])
    assert frame["Rank"].tolist() == [1, 2, 3, 4, 5]
    for m in MAIN:
        row, standing = frame.loc[TITLES[m]], analysis.main[m]
        assert row["Avg."].mean == pytest.approx(means[TITLES[m]])
        if m == REFERENCE:
            assert row["Compared with CorrKD"] == "reference"
            continue
        differs = standing.adjusted < 0.05 and (
            standing.difference.low > 0 or standing.difference.high < 0
        )
        side = "lower" if standing.difference.mean < 0 else "higher"
        assert row["Compared with CorrKD"] == (
            f"significantly {side}" if differs else "not significantly different"
        )
    assert set(frame["Compared with CorrKD"]) >= {"reference", "significantly lower"}


def test_any_arm_can_be_the_reference(compared: Path) -> None:
    run = opened(compared).compared_with("gcnet")
    analysis = analyse(DATASET, run, DRAWS)
    assert isinstance(analysis.main, dict)
    assert analysis.main["gcnet"].difference is None
    usual = family(opened(compared), MAIN)["gcnet"].difference
    assert analysis.main["corrkd"].difference.mean == pytest.approx(-usual.mean)
    assert "minus GCNET, persons × seeds" in standings_of(analysis, "main").columns
    assert list(arm_tables.ablation_table(run).blocks[""].index) == [
        "CorrKD",
        "GCNET",
        "CORRKD-WITHOUT-SCD",
        "NO-DISTILLATION",
    ]
    with pytest.raises(CorrKDError, match=r"no arm 'kl' to compare with; available: self-mm"):
        opened(compared).compared_with("kl")


def test_methods_of_other_packages_are_not_listed_as_controls(
    compared: Path, tmp_path: Path
) -> None:
    run = opened(compared)
    plug_in = run.card.methods[0].model_copy(
        update={"name": "plug-in", "title": "Plug-in", "kind": "method"}
    )
    methods = [*run.card.methods, plug_in]
    run = RunFolder(run.path, run.card.model_copy(update={"methods": methods}))
    families = arm_tables.curve_families(run)
    assert families == {
        "published methods": ["self-mm", "gcnet", "corrkd"],
        "controls": ["teacher", "no-distillation", "corrkd"],
        "other methods": ["plug-in", "corrkd"],
    }
    terms = head({DATASET: run})
    assert (terms["Controls"], terms["Methods"]) == ("Teacher, NO-DISTILLATION", "Plug-in, CorrKD")


def test_ranks(compared: Path) -> None:
    frame = arm_tables.ranks_table(opened(compared)).blocks[""]
    means = {m: np.mean(from_file(compared, m, "audio")) for m in MAIN}
    assert {t: c.mean for t, c in frame["{a}"].items()} == {
        TITLES[m]: 1 + sum(other > mean for other in means.values()) for m, mean in means.items()
    }
    conditions = [*subsets(MODALITIES), *(f"ratio-{r / 10:.1f}" for r in range(1, 11))]
    ranks = [
        1
        + sum(
            np.mean(from_file(compared, other, c)) > np.mean(from_file(compared, "corrkd", c))
            for other in MAIN
        )
        for c in conditions
    ]
    assert frame.loc["CorrKD", "all"].mean == pytest.approx(np.mean(ranks))


def test_ablation_rows(compared: Path) -> None:
    frame = arm_tables.ablation_table(opened(compared)).blocks[""]
    assert list(frame.index) == ["CorrKD", "CORRKD-WITHOUT-SCD", "NO-DISTILLATION"]
    with pytest.raises(AbsentError):
        arm_tables.ablation_table(without_ablation(opened(compared)))


def without_ablation(run: RunFolder) -> RunFolder:
    methods = [m for m in run.card.methods if m.kind != "ablation"]
    return RunFolder(run.path, run.card.model_copy(update={"methods": methods}))


def test_size_and_time(out: Path) -> None:
    costs = pd.read_csv(out / DATASET / "costs.csv").astype({"train_seconds": float})
    costs.loc[costs["method"] == "gcnet", "peak_memory_bytes"] = math.nan
    costs.to_csv(out / DATASET / "costs.csv", index=False)
    frame = arm_tables.size_table(opened(out)).blocks[""]
    assert frame.loc["GCNET", "Parameters"] == 2000
    assert (frame.loc["GCNET", "Epochs"].mean, frame.loc["GCNET", "Epochs"].ends) == (
        11.0,
        (10.0, 12.0),
    )
    assert list(frame.columns) == ["Parameters", "Epochs"]
    frame = arm_tables.time_table(opened(out)).blocks[""]
    assert frame.loc["GCNET", "Peak memory, MB"] is None
    assert frame.loc["Teacher", "Peak memory, MB"] == 300
    assert "Device" not in frame
    devices = np.where(costs["seed"] == 1, "a <b>GPU</b>", "cpu")
    costs.assign(device=devices).to_csv(out / DATASET / "costs.csv", index=False)
    frame = arm_tables.time_table(opened(out)).blocks[""]
    assert set(frame["Device"]) == {"a <b>GPU</b>, cpu"}


HEAD = "method,condition,metric,value,source\n"


def test_reported_rows_are_marked_and_change_nothing(compared: Path, tmp_path: Path) -> None:
    file = tmp_path / "reported.csv"
    rows = [
        "DMD,Avg.,weighted_f1,99.9,Someone 2024",
        'DMD,"{v, a}",weighted_f1,98,Someone 2024',
        "X,complete,accuracy,7,",
    ]
    rows += [
        'DMD,"{l,a,v}",weighted_f1,97,Someone 2024',
        "DMD,audio+language,weighted_f1,96,Someone 2024",
    ]
    file.write_text(HEAD + "\n".join(rows), encoding="utf-8")
    run = opened(compared)
    papers = read_reported(file, {"invented": run})
    plain, table = (
        arm_tables.inter_modality(run, "weighted_f1", reported)
        for reported in ({}, arm_tables.of_dataset(papers, "invented", "weighted_f1"))
    )
    assert plain.blocks[""].equals(table.blocks[""])
    frame = table.blocks[arm_tables.BLOCK]
    assert list(frame.index) == ["DMD (reported: Someone 2024)"]
    cells = {c: (e.mean, e.half, e.mark) for c, e in frame.iloc[0].items() if e is not None}
    assert cells == {
        "Avg.": (99.9, None, ""),
        "{a,v}": (98.0, None, ""),
        "complete": (97.0, None, ""),
        "{l,a}": (96.0, None, ""),
    }
    assert list(arm_tables.of_dataset(papers, "invented", "accuracy")) == ["X (reported)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method,condition,value\n", "no column metric"),
        ("", "no column method"),
        (
            HEAD + "a,average,weighted_f1,50,s\nb,{l,weighted_f1,50,s\n",
            "row 3: unknown condition '{l'",
        ),
        (HEAD + "a,average,f2,50,s\n", "row 2: unknown metric 'f2'"),
        (HEAD + "a,average,mae,0.7,s\n", "row 2: unknown metric 'mae'"),
        (HEAD + "a,average,accuracy,many,s\n", "row 2: value 'many' is not a number"),
        (HEAD + "a,average,accuracy,nan,s\n", "row 2: value 'nan' is not a number"),
        (HEAD + "a,average,accuracy,0.61,s\n", "row 2: value 0.61 is not in the table's scale"),
        (HEAD + ",average,accuracy,61,s\n", "row 2: method is empty"),
        (HEAD + "a,average,accuracy\n", "row 2: expected 5 columns"),
        (HEAD + "a,{l,a},accuracy,61,s\n", "row 2: expected 5 columns"),
        (
            HEAD + "a,average,accuracy,61,s\na,Avg.,accuracy,62,s\n",
            "row 3: condition 'Avg.' of a appears twice",
        ),
        (
            "dataset," + HEAD + "mosi,a,average,accuracy,61,s\n",
            "row 2: unknown dataset 'mosi'; expected invented",
        ),
    ],
)
def test_bad_reported_files(compared: Path, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "reported.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(CorrKDError, match=re.escape(message)) as caught:
        read_reported(file, {DATASET: opened(compared)})
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_reported_files_that_cannot_be_read(compared: Path, tmp_path: Path) -> None:
    with pytest.raises(CorrKDError, match="nowhere"):
        read_reported(tmp_path / "nowhere.csv", {DATASET: opened(compared)})
    (tmp_path / "latin.csv").write_bytes("method\u00e9".encode("latin-1"))
    with pytest.raises(CorrKDError, match="not a CSV file in UTF-8"):
        read_reported(tmp_path / "latin.csv", {DATASET: opened(compared)})


def test_reported_rows_need_a_dataset_if_there_are_several(compared: Path, tmp_path: Path) -> None:
    runs = {"invented": opened(compared), "other": opened(compared)}
    (tmp_path / "reported.csv").write_text(HEAD + "a,average,accuracy,61,s\n", encoding="utf-8")
    with pytest.raises(
        CorrKDError,
        match="dataset is empty, but there are several datasets; expected invented or other",
    ):
        read_reported(tmp_path / "reported.csv", runs)


def test_plain_report_of_many_arms(compared: Path) -> None:
    lines = plain_report(compared).splitlines()
    row = next(line for line in lines if line.startswith("GCNET"))
    assert [float(v) for v in re.findall(r"([\d.]+) ±", row)] == [
        round(float(np.mean(from_file(compared, "gcnet", c))), 2) for c in ("average", "complete")
    ]
    assert "CORRKD-WITHOUT-SCD" in "\n".join(lines)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda rows: pd.concat([rows, rows.iloc[:1]]), "name a sample twice"),
        (
            lambda rows: rows[(rows["condition"] != "audio") | (rows["id"] != "s003")],
            "are not all there",
        ),
        (lambda rows: rows.assign(id="x" + rows["id"]), "groups.csv: sample 'xs000' has no group"),
    ],
)
def test_inconsistent_predictions_are_refused(
    out: Path, damage: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    file = out / DATASET / "seed-0" / "corrkd" / "predictions.parquet"
    rows = pd.read_parquet(file)
    damage(
        rows.sort_values(["condition", "id"], key=lambda c: c.where(c != "language", ""))
    ).to_parquet(file, index=False)
    with pytest.raises(CorrKDError, match=re.escape(message)):
        method_counts(opened(out))


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two datasets with names that need escaping in HTML, a failed run, and the report.
    Tests must not change it.
    """
    out = write_fake_comparison(
        tmp_path_factory.mktemp("comparisons") / "two",
        datasets=("z.first", "a_second"),
        seeds=(0, 1),
        samples=24,
    )
    methods = json.loads((out / "z.first" / "run.json").read_text())["methods"]
    next(m for m in methods if m["name"] == "gcnet")["title"] = '<b>"G"&N</b>'
    edit_card(out, "z.first", methods=methods)
    (out / "failures.csv").write_text(
        "dataset,method,seed,error\nz.first,dmd,1,no <i>memory</i>\n", encoding="utf-8"
    )
    (out / "reported.csv").write_text(
        f"dataset,{HEAD}a_second,DMD,Avg.,weighted_f1,61.2,a paper\n", encoding="utf-8"
    )
    write_report(out, draws=30)
    return out


def test_page_of_two_datasets(written: Path) -> None:
    reader = read(written)
    text = "".join(reader.texts)
    ids = [v for _, a, v in reader.attributes if a == "id"]
    assert len(ids) == len(set(ids))
    assert '<b>"G"&N</b>' in text
    assert "z.first, dmd, seed 1: no <i>memory</i>" in text
    assert "DMD (reported: a paper)" in text
    assert text.count("Masks: the same for all.") == 1
    assert text.count("Epochs of a_second: 20.") == 1
    headings = re.findall(r"<h2>(.*?)</h2>", (written / "report.html").read_text(encoding="utf-8"))
    assert headings.index("z.first") < headings.index("a_second")  # as in plan.yaml
    assert not [
        value for _, name, value in reader.attributes if (name, value) == ("class", "absent")
    ]


def test_file_names_start_with_the_dataset(written: Path) -> None:
    for name in ("z.first", "a_second"):
        for table in (
            "inter-modality-weighted-f1",
            "against-reference",
            "missing-ratios",
            "per-class",
            "ablation",
            "ranks",
            "ranking",
            "size",
            "time",
        ):
            assert {".csv", ".tex"} == {
                p.suffix for p in (written / "tables").glob(f"{name}-{table}.*")
            }
        for figure in ("missing-ratios-published-methods", "missing-ratios-controls", "projection"):
            assert {".svg", ".png"} == {
                p.suffix for p in (written / "figures").glob(f"{name}-{figure}.*")
            }
    linked = set(
        re.findall(r"\]\(figures/([^)]+)\)", (written / "report.md").read_text(encoding="utf-8"))
    )
    assert linked == {p.name for p in (written / "figures").glob("*.svg")}


def test_projection_shows_teacher_corrkd_and_no_distillation(written: Path) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    assert (
        "Scatter plots of teacher/complete, teacher/language, no-distillation/language, "
        "corrkd/language" in text
    )


def test_without_predictions_only_the_test_is_absent(out: Path) -> None:
    for file in (out / DATASET).glob("seed-*/*/predictions.parquet"):
        file.unlink()
    analysis = analyse(DATASET, opened(out), DRAWS)
    assert isinstance(analysis.main, AbsentError)
    assert isinstance(part(standings_of, analysis, "main"), AbsentError)
    assert isinstance(part(arm_tables.inter_modality, opened(out), "weighted_f1", {}), Table)
    assert "No test: No seed's folder contains predictions.parquet." in " ".join(findings(analysis))
