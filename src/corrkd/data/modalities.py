"""Selecting the modalities and classes of a dataset, and how much is usually missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from corrkd.data.dataset import MultimodalDataset, Split
from corrkd.errors import CorrKDError


class UsualMissing(NamedTuple):
    """Shares of missing frames, 0 to 1, that few training samples exceed: by modality, and the mean
    over the modalities of a sample.
    """

    by_modality: Mapping[str, float]
    together: float


def with_modalities(
    dataset: MultimodalDataset, modalities: tuple[str, ...], widths: Mapping[str, int] | None = None
) -> MultimodalDataset:
    """Return the dataset with these modalities only, in this order.

    Args:
        dataset: has these modalities and perhaps others.
        modalities: names of the modalities.
        widths: widths that their features must have; None: any.

    Raises:
        CorrKDError: if there is none, or one is repeated, is unknown, or has another width than in
            `widths`.
    """
    if not modalities or len(set(modalities)) < len(modalities):
        raise CorrKDError(
            f"dataset {dataset.name}: modalities {', '.join(modalities) or '(none)'}: name at "
            f"least one, each once"
        )
    for m in modalities:
        if m not in dataset.modalities:
            raise CorrKDError(
                f"dataset {dataset.name}: has no modality {m!r}; it has "
                f"{', '.join(dataset.modalities)}"
            )
        if widths is not None and dataset.widths[m] != widths[m]:
            raise CorrKDError(
                f"dataset {dataset.name}: modality {m} is {dataset.widths[m]} wide, but the "
                f"model was trained on {widths[m]}"
            )
    if modalities == dataset.modalities:
        return dataset

    def chosen(split: Split) -> Split:
        parts = {
            name: {m: getattr(split, name)[m] for m in modalities}
            for name in ("frames", "lengths", "present")
        }
        for name in ("frame_ids", "missing_reasons"):  # only some modalities have them
            parts[name] = {
                m: values for m, values in getattr(split, name).items() if m in modalities
            }
        return Split(**{**split.__dict__, **parts})

    return MultimodalDataset(
        **{
            **dataset.__dict__,
            "splits": {name: chosen(split) for name, split in dataset.splits.items()},
        }
    )


def with_classes(dataset: MultimodalDataset, classes: Sequence[str]) -> MultimodalDataset:
    """Return the dataset with its labels numbered as in a model, if the model has all of its
    classes by name.

    Named classes are numbered from 0 in each dataset, so a dataset that lacks some of the model's
    classes numbers the others differently.
    """
    names = dataset.class_names
    if not names or names == tuple(classes) or not set(names) <= set(classes):
        return dataset
    index = np.array([list(classes).index(name) for name in names])

    def numbered(split: Split) -> Split:
        return (
            split
            if split.labels is None or split.labels.ndim > 1
            else replace(split, labels=index[split.labels])
        )

    splits = {name: numbered(split) for name, split in dataset.splits.items()}
    return replace(dataset, splits=splits, class_names=tuple(classes))


def usual_missing(split: Split) -> UsualMissing:
    """Return the 95th percentile of the share of missing frames, over the samples of a split that
    show the modality.

    Args:
        split: the training split.
    """
    lost = np.stack(
        [1.0 - split.present[m].sum(1) / split.exists(m).sum(1) for m in split.frames], 1
    )
    shares = np.where(lost < 1.0, lost, np.nan)  # of samples that show the modality

    def percentile(values: npt.NDArray[np.float64]) -> float:
        measured = values[~np.isnan(values)]
        return float(np.quantile(measured, 0.95, method="inverted_cdf")) if len(measured) else 0.0

    some = shares[~np.isnan(shares).all(1)]
    return UsualMissing(
        {m: percentile(shares[:, index]) for index, m in enumerate(split.frames)},
        percentile(np.nanmean(some, axis=1)),
    )
