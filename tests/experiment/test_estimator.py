"""The estimator as scikit-learn's users use it."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.utils.estimator_checks import check_estimator

from corrkd import CorrKDClassifier, CorrKDError, MultimodalArrays

STRUCTURE = {
    "width": 8,
    "heads": 1,
    "layers": 1,
    "feedforward": 8,
    "classifier": [8],
    "dropout": 0.0,
}
NUM_SAMPLES = 60
LABELS = np.array(["calm", "tense"])[np.arange(NUM_SAMPLES) % 2]
GROUPS = np.arange(NUM_SAMPLES) // 2 % 15

EXPECTED_FAILURES = {
    "check_no_attributes_set_in_init": "settings are attributes by their names, which the "
    "signature does not list",
    "check_do_not_raise_errors_in_init_or_set_params": "`**overrides` are settings by name; "
    "an unknown name is a TypeError",
}


def quick(**more: Any) -> CorrKDClassifier:
    teacher = {"network": STRUCTURE, "epochs": 2, "lr": 2e-2, "batch_size": 16}
    return CorrKDClassifier(
        preset=None,
        **{"teacher": teacher, "student": {"epochs": 8, "lr": 2e-2, "batch_size": 16}} | more,
    )


def samples() -> dict[str, Any]:
    rng, shift = np.random.default_rng(0), 2.0 * (np.arange(NUM_SAMPLES) % 2) - 1
    audio = rng.normal(size=(NUM_SAMPLES, 4)) + shift[:, None]
    audio[3] = np.nan
    text: list[Any] = [rng.normal(size=(1 + row % 3, 2)) + shift[row] for row in range(NUM_SAMPLES)]
    text[5] = None
    return {"audio": audio, "text": text}


@pytest.fixture(scope="module")
def fitted() -> CorrKDClassifier:
    return quick().fit(samples(), LABELS, groups=GROUPS)


def test_it_predicts_with_and_without_a_modality(fitted: CorrKDClassifier) -> None:
    X = samples()
    assert fitted.classes_.tolist() == ["calm", "tense"]
    assert fitted.modalities_ == ["language", "audio"]
    assert fitted.n_features_in_ == 6
    probabilities = fitted.predict_proba(X)
    assert probabilities.shape == (NUM_SAMPLES, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1.0)
    assert (fitted.predict(X) == fitted.classes_[probabilities.argmax(1)]).all()
    assert fitted.score(X, LABELS) > 0.8
    assert fitted.score(X, LABELS, missing="audio") > 0.6
    without = fitted.predict_proba({"text": X["text"]})
    np.testing.assert_allclose(without, fitted.predict_proba(X, missing=["audio"]), atol=1e-6)
    np.testing.assert_allclose(
        without, fitted.predict_proba({"text": X["text"], "audio": [None] * NUM_SAMPLES}), atol=1e-6
    )


def test_a_fit_is_reproducible_and_depends_on_its_seed(fitted: CorrKDClassifier) -> None:
    X = samples()
    again = clone(fitted).fit(X, LABELS, groups=GROUPS)
    assert (again.predict_proba(X) == fitted.predict_proba(X)).all()
    other = clone(fitted).set_params(random_state=1).fit(X, LABELS, groups=GROUPS)
    assert (other.predict_proba(X) != fitted.predict_proba(X)).any()


def test_it_is_saved_and_pickled(fitted: CorrKDClassifier, tmp_path: Path) -> None:
    X = samples()
    fitted.save(tmp_path / "model")
    for model in (CorrKDClassifier.load(tmp_path / "model"), pickle.loads(pickle.dumps(fitted))):
        assert (model.predict_proba(X) == fitted.predict_proba(X)).all()
        assert model.get_params() == fitted.get_params()
        assert model.classes_.tolist() == ["calm", "tense"]
    with pytest.raises(CorrKDError, match="overwrite=True"):
        fitted.save(tmp_path / "model")
    fitted.save(tmp_path / "model", overwrite=True)
    about = json.loads((tmp_path / "model" / "estimator.json").read_text())
    for change in (
        {"classes": ["calm"]},
        {"kind": "V"},
        {"modalities": ["audio"]},
        {"params": {"epochs": 1}},
    ):
        (tmp_path / "model" / "estimator.json").write_text(json.dumps(about | change))
        with pytest.raises(CorrKDError):
            CorrKDClassifier.load(tmp_path / "model")


def test_cross_validation_and_a_search_split_the_modalities() -> None:
    X = MultimodalArrays(samples())
    scores = cross_val_score(quick(), X, LABELS, groups=GROUPS, cv=GroupKFold(2))
    assert scores.shape == (2,)
    assert scores.mean() > 0.6
    search = GridSearchCV(quick(), {"student__epochs": [1, 8]}, cv=2).fit(X, LABELS)
    best = max(search.cv_results_["mean_test_score"])
    assert search.best_score_ == best > 0.6
    assert len(search.best_estimator_.history_) == search.best_params_["student__epochs"]


def test_a_data_frame_with_prefixes_and_its_groups() -> None:
    rng = np.random.default_rng(0)
    shift = np.arange(NUM_SAMPLES) % 2
    frame = pd.DataFrame({f"audio_{i}": rng.normal(size=NUM_SAMPLES) + shift for i in range(3)})
    frame["text"] = [
        row.tolist() for row in rng.normal(size=(NUM_SAMPLES, 2, 2)) - shift[:, None, None]
    ]
    frame["person"] = GROUPS
    model = quick().fit(frame, shift)
    assert model.modalities_ == ["language", "audio"]
    assert model.predict(frame[:7]).shape == (7,)
    assert model.predict(frame.drop(columns="person")[:7]).dtype == shift.dtype


def test_the_preset_has_no_more_folds_than_there_are_groups() -> None:
    few = {"epochs": 1, "repeats": 1, "network": {"width": 8}}
    model = CorrKDClassifier(teacher=few, student={"epochs": 1}).fit(
        samples(), LABELS, groups=np.arange(NUM_SAMPLES) % 4
    )
    assert len(model.history_) == 1


def test_parameters_are_settings_nested_or_flat() -> None:
    model = CorrKDClassifier(student={"epochs": 3}, teacher__epochs=2)
    assert model.get_params() == {
        "preset": "corrkd-plus",
        "validation_fraction": 0.15,
        "random_state": 0,
        "student": {"epochs": 3},
        "teacher__epochs": 2,
    }
    assert clone(model).get_params() == model.get_params()
    assert model.set_params(student__lr=1e-2, preset=None).get_params()["student__lr"] == 1e-2
    with pytest.raises(TypeError, match="no parameter 'epochs'"):
        CorrKDClassifier(epochs=3)
    with pytest.raises(ValueError, match="no parameter 'epochs'"):
        model.set_params(epochs=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": LABELS[:5]}, "inconsistent numbers of samples"),
        ({"y": np.zeros(NUM_SAMPLES)}, "holds one class alone"),
        ({"X": {}}, "no modality"),
        (
            {"X": {"audio": np.zeros((NUM_SAMPLES, 2)), "text": np.zeros((5, 2))}},
            "differ in their number of samples",
        ),
        ({"groups": np.zeros(NUM_SAMPLES)}, "in one group"),
        ({"groups": [1, 2]}, "inconsistent numbers of samples"),
    ],
)
def test_wrong_arguments_are_value_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quick().fit(**({"X": samples(), "y": LABELS} | change))


def test_wrong_inputs_of_predict_are_value_errors(fitted: CorrKDClassifier) -> None:
    X = samples()
    with pytest.raises(ValueError, match="no modality 'vision'; there is language, audio"):
        fitted.predict(X, missing="vision")
    with pytest.raises(ValueError, match="every modality; leave one"):
        fitted.predict(X, missing=["audio", "language"])
    with pytest.raises(ValueError, match="has a modality 'vision', which was not there in fit"):
        fitted.predict({**X, "vision": np.zeros((NUM_SAMPLES, 2))})
    with pytest.raises(ValueError, match="modality audio is 2 wide"):
        fitted.predict({"audio": np.ones((4, 2))})


@settings(deadline=None)
@given(rows=st.lists(st.integers(0, 9), min_size=1, max_size=12), count=st.integers(10, 12))
def test_rows_of_the_container_are_rows_of_its_modalities(rows: list[int], count: int) -> None:
    X = MultimodalArrays(
        a=np.arange(3.0 * count).reshape(count, 3),
        b=[np.full((1 + i % 2, 2), i) for i in range(count)],
    )
    for key in (rows, np.array(rows), (np.array(rows), ...)):
        subset = X[key]
        assert subset.shape == (len(rows), 5)
        assert (subset["a"] == X["a"][rows]).all()
        assert [x[0, 0] for x in subset["b"]] == rows
    mask = np.isin(np.arange(count), rows)
    assert len(X[mask]) == mask.sum()
    assert len(X[2:5]) == 3
    assert list(X.keys()) == ["a", "b"]


@pytest.mark.slow
def test_scikit_learns_checks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(
            quick(), on_fail=None, on_skip=None, expected_failed_checks=EXPECTED_FAILURES
        )
    failed = {
        result["check_name"]: repr(result["exception"])
        for result in results
        if result["status"] == "failed"
    }
    assert not failed
    assert {result["check_name"] for result in results if result["status"] == "xfail"} == set(
        EXPECTED_FAILURES
    )
