"""Statistics of the training split, stored with the model: the scale of features and the usual
length of a modality.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from corrkd.data.dataset import TOKEN_SCALE, FloatArray, Split

Method = Literal["robust", "standard", "scale", "none"]
# enough frames for accurate quantiles; a memory-mapped split is not read in full
MOST_FRAMES = 100_000


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """`(x - center) / scale`, clipped to +-clip, for each feature of each modality; and the
    canonical lengths of the modalities.

    Attributes:
        center, scale: per modality (d_m,) float32; scale > 0.
        lengths: canonical number of frames by modality, at least 1: the length of a modality
            without a visible frame (`corrkd.data.inputs.Inputs.with_lengths`).
        clip: the bound, in units of scale; None: no bound.
    """

    center: Mapping[str, FloatArray]
    scale: Mapping[str, FloatArray]
    lengths: Mapping[str, int]
    clip: float | None

    def apply(self, modality: str, frames: torch.Tensor) -> torch.Tensor:
        """Return normalised frames, with the shape (..., d_m) and dtype of `frames`."""
        center = torch.as_tensor(self.center[modality], dtype=frames.dtype, device=frames.device)
        scale = torch.as_tensor(self.scale[modality], dtype=frames.dtype, device=frames.device)
        out = (frames - center).div_(scale)
        return out if self.clip is None else out.clamp_(-self.clip, self.clip)


def fit_normalisation(
    train: Split,
    method: Method = "robust",
    clip: float | None = 5.0,
    *,
    tokens: Collection[str] = (),
) -> Normalisation:
    """Return the statistics of the training split. Padding and naturally missing frames do not
    count.

    "robust" centres on the median and divides by the interquartile range over 1.349 (which
    estimates the standard deviation of a normal distribution), so that a few values of 5e4 do not
    set the scale; if more than half the values are equal, it uses the standard deviation. "scale"
    divides in the same way but does not centre: a zero stays a zero. A constant feature is only
    centred. Token ids (the modalities in `tokens`) are divided by TOKEN_SCALE with every method,
    and a network recovers them exactly.
    """
    center: dict[str, FloatArray] = {}
    scale: dict[str, FloatArray] = {}
    for modality in train.frames:
        if modality in tokens:
            center[modality], scale[modality] = (
                np.zeros(1, np.float32),
                np.full(1, TOKEN_SCALE, np.float32),
            )
            continue
        rows = _some_frames(train, modality)
        center[modality], scale[modality] = _statistics(rows, method)
    return Normalisation(
        center=center,
        scale=scale,
        lengths=canonical_lengths(train),
        clip=clip if method != "none" else None,
    )


def canonical_lengths(train: Split) -> dict[str, int]:
    """Return, by modality, the median number of frames over the training samples that show it, at
    least 1.
    """
    out = {}
    for m, lengths in train.lengths.items():
        visible = train.present[m].any(1)
        out[m] = int(np.median(lengths[visible])) if visible.any() else 1
    return out


def _some_frames(train: Split, modality: str) -> FloatArray:
    frames, present = train.frames[modality], train.present[modality]
    samples = np.arange(len(train))
    total = int(present.sum())
    if total > MOST_FRAMES:
        count = max(1, int(len(train) * MOST_FRAMES / total))
        samples = np.unique(np.linspace(0, len(train) - 1, count).astype(np.int64))
    taken: FloatArray = np.asarray(frames[samples])[present[samples]]
    return taken


def _statistics(rows: FloatArray, method: Method) -> tuple[FloatArray, FloatArray]:
    width = rows.shape[1]
    if method == "none":
        return np.zeros(width, np.float32), np.ones(width, np.float32)
    # In float64: values of 1e4 squared and summed over 1e5 frames do not fit float32's precision.
    deviation = rows.std(0, dtype=np.float64)
    if method == "standard":
        center, scale = rows.mean(0, dtype=np.float64), deviation
    else:
        low, middle, high = np.quantile(rows, [0.25, 0.5, 0.75], axis=0)
        spread = (high - low) / 1.349
        center, scale = middle, np.where(spread > 0, spread, deviation)
    if method == "scale":
        center = np.zeros(width)
    negligible = scale <= 1e-6 * np.maximum(1.0, np.abs(center))
    return center.astype(np.float32), np.where(negligible, 1.0, scale).astype(np.float32)
