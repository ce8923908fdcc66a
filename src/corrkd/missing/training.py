"""Missingness in training: modality random missing (MRM), redrawn in each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from corrkd.data.batches import Batch, Samples
from corrkd.data.inputs import Inputs
from corrkd.missing.masks import drop_frames, frame_numbers, uniform
from corrkd.settings import MissingSettings


@dataclass(frozen=True)
class EpochMasks:
    """The masks of an epoch. `dropped`: (N, T_m) booleans by modality, for all samples; None:
    nothing is dropped.
    """

    dropped: Mapping[str, Tensor] | None = None

    def apply(self, batch: Batch) -> Inputs:
        """Return the inputs of a network in training for a batch."""
        if self.dropped is None:
            return batch.complete()
        return batch.inputs({m: mask[batch.rows] for m, mask in self.dropped.items()})


@dataclass(frozen=True)
class RandomMissing:
    """Modality random missing: whole modalities and single frames at once, drawn per sample and
    epoch (docs/missingness.md).

    Each modality is removed with probability `settings.modality`. In the others, frames are dropped
    at a ratio drawn uniformly between `frames_low` and `frames_high` for each sample and modality.
    With probability `complete` a sample stays complete. At least one present frame stays visible: a
    sample that would lose all modalities keeps the one with the largest number, and a sample that
    would lose all frames keeps the frame with the largest number.

    Attributes:
        settings: the distribution.
        seed: seed of the training.
    """

    settings: MissingSettings
    seed: int

    def epoch(self, samples: Samples, epoch: int) -> EpochMasks:
        """Return the masks of an epoch for all samples, from which each step takes its rows."""
        return EpochMasks(
            self.dropped(samples.keys, samples.present, epoch=epoch, frame_keys=samples.frame_keys)
        )

    def dropped(
        self,
        keys: Tensor,
        present: Mapping[str, Tensor],
        *,
        epoch: int,
        frame_keys: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return what is dropped in an epoch, (N, T_m) booleans by modality.

        Args:
            keys: (N,) int64 hash of each sample's id.
            present: (N, T_m) booleans by modality: exists and is not naturally missing.
            epoch: number of the epoch, by which masks differ.
            frame_keys: as in `frame_numbers`, by modality; None: the data does not number frames.
        """
        modalities, settings, seed = list(present), self.settings, self.seed

        def numbers(purpose: str, modality: str) -> Tensor:
            return uniform(keys, 1, seed=seed, purpose=purpose, modality=modality, epoch=epoch)

        # A modality that is missing in the data cannot be the one that is kept.
        available = torch.stack([present[m].any(1) for m in modalities], 1)
        number = torch.cat([numbers("modality", m) for m in modalities], 1)
        removed = drop_frames(number, settings.modality) | ~available
        kept = _one_hot(torch.where(available, number, -1.0))
        removed &= ~(kept & removed.all(1, keepdim=True))

        recording_keys = frame_keys or {}
        frame = {
            m: frame_numbers(
                keys, present[m].shape[1], recording_keys.get(m), seed=seed, modality=m, epoch=epoch
            )
            for m in modalities
        }
        span = settings.frames_high - settings.frames_low
        dropped = {}
        for index, m in enumerate(modalities):
            ratio = settings.frames_low + span * numbers("ratio", m)
            dropped[m] = drop_frames(frame[m], ratio) | removed[:, index : index + 1]
        complete = drop_frames(numbers("complete", ""), settings.complete)
        return _keep_one_frame(
            {m: d & ~complete for m, d in dropped.items()}, present, frame, removed
        )


def _keep_one_frame(
    dropped: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    frame: Mapping[str, Tensor],
    removed: Tensor,
) -> dict[str, Tensor]:
    modalities = list(dropped)
    all_dropped = torch.cat([dropped[m] for m in modalities], 1)
    candidates = torch.cat(
        [present[m] & ~removed[:, i : i + 1] for i, m in enumerate(modalities)], 1
    )
    number = torch.cat([frame[m] for m in modalities], 1)
    blind = ~(candidates & ~all_dropped).any(1, keepdim=True)
    all_dropped &= ~(_one_hot(torch.where(candidates, number, -1.0)) & blind)
    return dict(
        zip(
            modalities, all_dropped.split([dropped[m].shape[1] for m in modalities], 1), strict=True
        )
    )


def _one_hot(numbers: Tensor) -> Tensor:
    """Return booleans that are True at the largest number of each row."""
    return torch.zeros_like(numbers, dtype=torch.bool).scatter(
        1, numbers.argmax(1, keepdim=True), True
    )
