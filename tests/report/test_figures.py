from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from corrkd.report import figures
from corrkd.report.run_folder import AbsentError
from tests.report.fake_run import DATASET, opened, write_fake_run


def test_files_contain_no_date_and_no_version(reported: Path) -> None:
    for file in (reported / "figures").iterdir():
        content = file.read_bytes()
        assert b"atplotlib v" not in content
        assert b"dc:date" not in content
        if file.suffix == ".png":
            width, height = struct.unpack(">II", content[16:24])
            assert min(width, height) > 400
            assert b"tEXt" not in content


def test_kept_epochs_come_from_the_history(tmp_path: Path) -> None:
    """With `keep: last` the last epoch is kept, even if another is better."""
    out = write_fake_run(tmp_path / "run", seeds=(0, 10, 2), samples=5)
    run = opened(out)
    history = run.history()
    best = history.loc[history.groupby(["method", "seed"])["valid/weighted_f1"].idxmax(), "epoch"]
    assert not best.isin([12, 20]).all()
    assert figures.kept_epochs(history, ["student", "teacher"]) == {
        "student": [12] * 3,
        "teacher": [20] * 3,
    }
    assert "CorrKD student: 12, 12, 12." in figures.training(run).caption


def test_training_shows_only_the_terms_of_the_focus(compared: Path) -> None:
    svg = figures.training(
        opened(compared)
    ).svg.decode()  # the history has the baselines' terms too
    assert ">\u2009rcd<" in svg
    assert "reconstruction" not in svg


def test_embedding_is_deterministic_and_separates_clusters() -> None:
    rng = np.random.default_rng(0)
    clusters = np.concatenate([rng.normal(0, 0.1, (40, 8)), rng.normal(5, 0.1, (40, 8))]).astype(
        np.float16
    )
    points = figures.embedded(clusters)
    assert points.shape == (80, 2)
    assert np.array_equal(points, figures.embedded(clusters))
    near = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(near, np.inf)
    assert (near[:40].argmin(1) < 40).all()
    assert (near[40:].argmin(1) >= 40).all()


@pytest.mark.parametrize("shape", [(1, 4), (3, 4), (30, 1), (30, 4)])
def test_embedding_of_few_samples_is_finite(shape: tuple[int, int]) -> None:
    assert np.isfinite(figures.embedded(np.zeros(shape, np.float16))).all()
    varied = np.random.default_rng(1).normal(size=shape)
    assert figures.embedded(varied).shape == (shape[0], 2)
    assert np.isfinite(figures.embedded(varied)).all()


def test_projection_takes_the_selected_condition(reported: Path) -> None:
    run = opened(reported)
    default, selected = figures.projection(run), figures.projection(run, "audio+vision")
    assert (
        "of teacher/complete, teacher/language, control/language, student/language," in default.alt
    )
    assert "student/audio+vision," in selected.alt
    assert default.svg != selected.svg
    with pytest.raises(AbsentError, match="smell"):
        figures.projection(run, "smell")


def test_alt_text_names_the_ends_of_the_curves(reported: Path) -> None:
    results = pd.read_csv(reported / DATASET / "results.csv")
    rows = results[(results.method == "student") & (results.metric == "weighted_f1")]
    first, last = (rows[rows.condition == f"ratio-{r}"].value.mean() * 100 for r in ("0.0", "1.0"))
    assert (
        f"CorrKD student from {first:.1f} to {last:.1f}"
        in figures.ratio_curves(opened(reported)).alt
    )
