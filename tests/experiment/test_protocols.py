"""Presets and protocols of published tables, through runs and their reports."""

from __future__ import annotations

import csv
import itertools
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import corrkd
from corrkd.csv_files import read_csv
from corrkd.data.synthetic import SyntheticSpec, make
from corrkd.evaluation.judge import masks_of, protocol_means
from corrkd.missing.manifest import load_manifest, save_manifest
from tests.command import TINY
from tests.experiment.conftest import run_sketched, tiny

SHORT = ["teacher.epochs=1", "student.epochs=1", "seeds=[0]", "evaluation.draws=1"]


def write_mmsa(path: Path, bound: float) -> Path:
    """Write a file of MMSA's unaligned layout, with scores from -bound to bound in steps of a fifth
    of it.
    """
    rng = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", 30), ("valid", 15), ("test", 15)):
        scores = bound * (np.arange(count) % 11 - 5) / 5
        splits[split] = {
            "id": np.array([f"{split}{i}$_$0" for i in range(count)]),
            "regression_labels": scores.astype(np.float32),
            **{
                m: (rng.normal(size=(count, 4, 5)) + scores[:, None, None] / bound).astype(
                    np.float32
                )
                for m in ("text", "audio", "vision")
            },
            **{f"{m}_lengths": [4] * count for m in ("audio", "vision")},
        }
    path.write_bytes(pickle.dumps(splits))
    return path


@pytest.mark.parametrize(
    ("preset", "bound"),
    [
        ("mmsa-mosi", 3.0),
        pytest.param("mmsa-mosei", 3.0, marks=pytest.mark.slow),  # of the same target
        ("mmsa-sims", 1.0),
    ],
)
def test_a_preset_of_mmsa_runs_on_its_layout(preset: str, bound: float, tmp_path: Path) -> None:
    data: dict[str, Any] = {"path": str(write_mmsa(tmp_path / "unaligned.pkl", bound))}
    settings = corrkd.load_settings(
        preset=preset,
        data=data,
        overrides=[*SHORT, "evaluation.protocols=[lnln]"],
        **{key: TINY[key] for key in ("teacher", "evaluation", "device")},
    )
    done = run_sketched(settings, tmp_path / "run")
    target = settings.data.target
    complete = done.results[
        (done.results["condition"] == "complete") & (done.results["method"] == "student")
    ]
    measured = complete.set_index("metric")["value"]
    expected = {
        "mosi-score": {"acc2_has_zero", "acc2_nonzero", "acc7"},
        "sims-score": {"acc2", "acc3"},
    }[target]
    assert expected | {"weighted_f1", "acc5", "mae", "corr"} <= set(measured.index)
    assert measured[sorted(expected)].between(0, 1).all()
    assert set(measured.index) <= set(
        done.results.loc[done.results["condition"] == "mean-lnln", "metric"]
    )


RATES = {
    "mean-lnln": [f"ratio-0.{k}" for k in range(10)],
    "mean-gcnet": [f"absent-0.{k}" for k in range(8)],
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> corrkd.Run:
    evaluation = {
        "protocols": ["lnln", "gcnet"],
        "conditions": {"ratio": [], "burst": []},
        "draws": 2,
    }
    settings = tiny(
        teacher={"epochs": 1}, student={"epochs": 1}, evaluation=evaluation, seeds=[0, 1]
    )
    return run_sketched(settings, tmp_path_factory.mktemp("protocols") / "run")


def test_means_agree_with_the_rows_of_results(done: corrkd.Run) -> None:
    """Read with the csv module and averaged by loops: draws first, then the rates."""
    with open(done.folder / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    keys = {(r["method"], r["seed"], r["metric"]) for r in rows if r["condition"] == "complete"}
    assert {"student", "teacher", "control", "majority", "bayes"} <= {
        method for method, _, _ in keys
    }
    assert {"accuracy", "unweighted_accuracy", "weighted_f1"} <= {metric for _, _, metric in keys}
    for (method, seed, metric), (row, names) in itertools.product(keys, RATES.items()):
        arm_rows = [
            r for r in rows if (r["method"], r["seed"], r["metric"]) == (method, seed, metric)
        ]
        draws = [[float(r["value"]) for r in arm_rows if r["condition"] == name] for name in names]
        if seed:  # the majority floor is the same in all draws
            assert [len(values) for values in draws] == [1] + [2] * (len(names) - 1)
        expected = sum(sum(values) / len(values) for values in draws) / len(names)
        (mean,) = [float(r["value"]) for r in arm_rows if r["condition"] == row]
        assert math.isclose(mean, expected, abs_tol=1e-12)


def test_the_report_has_one_table_of_the_means(done: corrkd.Run) -> None:
    with open(done.folder / "tables" / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = {(r["block"], r["Method"]): r for r in csv.DictReader(file)}
    blocks = {"complete": "Complete samples", "mean-lnln": "LNLN: mean over its rates"}
    blocks["mean-gcnet"] = "GCNet: mean over its rates"
    assert {block for block, _ in rows} == set(blocks.values())
    headings = {
        "accuracy": "Accuracy",
        "unweighted_accuracy": "Unweighted accuracy",
        "weighted_f1": "Weighted F1",
    }
    values = (
        done.results[done.results["method"] == "student"]
        .groupby(["condition", "metric"])["value"]
        .mean()
    )
    for (condition, block), (metric, heading) in itertools.product(
        blocks.items(), headings.items()
    ):
        (row,) = [
            row for (name, method), row in rows.items() if name == block and "student" in method
        ]
        assert float(row[heading]) == pytest.approx(100 * values[condition, metric])
    report = (done.folder / "report.md").read_text("utf-8")
    assert "mean over the rates 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7." in report


def test_a_protocol_is_replayed_from_a_file(done: corrkd.Run, tmp_path: Path) -> None:
    student, data = (
        corrkd.load_student(done.folder),
        make(SyntheticSpec(**tiny()["data"]["synthetic"])),
    )
    named = corrkd.evaluate(student, data, conditions=["mean-gcnet"], draws=2)
    save_manifest(tmp_path / "masks", masks_of(student, data, conditions=["mean-gcnet"], draws=2))
    replayed = corrkd.evaluate(student, data, masks=load_manifest(tmp_path / "masks"))
    assert named.equals(replayed)
    stored = read_csv(next(done.folder.glob("*/seed-0/student/results.csv")))
    means = [
        frame[frame["condition"] == "mean-gcnet"].set_index("metric")["value"]
        for frame in (named, stored)
    ]
    assert means[0].to_dict() == means[1].to_dict()


def test_a_mean_is_undefined_if_any_rate_is_and_absent_if_any_is() -> None:
    """A correlation is undefined where predictions are constant."""
    table = pd.DataFrame(
        [(name, 0, metric, 0.5) for name in RATES["mean-lnln"] for metric in ("mae", "corr")],
        columns=["condition", "draw", "metric", "value"],
    )
    table.loc[(table["condition"] == "ratio-0.9") & (table["metric"] == "corr"), "value"] = math.nan
    (means,) = protocol_means(table, ("language", "audio", "vision"))
    values = means.set_index("metric")["value"]
    assert set(means["condition"]) == {"mean-lnln"}
    assert values["mae"] == 0.5
    assert math.isnan(values["corr"])
    assert (
        protocol_means(table[table["condition"] != "ratio-0.4"], ("language", "audio", "vision"))
        == []
    )
