"""Temperatures from the validation split and prediction sets from held-out people, on the model's
card and in the report.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import corrkd
from corrkd.data.resample import CALIBRATION
from corrkd.errors import CorrKDError
from corrkd.experiment.calibrate import calibrate, sweep_splits, swept_samples, swept_splits
from corrkd.experiment.experiment import prepare
from corrkd.networks.saved import load_network
from tests.experiment.conftest import dataset_in, run_sketched, run_unreported, tiny


@pytest.fixture(scope="module")
def with_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "run"
    run_sketched(
        tiny(data={"calibration": 0.4}, evaluation={"coverage": 0.5}, seeds=[0, 1]), folder
    )
    return folder


def arm(run: Path, seed: int, name: str) -> Path:
    return dataset_in(run) / f"seed-{seed}" / name


def test_held_out_people_are_not_trained_on(with_sets: Path) -> None:
    experiment = prepare(corrkd.load_settings(dataset_in(with_sets) / "settings.yaml"))
    splits = {
        name: set(experiment.dataset.split(name).groups["person"])
        for name in experiment.dataset.splits
    }
    assert set(splits) == {"train", "valid", "test", CALIBRATION}
    assert not splits["train"] & splits[CALIBRATION]
    facts = json.loads((dataset_in(with_sets) / "run.json").read_text())
    assert facts["dataset"]["splits"]["train"] + facts["dataset"]["splits"][CALIBRATION] == 30
    assert any(note.startswith("Prediction sets: ") for note in facts["notes"])
    assert swept_splits(experiment) == ("valid", CALIBRATION, "test")


def test_the_card_agrees_with_the_table(with_sets: Path) -> None:
    for role in ("teacher", "student", "control"):
        table = pd.read_csv(arm(with_sets, 1, role) / "results.csv")
        tested = load_network(arm(with_sets, 1, role) / role).evaluated
        assert tested is not None
        assert (tested.split, tested.samples, tested.level) == ("test", 18, 0.5)
        means = table[table["method"] == role].groupby(["condition", "metric"])["value"].mean()
        for c in tested.conditions:
            assert c.measured == {m: pytest.approx(means[c.name, m]) for m in c.measured}
            assert {"weighted_f1", "ece_calibrated", "coverage", "set_size"} <= set(c.measured)


def test_calibration_reads_no_test_sample(with_sets: Path) -> None:
    """With another test split, its numbers are still the card's."""
    experiment = prepare(corrkd.load_settings(dataset_in(with_sets) / "settings.yaml"))
    saved = load_network(arm(with_sets, 0, "student") / "student")
    test = experiment.dataset.split("test")
    assert test.labels is not None
    changed = replace(
        test, frames={m: x + np.nan for m, x in test.frames.items()}, labels=test.labels[::-1]
    )
    splits = {**experiment.dataset.splits, "test": changed}
    experiment = replace(experiment, dataset=replace(experiment.dataset, splits=splits))
    assert saved.evaluated is not None
    samples = swept_samples(experiment)
    fitted = calibrate(sweep_splits([saved.network], experiment, samples)[0], experiment, samples)
    for c in saved.evaluated.conditions:
        calibration = fitted[c.name]
        assert calibration.temperature == c.temperature
        assert calibration.threshold == (np.inf if c.threshold is None else c.threshold)


def test_the_report_shows_calibration_and_coverage_by_group(with_sets: Path) -> None:
    text = (with_sets / "report.md").read_text()
    for phrase in (
        "*As trained*",
        "*With the condition's temperature*",
        "## Prediction sets",
        "sets that contain the true value for 50 % of the samples of a new group. To guarantee",
        "groups are exchangeable",
    ):
        assert phrase in text
    rows = pd.concat(
        pd.read_csv(arm(with_sets, seed, "student") / "coverage.csv") for seed in (0, 1)
    )
    coverage = (
        rows[(rows["method"] == "student") & (rows["condition"] == "complete")]
        .groupby("group")["coverage"]
        .mean()
    )
    line = next(
        x
        for x in text.split("coverage-by-group")[0].splitlines()
        if x.startswith(f"| complete | {len(coverage)} |")
    )
    assert f"{100 * coverage.min():.1f}" in line


def test_an_evaluation_on_the_validation_split_calibrates_nothing(tmp_path: Path) -> None:
    settings = tiny(
        evaluation={"split": "valid"}, teacher={"keep": "last"}, student={"keep": "last"}, seeds=[0]
    )
    done = run_unreported(settings, tmp_path / "run")
    assert "ece_calibrated" not in set(done.results["metric"])
    tested = load_network(arm(tmp_path / "run", 0, "student") / "student").evaluated
    assert tested is not None
    assert {c.temperature for c in tested.conditions} == {1.0}


def test_sets_are_for_the_test_split_alone(tmp_path: Path) -> None:
    with pytest.raises(
        CorrKDError, match=r"data\.calibration makes prediction sets for the test split alone"
    ):
        run_sketched(
            tiny(data={"calibration": 0.4}, evaluation={"split": "valid"}), tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()
