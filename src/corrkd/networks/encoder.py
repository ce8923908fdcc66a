"""Encoder of one modality, from its frames to one vector: convolution, positions, Transformer and
pooling (docs/method.md, "Network").
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
    """Encoder of one modality. Attention and pooling ignore padding. A missing frame is read as its
    fill, or ignored as well if `exclude_missing`.

    A pure function of parameters and inputs: no running statistics, nothing read back from the
    device.

    Args:
        inputs: d_m, width of the modality's frames.
        frames: T_m, largest number of frames of a sample; it bounds learned positions only.
        settings: settings of the network.
    """

    def __init__(self, inputs: int, frames: int, settings: NetworkSettings) -> None:
        super().__init__()
        self.settings = settings
        width = settings.width
        self.embed = TemporalConvolution(inputs, width, settings.kernel)
        # Missing frames are filled with zeros, the training mean (`CorrKDNetwork.set_fill`), or a
        # learned vector, initially zeros.
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
        """Return one vector per sample.

        Args:
            frames: (N, T, d_m); the values of invisible frames are ignored.
            exists: (N, T) booleans: not padding.
            visible: (N, T) booleans: present in the data and not dropped; implies `exists`.

        Returns:
            (N, width); zeros if there is nothing to attend to (all missing, `exclude_missing`).
        """
        return pool(*self.encode(frames, exists, visible))

    def encode(self, frames: Tensor, exists: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Return one vector per frame, (N, T, width), and which frames count, (N, T) booleans.
        Arguments as for `forward`.
        """
        frames = torch.where(
            visible[..., None], frames, self.fill.to(frames.dtype) * exists[..., None]
        )
        attended = visible if self.settings.exclude_missing else exists
        hidden = self.embed(frames) + self.first_positions(frames.shape[1])
        hidden = self.dropout(hidden)
        # Finite, so that a sample with nothing to attend to stays finite; pooling makes it zeros.
        lowest = torch.finfo(hidden.dtype).min / 2
        bias = torch.zeros_like(attended, dtype=hidden.dtype).masked_fill(~attended, lowest)[
            :, None, None, :
        ]
        for layer in self.layers:
            hidden = layer(hidden, bias)
        return self.norm(hidden), attended

    def first_positions(self, frames: int) -> Tensor:
        """Return the positions of the first `frames` frames, broadcastable to (frames, width).

        Raises:
            ValueError: if learned positions do not reach: they end with the longest training
                sample.
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
    """1D convolution over time, zero-padded to the same length, of (N, T, d) without transposing:
    one product per tap, then shifted sums.
    """

    def __init__(self, inputs: int, width: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        bound = 1.0 / math.sqrt(inputs * kernel)  # as torch.nn.Conv1d
        self.weight = nn.Parameter(torch.empty(kernel, inputs, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def forward(self, frames: Tensor) -> Tensor:
        """Return the convolved frames: (N, T, inputs) -> (N, T, width)."""
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
    """Return y[:, t] = x[:, t + offset], zero beyond the ends: (N, T, d) -> (N, T, d)."""
    return pad(x, (0, 0, max(-offset, 0), max(offset, 0)))[
        :, max(offset, 0) : x.shape[1] + max(offset, 0)
    ]


class AttentionLayer(nn.Module):
    """Base class of layers that compute an attention map (T, T) for each of their `heads`."""

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
        """Return the states: (N, T, width), additive bias on keys (N, 1, 1, T) -> (N, T, width)."""
        if self.pre:
            hidden = hidden + self.dropout(self.attend(self.norm_attention(hidden), bias))
            return hidden + self.dropout(self.feed(self.norm_feedforward(hidden)))
        hidden = self.norm_attention(hidden + self.dropout(self.attend(hidden, bias)))
        return self.norm_feedforward(hidden + self.dropout(self.feed(hidden)))

    def attend(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Return the result of multi-head self-attention, by two batched products: with four
        numbers per head, they are faster than the fused kernels on a CPU.

        Time is the last axis, so that all six products of a step have long rows. With the four
        numbers last, the products with values and three of the backward pass take four times as
        long.
        """
        count, frames, width = hidden.shape
        batch = count * self.heads
        parts = self.projection(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 4, 1)
        # Explicit sizes instead of -1: one of several processes may have no samples.
        query, key, value = parts.reshape(3, batch, width // self.heads, frames).unbind(0)
        query = query * query.shape[1] ** -0.5
        # Under autocast, the products have a narrower range than the bias.
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
        """Return the output of the feed-forward block."""
        return self.contract(self.dropout(torch.relu(self.expand(hidden))))


class Dropout(nn.Module):
    """Dropout with 16-bit random numbers from the training's `Draws`; torch's takes three times as
    long on a CPU.

    The probability is rounded to a multiple of 2^-16, and the kept numbers are scaled for the
    rounded probability. Outside a training of this package, which sets the `Draws`, this is torch's
    dropout with its global generator.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Zero each number with the given probability in training; otherwise return x unchanged."""
        if not self.training or self.probability == 0.0:
            return x
        draws = current_draws()
        if draws is None:
            return dropout(x, self.probability)
        steps = round(self.probability * 65536)
        bits, scale = draws.bits(x.numel()), 65536 / (65536 - steps)
        if draws.stacked:  # comparing in place has no batching rule
            return x * ((bits >= steps - 32768).to(x.dtype) * scale).view(x.shape)
        # Compared as floats, since a comparison to booleans that are then converted to floats takes
        # several times as long.
        kept = bits.float().ge_(steps - 32768).to(x.dtype).mul_(scale)
        return x * kept.view(x.shape)


def pool(hidden: Tensor, attended: Tensor) -> Tensor:
    """Return the mean of the frames that count, or zeros: (N, T, d), (N, T) booleans -> (N, d)."""
    weight = attended.to(hidden.dtype)
    return torch.einsum("nt,ntd->nd", weight, hidden) / weight.sum(1, keepdim=True).clamp(min=1.0)


def last(hidden: Tensor, attended: Tensor) -> Tensor:
    """Return the last frame that counts, or zeros: (N, T, d), (N, T) booleans -> (N, d)."""
    number = torch.arange(1, attended.shape[1] + 1, device=attended.device)
    return pool(hidden, attended & (number == (attended * number).amax(1, keepdim=True)))


def sinusoids_like(hidden: Tensor, frames: int) -> Tensor:
    """Return sinusoidal positions of `frames` frames with width, dtype and device of `hidden`."""
    # Created on a GPU directly: captured steps may not copy to it. Other devices may lack float64.
    device = hidden.device if hidden.is_cuda else None
    return sinusoids(frames, hidden.shape[-1], device).to(hidden)


def sinusoids(frames: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return sinusoidal positions (Vaswani et al., 2017), (frames, width), computed in float64 on
    the device; default: the CPU.
    """
    options: dict[str, Any] = {"dtype": torch.float64, "device": device}
    position = torch.arange(frames, **options)[:, None]
    rate = torch.exp(-math.log(10_000.0) * torch.arange(0, width, 2, **options) / width)
    table = torch.zeros(frames, width, **options)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)[:, : width // 2]
    return table.float()
