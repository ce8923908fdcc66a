"""The floors: predictions from labels alone and from lengths alone."""

from __future__ import annotations

import numpy as np
import pytest

from corrkd.evaluation.floors import LengthFloor, lengths_vary
from corrkd.targets.base import Target
from corrkd.targets.registry import make_target
from tests.conftest import make_dataset

CLASSES: Target = make_target("classes", make_dataset())


def all_visible(lengths: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {m: np.ones(len(x), bool) for m, x in lengths.items()}


def test_the_majority_is_the_most_frequent_class_or_the_median_score() -> None:
    assert CLASSES.majority(np.array([2, 0, 2])) == 2
    score = make_target("score", make_dataset())
    assert score.majority(np.array([-1.0, 0.5, 9.0])) == 0.5


def test_a_class_that_follows_the_length_is_predicted_only_where_the_modality_is_visible() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    lengths = {"a": labels * 3 + rng.integers(1, 4, 200), "b": rng.integers(1, 30, 200)}
    floor = LengthFloor(CLASSES, labels, lengths, all_visible(lengths))
    tested = {"a": np.array([1, 3, 4, 6, 9]), "b": np.array([5, 5, 5, 5, 5])}
    alone = {"a": np.ones(5, bool), "b": np.zeros(5, bool)}
    assert floor.predict(tested, alone).tolist() == [0, 0, 1, 1, 1]
    nothing = {m: np.zeros(5, bool) for m in tested}
    assert floor.predict(tested, nothing).tolist() == [np.bincount(labels).argmax()] * 5


def test_an_unseen_combination_of_lengths_falls_back_on_the_majority() -> None:
    labels = np.array([0, 0, 1, 1, 1])
    lengths = {"a": np.array([1, 1, 2, 2, 2]), "b": np.array([1, 1, 2, 2, 2])}
    floor = LengthFloor(CLASSES, labels, lengths, all_visible(lengths))
    tested = {"a": np.array([1]), "b": np.array([2])}  # no training sample has both
    assert floor.predict(tested, all_visible(tested)).tolist() == [1]
    assert floor.predict(tested, {"a": np.array([True]), "b": np.array([False])}).tolist() == [0]


def test_training_samples_that_lack_the_modality_do_not_count_for_its_lengths() -> None:
    labels, lengths = np.array([0, 1, 1]), {"a": np.array([2, 2, 2])}
    visible = {"a": np.array([True, False, False])}
    floor = LengthFloor(CLASSES, labels, lengths, visible)
    assert floor.predict({"a": np.array([2])}, {"a": np.array([True])}).tolist() == [0]


def test_many_lengths_fall_into_bins_by_quantiles_of_training() -> None:
    lengths = {"a": np.arange(1, 161)}
    labels = (lengths["a"] > 80).astype(int)
    floor = LengthFloor(CLASSES, labels, lengths, all_visible(lengths))
    assert len(floor.edges["a"]) == 7
    predictions = floor.predict(lengths, all_visible(lengths))
    assert (predictions == labels).mean() > 0.98


@pytest.mark.parametrize(("second", "vary"), [([3, 3, 3], False), ([3, 2, 3], True)])
def test_whether_lengths_vary(second: list[int], vary: bool) -> None:
    assert lengths_vary({"a": np.array([1, 1, 1]), "b": np.array(second)}) is vary
