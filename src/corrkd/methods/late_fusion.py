"""Late fusion: each modality is judged by itself, and what is visible votes. A control without anything to distil or restore."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from corrkd.data.batches import Context
from corrkd.data.inputs import Inputs
from corrkd.methods.base import Method, TeacherOutput
from corrkd.networks.late_fusion import LateFusionNetwork


class LateFusion(Method[LateFusionNetwork]):
    """The task loss of each modality by itself, over the samples that show it, summed.

    No modality's classifier learns to lean on another's, so none has to be unlearned when one goes missing.
    """

    title: ClassVar[str] = "Late fusion"
    network_type = LateFusionNetwork

    def forward(
        self,
        inputs: Inputs,
        targets: Tensor,
        teacher: TeacherOutput | None = None,
        context: Context | None = None,
    ) -> dict[str, Tensor]:
        """The term task."""
        votes, shown = self.network.votes(inputs)
        targets, shown = self.gather(targets), self.gather(shown)
        losses = [
            self.target.masked_task_loss(self.gather(vote), targets, shown[:, place], self.class_weights)
            for place, vote in enumerate(votes)
        ]
        return {"task": torch.stack(losses).sum()}
