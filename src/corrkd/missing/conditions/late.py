"""Late starts: the first frames of every modality are missing."""

from __future__ import annotations

from torch import Tensor

from corrkd.data.batches import Batch
from corrkd.missing.conditions.at_ratio import AtRatio
from corrkd.missing.masks import drop_start


class Late(AtRatio):
    """Late start: the first frames are missing, a share `ratio` of each modality's length."""

    kind = "late"
    meaning = "that share of the first frames lost (late)"

    @property
    def is_random(self) -> bool:
        """Always False: the masks follow from the ratio."""
        return False

    def dropped_frames(self, batch: Batch, modality: str, *, seed: int, draw: int) -> Tensor:
        """Return the mask of one modality, (N, T) booleans."""
        exists = batch.exists[modality]
        return drop_start(self.ratio, exists.sum(1), exists.shape[1])
