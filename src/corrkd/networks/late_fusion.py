"""Late fusion's network: CorrKD's encoder with a classifier for each modality. The output is the
mean vote of the visible modalities.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from corrkd.data.inputs import Inputs
from corrkd.networks.base import Network, Output, fully_connected
from corrkd.networks.encoder import Dropout, Encoder
from corrkd.settings import NetworkSettings


class LateFusionNetwork(Network[NetworkSettings]):
    """An encoder and a classifier per modality. Their votes, log-probabilities or scores, are
    averaged as responses, not as logits.

    If nothing is visible, all modalities vote, based on the fill of missing frames.
    """

    name = "late-fusion"
    stackable = True
    settings_type = NetworkSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """Create the modules."""
        settings = self.settings
        self.encoders = nn.ModuleList(
            Encoder(widths[m], frames[m], settings) for m in self.modalities
        )
        self.dropout = Dropout(settings.dropout)
        self.classifiers = nn.ModuleList(
            fully_connected(
                [settings.width, *settings.classifier, self.target.num_logits], settings.dropout
            )
            for _ in self.modalities
        )

    @property
    def parts(self) -> dict[str, int]:
        """Width of each modality's vector, in the order of the representation."""
        return dict.fromkeys(self.modalities, self.settings.width)

    def forward(self, inputs: Inputs) -> Output:
        """Return the representation, (N, M x width), and the mean response as logits."""
        vectors = self.encode(inputs)
        votes = [self.vote(index, vector) for index, vector in enumerate(vectors)]
        logits = self.target.mean_response(votes, inputs.shown(self.modalities))
        return Output(torch.cat(vectors, 1), logits)

    def votes(self, inputs: Inputs) -> tuple[list[Tensor], Tensor]:
        """Return the logits of each modality, and which are visible, (N, M) booleans."""
        vectors = self.encode(inputs)
        return [self.vote(index, x) for index, x in enumerate(vectors)], inputs.shown(
            self.modalities
        )

    def encode(self, inputs: Inputs) -> list[Tensor]:
        """Return the pooled vector of each modality, (N, width)."""
        return [
            encoder(*inputs.of(m))
            for m, encoder in zip(self.modalities, self.encoders, strict=True)
        ]

    def vote(self, index: int, vector: Tensor) -> Tensor:
        """Return the logits of the modality at `index`, in the target's shape."""
        return self.target.shape_logits(self.classifiers[index](self.dropout(vector)))

    def longest(self, frames: Mapping[str, int]) -> dict[str, int]:
        """Return `frames` if positions are learned, since these end there; otherwise no bounds."""
        return dict(frames) if self.settings.positions == "learned" else {}
