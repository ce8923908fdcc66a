"""One epoch on the real sets, end to end."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import corrkd
from tests.experiment.conftest import dataset_in, tiny

pytestmark = [pytest.mark.realdata, pytest.mark.usefixtures("no_report")]

ONE = {"teacher": {"epochs": 1, "batch_size": 64}, "student": {"epochs": 1, "batch_size": 64}}


def values(run: corrkd.Run, method: str = "student") -> pd.Series:
    rows = run.results[run.results["method"] == method]
    return rows.groupby(["condition", "metric"])["value"].mean()


@pytest.mark.slow
def test_hazumi(hazumi_pickle: Path, tmp_path: Path) -> None:
    settings = tiny(
        data={"path": str(hazumi_pickle), "target": "tertiles"},
        evaluation={"conditions": {"ratio": [0.5]}},
        **ONE,
    )
    run = corrkd.run(settings, tmp_path / "run")
    student = values(run)
    assert {"language", "audio+vision", "complete", "average", "natural"} <= set(
        student.index.get_level_values(0)
    )
    predictions = pd.read_parquet(
        dataset_in(run.folder) / "seed-0" / "student" / "predictions.parquet",
        columns=["method", "condition", "id"],
    )
    natural = predictions[
        (predictions["method"] == "student") & (predictions["condition"] == "natural")
    ]
    assert (
        191 <= len(natural) < 1476
    )  # windows that contain a silent exchange, the last one or another
    assert (
        student["complete", "weighted_f1"]
        > values(run, "majority")["complete", "weighted_f1"] + 0.05
    )


@pytest.mark.parametrize(
    "target", ["binary-nonzero", pytest.param("score", marks=pytest.mark.slow)]
)
def test_mosi(mosi_pickle: Path, tmp_path: Path, target: str) -> None:
    settings = tiny(
        data={"path": str(mosi_pickle), "target": target},
        evaluation={"conditions": {"ratio": [0.5], "burst": []}},
        **ONE,
    )
    run = corrkd.run(settings, tmp_path / "run")
    student = values(run)
    assert {"language", "audio", "complete", "average", "ratio-0.5"} == set(
        student.index.get_level_values(0)
    )
    assert (("complete", "mae") in student.index) == (target == "score")
    predictions = pd.read_parquet(
        dataset_in(run.folder) / "seed-0" / "student" / "predictions.parquet"
    )
    complete = predictions[
        (predictions["method"] == "student") & (predictions["condition"] == "complete")
    ]
    assert len(complete) == (
        686 if target == "score" else 656
    )  # 30 test segments have a score of 0
