"""End to end: a class that follows from language's length alone cannot be read from samples without
language.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.experiment.conftest import run_unreported, tiny


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Weighted F1 by method and condition of a run on two classes that differ only in the length of
    language.
    """
    folder = tmp_path_factory.mktemp("lengths")
    rng = np.random.default_rng(0)
    count, frames = 360, 8
    labels = rng.integers(0, 2, count)
    lengths = np.where(labels == 0, rng.integers(2, 4, count), rng.integers(6, 9, count))
    language = (
        rng.normal(size=(count, frames, 4)) * (np.arange(frames) < lengths[:, None])[..., None]
    )
    np.savez(
        folder / "lengths.npz",
        language=language.astype(np.float32),
        audio=rng.normal(size=(count, frames, 3)).astype(np.float32),
        language_lengths=lengths,
        audio_lengths=np.full(count, frames),
        labels=labels,
        split=np.repeat(["train", "valid", "test"], [200, 80, 80]),
    )
    settings = tiny(
        data={"path": str(folder / "lengths.npz"), "synthetic": {}},
        teacher={"epochs": 12, "batch_size": 16, "lr": 1e-2},
        student={"epochs": 12, "batch_size": 16, "lr": 1e-2},
        evaluation={"conditions": {"ratio": [0.5, 1.0], "burst": [1.0], "noise": [1.0]}},
    )
    results = run_unreported(settings, folder / "run").results
    rows = results[results["metric"] == "weighted_f1"]
    return rows.pivot_table(index="method", columns="condition", values="value")


TRAINED = ["teacher", "student", "control"]


def test_the_class_is_learned_where_language_is_visible(table: pd.DataFrame) -> None:
    assert (table.loc[TRAINED, ["language", "complete"]] > 0.9).all(axis=None)
    assert (table.loc[TRAINED, "ratio-0.5"] > 0.8).all()  # a gap is seen


def test_the_class_is_not_predicted_where_language_is_missing(table: pd.DataFrame) -> None:
    """With the true lengths every network scored 1.0 here."""
    assert (table.loc[TRAINED, "audio"] < 0.62).all()


def test_with_everything_missing_a_single_class_is_predicted(table: pd.DataFrame) -> None:
    assert (table.loc[TRAINED, ["ratio-1.0", "burst-1.0"]] < 0.40).all(
        axis=None
    )  # one class for all has about 1/3


def test_noise_keeps_the_length(table: pd.DataFrame) -> None:
    assert (table.loc[["student", "control"], "noise-1.0"] > 0.8).all()


def test_the_floor_by_length_predicts_what_lengths_allow(table: pd.DataFrame) -> None:
    floor = table.loc["by-length"]
    assert floor["language"] == floor["complete"] == 1.0
    assert floor["audio"] == floor["ratio-1.0"] == table.loc["majority", "audio"]
