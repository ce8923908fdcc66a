"""The ceilings, against enumeration of all labels and all decisions, and against Monte Carlo."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from corrkd.errors import CorrKDError
from corrkd.evaluation.bayes import (
    _Expectation,
    bayes_accuracy,
    best_expected_weighted_f1,
    expected_weighted_f1,
)


def random_posteriors(samples, classes, concentration, seed):
    return np.random.default_rng(seed).dirichlet(np.full(classes, concentration), samples)


def expectation_by_enumeration(p, decisions):
    rows = np.arange(len(p))
    return sum(
        p[rows, labels].prod() * f1_score(labels, decisions, average="weighted", zero_division=0.0)
        for labels in itertools.product(range(p.shape[1]), repeat=len(p))
    )


@settings(deadline=None, max_examples=25)
@given(
    samples=st.integers(1, 4),
    classes=st.integers(2, 3),
    concentration=st.sampled_from([0.1, 1, 10]),
    seed=st.integers(0, 999),
)
def test_the_expectation_agrees_with_enumeration(samples, classes, concentration, seed):
    p = random_posteriors(samples, classes, concentration, seed)
    decisions = np.random.default_rng(seed + 1).integers(0, classes, samples)
    assert expected_weighted_f1(p, decisions) == pytest.approx(
        expectation_by_enumeration(p, decisions), abs=1e-12
    )


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.2, 1, 6)], ids=["balanced", "unbalanced"])
def test_the_expectation_agrees_with_monte_carlo(weights):
    samples, draws = 800, 400
    numbers = np.random.default_rng(0)
    p = numbers.dirichlet(weights, samples)
    decisions, value = best_expected_weighted_f1(p)
    labels = (numbers.random((draws, samples, 1)) > p.cumsum(1)[None, :, :-1]).sum(2)
    scores = [f1_score(row, decisions, average="weighted", zero_division=0.0) for row in labels]
    assert value == pytest.approx(np.mean(scores), abs=4 * np.std(scores) / np.sqrt(draws))


def expectation_by_counts(p, decisions):
    """Compute the expectation from the distribution of each class's count, by convolution."""
    total = 0.0
    for k in range(p.shape[1]):
        selected = np.flatnonzero(decisions == k)
        for i in selected:
            distribution = np.ones(1)
            for q in np.delete(p[:, k], i):
                distribution = np.convolve(distribution, [1 - q, q])
            count = 1 + np.arange(len(distribution))
            total += p[i, k] * (distribution * count / (count + len(selected))).sum()
    return 2 * total / len(p)


@pytest.mark.parametrize(
    "weights", [(1, 1, 1), (0.001, 1, 6)], ids=["balanced", "with a rare class"]
)
@pytest.mark.parametrize("samples", [30, 300])
def test_the_expectation_agrees_with_the_distribution_of_counts(samples, weights):
    p = np.random.default_rng(1).dirichlet(weights, samples)
    decisions = np.random.default_rng(2).integers(0, 3, samples)
    assert expected_weighted_f1(p, decisions) == pytest.approx(
        expectation_by_counts(p, decisions), abs=1e-12
    )


def test_uninformed_decisions_are_spread_over_the_classes():
    # By enumeration of the counts alone: equal posteriors make samples alike.
    samples = 9
    p = np.full((samples, 3), 1 / 3)
    decisions, value = best_expected_weighted_f1(p)
    best = max(
        expected_weighted_f1(p, np.repeat([0, 1, 2], [a, b, samples - a - b]))
        for a in range(samples + 1)
        for b in range(samples + 1 - a)
    )
    assert value == pytest.approx(best, abs=1e-12)
    assert list(np.bincount(decisions)) == [3, 3, 3]


@pytest.mark.parametrize(("samples", "classes"), [(2, 3), (3, 3), (4, 3), (5, 2), (6, 2)])
def test_the_value_is_nearly_the_best_of_all_decisions(samples, classes):
    every = [np.array(decisions) for decisions in itertools.product(range(classes), repeat=samples)]
    shortfalls = []
    for seed in range(120):
        p = random_posteriors(samples, classes, [0.3, 1, 3, 30][seed % 4], seed)
        value = best_expected_weighted_f1(p)[1]
        expectation = _Expectation.of(p)
        shortfalls.append(max(expectation.value(decisions) for decisions in every) - value)
    assert max(shortfalls) < 0.018  # as documented for three classes
    assert np.mean(np.array(shortfalls) > 1e-9) < 0.01


@settings(deadline=None, max_examples=20)
@given(samples=st.integers(1, 30), classes=st.integers(2, 4), seed=st.integers(0, 999))
def test_gains_are_those_of_changing_one_decision(samples, classes, seed):
    p = random_posteriors(samples, classes, 1, seed)
    expectation = _Expectation.of(p)
    decisions = np.random.default_rng(seed + 1).integers(0, classes, samples)
    gains = expectation.gains(decisions)
    for i in range(samples):
        for k in range(classes):
            changed = decisions.copy()
            changed[i] = k
            difference = expectation.value(changed) - expectation.value(decisions)
            assert 2 / samples * gains[i, k] == pytest.approx(difference, abs=1e-12)


@pytest.mark.parametrize("concentration", [0.3, 1, 30])
def test_no_random_start_and_no_single_change_does_better_at_a_test_splits_size(concentration):
    p = random_posteriors(800, 3, concentration, seed=5)
    decisions, value = best_expected_weighted_f1(p)
    assert value == pytest.approx(expected_weighted_f1(p, decisions), abs=1e-12)
    assert value >= expected_weighted_f1(p, p.argmax(1))
    numbers = np.random.default_rng(6)
    for i in numbers.choice(800, 60, replace=False):
        changed = decisions.copy()
        changed[i] = (changed[i] + numbers.integers(1, 3)) % 3
        assert expected_weighted_f1(p, changed) <= value + 1e-8
    for offset in numbers.normal(0, 0.05, (20, 3)):
        assert expected_weighted_f1(p, (p + offset).argmax(1)) <= value + 1e-5


def test_a_rare_class_is_predicted_more_often_than_it_is_most_probable():
    # Accuracy never predicts class 1; weighted F1 gains by it.
    p = np.tile([0.6, 0.4], (100, 1))
    decisions, value = best_expected_weighted_f1(p)
    assert 0 < (decisions == 1).sum() < 100
    assert value > expected_weighted_f1(p, np.zeros(100, int)) + 0.01


def test_certain_posteriors_give_one():
    p = np.eye(3)[np.arange(12) % 3]
    decisions, value = best_expected_weighted_f1(p)
    np.testing.assert_array_equal(decisions, np.arange(12) % 3)
    assert value == pytest.approx(1, abs=1e-12)
    assert bayes_accuracy(p) == 1


def test_bayes_accuracy_is_the_mean_of_the_largest():
    assert bayes_accuracy([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("posteriors", "message"),
    [
        (np.zeros((0, 3)), "shape"),
        (np.full(3, 1 / 3), "shape"),
        ([[0.5, 0.4]], "summing to 1"),
        ([[1.5, -0.5]], "negative"),
        ([[np.nan, 1.0]], "NaN"),
    ],
)
def test_invalid_posteriors_are_refused(posteriors, message):
    for function in (bayes_accuracy, best_expected_weighted_f1):
        with pytest.raises(CorrKDError, match=message):
            function(posteriors)


def test_decisions_must_be_classes():
    for decisions in ([0], [0, 2], [-1, 0]):
        with pytest.raises(CorrKDError, match="decisions must be 2 classes from 0 to 1"):
            expected_weighted_f1([[0.5, 0.5], [0.5, 0.5]], decisions)
