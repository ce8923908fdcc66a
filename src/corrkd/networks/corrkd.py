"""The network that teacher and student share (method, Network)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from corrkd.data.inputs import Inputs
from corrkd.networks.base import Network, Output, fully_connected
from corrkd.networks.encoder import Dropout, Encoder
from corrkd.settings import NetworkSettings


class CorrKDNetwork(Network[NetworkSettings]):
    """An encoder per modality, their pooled vectors side by side (H), and fully connected layers on top."""

    name = "corrkd"
    stackable = True
    settings_type = NetworkSettings
    modality_wise = True

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """The modules."""
        settings = self.settings
        # A module's name may not hold a dot; a modality's may.
        self.encoders = nn.ModuleList(Encoder(widths[m], frames[m], settings) for m in self.modalities)
        self.dropout = Dropout(settings.dropout)
        self.classifier = fully_connected(
            [self.representation_width, *settings.classifier, self.target.num_logits], settings.dropout
        )

    @property
    def parts(self) -> dict[str, int]:
        """H is the modalities' pooled vectors side by side."""
        return dict.fromkeys(self.modalities, self.settings.width)

    def forward(self, inputs: Inputs) -> Output:
        """All modalities at once: H is (N, M x width)."""
        parts = [self.encode(m, inputs) for m in self.modalities]
        representation = torch.cat(parts, 1)
        return Output(representation, self.classify(representation))

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """E_m pooled: (N, width). It depends on no other modality, so an evaluation computes it once for many subsets."""
        out: Tensor = self.encoders[self.modalities.index(modality)](*inputs.of(modality))
        return out

    def classify(self, representation: Tensor) -> Tensor:
        """Logits of H."""
        return self.target.shape_logits(self.classifier(self.dropout(representation)))

    @torch.no_grad()
    def set_fill(self, means: Mapping[str, Sequence[float] | Tensor]) -> None:
        """With `fill: mean` these stand for missing frames."""
        if self.settings.fill != "mean":
            return
        for modality, encoder in zip(self.modalities, self.encoders, strict=True):
            encoder.fill.copy_(torch.as_tensor(means[modality]))  # type: ignore[operator]

    def longest(self, frames: Mapping[str, int]) -> dict[str, int]:
        """Learned positions end where the training's do."""
        return dict(frames) if self.settings.positions == "learned" else {}
