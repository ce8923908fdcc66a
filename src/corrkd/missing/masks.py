"""Masks of dropped frames, from one uniform number per (seed, sample, modality, epoch, draw, frame)
by a counter-based hash.

So a mask does not depend on batch size, order, workers or device, and what is dropped at a ratio of
0.3 is also dropped at 0.4. True means dropped. Padding may be marked as dropped too, because only
frames that exist count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from functools import lru_cache

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) in int64: products wrap, masks make shifts logical.
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_WORD = (1 << 64) - 1


def _signed(value: int) -> int:
    value &= _WORD
    return value - (1 << 64) if value >> 63 else value


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _signed(_FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(_SECOND)
    return x ^ _shifted(x, 31)


@lru_cache(maxsize=4096)
def _stream(seed: int, purpose: str, modality: str, epoch: int, draw: int) -> int:
    text = f"{seed}|{purpose}|{modality}|{epoch}|{draw}"
    return int.from_bytes(
        hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True
    )


def uniform(
    keys: Tensor,
    count: int,
    *,
    seed: int,
    purpose: str,
    modality: str = "",
    epoch: int = 0,
    draw: int = 0,
) -> Tensor:
    """Return `count` numbers in [0, 1) for each sample, (N, count) float32, the same bits on any
    device.

    Args:
        keys: (N,) int64 hash of each sample's id.
        count: how many numbers a sample needs: its frames, or 1.
        seed, purpose, modality, epoch, draw: identify the stream of numbers.
    """
    state = _mixed(keys ^ _stream(seed, purpose, modality, epoch, draw))
    steps = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device) * _signed(_GOLDEN)
    bits = _mixed(state[:, None] + steps)
    return _shifted(bits, 40).to(torch.float32) * 2.0**-24  # 24 bits fill a float32 exactly


def frame_numbers(
    keys: Tensor,
    count: int,
    frame_keys: Tensor | None,
    *,
    seed: int,
    modality: str,
    epoch: int = 0,
    draw: int = 0,
) -> Tensor:
    """Return the numbers in [0, 1) by which frames are dropped, (N, T) float32.

    Args:
        keys: (N,) int64 hash of each sample's id.
        count: T.
        frame_keys: (N, T) int64 hash of each frame's recording and index. A frame then has the same
            number in all samples that contain it, so that a frame dropped in one cannot be seen in
            an overlapping one. None: the frames of each sample are numbered separately.
        seed, modality, epoch, draw: identify the stream of numbers.
    """
    if frame_keys is None:
        return uniform(
            keys, count, seed=seed, purpose="frame", modality=modality, epoch=epoch, draw=draw
        )
    flat = uniform(
        frame_keys.reshape(-1),
        1,
        seed=seed,
        purpose="frame",
        modality=modality,
        epoch=epoch,
        draw=draw,
    )
    return flat.view(frame_keys.shape)


def drop_frames(numbers: Tensor, ratio: float | Tensor) -> Tensor:
    """Return which frames are dropped (intra-modality missingness), each with probability `ratio`,
    a float or (N, 1): (N, T) -> (N, T) booleans.
    """
    return numbers < ratio


def drop_modalities(exists: Mapping[str, Tensor], kept: Collection[str]) -> dict[str, Tensor]:
    """Return masks of all frames of the modalities that are not kept (inter-modality missingness):
    (N, T_m) by modality, as `exists`.
    """
    return {m: torch.full_like(x, m not in kept) for m, x in exists.items()}


def drop_burst(number: Tensor, ratio: float, lengths: Tensor, frames: int) -> Tensor:
    """Return a contiguous gap of round(ratio x length) frames in each sample, at a random position:
    (N, T) booleans.

    Args:
        number: (N, 1) uniform numbers, from which the position follows. The gap at a larger ratio
            contains the one at a smaller ratio.
        lengths: (N,) number of frames that exist.
        frames: T.
    """
    gap = _gap(ratio, lengths)
    # floor(u (L - k + 1)) falls by at most one when k grows by one, so the gaps are nested.
    start = (number[:, 0].double() * (lengths - gap + 1)).long()
    index = torch.arange(frames, device=number.device)[None, :]
    return (index >= start[:, None]) & (index < (start + gap)[:, None])


def drop_start(ratio: float, lengths: Tensor, frames: int) -> Tensor:
    """Return the first round(ratio x length) frames per sample (late start), (N, T) booleans."""
    return torch.arange(frames, device=lengths.device)[None, :] < _gap(ratio, lengths)[:, None]


def _gap(ratio: float, lengths: Tensor) -> Tensor:
    # Exact halves must round in the same direction at every ratio, or gaps would not be nested.
    return torch.floor(lengths.double() * ratio + 0.5 + 1e-9).long().clamp(max=lengths)


def noise(
    keys: Tensor, frames: int, width: int, *, seed: int, modality: str, draw: int = 0
) -> Tensor:
    """Return noise of mean 0 and variance 1 that replaces frames: (N, T, d) float32, uniform, so
    that it has the same bits on any device.
    """
    # A few samples at a time, because the hash needs 64-bit numbers.
    parts = [
        uniform(k, frames * width, seed=seed, purpose="noise", modality=modality, draw=draw)
        for k in keys.split(16)
    ]
    return ((torch.cat(parts) - 0.5) * 12.0**0.5).view(len(keys), frames, width)
