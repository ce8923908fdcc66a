"""CubeMLP's network: all modalities as one cube, mixed along its three axes by MLPs (Sun et al.,
ACM MM 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from corrkd.data.inputs import Inputs
from corrkd.networks.base import Network, Output, fully_connected
from corrkd.networks.encoder import Dropout
from corrkd.networks.recurrent import FrameLSTM
from corrkd.settings import Width

Shape = tuple[Width, Width, Width]
MIN_NORMED = 3  # axes up to this size have no layer norm
READ_OUT = 128  # a wider cube is read through a hidden layer of this width


class CubeMLPSettings(BaseModel):
    """Structure of CubeMLP. The original's blocks are for sequences of 50 or more frames with 128
    channels; here they are scaled down to short sequences.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    channels: Width = Field(32, description="D, the channels all modalities are brought to")
    hidden: Annotated[tuple[Shape, ...], Field(max_length=32)] = Field(
        ((12, 2, 32), (6, 2, 16)),
        description="hidden widths of each block's units: sequence, modality, channel",
    )
    shapes: Annotated[tuple[Shape, ...], Field(max_length=32)] = Field(
        ((12, 3, 32), (6, 3, 16)),
        description="the cube each block leaves: frames, modalities, channels",
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="after the LSTMs, in the units and around the classifier"
    )


class CubeMLPNetwork(Network[CubeMLPSettings]):
    """An LSTM per modality maps its frames to D channels; the cube (L, M, D) passes through the
    blocks and is flattened.

    L is the largest T_m. Shorter sequences end in zeros, as in the original; sequences longer than
    in training are cut.
    """

    name = "cubemlp"
    stackable = True
    settings_type = CubeMLPSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """Create the modules."""
        settings = self.settings
        self.length = max(frames.values())
        self.encoders = nn.ModuleList(
            FrameLSTM(widths[m], settings.channels) for m in self.modalities
        )
        self.norms = nn.ModuleList(nn.LayerNorm(settings.channels) for _ in self.modalities)
        shape = (self.length, len(self.modalities), settings.channels)
        blocks = []
        for hidden, out in zip(settings.hidden, settings.shapes, strict=True):
            blocks.append(CubeMLPBlock(shape, hidden, out, settings.dropout))
            shape = out
        self.blocks = nn.Sequential(*blocks)
        self.dropout = Dropout(settings.dropout)
        self.flat = shape[0] * shape[1] * shape[2]
        between = [READ_OUT] if self.flat > READ_OUT else []
        self.classifier = fully_connected(
            [self.flat, *between, self.target.num_logits], settings.dropout
        )

    @property
    def representation_width(self) -> int:
        """Size of the mixed cube."""
        return self.flat

    def forward(self, inputs: Inputs) -> Output:
        """Return the flattened mixed cube and the logits."""
        representation = self.blocks(self.cube(inputs)).flatten(1)
        logits: Tensor = self.classifier(self.dropout(representation))
        return Output(representation, self.target.shape_logits(logits))

    def cube(self, inputs: Inputs) -> Tensor:
        """Return the states of the modalities side by side, (N, L, M, D), zero in the padding."""
        parts = []
        for m, encoder, norm in zip(self.modalities, self.encoders, self.norms, strict=True):
            states = self.dropout(torch.relu(norm(encoder(*inputs.of(m)))))
            states = (states * inputs.exists[m][..., None])[:, : self.length]
            parts.append(pad(states, (0, 0, 0, self.length - states.shape[1])))
        return torch.stack(parts, 2)


class CubeMLPBlock(nn.Module):
    """Three mixing units in turn: along the sequence, modalities and channels of (N, L, M, D)."""

    def __init__(self, shape: Shape, hidden: Shape, out: Shape, dropout: float) -> None:
        super().__init__()
        self.sequence, self.modality, self.channel = (
            MixingUnit(axis, shape[axis - 1], hidden[axis - 1], out[axis - 1], dropout)
            for axis in (1, 2, 3)
        )

    def forward(self, cube: Tensor) -> Tensor:
        """Return the mixed cube: (N, L, M, D) -> (N, L', M', D')."""
        mixed: Tensor = self.channel(self.modality(self.sequence(cube)))
        return mixed


class MixingUnit(nn.Module):
    """A layer norm along one axis, two affine maps with GELU between, and a shortcut around all.

    Args:
        axis: axis of (N, L, M, D) that is mixed: 1, 2 or 3.
        size, hidden, out: size of that axis before, between and after the maps. The shortcut is a
            linear map if `out` differs from `size`.
        dropout: dropout probability after the second map.
    """

    def __init__(self, axis: int, size: int, hidden: int, out: int, dropout: float) -> None:
        super().__init__()
        self.axis = axis
        self.first = nn.Linear(size, hidden)
        self.second = nn.Linear(hidden, out)
        self.shortcut = nn.Identity() if size == out else nn.Linear(size, out, bias=False)
        # Over so few numbers, a norm leaves little more than their order.
        self.norm = nn.LayerNorm(size) if size > MIN_NORMED else nn.Identity()
        self.dropout = Dropout(dropout)

    def forward(self, cube: Tensor) -> Tensor:
        """Return the cube with its axis mixed. The other two axes are untouched."""
        x = cube.movedim(self.axis, -1)
        mixed: Tensor = self.shortcut(x) + self.dropout(self.mix(self.norm(x)))
        return mixed.movedim(-1, self.axis)

    def mix(self, x: Tensor) -> Tensor:
        """Return W2 gelu(W1 x + b1) + b2 along the last axis."""
        mixed: Tensor = self.second(gelu(self.first(x)))
        return mixed
