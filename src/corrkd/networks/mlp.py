"""A late-fusion MLP on summaries of the frames, after LF-DNN (as in Yu et al., ACL 2020, "CH-SIMS
...").

Each modality is read as a deep averaging network reads words (Iyyer et al., ACL 2015), which also
drops inputs at random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from corrkd.data.inputs import Inputs
from corrkd.networks.base import SideBySide, fully_connected
from corrkd.networks.encoder import Dropout, pool
from corrkd.settings import Strict, Width

Hidden = Annotated[tuple[Width, ...], Field(max_length=32)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Summary = Literal["mean", "end", "visibility"]
WIDE = 512  # from this width on, inputs of the widest modality are dropped at the full rate


class MLPSettings(Strict):
    """Structure of the late-fusion MLP."""

    width: Width = Field(64, description="of each modality's vector")
    summary: Annotated[tuple[Summary, ...], Field(min_length=1, max_length=3)] = Field(
        ("end", "mean", "visibility"),
        description="what is read of the frames: their mean; the last one, zeros where it is "
        "missing; whether that one is visible, and which share of all is",
    )
    hidden: Hidden = Field((), description="hidden widths of each modality's MLP")
    classifier: Hidden = Field(
        (64,),
        description="hidden widths of the classifier; none: the modalities' evidence is added",
    )
    input_dropout: Rate = Field(
        0.5,
        description="of the summary of the widest modality, if it has 512 features or more; that "
        "of narrower ones is smaller by the root of the ratio",
    )
    dropout: Rate = Field(0.3, description="between the layers and before the classifier")


class MLPNetwork(SideBySide[MLPSettings]):
    """A summary of each modality's frames goes through an MLP; the vectors side by side go through
    the classifier.

    With many features and few samples, dropping inputs is what lets it generalise. Which frames of
    a visible modality are missing may be informative (a silent speaker), so that is read as well. A
    modality without visible frames has a vector of zeros.
    """

    name = "mlp"
    stackable = True
    settings_type = MLPSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """Create the modules."""
        settings, widest = self.settings, max(WIDE, *widths.values())
        vectors = len(set(settings.summary) - {"visibility"})
        flags = 2 * ("visibility" in settings.summary)
        self.input_dropouts = nn.ModuleList(
            Dropout(settings.input_dropout * math.sqrt(widths[m] / widest)) for m in self.modalities
        )
        self.encoders = nn.ModuleList(
            fully_connected(
                [vectors * widths[m] + flags, *settings.hidden, settings.width], settings.dropout
            )
            for m in self.modalities
        )
        self.make_classifier()

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """Return the modality's vector, (N, width). It depends on no other modality."""
        index = self.modalities.index(modality)
        frames, exists, visible = inputs.of(modality)
        frames = torch.where(visible[..., None], frames, 0.0)
        position = torch.arange(exists.shape[1], device=exists.device)
        final = position == exists.sum(1, keepdim=True) - 1
        summary = []
        if "end" in self.settings.summary:
            summary.append(torch.einsum("nt,ntd->nd", final.to(frames.dtype), frames))
        if "mean" in self.settings.summary:
            summary.append(pool(frames, visible))
        if summary:
            summary = [self.input_dropouts[index](torch.cat(summary, 1))]
        if "visibility" in self.settings.summary:
            # Minus 1, so that a modality with all frames visible adds nothing.
            share = visible.sum(1) / exists.sum(1).clamp(min=1)
            summary.append(
                torch.stack([(visible & final).any(1).to(frames.dtype), share.to(frames.dtype)], 1)
                - 1.0
            )
        vector = torch.relu(self.encoders[index](torch.cat(summary, 1)))
        return vector * visible.any(1, keepdim=True)
