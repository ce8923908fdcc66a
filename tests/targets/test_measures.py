from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from corrkd.targets import measures
from corrkd.targets.classes import ClassesTarget
from corrkd.targets.questions import QuestionsTarget
from corrkd.targets.score import ScoreTarget

CLASSES = ClassesTarget(name="classes", classes=("a", "b", "c"))
SCORE = ScoreTarget(name="score", classes=("negative", "non-negative"), cuts=(0.0,))
QUESTIONS = QuestionsTarget(name="questions", classes=("no", "yes"), questions=("happy", "sad"))


def by_hand(truth: list[int], prediction: list[int]) -> float:
    total = 0.0
    for k in set(truth):
        hits = sum(t == p == k for t, p in zip(truth, prediction, strict=True))
        precision = hits / max(1, prediction.count(k))
        recall = hits / truth.count(k)
        total += truth.count(k) * (2 * precision * recall / (precision + recall) if hits else 0.0)
    return total / len(truth)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
@settings(deadline=None, max_examples=60)
def test_weighted_f1_is_weighted_by_the_truth(pairs: list[tuple[int, int]]) -> None:
    truth, prediction = [list(side) for side in zip(*pairs, strict=True)]
    weighted = measures.weighted_f1(np.array(truth), np.array(prediction))
    assert math.isclose(weighted, by_hand(truth, prediction), abs_tol=1e-12)
    assert math.isclose(
        weighted, f1_score(truth, prediction, average="weighted", zero_division=0.0), abs_tol=1e-15
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
@settings(deadline=None, max_examples=60)
def test_f1_of_each_class_matches_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    """Including classes without a sample."""
    truth, prediction = (np.array(side) for side in zip(*pairs, strict=True))
    metrics = measures.class_metrics(("a", "b", "c", "d"), truth, prediction)
    each = f1_score(truth, prediction, labels=range(4), average=None, zero_division=0.0)
    assert [metrics[f"f1/{name}"] for name in "abcd"] == pytest.approx(each.tolist(), abs=1e-15)
    assert metrics["weighted_f1"] == measures.weighted_f1(truth, prediction)
    yes = f1_score(truth > 0, prediction > 0, zero_division=0.0)
    binary = ((side > 0).astype(int) for side in (truth, prediction))
    assert measures.positive_f1(*binary) == pytest.approx(yes, abs=1e-15)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
@settings(deadline=None, max_examples=60)
def test_unweighted_accuracy_is_the_mean_recall_of_present_classes(
    pairs: list[tuple[int, int]],
) -> None:
    truth, prediction = [list(side) for side in zip(*pairs, strict=True)]
    recalls = [sum(t == p == k for t, p in pairs) / truth.count(k) for k in set(truth)]
    measured = measures.unweighted_accuracy(np.array(truth), np.array(prediction))
    assert math.isclose(measured, sum(recalls) / len(recalls), abs_tol=1e-12)


def test_weighted_f1_is_not_symmetric() -> None:
    truth, prediction = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    assert measures.weighted_f1(truth, prediction) != measures.weighted_f1(prediction, truth)


def test_classes() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])
    truth = np.array([0, 1, 1, 2])
    out = CLASSES.measure(truth, probabilities)
    assert out["accuracy"] == 0.75
    assert math.isclose(out["unweighted_accuracy"], (1 + 1 / 2 + 1) / 3)
    assert math.isclose(out["weighted_f1"], by_hand([0, 1, 1, 2], [0, 1, 0, 2]))
    assert math.isclose(out["f1/b"], 2 / 3)
    assert CLASSES.main_score(truth, probabilities) == out["weighted_f1"]


def test_calibration_error_by_hand() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), 500)
    truth = rng.integers(0, 3, 500)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == truth
    expected = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert math.isclose(measures.calibration_error(truth, probabilities), expected, rel_tol=1e-6)


def test_the_majority_floor_predicts_the_most_frequent_training_class() -> None:
    train, truth = np.array([1, 1, 0]), np.array([0, 0, 0, 1])
    out = CLASSES.measure_predictions(truth, np.broadcast_to(CLASSES.majority(train), truth.shape))
    assert out["accuracy"] == 0.25
    assert math.isclose(out["weighted_f1"], by_hand([0, 0, 0, 1], [1, 1, 1, 1]))


def test_always_absent_scores_78_at_15_percent_prevalence() -> None:
    truth = np.zeros((100, 2), np.int64)
    truth[:15] = 1
    out = QUESTIONS.measure_predictions(
        truth, np.broadcast_to(QUESTIONS.majority(truth), truth.shape)
    )
    assert "ece" not in out  # no probabilities
    assert math.isclose(out["weighted_f1/happy"], 0.85 * 2 * 0.85 / 1.85)
    assert round(100 * out["weighted_f1"]) == 78


def test_questions_are_averaged() -> None:
    truth = np.array([[0, 1], [1, 1], [0, 0]])
    response = np.eye(2)[np.array([[0, 1], [0, 1], [0, 0]])]
    out = QUESTIONS.measure(truth, response)
    assert out["weighted_f1/sad"] == 1.0
    assert math.isclose(out["unweighted_accuracy"], (1 / 2 + 1) / 2)
    assert math.isclose(out["weighted_f1"], (1.0 + by_hand([0, 1, 0], [0, 0, 0])) / 2)


def test_scores() -> None:
    truth, prediction = np.array([-2.0, 0.0, 1.0, 5.0]), np.array([[-1.0], [0.5], [-0.5], [3.0]])
    out = SCORE.measure(truth, prediction)
    assert out["mae"] == pytest.approx((1 + 0.5 + 1.5 + 2) / 4)
    assert out["corr"] == pytest.approx(np.corrcoef(truth, prediction[:, 0])[0, 1])
    assert out["accuracy"] == 0.75


@pytest.mark.parametrize(
    "prediction",
    [np.full((4, 1), 0.1, np.float32), np.full((4, 1), 1e5) + np.arange(4)[:, None] * 1e-7],
)
def test_a_correlation_with_a_constant_is_undefined(prediction: np.ndarray) -> None:
    out = SCORE.measure(np.array([-2.0, 0.0, 1.0, 3.0]), prediction)
    assert math.isnan(out["corr"])
    assert math.isfinite(out["mae"])
