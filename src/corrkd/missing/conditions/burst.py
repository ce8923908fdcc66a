"""Bursts: a contiguous gap in every modality."""

from __future__ import annotations

from torch import Tensor

from corrkd.data.batches import Batch
from corrkd.missing.conditions.at_ratio import AtRatio
from corrkd.missing.masks import drop_burst, uniform


class Burst(AtRatio):
    """One gap of a share `ratio` of each modality's length, at a random position."""

    kind = "burst"
    meaning = "a contiguous gap of that share (burst)"

    def dropped_frames(self, batch: Batch, modality: str, *, seed: int, draw: int) -> Tensor:
        """Return the mask of one modality; a gap contains the gaps at all smaller ratios."""
        exists = batch.exists[modality]
        number = uniform(batch.keys, 1, seed=seed, purpose="burst", modality=modality, draw=draw)
        return drop_burst(number, self.ratio, exists.sum(1), exists.shape[1])
