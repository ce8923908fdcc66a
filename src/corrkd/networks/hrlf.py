"""HRLF's network (Li et al., NeurIPS 2024): each modality is factorised into a sentiment-relevant
and a modality-specific part, which are then refined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from corrkd.data.inputs import Inputs
from corrkd.networks.base import Network, Output, fully_connected
from corrkd.networks.encoder import Dropout, Encoder, last, pool
from corrkd.settings import NetworkSettings, Width


class HRLFSettings(NetworkSettings):
    """Structure of HRLF's teacher and student: CorrKD's encoders and the layers after them."""

    pooling: Literal["last", "mean"] = Field(
        "last",
        description="a modality's vector: of its last frame that exists [paper], or the mean of "
        "all, as in CorrKD",
    )
    sentiment_encoder: Literal["modality", "shared"] = Field(
        "modality",
        description="E^S, one for each modality or one for all [open: the text indexes it, a "
        "figure shares it]",
    )
    factor_hidden: Width = Field(
        40, description="hidden width of E^S, E^M and of the decoder [open: d]"
    )
    scales: Literal["concatenated", "summed"] = Field(
        "concatenated",
        description="how features of one width make a scale [open: the text says concatenate, "
        "its sizes fit a sum]",
    )

    @model_validator(mode="after")
    def _halves_are_whole(self) -> HRLFSettings:
        if self.width % 2:
            raise ValueError(
                f"width = {self.width} must be even: each of two factors has half of it"
            )
        return self


class Factors(NamedTuple):
    """Vectors of n modalities and their reconstructions, as compared by
    `corrkd.losses.factorisation_reconstruction`.

    Attributes:
        encoded: Z, (N, n, d).
        decoded: (N, n, n, d), at [:, a, b] from the sentiment-relevant factor of a and the specific
            factor of b.
        relevant: Q, (N, n, d / 2).
        recovered: (N, n, n, d / 2), at [:, a, b] the sentiment-relevant factor of `decoded` there.
    """

    encoded: Tensor
    decoded: Tensor
    relevant: Tensor
    recovered: Tensor


class Details(NamedTuple):
    """The output with the vectors it is computed from.

    Attributes:
        output: representation and logits.
        encoded: Z, (N, n, d).
    """

    output: Output
    encoded: Tensor


class HRLFNetwork(Network[HRLFSettings]):
    """Encoders, factorisation, refinement through a bottleneck, and a classifier (Li et al.,
    NeurIPS 2024, section 3).

    The representation is the three scales side by side, with the widths `scales`.
    """

    name = "hrlf"
    stackable = True
    settings_type = HRLFSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """Create the modules."""
        settings = self.settings
        width, half, count = settings.width, settings.width // 2, len(self.modalities)
        self.encoders = nn.ModuleList(
            Encoder(widths[m], frames[m], settings) for m in self.modalities
        )
        shared = settings.sentiment_encoder == "shared"
        self.relevant_encoders = nn.ModuleList(
            self._perceptron(width, half) for _ in range(1 if shared else count)
        )
        self.specific_encoders = nn.ModuleList(
            self._perceptron(width, half) for _ in self.modalities
        )
        self.decoder = self._perceptron(width, width)
        wide, middle, narrow = self.refined_widths
        sizes = (wide, middle, narrow, middle, wide)
        self.refinement = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.dropout = Dropout(settings.dropout)
        self.classifier = fully_connected(
            [wide, *settings.classifier, self.target.num_logits], settings.dropout
        )

    def _perceptron(self, inputs: int, outputs: int) -> nn.Sequential:
        return fully_connected(
            [inputs, self.settings.factor_hidden, outputs], self.settings.dropout
        )

    @property
    def refined_widths(self) -> tuple[int, int, int]:
        """Widths of H, I_1 and I_2; with three modalities 3d, 2d and d, as in the paper."""
        width, count = self.settings.width, len(self.modalities)
        return count * width, (count + 1) * width // 2, width

    @property
    def scales(self) -> tuple[int, ...]:
        """Widths of E_1 (from H and H~), E_2 (from I_1 and I_3) and E_3 (I_2)."""
        wide, middle, narrow = self.refined_widths
        times = 2 if self.settings.scales == "concatenated" else 1
        return times * wide, times * middle, narrow

    @property
    def representation_width(self) -> int:
        """Total width of the three scales."""
        return sum(self.scales)

    def forward(self, inputs: Inputs) -> Output:
        """Return the representation [E_1, E_2, E_3], (N, `representation_width`), and logits."""
        return self.details(inputs).output

    def details(self, inputs: Inputs) -> Details:
        """Return the output with the modalities' vectors that it is computed from."""
        encoded = torch.stack([self.encode(m, inputs) for m in self.modalities], 1)
        joint = torch.cat(self.factorise(encoded), -1).flatten(
            1
        )  # H: Q and U of one modality after the other
        steps = self.refine(joint)
        return Details(
            Output(torch.cat(self.at_scales(joint, steps), 1), self.classify(steps[-1])), encoded
        )

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """Return a modality's vector Z, (N, d)."""
        encoder = self.encoders[self.modalities.index(modality)]
        hidden, attended = encoder.encode(*inputs.of(modality))  # type: ignore[operator]
        return last(hidden, attended) if self.settings.pooling == "last" else pool(hidden, attended)

    def relevant(self, index: int, vectors: Tensor) -> Tensor:
        """Return the sentiment-relevant factor E^S(Z) of a modality: (..., d) -> (..., d / 2)."""
        encoder = self.relevant_encoders[
            0 if self.settings.sentiment_encoder == "shared" else index
        ]
        out: Tensor = encoder(vectors)
        return out

    def factorise(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Return relevant factors Q and specific factors U, each (N, n, d / 2), of Z, (N, n, d)."""
        vectors = encoded.unbind(1)
        relevant = [self.relevant(index, vector) for index, vector in enumerate(vectors)]
        specific = [
            encoder(vector) for encoder, vector in zip(self.specific_encoders, vectors, strict=True)
        ]
        return torch.stack(relevant, 1), torch.stack(specific, 1)

    def factors(self, encoded: Tensor) -> Factors:
        """Return what the reconstruction loss compares: the vectors, and their reconstructions from
        the sentiment-relevant factor of each modality.
        """
        relevant, specific = self.factorise(encoded)
        count = encoded.shape[1]
        pairs = [
            relevant[:, :, None].expand(-1, -1, count, -1),
            specific[:, None].expand(-1, count, -1, -1),
        ]
        decoded = self.decoder(torch.cat(pairs, -1))
        recovered = torch.stack(
            [self.relevant(index, x) for index, x in enumerate(decoded.unbind(2))], 2
        )
        return Factors(encoded, decoded, relevant, recovered)

    def refine(self, joint: Tensor) -> list[Tensor]:
        """Return the refinement of H: I_1, I_2, I_3 (after ReLU) and H~ (without)."""
        steps = [joint]
        *inner, outer = self.refinement
        for layer in inner:
            steps.append(torch.relu(layer(self.dropout(steps[-1]))))
        return [*steps[1:], outer(self.dropout(steps[-1]))]

    def at_scales(self, joint: Tensor, steps: Sequence[Tensor]) -> list[Tensor]:
        """Return E_1, E_2 and E_3 of H and its refinement."""
        first, second, third, refined = steps
        pairs = ((joint, refined), (first, third))
        concatenated = self.settings.scales == "concatenated"
        return [
            *(torch.cat(pair, 1) if concatenated else pair[0] + pair[1] for pair in pairs),
            second,
        ]

    def classify(self, refined: Tensor) -> Tensor:
        """Return the logits of H~."""
        return self.target.shape_logits(self.classifier(self.dropout(refined)))

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
