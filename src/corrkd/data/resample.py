"""Folds that keep groups together, and splits of its own for every seed: cross-validation and draws of the training samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from corrkd.data.dataset import BoolArray, IntArray, MultimodalDataset, Posterior, Split
from corrkd.errors import CorrKDError
from corrkd.settings import ResampleSettings

GROUPS = ("person", "speaker", "video", "session")  # the widest first: what repeats over splits is not independent
SAMPLE = "sample"
S = TypeVar("S", bound=np.generic)


def widest_group(split: Split) -> tuple[str, npt.NDArray[np.str_]]:
    """Within what samples are not independent: the widest group's name with (N,) members, or "sample" where each stands for itself."""
    name = next((group for group in GROUPS if group in split.groups), SAMPLE)
    return name, split.ids if name == SAMPLE else split.groups[name]


def group_folds(members: npt.ArrayLike, folds: int, *, seed: int, where: str) -> IntArray:
    """A fold for each sample, none dividing a group: groups are dealt out in random order, each to the fold that is smallest then.

    Args:
        members: (N,) group of each sample.
        folds: how many.
        seed: of the order.
        where: opens the error line.

    Returns:
        (N,) numbers 0 to folds - 1, each taken by at least one group.

    Raises:
        CorrKDError: where there are fewer groups than folds.
    """
    names, group, counts = np.unique(np.asarray(members), return_inverse=True, return_counts=True)
    if len(names) < folds:
        raise CorrKDError(f"{where}: {folds} folds of {len(names)} groups; ask for at most {len(names)} folds")
    fold_of, sizes = np.empty(len(names), np.int64), np.zeros(folds, np.int64)
    for place in np.random.default_rng(seed).permutation(len(names)):
        smallest = int(sizes.argmin())
        fold_of[place] = smallest
        sizes[smallest] += counts[place]
    return fold_of[group]


def resampled(dataset: MultimodalDataset, settings: ResampleSettings, seed: int) -> MultimodalDataset:
    """The dataset with the splits of a seed; the test split is never touched.

    With `folds`, train and valid together fall into folds by the widest group there is, the same for every seed; the fold `seed` mod
    `folds` becomes the validation split and the rest the training split. With `train`, so many training samples are then drawn, by seed.
    Copies the frames it takes.

    Raises:
        CorrKDError: where there are fewer groups than folds, or fewer training samples than asked for.
    """
    splits, rows = dict(dataset.splits), {}
    if settings.folds is not None:
        pool = _joined(dataset.split("train"), dataset.split("valid"), f"dataset {dataset.name}")
        members = widest_group(pool)[1]
        fold = group_folds(members, settings.folds, seed=0, where=f"dataset {dataset.name}, data.resample")
        held = fold == seed % settings.folds
        splits |= {"train": pool.take(~held), "valid": pool.take(held)}
    if settings.train is not None:
        count = len(splits["train"])
        if settings.train > count:
            raise CorrKDError(f"settings: data.resample.train = {settings.train}: there are {count} training samples")
        rows["train"] = np.sort(np.random.default_rng(seed).choice(count, settings.train, replace=False))
        splits["train"] = splits["train"].take(rows["train"])
    posterior = dataset.posterior if settings.folds is None else None
    if posterior is not None and rows:
        posterior = _posterior_of(posterior, dataset, rows)
    return replace(dataset, splits=splits, posterior=posterior)


def _joined(one: Split, other: Split, where: str) -> Split:
    """Both splits' samples, the first's first; frames are padded to the longer."""
    if len(np.unique(np.concatenate([one.ids, other.ids]))) < len(one) + len(other):
        raise CorrKDError(f"{where}: train and valid share sample ids, so they cannot be cross-validated together")

    def frames(m: str) -> tuple[npt.NDArray[np.float32], BoolArray]:
        longest = max(s.frames[m].shape[1] for s in (one, other))
        wide = [longest - s.frames[m].shape[1] for s in (one, other)]
        x = [np.pad(s.frames[m], ((0, 0), (0, w), (0, 0))) for s, w in zip((one, other), wide, strict=True)]
        there = [np.pad(s.present[m], ((0, 0), (0, w))) for s, w in zip((one, other), wide, strict=True)]
        return np.concatenate(x), np.concatenate(there)

    arrays = {m: frames(m) for m in one.frames}
    return Split(
        frames={m: x for m, (x, _) in arrays.items()},
        present={m: there for m, (_, there) in arrays.items()},
        lengths={m: np.concatenate([one.lengths[m], other.lengths[m]]) for m in one.frames},
        ids=np.concatenate([one.ids, other.ids]),
        scores=_both(one.scores, other.scores),
        labels=_both(one.labels, other.labels),
        groups={g: np.concatenate([x, other.groups[g]]) for g, x in one.groups.items() if g in other.groups},
        order=_both(one.order, other.order),
    )


def _both(one: npt.NDArray[S] | None, other: npt.NDArray[S] | None) -> npt.NDArray[S] | None:
    return None if one is None or other is None else np.concatenate([one, other])


def _posterior_of(whole: Posterior, dataset: MultimodalDataset, rows: Mapping[str, IntArray]) -> Posterior:
    """The posterior of splits of which only some rows are left; what the others show does not matter."""

    def posterior(split: str, visible: Mapping[str, BoolArray]) -> npt.NDArray[np.float64]:
        if split not in rows:
            return whole(split, visible)
        shown = {m: np.zeros(dataset.split(split).present[m].shape, bool) for m in visible}
        for m, own in visible.items():
            shown[m][rows[split]] = own
        return whole(split, shown)[rows[split]]

    return posterior
