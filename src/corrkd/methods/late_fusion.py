"""Late fusion: each modality is judged by itself, and what is visible votes. A control without
anything to distil or restore.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from corrkd.methods.base import Losses, Method, TrainingBatch
from corrkd.networks.late_fusion import LateFusionNetwork


class LateFusion(Method[LateFusionNetwork]):
    """The task loss of each modality by itself, over the samples that show it, summed.

    No modality's classifier learns to lean on another's, so none has to be unlearned when one goes
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
