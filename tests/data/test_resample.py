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
    """Some samples each to a person, whose name tells the split."""
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
def test_folds_keep_groups_together_and_are_of_a_size(
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
    assert all(len(found) == 1 for found in by_person.values())
    sizes = np.bincount(fold, minlength=folds)
    assert sizes.min() > 0
    # Each group went to what was the smallest fold then.
    assert sizes.max() - sizes.min() <= max(names.count(name) for name in names)
    assert (fold == group_folds(names, folds, seed=seed, where="here")).all()


def test_each_sample_is_validated_on_by_one_seed_of_the_folds_and_trained_on_by_the_others() -> (
    None
):
    dataset = with_people(make_dataset())
    whole = [*dataset.split("train").ids, *dataset.split("valid").ids]
    held: list[str] = []
    for seed in range(3):
        made = resampled(dataset, ResampleSettings(folds=3), seed)
        train, valid = made.split("train"), made.split("valid")
        assert sorted([*train.ids, *valid.ids]) == sorted(whole)
        assert not set(train.groups["person"]) & set(valid.groups["person"])
        assert made.split("test") is dataset.split("test")
        held += list(valid.ids)
        # A sample keeps all that is its own.
        for split in (train, valid):
            for place, name in enumerate(split.ids):
                source = dataset.split(name.split("-")[0])
                row = list(source.ids).index(name)
                assert split.labels is not None
                assert source.labels is not None
                assert split.labels[place] == source.labels[row]
                for m in dataset.modalities:
                    length = int(source.lengths[m][row])
                    assert split.lengths[m][place] == length
                    np.testing.assert_array_equal(
                        split.frames[m][place, :length], source.frames[m][row, :length]
                    )
    assert sorted(held) == sorted(whole)
    again = resampled(dataset, ResampleSettings(folds=3), 4)
    assert list(again.split("valid").ids) == list(
        resampled(dataset, ResampleSettings(folds=3), 1).split("valid").ids
    )


def test_splits_of_other_lengths_are_padded_to_the_longer() -> None:
    dataset = with_people(make_dataset())
    short = {
        name: make_dataset(frames=3).split(name) if name == "valid" else s
        for name, s in dataset.splits.items()
    }
    short["valid"] = with_people(replace(dataset, splits=short)).split("valid")
    made = resampled(replace(dataset, splits=short), ResampleSettings(folds=2), 0)
    assert {s.frames["audio"].shape[1] for s in made.splits.values()} == {6}
    assert not made.split("train").present["audio"][~made.split("train").exists("audio")].any()


def test_draws_are_of_the_training_split_alone_and_differ_by_seed() -> None:
    dataset = make_dataset()
    one, other = (resampled(dataset, ResampleSettings(train=20), seed) for seed in (0, 1))
    assert len(one.split("train")) == len(set(one.split("train").ids)) == 20
    assert set(one.split("train").ids) < set(dataset.split("train").ids)
    assert set(one.split("train").ids) != set(other.split("train").ids)
    assert one.split("valid") is dataset.split("valid")
    with pytest.raises(
        CorrKDError, match=r"data\.resample\.train = 49: there are 48 training samples"
    ):
        resampled(dataset, ResampleSettings(train=49), 0)


def test_the_exact_posterior_goes_with_the_folds() -> None:
    dataset = make(SyntheticSpec(train=20, valid=20, test=20))
    assert resampled(dataset, ResampleSettings(train=5), 0).posterior is dataset.posterior
    assert resampled(dataset, ResampleSettings(folds=2), 0).posterior is None


def test_samples_are_grouped_by_what_connects_them() -> None:
    dataset = with_people(make_dataset())
    assert dependence_groups(dataset.split("train"))[0] == "person"
    alone = make_dataset().split("train")
    both = dependence_groups(dataset.split("train"), alone)
    assert both[0] == "person"
    assert len(set(both[1][-len(alone) :])) == len(alone)  # those without a person stand alone
    assert len(dependence_groups(dataset.split("train"), dataset.split("valid"))[1]) == 78
    name, members = dependence_groups(alone)
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
    made = with_calibration(dataset, share)
    kept, held = made.split("train"), made.split("calibration")
    assert sorted([*kept.ids, *held.ids]) == sorted(train.ids)
    assert len(kept)
    assert len(held)
    assert not set(kept.groups["person"]) & set(held.groups["person"])
    # No more off than the largest person, who may have to be taken or left.
    assert abs(len(held) - share * count) <= max(members.count(m) for m in members)
    assert list(with_calibration(dataset, share).split("calibration").ids) == list(held.ids)


def test_nobody_is_held_out_who_helps_to_choose() -> None:
    dataset = with_people(make_dataset())
    train, valid = dataset.split("train"), dataset.split("valid")
    people = train.groups["person"]
    half = people[: len(valid)]  # in valid, too
    splits = {**dataset.splits, "valid": replace(valid, groups={**valid.groups, "person": half})}
    made = with_calibration(replace(dataset, splits=splits), 0.9)
    assert set(made.split("calibration").groups["person"]) == set(people) - set(half)
    everyone = replace(
        valid, groups={**valid.groups, "person": np.resize(np.unique(people), len(valid))}
    )
    with pytest.raises(
        CorrKDError, match="every person of train is in another split too, so none can be held out"
    ):
        with_calibration(replace(dataset, splits={**dataset.splits, "valid": everyone}), 0.2)
