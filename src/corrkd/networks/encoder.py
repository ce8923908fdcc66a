"""From the frames of one modality to one vector: convolution, positions, Transformer, pooling
(method, Network, steps 1 to 3).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, pad

from corrkd.networks.draws import current_draws
from corrkd.settings import NetworkSettings


class Encoder(nn.Module):
    """The encoder of one modality. Padding takes no part in attention or pooling; a missing frame
    does, as its fill.

    A pure function of parameters and inputs: no running statistics, nothing read back from the
    device.

    Args:
        inputs: d_m, the width of the modality's frames.
        frames: T_m, the most frames a sample has; only learned positions are bound to it.
        settings: the network's settings.
    """

    def __init__(self, inputs: int, frames: int, settings: NetworkSettings) -> None:
        super().__init__()
        self.settings = settings
        width = settings.width
        self.embed = TemporalConvolution(inputs, width, settings.kernel)
        # The vector that stands for a missing frame: zeros, the training mean
        # (`CorrKDNetwork.set_fill`), or learned from zeros on.
        fill = torch.zeros(inputs)
        if settings.fill == "learned":
            self.fill = nn.Parameter(fill)
        else:
            self.register_buffer("fill", fill)
        if settings.positions == "learned":
            self.positions = nn.Parameter(torch.randn(frames, width) * 0.02)
        else:
            table = (
                sinusoids(frames, width)
                if settings.positions == "sinusoidal"
                else torch.zeros(frames, width)
            )
            self.register_buffer("positions", table, persistent=False)
        self.dropout = Dropout(settings.dropout)
        self.layers = nn.ModuleList(EncoderLayer(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(width) if settings.norm == "pre" else nn.Identity()

    def forward(self, frames: Tensor, exists: Tensor, visible: Tensor) -> Tensor:
        """One vector per sample.

        Args:
            frames: (N, T, d_m); what stands at invisible places does not matter.
            exists: (N, T) booleans: not padding.
            visible: (N, T) booleans: present in the data and not dropped; within `exists`.

        Returns:
            (N, width). A sample of which nothing may be attended (all missing, `exclude_missing`)
            gives zeros.
        """
        return pool(*self.encode(frames, exists, visible))

    def encode(self, frames: Tensor, exists: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Return one vector per frame, (N, T, width), and which frames count, (N, T) booleans;
        arguments as of `forward`.
        """
        frames = torch.where(
            visible[..., None], frames, self.fill.to(frames.dtype) * exists[..., None]
        )
        attended = visible if self.settings.exclude_missing else exists
        hidden = self.embed(frames) + self.place(frames.shape[1])
        hidden = self.dropout(hidden)
        # Finite, so that a row with nothing to attend to stays finite too; zeroed by the pooling.
        lowest = torch.finfo(hidden.dtype).min / 2
        bias = torch.zeros_like(attended, dtype=hidden.dtype).masked_fill(~attended, lowest)[
            :, None, None, :
        ]
        for layer in self.layers:
            hidden = layer(hidden, bias)
        return self.norm(hidden), attended

    def place(self, frames: int) -> Tensor:
        """Positions of the first `frames` frames, (frames, width). Learned ones end where
        training's longest sample ended.
        """
        if frames <= len(self.positions):
            return self.positions[:frames]
        if self.settings.positions == "learned":
            raise ValueError(
                f"a sample of {frames} frames, but learned positions reach {len(self.positions)} "
                f"frames"
            )
        if self.settings.positions == "none":
            return self.positions[:1]
        return sinusoids_like(self.positions, frames)


class TemporalConvolution(nn.Module):
    """Conv1d over time, zero-padded to the same length, on (N, T, d) without transposing: a product
    per tap, then shifted sums.
    """

    def __init__(self, inputs: int, width: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        bound = 1.0 / math.sqrt(inputs * kernel)  # as torch.nn.Conv1d
        self.weight = nn.Parameter(torch.empty(kernel, inputs, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def forward(self, frames: Tensor) -> Tensor:
        """(N, T, inputs) -> (N, T, width)."""
        taps, inputs, width = self.weight.shape
        products = (frames @ self.weight.transpose(0, 1).reshape(inputs, taps * width)).unflatten(
            -1, (taps, width)
        )
        total = self.bias.to(products.dtype)
        for tap in range(taps):
            offset = tap - taps // 2
            chunk = products[:, :, tap]
            total = total + (shifted(chunk, offset) if offset else chunk)
        return total


def shifted(x: Tensor, offset: int) -> Tensor:
    """y[:, t] = x[:, t + offset], zero where there is none. (N, T, d) -> (N, T, d)."""
    return pad(x, (0, 0, max(-offset, 0), max(offset, 0)))[
        :, max(offset, 0) : x.shape[1] + max(offset, 0)
    ]


class AttentionLayer(nn.Module):
    """A layer that makes a map of (T, T) numbers for each of its `heads`."""

    heads: int


class EncoderLayer(AttentionLayer):
    """Self-attention and a feed-forward block, each with a residual and a layer norm (Vaswani et
    al., 2017).
    """

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        width = settings.width
        self.heads = settings.heads
        self.pre = settings.norm == "pre"
        self.projection = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.expand = nn.Linear(width, settings.feedforward)
        self.contract = nn.Linear(settings.feedforward, width)
        self.norm_attention = nn.LayerNorm(width)
        self.norm_feedforward = nn.LayerNorm(width)
        self.dropout = Dropout(settings.dropout)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """(N, T, width) and an additive bias on the keys (N, 1, 1, T) -> (N, T, width)."""
        if self.pre:
            hidden = hidden + self.dropout(self.attend(self.norm_attention(hidden), bias))
            return hidden + self.dropout(self.feed(self.norm_feedforward(hidden)))
        hidden = self.norm_attention(hidden + self.dropout(self.attend(hidden, bias)))
        return self.norm_feedforward(hidden + self.dropout(self.feed(hidden)))

    def attend(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Multi-head self-attention by two batched products: with four numbers a head they beat the
        fused kernels on a CPU.

        Time runs along the last axis, so that all six products of a step have long rows; with the
        four numbers there, those with values, and three of the backward pass, take four times as
        long.
        """
        count, frames, width = hidden.shape
        batch = count * self.heads
        parts = self.projection(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 4, 1)
        # Sizes in full instead of -1: one of several processes may have no sample.
        query, key, value = parts.reshape(3, batch, width // self.heads, frames).unbind(0)
        query = query * query.shape[1] ** -0.5
        # Under autocast the products are of a narrower range than the bias.
        bias = (
            bias.to(query.dtype)
            .clamp(min=torch.finfo(query.dtype).min / 2)
            .expand(count, self.heads, 1, frames)
            .reshape(batch, frames, 1)
        )
        weights = torch.softmax(
            torch.baddbmm(bias, key.transpose(1, 2), query), 1
        )  # (batch, keys, queries)
        return self.output(torch.bmm(value, weights).view(count, width, frames).transpose(1, 2))

    def feed(self, hidden: Tensor) -> Tensor:
        """The feed-forward block."""
        return self.contract(self.dropout(torch.relu(self.expand(hidden))))


class Dropout(nn.Module):
    """Dropout by 16-bit numbers of the training's `Draws`; torch's own costs three times as much on
    a CPU.

    The probability is rounded to a multiple of 2^-16, and the numbers kept are scaled by what it
    then is. Outside a training of this package, which says where it draws from, torch's dropout and
    its global generator.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Zeros each number with the given probability in training; the identity otherwise."""
        if not self.training or self.probability == 0.0:
            return x
        draws = current_draws()
        if draws is None:
            return dropout(x, self.probability)
        steps = round(self.probability * 65536)
        bits, scale = draws.bits(x.numel()), 65536 / (65536 - steps)
        if draws.stacked:  # comparing in place has no batching rule
            return x * ((bits >= steps - 32768).to(x.dtype) * scale).view(x.shape)
        # 0 or 1 by way of floats: comparing to booleans, and those to floats, would take several
        # times as long.
        kept = bits.float().ge_(steps - 32768).to(x.dtype).mul_(scale)
        return x * kept.view(x.shape)


def pool(hidden: Tensor, attended: Tensor) -> Tensor:
    """Mean over the frames that count; zeros where none does. (N, T, d) and (N, T) booleans -> (N,
    d).
    """
    weight = attended.to(hidden.dtype)
    return torch.einsum("nt,ntd->nd", weight, hidden) / weight.sum(1, keepdim=True).clamp(min=1.0)


def last(hidden: Tensor, attended: Tensor) -> Tensor:
    """Return the last frame that counts; zeros where none does. (N, T, d) and (N, T) booleans ->
    (N, d).
    """
    number = torch.arange(1, attended.shape[1] + 1, device=attended.device)
    return pool(hidden, attended & (number == (attended * number).amax(1, keepdim=True)))


def sinusoids_like(hidden: Tensor, frames: int) -> Tensor:
    """Return the positions of `frames` frames of the width, dtype and device of (..., width)."""
    # Made on a GPU itself: steps that are captured may not copy to it. Other devices may lack
    # float64.
    device = hidden.device if hidden.is_cuda else None
    return sinusoids(frames, hidden.shape[-1], device).to(hidden)


def sinusoids(frames: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sinusoidal positions (Vaswani et al., 2017): (frames, width), computed in float64 on the
    device; default: the CPU.
    """
    options: dict[str, Any] = {"dtype": torch.float64, "device": device}
    position = torch.arange(frames, **options)[:, None]
    rate = torch.exp(-math.log(10_000.0) * torch.arange(0, width, 2, **options) / width)
    table = torch.zeros(frames, width, **options)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)[:, : width // 2]
    return table.float()
