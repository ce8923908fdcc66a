from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrkd.data.dataset import MultimodalDataset
from corrkd.data.resample import dependence_groups, group_folds, resampled, with_calibration
from corrkd.data.synthetic import SyntheticSpec, make
from corrkd.errors import CorrKDError
from corrkd.settings import ResampleSettings
from tests.conftest import make_dataset


def with_people(dataset: MultimodalDataset, per_person: int = 4) -> MultimodalDataset:
    """Return the dataset with several samples per person, named after the split."""
    splits = {
        name: replace(
            s,
            groups={
                "session": s.ids,
                "person": np.array([f"{name}{i // per_person}" for i in range(len(s))]),
            },
        )
        for name, s in dataset.splits.items()
    }
    return replace(dataset, splits=splits)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(2, 5), st.integers(0, 99))
def test_folds_keep_groups_together_and_are_of_similar_size(
    members: list[int], folds: int, seed: int
) -> None:
    names = [f"p{m}" for m in members]
    if len(set(names)) < folds:
        with pytest.raises(
            CorrKDError,
            match=f"here = {folds}: there are {len(set(names))} groups of samples to divide",
        ):
            group_folds(names, folds, seed=seed, where="here")
        return
    fold = group_folds(names, folds, seed=seed, where="here")
    by_person = {
        name: {int(f) for f, n in zip(fold, names, strict=True) if n == name} for name in names
    }
    assert all(len(person_folds) == 1 for person_folds in by_person.values())
    sizes = np.bincount(fold, minlength=folds)
    assert sizes.min() > 0
    # Each group was assigned to the smallest fold at that time.
    assert sizes.max() - sizes.min() <= max(names.count(name) for name in names)
    assert (fold == group_folds(names, folds, seed=seed, where="here")).all()


def test_each_sample_is_in_validation_for_one_seed_and_in_training_for_the_others() -> None:
    dataset = with_people(make_dataset())
    all_ids = [*dataset.split("train").ids, *dataset.split("valid").ids]
    held: list[str] = []
    for seed in range(3):
        result = resampled(dataset, ResampleSettings(folds=3), seed)
        train, valid = result.split("train"), result.split("valid")
        assert sorted([*train.ids, *valid.ids]) == sorted(all_ids)
        assert not set(train.groups["person"]) & set(valid.groups["person"])
        assert result.split("test") is dataset.split("test")
        held += list(valid.ids)
        # Every sample keeps its label, lengths and frames.
        for split in (train, valid):
            for i, name in enumerate(split.ids):
                source = dataset.split(name.split("-")[0])
                row = list(source.ids).index(name)
                assert split.labels is not None
                assert source.labels is not None
                assert split.labels[i] == source.labels[row]
                for m in dataset.modalities:
                    length = int(source.lengths[m][row])
                    assert split.lengths[m][i] == length
                    np.testing.assert_array_equal(
                        split.frames[m][i, :length], source.frames[m][row, :length]
                    )
    assert sorted(held) == sorted(all_ids)
    again = resampled(dataset, ResampleSettings(folds=3), 4)
    assert list(again.split("valid").ids) == list(
        resampled(dataset, ResampleSettings(folds=3), 1).split("valid").ids
    )


def test_splits_of_different_lengths_are_padded_to_the_longest() -> None:
    dataset = with_people(make_dataset())
    short = {
        name: make_dataset(frames=3).split(name) if name == "valid" else s
        for name, s in dataset.splits.items()
    }
    short["valid"] = with_people(replace(dataset, splits=short)).split("valid")
    result = resampled(replace(dataset, splits=short), ResampleSettings(folds=2), 0)
    assert {s.frames["audio"].shape[1] for s in result.splits.values()} == {6}
    assert not result.split("train").present["audio"][~result.split("train").exists("audio")].any()


def test_draws_come_from_the_training_split_alone_and_differ_by_seed() -> None:
    dataset = make_dataset()
    first, second = (resampled(dataset, ResampleSettings(train=20), seed) for seed in (0, 1))
    assert len(first.split("train")) == len(set(first.split("train").ids)) == 20
    assert set(first.split("train").ids) < set(dataset.split("train").ids)
    assert set(first.split("train").ids) != set(second.split("train").ids)
    assert first.split("valid") is dataset.split("valid")
    with pytest.raises(
        CorrKDError, match=r"data\.resample\.train = 49: there are 48 training samples"
    ):
        resampled(dataset, ResampleSettings(train=49), 0)


def test_folds_drop_the_exact_posterior() -> None:
    dataset = make(SyntheticSpec(train=20, valid=20, test=20))
    assert resampled(dataset, ResampleSettings(train=5), 0).posterior is dataset.posterior
    assert resampled(dataset, ResampleSettings(folds=2), 0).posterior is None


def test_dependent_samples_are_grouped() -> None:
    dataset = with_people(make_dataset())
    assert dependence_groups(dataset.split("train"))[0] == "person"
    other = make_dataset().split("train")
    groups = dependence_groups(dataset.split("train"), other)
    assert groups[0] == "person"
    assert len(set(groups[1][-len(other) :])) == len(other)  # those without a person stand alone
    assert len(dependence_groups(dataset.split("train"), dataset.split("valid"))[1]) == 78
    name, members = dependence_groups(other)
    assert name == "sample"
    assert len(set(members)) == 48


def test_shared_ids_cannot_be_cross_validated() -> None:
    dataset = make_dataset()
    same = replace(dataset, splits={**dataset.splits, "valid": dataset.split("train")})
    with pytest.raises(CorrKDError, match="share sample ids"):
        resampled(same, ResampleSettings(folds=2), 0)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.floats(0.05, 0.95))
def test_whole_groups_are_held_out_for_calibration(members: list[int], share: float) -> None:
    count = len(members)
    dataset = make_dataset(sizes=(count, 6, 6))
    train = dataset.split("train")
    people = np.array([f"p{m}" for m in members])
    dataset = replace(dataset, splits={"train": replace(train, groups={"person": people})})
    if len(set(members)) < 2:
        with pytest.raises(CorrKDError, match="one person in train, so none can be held out"):
            with_calibration(dataset, share)
        return
    result = with_calibration(dataset, share)
    kept, held = result.split("train"), result.split("calibration")
    assert sorted([*kept.ids, *held.ids]) == sorted(train.ids)
    assert len(kept)
    assert len(held)
    assert not set(kept.groups["person"]) & set(held.groups["person"])
    # The error is at most the largest person, who is held out completely or not at all.
    assert abs(len(held) - share * count) <= max(members.count(m) for m in members)
    assert list(with_calibration(dataset, share).split("calibration").ids) == list(held.ids)


def test_nobody_in_the_validation_split_is_held_out() -> None:
    dataset = with_people(make_dataset())
    train, valid = dataset.split("train"), dataset.split("valid")
    people = train.groups["person"]
    half = people[: len(valid)]  # in valid, too
    splits = {**dataset.splits, "valid": replace(valid, groups={**valid.groups, "person": half})}
    result = with_calibration(replace(dataset, splits=splits), 0.9)
    assert set(result.split("calibration").groups["person"]) == set(people) - set(half)
    everyone = replace(
        valid, groups={**valid.groups, "person": np.resize(np.unique(people), len(valid))}
    )
    with pytest.raises(
        CorrKDError, match="every person of train is in another split too, so none can be held out"
    ):
        with_calibration(replace(dataset, splits={**dataset.splits, "valid": everyone}), 0.2)
