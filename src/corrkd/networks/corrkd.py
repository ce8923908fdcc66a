"""CorrKD's network, for both teacher and student (docs/method.md, "Network")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from corrkd.data.inputs import Inputs
from corrkd.networks.base import SideBySide
from corrkd.networks.encoder import Encoder
from corrkd.settings import NetworkSettings


class CorrKDNetwork(SideBySide[NetworkSettings]):
    """An encoder per modality, their pooled vectors side by side (H), and a classifier on top."""

    name = "corrkd"
    stackable = True
    settings_type = NetworkSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """Create the modules."""
        settings = self.settings
        # A list, since a modality's name may contain dots, but a module's may not.
        self.encoders = nn.ModuleList(
            Encoder(widths[m], frames[m], settings) for m in self.modalities
        )
        self.make_classifier()

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """Return E_m pooled, (N, width). It depends on no other modality, so an evaluation computes
        it once for many subsets.
        """
        out: Tensor = self.encoders[self.modalities.index(modality)](*inputs.of(modality))
        return out

    @torch.no_grad()
    def set_fill(self, means: Mapping[str, Sequence[float] | Tensor]) -> None:
        """Set the fill of missing frames to the mean frames if `settings.fill` is "mean"."""
        if self.settings.fill != "mean":
            return
        for modality, encoder in zip(self.modalities, self.encoders, strict=True):
            encoder.fill.copy_(torch.as_tensor(means[modality]))  # type: ignore[operator]

    def longest(self, frames: Mapping[str, int]) -> dict[str, int]:
        """Return `frames` if positions are learned, since these end there; otherwise no bounds."""
        return dict(frames) if self.settings.positions == "learned" else {}
