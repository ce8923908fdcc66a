"""Gated fusion: a mean vector for each modality, and a gate that shares out the weight among those
that are visible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from corrkd.data.inputs import Inputs
from corrkd.methods.base import Losses, Method, TrainingBatch, WeightedLoss
from corrkd.networks.base import Network, Output
from corrkd.networks.encoder import pool
from corrkd.settings import Strict, Width


class GatedFusionSettings(Strict):
    """Structure of the network, saved with the model. A key that is not here is an error."""

    width: Width = Field(32, description="of each modality's vector")
    dropout: float = Field(0.1, ge=0.0, lt=1.0, description="on the fused vector")


class GatedFusionNetwork(Network[GatedFusionSettings]):
    """Takes any modalities, for classes, questions and scores. Frames that are not visible are not
    looked at.
    """

    name = "gated-fusion"
    settings_type = GatedFusionSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """Make the modules."""
        width = self.settings.width
        self.embed = nn.ModuleList(
            nn.Sequential(nn.Linear(widths[m], width), nn.ReLU()) for m in self.modalities
        )
        self.gate = nn.ModuleList(nn.Linear(width, 1) for _ in self.modalities)
        self.dropout = nn.Dropout(self.settings.dropout)
        self.classifier = nn.Linear(width, self.target.num_logits)

    @property
    def representation_width(self) -> int:
        """Width of the fused vector."""
        return self.settings.width

    def forward(self, inputs: Inputs) -> Output:
        """The representation is the fused vector, (N, width)."""
        return self.gated(inputs)[0]

    def gated(self, inputs: Inputs) -> tuple[Output, Tensor]:
        """`forward`, and the weight of each modality, (N, M): 0 where it is missing; a row's sum is
        1.
        """
        both = zip(self.modalities, self.embed, strict=True)
        vectors = [pool(embed(inputs.frames[m]), inputs.visible[m]) for m, embed in both]
        scores = torch.cat(
            [gate(vector) for gate, vector in zip(self.gate, vectors, strict=True)], 1
        )
        shown = inputs.shown(self.modalities)
        # The lowest number and not -inf: where nothing is visible, all modalities weigh the same
        # instead of NaN.
        weights = torch.softmax(scores.masked_fill(~shown, torch.finfo(scores.dtype).min), 1)
        fused = self.dropout((weights[..., None] * torch.stack(vectors, 1)).sum(1))
        return Output(fused, self.target.shape_logits(self.classifier(fused))), weights


class GatedFusionOptions(Strict):
    """Options that only training needs."""

    concentration: WeightedLoss = Field(
        default=WeightedLoss(weight=0.1),
        description="the term that keeps the gate from one modality",
    )


class GatedFusion(Method[GatedFusionNetwork]):
    """The task loss, and the sum of the gate's squared weights: 1 where one modality decides, 1/M
    where all M weigh the same.
    """

    title = "Gated fusion"
    network = "gated-fusion"
    options_type = GatedFusionOptions
    search: ClassVar = {"method.concentration.weight": (0.01, 1.0)}

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return task and concentration, over the rows of all processes."""
        output, weights = self.student.gated(batch.inputs)
        return {
            "task": (1.0, self.task_loss(self.gather(output.logits), self.gather(batch.targets))),
            "concentration": (
                self.options.concentration.weight,
                self.gather(weights).square().sum(1).mean(),
            ),
        }
