"""Self-MM's network: one multimodal task and one task per modality on shared encoders (Yu et al.,
AAAI 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from corrkd.data.inputs import Inputs
from corrkd.networks.base import Network, Output
from corrkd.networks.encoder import Dropout
from corrkd.networks.recurrent import FrameLSTM
from corrkd.settings import Width


class SelfMMSettings(BaseModel):
    """Structure of Self-MM. The original's: LSTMs of 16 to 64 with outputs of 16 or 32 per
    modality, BERT's 768, 128 fused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    width: Width = Field(32, description="of each modality's LSTM, whose last state is F_s")
    unimodal: Width = Field(32, description="width of each modality's own representation F*_s")
    fusion: Width = Field(64, description="width of the fused representation F*_m")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="before each projection"
    )


class SelfMMNetwork(Network[SelfMMSettings]):
    """Encoders F_s, shared by all tasks; a fused representation F*_m with its head, and F*_s with
    its head for each modality.

    Only the multimodal head predicts; the unimodal heads train the encoders.
    """

    name = "self-mm"
    stackable = True
    settings_type = SelfMMSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """Create the modules."""
        settings = self.settings
        self.encoders = nn.ModuleList(FrameLSTM(widths[m], settings.width) for m in self.modalities)
        self.fuse = nn.Linear(len(self.modalities) * settings.width, settings.fusion)
        self.head = nn.Linear(settings.fusion, self.target.num_logits)
        self.projections = nn.ModuleList(
            nn.Linear(settings.width, settings.unimodal) for _ in self.modalities
        )
        self.unimodal_heads = nn.ModuleList(
            nn.Linear(settings.unimodal, self.target.num_logits) for _ in self.modalities
        )
        self.dropout = Dropout(settings.dropout)

    @property
    def representation_width(self) -> int:
        """Width of F*_m."""
        return self.settings.fusion

    def forward(self, inputs: Inputs) -> Output:
        """Return F*_m and the multimodal logits."""
        return self.fused(self.encode(inputs))

    def tasks(self, inputs: Inputs) -> tuple[Output, list[Output]]:
        """Return the outputs of all tasks in one pass: the multimodal one, and one per modality in
        the order of `modalities`.
        """
        encoded = self.encode(inputs)
        return self.fused(encoded), [self.unimodal(index, x) for index, x in enumerate(encoded)]

    def encode(self, inputs: Inputs) -> list[Tensor]:
        """Return F_s of each modality, (N, width)."""
        return [
            encoder.last(*inputs.of(m))  # type: ignore[operator]
            for m, encoder in zip(self.modalities, self.encoders, strict=True)
        ]

    def fused(self, encoded: list[Tensor]) -> Output:
        """Return F*_m = relu(W [F_1; ...; F_M] + b) and its logits."""
        representation = torch.relu(self.fuse(self.dropout(torch.cat(encoded, 1))))
        return Output(representation, self.target.shape_logits(self.head(representation)))

    def unimodal(self, index: int, encoded: Tensor) -> Output:
        """Return F*_s = relu(W_s F_s + b_s) of the modality at `index`, and its logits."""
        representation = torch.relu(self.projections[index](self.dropout(encoded)))
        return Output(
            representation, self.target.shape_logits(self.unimodal_heads[index](representation))
        )
