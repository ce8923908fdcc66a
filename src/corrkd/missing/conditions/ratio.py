"""Intra-modality missingness: single frames of every modality are missing."""

from __future__ import annotations

from torch import Tensor

from corrkd.data.batches import Batch
from corrkd.missing.conditions.at_ratio import AtRatio
from corrkd.missing.conditions.base import Family
from corrkd.missing.masks import drop_frames, frame_numbers


class Ratio(AtRatio):
    """Each frame of every modality is dropped with probability `ratio`."""

    kind = "ratio"
    family = Family.RATIOS

    def dropped_frames(self, batch: Batch, modality: str, *, seed: int, draw: int) -> Tensor:
        """Return the mask of one modality, (N, T) booleans."""
        return random_frames(batch, modality, self.ratio, seed=seed, draw=draw)

    def heading(self, initials: object) -> str:
        """Return the ratio as text."""
        return f"{self.ratio:g}"


def random_frames(batch: Batch, modality: str, ratio: float, *, seed: int, draw: int) -> Tensor:
    """Return which frames are affected, each with probability `ratio`: (N, T) booleans, including
    the frames affected at smaller ratios.
    """
    keys, count = batch.frame_keys.get(modality), batch.exists[modality].shape[1]
    return drop_frames(
        frame_numbers(batch.keys, count, keys, seed=seed, modality=modality, draw=draw), ratio
    )
