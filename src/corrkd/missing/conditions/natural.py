"""Natural missingness: samples that are incomplete in the data, and the others."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from corrkd.data.batches import Batch
from corrkd.missing.conditions.base import Condition
from corrkd.missing.masks import drop_modalities


class Natural(Condition):
    """Nothing is dropped; only the samples that are incomplete in the data are tested."""

    kind = "natural"
    meaning = "only samples that are incomplete in the data (natural)"
    removes_frames: ClassVar[bool] = False
    stores_masks: ClassVar[bool] = False
    incomplete_samples_only: ClassVar[bool] = True

    @property
    def complete_modalities(self) -> tuple[str, ...]:
        """All modalities, because nothing is dropped."""
        return self.available

    def dropped(self, batch: Batch, *, seed: int, draw: int) -> dict[str, Tensor]:
        """Return the masks, which drop nothing."""
        return drop_modalities(batch.exists, self.available)


class Intact(Natural):
    """Nothing is dropped; only samples that are complete in the data are tested."""

    kind = "intact"
    meaning = "only samples that are complete in the data (intact)"
    incomplete_samples_only: ClassVar[bool] = False
    intact_samples_only: ClassVar[bool] = True
