"""Baselines that use no features: predictions from the training labels and the samples' lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from corrkd.data.dataset import BoolArray, IntArray
from corrkd.targets.base import Target

Array = npt.NDArray[Any]
NUM_BINS = 8  # of lengths, by their quantiles
MAX_DISTINCT = 16  # with at most this many distinct lengths, each is a bin
HIDDEN = -1  # in place of the bin of a modality that is not visible


def lengths_vary(lengths: Mapping[str, IntArray]) -> bool:
    """Return whether the samples have different numbers of frames of any modality. `lengths`: (N,)
    by modality.
    """
    return any(len(np.unique(x)) > 1 for x in lengths.values())


class LengthFloor:
    """Baseline that predicts the majority among training samples with visible modalities of similar
    length.

    It shows the score that the lengths alone achieve. Each distinct length is a bin if there are at
    most 16, else there are eight quantile bins. If no training sample falls into the same bins, the
    prediction is the majority of all training samples.

    Args:
        target: what is predicted.
        labels: (N,) or (N, Q) labels of the training samples.
        lengths: number of frames of each training sample, (N,) by modality.
        visible: whether the training sample has a visible frame, (N,) by modality.
    """

    def __init__(
        self,
        target: Target,
        labels: Array,
        lengths: Mapping[str, IntArray],
        visible: Mapping[str, BoolArray],
    ) -> None:
        self.target, self.labels = target, labels
        self.edges = {m: _edges(x[visible[m]]) for m, x in lengths.items()}
        self.bins = self._bins(lengths, visible)

    def predict(self, lengths: Mapping[str, IntArray], visible: Mapping[str, BoolArray]) -> Array:
        """Return predictions for n samples, (n,) or (n, Q). The arguments are as for the class, but
        for these samples.
        """
        patterns, inverse = np.unique(self._bins(lengths, visible), axis=0, return_inverse=True)
        predictions = []
        for pattern in patterns:
            has_length = pattern != HIDDEN
            alike = (self.bins[:, has_length] == pattern[has_length]).all(1)
            predictions.append(
                self.target.majority(self.labels[alike] if alike.any() else self.labels)
            )
        return np.stack(predictions)[inverse.reshape(-1)]

    def _bins(self, lengths: Mapping[str, IntArray], visible: Mapping[str, BoolArray]) -> IntArray:
        columns = [
            np.where(visible[m], np.searchsorted(edges, lengths[m], side="right"), HIDDEN)
            for m, edges in self.edges.items()
        ]
        return np.stack(columns, 1)


def _edges(lengths: IntArray) -> npt.NDArray[np.float64]:
    """Return the lowest length of each bin except the first."""
    distinct = np.unique(lengths)
    if len(distinct) <= MAX_DISTINCT:
        return distinct[1:].astype(np.float64)
    return np.unique(np.quantile(lengths, np.arange(1, NUM_BINS) / NUM_BINS))
