"""What a network has to beat: predictions that look at no feature, from the training labels alone
or with the samples' lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from corrkd.data.dataset import BoolArray, IntArray
from corrkd.targets.base import Target

Array = npt.NDArray[Any]
NUM_BINS = 8  # of lengths, by their quantiles
MAX_DISTINCT = 16  # so many distinct lengths are a bin each
HIDDEN = -1  # in place of the bin of a modality that is not visible


def lengths_vary(lengths: Mapping[str, IntArray]) -> bool:
    """Return whether the samples have different numbers of frames of any modality. `lengths`: (N,)
    by modality.
    """
    return any(len(np.unique(x)) > 1 for x in lengths.values())


class LengthFloor:
    """The majority prediction among the training samples whose visible modalities are about as
    long.

    It shows how much of a score the lengths alone would give. Lengths fall into bins: the distinct
    lengths where there are no more than 16, else eight bins by quantiles. Where no training sample
    is in the same bins, the majority of all training samples is predicted.

    Args:
        target: what is predicted.
        labels: (N,) or (N, Q) labels of the training samples.
        lengths: (N,) frames of each training sample, by modality.
        visible: (N,) whether the training sample has a visible frame of the modality, by modality.
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
        """Return a prediction for each of n samples, (n,) or (n, Q). Arguments as of the class, for
        these samples.
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
    """The lowest length of each bin but the first."""
    distinct = np.unique(lengths)
    if len(distinct) <= MAX_DISTINCT:
        return distinct[1:].astype(np.float64)
    return np.unique(np.quantile(lengths, np.arange(1, NUM_BINS) / NUM_BINS))
