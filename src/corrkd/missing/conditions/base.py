"""The base class of conditions: ways in which test samples are incomplete."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from corrkd.data.batches import Batch
from corrkd.data.inputs import Inputs


class Family(Enum):
    """Groups of conditions that are reported together.

    SUBSETS: by available modalities, with their average ("Avg.").
    RATIOS: by the share of missing frames, `ratio`, as a curve with the area under it.
    OTHERS: in a separate table. They do not rate predictions, because users' samples resemble the
    other two.
    """

    SUBSETS = 1
    RATIOS = 2
    OTHERS = 3


@dataclass(frozen=True, kw_only=True)
class Condition(ABC):
    """One way in which test samples are incomplete.

    Each kind of condition is a subclass that has to define only `kind` and `dropped`. The defaults
    suit a kind with a single condition and no randomness. `parse` must recover a condition from its
    name, because reports, manifests and the command line store only names. The attributes from
    `kind` on are class variables.

    Attributes:
        name: as in results, on the command line and in files.
        available: modalities that can be visible.
        ratio: share of the frames affected, 0 to 1; None for kinds without a ratio.
        draws: number of random draws that are averaged; 1 if nothing is random.
        kind: name of the entry point, the first word of the conditions' names and a key of
            `evaluation.conditions`; without "-".
        meaning: what is missing, for the caption of the table of others; "": the kind.
        family: the group in which the results are reported.
        settings_type: type of the kind's value in `evaluation.conditions`.
        removes_frames: whether frames are removed, so that raw samples can be predicted under it.
        stores_masks: whether manifests contain its masks; not if they follow from the name.
        incomplete_samples_only: whether only samples that are incomplete in the data are tested.
        intact_samples_only: whether only samples that are complete in the data are tested.
    """

    name: str
    available: tuple[str, ...]
    ratio: float | None = None
    draws: int = 1

    kind: ClassVar[str]
    meaning: ClassVar[str] = ""
    family: ClassVar[Family] = Family.OTHERS
    settings_type: ClassVar[Any] = bool
    removes_frames: ClassVar[bool] = True
    stores_masks: ClassVar[bool] = True
    incomplete_samples_only: ClassVar[bool] = False
    intact_samples_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Set `draws` to 1 if nothing is random."""
        if not self.is_random:
            object.__setattr__(self, "draws", 1)

    @classmethod
    def claims(cls, name: str) -> bool:
        """Return whether a name could be mistaken for one of this kind, so that no modality may
        have it.
        """
        return name == cls.kind

    @classmethod
    def parse(cls, name: str, modalities: Sequence[str], draws: int = 1) -> Self | None:
        """Return the condition of this kind with the given name; None if the name is not valid."""
        return (
            cls(name=name, available=tuple(modalities), draws=draws) if name == cls.kind else None
        )

    @classmethod
    def from_settings(cls, value: Any, modalities: Sequence[str], draws: int) -> Sequence[Self]:
        """Return the conditions of this kind that the settings ask for.

        Args:
            value: value in `evaluation.conditions`, a `settings_type`.
            modalities: names of the dataset's modalities.
            draws: number of random draws that are averaged.
        """
        return [cls(name=cls.kind, available=tuple(modalities), draws=draws)] if value else []

    @property
    def is_random(self) -> bool:
        """Whether draws differ, so that `evaluation.draws` of them are averaged."""
        return False

    @property
    def complete_modalities(self) -> tuple[str, ...] | None:
        """The modalities that are complete in every sample, if all others are missing entirely;
        their encodings can then be shared.

        None if single frames are missing.
        """
        return None

    @abstractmethod
    def dropped(self, batch: Batch, *, seed: int, draw: int) -> dict[str, Tensor]:
        """Return the masks, (N, T_m) booleans by modality, True if a frame is dropped. Padding may
        be marked as dropped too.

        Random numbers come from `corrkd.missing.masks.uniform` with a purpose that no other kind
        uses, so that masks are the same for all batch sizes and devices.

        Args:
            batch: the samples, with or without their frames.
            seed: seed of all randomness.
            draw: index of the random draw.
        """

    def visible(self, batch: Batch, *, seed: int, draw: int) -> dict[str, Tensor]:
        """Return which frames a network takes for present, (N, T_m) booleans by modality; for the
        arguments see `dropped`.
        """
        return batch.visible(self.dropped(batch, seed=seed, draw=draw))

    def apply(
        self, batch: Batch, *, seed: int, draw: int, masks: Mapping[str, Tensor] | None = None
    ) -> Inputs:
        """Return the inputs of a network for a batch under this condition.

        Args:
            batch: the samples, as in the data.
            seed: seed of all randomness.
            draw: index of the random draw.
            masks: used instead of `dropped`, as from a manifest.
        """
        return batch.inputs(self.dropped(batch, seed=seed, draw=draw) if masks is None else masks)

    def tested_rows(self, incomplete: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Return the rows of the samples to test. `incomplete`: (N,) booleans: samples that are
        incomplete in the data.
        """
        if self.incomplete_samples_only:
            return np.flatnonzero(incomplete)
        if self.intact_samples_only:
            return np.flatnonzero(~incomplete)
        return np.arange(len(incomplete))

    def heading(self, initials: Mapping[str, str]) -> str:
        """Return the heading of the condition's column in tables; `initials`: abbreviation of each
        modality.
        """
        return self.name if self.ratio is None else f"{self.kind} {self.ratio:g}"

    def to_json(self) -> dict[str, Any]:
        """Return the condition as in run.json."""
        return {
            "name": self.name,
            "kind": self.kind,
            "available": list(self.available),
            "ratio": self.ratio,
            "draws": self.draws,
        }
