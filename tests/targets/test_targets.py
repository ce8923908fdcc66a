from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrkd.data.dataset import MultimodalDataset, Split
from corrkd.errors import CorrKDError
from corrkd.settings import TARGETS
from corrkd.targets.registry import BUILT_IN, OF_SCORES, make_target, target_from_json

from ..conftest import make_dataset


def dataset_of(scores: list[float] | None = None, labels: object = None) -> MultimodalDataset:
    count = len(scores) if scores is not None else len(labels)  # type: ignore[arg-type]
    split = Split(
        frames={"a": np.ones((count, 1, 1), np.float32)},
        lengths={"a": np.ones(count, np.int64)},
        present={"a": np.ones((count, 1), bool)},
        ids=np.array([str(i) for i in range(count)]),
        scores=None if scores is None else np.array(scores, np.float64),
        labels=None if labels is None else np.asarray(labels, np.int64),
    )
    return MultimodalDataset(name="d", splits={"train": split, "test": split})


SCORES = [-3.0, -2.5, -1.5, -0.5, -0.2, 0.0, 0.5, 0.6, 1.5, 2.0, 2.5, 3.0]


def classes(name: str, scores: list[float] = SCORES) -> list[int]:
    data = dataset_of(scores)
    values, keep = make_target(name, data).of(data.split("train"), "d")
    return list(values[keep])


def test_binary_has_zero_counts_zero_as_non_negative() -> None:
    assert classes("binary-has-zero") == [int(s >= 0) for s in SCORES]


def test_binary_nonzero_leaves_zeros_out() -> None:
    assert classes("binary-nonzero") == [int(s > 0) for s in SCORES if s != 0]


@pytest.mark.parametrize(("name", "bound"), [("ternary", 1), ("five", 2), ("seven", 3)])
def test_rounded_classes_clip_and_round_half_to_even(name: str, bound: int) -> None:
    everything = [float(k) for k in range(-3, 4)] + SCORES
    # Python's round, too, rounds halves to even.
    assert classes(name, everything) == [
        round(max(-bound, min(bound, s))) + bound for s in everything
    ]


def test_sims_thresholds() -> None:
    scores = [-1.0, -0.8, -0.7, -0.4, -0.1, 0.0, 0.05, 0.1, 0.4, 0.7, 0.9]
    assert classes("sims-binary", scores) == [int(s > 0) for s in scores]
    assert classes("sims-ternary", scores) == [
        0 if s <= -0.1 else 1 if s <= 0.1 else 2 for s in scores
    ]
    assert classes("sims-five", scores) == [
        0 if s <= -0.7 else 1 if s <= -0.1 else 2 if s <= 0.1 else 3 if s <= 0.7 else 4
        for s in scores
    ]


def test_tertiles_come_from_the_training_split_alone() -> None:
    train, other = dataset_of(list(np.arange(9.0))), dataset_of([100.0, 200.0])
    dataset = MultimodalDataset(
        name="d", splits={"train": train.split("train"), "test": other.split("test")}
    )
    target = make_target("tertiles", dataset)
    assert np.bincount(target.of(dataset.split("train"), "d")[0]).tolist() == [3, 3, 3]
    assert target.of(dataset.split("test"), "d")[0].tolist() == [2, 2]


def test_the_settings_list_all_targets() -> None:
    assert set(TARGETS) == {"auto", *BUILT_IN, *OF_SCORES}


def test_auto_selects_by_the_available_labels() -> None:
    assert make_target("auto", dataset_of([1.0, 2.0, 3.0])).name == "tertiles"
    assert make_target("auto", dataset_of([1.0, 2.0, 3.0], [0, 1, 2])).name == "classes"
    assert make_target("auto", dataset_of(None, [[0, 1], [1, 0]])).kind == "questions"


def test_a_score_target_has_categories_for_f1_and_prototypes() -> None:
    data = dataset_of(SCORES)
    target = make_target("score", data)
    assert target.of(data.split("train"), "d")[0].tolist() == SCORES
    assert target.categories(np.array([-0.1, 0.0, 0.1])).tolist() == [0, 1, 1]
    assert len(make_target("score", dataset_of([1.0, 2.0, 3.0, 6.0])).classes) == 3


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("ternary", dataset_of([1.0, 2.0]), "no sample of class 'negative'"),
        ("classes", dataset_of([1.0, 2.0]), "needs labels"),
        ("seven", dataset_of(None, [0, 1]), "needs scores"),
        ("classes", dataset_of(None, [[0, 1], [1, 0]]), "use target `questions`"),
        ("questions", dataset_of(None, [0, 1]), "needs yes/no labels"),
        (
            "questions",
            dataset_of(None, [[0, 1], [1, 1]]),
            "no sample of class 'no' to question question 1",
        ),
        ("binary-nonzero", dataset_of([0.0, 0.0]), "no sample is left"),
    ],
)
def test_unsuitable_data_are_refused_in_one_line(
    name: str, data: MultimodalDataset, message: str
) -> None:
    with pytest.raises(CorrKDError, match=message) as caught:
        make_target(name, data)
    assert "\n" not in str(caught.value)


def test_a_label_beyond_training_is_refused() -> None:
    dataset = MultimodalDataset(
        name="d",
        splits={
            "train": dataset_of(None, [0, 1]).split("train"),
            "test": dataset_of(None, [0, 2]).split("test"),
        },
    )
    with pytest.raises(CorrKDError, match=r"d, test: label 2 is outside the 2 classes"):
        make_target("classes", dataset)


@given(st.sampled_from(["tertiles", "ternary", "five", "binary-nonzero", "score"]))
@settings(deadline=None)
def test_a_target_round_trips_through_json(name: str) -> None:
    target = make_target(name, dataset_of([float(k) for k in range(-3, 4)]))
    assert target_from_json(target.to_json()) == target


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "dance"},
        {"classes": []},
        {"classes": ["a"], "kind": "classes"},
        {"classes": ["a", "b", "c"], "kind": "questions", "questions": ["q"]},
        {"kind": "questions", "questions": []},
        {"cuts": [0.0, 1.0]},
        {"classes": ["a", "b", "c"], "cuts": [1.0, 0.0]},
        {"cuts": [float("nan")]},
        {"cuts": [10**400]},
        {"cuts": 3},
    ],
)
def test_an_inconsistent_target_on_a_card_is_refused(changes: dict[str, Any]) -> None:
    good = {
        "name": "score",
        "kind": "score",
        "classes": ["a", "b"],
        "questions": [],
        "cuts": [0.0],
        "upward": True,
    }
    assert target_from_json(good).cuts == (0.0,)
    with pytest.raises(CorrKDError, match="the target on the card is invalid"):
        target_from_json({**good, **changes})


@pytest.mark.parametrize(
    ("train", "other"),
    [
        ([0, 1, 2], [[0, 1], [1, 0], [1, 1]]),
        ([[0, 1], [1, 0]], [0, 1, 1]),
        ([[0, 1], [1, 0]], [[0], [1]]),
        ([[0, 1], [1, 0]], [[0, 1, 1]]),
    ],
)
def test_labels_of_another_shape_are_refused(train: object, other: object) -> None:
    target = make_target("auto", dataset_of(None, train))
    with pytest.raises(CorrKDError, match=r"here: labels have shape .* expected"):
        target.of(dataset_of(None, other).split("train"), "here")


def test_a_split_of_zeros_alone_is_refused_before_any_training() -> None:
    dataset = MultimodalDataset(
        name="d",
        splits={
            "train": dataset_of([-1.0, 1.0]).split("train"),
            "valid": dataset_of([0.0, 0.0]).split("test"),
        },
    )
    with pytest.raises(
        CorrKDError, match="d, valid: no sample is left for target `binary-nonzero`"
    ):
        make_target("binary-nonzero", dataset)


@pytest.mark.parametrize("equal", [0.4, 0.7, 0.9])
@pytest.mark.parametrize("end", ["lowest", "highest"])
def test_a_score_target_copes_with_mostly_equal_scores(equal: float, end: str) -> None:
    """The card can be read back, and every category has training samples."""
    train = make_dataset().split("train")
    count = len(train)
    rng = np.random.default_rng(0)
    value = 1.0 if end == "lowest" else 5.0
    scores = np.where(np.arange(count) < equal * count, value, rng.uniform(1.5, 4.5, count))
    dataset = make_dataset()
    splits = {
        name: replace(split, scores=np.resize(scores, len(split)), labels=None)
        for name, split in dataset.splits.items()
    }
    dataset = replace(dataset, splits=splits, class_names=())
    target = make_target("score", dataset)
    assert target_from_json(target.to_json()) == target
    assert set(target.categories(scores)) == set(range(len(target.classes)))
    automatic = make_target("auto", dataset)
    assert automatic.name == ("tertiles" if len(target.classes) == 3 else "score")


def test_constant_scores_are_refused() -> None:
    dataset = make_dataset()
    splits = {
        name: replace(split, scores=np.ones(len(split)), labels=None)
        for name, split in dataset.splits.items()
    }
    with pytest.raises(CorrKDError, match="all scores are 1; nothing can be learned"):
        make_target("score", replace(dataset, splits=splits, class_names=()))
