"""Noise: frames are replaced but still count as visible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from corrkd.data.batches import Batch
from corrkd.data.inputs import Inputs
from corrkd.missing.conditions.at_ratio import AtRatio
from corrkd.missing.conditions.ratio import random_frames
from corrkd.missing.masks import noise


class Noise(AtRatio):
    """Noise of mean 0 and variance 1 replaces the frames that a `Ratio` drops; the masks mark
    them.
    """

    kind = "noise"
    meaning = "noise in place of that share of the frames (noise)"
    removes_frames: ClassVar[bool] = False

    @property
    def is_random(self) -> bool:
        """Whether any frame is replaced."""
        return self.ratio > 0.0

    @property
    def complete_modalities(self) -> None:
        """Always None: even if all frames are noise, samples differ."""
        return

    def dropped_frames(self, batch: Batch, modality: str, *, seed: int, draw: int) -> Tensor:
        """Return which frames of one modality are replaced, (N, T) booleans."""
        return random_frames(batch, modality, self.ratio, seed=seed, draw=draw)

    def visible(self, batch: Batch, *, seed: int, draw: int) -> dict[str, Tensor]:
        """Return the frames that are present, because a network takes noise for frames."""
        return dict(batch.present)

    def apply(
        self, batch: Batch, *, seed: int, draw: int, masks: Mapping[str, Tensor] | None = None
    ) -> Inputs:
        """Return the samples with noise in the replaced frames, as if nothing were missing."""
        replaced = self.dropped(batch, seed=seed, draw=draw) if masks is None else masks
        frames = {}
        for m, x in batch.frames.items():
            values = noise(batch.keys, *x.shape[1:], seed=seed, modality=m, draw=draw).to(x.dtype)
            frames[m] = torch.where((replaced[m] & batch.present[m])[..., None], values, x)
        return replace(batch, frames=frames).complete()
