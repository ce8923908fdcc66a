"""A late-fusion MLP on pooled frames, after LF-DNN (as in Yu et al., ACL 2020, "CH-SIMS ...").

Each modality is read as a deep averaging network reads words (Iyyer et al., ACL 2015): its mean frame goes through an MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from corrkd.data.inputs import Inputs
from corrkd.networks.base import SideBySide, fully_connected
from corrkd.networks.encoder import pool
from corrkd.settings import Strict, Width

Hidden = Annotated[tuple[Width, ...], Field(max_length=32)]


class MLPSettings(Strict):
    """Structure of the late-fusion MLP."""

    width: Width = Field(32, description="of each modality's vector")
    hidden: Hidden = Field((64,), description="hidden widths of each modality's MLP")
    classifier: Hidden = Field((64,), description="hidden widths of the classifier")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="between the layers and before the classifier"
    )


class MLPNetwork(SideBySide[MLPSettings]):
    """The mean visible frame of each modality through an MLP; the vectors side by side through the classifier.

    The order of the frames is not seen. A modality of which nothing is visible has zeros for its mean, which after normalisation is about
    the mean frame of the training split.
    """

    name = "mlp"
    stackable = True
    settings_type = MLPSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """The modules."""
        settings = self.settings
        self.encoders = nn.ModuleList(
            fully_connected([widths[m], *settings.hidden, settings.width], settings.dropout) for m in self.modalities
        )
        self.make_classifier()

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """The modality's vector, (N, width). It depends on no other modality."""
        frames, _, visible = inputs.of(modality)
        mean = pool(torch.where(visible[..., None], frames, 0.0), visible)
        return torch.relu(self.encoders[self.modalities.index(modality)](mean))
