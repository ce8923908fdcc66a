from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score

from corrkd.errors import CorrKDError
from corrkd.evaluation import comparison
from corrkd.evaluation.comparison import Interval
from tests.evaluation.clustered import expected_score, simulate

Array = npt.NDArray[Any]
numbers = st.floats(-1e3, 1e3, allow_nan=False)
seeds = st.integers(0, 2**16)


def f1(truth: Array, prediction: Array) -> float:
    """Return scikit-learn's weighted F1, averaged over the questions of (N, Q)."""
    columns = zip(
        truth.reshape(len(truth), -1).T, prediction.reshape(len(truth), -1).T, strict=True
    )
    return float(np.mean([f1_score(t, p, average="weighted", zero_division=0) for t, p in columns]))


def samples(
    seed: int, *, groups: int = 4, classes: int = 3, questions: int | None = None
) -> tuple[Array, Array, Array]:
    """Return truth, predictions of two methods (3 seeds, 2 conditions), and unequal groups."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), rng.integers(1, 6, groups))
    shape = (len(group),) if questions is None else (len(group), questions)
    truth = rng.integers(0, classes, shape)
    wrong = rng.random((2, 3, 2, *shape)) < np.array([0.2, 0.5]).reshape(2, *[1] * (2 + len(shape)))
    return truth, np.where(wrong, rng.integers(0, classes, wrong.shape), truth), group


def two_methods(seed: int, **kind: Any) -> npt.NDArray[np.int32]:
    truth, prediction, group = samples(seed, **kind)
    return comparison.confusion_counts(truth, prediction, group, kind.get("classes", 3))


# --------------------------------------------------------------------------------------------------
# counts


def test_counts_by_hand() -> None:
    counts = comparison.confusion_counts(
        [0, 1, 1, 0], [[0, 0, 1, 0], [1, 1, 1, 1]], ["b", "a", "a", "b"], 2
    )
    assert counts.shape == (2, 2, 1, 2, 2)
    assert counts[0, :, 0].tolist() == [[[0, 0], [1, 1]], [[2, 0], [0, 0]]]
    assert counts[1, :, 0].tolist() == [[[0, 0], [0, 2]], [[0, 2], [0, 0]]]


@pytest.mark.parametrize(("classes", "questions"), [(3, None), (7, None), (2, 4)])
def test_weighted_f1_agrees_with_scikit_learn(classes: int, questions: int | None) -> None:
    truth, prediction, group = samples(1, classes=classes, questions=questions)
    counts = comparison.confusion_counts(truth, prediction, group, classes)
    assert counts.shape == (2, 3, 2, 4, questions or 1, classes, classes)
    scores = comparison.weighted_f1(counts.sum(3))
    for index in np.ndindex(2, 3, 2):
        assert scores[index] == pytest.approx(f1(truth, prediction[index]), abs=1e-12)
    in_group = group == 2
    assert comparison.weighted_f1(counts[1, 0, 1, 2]) == pytest.approx(
        f1(truth[in_group], prediction[1, 0, 1][in_group]), abs=1e-12
    )


@pytest.mark.parametrize(
    ("truth", "prediction", "groups"),
    [
        ([0, 1], [0, 1, 1], [0, 0]),
        ([0, 1], [0, 1], [0]),
        ([0, 2], [0, 1], [0, 0]),
        ([0, 1], [0, -1], [0, 0]),
        ([0.0, 1.0], [0, 1], [0, 0]),
    ],
)
def test_invalid_counts_are_refused(
    truth: list[Any], prediction: list[Any], groups: list[Any]
) -> None:
    with pytest.raises(CorrKDError, match="confusion counts"):
        comparison.confusion_counts(truth, prediction, groups, 2)


# --------------------------------------------------------------------------------------------------
# intervals


@given(st.lists(numbers, min_size=2, max_size=8))
@settings(deadline=None, max_examples=50)
def test_half_width_agrees_with_scipy(values: list[float]) -> None:
    array = np.array(values)
    low, high = (
        stats.ttest_1samp(array, 0.0).confidence_interval(0.95)
        if np.ptp(array)
        else (array[0], array[0])
    )
    assert 2 * comparison.half_width(array) == pytest.approx(high - low, abs=1e-9)


def test_half_width_of_one_seed_is_undefined() -> None:
    assert math.isnan(comparison.half_width(np.array([3.0])))


@pytest.mark.parametrize(("classes", "questions"), [(3, None), (2, 2)])
def test_the_bootstrap_agrees_with_resampling_by_hand(classes: int, questions: int | None) -> None:
    truth, prediction, group = samples(2, classes=classes, questions=questions)
    of_groups, of_seeds = np.random.default_rng(5).spawn(2)
    drawn = []
    for _ in range(12):
        times, weight = (
            of_groups.multinomial(4, np.full(4, 1 / 4)),
            of_seeds.multinomial(3, np.full(3, 1 / 3)),
        )
        rows = np.concatenate(
            [np.flatnonzero(group == g) for g in range(4) for _ in range(times[g])]
        )
        drawn_seeds = [s for s in range(3) for _ in range(weight[s])]
        drawn.append(
            [
                np.mean(
                    [
                        f1(truth[rows], prediction[m, s, c][rows])
                        for s in drawn_seeds
                        for c in (0, 1)
                    ]
                )
                for m in (0, 1)
            ]
        )
    average = [
        np.mean([f1(truth, prediction[m, s, c]) for s in range(3) for c in (0, 1)]) for m in (0, 1)
    ]
    first, second = comparison.confusion_counts(truth, prediction, group, classes)
    by_hand = np.array(drawn)
    expected = (average[0], *np.percentile(by_hand[:, 0], [2.5, 97.5]))
    assert comparison.group_interval(first, seed=5, draws=12) == pytest.approx(expected, abs=1e-12)
    expected = (average[0] - average[1], *np.percentile(by_hand[:, 0] - by_hand[:, 1], [2.5, 97.5]))
    assert comparison.paired_group_interval(first, second, seed=5, draws=12) == pytest.approx(
        expected, abs=1e-12
    )


def test_one_group_and_one_seed_give_an_interval_of_no_width() -> None:
    counts = two_methods(3, groups=1)[0, :1]
    interval = comparison.group_interval(counts, seed=0, draws=50)
    assert interval.low == interval.mean == interval.high


def test_chunks_change_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two_methods(4, groups=6)
    unchunked = (
        comparison.paired_group_interval(first, second, seed=1, draws=60),
        [comparison.sign_flip_test(first, second, seed=1, draws=draws) for draws in (63, 64)],
    )
    monkeypatch.setattr(comparison, "CHUNK", 1)
    assert unchunked[0] == pytest.approx(
        comparison.paired_group_interval(first, second, seed=1, draws=60), abs=1e-12
    )
    assert unchunked[1] == [
        comparison.sign_flip_test(first, second, seed=1, draws=draws) for draws in (63, 64)
    ]


@given(seeds)
@settings(deadline=None, max_examples=25)
def test_swapping_the_methods_flips_the_sign(seed: int) -> None:
    first, second = two_methods(seed)
    forward = comparison.paired_group_interval(first, second, seed=seed, draws=200)
    reverse = comparison.paired_group_interval(second, first, seed=seed, draws=200)
    assert reverse == pytest.approx(Interval(-forward.mean, -forward.high, -forward.low), abs=1e-12)
    for draws in (8, 200):  # random assignments and all of them
        p = comparison.sign_flip_test(first, second, seed=seed, draws=draws)
        assert comparison.sign_flip_test(second, first, seed=seed, draws=draws) == p


@given(seeds)
@settings(deadline=None, max_examples=15)
def test_the_order_of_groups_does_not_matter(seed: int) -> None:
    first, second = two_methods(seed, groups=6)
    order = np.random.default_rng(seed).permutation(6)
    a, b = first[:, :, order], second[:, :, order]
    assert comparison.sign_flip_test(a, b, seed=0) == comparison.sign_flip_test(
        first, second, seed=0
    )
    original = comparison.paired_group_interval(first, second, seed=0, draws=4000)
    permuted = comparison.paired_group_interval(a, b, seed=0, draws=4000)
    assert permuted.mean == pytest.approx(original.mean, abs=1e-12)
    assert permuted == pytest.approx(original, abs=0.15 * (original.high - original.low) + 1e-12)


@given(seeds, st.sampled_from([10, 10_000]))
@settings(deadline=None, max_examples=15)
def test_a_method_does_not_differ_from_itself(seed: int, draws: int) -> None:
    method = two_methods(seed)[0]
    assert comparison.sign_flip_test(method, method, seed=seed, draws=draws) == 1.0
    assert comparison.paired_group_interval(method, method, seed=seed, draws=50) == (0.0, 0.0, 0.0)


def test_incomparable_counts_are_refused() -> None:
    first, second = two_methods(6)
    with pytest.raises(CorrKDError, match="pair the same seeds"):
        comparison.paired_group_interval(first, second[:2], seed=0)
    with pytest.raises(CorrKDError, match="not tested on the same samples"):
        comparison.sign_flip_test(first, second[..., ::-1, :], seed=0)
    with pytest.raises(CorrKDError, match="expected \\(seeds, conditions"):
        comparison.group_interval(first[0], seed=0)
    with pytest.raises(CorrKDError, match="without any sample"):
        comparison.group_interval(first * np.array([1, 0]).reshape(2, 1, 1, 1, 1), seed=0)


# --------------------------------------------------------------------------------------------------
# tests


@pytest.mark.parametrize(("classes", "questions"), [(3, None), (2, 2)])
@pytest.mark.parametrize("seed", [0, 1])
def test_sign_flips_by_brute_force(seed: int, classes: int, questions: int | None) -> None:
    truth, prediction, group = samples(seed, classes=classes, questions=questions)

    def difference(swapped: tuple[int, ...]) -> float:
        exchanged = prediction.copy()
        for g in np.flatnonzero(swapped):
            rows = group == g
            exchanged[0][:, :, rows], exchanged[1][:, :, rows] = (
                prediction[1][:, :, rows],
                prediction[0][:, :, rows],
            )
        return float(
            np.mean(
                [
                    f1(truth, exchanged[0, s, c]) - f1(truth, exchanged[1, s, c])
                    for s in range(3)
                    for c in (0, 1)
                ]
            )
        )

    observed = abs(difference((0, 0, 0, 0)))
    hits = [
        abs(difference(swapped)) >= observed - 1e-12
        for swapped in itertools.product((0, 1), repeat=4)
    ]
    first, second = comparison.confusion_counts(truth, prediction, group, classes)
    assert comparison.sign_flip_test(first, second, seed=0) == np.mean(hits)


def test_random_assignments_approximate_all_of_them() -> None:
    first, second = two_methods(8, groups=10)
    exact = comparison.sign_flip_test(first, second, seed=0, draws=1024)
    few = comparison.sign_flip_test(first, second, seed=0, draws=1023)
    assert 0.01 < exact < 1.0
    assert few != exact
    assert abs(few - exact) < 5 * math.sqrt(exact * (1 - exact) / 1023)


@pytest.mark.parametrize(("groups", "least"), [(5, 2 / 32), (6, 2 / 64), (40, 1 / 100)])
def test_groups_and_draws_bound_p(groups: int, least: float) -> None:
    truth = np.tile([0, 1], groups)
    right_and_wrong = np.stack([truth, 1 - truth])[:, None, None]
    first, second = comparison.confusion_counts(
        truth, right_and_wrong, np.repeat(np.arange(groups), 2), 2
    )
    assert comparison.sign_flip_test(first, second, seed=0, draws=99) == least


def test_holm_by_hand() -> None:
    assert comparison.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert comparison.holm([0.9, 0.4]) == pytest.approx([0.9, 0.8])
    assert comparison.holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert comparison.holm([]).shape == (0,)
    with pytest.raises(CorrKDError, match="from 0 to 1"):
        comparison.holm([0.5, math.nan])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7), st.floats(0.001, 1, exclude_max=True))
@settings(deadline=None, max_examples=100)
def test_holm_rejects_step_by_step(p_values: list[float], level: float) -> None:
    adjusted = comparison.holm(p_values)
    rejected = set()
    for step, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if (len(p_values) - step) * p_values[i] > level:
            break
        rejected.add(i)
    assert rejected == set(np.flatnonzero(adjusted <= level))


def test_ranks_by_hand() -> None:
    scores = [[0.9, 0.5, 0.7], [0.8, 0.5, 0.9], [0.1, 0.2, math.nan], [0.7, 0.6, 0.1]]
    assert comparison.ranks(scores) == pytest.approx(
        [(1 + 2.5 + 2) / 3, (2 + 2.5 + 1) / 3, math.nan, (3 + 1 + 3) / 3], nan_ok=True
    )
    assert np.isnan(comparison.ranks([[math.nan]])).all()


# --------------------------------------------------------------------------------------------------
# simulation

PERSONS = {"groups": 31, "size": 22, "conditions": 2}


def rejections(runs: int, seeds: int) -> tuple[int, int]:
    """Count, in `runs` comparisons without a difference, the p <= 0.05 of the sign flips and of a
    paired test of single samples.
    """
    rng = np.random.default_rng(runs)
    flips = naive = 0
    for run in range(runs):
        truth, prediction, group = simulate(
            rng, **PERSONS, seeds=seeds, group_sd=0.4, method_sd=0.3, seed_sd=0.0
        )
        first, second = comparison.confusion_counts(truth, prediction, group, 2)
        flips += comparison.sign_flip_test(first, second, seed=run, draws=199) <= 0.05
        right = (prediction == truth).mean((1, 2))
        naive += stats.ttest_rel(right[0], right[1]).pvalue <= 0.05
    return flips, naive


def check_rejections(runs: int, seeds: int) -> None:
    flips, naive = rejections(runs, seeds)
    assert flips <= stats.binom.ppf(0.999, runs, 0.05)
    assert naive > 2 * stats.binom.ppf(0.999, runs, 0.05)


def test_sign_flips_keep_their_level_where_samples_of_a_group_are_dependent() -> None:
    check_rejections(300, seeds=2)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 5])
def test_sign_flips_keep_their_level(seeds: int) -> None:
    check_rejections(2000, seeds)


@pytest.mark.slow
def test_the_bootstrap_covers_with_a_hundred_groups() -> None:
    spread = {"group_sd": 0.4, "method_sd": 0.3, "seed_sd": 0.05}
    true_score, rng, runs = expected_score(**spread), np.random.default_rng(0), 1000
    covered = np.zeros(2, int)
    for run in range(runs):
        truth, prediction, group = simulate(
            rng, groups=100, size=7, conditions=3, seeds=5, **spread
        )
        first, second = comparison.confusion_counts(truth, prediction, group, 2)
        average = comparison.group_interval(first, seed=run, draws=999)
        difference = comparison.paired_group_interval(first, second, seed=run, draws=999)
        covered += [
            average.low <= true_score <= average.high,
            difference.low <= 0 <= difference.high,
        ]
    assert (covered >= stats.binom.ppf(0.001, runs, 0.95)).all()


def test_seeds_that_test_a_group_or_two_each_have_an_interval() -> None:
    """Each of three seeds tests two groups and nobody the seventh: many draws contain no group of a
    drawn seed.
    """
    rng = np.random.default_rng(0)
    counts = np.zeros((3, 2, 7, 1, 3, 3), np.int32)
    for seed in range(3):
        counts[seed][:, 2 * seed : 2 * seed + 2] = rng.integers(1, 9, (2, 2, 1, 3, 3))
    interval = comparison.group_interval(counts, seed=0, draws=500)
    assert interval.low < interval.mean < interval.high
    assert interval == comparison.group_interval(counts[:, :, :6], seed=0, draws=500)
    difference = comparison.paired_group_interval(counts, counts, seed=0, draws=500)
    assert difference == (0.0, 0.0, 0.0)
