"""A GRU per modality, fused late (Cho et al., EMNLP 2014, "Learning Phrase Representations using
RNN Encoder-Decoder ...").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from corrkd.data.inputs import Inputs
from corrkd.networks.base import SideBySide
from corrkd.networks.encoder import pool
from corrkd.networks.recurrent import FrameGRU, last_state
from corrkd.settings import Strict, Width


class GRUSettings(Strict):
    """Structure of the GRU network."""

    width: Width = Field(32, description="of each modality's GRU")
    summary: Literal["last", "mean"] = Field(
        "last",
        description="what stands for a modality: the state after its last visible frame, or the "
        "mean of those after each",
    )
    classifier: Annotated[tuple[Width, ...], Field(max_length=32)] = Field(
        (64,), description="hidden widths of the classifier"
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="before each layer of the classifier"
    )


class GRUNetwork(SideBySide[GRUSettings]):
    """A GRU for each modality. The summaries of their states, side by side, go through the
    classifier.

    A missing frame between visible ones is read as zeros. A modality without visible frames has a
    vector of zeros.
    """

    name = "gru"
    stackable = True
    settings_type = GRUSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """Create the modules."""
        settings = self.settings
        self.encoders = nn.ModuleList(FrameGRU(widths[m], settings.width) for m in self.modalities)
        self.make_classifier()

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """Return the summary of the modality's states, (N, width), from this modality alone."""
        frames, exists, visible = inputs.of(modality)
        states = self.encoders[self.modalities.index(modality)](frames, exists, visible)
        if self.settings.summary == "mean":
            return pool(states, visible)
        return last_state(states, visible) * visible.any(1, keepdim=True)
