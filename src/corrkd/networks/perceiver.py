"""A Perceiver over the frames of all modalities (Jaegle et al., ICML 2021, "Perceiver: General
Perception with Iterative Attention").

One cross-attention, as in Perceiver IO (Jaegle et al., ICLR 2022); sinusoids in place of Fourier
features, and pre-norm blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import gelu

from corrkd.data.inputs import Inputs
from corrkd.networks.base import Network, Output, fully_connected
from corrkd.networks.encoder import Dropout, sinusoids_like
from corrkd.settings import Depth, Strict, Width

EMBEDDING_DEVIATION = 0.02  # of initial latents and modality embeddings, as in the original


class PerceiverSettings(Strict):
    """Structure of the Perceiver. The original's 512 latents of 1024 numbers and 8 rounds are
    scaled down to short sequences.
    """

    width: Width = Field(32, description="of the latents, and of the frames that they attend to")
    latents: Width = Field(8, description="how many latents there are")
    heads: Width = Field(4, description="attention heads; must divide width")
    layers: Depth = Field(
        2, description="self-attention blocks among the latents after the cross-attention"
    )
    feedforward: Width = Field(64, description="width of the feed-forward blocks")
    classifier: Annotated[tuple[Width, ...], Field(max_length=32)] = Field(
        (64,), description="hidden widths of the classifier"
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="after embedding, attention and feed-forward, and before the classifier"
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> PerceiverSettings:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} must divide width = {self.width}")
        return self


class PerceiverNetwork(Network[PerceiverSettings]):
    """Learned latents attend to the visible frames of all modalities at once, then to each other;
    their mean is the representation.

    The cost is linear in the number of frames, not quadratic. Missing frames are ignored; if
    nothing is visible, the output depends on the latents alone.
    """

    name = "perceiver"
    stackable = True
    settings_type = PerceiverSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """Create the modules."""
        settings = self.settings
        width = settings.width
        self.projections = nn.ModuleList(nn.Linear(widths[m], width) for m in self.modalities)
        self.modality_embeddings = nn.Parameter(
            torch.randn(len(self.modalities), width) * EMBEDDING_DEVIATION
        )
        self.latents = nn.Parameter(torch.randn(settings.latents, width) * EMBEDDING_DEVIATION)
        self.norm_frames = nn.LayerNorm(width)
        self.cross = LatentBlock(settings)
        self.blocks = nn.ModuleList(LatentBlock(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(settings.dropout)
        self.classifier = fully_connected(
            [width, *settings.classifier, self.target.num_logits], settings.dropout
        )

    @property
    def representation_width(self) -> int:
        """Width of the latents."""
        return self.settings.width

    def forward(self, inputs: Inputs) -> Output:
        """Return the mean latent, (N, width), and the logits."""
        frames = self.norm_frames(self.dropout(self.embed(inputs)))
        visible = torch.cat([inputs.visible[m] for m in self.modalities], 1)
        latents = self.cross(self.latents.expand(frames.shape[0], -1, -1), frames, visible)
        for block in self.blocks:
            latents = block(latents)
        representation = self.norm(latents).mean(1)
        logits = self.classifier(self.dropout(representation))
        return Output(representation, self.target.shape_logits(logits))

    def embed(self, inputs: Inputs) -> Tensor:
        """Return the frames of all modalities in a row, (N, sum of T_m, width): projected,
        invisible ones as zeros, with embeddings of position and modality added.
        """
        rows = []
        for index, (m, projection) in enumerate(
            zip(self.modalities, self.projections, strict=True)
        ):
            frames, _, visible = inputs.of(m)
            projected = projection(torch.where(visible[..., None], frames, 0.0))
            positions = sinusoids_like(projected, frames.shape[1])
            rows.append(projected + positions + self.modality_embeddings[index])
        return torch.cat(rows, 1)


class LatentBlock(nn.Module):
    """Attention from latents to frames or to the latents themselves, and a feed-forward block, both
    pre-norm with a residual.

    Not an `AttentionLayer`: its maps have a row for each latent, not for each frame.

    Args:
        settings: settings of the network.
    """

    def __init__(self, settings: PerceiverSettings) -> None:
        super().__init__()
        width = settings.width
        self.heads = settings.heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.expand = nn.Linear(width, settings.feedforward)
        self.contract = nn.Linear(settings.feedforward, width)
        self.norm_attention = nn.LayerNorm(width)
        self.norm_feedforward = nn.LayerNorm(width)
        self.dropout = Dropout(settings.dropout)

    def forward(
        self, latents: Tensor, frames: Tensor | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """Return the latents after the block.

        Args:
            latents: (N, L, width).
            frames: (N, T, width), normalised, to attend to; None: the latents.
            visible: (N, T) booleans: which frames are attended to; None: all.

        Returns:
            (N, L, width).
        """
        normed = self.norm_attention(latents)
        latents = latents + self.dropout(
            self.attend(normed, normed if frames is None else frames, visible)
        )
        return latents + self.dropout(
            self.contract(self.dropout(gelu(self.expand(self.norm_feedforward(latents)))))
        )

    def attend(self, latents: Tensor, frames: Tensor, visible: Tensor | None) -> Tensor:
        """Return multi-head attention, (N, L, width); all weights are 0 if nothing is visible."""
        head = latents.shape[2] // self.heads
        query = self.query(latents).unflatten(2, (self.heads, head)).transpose(1, 2) * head**-0.5
        key, value = (
            self.key_value(frames)
            .unflatten(2, (2, self.heads, head))
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        products = query @ key.transpose(2, 3)  # (N, heads, L, T)
        if visible is None:
            weights = torch.softmax(products, -1)
        else:
            attended = visible[:, None, None, :]
            # Finite, so that a sample with nothing visible stays finite; its weights are zeroed
            # after the softmax.
            lowest = torch.finfo(products.dtype).min / 2
            weights = torch.softmax(products.masked_fill(~attended, lowest), -1) * attended
        return self.output((weights @ value).transpose(1, 2).flatten(2))
