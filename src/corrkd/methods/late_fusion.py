"""Late fusion: each modality is classified by itself, and the visible ones vote. A control that
neither distils nor restores.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from corrkd.methods.base import Losses, Method, TrainingBatch
from corrkd.networks.late_fusion import LateFusionNetwork


class LateFusion(Method[LateFusionNetwork]):
    """The sum of separate task losses, one per modality over the samples that show it.

    No modality's classifier can rely on another modality, so none is affected when another is
    missing.
    """

    title: ClassVar[str] = "Late fusion"
    stackable: ClassVar[bool] = True
    network = "late-fusion"

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return task."""
        votes, visible = self.student.votes(batch.inputs)
        targets, visible = self.gather(batch.targets), self.gather(visible)
        losses = [
            self.target.masked_task_loss(
                self.gather(vote), targets, visible[:, index], self.class_weights
            )
            for index, vote in enumerate(votes)
        ]
        return {"task": (1.0, torch.stack(losses).sum())}
