"""TransModality's network: Transformers that translate between modalities, forth and back (Wang et
al., WWW 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, NamedTuple, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from corrkd.data.inputs import Inputs
from corrkd.errors import CorrKDError
from corrkd.networks.base import Network, Output, fully_connected
from corrkd.networks.encoder import (
    Dropout,
    Encoder,
    EncoderLayer,
    TemporalConvolution,
    pool,
    sinusoids,
)
from corrkd.settings import Depth, NetworkSettings


class TransMSettings(BaseModel):
    """Hyperparameters of TransModality, for datasets of a few thousand samples."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    centre: str | None = Field(
        None, description="the modality that is paired with each other one; default: the first"
    )
    network: NetworkSettings = Field(
        default_factory=lambda: NetworkSettings(layers=1),
        description="width, heads, layers, ... of every Transformer",
    )
    decoder_layers: Depth | None = Field(
        None, description="layers of every decoder; default: as many as of an encoder"
    )
    unimodal: bool = Field(
        False, description="the classifier also reads a stream of each modality by itself"
    )
    forward: Annotated[float, Field(ge=0.0)] = Field(
        0.1, description="weight of each translation forth"
    )
    backward: Annotated[float, Field(ge=0.0)] = Field(
        0.1, description="weight of each translation back"
    )


class Translation(NamedTuple):
    """One direction through a cell: from `source` to `target`, and back.

    Attributes:
        source, target: names of the modalities.
        joint: joint features, encoded from the source, (N, T_source, width).
        translated: the target's frames, (N, T_target, d_target).
        restored: the source's frames from `translated`, (N, T_source, d_source).
    """

    source: str
    target: str
    joint: Tensor
    translated: Tensor
    restored: Tensor


class TransMNetwork(Network[TransMSettings]):
    """A fusion cell for each pair (centre, other), the pooled joint features of the cells side by
    side, and fully connected layers on top.

    Raises:
        CorrKDError: if there are fewer than two modalities, or the centre is not one of them.
    """

    name = "transm"
    settings_type = TransMSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """Create the modules."""
        settings = self.settings
        structure = settings.network
        self.centre = settings.centre or self.modalities[0]
        if self.centre not in widths:
            raise CorrKDError(
                f"TransM: centre {self.centre!r} is none of the modalities {', '.join(widths)}"
            )
        if len(widths) < 2:
            raise CorrKDError(
                f"TransM: translates between modalities, but there is only {self.centre}"
            )
        self.others = tuple(m for m in self.modalities if m != self.centre)
        decoder = structure.model_copy(
            update={"layers": settings.decoder_layers or structure.layers}
        )
        self.cells = nn.ModuleList(
            FusionCell(widths[self.centre], widths[m], structure, decoder) for m in self.others
        )
        streams = self.modalities if settings.unimodal else ()
        stream = structure.model_copy(update={"layers": 1})
        self.streams = nn.ModuleList(Encoder(widths[m], frames[m], stream) for m in streams)
        self.dropout = Dropout(structure.dropout)
        self.classifier = fully_connected(
            [self.representation_width, *structure.classifier, self.target.num_logits],
            structure.dropout,
        )

    @property
    def representation_width(self) -> int:
        """Total width of both directions of all cells, and of the streams."""
        return (2 * len(self.others) + len(self.streams)) * self.settings.network.width

    def forward(self, inputs: Inputs) -> Output:
        """Return the representation, (N, (2 x cells + streams) x width), and the logits, without
        decoding.
        """
        parts = []
        for m, cell in self.pairs():
            for direction, source in enumerate((self.centre, m)):
                parts.append(
                    pool(cell.encode(direction, *inputs.of(source)), inputs.exists[source])
                )
        return self.predict(torch.cat([*parts, *self.unimodal(inputs)], 1))

    def pairs(self) -> Iterator[tuple[str, FusionCell]]:
        """Return the cells, each with the modality that it pairs with the centre."""
        return zip(self.others, (cast(FusionCell, cell) for cell in self.cells), strict=True)

    def unimodal(self, inputs: Inputs) -> list[Tensor]:
        """Return a vector (N, width) of each modality alone; none without unimodal streams."""
        return [
            stream(*inputs.of(m)) for m, stream in zip(self.modalities, self.streams, strict=False)
        ]

    def predict(self, representation: Tensor) -> Output:
        """Return the representation with its logits."""
        logits: Tensor = self.classifier(self.dropout(representation))
        return Output(representation, self.target.shape_logits(logits))

    def translate(self, inputs: Inputs) -> list[Translation]:
        """Return both directions through every cell, in the order of the representation."""
        out, exists = [], inputs.exists
        for m, cell in self.pairs():
            for direction, (source, target) in enumerate(((self.centre, m), (m, self.centre))):
                joint = cell.encode(direction, *inputs.of(source))
                translated = cell.decode(direction, joint, exists[source], exists[target])
                # The translation goes back through the translator of the other direction.
                again = cell.encode(1 - direction, translated, exists[target], exists[target])
                restored = cell.decode(1 - direction, again, exists[target], exists[source])
                out.append(Translation(source, target, joint, translated, restored))
        return out

    def longest(self, frames: Mapping[str, int]) -> dict[str, int]:
        """Return `frames` if the streams have learned positions; otherwise no bounds."""
        return dict(frames) if self.streams and self.settings.network.positions == "learned" else {}

    def fuse(self, translations: list[Translation], inputs: Inputs) -> Output:
        """Return the output of `forward` from the joint features of `translate`."""
        joint = [pool(t.joint, inputs.exists[t.source]) for t in translations]
        return self.predict(torch.cat([*joint, *self.unimodal(inputs)], 1))


class FusionCell(nn.Module):
    """Two translators between a pair of modalities, one per direction; each translates back what
    the other writes.
    """

    def __init__(
        self, first: int, second: int, encoder: NetworkSettings, decoder: NetworkSettings
    ) -> None:
        super().__init__()
        directions = ((first, second), (second, first))
        self.encoders = nn.ModuleList(
            TranslationEncoder(source, encoder) for source, _ in directions
        )
        self.decoders = nn.ModuleList(
            TranslationDecoder(target, decoder) for _, target in directions
        )

    def encode(self, direction: int, frames: Tensor, exists: Tensor, visible: Tensor) -> Tensor:
        """Return joint features (N, T, width) of the first modality (direction 0) or the
        second (1).
        """
        out: Tensor = self.encoders[direction](frames, exists, visible)
        return out

    def decode(self, direction: int, joint: Tensor, attended: Tensor, exists: Tensor) -> Tensor:
        """Return the frames of the second modality (direction 0) or the first (1), (N, T_target,
        d_target).
        """
        out: Tensor = self.decoders[direction](joint, attended, exists)
        return out


class TranslationEncoder(nn.Module):
    """Convolution, positions and self-attention, with one output per frame."""

    def __init__(self, inputs: int, settings: NetworkSettings) -> None:
        super().__init__()
        self.embed = TemporalConvolution(inputs, settings.width, settings.kernel)
        self.dropout = Dropout(settings.dropout)
        self.layers = nn.ModuleList(EncoderLayer(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.width)

    def forward(self, frames: Tensor, exists: Tensor, visible: Tensor) -> Tensor:
        """Return joint features: (N, T, d), two masks -> (N, T, width). Missing frames are zero."""
        frames = torch.where(visible[..., None], frames, torch.zeros_like(frames))
        hidden = self.embed(frames)
        hidden = self.dropout(hidden + sinusoids(hidden.shape[1], hidden.shape[2]).to(hidden))
        bias = torch.where(exists, 0.0, -1e4).to(hidden.dtype)[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, bias)
        out: Tensor = self.norm(hidden)
        return out


class TranslationDecoder(nn.Module):
    """A query for each frame of the target attends to the other queries and to the source, and is
    projected to that frame.
    """

    def __init__(self, outputs: int, settings: NetworkSettings) -> None:
        super().__init__()
        width = settings.width
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        layer = nn.TransformerDecoderLayer(
            width,
            settings.heads,
            settings.feedforward,
            settings.dropout,
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerDecoder(layer, settings.layers, nn.LayerNorm(width))
        self.project = nn.Linear(width, outputs)

    def forward(self, joint: Tensor, attended: Tensor, exists: Tensor) -> Tensor:
        """Return frames: (N, T_source, width), its mask, the target's -> (N, T_target, outputs)."""
        count = len(joint)
        if (
            not count
        ):  # one of several processes may have no samples, which torch's attention refuses
            joint, attended, exists = (
                x.new_zeros(1, *x.shape[1:]) for x in (joint, attended, exists)
            )
        positions = sinusoids(exists.shape[1], joint.shape[2]).to(joint)
        queries = (self.query + positions).expand(len(joint), -1, -1)
        # Finite, so that a sample without frames stays finite.
        source, target = (
            torch.where(mask, 0.0, -1e4).to(joint.dtype) for mask in (attended, exists)
        )
        hidden = self.layers(
            queries, joint, tgt_key_padding_mask=target, memory_key_padding_mask=source
        )
        out: Tensor = self.project(hidden)[:count]
        return out
