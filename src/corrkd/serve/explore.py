"""The samples that the page shows, with modalities switched off and frames dropped, for student,
teacher and control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from corrkd.data.batches import sample_key
from corrkd.data.dataset import Split
from corrkd.missing import masks
from corrkd.serve.predictor import Predictor
from corrkd.serve.standalone import ReadSample
from corrkd.settings import MASK_SEED


@dataclass(frozen=True)
class Exhibit:
    """The networks and samples that the page shows.

    Attributes:
        predictors: predictors by role, the student first.
        split: samples to choose from; None for only the samples that a visitor sends.
        name: name of the split.
        truths: label of each sample, as text.
    """

    predictors: Mapping[str, Predictor]
    split: Split | None = None
    name: str = ""
    truths: Sequence[str] = ()

    @property
    def student(self) -> Predictor:
        """The student, with which the service predicts."""
        return next(iter(self.predictors.values()))

    def listed(self, search: str, start: int, count: int) -> tuple[int, list[dict[str, Any]]]:
        """Return the number of samples with `search` in their id or label, and `count` of them from
        index `start`.
        """
        if self.split is None:
            return 0, []
        wanted = search.casefold()
        matches = [number for number, text in enumerate(self._texts) if wanted in text]
        listed = [
            {"number": number, "id": str(self.split.ids[number]), "truth": self.truths[number]}
            for number in matches[start : start + count]
        ]
        return len(matches), listed

    @cached_property
    def _texts(self) -> list[str]:
        """Id and label of each sample, in which `listed` searches."""
        assert self.split is not None
        return [
            f"{name} {truth}".casefold()
            for name, truth in zip(self.split.ids, self.truths, strict=True)
        ]

    def sample(self, number: int) -> tuple[str, str, ReadSample]:
        """Return the id, label and frames of a sample of the split. Raises IndexError if `number`
        is out of range.
        """
        if self.split is None or not 0 <= number < len(self.split):
            raise IndexError(number)
        rows = {m: slice(int(lengths[number])) for m, lengths in self.split.lengths.items()}
        read = {
            m: (
                np.array(self.split.frames[m][number, rows[m]]),
                np.array(self.split.present[m][number, rows[m]]),
            )
            for m in self.student.saved.modalities
        }
        return str(self.split.ids[number]), self.truths[number], read


def hidden(
    read: ReadSample, name: str, *, off: Sequence[str], missing: float, draw: int = 0
) -> ReadSample:
    """Return the sample with modalities switched off and frames dropped.

    Args:
        read: a sample.
        name: id of the sample, which determines the dropped frames.
        off: modalities to drop entirely.
        missing: fraction of frames to drop from the other modalities, 0 to 1. Frames dropped at one
            fraction are also dropped at every larger fraction.
        draw: index of the random draw.
    """
    key = torch.tensor([sample_key(name)])
    out = {}
    for m, (frames, present) in read.items():
        # The seed of the evaluation, so that the page drops the same frames.
        numbers = masks.uniform(
            key, len(frames), seed=MASK_SEED, purpose="frame", modality=m, draw=draw
        )
        dropped = masks.drop_frames(numbers, missing)[0].numpy()
        seen = present & ~dropped & (m not in off)
        out[m] = (np.where(seen[:, None], frames, np.float32(0)), seen)
    return out
