"""Metrics of the public benchmarks, recomputed by plain loops."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrkd.errors import CorrKDError
from corrkd.targets.benchmark_scores import MosiScoreTarget, SimsScoreTarget
from corrkd.targets.registry import make_target, target_from_json
from tests.targets.test_targets import dataset_of

MOSI, SIMS = MosiScoreTarget.signed(), SimsScoreTarget.signed()
EDGES = [-3.0, -2.5, -1.5, -0.7, -0.5, -0.1, 0.0, 0.1, 0.5, 0.7, 1.5, 2.5, 3.0, 4.0]
some_scores = st.one_of(st.sampled_from(EDGES), st.floats(-4, 4, width=32))
pairs = st.lists(st.tuples(some_scores, some_scores), min_size=1, max_size=30)


def f1_by_hand(truth: list[Any], predicted: list[Any]) -> float:
    total = 0.0
    for label, size in Counter(truth).items():
        hits = sum(t == p == label for t, p in zip(truth, predicted, strict=True))
        total += size * 2 * hits / (size + predicted.count(label))
    return total / len(truth)


def accuracy_by_hand(truth: list[Any], predicted: list[Any]) -> float:
    return sum(t == p for t, p in zip(truth, predicted, strict=True)) / len(truth)


def recall_by_hand(truth: list[Any], predicted: list[Any]) -> float:
    recalls = []
    for label in set(truth):
        correct = [p == label for t, p in zip(truth, predicted, strict=True) if t == label]
        recalls.append(sum(correct) / len(correct))
    return sum(recalls) / len(recalls)


def clipped(score: float, bound: float) -> float:
    return max(-bound, min(bound, score))


@given(pairs)
@settings(deadline=None, max_examples=80)
def test_metrics_of_mosi(drawn: list[tuple[float, float]]) -> None:
    truth, predicted = (list(side) for side in zip(*drawn, strict=True))
    out = MOSI.measure(np.array(truth), np.array(predicted)[:, None])
    signs = [t >= 0 for t in truth], [p >= 0 for p in predicted]
    assert out["acc2_has_zero"] == out["accuracy"] == pytest.approx(accuracy_by_hand(*signs))
    assert out["weighted_f1_has_zero"] == out["weighted_f1"] == pytest.approx(f1_by_hand(*signs))
    assert out["unweighted_accuracy"] == pytest.approx(recall_by_hand(*signs))
    nonzero = [(t > 0, p > 0) for t, p in drawn if t != 0]
    if nonzero:
        positive = [list(side) for side in zip(*nonzero, strict=True)]
        assert out["acc2_nonzero"] == pytest.approx(accuracy_by_hand(*positive))
        assert out["weighted_f1_nonzero"] == pytest.approx(f1_by_hand(*positive))
    else:
        assert math.isnan(out["acc2_nonzero"])
        assert math.isnan(out["weighted_f1_nonzero"])
    for name, bound in (("acc3", 1), ("acc5", 2), ("acc7", 3)):
        # Python's round, too, rounds halves to even.
        rounded = [[round(clipped(score, bound)) for score in side] for side in (truth, predicted)]
        assert out[name] == pytest.approx(accuracy_by_hand(*rounded))
    assert out["mae"] == pytest.approx(sum(abs(t - p) for t, p in drawn) / len(drawn))


def sims_class(score: float, cuts: tuple[float, ...]) -> int:
    return sum(score > cut for cut in cuts)


@given(pairs)
@settings(deadline=None, max_examples=80)
def test_metrics_of_sims(drawn: list[tuple[float, float]]) -> None:
    out = SIMS.measure(
        *(np.array(side) for side in ([t for t, _ in drawn], [[p] for _, p in drawn]))
    )
    near = [(clipped(t, 1), clipped(p, 1)) for t, p in drawn]
    assert out["mae"] == pytest.approx(sum(abs(t - p) for t, p in near) / len(near))
    for name, cuts in (("acc2", (0.0,)), ("acc3", (-0.1, 0.1)), ("acc5", (-0.7, -0.1, 0.1, 0.7))):
        sides = [[sims_class(score, cuts) for score in side] for side in zip(*near, strict=True)]
        assert out[name] == pytest.approx(accuracy_by_hand(*sides))
        if name == "acc2":
            assert out["accuracy"] == out["acc2"]
            assert out["weighted_f1"] == pytest.approx(f1_by_hand(*sides))


def test_correlation_of_sims_is_of_clipped_scores() -> None:
    truth, predicted = np.array([-1.0, -0.4, 0.2, 0.6]), np.array([-2.0, 0.1, 0.3, 5.0])
    out = SIMS.measure(truth, predicted[:, None])
    assert out["corr"] == pytest.approx(np.corrcoef(truth, np.clip(predicted, -1, 1))[0, 1])


@pytest.mark.parametrize(
    ("name", "scores", "categories"),
    [("mosi-score", [-2.0, 0.0, 3.0], [0, 1, 1]), ("sims-score", [-0.8, 0.0, 1.0], [0, 0, 1])],
)
def test_benchmark_targets_are_available_and_saved_on_cards(
    name: str, scores: list[float], categories: list[int]
) -> None:
    target = make_target(name, dataset_of(scores))
    assert target.name == target.kind == name
    assert target.categories(scores).tolist() == categories
    assert target_from_json(target.to_json()) == target
    assert set(target.summary_metrics) <= set(
        target.measure(np.array(scores), np.array(scores)[:, None])
    )
    with pytest.raises(CorrKDError, match="the target on the card is invalid"):
        target_from_json({**target.to_json(), "cuts": [0.5]})


@pytest.mark.parametrize(
    ("name", "scores"),
    [("mosi-score", [-4.0, 1.0]), ("mosi-score", [1.0, 3.0]), ("sims-score", [-1.0, 2.0])],
)
def test_scores_of_another_scale_are_refused(name: str, scores: list[float]) -> None:
    with pytest.raises(
        CorrKDError, match=rf"d, train: scores run .* target `{name}` is for scores of both signs"
    ):
        make_target(name, dataset_of(scores))
