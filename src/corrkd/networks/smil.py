"""SMIL's network: reconstruction of missing modalities from priors, and features under a learned
perturbation (Ma et al., AAAI 2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import softplus

from corrkd.data.inputs import Inputs
from corrkd.networks.base import Network, Output, fully_connected
from corrkd.networks.encoder import Dropout, Encoder
from corrkd.settings import NetworkSettings, Width

Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]

TINY = 1e-8  # lower bound of a sum of weights, to divide by
NEUTRAL = math.log(math.e - 1.0)  # its softplus is 1: no perturbation


class SMILSettings(BaseModel):
    """Hyperparameters of SMIL. Unlike the original's, sizes, rates and weights are for datasets of
    a few thousand samples.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    network: NetworkSettings = Field(
        default_factory=lambda: NetworkSettings(layers=1, exclude_missing=True),
        description="the encoders and the head",
    )
    priors: Width = Field(10, description="K, centres of each modality")
    inner_lr: NonNegative = Field(
        0.01, description="alpha, step of the adaptation to the incomplete samples"
    )
    deviation: Positive = Field(
        0.5, description="of the perturbation's prior, around the one that changes nothing"
    )
    inner: NonNegative = Field(
        1.0, description="weight of the loss on incomplete samples, before the adaptation"
    )
    outer: NonNegative = Field(1.0, description="weight of the loss on complete samples, after it")
    reconstruction: NonNegative = Field(
        0.1, description="weight of the reconstruction of what is visible"
    )
    divergence: NonNegative = Field(
        0.01, description="weight of the perturbation's divergence from its prior"
    )


class Gaussian(NamedTuple):
    """A normal distribution with independent coordinates; mean and deviation are of equal shape."""

    mean: Tensor
    deviation: Tensor

    def drawn(self, training: bool) -> Tensor:
        """Return a draw in training, differentiable in mean and deviation; otherwise the mean."""
        return self.mean + self.deviation * torch.randn_like(self.mean) if training else self.mean

    def divergence(self, mean: float, deviation: float) -> Tensor:
        """Return the KL divergence from a normal prior, summed over coordinates, (N,)."""
        ratio = (self.deviation / deviation).square()
        return 0.5 * (ratio + ((self.mean - mean) / deviation).square() - 1.0 - ratio.log()).sum(-1)


class GaussianLayer(nn.Module):
    """A linear layer with normally distributed outputs: mean and deviation are both linear in the
    input, the latter through softplus.
    """

    def __init__(self, inputs: int, outputs: int, mean: float, deviation: float) -> None:
        super().__init__()
        self.mean = nn.Linear(inputs, outputs)
        self.deviation = nn.Linear(inputs, outputs)
        with torch.no_grad():
            self.mean.bias.fill_(mean)
            self.deviation.bias.fill_(math.log(math.expm1(deviation)))

    def forward(self, x: Tensor) -> Gaussian:
        """Return the distribution of the outputs: (N, inputs) -> (N, outputs)."""
        return Gaussian(self.mean(x), softplus(self.deviation(x)))


class SMILOutput(NamedTuple):
    """What training needs beyond `Output`.

    Attributes:
        representation: (N, M x width), perturbed.
        logits: in the target's shape.
        perturbation: distribution of the perturbation, (N, M x width).
    """

    representation: Tensor
    logits: Tensor
    perturbation: Gaussian


class SMILNetwork(Network[SMILSettings]):
    """Encoders that read missing frames as a mean of the modality's priors, weighted by what all
    modalities show.

    `set_priors` must be called before training.
    """

    name = "smil"
    settings_type = SMILSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """Create the modules."""
        settings = self.settings
        structure = settings.network
        width = self.representation_width
        self.encoders = nn.ModuleList(
            Encoder(widths[m], frames[m], structure) for m in self.modalities
        )
        # Named by index, since a modality's name may contain dots, but a buffer's may not.
        for index, m in enumerate(self.modalities):
            self.register_buffer(f"priors{index}", torch.zeros(settings.priors, widths[m]))
        self.reconstruction = nn.ModuleList(
            GaussianLayer(width, settings.priors, NEUTRAL, 0.5) for _ in self.modalities
        )
        self.regularisation = GaussianLayer(width, width, NEUTRAL, settings.deviation / 5)
        self.dropout = Dropout(structure.dropout)
        self.classifier = fully_connected(
            [width, *structure.classifier, self.target.num_logits], structure.dropout
        )

    @property
    def representation_width(self) -> int:
        """Total width of all modalities' features."""
        return len(self.modalities) * self.settings.network.width

    @torch.no_grad()
    def set_priors(self, centres: Mapping[str, Tensor]) -> None:
        """Set the priors, (K, d_m) by modality; fewer than K centres are repeated."""
        for m in self.modalities:
            priors = self.priors(m)
            priors.copy_(centres[m][torch.arange(len(priors)) % len(centres[m])])

    def priors(self, modality: str) -> Tensor:
        """Return the modality's priors, (K, d_m)."""
        out: Tensor = getattr(self, f"priors{self.modalities.index(modality)}")
        return out

    def forward(self, inputs: Inputs) -> Output:
        """Return the representation, (N, M x width), and the logits."""
        out = self.respond(inputs)
        return Output(out.representation, out.logits)

    def respond(self, inputs: Inputs) -> SMILOutput:
        """Return the output together with the distribution of the perturbation."""
        features = self.look(inputs)
        parts = []
        for m, encoder in zip(self.modalities, self.encoders, strict=True):
            frames, exists, visible = inputs.of(m)
            filled = torch.where(
                visible[..., None], frames, self.reconstruct(m, features)[:, None].to(frames.dtype)
            )
            parts.append(encoder(filled, exists, exists))
        features = torch.cat(parts, 1)
        perturbation: Gaussian = self.regularisation(features)
        representation = features * softplus(perturbation.drawn(self.training))
        logits: Tensor = self.classifier(self.dropout(representation))
        logits = self.target.shape_logits(logits)
        return SMILOutput(representation, logits, perturbation)

    def longest(self, frames: Mapping[str, int]) -> dict[str, int]:
        """Return `frames` if positions are learned, since these end there; otherwise no bounds."""
        return dict(frames) if self.settings.network.positions == "learned" else {}

    def look(self, inputs: Inputs) -> Tensor:
        """Return features of the visible frames, (N, M x width); zeros for missing modalities."""
        both = zip(self.modalities, self.encoders, strict=True)
        parts = [encoder(*inputs.of(m)) * inputs.visible[m].any(1)[:, None] for m, encoder in both]
        return torch.cat(parts, 1)

    def reconstruct(self, modality: str, features: Tensor) -> Tensor:
        """Return the frame that replaces the modality's missing ones, (N, d_m): a convex
        combination of its priors.

        The weights are softplus of a draw (in training) or of the mean, divided by their sum.
        """
        law: Gaussian = self.reconstruction[self.modalities.index(modality)](features)
        weights = softplus(law.drawn(self.training))
        return weights / weights.sum(1, keepdim=True).clamp(min=TINY) @ self.priors(modality)

    def without(self, modality: str, features: Tensor) -> Tensor:
        """Return the features of `look` as if the modality were entirely missing."""
        index, width = self.modalities.index(modality), self.settings.network.width
        kept = torch.arange(features.shape[1], device=features.device) // width != index
        return features * kept
