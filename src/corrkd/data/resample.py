"""Folds that keep groups together, and separate splits for each seed: cross-validation and draws of
training samples.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from corrkd.data.dataset import BoolArray, IntArray, MultimodalDataset, Split
from corrkd.data.groups import SAMPLE, dependent_samples
from corrkd.errors import CorrKDError
from corrkd.settings import ResampleSettings

CALIBRATION = "calibration"  # the split that is held out from training and from every choice
S = TypeVar("S", bound=np.generic)


def dependence_groups(*splits: Split) -> tuple[str, npt.NDArray[np.str_]]:
    """Return the kind of the groups of the splits' samples, and the group of each sample, (N,), one
    split after the other (`dependent_samples`).
    """
    kinds = {kind for split in splits for kind in split.groups}
    nobody = [np.full(len(split), "") for split in splits]
    groups = {
        kind: np.concatenate(
            [split.groups.get(kind, none) for split, none in zip(splits, nobody, strict=True)]
        )
        for kind in kinds
    }
    return dependent_samples(np.concatenate([split.ids for split in splits]), groups)


def group_folds(members: npt.ArrayLike, folds: int, *, seed: int, where: str) -> IntArray:
    """Return a fold for each sample. Groups are not divided: in random order, each is assigned to
    the fold that is smallest at that point.

    Args:
        members: (N,) group of each sample.
        folds: number of folds.
        seed: seed of the order.
        where: the setting that requests the folds; begins the error message.

    Returns:
        (N,) numbers 0 to folds - 1, each taken by at least one group.

    Raises:
        CorrKDError: if there are fewer groups than folds.
    """
    names, group, counts = np.unique(np.asarray(members), return_inverse=True, return_counts=True)
    if len(names) < folds:
        advice = f"set it to at most {len(names)}" if len(names) > 1 else "set it to null"
        raise CorrKDError(
            f"{where} = {folds}: there are {len(names)} groups of samples to divide; {advice}"
        )
    fold_of, sizes = np.empty(len(names), np.int64), np.zeros(folds, np.int64)
    for index in np.random.default_rng(seed).permutation(len(names)):
        smallest = int(sizes.argmin())
        fold_of[index] = smallest
        sizes[smallest] += counts[index]
    return fold_of[group]


def with_calibration(dataset: MultimodalDataset, share: float) -> MultimodalDataset:
    """Return the dataset with a split `calibration`: groups drawn from train until they have about
    this share of its samples.

    The groups are always the same, so that no seed trains on them. Groups that are also in another
    split are not drawn, since they would influence choices.

    Raises:
        CorrKDError: if the training split has a single group, or every group is also in another
            split.
    """
    train, others = (
        dataset.split("train"),
        [split for name, split in dataset.splits.items() if name != "train"],
    )
    by, members = dependence_groups(train, *others)
    names, group, counts = np.unique(members[: len(train)], return_inverse=True, return_counts=True)
    # Ids that are row numbers repeat over splits.
    free = (
        np.arange(len(names))
        if by == SAMPLE
        else np.flatnonzero(~np.isin(names, members[len(train) :]))
    )
    if len(names) < 2 or not len(free):
        reason = (
            f"one {by} in train"
            if len(names) < 2
            else f"every {by} of train is in another split too"
        )
        raise CorrKDError(
            f"dataset {dataset.name}: {reason}, so none can be held out; set data.calibration to "
            f"null"
        )
    order = np.random.default_rng(0).permutation(free)
    reached = counts[order].cumsum()
    # As close to the share as whole groups allow, with at least one group on either side.
    number = int(np.clip(np.abs(reached - share * len(train)).argmin() + 1, 1, len(names) - 1))
    held = np.isin(group, order[:number])
    splits = {**dataset.splits, "train": train.take(~held), CALIBRATION: train.take(held)}
    return replace(dataset, splits=splits)


def seed_rows(
    dataset: MultimodalDataset, settings: ResampleSettings, seed: int
) -> tuple[IntArray, IntArray]:
    """Return the samples that a seed trains on and validates on: rows of train and valid, where
    valid's are counted on from train's. Reads no frames.

    With `folds`, train and valid together are divided into folds without dividing a group, the same
    for every seed; fold `seed` mod `folds` is for validation and the rest for training. With
    `train`, that many training samples are then drawn, by seed.

    Raises:
        CorrKDError: if there are fewer groups than folds, fewer training samples than requested, or
            ids in both splits.
    """
    train, valid = dataset.split("train"), dataset.split("valid")
    index, num_train = np.arange(len(train) + len(valid)), len(train)
    trained, validated = index[:num_train], index[num_train:]
    if settings.folds is not None:
        if set(train.ids) & set(valid.ids):
            raise CorrKDError(
                f"dataset {dataset.name}: train and valid share sample ids, so they cannot be "
                f"cross-validated together"
            )
        fold = group_folds(
            dependence_groups(train, valid)[1],
            settings.folds,
            seed=0,
            where="settings: data.resample.folds",
        )
        held = fold == seed % settings.folds
        trained, validated = index[~held], index[held]
    if settings.train is not None:
        if settings.train > len(trained):
            raise CorrKDError(
                f"settings: data.resample.train = {settings.train}: there are {len(trained)} "
                f"training samples"
            )
        trained = np.sort(
            np.random.default_rng(seed).choice(trained, settings.train, replace=False)
        )
    return trained, validated


def resampled(
    dataset: MultimodalDataset, settings: ResampleSettings, seed: int
) -> MultimodalDataset:
    """Return the dataset with the splits of a seed (`seed_rows`), with copied frames. The test
    split stays the same.

    Raises:
        CorrKDError: as in `seed_rows`.
    """
    trained, validated = seed_rows(dataset, settings, seed)
    splits = {**dataset.splits, "train": _taken(dataset, trained)}
    if settings.folds is not None:
        splits["valid"] = _taken(dataset, validated)
    return replace(dataset, splits=splits, posterior=None if settings.folds else dataset.posterior)


def _taken(dataset: MultimodalDataset, rows: IntArray) -> Split:
    """Return samples of train and valid, where valid's rows are counted on from train's."""
    train, valid = dataset.split("train"), dataset.split("valid")
    first, second = rows[rows < len(train)], rows[rows >= len(train)] - len(train)
    return _joined(train.take(first), valid.take(second)) if len(second) else train.take(first)


def _joined(first: Split, other: Split) -> Split:
    """Return the samples of both splits, those of `first` first, with frames padded to the longer
    length.
    """

    def padded(m: str) -> tuple[npt.NDArray[np.float32], BoolArray]:
        longest = max(s.frames[m].shape[1] for s in (first, other))
        wide = [longest - s.frames[m].shape[1] for s in (first, other)]
        x = [
            np.pad(s.frames[m], ((0, 0), (0, w), (0, 0)))
            for s, w in zip((first, other), wide, strict=True)
        ]
        present = [
            np.pad(s.present[m], ((0, 0), (0, w)))
            for s, w in zip((first, other), wide, strict=True)
        ]
        return np.concatenate(x), np.concatenate(present)

    def padded_ids(m: str) -> IntArray:
        longest = arrays[m][0].shape[1]
        parts = [
            np.pad(x, ((0, 0), (0, longest - x.shape[1])), constant_values=-1)
            for x in (first.frame_ids[m], other.frame_ids[m])
        ]
        return np.concatenate(parts)

    arrays = {m: padded(m) for m in first.frames}
    return Split(
        frames={m: x for m, (x, _) in arrays.items()},
        present={m: present for m, (_, present) in arrays.items()},
        lengths={m: np.concatenate([first.lengths[m], other.lengths[m]]) for m in first.frames},
        ids=np.concatenate([first.ids, other.ids]),
        scores=_both(first.scores, other.scores),
        labels=_both(first.labels, other.labels),
        groups={
            g: np.concatenate([x, other.groups[g]])
            for g, x in first.groups.items()
            if g in other.groups
        },
        order=_both(first.order, other.order),
        frame_ids={m: padded_ids(m) for m in first.frame_ids if m in other.frame_ids},
        missing_reasons={
            m: np.concatenate([x, other.missing_reasons[m]])
            for m, x in first.missing_reasons.items()
            if m in other.missing_reasons
        },
    )


def _both(first: npt.NDArray[S] | None, other: npt.NDArray[S] | None) -> npt.NDArray[S] | None:
    return None if first is None or other is None else np.concatenate([first, other])
