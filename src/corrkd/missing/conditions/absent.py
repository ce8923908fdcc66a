"""Absent modalities: each sample lacks some at random, and keeps at least one."""

from __future__ import annotations

import torch
from torch import Tensor

from corrkd.data.batches import Batch
from corrkd.missing.conditions.at_ratio import AtRatio
from corrkd.missing.masks import uniform


class Absent(AtRatio):
    """A share `ratio` of the modalities that each sample has is missing entirely, drawn per sample;
    at least one is kept.

    One of the A modalities of a sample is kept, chosen uniformly; each of the others is missing
    with probability ratio A / (A - 1), at most 1 (the distribution of GCNet's masks: Lian et al.,
    TPAMI 2023). So a share `ratio` is missing on average, up to 1 - 1 / A, beyond which exactly one
    modality is kept. What is missing at a ratio is also missing at all larger ones.
    """

    kind = "absent"
    meaning = "each sample without that share of its modalities, at least one being left (absent)"

    @property
    def is_random(self) -> bool:
        """Whether anything is missing: even at a ratio of 1 the kept modality is random."""
        return self.ratio > 0.0

    @property
    def complete_modalities(self) -> tuple[str, ...] | None:
        """All modalities at a ratio of 0; None above it, because samples differ."""
        return self.available if self.ratio == 0.0 else None

    def dropped(self, batch: Batch, *, seed: int, draw: int) -> dict[str, Tensor]:
        """Return the masks, (N, T_m) booleans by modality, the same in all frames of a sample."""
        missing = self.missing(batch, seed=seed, draw=draw)
        return {
            m: missing[:, i : i + 1].expand_as(exists)
            for i, (m, exists) in enumerate(batch.exists.items())
        }

    def dropped_frames(self, batch: Batch, modality: str, *, seed: int, draw: int) -> Tensor:
        """Return the mask of one modality, (N, T) booleans."""
        return self.dropped(batch, seed=seed, draw=draw)[modality]

    def missing(self, batch: Batch, *, seed: int, draw: int) -> Tensor:
        """Return which modalities of which samples are missing: (N, M) booleans, M in the order of
        `batch.exists`.
        """

        def numbers(purpose: str) -> Tensor:
            each = [
                uniform(batch.keys, 1, seed=seed, purpose=purpose, modality=m, draw=draw)
                for m in batch.exists
            ]
            return torch.cat(each, 1)

        # A modality that is missing in the data cannot be the one that is kept.
        has = torch.stack([batch.present[m].any(1) for m in batch.exists], 1)
        kept = torch.where(has, numbers("left"), -1.0).argmax(1, keepdim=True)
        count = has.sum(1, keepdim=True)
        probability = self.ratio * count / (count - 1).clamp(min=1)
        return (numbers("absent") < probability).scatter(1, kept, False)
