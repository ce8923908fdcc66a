"""Settings for data alone: corrkd-plus, scaled to samples and groups."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import corrkd
from corrkd.errors import CorrKDError
from corrkd.experiment.scaling import (
    MOST_STEPS,
    Unscaled,
    scaled,
    scaled_epochs,
    scaled_folds,
    training_size,
)


def dataset(num_samples: int = 60, num_people: int = 12) -> corrkd.MultimodalDataset:
    """Return samples of people, each of whom is in one split."""
    rng = np.random.default_rng(0)
    person = np.arange(num_samples) % num_people
    split = np.array(["train", "train", "train", "valid", "test"])[person * 5 // num_people]
    arrays: dict[str, Any] = {
        "audio": rng.normal(size=(num_samples, 3, 4)).astype(np.float32),
        "text": rng.normal(size=(num_samples, 3, 4)).astype(np.float32),
        "labels": rng.integers(0, 2, num_samples),
        "person": np.array([f"p{i}" for i in person]),
        "split": split,
    }
    return corrkd.load_dataset(arrays, name="people")


def test_epochs_agree_with_the_documented_sizes() -> None:
    """benchmarks/ablation.yaml: 64 and 256 for 300 samples, 16 and 64 for 1,200 or 1,284, 12 and 32
    for 4,800 or 5,457.
    """
    assert {n: tuple(scaled_epochs(n)) for n in (300, 1200, 1284, 4800, 5457)} == {
        300: (64, 256),
        1200: (16, 64),
        1284: (16, 64),
        4800: (12, 32),
        5457: (12, 32),
    }


@pytest.mark.parametrize("batch_size", [1, 64, 4096])
def test_steps_are_bounded(batch_size: int) -> None:
    sizes = [int(10**k) for k in np.linspace(0, 8, 60)]
    epochs = [scaled_epochs(n, batch_size) for n in sizes]
    for n, (teacher, student) in zip(sizes, epochs, strict=True):
        steps = math.ceil(n / batch_size)
        assert 1 <= teacher <= student <= 256
        assert student * steps <= max(MOST_STEPS, steps)
    assert all(more.student >= fewer.student for more, fewer in itertools.pairwise(epochs))


def test_folds_are_no_more_than_groups() -> None:
    assert scaled_folds(4, 4) == scaled_folds(None, 1) == {}
    assert scaled_folds(4, 2) == {"folds": 2}
    assert scaled_folds(4, 1) == {"folds": None, "temperature": 1.0, "weights": "equal"}


def test_the_training_size_is_that_of_every_seed() -> None:
    data = dataset()
    settings = Unscaled().load()
    assert training_size(settings, data) == (40, 8)
    drawn = Unscaled(changes={"data": {"resample": {"train": 10}}, "seeds": [0, 1]}).load()
    num_samples, num_groups = training_size(drawn, data)
    assert num_samples == 10
    assert num_groups <= 8


@pytest.mark.parametrize(("num_people", "folds"), [(12, 4), (5, 3), (20, 4)])
def test_folds_follow_the_people(num_people: int, folds: int) -> None:
    settings, note = scaled(Unscaled(), dataset(60, num_people))
    assert settings.teacher.folds == folds
    assert f"trained in {folds} folds" in note
    assert "36 training samples" in note or "40 training samples" in note


def test_explicit_settings_are_kept() -> None:
    unscaled = Unscaled(("teacher.epochs=3", "teacher.folds=2"), {"student": {"epochs": 5}})
    settings, note = scaled(unscaled, dataset())
    assert (settings.teacher.epochs, settings.teacher.folds, settings.student.epochs) == (3, 2, 5)
    assert "teachers of 3 epochs, trained in 2 folds; students of 5 epochs" in note


def test_a_run_on_data_alone_stores_the_scaled_settings(tmp_path: Path) -> None:
    quick = Unscaled(("teacher.epochs=1", "teacher.repeats=1", "student.epochs=1", "device=cpu"))
    done = corrkd.run(quick, tmp_path / "run", dataset=dataset(60, 5), evaluate=False)
    stored = corrkd.load_settings(done.folder / "people" / "settings.yaml")
    assert stored.teacher.folds == 3
    assert stored.student.network.name == "mlp"
    with pytest.raises(CorrKDError, match="already contains a run"):
        corrkd.run(quick, tmp_path / "run", dataset=dataset())


def test_a_run_on_arrays_takes_options_for_reading(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "audio": rng.normal(size=(60, 4)),
        "labels": np.arange(60) % 2,
        "mood_label": np.arange(60) // 2 % 2,
    }
    overrides = ("teacher.epochs=1", "teacher.repeats=1", "student.epochs=1", "device=cpu")
    unscaled = Unscaled(overrides, {"data": {"label": "mood_label", "name": "moods"}})
    done = corrkd.run(unscaled, tmp_path / "run", dataset=arrays, evaluate=False)
    assert (done.folder / "moods" / "seed-0" / "student" / "student.safetensors").is_file()


def test_a_named_preset_is_not_scaled(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"teacher": {"epochs": 1, "repeats": 1}, "device": "cpu"}
    settings = corrkd.load_settings(preset="corrkd-plus", **changes)
    done = corrkd.run(settings, tmp_path / "run", dataset=dataset(), evaluate=False)
    assert corrkd.load_settings(done.folder / "people" / "settings.yaml").student.epochs == 64
