"""The network that teacher and student share (method, Network)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from corrkd.networks.encoder import Dropout, Encoder
from corrkd.settings import NetworkSettings


class Output(NamedTuple):
    """What a network says of N samples.

    Attributes:
        representation: H, (N, M x width) for M modalities.
        logits: (N, K) for classes, (N, Q, 2) for yes/no questions, (N, 1) for a score.
    """

    representation: Tensor
    logits: Tensor


class CorrKDNetwork(nn.Module):
    """An encoder per modality, their pooled vectors side by side (H), and fully connected layers on top.

    Args:
        widths: d_m by modality; their order is the order of H.
        frames: the most frames T_m by modality.
        outputs: K classes, Q questions, or 1.
        kind: "classes", "questions" or "score".
        settings: the structure.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        frames: Mapping[str, int],
        *,
        outputs: int,
        kind: Literal["classes", "questions", "score"] = "classes",
        settings: NetworkSettings | None = None,
    ) -> None:
        super().__init__()
        settings = settings or NetworkSettings()
        self.modalities = tuple(widths)
        self.kind = kind
        self.settings = settings
        # A module's name may not hold a dot; a modality's may.
        self.encoders = nn.ModuleList(Encoder(widths[m], frames[m], settings) for m in self.modalities)
        self.dropout = Dropout(settings.dropout)
        self.classifier = fully_connected(
            [self.representation_width, *settings.classifier, 2 * outputs if kind == "questions" else outputs],
            settings.dropout,
        )

    @property
    def representation_width(self) -> int:
        """Width of H."""
        return len(self.modalities) * self.settings.width

    def forward(
        self, frames: Mapping[str, Tensor], exists: Mapping[str, Tensor], visible: Mapping[str, Tensor]
    ) -> Output:
        """All modalities at once.

        Args:
            frames: per modality (N, T_m, d_m), normalised.
            exists: per modality (N, T_m) booleans: not padding.
            visible: per modality (N, T_m) booleans: present in the data and not dropped.
        """
        parts = [self.encode(m, frames[m], exists[m], visible[m]) for m in self.modalities]
        representation = torch.cat(parts, 1)
        return Output(representation, self.classify(representation))

    def encode(self, modality: str, frames: Tensor, exists: Tensor, visible: Tensor) -> Tensor:
        """E_m pooled: (N, width). It depends on no other modality, so an evaluation computes it once for many subsets."""
        out: Tensor = self.encoders[self.modalities.index(modality)](frames, exists, visible)
        return out

    def classify(self, representation: Tensor) -> Tensor:
        """Logits of H."""
        logits: Tensor = self.classifier(self.dropout(representation))
        return logits.unflatten(-1, (-1, 2)) if self.kind == "questions" else logits

    @torch.no_grad()
    def set_fill(self, means: Mapping[str, Sequence[float] | Tensor]) -> None:
        """Sets the vectors that stand for missing frames, (d_m,) by modality: `fill: mean` sets the training means."""
        for modality, encoder in zip(self.modalities, self.encoders, strict=True):
            encoder.fill.copy_(torch.as_tensor(means[modality]))  # type: ignore[operator]


def fully_connected(widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Linear layers of those widths, with ReLU and dropout between."""
    layers: list[nn.Module] = []
    for place in range(len(widths) - 1):
        if place:
            layers += [nn.ReLU(), Dropout(dropout)]
        layers.append(nn.Linear(widths[place], widths[place + 1]))
    return nn.Sequential(*layers)
