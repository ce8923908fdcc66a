"""Late fusion's network: CorrKD's encoder with a classifier for each modality; the answer is the
mean vote of those that are visible.
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
    """The vote of a modality is its log-probabilities (a score: itself); votes are averaged as
    responses, not as logits.

    Where nothing at all is visible, all modalities vote on what stands for missing frames.
    """

    name = "late-fusion"
    stackable = True
    settings_type = NetworkSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """The modules."""
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
        """The representation is the modalities' vectors side by side."""
        return dict.fromkeys(self.modalities, self.settings.width)

    def forward(self, inputs: Inputs) -> Output:
        """The representation is the vectors of all modalities side by side; logits are the log of
        the mean response.
        """
        vectors = self.encode(inputs)
        votes = [self.vote(index, vector) for index, vector in enumerate(vectors)]
        logits = self.target.mean_response(votes, inputs.shown(self.modalities))
        return Output(torch.cat(vectors, 1), logits)

    def votes(self, inputs: Inputs) -> tuple[list[Tensor], Tensor]:
        """Logits of each modality by itself, and which modalities a sample shows, (N, M)
        booleans.
        """
        vectors = self.encode(inputs)
        return [self.vote(index, x) for index, x in enumerate(vectors)], inputs.shown(
            self.modalities
        )

    def encode(self, inputs: Inputs) -> list[Tensor]:
        """The pooled vector of each modality, (N, width)."""
        return [
            encoder(*inputs.of(m))
            for m, encoder in zip(self.modalities, self.encoders, strict=True)
        ]

    def vote(self, index: int, vector: Tensor) -> Tensor:
        """Logits of the modality at `place`, in the target's shape."""
        return self.target.shape_logits(self.classifiers[index](self.dropout(vector)))

    def longest(self, frames: Mapping[str, int]) -> dict[str, int]:
        """Learned positions end where the training's do."""
        return dict(frames) if self.settings.positions == "learned" else {}
